"""kohya's names change the weights that diffusers' own converters say they change."""

import json
import re
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders import lora_conversion_utils, single_file_utils
from diffusers.utils import convert_unet_state_dict_to_peft

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.kohya_names import has_swapped_halves, kohya_modules
from tests.support import tiny
from tests.support.builders import ROOT

UNETS = {"sd15": "StableDiffusionPipeline", "sd21": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
SGM = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed_\d|label_emb|out_).*")


def real(kind: Any, architecture: str) -> Any:
    """The denoiser of a real model, without values."""
    part = "unet" if kind is diffusers.UNet2DConditionModel else "transformer"
    config = json.loads((ROOT / "tests/architectures" / architecture / part / "config.json").read_text())
    with init_empty_weights():
        return kind.from_config(config)


def matrices(model: Any) -> list[str]:
    """The weights that a LoRA can change."""
    return [name for name, value in model.named_parameters() if name.endswith(".weight") and value.ndim > 1]


def tagged(names: Sequence[str], rows: dict[str, int] | None = None) -> dict[str, torch.Tensor]:
    """A LoRA of rank 1 with the i-th name's `lora_down` full of i, and the rows of its `lora_up` counted."""
    made = {}
    for number, name in enumerate(names):
        made[f"{name}.lora_down.weight"] = torch.full((1, 1), float(number))
        made[f"{name}.lora_up.weight"] = torch.arange(float((rows or {}).get(name, 1)))[:, None]
    return made


def as_diffusers_loads_it(model: Any, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The weight of a U-Net that diffusers gives the LoRA of each name to."""
    tensors = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(tagged(names), model.config)
    converted, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(tensors)
    converted = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in converted.items()})
    down = {key.removesuffix(".lora_A.weight"): int(value) for key, value in converted.items() if ".lora_A." in key}
    return {names[number]: (f"{path}.weight",) for path, number in down.items()}


def modules_of(named: dict[str, tuple[str, ...]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {name: named[name] for name in names}


@pytest.mark.parametrize("architecture", UNETS)
def test_diffusers_paths_of_a_unet(architecture: str) -> None:
    model = real(diffusers.UNet2DConditionModel, architecture)
    named = kohya_modules(matrices(model), UNETS[architecture])
    plain = [name for name in named if not SGM.fullmatch(name)]
    assert sorted(weight for name in plain for weight in named[name]) == sorted(matrices(model))
    loaded = [name for name in plain if "add_embedding" not in name]  # diffusers knows these two by sgm's names alone
    assert as_diffusers_loads_it(model, loaded) == modules_of(named, loaded)


@pytest.mark.parametrize("architecture", ["sdxl", "tiny"])
def test_sgm_paths_of_sdxl(architecture: str) -> None:
    """The tiny one has a block with one resnet, the real one blocks with two."""
    model = tiny.sdxl().unet if architecture == "tiny" else real(diffusers.UNet2DConditionModel, architecture)
    named = kohya_modules(matrices(model), "StableDiffusionXLPipeline")
    sgm = [name for name in named if SGM.fullmatch(name)]
    assert sorted(weight for name in sgm for weight in named[name]) == sorted(matrices(model))
    assert as_diffusers_loads_it(model, sgm) == modules_of(named, sgm)


def test_sgm_paths_of_a_few_weights_are_those_of_all() -> None:
    """A store has the inputs of some layers only."""
    weights = matrices(real(diffusers.UNet2DConditionModel, "sdxl"))
    few = [weight for weight in weights if "attn2.to_k" in weight]
    everything = kohya_modules(weights, "StableDiffusionXLPipeline")
    named = kohya_modules(few, "StableDiffusionXLPipeline")
    assert len(named) == 2 * len(few) == 140
    assert named == modules_of(everything, [*named])


def test_fused_rows_of_flux() -> None:
    model = real(diffusers.FluxTransformer2DModel, "flux")
    shapes = {name: value.shape for name, value in model.named_parameters()}
    named = kohya_modules(matrices(model), "FluxPipeline")
    assert len([name for name in named if "_blocks_" in name]) == 304  # 19 double blocks of 10, 38 single ones of 3
    assert sorted(weight for weights in named.values() for weight in weights) == sorted(matrices(model))
    names = [*named]
    rows = {name: sum(shapes[weight][0] for weight in named[name]) for name in names}
    converted = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(tagged(names, rows))
    for name, weights in named.items():
        ups = []
        for weight in weights:
            path = weight.removesuffix(".weight")
            key = next(key for key in (f"transformer.{path}", path) if f"{key}.lora_A.weight" in converted)
            assert names[int(converted[f"{key}.lora_A.weight"])] == name
            ups.append(converted[f"{key}.lora_B.weight"][:, 0])
        counted = torch.arange(float(rows[name]))
        if has_swapped_halves(weights[0], shapes, "FluxPipeline"):
            counted = counted.roll(rows[name] // 2)
        assert torch.equal(torch.cat(ups), counted)


BLOCK_OF_SD3 = {
    "attn.qkv": 3,
    "attn.proj": 1,
    "mlp.fc1": 4,
    "mlp.fc2": 1,
    "adaLN_modulation.1": 6,
}
OTHERS_OF_SD3 = {
    "x_embedder.proj": 1,
    "context_embedder": 1,
    "t_embedder.mlp.0": 1,
    "t_embedder.mlp.2": 1,
    "y_embedder.mlp.0": 1,
    "y_embedder.mlp.2": 1,
    "final_layer.adaLN_modulation.1": 2,
    "final_layer.linear": 1,
}


def checkpoint_of_sd3(blocks: int, dual: int, width: int = 4) -> dict[str, torch.Tensor]:
    """Stability's layout of SD3.5, each value of a weight being 1000 times its number plus its row."""
    rows = dict(OTHERS_OF_SD3)
    for i in range(blocks):
        rows |= {f"joint_blocks.{i}.x_block.{part}": count for part, count in BLOCK_OF_SD3.items()}
        rows |= {f"joint_blocks.{i}.x_block.attn2.qkv": 3, f"joint_blocks.{i}.x_block.attn2.proj": 1} if i < dual else {}
        last = {"attn.qkv": 3, "adaLN_modulation.1": 2}  # the text of the last block is not needed after it
        rows |= {
            f"joint_blocks.{i}.context_block.{part}": count for part, count in (last if i == blocks - 1 else BLOCK_OF_SD3).items()
        }
    made = {"pos_embed": torch.zeros(1)}
    for number, (name, count) in enumerate(rows.items()):
        values = 1000.0 * number + torch.arange(float(count * width))
        made |= {f"{name}.weight": values[:, None].expand(-1, width).clone(), f"{name}.bias": values}
    return made


def test_fused_rows_of_sd3() -> None:
    checkpoint = checkpoint_of_sd3(blocks=3, dual=2)
    original = {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): value
        for key, value in checkpoint.items()
        if key.endswith(".weight")
    }
    converted = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(checkpoint))
    weights = [name for name in converted if name.endswith(".weight")]
    named = kohya_modules(weights, "StableDiffusion3Pipeline")
    assert named.keys() == original.keys()
    assert sorted(weight for each in named.values() for weight in each) == sorted(weights)
    for name, each in named.items():
        rows = original[name]
        if has_swapped_halves(each[0], weights, "StableDiffusion3Pipeline"):
            rows = rows.roll(len(rows) // 2, 0)
        assert torch.equal(torch.cat([converted[weight] for weight in each]), rows), name
    swapped = [name for name in weights if has_swapped_halves(name, weights, "StableDiffusion3Pipeline")]
    assert sorted(swapped) == ["norm_out.linear.weight", "transformer_blocks.2.norm1_context.linear.weight"]


def test_every_weight_of_a_fused_module_is_named_by_one_of_them() -> None:
    """So that the rows are right when a store has only some of them."""
    named = kohya_modules(["single_transformer_blocks.7.proj_mlp.weight"], "FluxPipeline")
    path = "single_transformer_blocks.7."
    assert named == {
        "lora_unet_single_blocks_7_linear1": (
            *(f"{path}attn.to_{each}.weight" for each in "qkv"),
            f"{path}proj_mlp.weight",
        )
    }


def test_norms_of_a_transformer_have_no_name() -> None:
    assert kohya_modules(["transformer_blocks.0.attn.norm_q.weight"], "FluxPipeline") == {}


def test_a_pipeline_that_kohya_does_not_train() -> None:
    with pytest.raises(ModelError, match="kohya trains no PixArtSigmaPipeline"):
        kohya_modules([], "PixArtSigmaPipeline")
