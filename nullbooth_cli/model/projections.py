"""Finds the linear maps of a denoiser: the projections of its attention layers, and whatever else of its blocks is chosen.

`find_projections()` chooses modules by their names and their parent's. PEFT wraps them, so their classes alone do not identify
them. A 1x1 convolution is a linear map of every pixel, and counts as one.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from nullbooth_cli.datatypes import ATTENTION_FEATURES, MODULATION, OTHER, split_weight
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.attention_layers import CROSS, JOINT, TEXT, TOKENS_FIRST, Attention, decide

BLOCKS = {"down": "down_blocks.*", "mid": "mid_block.*", "up": "up_blocks.*"}
# What `linear_layers` may say beside patterns, and the features that each word means. attn1 and all are about layers.
ATTN1, ALL = "attn1", "all"
SHORTHANDS = {
    ATTN1: tuple(ATTENTION_FEATURES.values()),
    "ff_in": ("ff_in", "add_ff_in"),
    "ff_out": ("ff_out", "add_ff_out"),
    "proj_in": ("proj_in",),
    "proj_out": ("proj_out",),
    MODULATION: (MODULATION,),
    ALL: (),
}


@dataclass(frozen=True)
class Projection:
    """One linear map; `weight` is the name of its parameter in the plain model.

    With `from_text`, it receives only tokens of the prompt; with `from_both`, it may receive tokens of prompt and image as one
    sequence, or of either. `is_convolution`: it is a 1x1 convolution, whose tokens are pixels. `tokens_first`: its tensors are
    `[L, rows, D]`.
    """

    layer: str
    feature: str
    weight: str
    module: nn.Module
    from_text: bool = False
    from_both: bool = False
    is_convolution: bool = False
    tokens_first: bool = False
    denoiser: str = ""  # the prefix of its denoiser, as in `denoisers_of`

    def __str__(self) -> str:
        return f"{self.layer} {self.feature}"

    def __hash__(self) -> int:  # cheap: hooks look projections up in every forward
        return hash(self.weight)


def find_projections(
    denoisers: nn.Module | Mapping[str, nn.Module],
    features: tuple[str, ...],
    layers: str | list[str | int],
    linear_layers: Sequence[str] = (),
) -> tuple[Projection, ...]:
    """The chosen linear maps, in the model's order: those of `features` in `layers`, and those of `linear_layers` beside them.

    Of several denoisers, as `denoisers_of` gives them, every name starts with the prefix of its own.

    `layers` is "all" (every layer that attends to text) or a list of names, glob patterns, blocks (down, mid, up) and indices
    among those layers. A name or pattern that matches none of them is tried on the layers of self-attention. A feature means both
    streams of joint attention.

    `linear_layers` are shorthands and glob patterns of module names, in the whole model whatever `features` and `layers` are:
    attn1 (every projection of self-attention), ff_in, ff_out, proj_in, proj_out, modulation, and all (every linear map and 1x1
    convolution of the transformer blocks, attention to text included).

    Raises ConfigError for a pattern that matches nothing, an empty choice, and a convolution that is not one of single pixels;
    ModelError for a model without attention to text and for fused projections, whose to_k and to_v are never called.
    """
    if not features and not linear_layers:
        raise ConfigError(
            "no feature is switched on",
            "switch on one of collect.collect_features.{q,k,v,out}_features, or name linear_layers",
        )
    found = _LinearMaps({"": denoisers} if isinstance(denoisers, nn.Module) else denoisers)
    chosen = set()
    if features:
        in_layers = found.choose_layers(layers)
        chosen = {
            path
            for path, (layer, feature) in found.attention.items()
            if layer in in_layers and feature.removeprefix("add_") in features
        }
    for wanted in linear_layers:
        chosen |= found.choose(wanted)
    return tuple(found.projection(path) for path in found.modules if path in chosen)


def attention_of(denoisers: nn.Module | Mapping[str, nn.Module]) -> dict[str, Attention]:
    """Every attention layer of one denoiser or several, in the model's order, and what it attends to and why."""
    return _LinearMaps({"": denoisers} if isinstance(denoisers, nn.Module) else denoisers).layers


class _LinearMaps:
    """The linear maps and convolutions of denoisers by the path of the module, with the adapters around it.

    `attention` has (layer, feature) of those that belong to attention, `layers` what each such layer attends to, and `blocks` the
    paths of the transformer blocks: whatever has an attention layer.
    """

    def __init__(self, denoisers: Mapping[str, nn.Module]) -> None:
        self._name = type(next(iter(denoisers.values()))).__name__
        self._denoisers, self._prefixes = denoisers, sorted(denoisers, key=len, reverse=True)  # the main one's is empty
        self._all = {f"{prefix}{name}": each for prefix, denoiser in denoisers.items() for name, each in denoiser.named_modules()}
        self.modules = dict(_linear_maps(self._all))
        self._parts = {path: split_weight(f"{path}.weight") for path in self.modules}
        self.attention = {path: part for path, part in self._parts.items() if part[1] in ATTENTION_FEATURES.values()}
        self.layers = {layer: self._decide(layer) for layer, _ in self.attention.values()}
        self.blocks = {layer.rpartition(".")[0] for layer in self.layers} - {""}

    def choose_layers(self, layers: str | list[str | int]) -> set[str]:
        """The attention layers that `layers` chooses."""
        names = [name for name, layer in self.layers.items() if layer.sees_text]
        others = {name: layer.why for name, layer in self.layers.items() if not layer.sees_text}
        if not names and (layers == ALL or not others):
            there = listed([f"{name}: {why}" for name, why in others.items()], most=20, lines=True)
            raise ModelError(
                f"{self._name} has no layer that attends to text",
                f"where this is wrong, name layers or patterns in collect.cross_attention_layers; there are{there}"
                if others
                else "choose a model with attention to text",
            )
        chosen = _choose(names, [*others], layers)
        self._require_unfused(chosen)
        return chosen

    def choose(self, wanted: str) -> set[str]:
        """The paths that a shorthand or pattern of `linear_layers` chooses."""
        if wanted == ALL:
            found = {path for path, module in self.modules.items() if self._in_block(path) and not _unrecordable(module)}
        elif wanted == ATTN1:
            found = {path for path, (layer, _) in self.attention.items() if not self.layers[layer].sees_text}
        elif wanted in SHORTHANDS:
            found = {path for path, (_, feature) in self._parts.items() if feature in SHORTHANDS[wanted]}
        else:
            found = {path for path in self.modules if fnmatchcase(path, wanted)}
        if not found:
            raise ConfigError(
                f"linear_layers: {wanted!r} matches none of the {len(self.modules)} linear layers of this {self._name}",
                f"use {', '.join(SHORTHANDS)} or a glob pattern of module names; there are"
                + listed([*self.modules], most=20, lines=True),
            )
        for path in sorted(found):
            if reason := _unrecordable(self.modules[path]):
                raise ConfigError(
                    f"linear_layers: {wanted!r} matches {path}, {reason}",
                    "write a narrower pattern: linear layers and 1x1 convolutions can be recorded and constrained",
                )
        self._require_unfused({self.attention[path][0] for path in found if path in self.attention})
        return found

    def projection(self, path: str) -> Projection:
        """The linear map at a path."""
        layer, feature = self._parts[path]
        module = self.modules[path]
        from_text, from_both = self._tokens(path, layer, feature)
        return Projection(
            layer=layer,
            feature=feature,
            weight=f"{path}.weight",
            module=module,
            from_text=from_text,
            from_both=from_both,
            is_convolution=isinstance(_base(module), nn.Conv2d),
            tokens_first=path not in self.attention
            and any(type(self._all[block]).__name__ in TOKENS_FIRST for block in self.blocks if path.startswith(f"{block}.")),
            denoiser=self._denoiser(path),
        )

    def _denoiser(self, path: str) -> str:
        """The prefix of the denoiser that has a module."""
        return next(prefix for prefix in self._prefixes if path.startswith(prefix))

    def _decide(self, layer: str) -> Attention:
        prefix = self._denoiser(layer)
        denoiser, path = self._denoisers[prefix], layer.removeprefix(prefix)
        return decide(path, self._all[layer], denoiser.get_submodule(path.rpartition(".")[0]), denoiser)

    def _in_block(self, path: str) -> bool:
        """Whether a module is in a transformer block, or leads into one or out of it."""
        return self._parts[path][1] in ("proj_in", "proj_out") or any(path.startswith(f"{block}.") for block in self.blocks)

    def _tokens(self, path: str, layer: str, feature: str) -> tuple[bool, bool]:
        """Whether a linear map receives tokens of the prompt alone, and whether it may receive those of both."""
        if path in self.attention:
            return feature in self.layers[layer].text, feature in self.layers[layer].both
        if feature.startswith("add_"):
            return True, False
        if feature == MODULATION or (feature in ("proj_in", "proj_out") and layer not in self.blocks):
            return False, False  # of the timestep; of the image, around the blocks of a U-Net
        inside = [each for name, each in self.layers.items() if name.rpartition(".")[0] == layer]
        if inside and all(each.kind == TEXT for each in inside):
            return True, False
        # Text stays out of the sequence where it enters by cross-attention or has a stream of its own.
        apart = any(each.kind == CROSS or (each.kind == JOINT and not each.both) for each in inside)
        return False, feature == OTHER or not apart

    def _require_unfused(self, layers: Collection[str]) -> None:
        for name in layers:
            if _is_fused(self._all[name]):
                raise ModelError(
                    f"the projections of {name} are fused", "call pipe.unfuse_qkv_projections() before saving the model"
                )


def _linear_maps(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps and convolutions among named modules, and whatever stands in the place of a projection of attention."""
    around = None
    for path, module in modules.items():
        if around is not None and path.startswith(around):
            continue  # a part of an adapter
        empty = isinstance(module, nn.ModuleList | nn.Sequential | nn.Identity)
        of_attention = path and not empty and split_weight(f"{path}.weight")[1] in ATTENTION_FEATURES.values()
        if path and (of_attention or isinstance(_base(module), nn.Linear | nn.Conv2d)):
            around = f"{path}."
            yield path, module


def _base(module: nn.Module) -> Any:
    """A module without the adapters of PEFT around it."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def _unrecordable(module: nn.Module) -> str | None:
    """The reason that a module is no linear map of single tokens; None for one that is."""
    base = _base(module)
    if not isinstance(base, nn.Conv2d):
        return None
    size = "x".join(map(str, base.kernel_size))
    if size != "1x1":
        return f"a {size} convolution: each output depends on {size} pixels, and single ones are recorded"
    if base.groups != 1:
        return f"a convolution of {base.groups} groups: each output depends on a part of the channels"
    if set(base.stride) != {1} or base.padding not in (0, (0, 0), "valid"):
        return f"a 1x1 convolution of stride {base.stride} and padding {base.padding}: its outputs are not one a pixel"
    return None


def _is_fused(layer: nn.Module) -> bool:
    """Whether another module runs in place of to_k and to_v.

    The flag of diffusers' `Attention` stays set when it is unfused, so the class of its processor decides.
    """
    if not getattr(layer, "fused_projections", False):
        return False
    return type(getattr(layer, "processor", None)).__name__.startswith("Fused") or hasattr(layer, "unfuse_projections")


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
            there = listed([f"{i:2d}  {name}" for i, name in enumerate(names)] or others, most=20, lines=True)
            raise ConfigError(
                f"collect.cross_attention_layers: {wanted!r} matches none of the {len(names or others)} layers",
                f"the layers are{there}",
            )
        chosen |= matching
    return chosen
