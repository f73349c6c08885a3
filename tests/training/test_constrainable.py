"""What was done to a model that cannot be constrained is said, with how to undo it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, ModelError, NullboothError
from nullbooth_cli.training.constrainable import FORWARD, FUSED
from tests.support.tiny_training import LAYER, WEIGHTS, KohyaLora, adamw, add_lora, fresh_unet, train, trainable

pytestmark = pytest.mark.usefixtures("one_thread")


def fused(unet: Any) -> Any:
    unet.fuse_qkv_projections()
    return unet


def compiled_in_place(unet: Any) -> Any:
    unet.compile(backend="eager")
    return unet


def with_kohya_lora(unet: Any) -> Any:
    KohyaLora(unet.get_submodule(f"{LAYER}.to_k"))
    return unet


def quantized(unet: Any) -> Any:
    """As bitsandbytes does it: the weight becomes packed integers."""
    layer = unet.get_submodule(f"{LAYER}.to_k")
    layer.weight = nn.Parameter(torch.zeros(80 * 96 // 2, 1, dtype=torch.uint8), requires_grad=False)
    return unet


CASES: dict[str, tuple[Callable[[Any], Any], type[NullboothError], str, str]] = {
    "fused": (fused, ModelError, f"2 protected weights, such as {WEIGHTS[1]}: {FUSED}", r"unfuse_qkv_projections\(\) first"),
    "compiled": (
        lambda unet: torch.compile(unet, backend="eager"),
        ModelError,
        "this OptimizedModule is around the denoiser: the names of its weights begin with _orig_mod.",
        r"before torch\.compile.*it is model\._orig_mod$",
    ),
    "compiled in place": (compiled_in_place, ModelError, "this UNet2DConditionModel is compiled", r"before compile\(\)"),
    "in parallel": (
        nn.DataParallel,
        ModelError,
        "this DataParallel is around the denoiser",
        r"prepare\(\).*it is model\.module$",
    ),
    "a LoRA of another tool": (with_kohya_lora, ModelError, f"1 protected weight, such as {WEIGHTS[1]}: {FORWARD}", "take off"),
    "quantized": (quantized, ModelError, r"to_k\.weight is quantized: a Linear with weights of torch\.uint8", "without quant"),
    "a pipeline": (lambda unet: object(), ConfigError, "object is not a denoiser", r"pipe\.unet"),
}


@pytest.mark.parametrize(("change", "error", "message", "hint"), CASES.values(), ids=CASES)
def test_is_refused(
    store: nb.OpenStore, change: Callable[[Any], Any], error: type[NullboothError], message: str, hint: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        nb.constrain(change(fresh_unet()), store)
    assert re.search(hint, caught.value.hint)


def test_a_fused_model_that_was_unfused(store: nb.OpenStore) -> None:
    unet = fused(fresh_unet())
    unet.unfuse_qkv_projections()
    constraint = nb.constrain(unet, store)
    train(unet, adamw(trainable(unet)), range(1))
    assert all(parameter.grad is not None for parameter in trainable(unet))
    assert max(constraint.drift().values()) <= 1e-6


def test_compiled_after_constrain(store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
    unet = fresh_unet()
    constraint = nb.constrain(unet, store)
    train(torch.compile(unet, backend="eager"), adamw(trainable(unet)), range(2))
    assert all(not torch.equal(unet.state_dict()[weight], before[weight]) for weight in WEIGHTS)
    assert max(constraint.drift().values()) <= 1e-6


class TestStartsOfLora:
    """PEFT's init_lora_weights: most start at zero, some change the model below."""

    @pytest.mark.parametrize("start", [True, "gaussian", "orthogonal", "eva"])
    def test_at_zero(self, store: nb.OpenStore, start: Any) -> None:
        unet = fresh_unet()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("warnings.warn", lambda *_, **__: None)  # eva asks for its data
            add_lora(unet, init_lora_weights=start)
        constraint = nb.constrain(unet, store)
        assert max(constraint.drift().values()) <= 1e-6
        train(unet, adamw(trainable(unet)), range(2))
        assert max(constraint.drift().values()) <= 1e-6

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_at_zero_up_to_the_rounding_of_their_dtype(self, store: nb.OpenStore, dtype: torch.dtype) -> None:
        unet = fresh_unet()
        add_lora(unet, init_lora_weights="orthogonal")
        for name, module in unet.named_modules():
            if "lora_" in name and isinstance(module, nn.Linear):
                module.to(dtype)
        assert 0 < max(nb.constrain(unet, store).drift().values()) < 1e-2

    def test_with_other_values(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        add_lora(unet, init_lora_weights=False)
        with pytest.raises(ModelError, match="was trained without this constraint, or did not start at zero"):
            nb.constrain(unet, store)

    def test_an_orthogonal_start_that_was_trained_since(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        add_lora(unet, init_lora_weights="orthogonal")
        train(unet, adamw(trainable(unet), lr=1e-5), range(1))
        with pytest.raises(ModelError, match="was trained without this constraint"):
            nb.constrain(unet, store)

    @pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
    def test_that_change_the_model_below(self, store: nb.OpenStore, start: str) -> None:
        unet = fresh_unet()
        add_lora(unet, init_lora_weights=start)
        with pytest.raises(ConfigError, match=rf"'default' \(init_lora_weights='{start}'\) changes the weights of") as caught:
            nb.constrain(unet, store)
        assert "add the adapter with init_lora_weights True" in caught.value.hint
