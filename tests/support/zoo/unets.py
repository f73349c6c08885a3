"""Pipelines of images whose denoiser is a U-Net: a class, its settings, and the parts in which it differs from its family."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffusers
import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from tests.support import tiny
from tests.support.zoo import unet_parts as parts
from tests.support.zoo.entry import Entry

# What a class takes beside the prompt, as a user would set it.
IMAGE = {"image": "picture.png"}
FROM_IMAGE = {**IMAGE, "strength": 1.0}
MASKED = {**FROM_IMAGE, "mask_image": "mask.png"}
CONTROLLED = {"control_image": "picture.png"}


def pipeline(name: str, base: Callable[[], Any], changes: Mapping[str, Callable[[], Any]]) -> Any:
    """A pipeline of the class from the parts of another, with changes; parts that it needs and nobody has are None."""
    made = getattr(diffusers, name)
    takes = inspect.signature(made.__init__).parameters
    nothing = {key: None for key, each in takes.items() if key != "self" and each.default is each.empty}
    known = {**nothing, **base().components, **{key: make() for key, make in changes.items()}}
    switched_off = dict.fromkeys(("requires_safety_checker", "add_watermarker"), False)
    return made(**{key: value for key, value in {**switched_off, **known}.items() if key in takes})


def entry(base: Callable[[], Any], name: str, inputs: Mapping[str, Any], how: Mapping[str, Any], changes: Any) -> Entry:
    settings = {**how.get("settings", {}), **({"collect.pipeline_inputs": dict(inputs)} if inputs else {})}
    return Entry(build=partial(pipeline, name, base, changes), **{"layers": LAYERS, **how, "settings": settings})


def family(base: Callable[[], Any], classes: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], Any]]) -> dict[str, Entry]:
    return {name: entry(base, name, *row) for name, row in classes.items()}


LAYERS = r"\.attn2$"  # and no others of a U-Net
NO_SIZE = {"size": None}  # the image has it
# By class: what it takes beside the prompt, how its entry differs, and its own parts.
SD1: dict[str, Any] = {
    "StableDiffusionImg2ImgPipeline": (FROM_IMAGE, NO_SIZE, {}),
    "StableDiffusionInpaintPipeline": (MASKED, {}, {"unet": partial(tiny.unet, in_channels=9)}),
    "StableDiffusionDepth2ImgPipeline": (FROM_IMAGE, NO_SIZE, {"unet": partial(tiny.unet, in_channels=5), **parts.DEPTH}),
    "StableDiffusionUpscalePipeline": (IMAGE, NO_SIZE, parts.UPSCALE),
    "StableDiffusionLatentUpscalePipeline": (IMAGE, NO_SIZE, parts.LATENT_UPSCALE),
    "StableDiffusionInstructPix2PixPipeline": (IMAGE, NO_SIZE, {"unet": partial(tiny.unet, in_channels=8)}),
    "StableDiffusionSAGPipeline": ({}, {}, {}),
    "StableDiffusionLDM3DPipeline": ({}, {"output": "np"}, {"vae": partial(parts.vae, in_channels=6, out_channels=6)}),
    "StableDiffusionPAGPipeline": ({}, {}, {}),
    "StableDiffusionPAGImg2ImgPipeline": (FROM_IMAGE, NO_SIZE, {}),
    "StableDiffusionPAGInpaintPipeline": (MASKED, {}, {}),
    "StableDiffusionControlNetPipeline": (IMAGE, {}, parts.CONTROL),
    "StableDiffusionControlNetImg2ImgPipeline": ({**FROM_IMAGE, **CONTROLLED}, {}, parts.CONTROL),
    "StableDiffusionControlNetInpaintPipeline": ({**MASKED, **CONTROLLED}, {}, parts.CONTROL),
    "StableDiffusionControlNetPAGPipeline": (IMAGE, {}, parts.CONTROL),
    "StableDiffusionControlNetPAGInpaintPipeline": ({**MASKED, **CONTROLLED}, {}, parts.CONTROL),
    "StableDiffusionControlNetXSPipeline": (IMAGE, {}, parts.CONTROL_XS),
    "StableDiffusionAdapterPipeline": (IMAGE, {}, parts.ADAPTER),
    "StableDiffusionGLIGENPipeline": (parts.GLIGEN_INPUTS, {}, parts.GLIGEN),
    "StableDiffusionGLIGENTextImagePipeline": (
        {**parts.GLIGEN_INPUTS, "gligen_images": ["picture.png"]},
        {},
        parts.GLIGEN_IMAGES,
    ),
    "SemanticStableDiffusionPipeline": ({}, {}, {}),
    "StableDiffusionPipelineSafe": ({}, {}, {}),
    "StableDiffusionInpaintPipelineLegacy": (MASKED, NO_SIZE, parts.SAFETY),
    "StableUnCLIPPipeline": ({}, {}, parts.STABLE_UNCLIP),
    "StableUnCLIPImg2ImgPipeline": (IMAGE, {}, parts.STABLE_UNCLIP),
    "LDMTextToImagePipeline": ({}, {}, parts.LDM),
}
SDXL: dict[str, Any] = {
    "StableDiffusionXLImg2ImgPipeline": (FROM_IMAGE, NO_SIZE, parts.REFINER),
    "StableDiffusionXLInpaintPipeline": (MASKED, {}, {}),
    "StableDiffusionXLInstructPix2PixPipeline": (IMAGE, {}, {"unet": partial(parts.unet_xl, in_channels=8)}),
    "StableDiffusionXLPAGPipeline": ({}, {}, {}),
    "StableDiffusionXLPAGImg2ImgPipeline": (FROM_IMAGE, NO_SIZE, {}),
    "StableDiffusionXLPAGInpaintPipeline": (MASKED, {}, {}),
    "StableDiffusionXLControlNetPipeline": (IMAGE, {}, parts.CONTROL_XL),
    "StableDiffusionXLControlNetImg2ImgPipeline": ({**FROM_IMAGE, **CONTROLLED}, {}, parts.CONTROL_XL),
    "StableDiffusionXLControlNetInpaintPipeline": ({**MASKED, **CONTROLLED}, {}, parts.CONTROL_XL),
    "StableDiffusionXLControlNetPAGPipeline": (IMAGE, {}, parts.CONTROL_XL),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": ({**FROM_IMAGE, **CONTROLLED}, {}, parts.CONTROL_XL),
    "StableDiffusionXLControlNetUnionPipeline": ({**CONTROLLED, "control_mode": 0}, {}, parts.CONTROL_UNION),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": ({**FROM_IMAGE, **CONTROLLED, "control_mode": 0}, {}, parts.CONTROL_UNION),
    "StableDiffusionXLControlNetUnionInpaintPipeline": ({**MASKED, **CONTROLLED, "control_mode": 0}, {}, parts.CONTROL_UNION),
    "StableDiffusionXLControlNetXSPipeline": (IMAGE, {}, parts.CONTROL_XS_XL),
    "StableDiffusionXLAdapterPipeline": (IMAGE, {}, parts.ADAPTER_XL),
}
# By class: the part that diffusers does not find.
NOT_FOUND = {
    "AltDiffusionPipeline": "text_encoder",
    "AltDiffusionImg2ImgPipeline": "text_encoder",
    "BlipDiffusionPipeline": "text_encoder",
    "BlipDiffusionControlNetPipeline": "text_encoder",
    "UnCLIPPipeline": "text_proj",
    "VersatileDiffusionDualGuidedPipeline": "text_unet",
    "VersatileDiffusionTextToImagePipeline": "text_unet",
}


def dream_lite_attended(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_] | None:
    """The empty prompt is padded to the length of the other in the same forward."""
    if site.feature != "k":
        return None
    said = pipe.prompt_template_encode_generate.format(f"[Generate]: {text}" if text else "")
    return np.arange(length) < len(pipe.tokenizer(said).input_ids) - pipe.prompt_template_encode_generate_start_idx


DREAM_LITE = {"settings": {"collect.batch_size": 1}, "attended": dream_lite_attended}
ENTRIES: dict[str, Entry] = {
    "StableDiffusionPipeline": Entry(build=tiny.sd1, layers=LAYERS),
    "LatentConsistencyModelPipeline": Entry(build=tiny.lcm, layers=LAYERS),
    "StableDiffusionXLPipeline": Entry(build=tiny.sdxl, layers=LAYERS),
    **{
        name: Entry(refused=f"no longer finds the class of {part}", note=f"diffusers no longer finds the class of its {part}")
        for name, part in NOT_FOUND.items()
    },
    **family(tiny.sd1, SD1),
    **family(tiny.lcm, {"LatentConsistencyModelImg2ImgPipeline": (FROM_IMAGE, NO_SIZE, {})}),
    **family(tiny.sdxl, SDXL),
    **family(
        tiny.sdxl,
        {
            "DreamLitePipeline": ({}, DREAM_LITE, parts.DREAM_LITE),
            "DreamLiteMobilePipeline": ({}, {**DREAM_LITE, "own": (True,)}, parts.DREAM_LITE),
        },
    ),
}
