"""The places of a pipeline's parts while its denoiser trains: text encoders and autoencoder leave its device.

1. Captions and pictures are encoded with one part on the device at a time (`load_pipeline(model_cpu_offload=True)`).
2. `settle()` then puts the denoiser there. The others stay where they are, or are dropped if nothing will need them; while a word
   trains they are needed in every step.
3. `at_hand()` brings them back for pictures.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.protocols import Pipeline

HOST = torch.device("cpu")


def helpers_of(pipe: Pipeline) -> dict[str, nn.Module]:
    """Every module of a pipeline but its denoiser, by name."""
    denoiser = denoiser_of(pipe)
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and part is not denoiser}


def settle(pipe: Pipeline, device: torch.device, *, in_every_step: bool, later: bool) -> None:
    """Put the denoiser onto the device, and its helpers where they belong.

    `in_every_step`: they stay on the device. `later`: they are in host memory until `at_hand()`, or until they are saved. Without
    both they are dropped: the pipeline has None in their place.
    """
    pipe.remove_all_hooks()
    denoiser_of(pipe).to(device)
    for name, part in helpers_of(pipe).items():
        if in_every_step or later:
            part.to(device if in_every_step else HOST)
        else:
            pipe.register_modules(**{name: None})


@contextlib.contextmanager
def at_hand(pipe: Pipeline, device: torch.device) -> Iterator[None]:
    """The whole pipeline is on a device meanwhile."""
    before = {name: next(part.parameters()).device for name, part in helpers_of(pipe).items()}
    try:
        for part in helpers_of(pipe).values():
            part.to(device)
        yield
    finally:
        for name, part in helpers_of(pipe).items():
            part.to(before[name])
