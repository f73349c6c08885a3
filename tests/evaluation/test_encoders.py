"""Feature spaces: vectors are the models' own, and a space without weights is reported, not faked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.encoders import batches, load_feature_spaces
from tests.support.encoder_weights import save_encoders


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tiny encoders."""
    return save_encoders(tmp_path, monkeypatch)


def test_features_are_the_models_own(weights: Path) -> None:
    spaces = load_feature_spaces({"clip": str(weights / "clip"), "dino": str(weights / "dino")}, torch.device("cpu"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    clip = CLIPModel.from_pretrained(weights / "clip")
    # 32 x 32 pictures are neither resized nor cut: what is left of the processing is CLIP's normalisation.
    mean, std = (np.array(values) for values in (CLIPImageProcessor().image_mean, CLIPImageProcessor().image_std))
    pixels = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = clip.get_image_features(pixels).pooler_output
    vectors = spaces.encoders["clip"](images)
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spaces.encoders["dino"](images[35:]), spaces.encoders["dino"](images)[35:], rtol=1e-4, atol=1e-5)
    aligned = spaces.alignment(vectors, ["a dog"] * 39 + ["a much longer text about a cat"])
    assert aligned.shape == (40,)
    assert (np.abs(aligned) <= 1).all()
    x, y = images, images.copy()
    y[1] = 255 - y[1]
    np.testing.assert_allclose(spaces.lpips(x, y)[:3], [0, np.abs(x[1] / 127.5 - y[1] / 127.5).mean(), 0], rtol=1e-4)


def test_nothing_there_is_said() -> None:
    assert set(load_feature_spaces({}, torch.device("cpu")).missing) == {"clip", "dino", "lpips"}


@pytest.mark.parametrize(
    ("given", "words"), [({"vgg": "x"}, "no feature space vgg"), ({"clip": "nowhere"}, "no CLIP model at nowhere")]
)
def test_what_is_not_an_encoder_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_feature_spaces(given, torch.device("cpu"))
    assert "clip" in caught.value.hint


def test_batches_cover_everything_once() -> None:
    assert [list(range(7))[batch] for batch in batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches(0)) == []


def test_prompts_that_are_too_long_for_clip(weights: Path) -> None:
    spaces = load_feature_spaces({"clip": str(weights / "clip")}, torch.device("cpu"))
    note = spaces.cut_off_note(["a dog", " ".join(["a dog and a cat"] * 40)])
    assert note is not None
    assert note.startswith("1 prompt is too long for the tokenizer, which cuts off its end, ")
    assert spaces.cut_off_note(["a dog"]) is None
    assert load_feature_spaces({}, torch.device("cpu")).cut_off_note(["a dog " * 100]) is None
