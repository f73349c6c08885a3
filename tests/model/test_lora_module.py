"""A module of a LoRA file after its change dW became dW M: in its own form, as a plain LoRA, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.lora_file import LoraFile

NAME = "lora_unet_mid_block_x"
LINEAR, CONV = (12, 8), (12, 4, 3, 3)


def file_of(folder: Path, tensors: dict[str, torch.Tensor], shape: tuple[int, ...]) -> LoraFile:
    """A file of one module of a denoiser with one weight of this shape."""
    torch.manual_seed(0)
    values = {key: torch.randn(value.shape) * 0.3 if value.ndim else value for key, value in tensors.items()}
    save_file(values, folder / "a.safetensors")
    return LoraFile.read(folder / "a.safetensors", "StableDiffusionPipeline", {"mid_block.x.weight": shape})


def tensors_of(kind: str, shape: tuple[int, ...], name: str = NAME) -> dict[str, torch.Tensor]:
    m, d = shape[0], int(np.prod(shape[1:]))
    kernel = [1] * (len(shape) - 2)
    made = {
        "lora": {"lora_down.weight": torch.zeros(2, *shape[1:]), "lora_up.weight": torch.zeros(m, 2, *kernel)},
        "loha": {f"hada_w{i}_{side}": torch.zeros((m, 2) if side == "a" else (2, d)) for i in (1, 2) for side in "ab"},
        "lokr": {"lokr_w1": torch.zeros(2, 2), "lokr_w2_a": torch.zeros(m // 2, 1), "lokr_w2_b": torch.zeros(1, d // 2)},
        "full": {"diff": torch.zeros(shape)},
    }[kind]
    return {f"{name}.{key}": value for key, value in made.items()} | {f"{name}.alpha": torch.tensor(3.0)}


def matrix(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, size)) / size**0.5


@pytest.mark.parametrize(
    ("kind", "shape", "rank"),
    [("lora", LINEAR, 2), ("lora", CONV, 2), ("full", LINEAR, None), ("loha", LINEAR, 4), ("loha", CONV, 4), ("lokr", LINEAR, 2)],
)
def test_its_change_becomes_dw_m(tmp_path: Path, kind: str, shape: tuple[int, ...], rank: int | None) -> None:
    """A LoHa of rank 2 takes a LoRA of rank 4, a LoKr of a whole 2 x 2 and a rank 1 one of rank 2."""
    file = file_of(tmp_path, tensors_of(kind, shape), shape)
    before = file.modules[0].change().double().numpy()
    m = matrix(before.shape[1])
    tensors, metadata = file.with_inputs_mapped({NAME: m}, "note")
    (tmp_path / "mapped").mkdir()
    save_file(tensors, tmp_path / "mapped" / "b.safetensors", metadata=metadata)
    after = LoraFile.read(tmp_path / "mapped", "StableDiffusionPipeline", {"mid_block.x.weight": shape})
    (module,) = after.modules
    assert module.kind == ("full" if kind == "full" else "lora")
    np.testing.assert_allclose(module.change().double().numpy(), before @ m, rtol=1e-4, atol=1e-6)
    if rank is not None:
        assert tensors[f"{NAME}.lora_down.weight"].shape == (rank, *shape[1:])
        assert tensors[f"{NAME}.alpha"] == (3.0 if kind == "lora" else rank)


def test_a_dora_becomes_a_plain_lora_only_if_it_may(tmp_path: Path) -> None:
    tensors = tensors_of("lora", LINEAR) | {f"{NAME}.dora_scale": torch.ones(12, 1)}
    file = file_of(tmp_path, tensors, LINEAR)
    assert (file.modules[0].kind, file.modules[0].needs_base) == ("dora", True)
    with pytest.raises(ConfigError, match="is of the kind dora: its change depends on the base"):
        file.modules[0].change()
    with pytest.raises(ConfigError, match="is a DoRA: its magnitudes rescale the weight itself"):
        file.with_inputs_mapped({NAME: 0.5}, "")
    made, _ = file.with_inputs_mapped({NAME: 0.5}, "", drop_magnitudes=True)
    assert sorted(made) == sorted(tensors_of("lora", LINEAR))
    torch.testing.assert_close(made[f"{NAME}.lora_down.weight"], 0.5 * file.tensors[f"{NAME}.lora_down.weight"])


def test_the_shift_of_a_bias_goes(tmp_path: Path) -> None:
    file = file_of(tmp_path, tensors_of("full", LINEAR) | {f"{NAME}.diff_b": torch.ones(12)}, LINEAR)
    assert torch.equal(file.modules[0].shift(), file.tensors[f"{NAME}.diff_b"])
    made, _ = file.with_inputs_mapped({NAME: 1.0}, "")
    assert sorted(made) == [f"{NAME}.alpha", f"{NAME}.diff"]


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({f"{NAME}.oft_blocks": torch.zeros(2, 4, 4)}, "is of the kind oft, which acts on the weight itself"),
        ({f"{NAME}.weight": torch.zeros(12), f"{NAME}.on_input": torch.tensor(False)}, "is of the kind ia3, which acts on"),
    ],
)
def test_what_has_no_form(tmp_path: Path, tensors: dict[str, torch.Tensor], problem: str) -> None:
    file = file_of(tmp_path, tensors, LINEAR)
    with pytest.raises(ConfigError, match=problem):
        file.with_inputs_mapped({file.modules[0].name: matrix(8)}, "")


def test_a_shift_beside_a_lora_has_no_alpha(tmp_path: Path) -> None:
    """ComfyUI adds `diff_b` as it is; PEFT multiplies the bias of B by alpha over rank."""
    tensors = tensors_of("lora", LINEAR) | {f"{NAME}.diff_b": torch.ones(12), f"{NAME}.lora_B.bias": torch.ones(12)}
    file = file_of(tmp_path, tensors, LINEAR)
    torch.testing.assert_close(
        file.modules[0].shift(), file.tensors[f"{NAME}.diff_b"] + 1.5 * file.tensors[f"{NAME}.lora_B.bias"]
    )
    assert sorted(file.with_inputs_mapped({NAME: 1.0}, "")[0]) == sorted(tensors_of("lora", LINEAR))


@pytest.mark.parametrize("kind", ["lora", "full", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_become_sixteen_where_they_change(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    """Rounded to 8 bits, A M moves a preserved prompt five times as far as was predicted."""
    shapes = {f"mid_block.x{i}.weight": LINEAR for i in ("", 2)}
    tensors = {key: torch.randn(value.shape).to(dtype) for key, value in tensors_of(kind, LINEAR).items()}
    other = {f"{NAME}2.lora_down.weight": torch.ones(2, 8).to(dtype), f"{NAME}2.lora_up.weight": torch.ones(12, 2).to(dtype)}
    save_file(tensors | other, tmp_path / "a.safetensors")
    file = LoraFile.read(tmp_path / "a.safetensors", "StableDiffusionPipeline", shapes)
    (module, _) = sorted(file.modules, key=lambda each: each.name)
    made, _ = file.with_inputs_mapped({NAME: (m := matrix(8))}, "")
    assert {made[key].dtype for key in other} == {dtype}
    save_file(made, tmp_path / "b.safetensors")
    after = LoraFile.read(tmp_path / "b.safetensors", "StableDiffusionPipeline", shapes)
    (result, _) = sorted(after.modules, key=lambda each: each.name)
    wanted = module.change().double().numpy() @ m
    np.testing.assert_allclose(result.change().double().numpy(), wanted, atol=2e-3 * np.abs(wanted).max())


def test_a_result_that_is_too_large_for_its_dtype(tmp_path: Path) -> None:
    tensors = {f"{NAME}.lora_down.weight": torch.full((2, 8), 6e4).half(), f"{NAME}.lora_up.weight": torch.ones(12, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    file = LoraFile.read(tmp_path / "a.safetensors", "StableDiffusionPipeline", {"mid_block.x.weight": LINEAR})
    with pytest.raises(ConfigError, match=r"the result of .*x is too large for torch\.float16"):
        file.with_inputs_mapped({NAME: 2 * np.eye(8)}, "")


@pytest.mark.parametrize(
    ("down", "problem"),
    [
        (torch.ones(2, 8, dtype=torch.int8), "lora_down.weight is in torch.int8, which no weight is in"),
        (torch.ones(2, 8, dtype=torch.complex64), "is in torch.complex64"),
        (torch.ones(2, 8) > 0, "is in torch.bool"),
        (torch.ones(8), "do not fit each other"),
        (torch.tensor(1.0), "do not fit each other"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path: Path, down: torch.Tensor, problem: str) -> None:
    tensors = {f"{NAME}.lora_down.weight": down, f"{NAME}.lora_up.weight": torch.ones(12, 2), f"{NAME}.alpha": torch.tensor(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=problem):
        LoraFile.read(tmp_path / "a.safetensors", "StableDiffusionPipeline", {"mid_block.x.weight": LINEAR})


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("unet.mid_block.x.hada_w{}_{}", ["unet.mid_block.x.lora_A.weight", "unet.mid_block.x.lora_B.weight"]),
        (
            "base_model.model.mid_block.x.hada_w{}_{}.my_style",
            ["base_model.model.mid_block.x.lora_A.my_style.weight", "base_model.model.mid_block.x.lora_B.my_style.weight"],
        ),
        ("lora_unet_mid_block_x.hada_w{}_{}", [f"{NAME}.alpha", f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"]),
    ],
)
def test_a_loha_without_an_alpha_becomes_a_plain_lora_of_its_own_form(tmp_path: Path, form: str, wanted: list[str]) -> None:
    sizes = {(i, side): (12, 2) if side == "a" else (2, 8) for i in (1, 2) for side in "ab"}
    file = file_of(tmp_path, {form.format(*role): torch.zeros(size) for role, size in sizes.items()}, LINEAR)
    made, _ = file.with_inputs_mapped({file.modules[0].name: (m := matrix(8))}, "")
    assert sorted(made) == wanted
    save_file(made, tmp_path / "b.safetensors")
    (after,) = LoraFile.read(tmp_path / "b.safetensors", "StableDiffusionPipeline", {"mid_block.x.weight": LINEAR}).modules
    np.testing.assert_allclose(after.change().numpy(), file.modules[0].change().numpy() @ m, rtol=1e-4, atol=1e-6)


def test_a_change_of_another_size_than_the_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"changes a weight of \[12, 8\], and the base has \[12, 9\] there"):
        file_of(tmp_path, tensors_of("loha", LINEAR), (12, 9))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("loha", {"hada_w2_a": (13, 2)}),
        ("loha", {"hada_w1_a": (12, 3)}),
        ("lora", {"lora_up.weight": (12, 3)}),
        ("lora", {"dora_scale": (7, 1)}),
        ("lora", {"diff_b": (13,)}),
        ("ia3", {"weight": (7,), "on_input": ()}),
        ("glora", {"a1.weight": (2, 8), "a2.weight": (8, 2), "b1.weight": (2, 8), "b2.weight": (12, 2)}),
        ("lokr", {"lokr_w1": (4, 4), "lokr_w2_a": (3, 3), "lokr_w2_b": (2, 2)}),
    ],
)
def test_tensors_that_do_not_fit_each_other(tmp_path: Path, kind: str, changes: dict[str, tuple[int, ...]]) -> None:
    changed = {f"{NAME}.{ending}": torch.ones(shape) for ending, shape in changes.items()}
    with pytest.raises(ConfigError, match=f"the tensors of {NAME} do not fit each other"):
        file_of(tmp_path, (tensors_of(kind, LINEAR) if kind in ("lora", "loha") else {}) | changed, LINEAR)


def test_an_alpha_of_several_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the alpha of {NAME.removeprefix('lora_unet_')} has 2 values"):
        file_of(tmp_path, tensors_of("lora", LINEAR) | {f"{NAME}.alpha": torch.ones(2)}, LINEAR)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tensor"):
        file_of(tmp_path, {}, LINEAR)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ([1], "is no mapping"),
        ({"unet.lora_alpha": 4}, "has no rank and alpha: KeyError"),
        ({"unet.lora_alpha": "x", "unet.r": 2}, "has no rank and alpha: ValueError"),
        ({"unet.lora_alpha": 4, "unet.r": 0}, "has no rank and alpha: ZeroDivisionError"),
        ({"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": [1]}, "has no rank and alpha: AttributeError"),
    ],
)
def test_a_config_of_peft_without_meaning(tmp_path: Path, config: object, problem: str) -> None:
    tensors = {key: value for key, value in tensors_of("lora", LINEAR, "unet.mid_block.x").items() if "alpha" not in key}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(ConfigError, match=problem):
        LoraFile.read(tmp_path / "a.safetensors", "StableDiffusionPipeline", {"mid_block.x.weight": LINEAR})
