"""Hooks fire once, go away, and show which projections share a tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.hooks import Forward, NotOnce, ProjectionHooks, memory_of, tokens_of
from nullbooth_cli.model.projections import Projection, find_projections
from tests.support.attention import Denoiser

ALL = ("q", "k", "v", "out")


def watched(model: Denoiser, side: str = "input", forwards: int = 2) -> list:
    projections = find_projections(model, ALL, "all")
    seen: list = [[] for _ in range(forwards)]
    text = torch.randn(2, 3, 6)
    with ProjectionHooks({"": model}, projections, side, lambda p, f, t: seen[f.step].append((p, t))) as hooks:
        for _ in range(forwards):
            model(torch.randn(2, 5, 4), text)
            hooks.end_step()
    return seen


@pytest.mark.parametrize("times", [0, 2])
def test_a_hook_that_does_not_fire_once_is_an_error(times: int) -> None:
    model = Denoiser()
    model.blocks[1].attn2.calls["to_k"] = times
    with pytest.raises(ModelError, match=rf"did not run exactly once in a forward: blocks\.1\.attn2 k {times} times") as caught:
        watched(model)
    assert isinstance(caught.value, NotOnce)
    assert {str(each) for each in caught.value.projections} == {"blocks.1.attn2 k"}
    assert ("what runs twice cannot be recorded" in caught.value.hint) == (times == 2)


def test_hooks_go_even_after_an_error() -> None:
    model = Denoiser()
    model.blocks[1].attn2.calls["to_k"] = 0
    with pytest.raises(ModelError, match="exactly once"):
        watched(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_layers_that_run_outside_of_the_denoiser_are_not_heard() -> None:
    """The control network of Z-Image runs refiners of the transformer before it."""
    model, seen = Denoiser(), list[torch.Tensor]()
    projections = find_projections(model, ("k",), "all")[:1]
    text = torch.randn(2, 3, 6)
    with ProjectionHooks({"": model}, projections, "input", lambda _, __, tensor: seen.append(tensor)) as hooks:
        for _ in range(2):
            projections[0].module(torch.randn(2, 3, 6))
            model(torch.randn(2, 5, 4), text)
            hooks.end_step()
    assert [tensor is text for tensor in seen] == [True, True]


def test_steps_are_counted_by_the_scheduler_and_turns_within_them() -> None:
    model, seen, given = Denoiser(), list[Forward](), list[list[str]]()
    projections = find_projections(model, ("q",), "all")[:1]

    def begin(_: Forward, arguments: Mapping[str, Any]) -> None:
        given.append(sorted(arguments))

    with ProjectionHooks({"": model}, projections, "input", lambda _, forward, __: seen.append(forward), begin=begin) as hooks:
        for turns in (2, 1):
            for _ in range(turns):
                model(torch.randn(2, 5, 4), text=torch.randn(2, 3, 6))
            hooks.end_step()
    assert seen == [Forward("", 0, 0), Forward("", 0, 1), Forward("", 1, 0)]
    assert given == [["hidden", "text"]] * 3


def test_nothing_is_computed_after_the_last_projection_of_the_last_forward() -> None:
    one, other = Denoiser(), Denoiser()
    projections = find_projections({"": one, "second.": other}, ("q",), ["*blocks.0.attn2"])
    assert [projection.weight for projection in projections] == [
        "blocks.0.attn2.to_q.weight",
        "second.blocks.0.attn2.to_q.weight",
    ]
    seen, reached = list[Forward](), list[str]()
    other.blocks[1].register_forward_pre_hook(lambda *_: reached.append("the second block"))
    last = Forward("second.", 0, 0)
    with ProjectionHooks(
        {"": one, "second.": other}, projections, "input", lambda _, forward, __: seen.append(forward), last=last
    ) as hooks:
        one(torch.randn(2, 5, 4), torch.randn(2, 3, 6))
        other(torch.randn(2, 5, 4), torch.randn(2, 3, 6))
        pytest.fail("the second forward should end at its last projection")
    assert hooks.ended
    assert seen == [Forward("", 0, 0), last]
    assert reached == []


def test_layers_and_blocks_are_announced_with_their_arguments_and_defaults() -> None:
    """Positional ones by the signature, and those that were left out."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_k = nn.Linear(4, 4)

        def forward(self, hidden_states: Any, attention_mask: Any = None, scale: float = 1.0) -> Any:
            return self.to_k(hidden_states)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Attention(), Attention()])

        def forward(self, hidden_states: Any) -> Any:
            return self.blocks[1](self.blocks[0](hidden_states, "a mask"), scale=2.0)

    model, entered = Model(), list[tuple[str, Mapping[str, Any]]]()
    projections = tuple(
        Projection(f"second.blocks.{i}", "k", f"second.blocks.{i}.to_k.weight", model.blocks[i].to_k, denoiser="second.")
        for i in range(2)
    )
    with ProjectionHooks(
        {"second.": model}, projections, "input", lambda *_: None, enter=lambda path, given: entered.append((path, given))
    ):
        model(torch.zeros(1, 2, 4))
    assert [(path, given["attention_mask"], given["scale"]) for path, given in entered] == [
        ("second.blocks.0", "a mask", 1.0),
        ("second.blocks.1", None, 2.0),
    ]
    assert all(isinstance(given["hidden_states"], torch.Tensor) for _, given in entered)


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

    def test_a_sequence_that_comes_before_its_rows_is_turned(self) -> None:
        tensor = torch.arange(24.0).reshape(4, 2, 3)
        found = tokens_of(replace(self.linear, tokens_first=True), tensor)
        assert torch.equal(found[1, 2], tensor[2, 1])

    @pytest.mark.parametrize(("projection", "shape"), [(linear, (6,)), (pixels, (2, 3, 4, 5, 6))])
    def test_other_shapes_are_refused(self, projection: Projection, shape: tuple[int, ...]) -> None:
        with pytest.raises(ModelError, match="not that of tokens"):
            tokens_of(projection, torch.zeros(shape))
