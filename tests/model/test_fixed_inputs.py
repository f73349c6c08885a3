"""Fixed inputs of a pipeline, read from their files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.fixed_inputs import read_inputs


def test_pictures_tensors_and_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    tensor = torch.randn(1, 3)
    save_file({"embeds": tensor}, tmp_path / "e.safetensors")
    given = {"image": f"{tmp_path}/a.png", "video": [f"{tmp_path}/a.png"] * 2, "image_embeds": f"{tmp_path}/e.safetensors"}
    found = read_inputs({**given, "negative_prompt": "a.png", "strength": 1.0, "boxes": [[0.1, 0.2]]})
    np.testing.assert_array_equal(np.asarray(found["image"]), values)
    assert [frame.size for frame in found["video"]] == [(6, 4), (6, 4)]
    assert torch.equal(found["image_embeds"], tensor)
    assert (found["negative_prompt"], found["strength"], found["boxes"]) == ("a.png", 1.0, [[0.1, 0.2]])


def test_a_file_of_several_tensors_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "e.safetensors")
    with pytest.raises(ConfigError, match=r"collect.pipeline_inputs.hint: .* has 2 tensors, not one"):
        read_inputs({"hint": f"{tmp_path}/e.safetensors"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"collect.pipeline_inputs.hint: cannot read .*e.safetensors"):
        read_inputs({"hint": f"{tmp_path}/e.safetensors"})
