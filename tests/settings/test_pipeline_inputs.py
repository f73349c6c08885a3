"""Fixed inputs of a pipeline: which are files, and what a collection depends on."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.settings.fingerprints import size_settings, stage_settings
from nullbooth_cli.settings.pipeline_inputs import is_file, recorded_inputs


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("image", "photo.png", True),
        ("image", "photo.JPG", True),
        ("image_embeds", "embeds.safetensors", True),
        ("negative_prompt", "photo.png", False),
        ("task", "depth", False),
        ("strength", 1.0, False),
    ],
)
def test_a_file_is_known_by_its_ending(name: str, value: object, found: bool) -> None:
    assert is_file(name, value) == found


@pytest.mark.parametrize(("name", "value"), [("image", "photo"), ("mask_image", "photo.heic"), ("video", ["a.png", "b"])])
def test_a_picture_whose_name_ends_as_none_is_an_error_and_no_text(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is '.*', whose name ends as no picture's") as caught:
        build_config({"collect": {"pipeline_inputs": {name: value}}})
    assert ".png, .jpg" in caught.value.hint


def test_a_collection_depends_on_the_content_of_files_and_on_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"a picture")
    (tmp_path / "b.png").write_bytes(b"another")
    digests = [hashlib.sha256(content).hexdigest()[:16] for content in (b"a picture", b"another")]
    inputs = {"image": "$PLACE/a.png", "video": ["$PLACE/a.png", "$PLACE/b.png"], "strength": 1.0, "negative_prompt": "a.png"}
    config = build_config({"collect": {"pipeline_inputs": inputs}})
    assert config.collect.pipeline_inputs["image"] == str(tmp_path / "a.png")
    expected = {
        "collect.pipeline_inputs.image": digests[0],
        "collect.pipeline_inputs.video": digests,
        "collect.pipeline_inputs.strength": 1.0,
        "collect.pipeline_inputs.negative_prompt": "a.png",
    }
    assert {k: v for k, v in stage_settings(config, "collect").items() if "inputs" in k} == expected
    del expected["collect.pipeline_inputs.negative_prompt"]
    assert {k: v for k, v in size_settings(config).items() if "inputs" in k} == expected


def test_without_inputs_nothing_is_recorded() -> None:
    """Stores that were made before there was such a key stay as they are."""
    assert not [name for name in stage_settings(build_config({}), "collect") if "inputs" in name]


def test_a_file_that_is_gone_is_named() -> None:
    with pytest.raises(ConfigError, match=r"collect.pipeline_inputs.image: no file at nowhere.png"):
        recorded_inputs({"image": "nowhere.png"})


@pytest.mark.parametrize("value", [{"a": 1}, [[{"a": 1}]]])
def test_a_value_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"collect.pipeline_inputs: image is a ") as caught:
        build_config({"collect": {"pipeline_inputs": {"image": value}}})
    assert "give a file, a text, a number" in caught.value.hint
