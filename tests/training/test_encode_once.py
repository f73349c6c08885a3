"""Text encoders beside those that a word trains in."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from nullbooth_cli.model.conditioning import capture
from nullbooth_cli.model.load import freeze
from nullbooth_cli.training import dreambooth, setup
from nullbooth_cli.training.encode_once import EncodedOnce
from tests.support import tiny
from tests.support.pictures import photos
from tests.support.tiny_dreambooth import recipe


@pytest.mark.parametrize(("name", "t5"), [("sd3", "text_encoder_3"), ("flux", "text_encoder_2"), ("pixart", "text_encoder")])
def test_the_conditioning_is_the_same(name: str, t5: str) -> None:
    """In any order, and for rows of which some are known."""
    pipe = freeze(tiny.PIPELINES[name]())
    once, seen = EncodedOnce([getattr(pipe, t5)]), []
    getattr(pipe, t5).encoder.register_forward_hook(lambda *_: seen.append(1))
    for captions in (["a", "b c"], ["b c"], ["d", "b c", "a"], ["a", "a"]):
        settings = {"size": (8 * pipe.vae_scale_factor,) * 2, "guidance": 1.0}
        wanted = capture(pipe, captions, **settings)
        seen.clear()
        with once.attached():
            found = capture(pipe, captions, like=wanted, **settings)
        assert len(seen) == {"a": 2, "b c": 0, "d": 1}[captions[0]] * (len(set(captions)) > 1)
        for key, tensor in wanted.by_row.items():
            torch.testing.assert_close(found.by_row[key], tensor, rtol=1e-5, atol=1e-6)
    assert "forward" not in vars(getattr(pipe, t5))


@pytest.mark.parametrize(("encoders", "rows"), [("clip", 2), ("all", 8)])
def test_t5_runs_once_for_each_caption_while_a_word_trains_in_clip(tmp_path: Path, encoders: str, rows: int) -> None:
    """Four steps of two pictures."""
    torch.manual_seed(0)
    made = {
        "model": str(tiny.saved("sd3", tmp_path)),
        "instance_images": str(photos(tmp_path / "pictures", ["a sks", "a sks b"])),
        "resolution": 16,
        "word": "sks",
    }
    run, seen = setup.set_up(recipe(tmp_path / "out", **made, word_encoders=encoders), "cpu"), Counter[str]()
    for name, layer in (
        ("text_encoder", run.pipe.text_encoder.text_model.encoder.layers[0]),
        ("text_encoder_3", run.pipe.text_encoder_3.encoder.block[0]),
    ):
        layer.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: len(inputs[0])}))
    list(dreambooth.train(run))
    assert seen == {"text_encoder": 8, "text_encoder_3": rows}
