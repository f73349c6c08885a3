"""Arguments of kohya's scripts under which a constraint would not hold, or would hold for other inputs than those collected.

A store is collected with the text encoding of diffusers' pipelines: no clip_skip, prompts of one length, no weights, no masks.
Recorded inputs describe a model that is used in the same way.
"""

from collections.abc import Mapping
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.integrations.kohya_models import KohyaModel

_CLIP_TOKENS = 75  # of a prompt, without the marks around it
_T5_OF_SCHNELL = 256  # kohya's default there; elsewhere in Flux it is 512 (flux_train_network.py, get_tokenize_strategy)


def require_no_ggpo(network_args: Mapping[str, Any]) -> None:
    """Raise ConfigError for GGPO, which adds noise to outputs that is not A P."""
    if asked := [name for name in ("ggpo_beta", "ggpo_sigma") if network_args.get(name) is not None]:
        raise ConfigError(f"{asked[0]} adds noise to the outputs on every input, the collected ones too", f"leave {asked[0]} out")


def require_same_inputs(args: Any, model: KohyaModel, unet: Any) -> None:
    """Raise ConfigError, with everything that is wrong, for arguments that the constraint does not allow."""
    wrong = [*_beside_the_constraint(args), *_other_text(args, model, unet)]
    if wrong:
        lines = "".join(f"\n  {what}" for what, _ in wrong)
        raise ConfigError(f"the constraint does not hold under these arguments:{lines}", "; ".join(how for _, how in wrong))


def _beside_the_constraint(args: Any) -> list[tuple[str, str]]:
    found = []
    if not _of(args, "network_train_unet_only"):
        what = "a text encoder would train, and with it every input of the model would move"
        found.append((what, "set network_train_unet_only"))
    if _of(args, "network_train_text_encoder_only"):
        found.append(("network_train_text_encoder_only trains nothing that is constrained", "leave it out"))
    if _of(args, "scale_weight_norms"):
        what = f"scale_weight_norms={args.scale_weight_norms} would scale lora_up alone: a constrained lora_down is computed"
        found.append((what, "leave scale_weight_norms out"))
    return found


def _other_text(args: Any, model: KohyaModel, unet: Any) -> list[tuple[str, str]]:
    """Where prompts are encoded otherwise than those of the store."""
    found = []
    if model.pipeline == "StableDiffusionPipeline" and (skip := _of(args, "clip_skip")) not in (None, 1):
        found.append((f"clip_skip is {skip}, and the store was collected without", "leave clip_skip out"))
    if (expected := model.t5_tokens) is None:
        if (length := _of(args, "max_token_length")) not in (None, _CLIP_TOKENS):
            what = f"max_token_length is {length}, and the store has prompts of {_CLIP_TOKENS} tokens"
            found.append((what, "leave max_token_length out"))
        if _of(args, "weighted_captions"):
            found.append(("weighted_captions scales tokens, and the store was collected without", "leave weighted_captions out"))
        return found
    masks = [mask for mask in ("apply_t5_attn_mask", "apply_lg_attn_mask") if _of(args, mask)]
    found += [(f"{mask} hides padding, which the pipeline of the store reads", f"leave {mask} out") for mask in masks]
    length = _of(args, "t5xxl_max_token_length")
    if length is None and model.pipeline == "FluxPipeline" and not unet.params.guidance_embed:
        length = _T5_OF_SCHNELL
    if length not in (None, expected):
        what = f"t5xxl_max_token_length is {length}, and the store has prompts of {expected} tokens of T5"
        found.append((what, f"set t5xxl_max_token_length to {expected}"))
    return found


def _of(args: Any, name: str) -> Any:
    """An argument, None where this script of kohya's does not have it."""
    return getattr(args, name, None)
