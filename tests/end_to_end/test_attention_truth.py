"""What is decided about attention layers without running anything, against what their projections do receive.

The denoiser of a tiny pipeline runs twice with equal latents and pooled embeddings, and the text of two prompts: what differs in
the first layers has the text in it, token by token.
"""

from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nullbooth_cli.collect.open_model import denoising_path
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.model.attention_layers import SELF, TEXT
from nullbooth_cli.model.denoise import denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import StopDenoising
from nullbooth_cli.model.projections import Projection, attention_of, find_projections
from tests.support import tiny
from tests.support.builders import small_config
from tests.support.zoo import ENTRIES, Entry


def _takes_an_image(entry: Entry) -> bool:
    return "collect.pipeline_inputs" in entry.settings or "collect.latents" in entry.settings


TINY = {name: Entry(build=build) for name, build in (tiny.VARIANTS | tiny.UNEQUAL_TEXTS).items()}
# Pipelines that take an image have the denoiser of one that takes none.
ZOO = TINY | {name: each for name, each in ENTRIES.items() if each.refused is None and not _takes_an_image(each)}
PROMPTS = ("cat dog", "dog cat")  # as many tokens
# Denoisers that make a part of the timestep's embedding of the text, so that every token knows the prompt from the beginning.
POOLING = {"HunyuanDiT2DModel", "Kandinsky3UNet", "MochiTransformer3DModel"}
ADDED = 31  # AuraFlow puts registers before the text, Z-Image pads it to whole blocks of 32
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(pipe: Any, entry: Entry, prompt: str, folder: Path) -> list[Arguments]:
    """The arguments of every forward of the denoiser in the first step."""
    settings = {key.replace(".", "__"): value for key, value in entry.settings.items()}
    size = {"collect__height": entry.size, "collect__width": entry.size}
    config = small_config(folder / "run.zarr", **size, schedule__num_denoising_steps=2, **settings)
    found: list[Arguments] = []

    def stop() -> None:
        raise StopDenoising

    handle = denoiser_of(pipe).register_forward_pre_hook(
        lambda _, inputs, named: found.append(copied((inputs, named))), with_kwargs=True
    )
    try:
        denoise(pipe, denoising_path(config), [(0, Prompt(prompt))], after_step=stop)
    except StopDenoising:
        pass
    finally:
        handle.remove()
    return found


def copied(value: Any) -> Any:
    """A copy of everything in it."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: copied(each) for name, each in value.items()}
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value


def differing(one: Any, other: Any, inside: bool = False) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
    """The pairs of tensors in two arguments that differ, and whether they hold a text token by token."""
    if isinstance(one, torch.Tensor):
        if one.shape == other.shape and not torch.equal(one, other):
            yield one, other, one.dim() >= 3 or inside or not one.is_floating_point()
    elif isinstance(one, dict):
        for name in one:
            yield from differing(one[name], other[name])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            yield from differing(*pair, inside=isinstance(one, list))


def received(denoiser: nn.Module, arguments: Arguments, projections: tuple[Projection, ...]) -> dict[Projection, torch.Tensor]:
    """What every projection receives in one forward, in the order in which they run."""
    found: dict[Projection, torch.Tensor] = {}
    handles = [
        each.module.register_forward_pre_hook(
            lambda _, inputs, named, each=each: found.update({each: (inputs or tuple(named.values()))[0].clone()}),
            with_kwargs=True,
        )
        for each in projections
    ]
    inputs, named = copied(arguments)
    with torch.no_grad():
        denoiser(*inputs, **named)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers builds Chroma with a class that it deprecates
@pytest.mark.parametrize("name", ZOO)
def test_decisions_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    entry = ZOO[name]
    assert entry.build
    pipe = entry.build()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    denoiser = denoiser_of(pipe)
    first, second = (arguments_of(pipe, entry, prompt, tmp_path) for prompt in PROMPTS)
    found, arguments = next((both, one) for one, other in zip(first, second, strict=True) if (both := [*differing(one, other)]))
    # The decoder of Kandinsky 2.2 is given one vector for a prompt, of which it makes tokens.
    has_tokens = any(in_tokens for *_, in_tokens in found)
    pairs = [(one, other) for one, other, in_tokens in found if in_tokens or not has_tokens]
    decided = attention_of(denoiser)
    maps = find_projections(denoiser, (), "all", [f"{layer}.*" for layer in decided])
    projections = tuple(each for each in maps if each.layer in decided)
    before = received(denoiser, arguments, projections)
    for one, other in pairs:
        one.copy_(other)
    after = received(denoiser, arguments, projections)

    is_pooling = type(denoiser).__name__ in POOLING or denoiser.config.get("addition_embed_type") == "text" or not has_tokens
    found_lengths = {
        length for one, _ in pairs for length in (one.shape[1:-1] if one.dim() > 2 else [one.shape[not one.is_floating_point()]])
    }
    # HunyuanImage has a second text, which only differs where the prompts have words in quotes.
    found_lengths |= {each.shape[1] for name, each in arguments[1].items() if name == "encoder_hidden_states_2"}
    lengths = {sum(some) for many in (1, 2, 3) for some in combinations_with_replacement(found_lengths, many)}
    image_lengths, met = set[int](), set[str]()
    for each, tensor in before.items():
        attention, num_tokens = decided[each.layer], tensor.shape[-2]
        differs = (tensor != after[each]).flatten(0, -3).any(0).any(-1)
        is_first = not met - {each.layer} and each.feature.removeprefix("add_") != "out" and not is_pooling
        if each.from_text:
            assert differs.any(), each
            fits = any(0 <= num_tokens - length <= ADDED for length in lengths)
            assert fits or not has_tokens, (str(each), num_tokens, lengths)
        elif each.from_both:
            assert differs.any(), each
            assert num_tokens > max(image_lengths, default=0), each
            assert not is_first or differs.sum() < num_tokens, each
        elif attention.kind != TEXT:
            assert not is_first or not differs.any(), each
            image_lengths |= {num_tokens} if is_first or attention.kind == SELF else set()
        if attention.kind not in (SELF, TEXT):
            met.add(each.layer)
    assert met
