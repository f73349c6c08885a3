"""The modules that a LoRA changes: by default in each trainer, and what a store has to record to protect them.

    default_modules(pipe.unet, "StableDiffusionPipeline")["kohya"]      # 192 modules, each the weights that it changes
    recorded_by("mid_block.attentions.0.proj_in.weight", (64, 64))      # "proj_in", a word of linear_layers

The defaults are those of kohya-ss/sd-scripts (`networks/lora*.py`), the LoRA scripts of diffusers (`examples/dreambooth`), PEFT's
`target_modules="all-linear"`, and ostris/ai-toolkit (`toolkit/lora_special.py`, with `transformer_only`), as of 2026.
"""

from math import prod

from torch import nn

from nullbooth_cli.datatypes import ATTENTION_FEATURES, split_weight
from nullbooth_cli.model.kohya_names import PIPELINES, kohya_modules
from nullbooth_cli.model.projections import ATTN1, SHORTHANDS

CONVOLUTION = "convolution"  # of several pixels, which nothing records
NORM = "norm"  # or another parameter that multiplies no vector of inputs
_SELF_ATTENTION = ("StableDiffusion3Pipeline",)  # pipelines whose attn2 does not see the text
_OF_JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_JOINT = tuple(f"attn.{name}" for name in _OF_JOINT)
_OF_DIFFUSERS = {
    "StableDiffusionPipeline": ("to_k", "to_q", "to_v", "to_out.0"),
    "StableDiffusionXLPipeline": ("to_k", "to_q", "to_v", "to_out.0"),
    "StableDiffusion3Pipeline": _JOINT,
    "FluxPipeline": (*_JOINT, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
}
Modules = tuple[tuple[str, ...], ...]


def recorded_by(weight: str, shape: tuple[int, ...], pipeline_class: str, *, sees_text: bool | None = None) -> str:
    """What records the input of a weight: a word of `linear_layers`, a feature of attention to text (`attn2 k`), or nothing yet.

    `shape` is that of the weight. "convolution" is one of several pixels, "norm" a parameter that is no linear map; "linear" any
    map that has no word, only its name. `sees_text`: whether an attention layer attends to text; None to go by its name.
    """
    if len(shape) < 2 or not weight.endswith(".weight"):
        return NORM
    layer, feature = split_weight(weight)
    if prod(shape[2:]) > 1:
        return CONVOLUTION
    if feature in ATTENTION_FEATURES.values():
        name = layer.rpartition(".")[2]
        by_name = name != "attn1" and not (name == "attn2" and pipeline_class in _SELF_ATTENTION)
        return ATTN1 if not (by_name if sees_text is None else sees_text) else f"{name} {feature}"
    return next((word for word, features in SHORTHANDS.items() if feature in features), feature)


def default_modules(denoiser: nn.Module, pipeline_class: str) -> dict[str, Modules]:
    """The modules that each trainer's LoRA changes by default, as the weights of each; a fused module has several.

    A trainer without a LoRA for this pipeline is left out.
    """
    linear = {path for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    pointwise = {path for path, module in denoiser.named_modules() if isinstance(module, nn.Conv2d) and _is_pointwise(module)}
    names = [name for name, _ in denoiser.named_modules() if name in linear | pointwise]
    in_blocks = [name for name in names if "attentions." in name or "transformer_blocks." in name]
    is_unet = any("attentions." in name for name in names)
    found: dict[str, Modules] = {}
    if endings := _OF_DIFFUSERS.get(pipeline_class):
        found["diffusers"] = _alone([name for name in names if name.endswith(tuple(f".{each}" for each in endings))])
    if pipeline_class in PIPELINES:
        weights = [f"{name}.weight" for name in in_blocks]
        found["kohya"] = tuple(dict.fromkeys(kohya_modules(weights, pipeline_class).values()))
    found["ai-toolkit"] = _alone(names if is_unet else in_blocks)
    found["PEFT"] = _alone([name for name in names if name in linear])
    return found


def _alone(names: list[str]) -> Modules:
    return tuple((f"{name}.weight",) for name in names)


def _is_pointwise(module: nn.Conv2d) -> bool:
    return module.kernel_size == (1, 1)
