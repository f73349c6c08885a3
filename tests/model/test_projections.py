"""Projections by name and parent, and the choice of layers."""

from typing import Any

import pytest
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import Projection, find_projections
from tests.support import tiny
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
    with pytest.raises(ModelError, match="Linear has no layer that attends to text") as caught:
        find_projections(nn.Linear(2, 2), ALL, "all")
    assert caught.value.hint == "choose a model with attention to text"


def test_a_model_without_attention_to_text_says_why_and_takes_patterns() -> None:
    model = Denoiser()
    for block in model.blocks:
        block.attn2.is_cross_attention = False
    with pytest.raises(ModelError, match="Denoiser has no layer that attends to text") as caught:
        find_projections(model, ALL, "all")
    assert "name layers or patterns in collect.cross_attention_layers; there are" in caught.value.hint
    assert "blocks.1.attn2: Attention called attn2 is given no text" in caught.value.hint
    assert {p.layer for p in find_projections(model, ALL, ["*.attn2"])} == {"blocks.0.attn2", "blocks.1.attn2"}
    with pytest.raises(ConfigError, match=r"'nothing\*' matches none of the 4 layers") as other:
        find_projections(model, ALL, ["nothing*"])
    assert "blocks.0.attn1" in other.value.hint


def test_fused_projections_are_refused() -> None:
    model = Denoiser()
    model.blocks[0].attn2.fused_projections = True
    model.blocks[0].attn2.processor = FusedAttnProcessor2_0()
    with pytest.raises(ModelError, match="are fused") as caught:
        find_projections(model, ALL, "all")
    assert "unfuse_qkv_projections" in caught.value.hint


def linear(model: nn.Module, *chosen: str, features: tuple[str, ...] = ()) -> list[Projection]:
    return list(find_projections(model, features, "all", chosen))


def counts(name: str, *chosen: str) -> dict[str, int]:
    """The number of chosen weights of each feature, in a tiny pipeline."""
    found: dict[str, int] = {}
    for projection in linear(denoiser_of((tiny.PIPELINES | tiny.VARIANTS)[name]()), *chosen):
        found[projection.feature] = found.get(projection.feature, 0) + 1
    return found


ATTENTION = dict.fromkeys(ALL, 4)


class TestLinearLayers:
    """SD1 has 4 transformers of one block here, SDXL 4 of two, SD3 2 joint blocks, Flux one of each kind, PixArt 2 blocks."""

    @pytest.mark.parametrize(
        ("name", "chosen", "expected"),
        [
            ("sd1", "attn1", ATTENTION),
            ("sd1", "ff_in", {"ff_in": 4}),
            ("sd1", "proj_in", {"proj_in": 4}),
            ("sd2", "proj_out", {"proj_out": 4}),
            ("sdxl", "ff_out", {"ff_out": 8}),
            ("sd3", "ff_in", {"ff_in": 2, "add_ff_in": 1}),
            ("sd3", "ff_out", {"ff_out": 2, "add_ff_out": 1}),
            ("sd3", "modulation", {"modulation": 4}),
            ("sd35", "attn1", dict.fromkeys(ALL, 1)),
            ("flux", "ff_in", {"ff_in": 2, "add_ff_in": 1}),
            ("flux", "proj_out", {"proj_out": 1}),
            ("flux", "modulation", {"modulation": 3}),
            ("pixart", "attn1", dict.fromkeys(ALL, 2)),
        ],
    )
    def test_what_each_word_means(self, name: str, chosen: str, expected: dict[str, int]) -> None:
        assert counts(name, chosen) == expected

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            # Of each block 8 projections, 2 of feed-forward, and 2 around a transformer: 12 for one of one block, as LierLa has.
            ("sd1", 4 * 12),
            ("sd2", 4 * 12),
            ("sdxl", 4 * (2 * 10 + 2)),
            ("pixart", 2 * 10),
            ("sd3", (8 + 4 + 2) + (7 + 2 + 2)),
            ("flux", (8 + 4 + 2) + (3 + 3)),
        ],
    )
    def test_all_is_every_linear_map_of_the_blocks_and_no_other(self, name: str, expected: int) -> None:
        denoiser = denoiser_of(tiny.PIPELINES[name]())
        blocks = [part for part, module in denoiser.named_modules() if part.rpartition(".")[0].endswith("transformer_blocks")]
        wanted = {
            f"{part}.weight"
            for part, module in denoiser.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            and (any(part.startswith(f"{block}.") for block in blocks) or part.rpartition(".")[2] in ("proj_in", "proj_out"))
            and "." in part
        }
        found = linear(denoiser, "all")
        assert {projection.weight for projection in found} == wanted
        assert len(found) == expected == len(wanted)

    def test_they_come_beside_the_features_whatever_layers_those_have(self) -> None:
        unet = tiny.unet()
        found = find_projections(unet, ("k",), ["mid"], ["ff_in", "up_blocks.*.proj_in", "*attn2.to_k"])
        assert [p.weight for p in found if p.feature == "k"] == [n for n, _ in unet.named_parameters() if ".attn2.to_k." in n]
        assert sum(p.feature == "ff_in" for p in found) == 4
        assert [p.layer for p in found if p.feature == "proj_in"] == ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
        order = [name for name, _ in unet.named_parameters()]
        assert sorted(found, key=lambda p: order.index(p.weight)) == list(found)

    @pytest.mark.parametrize(
        ("pattern", "reason"),
        [
            ("mid_block.resnets.0.conv1", "mid_block.resnets.0.conv1, a 3x3 convolution: each output depends on 3x3 pixels"),
            ("*downsamplers*", "a 3x3 convolution"),
            ("grouped", "grouped, a convolution of 2 groups"),
            ("strided", r"strided, a 1x1 convolution of stride \(2, 2\)"),
            ("padded", "padded, a 1x1 convolution of stride"),
        ],
    )
    def test_a_convolution_of_more_than_single_pixels_is_refused_by_name(self, pattern: str, reason: str) -> None:
        unet = tiny.unet()
        unet.grouped = nn.Conv2d(4, 4, 1, groups=2)
        unet.strided = nn.Conv2d(4, 4, 1, stride=2)
        unet.padded = nn.Conv2d(4, 4, 1, padding=1)
        with pytest.raises(ConfigError, match=reason) as caught:
            linear(unet, pattern)
        assert "narrower pattern" in caught.value.hint

    def test_linear_maps_outside_of_the_blocks_by_pattern(self) -> None:
        found = linear(tiny.unet(), "*time_emb_proj", "*conv_shortcut", "time_embedding.*")
        assert {p.feature for p in found} == {"linear"}
        assert {p.is_convolution for p in found if p.layer.endswith("conv_shortcut")} == {True}
        assert "time_embedding.linear_1" in {p.layer for p in found}

    @pytest.mark.parametrize("chosen", ["modulation", "nothing*"])
    def test_what_matches_nothing_lists_the_words_and_the_modules(self, chosen: str) -> None:
        with pytest.raises(ConfigError, match=f"linear_layers: '{chosen[:-1]}.*matches none of the") as caught:
            linear(tiny.unet(), chosen)
        assert "use attn1, ff_in, ff_out, proj_in, proj_out, modulation, all or a glob" in caught.value.hint
        assert "time_embedding.linear_1" in caught.value.hint

    def test_adapters_around_them_change_nothing(self) -> None:
        from peft import LoraConfig

        unet = tiny.unet()
        plain = linear(unet, "all", "*time_emb_proj")
        unet.add_adapter(LoraConfig(r=2, target_modules=[p.weight.removesuffix(".weight") for p in plain]))
        assert [(p.weight, p.is_convolution) for p in linear(unet, "all", "*time_emb_proj")] == [
            (p.weight, p.is_convolution) for p in plain
        ]
        with pytest.raises(ConfigError, match="matches none"):
            linear(unet, "*lora_A*")

    def test_fused_projections_are_refused_here_too(self) -> None:
        unet = tiny.unet()
        unet.fuse_qkv_projections()
        with pytest.raises(ModelError, match=r"attn1 are fused"):
            linear(unet, "attn1")
        assert linear(unet, "ff_in")

    @pytest.mark.parametrize(
        ("name", "text", "both"),
        [
            ("sd1", set(), set()),
            ("pixart", set(), set()),
            ("sd3", {"add_ff_in", "add_ff_out"}, set()),
            ("sd35", {"add_ff_in", "add_ff_out"}, set()),
            ("flux", {"add_ff_in", "add_ff_out"}, {"single_transformer_blocks.0 ff_in", "single_transformer_blocks.0 proj_out"}),
        ],
    )
    def test_which_tokens_each_receives(self, name: str, text: set[str], both: set[str]) -> None:
        denoiser = denoiser_of((tiny.PIPELINES | tiny.VARIANTS)[name]())
        chosen = [word for word in ("ff_in", "ff_out", "proj_in", "proj_out", "modulation") if _has(denoiser, word)]
        found = linear(denoiser, *chosen)
        assert {p.feature for p in found if p.from_text} == text
        assert {str(p) for p in found if p.from_both} == both


def _has(denoiser: Any, word: str) -> bool:
    try:
        return bool(linear(denoiser, word))
    except ConfigError:
        return False
