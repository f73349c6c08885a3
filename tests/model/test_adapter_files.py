"""The names of tensors tell what an adapter is, before anything is loaded."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import KINDS, AdapterFile, pair_name, shapes_in

words = st.text("abcxyz_0123456789", min_size=1, max_size=8).filter(lambda word: "lora" not in word and word.strip("_") == word)
paths = st.lists(words, min_size=1, max_size=5)


@given(path=paths)
def test_every_form_of_a_pair_is_known(path: list[str]) -> None:
    """kohya, PEFT in diffusers, the older form of diffusers, and that of its attention processors."""
    dotted, joined = ".".join(path), "_".join(path)
    for down, up, layer in (
        (f"lora_unet_{joined}.lora_down.weight", f"lora_unet_{joined}.lora_up.weight", f"lora_unet_{joined}"),
        (f"unet.{dotted}.lora_A.weight", f"unet.{dotted}.lora_B.weight", f"unet.{dotted}"),
        (f"unet.{dotted}.lora.down.weight", f"unet.{dotted}.lora.up.weight", f"unet.{dotted}"),
        (f"unet.{dotted}.to_q_lora.down.weight", f"unet.{dotted}.to_q_lora.up.weight", f"unet.{dotted}.to_q"),
    ):
        assert pair_name(down) == (layer, True)
        assert pair_name(up) == (layer, False)


@pytest.mark.parametrize("name", ["conv_in.weight", "lora_unet_x.alpha", "x.lora_A.bias", "lora_down", "x.hada_w1_a", ""])
def test_anything_else_is_no_pair(name: str) -> None:
    assert pair_name(name) is None


@pytest.mark.parametrize("part", KINDS)
def test_other_kinds_are_named(tmp_path: Path, part: str) -> None:
    save_file({f"lora_unet_x.{part.strip('.')}": torch.ones(1)}, tmp_path / "a.safetensors")
    if part == ".diff":
        save_file({"lora_unet_x.diff": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError) as caught:
        AdapterFile.find(tmp_path, allow_pickle=False)
    assert f"({KINDS[part]})" in caught.value.message
    assert "fuse it into its base" in caught.value.hint


def test_a_pipeline_folder_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert AdapterFile.find(tmp_path, allow_pickle=False) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x08\x00\x00\x00\x00\x00\x00\x00{}"], ids=["empty", "noise", "cut"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read .*a\.safetensors"):
        AdapterFile.find(tmp_path / "a.safetensors", allow_pickle=False)


def test_shapes_come_from_the_header(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3), "b": torch.ones(())}, tmp_path / "a.safetensors")
    assert shapes_in(tmp_path / "a.safetensors") == {"a": (2, 3), "b": ()}
