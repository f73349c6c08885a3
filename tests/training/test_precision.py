"""Frozen weights in half precision, and what trains in float32."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training import dreambooth, precision, setup
from nullbooth_cli.training.placement import helpers_of
from tests.support import tiny
from tests.support.tiny_dreambooth import CLASS_PROMPTS, DISTILLED, recipe, run, weights

HALF = {"dtype": "bfloat16", "mixed_precision": "bf16"}
FAMILIES = ("sd2", "sdxl", "sd3", "flux", "pixart")


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_trains_is_float32(family: str, method: str, tmp_path: Path) -> None:
    model = tiny.saved(family, tmp_path)
    size = 256 if family == "pixart" else 16
    settings = {"model": str(model), "method": method, "max_train_steps": 1, "resolution": size, "instance_prompt": "a dot"}
    ready = setup.set_up(recipe(tmp_path / "half", **settings, **HALF), "cpu")
    kept = getattr(ready.denoiser, "_keep_in_fp32_modules", None) or []
    for name, parameter in ready.denoiser.named_parameters():
        is_float = parameter.requires_grad or any(part in kept for part in name.split("."))
        assert parameter.dtype == (torch.float32 if is_float else torch.bfloat16), name
    assert (helpers_of(ready.pipe) == {}) == (method == "lora")  # a pipeline is saved with them
    for name, part in helpers_of(ready.pipe).items():
        assert {each.dtype for each in part.parameters()} == {torch.float32 if name == "vae" else torch.bfloat16}, name
    before = {name: tensor.clone() for name, tensor in ready.denoiser.named_parameters() if tensor.requires_grad}
    assert np.isfinite(dreambooth._prepared(ready).step(0))
    after = dict(ready.denoiser.named_parameters())
    assert all(after[name].dtype == torch.float32 for name in before)
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_constraint_holds_as_in_float32(method: str, tmp_path: Path, finished: tuple[Config, Store]) -> None:
    """The store was collected in float32. In bfloat16, P or what trains would move the outputs by 1e-3 and more."""
    drift = {}
    for dtype, settings in (("float32", {}), ("bfloat16", HALF)):
        AcceleratorState._reset_state(reset_partial_state=True)
        document = run(recipe(tmp_path / dtype, method=method, store=str(finished[1].path), **settings))
        drift[dtype] = max(document["drift"].values())
    assert drift["bfloat16"] == pytest.approx(drift["float32"], rel=0.3)
    if method == "full":
        saved = weights(tmp_path / "bfloat16/pipeline")
        trained = {f"{name}" for name in saved if re.search(r"attn2\.to_[kv]\.weight", name)}
        assert {name for name, tensor in saved.items() if tensor.dtype == torch.float32} == trained


@pytest.mark.parametrize(
    ("changes", "collected_in", "parts"),
    [
        ({}, "float16", ()),
        ({**HALF, "method": "lora"}, None, ("vae",)),
        ({**HALF, "method": "lora"}, "bfloat16", ("vae",)),
        ({**HALF, "method": "lora"}, "float32", ("vae", "unet", "transformer")),
        ({**HALF, "method": "full"}, None, ("vae", "unet", "transformer")),
    ],
)
def test_what_is_loaded_in_float32(
    changes: dict[str, Any], collected_in: str | None, parts: tuple[str, ...], tmp_path: Path
) -> None:
    assert precision.loaded_in_float32(recipe(tmp_path, **changes), collected_in) == parts


def test_a_run_resumes_only_in_its_dtype(tmp_path: Path) -> None:
    run(recipe(tmp_path, mixed_precision="bf16"), stop_after=2)
    with pytest.raises(ConfigError, match="dtype: float32 -> bfloat16"):
        setup.set_up(recipe(tmp_path, **HALF), "cpu")


def test_the_class_is_drawn_and_distilled_in_half_precision(tmp_path: Path) -> None:
    settings = {**DISTILLED, "class_prompts": CLASS_PROMPTS, "class_images": 2, "max_train_steps": 1}
    ready = setup.set_up(recipe(tmp_path, **settings, **HALF), "cpu")
    assert ready.prior is None
    assert ready.distillation is not None
    assert ready.distillation.pictures is not None
    assert {latents.dtype for latents in ready.distillation.pictures.latents} == {torch.float32}
    assert np.isfinite(dreambooth._prepared(ready).step(0))
