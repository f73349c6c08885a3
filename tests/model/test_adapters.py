"""Adapters of other pipelines, whose tensors diffusers renames, splits or filters: all of them arrive, or it is an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import AdapterFile
from nullbooth_cli.model.adapters import attached, fuse
from nullbooth_cli.model.denoisers import denoiser_of
from tests.support import tiny


def made(name: str) -> Any:
    torch.manual_seed(0)
    return tiny.PIPELINES[name]()


def found(file: Path) -> AdapterFile:
    adapter = AdapterFile.find(file, allow_pickle=False)
    assert adapter is not None
    return adapter


def with_values(denoiser: Any) -> None:
    for name, parameter in denoiser.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_a_lora_of_diffusers(tmp_path: Path, name: str) -> None:
    """Also at another alpha than its rank, which its metadata hold."""
    pipe, plain = made(name), made(name)
    denoiser = denoiser_of(pipe)
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_k", "to_q"]))
    with_values(denoiser)
    part = "unet" if name == "sdxl" else "transformer"
    how = {
        f"{part}_lora_layers": get_peft_model_state_dict(denoiser),
        f"{part}_lora_adapter_metadata": denoiser.peft_config["default"].to_dict(),
    }
    pipe.save_lora_weights(tmp_path, **how)
    fuse(plain, found(tmp_path), 0.5)
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unload_lora_weights()
    wanted = denoiser_of(pipe).state_dict()
    untouched = denoiser_of(made(name)).state_dict()
    moved = 0
    for key, tensor in denoiser_of(plain).state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-6)
        moved += not torch.equal(tensor, untouched[key])
    assert moved >= 4


def flux_of_kohya() -> dict[str, torch.Tensor]:
    """One fused q, k, v of the first block."""
    torch.manual_seed(1)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    return {
        f"{name}.lora_down.weight": torch.randn(2, 32),
        f"{name}.lora_up.weight": torch.randn(96, 2),
        f"{name}.alpha": torch.tensor(1.0),
    }


def test_fused_projections_of_kohya(tmp_path: Path) -> None:
    """diffusers splits them, and has no alpha afterwards."""
    tensors = flux_of_kohya()
    save_file(tensors, tmp_path / "flux.safetensors")
    pipe, plain = made("flux"), made("flux")
    fuse(pipe, found(tmp_path), 2.0)
    down, up, _ = tensors.values()
    for part, rows in zip("qkv", up.chunk(3), strict=True):
        name = f"transformer_blocks.0.attn.to_{part}.weight"
        change = pipe.transformer.get_parameter(name) - plain.transformer.get_parameter(name)
        torch.testing.assert_close(change.detach(), 2.0 * 0.5 * rows @ down, rtol=1e-3, atol=1e-5)


def test_a_layer_beside_that_fits_nothing(tmp_path: Path) -> None:
    """As the files of kohya that train T5, which diffusers leaves out without a word."""
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    more = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(32, 2)}
    save_file(flux_of_kohya() | more, tmp_path / "flux.safetensors")
    with (
        pytest.raises(ConfigError, match="2 of its 2 layers cannot be loaded, such as lora_te3"),
        attached(made("flux"), found(tmp_path)),
    ):
        pass


def test_a_pipeline_without_loras(tmp_path: Path) -> None:
    """PixArt takes none of diffusers, but a folder of PEFT."""
    pipe, plain = made("pixart"), made("pixart")
    wrapped = get_peft_model(pipe.transformer, LoraConfig(r=2, target_modules=["to_k"]))
    with_values(wrapped)
    wrapped.save_pretrained(str(tmp_path / "peft"))
    merged = wrapped.merge_and_unload().state_dict()
    fuse(plain, found(tmp_path / "peft"))
    for key, tensor in plain.transformer.state_dict().items():
        torch.testing.assert_close(tensor, merged[key], rtol=1e-4, atol=1e-6)
    save_file({"unet.x.lora_A.weight": torch.ones(1, 1), "unet.x.lora_B.weight": torch.ones(1, 1)}, tmp_path / "x.safetensors")
    with (
        pytest.raises(ConfigError, match=r"cannot load .*x\.safetensors into a PixArt"),
        attached(plain, found(tmp_path / "x.safetensors")),
    ):
        pass
