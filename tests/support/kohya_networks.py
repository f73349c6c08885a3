"""Stand-ins for kohya's `networks.lora`, `networks.lora_flux` and `networks.lora_sd3`: its names, signatures and results.

Written from the interface that train_network.py uses (kohya-ss/sd-scripts 48d368f), not from kohya's code.
"""

import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

CHECKOUT = os.environ.get("NULLBOOTH_KOHYA")  # a folder with sd-scripts: its own networks take the place of the stand-ins
TEXT_TARGETS = ("CLIPAttention", "CLIPMLP")


class LoRAModule(nn.Module):
    """Replaces the forward of a layer of the base model, and is no child of it."""

    def __init__(self, lora_name: str, org_module: Any, multiplier: float, lora_dim: int, alpha: float, parts: int = 1) -> None:
        super().__init__()
        self.lora_name, self.multiplier, self.lora_dim, self.org_module = lora_name, multiplier, lora_dim, org_module
        rows = len(org_module.weight)
        if isinstance(org_module, nn.Conv2d):
            at = org_module.kernel_size, org_module.stride, org_module.padding
            downs: list[nn.Module] = [nn.Conv2d(org_module.in_channels, lora_dim, *at, bias=False)]
            ups: list[nn.Module] = [nn.Conv2d(lora_dim, rows, 1, bias=False)]
        else:
            downs = [nn.Linear(org_module.in_features, lora_dim, bias=False) for _ in range(parts)]
            ups = [nn.Linear(lora_dim, rows // parts, bias=False) for _ in range(parts)]
        for down, up in zip(downs, ups, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.lora_down = downs[0] if parts == 1 else nn.ModuleList(downs)
        self.lora_up = ups[0] if parts == 1 else nn.ModuleList(ups)
        self.scale = float(alpha) / lora_dim
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def apply_to(self) -> None:
        self.org_forward = self.org_module.forward
        self.org_module.forward = self.forward
        del self.org_module

    def forward(self, x: Any) -> Any:
        if isinstance(self.lora_down, nn.ModuleList):
            added = torch.cat([up(down(x)) for down, up in zip(self.lora_down, self.lora_up, strict=True)], -1)
        else:
            added = self.lora_up(self.lora_down(x))
        return self.org_forward(x) + added * self.multiplier * self.scale


class LoRANetwork(nn.Module):
    """The modules of a text encoder and a denoiser; they become its children when they are applied."""

    def __init__(
        self, text_encoder: Any, unet: Any, targets: Sequence[str], lora_dim: int, alpha: float, multiplier: float = 1.0,
        dims: dict[str, int] | None = None, alphas: dict[str, Any] | None = None, conv_dim: int | None = None,
        split: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.multiplier, self.train_t5xxl = multiplier, False
        encoders = text_encoder if isinstance(text_encoder, list) else [text_encoder]

        def made(prefix: str, root: nn.Module, classes: Sequence[str]) -> Iterator[LoRAModule]:
            for name, module in root.named_modules():
                for inside, layer in module.named_modules() if type(module).__name__ in classes else ():
                    lora_name = f"{prefix}.{name}.{inside}".replace(".", "_")
                    is_point = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
                    dim = lora_dim if is_point else conv_dim if isinstance(layer, nn.Conv2d) else None
                    if dims is not None:
                        dim = dims.get(lora_name)
                    if dim and isinstance(layer, nn.Linear | nn.Conv2d):
                        parts = 3 if split and lora_name.endswith("qkv") else 1
                        yield LoRAModule(lora_name, layer, multiplier, dim, (alphas or {}).get(lora_name, alpha), parts)

        self.text_encoder_loras: list[LoRAModule] = []
        for number, encoder in enumerate(encoders):
            prefix = "lora_te" if len(encoders) == 1 else f"lora_te{number + 1}"
            if encoder is not None:
                self.text_encoder_loras += made(prefix, encoder, TEXT_TARGETS)
        self.unet_loras = [*made("lora_unet", unet, targets)]

    def set_multiplier(self, multiplier: float) -> None:
        for lora in self.text_encoder_loras + self.unet_loras:
            lora.multiplier = multiplier

    def load_weights(self, file: str) -> Any:
        return self.load_state_dict(load_file(file), False)

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        self.text_encoder_loras = self.text_encoder_loras if apply_text_encoder else []
        self.unet_loras = self.unet_loras if apply_unet else []
        for lora in self.text_encoder_loras + self.unet_loras:
            lora.apply_to()
            self.add_module(lora.lora_name, lora)

    def merge_to(self, text_encoder: Any, unet: Any, weights_sd: Any, dtype: Any = None, device: Any = None) -> None:
        for lora in self.text_encoder_loras + self.unet_loras:
            down, up = (weights_sd[f"{lora.lora_name}.{part}.weight"].float().flatten(1) for part in ("lora_down", "lora_up"))
            weight = lora.org_module.weight
            change = (lora.multiplier * lora.scale * up @ down).reshape(weight.shape)
            lora.org_module.load_state_dict({**lora.org_module.state_dict(), "weight": (weight.float() + change).to(dtype)})

    def enable_gradient_checkpointing(self) -> None: ...

    def prepare_optimizer_params(self, text_encoder_lr: Any, unet_lr: Any, default_lr: Any) -> Any:
        self.requires_grad_(True)
        groups = [(self.text_encoder_loras, text_encoder_lr), (self.unet_loras, unet_lr)]
        made = [
            {"params": dict(p for lora in loras for p in _named(lora)).values(), "lr": default_lr if lr is None else lr}
            for loras, lr in groups
            if loras
        ]
        return made, ["unet"] * len(made)

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        self.requires_grad_(True)

    def on_epoch_start(self, text_encoder: Any, unet: Any) -> None:
        self.train()

    def get_trainable_params(self) -> Any:
        return self.parameters()

    def save_weights(self, file: str, dtype: Any, metadata: Any) -> None:
        tensors = {key: value.detach().clone().cpu().to(dtype or value.dtype) for key, value in self.state_dict().items()}
        save_file(tensors, file, {**(metadata or {}), "sshs_model_hash": "0"})

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any) -> Any:
        raise AssertionError("a constrained network does not come here")


class FluxNetwork(LoRANetwork):
    """Flux and SD3: two learning rates for text encoders, and the norms that GGPO wants."""

    def prepare_optimizer_params_with_multiple_te_lrs(self, text_encoder_lr: Any, unet_lr: Any, default_lr: Any) -> Any:
        return self.prepare_optimizer_params(text_encoder_lr, unet_lr, default_lr)

    def update_norms(self) -> None: ...

    def update_grad_norms(self) -> None: ...


def _named(lora: LoRAModule) -> Iterator[tuple[str, nn.Parameter]]:
    return ((f"{lora.lora_name}.{name}", parameter) for name, parameter in lora.named_parameters())


def network_module(name: str, kind: type[LoRANetwork], targets: Sequence[str]) -> ModuleType:
    """A module of kohya's with its two functions; `asked` has the arguments that reached it."""
    module = ModuleType(name)
    asked: list[dict[str, Any]] = []

    def create_network(
        multiplier: float, network_dim: Any, network_alpha: Any, vae: Any, text_encoder: Any, unet: Any,
        neuron_dropout: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        asked.append(kwargs)
        conv = kwargs.get("conv_dim")
        convs = (*targets, "ResnetBlock2D") if conv else targets
        return kind(
            text_encoder, unet, convs, network_dim or 4, network_alpha or 1.0, multiplier,
            conv_dim=conv and int(conv), split=kwargs.get("split_qkv") == "True",
        )  # fmt: skip

    def create_network_from_weights(
        multiplier: float, file: Any, vae: Any, text_encoder: Any, unet: Any, weights_sd: Any = None,
        for_inference: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        weights = load_file(file) if weights_sd is None else weights_sd
        dims = {key.split(".")[0]: len(value) for key, value in weights.items() if "lora_down" in key}
        alphas = {key.split(".")[0]: value for key, value in weights.items() if key.endswith("alpha")}
        every = (*targets, "ResnetBlock2D")
        return kind(text_encoder, unet, every, 4, 1.0, multiplier, dims=dims, alphas=alphas), weights

    module.__dict__.update(create_network=create_network, create_network_from_weights=create_network_from_weights, asked=asked)
    return module


def put_on_path(patch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Let `networks` be these stand-ins, as kohya's folder is on the path of its scripts."""
    made = {
        "lora": network_module("networks.lora", LoRANetwork, ("Transformer2DModel",)),
        "lora_flux": network_module("networks.lora_flux", FluxNetwork, ("DoubleStreamBlock", "SingleStreamBlock")),
        "lora_sd3": network_module("networks.lora_sd3", FluxNetwork, ("SingleDiTBlock",)),
    }
    package = ModuleType("networks")
    package.__dict__.update(made)
    patch.setitem(sys.modules, "networks", package)
    for name, module in made.items():
        patch.setitem(sys.modules, f"networks.{name}", module)
    return made


def checkout_on_path(patch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """kohya's own `networks`, from the folder that NULLBOOTH_KOHYA names.

    Its library imports much that no network needs, for pictures and progress; what is not installed is an empty object. Its
    train_util, which needs transformers 4, is one as well, but for the hashes that a file gets.
    """
    from diffusers import (
        FluxPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionXLPipeline,
    )  # before torchvision seems to be there

    del FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
    patch.syspath_prepend(CHECKOUT)
    while True:
        try:
            with warnings.catch_warnings(action="ignore"):
                import library
                from networks import lora, lora_flux, lora_sd3
        except ModuleNotFoundError as error:
            if not error.name or error.name.partition(".")[0] in ("library", "networks"):
                raise
            patch.setitem(sys.modules, error.name, MagicMock())
        else:
            hashes = SimpleNamespace(precalculate_safetensors_hashes=lambda tensors, metadata: ("0", "0"))
            patch.setattr(library, "train_util", hashes, raising=False)
            return {"lora": lora, "lora_flux": lora_flux, "lora_sd3": lora_sd3}
