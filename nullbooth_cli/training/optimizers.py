"""The optimizers that a recipe names, and the memory of their states.

    adamw      torch's AdamW: two numbers of float32 for each parameter
    adamw8bit  that of bitsandbytes: both in 8 bits, with a scale for each block of 256 (Dettmers et al., arXiv 2110.02861)
    prodigy    AdamW that finds its own step size (Mishchenko and Defazio, arXiv 2306.06101): learning_rate multiplies it

The embedding of a word in a text encoder is a group of its own: it has its own learning rate, and no weight decay, which would
shrink it to zero.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.recipe import OptimizerName, Recipe

PACKAGES = {"adamw8bit": ("bitsandbytes", "nullbooth[8bit]"), "prodigy": ("prodigyopt", "nullbooth[train]")}
SMALLEST = 4096  # bitsandbytes keeps the state of parameters with fewer numbers in float32
BLOCK = 256  # numbers that share a scale
FAR_BELOW_ONE = 0.1


def require_package(optimizer: OptimizerName) -> None:
    """Raise ConfigError if the package of an optimizer is not installed."""
    package, extra = PACKAGES.get(optimizer, (None, None))
    if package is not None and find_spec(package) is None:
        raise ConfigError(f"optimizer: {optimizer} needs {package}, which is not installed", f"pip install '{extra}'")


def rate_note(recipe: Recipe) -> str | None:
    """A note if the learning rate is not one that the optimizer is made for."""
    if recipe.optimizer != "prodigy" or recipe.learning_rate >= FAR_BELOW_ONE:
        return None
    return (
        f"optimizer: prodigy multiplies the step size that it finds by learning_rate, and {recipe.learning_rate:g} makes it "
        f"{1 / recipe.learning_rate:,.0f} times smaller: set learning_rate to 1.0"
    )


def build(
    recipe: Recipe, parameters: Sequence[nn.Parameter], words: Sequence[nn.Parameter] = (), scales: Sequence[float] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer of the denoiser's parameters and of the embeddings of its word.

    `scales` are the sizes of embeddings in the text encoders of the words, one for each: `word_learning_rate` is for the first,
    and the others have as much more as theirs are larger. Prodigy has one rate for all. Raises ConfigError if its package is not
    installed. Memory: `state_bytes`, from the first step on.
    """
    require_package(recipe.optimizer)
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    for word, scale in zip(words, scales, strict=True):
        factor = 1.0 if recipe.optimizer == "prodigy" else scale / scales[0]
        groups.append({"params": [word], "lr": recipe.word_learning_rate * factor, "weight_decay": 0.0})
    if recipe.optimizer == "prodigy":
        return _prodigy(groups, recipe)
    settings: Any = {"lr": recipe.learning_rate, "weight_decay": recipe.adam_weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings)
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, **settings)
    return made


def _prodigy(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """With the two choices of diffusers' scripts: the bias is corrected, and a warmup does not mislead the step size."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that the weight decay is decoupled
        made: torch.optim.Optimizer = Prodigy(
            groups,
            lr=recipe.learning_rate,
            weight_decay=recipe.adam_weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return made


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The step size of the denoiser's parameters now: the learning rate, times the step size that Prodigy has found."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


def state_bytes(optimizer: OptimizerName, sizes: Iterable[int]) -> int:
    """Bytes of the state of parameters that have so many numbers each.

    Prodigy keeps two numbers more than AdamW; for parameters that start at zero, such as all under a constraint, it is one more
    in truth.
    """
    sizes = list(sizes)
    if optimizer == "adamw8bit":
        return sum(2 * (size + 4 * -(-size // BLOCK)) if size >= SMALLEST else 8 * size for size in sizes)
    return (16 if optimizer == "prodigy" else 8) * sum(sizes)
