"""A training step constrained against the same step free, in turns: full k and v, and LoRA, at the size of Stable Diffusion 1.5.

The weights and the projectors are random: neither changes the work. `--device cpu --tiny` shows in seconds that it runs.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from nullbooth_cli.api import Moment
from nullbooth_cli.datatypes import Site, split_weight
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.training.constraint import constrain
from tests.benchmarks.common import Stopwatch, figure, in_turns, median_wall, parse, parser, show
from tests.benchmarks.subjects import sd15_pipeline

AT_MOST = {"full": 1.25, "lora": 1.10}
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


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
        first, *_ = self._found
        layer, feature = split_weight(first)
        weights, dim = tuple(self._found), self._found[first].dim
        return (Site(layer, feature, side="input", weights=weights, timestep_free=True, num_tokens=77, dim=dim),)

    def moment(self, site: Site) -> Moment:
        raise NotImplementedError("the drift is not measured here")

    def projectors(self, model: Mapping[str, torch.Tensor]) -> Mapping[str, Projector]:
        return self._found


class Training:
    """A denoiser in training on one random batch, with a half-precision forward as accelerate does it."""

    def __init__(self, arguments: argparse.Namespace, method: str, *, constrained: bool) -> None:
        self.device = torch.device(arguments.device)
        pipe: Any = sd15_pipeline(self.device, torch.float32, tiny=arguments.tiny)
        unet, self.half = pipe.unet, PRECISIONS[arguments.precision]
        found = find_projections(unet, ("k", "v"), "all")
        unet.requires_grad_(False)
        if method == "lora":
            from peft import LoraConfig

            names = [each.weight.removesuffix(".weight") for each in found]
            unet.add_adapter(LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, target_modules=names))
        else:
            for each in found:
                each.module.get_parameter("weight").requires_grad_(True)
        if constrained:
            source = RandomProjectors({each.weight: unet.get_parameter(_now(each.weight, method)).shape[1] for each in found})
            constrain(unet, source, unprotected="refuse")
        if arguments.checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet: nn.Module = unet.train()
        self.optimizer = torch.optim.AdamW([each for each in unet.parameters() if each.requires_grad], lr=1e-5)
        size, config = arguments.batch, unet.config
        self.batch = (
            torch.randn(size, config.in_channels, config.sample_size, config.sample_size, device=self.device),
            torch.randint(1000, (size,), device=self.device),
            torch.randn(size, 77, config.cross_attention_dim, device=self.device),
        )

    def steps(self, count: int, watch: Stopwatch) -> None:
        self._wait()
        with watch:
            for _ in range(count):
                with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                    loss = self.unet(*self.batch, return_dict=False)[0].float().square().mean()
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
    made.add_argument("--precision", choices=PRECISIONS, default="fp16")
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--rank", type=int, default=8)
    made.add_argument("--steps", type=int, default=10, help="a turn")
    made.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    made.add_argument("--tiny", action="store_true", help="a tiny model, 2 steps")
    arguments = parse(made)
    if arguments.tiny:
        arguments.steps, arguments.repeats = 2, 1
    figures, details = [], {}
    for method, at_most in AT_MOST.items():
        free, held = (Training(arguments, method, constrained=constrained) for constrained in (False, True))
        runs: dict[str, Callable[[Stopwatch], None]] = {
            f"{method} free": partial(free.steps, arguments.steps),
            f"{method} constrained": partial(held.steps, arguments.steps),
        }
        for warm_up in runs.values():
            warm_up(Stopwatch())
        if arguments.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        below, above = in_turns(runs, arguments.repeats).values()
        figures.append(figure(f"{method}: constrained step", above, below, at_most=at_most))
        details[method] = {"free_step_seconds": median_wall(below) / arguments.steps}
        if arguments.device.startswith("cuda"):
            details[method]["peak_bytes_of_both"] = torch.cuda.max_memory_allocated()
        del free, held, runs
    show("training", figures, arguments, details=details)


if __name__ == "__main__":
    main()
