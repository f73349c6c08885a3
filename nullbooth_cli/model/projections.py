"""Finds the projections of the attention layers.

`find_projections()` chooses modules by their names and their parent's. PEFT wraps them, so their classes do not identify them.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from nullbooth_cli.datatypes import FEATURES
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import listed

_PROJECTION = re.compile(rf"^(?P<layer>.+)\.(?P<projection>{'|'.join(map(re.escape, FEATURES))})$")
BLOCKS = {"down": "down_blocks.*", "mid": "mid_block.*", "up": "up_blocks.*"}


@dataclass(frozen=True)
class Projection:
    """One linear map of an attention layer; `weight` is the name of its parameter in the plain model.

    With `from_text`, it receives only tokens of the prompt; with `from_both`, it may receive tokens of prompt and image as one
    sequence.
    """

    layer: str
    feature: str
    weight: str
    module: nn.Module
    from_text: bool = False
    from_both: bool = False

    def __str__(self) -> str:
        return f"{self.layer} {self.feature}"


def find_projections(denoiser: nn.Module, features: tuple[str, ...], layers: str | list[str | int]) -> tuple[Projection, ...]:
    """The projections of the chosen layers and features, in the model's order; a feature means both streams of joint attention.

    `layers` is "all" (every layer that attends to text) or a list of names, glob patterns, blocks (down, mid, up) and indices
    among those layers. A name or pattern that matches none of them is tried on the layers of self-attention.

    Raises ConfigError for a pattern that matches nothing or an empty choice; ModelError for a model without attention to text and
    for fused projections, whose to_k and to_v are never called.
    """
    if not features:
        raise ConfigError("no feature is switched on", "switch on one of collect.collect_features.{q,k,v,out}_features")
    modules = dict(denoiser.named_modules())
    found = [(match, modules[name]) for name in modules if (match := _PROJECTION.match(name))]
    kinds = {match["layer"]: _kind(match["layer"], modules[match["layer"]]) for match, _ in found}
    names = [name for name, kind in kinds.items() if kind != "self"]
    two_streams = {match["layer"] for match, _ in found if match["projection"].startswith("add_")}
    if not names:
        raise ModelError(
            f"{type(denoiser).__name__} has no layer that attends to text (attn2 or attn)",
            "choose a model with text cross-attention",
        )
    chosen = _choose(names, [name for name, kind in kinds.items() if kind == "self"], layers)
    for name in chosen:
        if _is_fused(modules[name]):
            raise ModelError(f"the projections of {name} are fused", "call pipe.unfuse_qkv_projections() before saving the model")
    return tuple(
        Projection(
            layer=layer,
            feature=feature,
            weight=f"{layer}.{match['projection']}.weight",
            module=module,
            from_text=_from_text(feature, kinds[layer]),
            from_both=kinds[layer] == "joint" and layer not in two_streams,
        )
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
    """Whether another module runs in place of to_k and to_v.

    The flag of diffusers' `Attention` stays set when it is unfused, so the class of its processor decides.
    """
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
            there = listed([f"{i:2d}  {name}" for i, name in enumerate(names)], most=20, lines=True)
            raise ConfigError(
                f"collect.cross_attention_layers: {wanted!r} matches none of the {len(names)} layers",
                f"the layers are{there}",
            )
        chosen |= matching
    return chosen
