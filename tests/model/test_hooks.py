"""Hooks fire once, go away, and show which projections share a tensor."""

import pytest
import torch
from torch import nn

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.hooks import ProjectionHooks, group_shared, memory_of, tokens_of
from nullbooth_cli.model.projections import Projection, find_projections
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


class TestTokens:
    linear = Projection("block", "ff_in", "block.ff.net.0.proj.weight", nn.Identity())
    pixels = Projection("block", "proj_in", "block.proj_in.weight", nn.Identity(), is_convolution=True)

    def test_the_pixels_of_an_image_are_tokens_in_reading_order(self) -> None:
        image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
        found = tokens_of(self.pixels, image)
        assert found.shape == (2, 20, 3)
        for row in range(4):
            for column in range(5):
                assert torch.equal(found[:, 5 * row + column], image[:, :, row, column])

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_they_are_read_in_the_model_s_memory(self, layout: torch.memory_format) -> None:
        image = torch.randn(2, 3, 4, 5).to(memory_format=layout)
        first, second = tokens_of(self.pixels, image), tokens_of(self.pixels, image)
        assert memory_of(first) == memory_of(second)
        assert first.data_ptr() == image.data_ptr()

    def test_one_vector_a_row_is_one_token_and_places_in_two_directions_are_tokens(self) -> None:
        assert tokens_of(self.linear, torch.zeros(2, 6)).shape == (2, 1, 6)
        assert tokens_of(self.linear, torch.zeros(2, 3, 4, 6)).shape == (2, 12, 6)
        assert tokens_of(self.linear, torch.zeros(2, 3, 6)).shape == (2, 3, 6)

    @pytest.mark.parametrize(("projection", "shape"), [(linear, (6,)), (pixels, (2, 3, 4, 5, 6))])
    def test_other_shapes_are_refused(self, projection: Projection, shape: tuple[int, ...]) -> None:
        with pytest.raises(ModelError, match="which are no tokens of rows"):
            tokens_of(projection, torch.zeros(shape))
