"""The denoisers of a pipeline, by the prefix that the names of their weights have in a store.

The main one has no prefix. A second one, such as that of Wan 2.2 for the later steps, has the name of its part: `transformer_2.`.
"""

from typing import Any

from torch import nn

from nullbooth_cli.datatypes import SECOND_DENOISERS
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.protocols import Pipeline

MAIN_PARTS = ("unet", "transformer", "decoder", "prior")  # the first of these that a pipeline has


def denoisers_of(pipe: Pipeline) -> dict[str, nn.Module]:
    """The modules that are called while the pipeline's scheduler steps, by prefix: "" is the main one.

    Raises ModelError if there is none, or if one cannot be hooked because it was compiled or wrapped as a whole.
    """
    found = {"": denoiser_of(pipe)}
    for part in SECOND_DENOISERS:
        if isinstance(module := getattr(pipe, part, None), nn.Module):
            _require_hookable(part, module)
            found[f"{part}."] = module
    return found


def denoiser_weights(pipe: Pipeline) -> dict[str, Any]:
    """The weights of all denoisers, not copied, by their names in a store."""
    return {
        f"{prefix}{name}": tensor for prefix, each in denoisers_of(pipe).items() for name, tensor in each.state_dict().items()
    }


def denoiser_of(pipe: Pipeline) -> nn.Module:
    """The main denoiser. Raises ModelError if there is none, or if it cannot be hooked."""
    for name in MAIN_PARTS:
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            _require_hookable(name, module)
            return module
    raise ModelError(
        f"{type(pipe).__name__} has none of {', '.join(MAIN_PARTS)}", "set model to a text-to-image pipeline of diffusers"
    )


def _require_hookable(name: str, denoiser: nn.Module) -> None:
    # torch.compile(module) wraps it, module.compile() and compile_repeated_blocks() mark it.
    if hasattr(denoiser, "_orig_mod") or any(module._compiled_call_impl is not None for module in denoiser.modules()):
        raise ModelError(
            f"pipe.{name} is compiled: hooks that are set after the first compiled call never fire, so nothing would be recorded",
            "collect from the pipeline as it was loaded; the projectors serve the compiled one as well",
        )
    if hasattr(denoiser, "get_base_model"):
        raise ModelError(
            f"pipe.{name} is wrapped in a {type(denoiser).__name__}, which renames its weights",
            f"unwrap it with pipe.{name} = pipe.{name}.get_base_model(), which preserves the adapters and the names",
        )
