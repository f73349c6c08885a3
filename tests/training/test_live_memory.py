"""Bytes counted on the meta device beside those of real tensors."""

import gc
from typing import Any

import pytest
import torch
from torch import nn

from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.training.live_memory import AsOnAccelerator, Live, of_call, of_step
from tests.support import tiny


def test_live_bytes_are_those_of_the_tensors_that_exist() -> None:
    with Live() as live:
        first = torch.ones(100)
        second = first[:50].view(5, 10)  # a view
        first += 1
        assert (live.now, live.peak) == (400, 400)
        third = first * 2
        assert live.now == 800
        del first
        assert live.now == 800, "the view holds it"
        del second
        assert (live.now, live.peak) == (400, 800)
        del third
    assert (live.now, live.peak) == (0, 800)


def saved_by_hooks(model: nn.Module, forward: Any) -> int:
    """Bytes of all that a forward saves for the backward, but for the parameters; measured on real tensors."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward().float().square().mean()
    total = sum(storage.nbytes() for storage in saved.values())
    del loss
    gc.collect()
    return total


def training(name: str, device: str, half: torch.dtype | None = None) -> tuple[Any, Any]:
    """A tiny denoiser whose attention trains, and a forward of four pictures with given texts."""
    pipe = tiny.PIPELINES[name]()
    denoiser = denoiser_of(pipe).to(device).requires_grad_(False).train()
    for weight, parameter in denoiser.named_parameters():
        parameter.requires_grad_("attn" in weight and weight.endswith(("to_k.weight", "to_v.weight")))
    count, tokens = 4, 24
    given: dict[str, Any] = {"timestep": torch.ones(count, device=device), "return_dict": False}
    if name == "flux":
        given |= {
            "hidden_states": torch.ones(count, 64, 16, device=device),
            "encoder_hidden_states": torch.ones(count, tokens, tiny.TEXT, device=device),
            "pooled_projections": torch.ones(count, tiny.TEXT, device=device),
            "guidance": torch.ones(count, device=device),
            "txt_ids": torch.zeros(tokens, 3, device=device),
            "img_ids": torch.zeros(64, 3, device=device),
        }
    else:
        given |= {
            "sample": torch.ones(count, 4, 32, 32, device=device),
            "encoder_hidden_states": torch.ones(count, tokens, tiny.TEXT, device=device),
        }

    def forward() -> torch.Tensor:
        predicted: torch.Tensor = denoiser(**given)[0]
        return predicted

    return denoiser, forward


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_what_is_kept_is_what_a_real_forward_saves(name: str) -> None:
    """Within 5 %: hooks count inputs that are saved, and not what outlives the forward for another reason."""
    real, forward = training(name, "cpu")
    expected = saved_by_hooks(real, forward)
    counted = of_step(*training(name, "meta"), None)
    assert counted.kept == pytest.approx(expected, rel=0.05)
    assert counted.peak > counted.kept


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_the_peak_is_that_of_real_tensors(name: str) -> None:
    """With gradient checkpointing and without: the same operations allocate the same bytes, attention apart."""
    for checkpointing in (False, True):
        real, meta = (of_step(*training(name, device), None, checkpointing=checkpointing) for device in ("cpu", "meta"))
        assert meta.kept == pytest.approx(real.kept, rel=0.02)
        assert meta.peak == pytest.approx(real.peak, rel=0.02)


def test_checkpointing_keeps_less_and_batches_keep_more() -> None:
    plain, saving = (of_step(*training("sd1", "meta"), None, checkpointing=wanted) for wanted in (False, True))
    assert saving.kept < 0.6 * plain.kept
    assert saving.peak < plain.peak


def test_dtypes_of_autocast() -> None:
    """As torch documents them for CUDA: products in half precision, norms in float32."""
    x, linear, norm = torch.ones(2, 8, device="meta"), nn.Linear(8, 8, device="meta"), nn.LayerNorm(8, device="meta")
    convolution, group = nn.Conv2d(2, 2, 1, device="meta"), nn.GroupNorm(1, 2, device="meta")
    with AsOnAccelerator(torch.bfloat16):
        assert linear(x).dtype == (x @ x.T).dtype == convolution(torch.ones(1, 2, 4, 4, device="meta")).dtype == torch.bfloat16
        assert norm(linear(x)).dtype == torch.float32
        assert group(torch.ones(1, 2, 4, dtype=torch.bfloat16, device="meta")).dtype == torch.float32
        query = torch.ones(1, 1, 2, 8, device="meta")
        assert nn.functional.scaled_dot_product_attention(query, query, value=query).dtype == torch.bfloat16
    with AsOnAccelerator(None):
        assert linear(x).dtype == torch.float32


def test_a_call_keeps_nothing_for_a_backward() -> None:
    denoiser, forward = training("sd1", "meta")
    assert of_call(forward) < 0.6 * of_step(denoiser, forward, None).kept
