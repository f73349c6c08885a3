"""The parameters of a denoiser that train, and how: marked, in their dtypes, with gradient checkpointing."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from nullbooth_cli.model.projections import Projection
from nullbooth_cli.settings.recipe import Recipe


def make_trainable(denoiser: nn.Module, projections: Sequence[Projection], recipe: Recipe) -> None:
    """Mark the parameters to train, and no others: the weights of the projections, or (method: lora) adapters on them.

    They become float32. Gradient checkpointing is set as the recipe has it.
    """
    from diffusers.training_utils import cast_training_params

    denoiser.requires_grad_(False)
    if recipe.method == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        # As a pattern: PEFT takes a name in a list for the end of other names as well.
        names = "|".join(re.escape(projection.weight.removesuffix(".weight")) for projection in projections)
        adapter = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=names)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)  # the adapters start at random
            inject_adapter_in_model(adapter, denoiser)
    else:
        for projection in projections:
            projection.module.get_parameter("weight").requires_grad_(True)
    cast_training_params(denoiser, torch.float32)
    if recipe.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # torch has no type for what a module adds
