"""Models that cannot be constrained or edited as they are: what was done to them, and how to undo it."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.adapter_files import changes_base
from nullbooth_cli.tensors import plain_name

FORWARD = "the forward of the layer was replaced"
FUSED = "the layer is out of use: the attention around it has fused projections"
# What must be undone first, and how.
UNDO = {
    FORWARD: "take off what replaced it, such as an adapter of another tool; adapters are added with pipe.unet.add_adapter",
    FUSED: "call pipe.unfuse_qkv_projections() first: k and v would get no gradient",
}


def require_constrainable(model: Any, weights: Sequence[str]) -> None:
    """Raise ConfigError for anything but a denoiser; ModelError for one that is wrapped, compiled, quantized or fused.

    `weights` are the names of the protected weights in the plain model. A weight that is missing is not looked for here.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{type(model).__name__} is not a denoiser", "give pipe.unet or pipe.transformer")
    parameters = {plain_name(name): (name, parameter) for name, parameter in model.named_parameters()}
    if weights[0] not in parameters and (inside := [name for name in parameters if name.endswith(f".{weights[0]}")]):
        prefix = inside[0].removesuffix(weights[0])
        raise ModelError(
            f"this {type(model).__name__} is around the denoiser: the names of its weights begin with {prefix}",
            "constrain the denoiser itself, before torch.compile, DistributedDataParallel or prepare() of accelerate; "
            f"it is model.{prefix.removesuffix('.')}",
        )
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise ModelError(
            f"this {type(model).__name__} is compiled: what was compiled before has no constraint",
            "load the model again, and call constrain() before compile()",
        )
    altered: dict[str, list[str]] = {FORWARD: [], FUSED: []}
    for weight in (name for name in weights if name in parameters):
        name, parameter = parameters[weight]
        layer = model.get_submodule(name.rpartition(".")[0])
        if not parameter.is_floating_point():
            raise ModelError(
                f"{weight} is quantized: a {type(layer).__name__} with weights of {parameter.dtype}",
                "load the denoiser without quantization: only weights in a floating-point dtype can change by a little",
            )
        altered[FORWARD] += [weight] * has_other_forward(layer)
        altered[FUSED] += [weight] * is_out_of_use(model, name.removesuffix(".weight").removesuffix(".base_layer"))
    for reason, names in altered.items():
        if names:
            raise ModelError(f"{counted(len(names), 'protected weight')}, such as {names[0]}: {reason}", UNDO[reason])


def has_other_forward(module: nn.Module) -> bool:
    """Whether the forward of a module was replaced on the object, as the LoRAs of kohya's scripts do."""
    return "forward" in vars(module)


def is_out_of_use(model: nn.Module, path: str) -> bool:
    """Whether the layer at a path is one of several whose place one fused projection has taken."""
    outer, _, last = path.removesuffix(".0").rpartition(".")
    attention: Any = model.get_submodule(outer)
    # diffusers' older class keeps its mark and the fused projection when it is unfused, and changes its processor only.
    by_processor = "Fused" in type(getattr(attention, "processor", None)).__name__
    is_fused = getattr(attention, "fused_projections", False) and (by_processor or hasattr(attention, "unfuse_projections"))
    stays = "out" in last or (last == "to_q" and hasattr(attention, "to_kv"))  # cross-attention: q is not fused
    return bool(is_fused) and not stays


def base_changed_by_lora(model: nn.Module) -> Iterable[str]:
    """The LoRA adapters of a model, with their start, that changed the weights of the layers they were added to."""
    for adapter, config in getattr(model, "peft_config", {}).items():
        start = getattr(config, "init_lora_weights", True)
        if changes_base(start):
            yield f"'{adapter}' (init_lora_weights={start!r})"
