"""Whether the base model of another trainer is the one that a store was collected from.

Trainers load other files than diffusers, fuse q, k and v, and run in other precisions. So its weights are compared one by one,
first by their digests and then by a few of their values, which a store records of each weight.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.store import Store
from nullbooth_cli.tensors import tensor_digest, tensor_sample

BaseModel = Literal["compare", "trust"]
TOLERANCE = 2.0**-7  # relative: what rounding to float16 and then to bfloat16 can move a value at most
TRUST = "set base_model to trust if you know that it is the same model"
# kohya's SD3 and Flux have shift and scale of the last modulations in the other order.
_MAY_BE_SWAPPED = ("norm_out.linear.weight", ".norm1_context.linear.weight")
_WHOLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_base_model(value: str) -> BaseModel:
    """The setting `base_model`. Raises ConfigError for another word than compare and trust."""
    for choice in get_args(BaseModel):
        if value == choice:
            return choice  # type: ignore[no-any-return]  # of a Literal
    raise ConfigError(f"base_model={value!r} is not a choice", f"set base_model to {' or '.join(get_args(BaseModel))}")


def require_base(store: Store, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Raise ConfigError unless weights, by diffusers' names, are those that a store was collected from.

    Returns a sentence if some are only equal within rounding. A weight that the store does not know is passed over. Cost: one
    read of the weights.
    """
    record = store.records["collect"]
    digests, samples = record.get("tensors") or {}, record.get("samples") or {}
    if not digests:
        raise ConfigError(f"{store.url} does not record which weights it was made from", f"collect again, or {TRUST}")
    known = {name: weight for name, weight in weights.items() if name in digests}
    if quantized := [name for name, weight in known.items() if weight.dtype not in _WHOLE]:
        raise ConfigError(
            f"{len(quantized)} weights of the base model are {str(known[quantized[0]].dtype).removeprefix('torch.')}, such as "
            f"{quantized[0]}: they cannot be compared with those of {store.url}",
            f"load the base model in float32, float16 or bfloat16, or {TRUST}",
        )
    rounded: list[str] = []
    others: list[str] = []
    for name, weight in known.items():
        forms = [weight, *([weight.roll(len(weight) // 2, 0)] if name.endswith(_MAY_BE_SWAPPED) else [])]
        if not any(tensor_digest(form, store.config["dtype"]) == digests[name] for form in forms):
            (rounded if any(_is_near(form, samples.get(name)) for form in forms) else others).append(name)
    if others:
        raise ConfigError(
            f"the base model is not the one that {store.url} was collected from ({record['model']['model']}): "
            f"{len(others)} of {counted(len(known), 'weight')} differ, such as {others[0]}",
            f"train on that model, without any LoRA merged into it, or collect from this one; or {TRUST}",
        )
    if rounded:
        return (
            f"{len(rounded)} of {counted(len(known), 'weight')} of the base model equal those of the store within rounding only"
        )
    return None


def _is_near(weight: torch.Tensor, recorded: list[float] | None) -> bool:
    if recorded is None:
        return False
    expected = torch.tensor(recorded, dtype=torch.float64)
    difference = torch.tensor(tensor_sample(weight), dtype=torch.float64) - expected
    return bool(torch.linalg.norm(difference) <= TOLERANCE * torch.linalg.norm(expected))
