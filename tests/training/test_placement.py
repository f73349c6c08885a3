"""Where the parts of a pipeline are while its denoiser trains."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from nullbooth_cli.training.placement import at_hand, helpers_of, settle

DEVICE, HOST = torch.device("cuda"), torch.device("cpu")


class Part(nn.Module):
    """A module that is where it was put last; a machine without an accelerator has no other place."""

    def __init__(self) -> None:
        super().__init__()
        self.place = HOST

    def parameters(self, recurse: bool = True) -> Any:
        return iter([SimpleNamespace(device=self.place)])

    def to(self, device: Any) -> "Part":  # type: ignore[override]
        self.place = device
        return self


class Pipe:
    """A pipeline as `placement` uses it."""

    def __init__(self) -> None:
        self.unet, self.text_encoder, self.vae, self.tokenizer, self.hooks = Part(), Part(), Part(), object(), 1

    @property
    def components(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}

    def remove_all_hooks(self) -> None:
        self.hooks = 0

    def register_modules(self, **modules: Any) -> None:
        vars(self).update(modules)


def settled(**needed: bool) -> Any:
    pipe: Any = Pipe()
    settle(pipe, DEVICE, **needed)
    assert pipe.hooks == 0
    assert pipe.unet.place == DEVICE
    return pipe


def test_while_a_word_trains_all_are_on_the_device() -> None:
    assert {part.place for part in helpers_of(settled(in_every_step=True, later=True)).values()} == {DEVICE}  # type: ignore[attr-defined]


def test_what_is_needed_later_waits_in_host_memory() -> None:
    pipe = settled(in_every_step=False, later=True)
    assert pipe.vae.place == pipe.text_encoder.place == HOST
    with at_hand(pipe, DEVICE):
        assert pipe.vae.place == pipe.text_encoder.place == DEVICE
    assert pipe.vae.place == pipe.text_encoder.place == HOST
    assert pipe.unet.place == DEVICE


def test_what_is_not_needed_is_dropped() -> None:
    pipe = settled(in_every_step=False, later=False)
    assert pipe.vae is pipe.text_encoder is None
    assert pipe.tokenizer is not None
    assert helpers_of(pipe) == {}
