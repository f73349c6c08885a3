"""What a training run refuses before its first step."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import ModelError
from nullbooth_cli.training import setup
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import recipe


def test_a_model_that_wants_more_than_a_caption(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs more than a caption") as caught:
        setup.set_up(recipe(tmp_path / "out", model=str(saved("sdxl", tmp_path))), "cpu")
    assert "nb.constrain" in caught.value.hint
