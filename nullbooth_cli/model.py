"""Loads the user's pipeline: device, precision, evaluation mode, frozen. And says which weights it holds."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError, ResourceError


def locate(model: str) -> str:
    """The folder or hub id that a config's `model` means. Raises ConfigError for a folder that is not a pipeline."""
    if model == "toy":
        return str(toy.FOLDER)
    path = Path(model).expanduser()
    if path.exists():
        if not (path / "model_index.json").is_file():
            raise ConfigError(
                f"{path} is not a pipeline folder: it has no model_index.json", "a pipeline folder is what save_pretrained writes"
            )
        return str(path)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConfigError(f"no model folder at {path}", "set model to toy, a pipeline folder, or a hub id (owner/name)")
    return model


def pick_device(requested: str | None) -> torch.device:
    """The requested device, or CUDA if there is one, or the CPU. Raises ResourceError naming the devices there are."""
    if requested is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    try:
        device = torch.device(requested)
    except RuntimeError:
        device = torch.device("meta")
    named = f"{device.type}:{device.index or 0}" if device.type == "cuda" else device.type
    if named not in found:
        raise ResourceError(f"no such device: {requested}", f"--device takes one of: {', '.join(found)}")
    return device


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU, what the operating system calls available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _where(revision: str | None, local_files_only: bool) -> dict[str, Any]:
    return {"revision": revision, "local_files_only": local_files_only}


def load_scheduler(model: str, *, revision: str | None, local_files_only: bool) -> Any:
    """The scheduler that the model ships with, without its weights."""
    from nullbooth_cli.schedule import model_scheduler

    _be_quiet()
    name = locate(model)
    try:
        return model_scheduler(name, **_where(revision, local_files_only))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _unloadable(model, error) from error


def load_pipeline(
    model: str, *, revision: str | None, variant: str | None, dtype: str, local_files_only: bool, device: torch.device
) -> Any:
    """The model's own pipeline on the device, in evaluation mode and frozen. Raises ConfigError if it cannot be loaded."""
    from diffusers import DiffusionPipeline

    _be_quiet()
    name = locate(model)
    try:
        pipe = DiffusionPipeline.from_pretrained(
            name, variant=variant, dtype=getattr(torch, dtype), use_safetensors=True, **_where(revision, local_files_only)
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _unloadable(model, error) from error
    return prepare(pipe.to(device))


def prepare(pipe: Any) -> Any:
    """Evaluation mode (modules built from a config start in training mode), frozen, no bars. Returns the pipeline."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser_of(pipe: Any) -> nn.Module:
    """The module that is called once per denoising step: `unet` or `transformer`."""
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            return module
    raise ConfigError(
        f"{type(pipe).__name__} has neither unet nor transformer", "nullbooth works on text-to-image pipelines of diffusers"
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


def _unloadable(model: str, error: Exception) -> ConfigError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"cannot load the model {model}: {first}", "check the name, revision and variant; offline, give a local folder"
    )


def _be_quiet() -> None:
    """diffusers and transformers log to stderr, where progress and errors belong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import diffusers

    # Not even errors: what stops a load is raised as well, and becomes our message.
    diffusers.utils.logging.set_verbosity(logging.CRITICAL)
    diffusers.utils.logging.disable_progress_bar()
