"""Adapters in a pipeline: loaded, and compared with their file, so that nothing of it is lost on the way.

    with attached(pipe, adapter):      # raises ConfigError unless the pipeline has all of it
        ...
    fuse(pipe, adapter, scale=0.8)     # adds it to the weights

diffusers renames, splits and filters the tensors of a LoRA, and drops what it does not know with a warning at most. Whatever it
does, the norm of the change that a file makes must be in the layers afterwards: sum of norm(B A)^2 over all pairs. PEFT renames
nothing, so its tensors are compared by name.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.adapter_files import AdapterFile, pair_name, require_adapter_alone
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.load import ONE_LOAD, freeze
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.model.sources import SAFE


@contextmanager
def attached(pipe: Any, adapter: AdapterFile) -> Iterator[None]:
    """Load an adapter beside the weights of a pipeline for a while, and compare it with its file.

    Raises ConfigError if it does not fit, or if anything of the file was left out. Cost: one read of the file.
    """
    with ExitStack() as undoing:
        undoing.callback(freeze, pipe)
        with _explained(pipe, adapter), quiet_libraries(), ONE_LOAD:
            (_load_peft if adapter.peft else _load_lora)(pipe, adapter, undoing)
        yield


def fuse(pipe: Any, adapter: AdapterFile, scale: float = 1.0) -> None:
    """Add `scale` times an adapter to the weights of a pipeline. Raises ConfigError as `attached` does."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    with attached(pipe, adapter), _explained(pipe, adapter):
        for layer in _layers(pipe, BaseTunerLayer):
            if scale != 1:
                layer.scale_layer(scale)
            layer.merge(safe_merge=True)


@contextmanager
def _explained(pipe: Pipeline, adapter: AdapterFile) -> Iterator[None]:
    """Turn an error of diffusers and PEFT on loading an adapter into a ConfigError."""
    try:
        yield
    except (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        first, *more = str(error).splitlines() or [type(error).__name__]
        reason = f"{first} {more[0].strip()}" if more and first.endswith(":") else first
        raise ConfigError(
            f"cannot load {adapter.path} into a {type(pipe).__name__}: {reason}",
            "name a LoRA that was made for this base, and install peft (pip install peft)",
        ) from error


def _load_lora(pipe: Any, adapter: AdapterFile, undoing: ExitStack) -> None:
    """Load a LoRA by diffusers; `undoing` takes it out again."""
    from peft.tuners.lora import LoraLayer

    tensors = adapter.tensors()
    undoing.callback(pipe.unload_lora_weights)
    pipe.load_lora_weights(str(adapter.path) if adapter.path.suffix == SAFE else dict(tensors))
    _require_all(adapter, tensors, list(_layers(pipe, LoraLayer)), pipe)


def _layers(pipe: Any, kind: type) -> Iterator[Any]:
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            yield from (module for module in part.modules() if isinstance(module, kind))


def _require_all(adapter: AdapterFile, tensors: Mapping[str, torch.Tensor], layers: list[Any], pipe: Pipeline) -> None:
    """Raise ConfigError unless the layers have what the file holds."""
    with_alpha = any(name.endswith(".alpha") for name in tensors)
    of_file = _norms_of_file(adapter, tensors)
    loaded = [
        (layer.scaling[name] ** 2 if with_alpha else 1.0) * _squared_norm(layer.lora_A[name].weight, layer.lora_B[name].weight)
        for layer in layers
        for name in layer.lora_A
    ]
    dtypes = [layer.lora_A[name].weight.dtype for layer in layers for name in layer.lora_A]
    tolerance = max((4 * torch.finfo(dtype).eps for dtype in dtypes), default=0.0) + 2e-3  # files are in 16 bits as a rule
    not_zero = [layer for layer, norm in of_file.items() if norm > 0]
    lost = [layer for layer in not_zero if not any(abs(of_file[layer] - norm) <= tolerance * of_file[layer] for norm in loaded)]
    total = sum(of_file.values())
    if not layers or len([norm for norm in loaded if norm > 0]) < len(not_zero) or abs(sum(loaded) - total) > tolerance * total:
        lost = lost if layers and lost else [*of_file]
        raise ConfigError(
            f"{adapter.path} does not fit the {type(pipe).__name__} of this base: {len(lost)} of its "
            f"{counted(len(of_file), 'layer')} cannot be loaded, such as {lost[0]}",
            "name a LoRA that was made for this base; if PEFT saved it, name the whole folder",
        )
    magnitudes = sum("lora_magnitude_vector" in name for name in tensors)
    if magnitudes != sum(len(layer.lora_magnitude_vector) for layer in layers):
        raise ConfigError(
            f"{adapter.path} is a DoRA, and {counted(magnitudes, 'magnitude')} are left out: without them it is another model",
            "fuse it into its base with the program that made it, and name that pipeline folder",
        )


def _norms_of_file(adapter: AdapterFile, tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The squared norm of alpha / rank B A of each pair, by its layer."""
    downs: dict[str, torch.Tensor] = {}
    ups: dict[str, torch.Tensor] = {}
    alphas = {name.removesuffix(".alpha"): float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")}
    for name, tensor in tensors.items():
        if found := pair_name(name):
            (downs if found.down else ups)[found.layer] = tensor
    return {
        layer: (alphas.get(layer, float(len(down))) / len(down)) ** 2 * _squared_norm(down, ups[layer])
        for layer, down in downs.items()
    }


def _squared_norm(down: torch.Tensor, up: torch.Tensor) -> float:
    """norm(up down)^2 = tr((up^T up) (down down^T)), of `[M, r]` and `[r, D]`, convolutions flattened."""
    a, b = down.detach().cpu().double().flatten(1), up.detach().cpu().double().flatten(1)
    return float(((b.T @ b) * (a @ a.T)).sum())


def _load_peft(pipe: Any, adapter: AdapterFile, undoing: ExitStack) -> None:
    """Load a folder of PEFT into the component that has its layers; `undoing` takes it out again."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(adapter.peft))
    config.inference_mode = True
    require_adapter_alone(adapter.peft, vars(config))
    tensors = adapter.tensors()
    component = _component_of(pipe, adapter, tensors)
    wrapped: Any = get_peft_model(component, config)

    undoing.callback(vars(component).pop, "peft_config", None)
    undoing.callback(wrapped.unload)
    set_peft_model_state_dict(wrapped, dict(tensors))
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if different := sorted(wanted ^ tensors.keys()):
        where = "is missing from the file" if different[0] in wanted else "cannot be loaded"
        raise ConfigError(
            f"{adapter.path} does not fit its {adapter.peft}/adapter_config.json in this base: "
            f"{counted(len(different), 'tensor')}, such as {different[0]}, which {where}",
            "name a folder that was saved from this base",
        )


def _component_of(pipe: Any, adapter: AdapterFile, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The component of a pipeline whose layers the tensors of PEFT name."""
    denoiser = denoiser_of(pipe)
    parts = [denoiser, *(part for part in pipe.components.values() if isinstance(part, nn.Module) and part is not denoiser)]
    fits = [(sum(_names_a_layer(part, name) for name in tensors), part) for part in parts]
    count, best = max(fits, key=lambda fit: fit[0])
    if count == len(tensors) > 0:
        return best
    other = next((name for name in tensors if not _names_a_layer(best, name)), "none")
    raise ConfigError(
        f"{adapter.path} does not fit the {type(pipe).__name__} of this base: {len(tensors) - count} of its "
        f"{counted(len(tensors), 'tensor')} belong to no layer, such as {other}",
        "name an adapter that was made for this base",
    )


def _names_a_layer(part: nn.Module, tensor: str) -> bool:
    """Whether the beginning of a tensor's name is the path of a layer."""
    module, words = part, tensor.removeprefix("base_model.model.").split(".")
    for word in words:
        inner = dict(module.named_children())
        if not inner:
            return module is not part
        if word not in inner:
            return False
        module = inner[word]
    return False
