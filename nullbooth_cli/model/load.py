"""Loads the user's pipeline: device, precision, evaluation mode, frozen. Digests its weights.

1. `config_folder()`, `load_scheduler()` and `load_tokenizers()` need the config files of a model (`Source`), not its weights.
2. `load_pipeline()` loads the whole model.
"""

import hashlib
import re
import threading
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.model.load_errors import explained
from nullbooth_cli.model.pipeline_call import class_named
from nullbooth_cli.model.pipeline_classes import needed_inputs
from nullbooth_cli.model.pipeline_folder import read_pipeline_folder, require_latents_alone
from nullbooth_cli.model.protocols import Pipeline, Scheduler, Tokenizer, config_of
from nullbooth_cli.model.quiet import collected_warnings, quiet_libraries, without_future_warnings
from nullbooth_cli.model.sources import Source, completing, fetch
from nullbooth_cli.model.words import encoders_in, tokenizer_of

# One model is loaded at a time: the libraries replace functions of torch meanwhile, for the whole process (accelerate puts every
# new parameter on the meta device), so that of two loads at once both may end without weights.
ONE_LOAD = threading.RLock()
# The names of weights in the two libraries' warnings: a column of a table, or a list.
_MISSING = re.compile(r"\S+(?= +\| MISSING)|(?<=')\S+(?=')")


def config_folder(source: Source) -> str:
    """The folder with the config files of a model; weights are not fetched. Raises ConfigError if they cannot be had or used."""
    if source.is_single_file:
        folder = _completing_folder(source)
    else:
        with quiet_libraries(), explained(source):
            folder = fetch(source, weights=False)
    read_pipeline_folder(folder, weights=False)
    return folder


def load_class(source: Source) -> Any:
    """The pipeline class of a model. Raises ModelError for one that cannot be used, ConfigError for one that is not there."""
    return class_named(read_pipeline_folder(config_folder(source), weights=False).class_name)


def load_scheduler(source: Source) -> Scheduler:
    """The scheduler that a model's pipeline has once it is loaded, without weights."""
    from nullbooth_cli.model.scheduler import model_scheduler

    folder = config_folder(source)
    with ONE_LOAD, quiet_libraries(), without_future_warnings(), explained(source, folder):
        scheduler: Scheduler = model_scheduler(folder)
        return scheduler


def load_tokenizers(source: Source) -> dict[str, Tokenizer]:
    """The tokenizers of a model's text encoders that have a table of words, by the keys of `encoders_in`, without weights."""
    import transformers

    folder = config_folder(source)
    parts = read_pipeline_folder(folder, weights=False).parts
    found: dict[str, Tokenizer] = {}
    with quiet_libraries(), explained(source, folder):
        for key, encoder in encoders_in(parts).items():
            name = tokenizer_of(encoder)
            found[key] = getattr(transformers, parts[name]).from_pretrained(folder, subfolder=name, local_files_only=True)
    return found


def load_pipeline(
    model: str,
    *,
    dtype: str,
    device: torch.device,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    pipeline_config: str | None = None,
    model_cpu_offload: bool = False,
    attention_slicing: bool = False,
    in_float32: Collection[str] = (),
) -> Pipeline:
    """The model's own pipeline, in evaluation mode and frozen, on the device; offloaded parts move there when they are needed.

    The parts named in `in_float32` are that, whatever `dtype` the others have.

    Raises ConfigError if it cannot be loaded, or if parts of it are missing; ResourceError for an offload without an accelerator.
    Threads wait for each other.
    """
    if model_cpu_offload and device.type == "cpu":
        raise ResourceError(
            "model_cpu_offload keeps a model in host memory until an accelerator needs it, and this run is on the CPU",
            "set model_cpu_offload to false, or set the device to an accelerator such as cuda",
        )
    source = Source(
        model,
        revision=revision,
        variant=variant,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
        pipeline_config=pipeline_config,
    )
    load = _from_file if source.is_single_file else _from_folder
    with ONE_LOAD, collected_warnings() as heard:
        pipe = load(source, getattr(torch, dtype), in_float32)
    _require_whole(source, pipe, heard)
    if attention_slicing:
        pipe.enable_attention_slicing()
    if model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return freeze(pipe)


def _from_folder(source: Source, dtype: torch.dtype, in_float32: Collection[str]) -> Pipeline:
    with explained(source):
        folder = fetch(source)
    found = read_pipeline_folder(folder, weights=True)
    with explained(source, folder), without_future_warnings():
        pipe: Pipeline = class_named(found.class_name).from_pretrained(
            folder,
            **dict.fromkeys(found.left_out),
            variant=source.variant,
            dtype={"default": dtype, **dict.fromkeys(in_float32, torch.float32)} if in_float32 else dtype,
            use_safetensors=None if source.allow_pickle else True,
            local_files_only=True,
        )
        return pipe


def _from_file(source: Source, dtype: torch.dtype, in_float32: Collection[str]) -> Pipeline:
    """A single file's weights, in the pipeline class of the folder that completes it.

    With parts in float32, all are loaded in it: diffusers takes one dtype here.
    """
    folder, file = _completing_folder(source), source.located()
    with explained(source, file):
        found = read_pipeline_folder(folder, weights=False)
        pipe: Pipeline = class_named(found.class_name).from_single_file(
            file, config=folder, dtype=torch.float32 if in_float32 else dtype, local_files_only=True
        )
    for name, part in pipe.components.items() if in_float32 else ():
        if isinstance(part, nn.Module) and name not in in_float32:
            part.to(dtype)
    if hasattr(pipe, "unet") and hasattr(pipe, "vae") and not needed_inputs(found.class_name):
        unet, vae = config_of(pipe.unet), config_of(pipe.vae)
        require_latents_alone(f"the U-Net of {file}", unet.get("in_channels"), vae.get("latent_channels"))
    return pipe


def _completing_folder(source: Source) -> str:
    with quiet_libraries():
        with explained(source, source.located()):
            base = completing(source)
        with explained(base, completes=source.model):
            return fetch(base, weights=False)


def _require_whole(source: Source, pipe: Pipeline, heard: Iterable[str]) -> None:
    """Raise ConfigError for missing weights or words: the libraries warn at most, and continue with random weights."""
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


def tokenizers_of(pipe: Pipeline) -> dict[str, Tokenizer]:
    """The tokenizers of a pipeline, by name."""
    return {name: part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None}


def freeze(pipe: Pipeline) -> Pipeline:
    """Put a pipeline into evaluation mode, freeze it, and hide its bars. Returns it. (Modules start in training mode.)"""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def weights_digest(pipe: Pipeline, *, encodes: bool = False) -> str:
    """SHA-256 of every tensor of every module that features depend on, by name; 16 hexadecimal digits.

    The autoencoder counts only if it `encodes` images. Cost: one read of the weights, about a second per GB.
    """
    unused = ("safety_checker", "image_encoder") if encodes else ("vae", "safety_checker", "image_encoder")
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, nn.Module) and name not in unused:
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
