"""Finds the projections of the cross-attention layers, and watches what enters or leaves them. No files.

1. `find_projections()` picks the projection modules by name and parent: PEFT wraps them, so their class says nothing.
2. `Watch` hooks them and hands every tensor over at once; any hook that does not fire exactly once per forward is an error.
3. `group_shared()` compares what was seen in two forwards and says which projections always get the same tensor.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.store import FEATURES

_PROJECTION = re.compile(rf"^(?P<layer>.+)\.(?P<projection>{'|'.join(map(re.escape, FEATURES))})$")
BLOCKS = {"down": "down_blocks.*", "mid": "mid_block.*", "up": "up_blocks.*"}


@dataclass(frozen=True)
class Projection:
    """One linear map of an attention layer; `weight` is the name of its parameter in the plain model.

    `from_text`: it receives the tokens of the prompt, and of nothing else.
    """

    layer: str
    feature: str
    weight: str
    module: nn.Module
    from_text: bool = False

    def __str__(self) -> str:
        return f"{self.layer} {self.feature}"


class Enough(Exception):
    """Ends a denoising path early, from inside a hook."""


Receive = Callable[[Projection, int, torch.Tensor], None]


def find_projections(denoiser: nn.Module, features: tuple[str, ...], layers: str | list[str | int]) -> tuple[Projection, ...]:
    """The projections of the chosen layers and features, in the model's order; a feature means both streams of joint attention.

    `layers` is "all", which are those that attend to text, or a list of names, glob patterns, blocks (down, mid, up) and indices
    among them. What matches none of them is tried on the layers of self-attention. Raises ConfigError for a pattern that matches
    nothing, a model without attention to text, no feature, or fused projections (their to_k and to_v are never called).
    """
    if not features:
        raise ConfigError("no feature is switched on", "switch on one of collect.collect_features.{q,k,v,out}_features")
    modules = dict(denoiser.named_modules())
    found = [(match, modules[name]) for name in modules if (match := _PROJECTION.match(name))]
    kinds = {match["layer"]: _kind(match["layer"], modules[match["layer"]]) for match, _ in found}
    names = [name for name, kind in kinds.items() if kind != "self"]
    if not names:
        raise ConfigError(
            f"{type(denoiser).__name__} has no layer that attends to text (attn2 or attn)",
            "choose a model with text cross-attention",
        )
    chosen = _choose(names, [name for name, kind in kinds.items() if kind == "self"], layers)
    for name in chosen:
        if _is_fused(modules[name]):
            raise ConfigError(
                f"the projections of {name} are fused", "call pipe.unfuse_qkv_projections() before saving the model"
            )
    return tuple(
        Projection(layer, feature, f"{layer}.{match['projection']}.weight", module, _from_text(feature, kinds[layer]))
        for match, module in found
        if (layer := match["layer"]) in chosen and (feature := FEATURES[match["projection"]]).removeprefix("add_") in features
    )


def _kind(layer: str, module: nn.Module) -> str:
    """Whether a layer attends to the prompt ("cross"), to prompt and image at once ("joint"), or to the image ("self").

    By diffusers' names: U-Nets and PixArt call them attn2, SD3 and Flux attn. A dual-attention block of SD3.5 has an attn2 of
    self-attention.
    """
    name = layer.rpartition(".")[2]
    if name == "attn2" and getattr(module, "is_cross_attention", True):
        return "cross"
    return "joint" if name == "attn" else "self"


def _is_fused(layer: nn.Module) -> bool:
    """Whether to_k and to_v are not what runs. diffusers' `Attention` keeps its flag when it is unfused; its processor tells."""
    if not getattr(layer, "fused_projections", False):
        return False
    return type(getattr(layer, "processor", None)).__name__.startswith("Fused") or hasattr(layer, "unfuse_projections")


def _from_text(feature: str, kind: str) -> bool:
    return feature.startswith("add_") or (kind == "cross" and feature in ("k", "v"))


def _choose(names: list[str], others: list[str], layers: str | list[str | int]) -> set[str]:
    if isinstance(layers, str):
        return set(names)
    if not layers:
        raise ConfigError("collect.cross_attention_layers is an empty list", "set it to all, or name layers")
    chosen: set[str] = set()
    for wanted in layers:
        if isinstance(wanted, int):
            matching = set(names[wanted : wanted + 1]) if wanted >= 0 else set()
        else:
            pattern = BLOCKS.get(wanted, wanted)
            matching = {name for name in names if fnmatchcase(name, pattern)} or {
                name for name in others if fnmatchcase(name, pattern)
            }
        if not matching:
            listed = "\n  ".join(f"{i:2d}  {name}" for i, name in enumerate(names))
            raise ConfigError(
                f"collect.cross_attention_layers: {wanted!r} matches none of the {len(names)} layers",
                f"the layers are\n  {listed}",
            )
        chosen |= matching
    return chosen


class Watch:
    """Context manager: `receive(projection, forward, tensor)` for every watched projection in every forward of the denoiser.

    `forward` counts from 0; `begin` sees the keyword arguments that each forward starts with. Once all have fired in forward
    `last`, what is left of the model is not computed: `Enough` is raised, ends the block without an error, and leaves `ended`
    true. Tensors are the model's own: copy what is kept.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        projections: tuple[Projection, ...],
        side: str,
        receive: Receive,
        last: int | None = None,
        begin: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._denoiser, self._projections, self._side = denoiser, projections, side
        self._receive, self._last, self._begin = receive, last, begin
        self.ended = False
        self._handles: list[Any] = []
        self._fired: Counter[Projection] = Counter()
        self._forward = 0

    def __enter__(self) -> "Watch":
        for projection in self._projections:
            self._handles.append(self._hook(projection))
        self._handles.append(self._denoiser.register_forward_pre_hook(self._start, with_kwargs=True))
        self._handles.append(self._denoiser.register_forward_hook(lambda *_: self._finish()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        for handle in self._handles:
            handle.remove()
        self.ended = kind is Enough
        return self.ended

    def _hook(self, projection: Projection) -> Any:
        def fire(tensor: torch.Tensor) -> None:
            self._fired[projection] += 1
            self._receive(projection, self._forward, tensor)
            if self._forward == self._last and len(self._fired) == len(self._projections):
                raise Enough

        if self._side == "input":
            return projection.module.register_forward_pre_hook(lambda _, inputs: fire(inputs[0]))
        return projection.module.register_forward_hook(lambda _, __, output: fire(output))

    def _start(self, _: nn.Module, __: Any, arguments: dict[str, Any]) -> None:
        self._fired.clear()
        if self._begin:
            self._begin(arguments)

    def _finish(self) -> None:
        wrong = [f"{p} {self._fired[p]} times" for p in self._projections if self._fired[p] != 1]
        if wrong:
            raise ConfigError(
                f"in forward {self._forward} these projections did not fire exactly once: {', '.join(wrong)}",
                "load the model without compiled, fused or custom attention processors",
            )
        self._forward += 1


@dataclass(frozen=True)
class Shared:
    """Projections that always receive one and the same tensor, in firing order; `example` is that tensor, `[rows, L, D]`."""

    projections: tuple[Projection, ...]
    timestep_free: bool
    example: torch.Tensor


def equal_in_all(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a projection got equal values in every forward that was seen, which one forward alone cannot show."""
    return len(tensors) > 1 and all(torch.equal(tensors[0], later) for later in tensors[1:])


def group_shared(
    forwards: list[list[tuple[Projection, torch.Tensor]]],
    is_timestep_free: Callable[[Sequence[torch.Tensor]], bool] = equal_in_all,
) -> tuple[Shared, ...]:
    """Group the projections that shared one tensor in every forward that was seen (one list a forward, in firing order).

    Sharing is the same memory, so the tensors of a forward must all be alive. `is_timestep_free` judges what a projection got in
    each forward.
    """
    groups: dict[tuple[Any, ...], list[Projection]] = {}
    seen = [dict(forward) for forward in forwards]
    for projection, _ in forwards[0]:
        groups.setdefault(tuple(memory_of(tensors[projection]) for tensors in seen), []).append(projection)
    return tuple(
        Shared(
            tuple(members),
            is_timestep_free([tensors[members[0]] for tensors in seen]),
            seen[0][members[0]],
        )
        for members in groups.values()
    )


def memory_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory read in the same way; on the meta device, too, where every address is 0."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
