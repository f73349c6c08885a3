"""The models that kohya's sd-scripts train, and its own network for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError


@dataclass(frozen=True)
class KohyaModel:
    """A model of kohya's: the pipeline of diffusers that it belongs to, and kohya's module for its networks.

    `t5_tokens` is the `max_sequence_length` of that pipeline, by which its stores are collected; None without T5.
    """

    pipeline: str
    module: str
    t5_tokens: int | None = None

    def networks(self) -> Any:
        """kohya's module. Raises ConfigError if it is not on the path."""
        try:
            if self.module == "networks.lora_flux":
                from networks import lora_flux as found
            elif self.module == "networks.lora_sd3":
                from networks import lora_sd3 as found
            else:
                from networks import lora as found
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.module} cannot be imported: {error}",
                "start the script of kohya's that trains this model, from its folder",
            ) from error
        return found

    def parts(self, weight: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weights of diffusers that a layer's weight consists of, `[M, D]` cut by rows.

        q, k and v have D rows each, and what comes after them (proj_mlp of Flux) has the rest.
        """
        if len(names) == 1:
            return {names[0]: weight}
        dim = weight.shape[1]
        rows = [dim] * 3 + [len(weight) - 3 * dim]
        return dict(zip(names, weight.split(rows[: len(names)]), strict=True))


MODELS = {
    "UNet2DConditionModel": KohyaModel("StableDiffusionPipeline", "networks.lora"),
    "SdxlUNet2DConditionModel": KohyaModel("StableDiffusionXLPipeline", "networks.lora"),
    "Flux": KohyaModel("FluxPipeline", "networks.lora_flux", 512),
    "MMDiT": KohyaModel("StableDiffusion3Pipeline", "networks.lora_sd3", 256),
}


def kohya_model(unet: nn.Module) -> KohyaModel:
    """What kohya calls a model of this class. Raises ModelError for one that is not known here."""
    name = type(unet).__name__
    if name not in MODELS:
        raise ModelError(
            f"{name} is no model whose LoRA can be constrained here", "train Stable Diffusion 1 or 2, SDXL, SD3 or Flux"
        )
    return MODELS[name]
