"""The LoRA modules of another trainer, constrained or dropped.

A module of kohya's kind has `lora_name`, `lora_down` (a linear layer, a 1x1 convolution, or a list of them for a split q, k, v),
`lora_up`, and the layer of the base model that it is for.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nullbooth_cli.api import OpenStore, open_store
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.training.parametrization import TOLERANCE, TorchProjector, constrain_weight

_LOG = logging.getLogger(__name__)
_KINDS_SHOWN = 12
# A name up to the number of its block: the rest says what kind of layer it is.
_UP_TO_BLOCK = re.compile(r"^(?:.*blocks_\d+_|.*mid(?:dle)?_block_)?(?:attentions_|resnets_)?(?:\d+_)*")


@dataclass(frozen=True)
class Protection:
    """What a store protects: the projector of each weight. Weights of one site have the same object."""

    store: OpenStore
    projectors: Mapping[str, TorchProjector]

    @classmethod
    def of(cls, url: str) -> "Protection":
        """Of a store. Raises StageError before `project` is complete, ConfigError for per-timestep projectors."""
        store = open_store(url)
        by_weight = store.projectors()
        found: dict[str, TorchProjector] = {}
        for site in store.sites():
            found |= dict.fromkeys(site.weights, TorchProjector(by_weight[site.weights[0]]))
        return cls(store, found)

    def of_rows(self, weights: Sequence[str]) -> TorchProjector | None:
        """The projector of a layer that computes several weights from one input, or None if the store protects none of them.

        Raises ModelError if the store has more than one input for them.
        """
        found = {id(self.projectors[weight]): self.projectors[weight] for weight in weights if weight in self.projectors}
        if len(found) > 1:
            raise ModelError(
                f"{self.store.url} has {len(found)} inputs for the weights of one layer: {', '.join(weights)}",
                "collect from a model whose layers share their inputs as those of this trainer do",
            )
        return next(iter(found.values()), None)


@dataclass
class Sorted:
    """The modules that the store protects, with their projectors, and the names of the others."""

    kept: list[tuple[Any, TorchProjector]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def report(self, url: str) -> str:
        """What trains and what was dropped, by kind, with an example of each."""
        total = len(self.kept) + len(self.dropped)
        lines = [f"{len(self.kept)} of {counted(total, 'LoRA module')} train within the null spaces of {url}"]
        if self.dropped:
            kinds = defaultdict(list)
            for name in self.dropped:
                kinds[kind_of(name)].append(name)
            counts = Counter({kind: len(names) for kind, names in kinds.items()}).most_common()
            shown = [f"{count} {kind}, such as {kinds[kind][0]}" for kind, count in counts]
            lines.append(f"{len(self.dropped)} are dropped, because the store has no inputs of them:")
            return "\n".join(lines) + listed(shown, most=_KINDS_SHOWN, lines=True)
        return lines[0]

    def require_some(self, url: str) -> None:
        """Raise ConfigError if nothing is left to train."""
        if not self.kept:
            raise ConfigError(
                f"{url} protects none of the {len(self.dropped)} modules of this network, such as {listed(self.dropped, 2)}",
                "collect from the layers that are to train, or train modules that the store protects",
            )


def kind_of(name: str) -> str:
    """The kind of layer that a module is for, from its name: `attn1_to_q`, `img_mlp_0`."""
    plain = name.replace("$$", "_").replace(".", "_")
    return _UP_TO_BLOCK.sub("", plain) or plain


def downs(module: Any) -> list[nn.Module]:
    """The `lora_down` of a module: one, or the parts of a split one."""
    down = module.lora_down
    return list(down) if isinstance(down, nn.ModuleList) else [down]


def base_layer(module: Any) -> Any:
    """The layer of the base model that a module is for, before and after it was applied."""
    layer = module.org_module
    return layer[0] if isinstance(layer, list) else layer


def constrain_modules(modules: Sequence[tuple[Any, TorchProjector]]) -> None:
    """Make every `lora_down` A P: what the modules add is silent on the collected inputs from here on.

    Raises ModelError for a module that has learned something outside of the null space already, for a convolution that is not
    1x1, and for one of another width. Nothing is changed then.
    """
    for module, projector in modules:
        for down in downs(module):
            _require_linear(module.lora_name, down, projector)
        if any(bool(up.any()) for up in module.lora_up.parameters()):
            for down in downs(module):
                require_within(module.lora_name, down.weight, projector)
    for module, projector in modules:
        for down in downs(module):
            constrain_weight(down, projector, keep_value=False)


def require_within(name: str, down: Any, projector: TorchProjector) -> None:
    """Raise ModelError if a `lora_down` `[r, D]` or `[r, D, 1, 1]` is not within a null space, by more than rounding."""
    rows = down.detach().flatten(1).to(torch.float32)
    outside = projector.share_outside(rows, compared_with=rows)
    if outside > TOLERANCE:
        raise ModelError(
            f"{name} was not trained under this constraint: {outside:.2g} of its norm lies outside the null space",
            "use a file that was trained under the same store, or none",
        )


def warn(text: str) -> None:
    """Say something once, where the trainer's own log goes."""
    _LOG.warning("nullbooth: %s", text)


def _require_linear(name: str, down: Any, projector: TorchProjector) -> None:
    shape = tuple(down.weight.shape)
    if any(side != 1 for side in shape[2:]):
        raise ModelError(f"{name} is a convolution of {shape[2:]} pixels", "train linear layers and 1x1 convolutions only")
    if shape[1] != projector.dim:
        raise ModelError(
            f"{name} receives vectors of {shape[1]} values, and those of the store have {projector.dim}",
            "train the model that was collected from",
        )
