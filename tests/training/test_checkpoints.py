"""A run that was stopped resumes as if it had not been."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training import dreambooth, setup
from tests.support.tiny_dreambooth import EMBEDDING, TEXT_ENCODER, recipe, run


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "lora"}, {"gradient_accumulation_steps": 2}, {"word": "sks"}],
    ids=["full", "lora", "accumulated", "word"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, finished: tuple[Config, Store], changes: dict[str, Any]) -> None:
    changes = {"store": str(finished[1].path), "lr_scheduler": "linear", **changes}
    whole = run(recipe(tmp_path / "whole", **changes))
    run(recipe(tmp_path / "stopped", **changes), stop_after=3)
    ready = setup.set_up(recipe(tmp_path / "stopped", **changes), "cpu")
    events = list(dreambooth.train(ready))
    assert events[0].text == "resumes from step 2"
    assert [event.done for event in events[1:]] == [3, 4]
    result = dreambooth.finish(ready)
    assert result is not None
    resumed = result.document()
    ending = "pytorch_lora_weights.safetensors" if "method" in changes else "unet/diffusion_pytorch_model.safetensors"
    one, other = (load_file(Path(document["output"]) / ending) for document in (whole, resumed))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
    if "word" in changes:
        one, other = (load_file(Path(document["output"]) / TEXT_ENCODER) for document in (whole, resumed))
        torch.testing.assert_close(other[EMBEDDING], one[EMBEDDING], rtol=1e-4, atol=1e-6)


def test_more_steps_resume_and_other_settings_do_not(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    ready = setup.set_up(recipe(tmp_path, max_train_steps=5), "cpu")
    assert [getattr(event, "done", None) for event in dreambooth.train(ready)] == [None, 5]
    with pytest.raises(ConfigError, match=r"was made with other settings\n  learning_rate: 0\.01 -> 0\.02") as caught:
        run(recipe(tmp_path, learning_rate=2e-2))
    assert "another output" in caught.value.hint
