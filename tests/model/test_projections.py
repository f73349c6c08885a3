"""Projections by name and parent, and the choice of layers."""

import pytest
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.projections import find_projections
from tests.support.attention import Denoiser

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
