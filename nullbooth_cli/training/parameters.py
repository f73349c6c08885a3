"""The parameters that a run trains, by name, and the files that a checkpoint keeps of them.

    parameters.safetensors   their values: under a constraint X of W0 + X P itself, so that a run resumes to the bit
    averages.safetensors     with ema_decay: their moving averages

Names begin with `denoiser.` or `word.`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from nullbooth_cli.errors import StoreError

PARAMETERS, AVERAGES = "parameters.safetensors", "averages.safetensors"


def trained_parameters(denoiser: nn.Module, word: nn.Module | None) -> dict[str, nn.Parameter]:
    """The parameters of a denoiser that train, and those of a word."""
    parts = {"denoiser": denoiser, **({} if word is None else {"word": word})}
    return {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def by_part(trained: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the denoiser, and those of the word."""
    of_word = [parameter for name, parameter in trained.items() if name.startswith("word.")]
    return [parameter for name, parameter in trained.items() if name.startswith("denoiser.")], of_word


def write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name. Cost: their bytes."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)


def read(file: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in a file, on the CPU. Raises StoreError unless they have the names and shapes that are expected."""
    from safetensors.torch import load_file

    found = load_file(file)
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in expected.items()}:
        raise StoreError(f"{file} has other parameters than this run trains", f"move {file.parent} away, and run this again")
    return found
