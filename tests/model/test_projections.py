import pytest
import torch
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from torch import nn

from nullbooth_cli.collect.find_sites import split_branches
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.hooks import ProjectionHooks, group_shared
from nullbooth_cli.model.projections import find_projections


class Attention(nn.Module):
    """Two inputs, four projections: what matters of a cross-attention block."""

    def __init__(self, is_cross_attention: bool = True) -> None:
        super().__init__()
        self.is_cross_attention = is_cross_attention
        self.to_q, self.to_k, self.to_v = nn.Linear(4, 4), nn.Linear(6, 4), nn.Linear(6, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.0)])
        self.calls = {"to_q": 1, "to_k": 1, "to_v": 1}

    def forward(self, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        inputs = {"to_q": hidden, "to_k": text, "to_v": text}
        out = torch.zeros(*hidden.shape[:2], 4)
        for name, times in self.calls.items():
            for _ in range(times):
                out = out + getattr(self, name)(inputs[name]).mean(1, keepdim=True)
        return self.to_out[0](out)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(False), Attention()


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = hidden + block.attn2(hidden, text)
        return hidden


ALL = ("q", "k", "v", "out")


def test_cross_attention_only_by_name_and_parent() -> None:
    model = Denoiser()
    found = find_projections(model, ALL, "all")
    assert [p.weight for p in found[:4]] == [f"blocks.0.attn2.{n}.weight" for n in ("to_q", "to_k", "to_v", "to_out.0")]
    assert len(found) == 8
    model.blocks[1].attn2.is_cross_attention = False  # a dual-attention block names a self-attention attn2
    assert {p.layer for p in find_projections(model, ALL, "all")} == {"blocks.0.attn2"}


def test_a_wrapper_counts_as_the_projection_it_wraps() -> None:
    class Wrapper(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base_layer = base

    model = Denoiser()
    model.blocks[0].attn2.to_k = Wrapper(model.blocks[0].attn2.to_k)
    assert "blocks.0.attn2.to_k.weight" in {p.weight for p in find_projections(model, ALL, "all")}


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (["blocks.1.attn2"], {"blocks.1.attn2"}),
        (["blocks.?.attn2"], {"blocks.0.attn2", "blocks.1.attn2"}),
        ([1], {"blocks.1.attn2"}),
        ([0, "blocks.1*"], {"blocks.0.attn2", "blocks.1.attn2"}),
    ],
)
def test_layers_by_name_pattern_and_index(layers: list, chosen: set) -> None:
    assert {p.layer for p in find_projections(Denoiser(), ("q",), layers)} == chosen


@pytest.mark.parametrize("layers", [["nothing*"], [2], [-1]])
def test_a_pattern_that_matches_nothing_lists_the_layers(layers: list) -> None:
    with pytest.raises(ConfigError, match="matches none of the 2 layers") as caught:
        find_projections(Denoiser(), ALL, layers)
    assert "blocks.0.attn2" in caught.value.hint


def test_nothing_to_find() -> None:
    with pytest.raises(ConfigError, match="no feature is switched on"):
        find_projections(Denoiser(), (), "all")
    with pytest.raises(ConfigError, match="empty list"):
        find_projections(Denoiser(), ALL, [])
    with pytest.raises(ModelError, match="Linear has no layer that attends to text"):
        find_projections(nn.Linear(2, 2), ALL, "all")


def test_fused_projections_are_refused() -> None:
    model = Denoiser()
    model.blocks[0].attn2.fused_projections = True
    model.blocks[0].attn2.processor = FusedAttnProcessor2_0()
    with pytest.raises(ModelError, match="are fused") as caught:
        find_projections(model, ALL, "all")
    assert "unfuse_qkv_projections" in caught.value.hint


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


def test_branches_of_guidance() -> None:
    rows = torch.arange(4.0)[:, None, None].expand(4, 2, 1)
    assert split_branches(rows, 4, "both").shape == (4, 2, 1)
    both = split_branches(rows, 2, "both")
    assert both[:, :, 0].tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert split_branches(rows, 2, "cond")[:, :, 0].tolist() == [[2, 2], [3, 3]]
    with pytest.raises(ModelError, match="4 rows for 3 prompts"):
        split_branches(rows, 3, "both")
