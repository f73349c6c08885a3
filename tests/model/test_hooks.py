"""Hooks fire once, go away, and show which projections share a tensor."""

import pytest
import torch

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.hooks import ProjectionHooks, group_shared
from nullbooth_cli.model.projections import find_projections
from tests.support.attention import Denoiser

ALL = ("q", "k", "v", "out")


def watched(model: Denoiser, side: str = "input", forwards: int = 2) -> list:
    projections = find_projections(model, ALL, "all")
    seen: list = [[] for _ in range(forwards)]
    text = torch.randn(2, 3, 6)
    with ProjectionHooks(model, projections, side, lambda p, f, t: seen[f].append((p, t))):
        for _ in range(forwards):
            model(torch.randn(2, 5, 4), text)
    return seen


@pytest.mark.parametrize("times", [0, 2])
def test_a_hook_that_does_not_fire_once_is_an_error(times: int) -> None:
    model = Denoiser()
    model.blocks[1].attn2.calls["to_k"] = times
    with pytest.raises(ModelError, match=rf"blocks\.1\.attn2 k {times} times"):
        watched(model)


def test_hooks_go_even_after_an_error() -> None:
    model = Denoiser()
    model.blocks[1].attn2.calls["to_k"] = 0
    with pytest.raises(ModelError, match="exactly once"):
        watched(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_sharing_is_found_by_looking() -> None:
    groups = {tuple(str(p) for p in g.projections): g.timestep_free for g in group_shared(watched(Denoiser()))}
    text = tuple(f"blocks.{i}.attn2 {f}" for i in (0, 1) for f in ("k", "v"))
    assert groups[text] is True
    assert all(len(members) == 1 and not free for members, free in groups.items() if members != text)


def test_outputs_are_shared_by_nobody() -> None:
    groups = group_shared(watched(Denoiser(), side="output"))
    assert all(len(group.projections) == 1 for group in groups)
    assert {str(g.projections[0]) for g in groups if g.timestep_free} == {f"blocks.{i}.attn2 {f}" for i in (0, 1) for f in "kv"}


def test_equal_values_in_different_memory_are_not_shared() -> None:
    class Copying(Denoiser):
        def forward(self, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                hidden = hidden + block.attn2(hidden, text.clone())
            return hidden

    groups = {tuple(str(p) for p in g.projections) for g in group_shared(watched(Copying()))}
    assert {("blocks.0.attn2 k", "blocks.0.attn2 v"), ("blocks.1.attn2 k", "blocks.1.attn2 v")} <= groups
