"""The device and precision of a run, and what it says of long captions."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.training import setup
from tests.support.tiny_dreambooth import recipe


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no such device: cuda:77") as caught:
        setup.set_up(recipe(tmp_path), "cuda:77")
    assert "cpu" in caught.value.hint


def test_a_precision_that_the_device_has_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixed_precision: fp16 would be float32 on the CPU") as caught:
        setup.set_up(recipe(tmp_path, mixed_precision="fp16"), "cpu")
    assert caught.value.hint == "set mixed_precision to no or bf16"


def test_captions_that_are_cut_off_are_named_once(tmp_path: Path) -> None:
    long = "a red circle on a white background " * 4 + "at dawn"
    assert setup.set_up(recipe(tmp_path), "cpu").notes == ()
    [note] = setup.set_up(recipe(tmp_path, validation_prompts=[long], class_prompts=[long], class_images=1), "cpu").notes
    assert "1 caption is too long for the tokenizer" in note
    assert "at dawn" in note
