"""A training step constrained against the same step free, in turns: full k and v, and LoRA, at the sizes of real denoisers.

`--model` is one or more of sd15, sdxl and flux, each from its config file, with pictures and text of its own size; the
weights and the projectors are random: neither changes the work. The frozen weights are in `--dtype`, what trains is float32,
and the forward is in `--precision`, as accelerate runs it. `--depth` keeps as many transformer blocks in a row, where the
whole model does not fit; `--device cpu --tiny` shows that it runs.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from nullbooth_cli.datatypes import Site, split_weight
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.training.constraint import constrain
from tests.benchmarks.common import Stopwatch, figure, in_turns, median_wall, parse, parser, show
from tests.support.builders import ROOT

AT_MOST = {"full": 1.25, "lora": 1.10}
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = {"sd15": (512, 77), "sdxl": (1024, 77), "flux": (1024, 512)}  # pixels along a side, tokens of text
TINY_UNET = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "sample_size": 8,
    "attention_head_dim": 4,
}
TINY = {
    "sd15": {**TINY_UNET, "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2},
    "sdxl": {
        **TINY_UNET,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
    },
    "flux": {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8)},
}


class RandomProjectors:
    """A random null space of a third of the dimensions for each input width, instead of a store."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        rng, self._found = np.random.default_rng(0), dict[str, Projector]()
        of_width = dict[int, Projector]()
        for name, dim in weights.items():
            if dim not in of_width:
                of_width[dim] = Projector.of(np.linalg.qr(rng.standard_normal((dim, dim)))[0], dim // 3)
            self._found[name] = of_width[dim]

    def sites(self) -> Sequence[Site]:
        of_width: dict[int, list[str]] = {}
        for name, projector in self._found.items():
            of_width.setdefault(projector.dim, []).append(name)
        return [
            Site(*split_weight(names[0]), side="input", weights=tuple(names), timestep_free=True, num_tokens=77, dim=dim)
            for dim, names in of_width.items()
        ]

    def moment(self, site: Site) -> Moment:
        raise NotImplementedError("the drift is not measured here")

    def projectors(self, model: Mapping[str, torch.Tensor]) -> Mapping[str, Projector]:
        return self._found


def sizes(arguments: argparse.Namespace, name: str) -> tuple[int, int]:
    """Pixels along a side, and tokens of text."""
    pixels, tokens = SIZES[name]
    return arguments.size or pixels, tokens


def cut_depth(unet: dict[str, Any], depth: int) -> None:
    """Keep `depth` transformer blocks in a row at most, in the config of SDXL's U-Net."""
    unet["transformer_layers_per_block"] = [min(blocks, depth) for blocks in unet["transformer_layers_per_block"]]


def denoiser(arguments: argparse.Namespace, name: str) -> Any:
    """The named model's denoiser, built on the device from its config file, with small random weights."""
    part, kind = ("transformer", diffusers.FluxTransformer2DModel) if name == "flux" else ("unet", diffusers.UNet2DConditionModel)
    config: dict[str, Any] = kind.load_config(ROOT / "tests/architectures" / name, subfolder=part)
    if arguments.tiny:
        config |= TINY[name]
    if arguments.depth and name == "flux":
        config |= {"num_layers": arguments.depth, "num_single_layers": 2 * arguments.depth}
    elif arguments.depth and name == "sdxl":
        cut_depth(config, arguments.depth)
    torch.manual_seed(0)
    with torch.device("meta"):
        # The model's own `to` warns of parts that are to stay float32.
        made = nn.Module.to(kind.from_config(config), DTYPES[arguments.dtype])
    made.to_empty(device=arguments.device)
    for tensor in [*made.parameters(), *made.buffers()]:
        nn.init.normal_(tensor, std=0.02)
    return made.requires_grad_(False)


def inputs(arguments: argparse.Namespace, name: str, model: Any) -> dict[str, Any]:
    """A random batch, as a forward of the denoiser takes it."""
    pixels, text = sizes(arguments, name)
    config, batch, size = model.config, arguments.batch, pixels // 8
    random = partial(torch.randn, device=arguments.device)
    if name == "flux":
        places = torch.zeros(size * size // 4, 3, device=arguments.device)
        return {
            "hidden_states": random(batch, len(places), config.in_channels),
            "timestep": torch.rand(batch, device=arguments.device),
            "guidance": torch.full((batch,), 3.5, device=arguments.device),
            "encoder_hidden_states": random(batch, text, config.joint_attention_dim),
            "pooled_projections": random(batch, config.pooled_projection_dim),
            "txt_ids": torch.zeros(text, 3, device=arguments.device),
            "img_ids": places,
        }
    given = {
        "sample": random(batch, config.in_channels, size, size),
        "timestep": torch.randint(1000, (batch,), device=arguments.device),
        "encoder_hidden_states": random(batch, text, config.cross_attention_dim),
    }
    if name == "sdxl":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": random(batch, pooled), "time_ids": random(batch, 6)}
    return given


class Training:
    """A denoiser in training on one random batch."""

    def __init__(self, arguments: argparse.Namespace, name: str, method: str, *, constrained: bool) -> None:
        self.device, self.half = torch.device(arguments.device), PRECISIONS[arguments.precision]
        model = denoiser(arguments, name)
        found = find_projections(model, ("k", "v"), "all")
        if method == "lora":
            from peft import LoraConfig

            names = [each.weight.removesuffix(".weight") for each in found]
            model.add_adapter(LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, target_modules=names))
        else:
            for each in found:
                each.module.get_parameter("weight").requires_grad_(True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if constrained:
            source = RandomProjectors({each.weight: model.get_parameter(_now(each.weight, method)).shape[1] for each in found})
            constrain(model, source, unprotected="refuse")
        if arguments.checkpointing:
            model.enable_gradient_checkpointing()
        self.model: nn.Module = model.train()
        self.optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-5)
        self.batch = inputs(arguments, name, model)

    def steps(self, count: int, watch: Stopwatch) -> None:
        self._wait()
        with watch:
            for _ in range(count):
                with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                    loss = self.model(**self.batch, return_dict=False)[0].float().square().mean()
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _now(weight: str, method: str) -> str:
    """The name of a weight while an adapter is on its layer."""
    return weight.replace(".weight", ".base_layer.weight") if method == "lora" else weight


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--device", default="cuda")
    made.add_argument("--model", nargs="+", choices=TINY, default=["sd15"])
    made.add_argument("--methods", nargs="+", choices=AT_MOST, default=list(AT_MOST))
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="of the frozen weights")
    made.add_argument("--precision", choices=PRECISIONS, default="fp16")
    made.add_argument("--size", type=int, help="pixels along a side; by default 512 for sd15, 1024 for others")
    made.add_argument(
        "--depth",
        type=int,
        default=0,
        help="sdxl: transformer blocks in a row; flux: double blocks, and twice as many single ones",
    )
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--rank", type=int, default=8)
    made.add_argument("--steps", type=int, default=10, help="a turn")
    made.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    made.add_argument("--tiny", action="store_true", help="a tiny model, 2 steps")
    arguments = parse(made)
    # cuDNN's attention ended Flux with gradient checkpointing in an illegal memory access during the warm-up.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if arguments.tiny:
        arguments.steps, arguments.repeats, arguments.size = 2, 1, 64
    figures, details = [], {}
    for name, method in itertools.product(arguments.model, arguments.methods):
        free, constrained = (Training(arguments, name, method, constrained=each) for each in (False, True))
        runs: dict[str, Callable[[Stopwatch], None]] = {
            f"{name} {method} free": partial(free.steps, arguments.steps),
            f"{name} {method} constrained": partial(constrained.steps, arguments.steps),
        }
        for warm_up in runs.values():
            warm_up(Stopwatch())
        if arguments.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        below, above = in_turns(runs, arguments.repeats).values()
        figures.append(figure(f"{name}, {method}: constrained step", above, below, at_most=AT_MOST[method]))
        pixels, tokens = sizes(arguments, name)
        detail = {"pixels": pixels, "text_tokens": tokens, "free_step_seconds": median_wall(below) / arguments.steps}
        if arguments.device.startswith("cuda"):
            detail["peak_bytes_of_both"] = torch.cuda.max_memory_allocated()
        details[f"{name}, {method}"] = detail
        del free, constrained, runs, warm_up
    show("training", figures, arguments, details=details)


if __name__ == "__main__":
    main()
