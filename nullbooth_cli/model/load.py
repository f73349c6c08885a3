"""Loads the user's pipeline: device, precision, evaluation mode, frozen. And says which weights it holds."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.model.load_errors import explained
from nullbooth_cli.model.quiet import quiet_libraries, warnings_heard
from nullbooth_cli.model.sources import Source, completing, fetch

# The names of weights in the two libraries' warnings: a column of a table, or a list.
_MISSING = re.compile(r"\S+(?= +\| MISSING)|(?<=')\S+(?=')")


def config_folder(
    model: str,
    *,
    revision: str | None,
    local_files_only: bool,
    allow_pickle: bool = False,
    pipeline_config: str | None = None,
) -> str:
    """The folder with the config files of a model; weights are not fetched."""
    source = Source(model, revision, None, local_files_only, allow_pickle, pipeline_config)
    if source.is_single_file:
        return _completing_folder(source)
    with quiet_libraries(), explained(source):
        return fetch(source, weights=False)


def load_scheduler(model: str, **where: Any) -> Any:
    """The scheduler that the model ships with, without its weights; `where` as `config_folder` takes it."""
    from nullbooth_cli.model.scheduler import model_scheduler

    folder = config_folder(model, **where)
    with quiet_libraries(), explained(Source(model), folder):
        return model_scheduler(folder)


def load_pipeline(
    model: str,
    *,
    revision: str | None,
    variant: str | None,
    dtype: str,
    local_files_only: bool,
    device: torch.device,
    allow_pickle: bool = False,
    pipeline_config: str | None = None,
    model_cpu_offload: bool = False,
    attention_slicing: bool = False,
) -> Any:
    """The model's own pipeline, in evaluation mode and frozen, on the device, or moving there part by part as it is needed.

    Raises ConfigError if it cannot be loaded, or not whole; ResourceError for an offload without an accelerator.
    """
    if model_cpu_offload and device.type == "cpu":
        raise ResourceError(
            "model_cpu_offload keeps a model in host memory until an accelerator needs it, and this run is on the CPU",
            "set model_cpu_offload to false, or choose a --device such as cuda",
        )
    source = Source(model, revision, variant, local_files_only, allow_pickle, pipeline_config)
    load = _from_file if source.is_single_file else _from_folder
    with warnings_heard() as heard:
        pipe = load(source, getattr(torch, dtype))
    _require_whole(source, pipe, heard)
    if attention_slicing:
        pipe.enable_attention_slicing()
    if model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return freeze(pipe)


def _from_folder(source: Source, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    with explained(source):
        folder = fetch(source)
    with explained(source, folder):
        return DiffusionPipeline.from_pretrained(
            folder,
            variant=source.variant,
            dtype=dtype,
            use_safetensors=None if source.allow_pickle else True,
            local_files_only=True,
        )


def _from_file(source: Source, dtype: torch.dtype) -> Any:
    """A single file as the pipeline that the folder completing it is of."""
    import diffusers

    folder, file = _completing_folder(source), source.located()
    with explained(source, file):
        pipeline = getattr(diffusers, diffusers.DiffusionPipeline.load_config(folder)["_class_name"])
        return pipeline.from_single_file(file, config=folder, dtype=dtype, local_files_only=True)


def _completing_folder(source: Source) -> str:
    with quiet_libraries(), explained(source, source.located()):
        base = completing(source)
    with quiet_libraries(), explained(base, completes=source.model):
        return fetch(base, weights=False)


def _require_whole(source: Source, pipe: Any, heard: Iterable[str]) -> None:
    """Raise ConfigError for weights or words that were not there: the libraries warn at most, and go on with random weights."""
    missing = [
        *(name for text in heard if "newly initialized" in text for name in _MISSING.findall(text) or [text]),
        *(
            f"{part}.{name}"
            for part, module in pipe.components.items()
            if isinstance(module, nn.Module)
            for name, parameter in module.named_parameters()
            if parameter.is_meta
        ),
    ]
    hint = "get the model again, or save it again with save_pretrained of the pipeline, adapters fused or unloaded"
    if missing:
        raise ConfigError(f"{source.model} is not whole: weights are missing, such as {missing[0]}", hint)
    for part, tokenizer in tokenizers_of(pipe).items():
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ConfigError(f"{source.model} is not whole: the vocabulary of its {part} is missing", hint)


def tokenizers_of(pipe: Any) -> dict[str, Any]:
    """The tokenizers of a pipeline, by name."""
    return {name: part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None}


def freeze(pipe: Any) -> Any:
    """Evaluation mode (modules built from a config start in training mode), frozen, no bars. Returns the pipeline."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser_of(pipe: Any) -> nn.Module:
    """The module that is called once per denoising step: `unet` or `transformer`. Raises ConfigError for one that cannot be
    watched, because it was compiled or wrapped whole."""
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            _require_watchable(name, module)
            return module
    raise ConfigError(
        f"{type(pipe).__name__} has neither unet nor transformer", "nullbooth works on text-to-image pipelines of diffusers"
    )


def _require_watchable(name: str, denoiser: nn.Module) -> None:
    # torch.compile(module) wraps it, module.compile() and compile_repeated_blocks() mark it.
    if hasattr(denoiser, "_orig_mod") or any(module._compiled_call_impl is not None for module in denoiser.modules()):
        raise ConfigError(
            f"pipe.{name} is compiled: hooks that are set after the first compiled call never fire, so nothing would be recorded",
            "collect from the pipeline as it was loaded; what is collected serves the compiled one as well",
        )
    if hasattr(denoiser, "get_base_model"):
        raise ConfigError(
            f"pipe.{name} is wrapped in a {type(denoiser).__name__}, which renames its weights",
            f"pipe.{name} = pipe.{name}.get_base_model() keeps the adapters and the names",
        )


def weights_digest(pipe: Any, *, encodes: bool = False) -> str:
    """SHA-256 of every tensor of every module that features depend on, by name; 16 hexadecimal digits.

    The autoencoder is one of them only if it `encodes` images. Cost: one read of the weights, about a second per GB.
    """
    unused = ("safety_checker", "image_encoder") if encodes else ("vae", "safety_checker", "image_encoder")
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, nn.Module) and name not in unused:
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
