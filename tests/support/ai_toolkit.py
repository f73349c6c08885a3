"""Stand-ins for ai-toolkit's trainer and network: what runs around `hook_add_extra_train_params`, in its order.

Written from its interface (ostris/ai-toolkit 27a03a9: lora_special.py, network_mixins.py, BaseSDTrainProcess.py), not copied.
"""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.kohya_training import conditioning, random_like


class LoRAModule(nn.Module):
    def __init__(self, lora_name: str, layer: Any, rank: int) -> None:
        super().__init__()
        self.lora_name, self.orig_module_ref, self.org_module = lora_name, weakref.ref(layer), [layer]
        if isinstance(layer, nn.Conv2d):
            at = layer.kernel_size, layer.stride, layer.padding
            self.lora_down: Any = nn.Conv2d(layer.in_channels, rank, *at, bias=False)
            self.lora_up: Any = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_up.weight)
        self.register_buffer("alpha", torch.tensor(float(rank)))

    def apply_to(self) -> None:
        self.org_forward = self.org_module[0].forward
        self.org_module[0].forward = self.forward

    def forward(self, x: Any) -> Any:
        return self.org_forward(x) + self.lora_up(self.lora_down(x.to(self.lora_down.weight.dtype)))


class LoRASpecialNetwork(nn.Module):
    """Every linear layer and 1x1 convolution inside of transformer blocks, under PEFT's names with `$$` for the dots."""

    def __init__(self, unet: Any, rank: int) -> None:
        super().__init__()
        layers = ((name, layer) for name, layer in unet.named_modules() if "transformer_blocks" in name)
        self.unet_loras = [
            LoRAModule(f"transformer.{name}".replace(".", "$$"), layer, rank)
            for name, layer in layers
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
        ]
        self.text_encoder_loras: list[Any] = []

    def apply_to(self) -> None:
        for lora in self.unet_loras:
            lora.apply_to()
            self.add_module(lora.lora_name, lora)

    def prepare_optimizer_params(self) -> list[dict[str, Any]]:
        self.requires_grad_(True)
        return [{"params": [one for lora in self.unet_loras for one in lora.parameters()], "lr": 3e-2}]

    def load_weights(self, file: Path) -> None:
        tensors = {
            key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value for key, value in load_file(file).items()
        }
        path = {key: key.replace(".", "$$").replace("$$lora_", ".lora_").replace("$$weight", ".weight") for key in tensors}
        self.load_state_dict({path[key]: value for key, value in tensors.items()}, False)

    def save_weights(self, file: Path) -> None:
        tensors = {key: value.detach().clone() for key, value in self.state_dict().items() if not key.endswith(".alpha")}
        save_file(
            {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B").replace("$$", "."): tensors[key] for key in tensors},
            file,
        )


class SDTrainer:
    """A process: `run` is what BaseSDTrainProcess.run does from the loaded model on."""

    def __init__(self, pipe: Any, config: dict[str, Any], **changes: Any) -> None:
        self.config, self.pipe = config, pipe
        given = {
            "type": "lora",
            "layer_offloading": False,
            "train_text_encoder": False,
            "resume": None,
            "more": [],
            "quantize": False,
        } | changes
        self.network_config = SimpleNamespace(type=given["type"], layer_offloading=given["layer_offloading"])
        self.model_config = SimpleNamespace(quantize=given["quantize"])
        self.train_config = SimpleNamespace(train_text_encoder=given["train_text_encoder"])
        self.denoiser, self.args, self.kwargs = conditioning(pipe)
        self.sd = SimpleNamespace(get_model_to_train=lambda: self.denoiser)
        self.resume, self.more = given["resume"], given["more"]
        self.network: Any = None

    def get_conf(self, key: str, default: Any = None, required: bool = False, as_type: Any = None) -> Any:
        return self.config.get(key, default)

    def hook_add_extra_train_params(self, params: Any) -> Any:
        return params

    def run(self, file: Path, steps: int = 6) -> None:
        self.denoiser.requires_grad_(False)
        self.network = LoRASpecialNetwork(self.denoiser, 4) if self.network_config.type != "none" else None
        params = list(self.more)
        if self.network is not None:
            self.network.to(torch.float32)
            self.network.apply_to()
            params += self.network.prepare_optimizer_params()
            if self.resume:
                self.network.load_weights(self.resume)
        self.params = self.hook_add_extra_train_params(params)
        for group in self.params:
            for param in group["params"]:
                param.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.params, lr=3e-2)
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            given = random_like(dict(enumerate(self.args)), generator)
            output = self.denoiser(*given.values(), **{**random_like(self.kwargs, generator), "return_dict": False})[0]
            (output - torch.randn(output.shape, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        self.network.save_weights(file)
