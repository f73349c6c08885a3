"""Pipelines of images whose denoiser is a transformer."""

import inspect
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from tests.support import tiny
from tests.support.zoo import flux_family, gemma_family, newer, qwen_family, sd3_family
from tests.support.zoo.entry import Entry, text_comes_first

PROMPT_FIRST = (True, False)  # pipelines that run the prompt's forward before the empty one
INPUTS = "collect.pipeline_inputs"
TRUE_GUIDANCE = {"true_cfg_scale": 4.0, "negative_prompt": "blurred"}
NO_GUIDANCE = {"collect.guidance_scale": None}  # the class takes none
WHOLE_PATH = {"strength": 1.0}  # from pure noise, as the stored schedule begins
UNPERTURBED = {"collect.cross_attention_layers": ["transformer_blocks.0.attn"]}  # pag_applied_layers has the others
PICTURE, MASK, CONTROL = {"image": "picture.png"}, {"mask_image": "mask.png"}, {"control_image": "picture.png"}
OWN_SIZE = {"use_resolution_binning": False}  # to encode a small picture, not one of 512 or 1024 pixels: it takes less time
CONTROL_MASK = {"control_mask": "mask.png"}


def number_of_tokens(pipe: Any, text: str) -> int:
    return len(pipe.tokenizer(text).input_ids)


def chroma_tokens(pipe: Any, text: str) -> int:
    """One token of padding is attended to."""
    return number_of_tokens(pipe, text) + 1


def sana_tokens(pipe: Any, text: str) -> int:
    """Of the instruction before a prompt, the last tokens are seen beside those of the prompt; the empty prompt has none."""
    if not text:
        return number_of_tokens(pipe, text)
    instruction = "\n".join(inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default)
    return number_of_tokens(pipe, instruction + text) - number_of_tokens(pipe, instruction) + 2


CHROMA = {"attended": text_comes_first(chroma_tokens, text=512, both="single"), "own": PROMPT_FIRST}


def z_image_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_]:
    """Text and image are padded to 32 tokens each, which are attended to; what pads a text to another's length is not."""
    chat = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    num_text = -(-number_of_tokens(pipe, chat) // 32) * 32
    num_image = 0 if "context_refiner" in site.layer else 32
    return np.arange(length) < num_image + num_text


def ernie_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_]:
    """The image's 16 tokens come first; the empty text is one token."""
    return np.arange(length) < 16 + max(1, number_of_tokens(pipe, text))


def lumina_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_] | None:
    """Text is padded before it."""
    return np.arange(length) >= length - number_of_tokens(pipe, text) if site.feature == "k" else None


def lumina2_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_] | None:
    """Text alone is padded to 256 tokens; together with the image it is as long as it is."""
    whole = f"{pipe.system_prompt} <Prompt Start> {text}" if text else ""
    return np.arange(length) < number_of_tokens(pipe, whole) if "context_refiner" in site.layer else None


def krea_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_] | None:
    """Padding stands between the prompt and what follows it; the image of one token comes last."""
    if "layerwise" in site.layer:
        return None
    num_after = len(pipe.tokenizer(pipe.prompt_template_encode_suffix).input_ids) + ("text_fusion" not in site.layer)
    num_prompt = number_of_tokens(pipe, pipe.prompt_template_encode_prefix + text) - pipe.prompt_template_encode_start_idx
    places = np.arange(length)
    return (places < num_prompt) | (places >= length - num_after)


def hunyuan_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_] | None:
    """The image's 64 tokens come first; the text of a second encoder is empty and so padding."""
    if length == 64:
        return None
    template = pipe.prompt_template_encode.format(text)
    num_image = 64 if "single" in site.layer else 0
    return np.arange(length) < num_image + number_of_tokens(pipe, template) - pipe.prompt_template_encode_start_idx


def fibo_tokens(pipe: Any, text: str, site: Site, length: int) -> NDArray[np.bool_] | None:
    """The image is one token, after the text; the empty text is one token as well."""
    is_single = "single" in site.layer
    if not (is_single or site.feature.startswith("add_")):
        return None
    places = np.arange(length)
    return (places < max(1, number_of_tokens(pipe, text))) | (places >= length - is_single)


Z_IMAGE = {"attended": z_image_tokens, "own": PROMPT_FIRST}
SANA = text_comes_first(sana_tokens, text=300)
CROSS_T5 = text_comes_first(number_of_tokens, text=300)

FLUX = {
    "FluxPipeline": Entry(build=tiny.flux),
    "FluxImg2ImgPipeline": Entry(
        build=partial(flux_family.flux_as, "FluxImg2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}
    ),
    "FluxInpaintPipeline": Entry(
        build=partial(flux_family.flux_as, "FluxInpaintPipeline"), settings={INPUTS: PICTURE | MASK | WHOLE_PATH}
    ),
    "FluxFillPipeline": Entry(
        build=partial(flux_family.flux_with_channels, "FluxFillPipeline", 48), settings={INPUTS: PICTURE | MASK}
    ),
    "FluxKontextPipeline": Entry(
        build=partial(flux_family.flux_as, "FluxKontextPipeline"),
        settings={INPUTS: {**PICTURE, "max_area": 256, "_auto_resize": False}},
    ),
    "FluxKontextInpaintPipeline": Entry(
        build=partial(flux_family.flux_as, "FluxKontextInpaintPipeline"),
        settings={INPUTS: {**PICTURE, **MASK, "max_area": 256, "_auto_resize": False}},
    ),
    "FluxControlPipeline": Entry(
        build=partial(flux_family.flux_with_channels, "FluxControlPipeline", 32), settings={INPUTS: CONTROL}
    ),
    "FluxControlImg2ImgPipeline": Entry(
        build=partial(flux_family.flux_with_channels, "FluxControlImg2ImgPipeline", 32),
        settings={INPUTS: PICTURE | CONTROL | WHOLE_PATH},
    ),
    "FluxControlInpaintPipeline": Entry(
        build=partial(flux_family.flux_with_channels, "FluxControlInpaintPipeline", 32),
        settings={INPUTS: PICTURE | MASK | CONTROL | WHOLE_PATH},
    ),
    "FluxControlNetPipeline": Entry(
        build=partial(flux_family.flux_controlnet, "FluxControlNetPipeline"), settings={INPUTS: CONTROL}
    ),
    "FluxControlNetImg2ImgPipeline": Entry(
        build=partial(flux_family.flux_controlnet, "FluxControlNetImg2ImgPipeline"),
        settings={INPUTS: PICTURE | CONTROL | WHOLE_PATH},
    ),
    "FluxControlNetInpaintPipeline": Entry(
        build=partial(flux_family.flux_controlnet, "FluxControlNetInpaintPipeline"),
        settings={INPUTS: PICTURE | MASK | CONTROL | WHOLE_PATH},
    ),
    "Flux2KleinPipeline": Entry(build=flux_family.flux2_klein),
    "Flux2KleinInpaintPipeline": Entry(
        build=partial(flux_family.flux2_klein, "Flux2KleinInpaintPipeline"), settings={INPUTS: PICTURE | MASK | WHOLE_PATH}
    ),
    "Flux2KleinKVPipeline": Entry(build=partial(flux_family.flux2_klein, "Flux2KleinKVPipeline"), settings=NO_GUIDANCE),
    "ChromaPipeline": Entry(build=tiny.chroma, **CHROMA),
    "ChromaImg2ImgPipeline": Entry(
        build=partial(flux_family.chroma_as, "ChromaImg2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}, **CHROMA
    ),
    "BriaPipeline": Entry(build=flux_family.bria),
    "OvisImagePipeline": Entry(build=flux_family.ovis),
}

QWEN = {
    "QwenImagePipeline": Entry(build=tiny.qwen_image, settings={INPUTS: TRUE_GUIDANCE}),
    "QwenImageImg2ImgPipeline": Entry(
        build=partial(qwen_family.qwen_as, "QwenImageImg2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}
    ),
    "QwenImageInpaintPipeline": Entry(
        build=partial(qwen_family.qwen_as, "QwenImageInpaintPipeline"), settings={INPUTS: PICTURE | MASK | WHOLE_PATH}
    ),
    "QwenImageControlNetPipeline": Entry(
        build=partial(qwen_family.qwen_controlnet, "QwenImageControlNetPipeline"), settings={INPUTS: CONTROL}
    ),
    "QwenImageControlNetInpaintPipeline": Entry(
        build=partial(qwen_family.qwen_controlnet, "QwenImageControlNetInpaintPipeline", 4),
        settings={INPUTS: CONTROL | CONTROL_MASK},
    ),
}

SD3 = {
    "StableDiffusion3Pipeline": Entry(build=tiny.sd3),
    "StableDiffusion3Img2ImgPipeline": Entry(
        build=partial(sd3_family.sd3_as, "StableDiffusion3Img2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}
    ),
    "StableDiffusion3InpaintPipeline": Entry(build=sd3_family.sd3_inpaint, settings={INPUTS: PICTURE | MASK | WHOLE_PATH}),
    "StableDiffusion3ControlNetPipeline": Entry(
        build=partial(sd3_family.sd3_controlnet, "StableDiffusion3ControlNetPipeline"), settings={INPUTS: CONTROL}
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": Entry(
        build=partial(sd3_family.sd3_controlnet, "StableDiffusion3ControlNetInpaintingPipeline", 1),
        settings={INPUTS: CONTROL | CONTROL_MASK},
    ),
    "StableDiffusion3PAGPipeline": Entry(build=partial(sd3_family.sd3_as, "StableDiffusion3PAGPipeline"), settings=UNPERTURBED),
    "StableDiffusion3PAGImg2ImgPipeline": Entry(
        build=partial(sd3_family.sd3_as, "StableDiffusion3PAGImg2ImgPipeline"),
        settings={INPUTS: PICTURE | WHOLE_PATH, **UNPERTURBED},
    ),
    "AuraFlowPipeline": Entry(build=sd3_family.auraflow),
    "CogView3PlusPipeline": Entry(build=sd3_family.cogview3),
    "CogView4Pipeline": Entry(build=sd3_family.cogview4, settings={"collect.batch_size": 1}),
    "HunyuanDiTPipeline": Entry(build=sd3_family.hunyuandit),
    "HunyuanDiTControlNetPipeline": Entry(
        build=sd3_family.hunyuandit_controlnet, settings={INPUTS: CONTROL | OWN_SIZE}, size=128
    ),
    "HunyuanDiTPAGPipeline": Entry(build=partial(sd3_family.hunyuandit, "HunyuanDiTPAGPipeline")),
    "HiDreamImagePipeline": Entry(build=sd3_family.hidream),
}

CROSS = {
    "PixArtSigmaPipeline": Entry(build=tiny.pixart, attended=CROSS_T5),
    "PixArtAlphaPipeline": Entry(
        build=partial(sd3_family.pixart_as, "PixArtAlphaPipeline"), attended=text_comes_first(number_of_tokens, text=120)
    ),
    "PixArtSigmaPAGPipeline": Entry(
        build=partial(sd3_family.pixart_as, "PixArtSigmaPAGPipeline"), attended=CROSS_T5, own=(False, True, True)
    ),
    "SanaPipeline": Entry(build=gemma_family.sana, attended=SANA),
    "SanaPAGPipeline": Entry(build=partial(gemma_family.sana, "SanaPAGPipeline"), attended=SANA, own=(False, True, True)),
    "SanaSprintPipeline": Entry(build=gemma_family.sana_sprint, attended=SANA, own=(True,)),
    "SanaSprintImg2ImgPipeline": Entry(
        build=partial(gemma_family.sana_sprint, "SanaSprintImg2ImgPipeline"),
        settings={INPUTS: PICTURE | WHOLE_PATH | OWN_SIZE},
        size=64,
        attended=SANA,
        own=(True,),
    ),
    "SanaControlNetPipeline": Entry(
        build=gemma_family.sana_controlnet, settings={INPUTS: CONTROL | OWN_SIZE}, size=64, attended=SANA
    ),
    "LuminaPipeline": Entry(build=gemma_family.lumina, attended=lumina_tokens, own=PROMPT_FIRST),
}

ONE_STREAM = {
    "Lumina2Pipeline": Entry(build=gemma_family.lumina2, attended=lumina2_tokens, own=PROMPT_FIRST),
    "ZImagePipeline": Entry(build=gemma_family.z_image, **Z_IMAGE),
    "ZImageImg2ImgPipeline": Entry(
        build=partial(gemma_family.z_image, "ZImageImg2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}, **Z_IMAGE
    ),
    "ZImageInpaintPipeline": Entry(
        build=partial(gemma_family.z_image, "ZImageInpaintPipeline"), settings={INPUTS: PICTURE | MASK | WHOLE_PATH}, **Z_IMAGE
    ),
    "ZImageControlNetPipeline": Entry(
        build=partial(gemma_family.z_image_controlnet, "ZImageControlNetPipeline", 4), settings={INPUTS: CONTROL}, **Z_IMAGE
    ),
    "ZImageControlNetInpaintPipeline": Entry(
        build=partial(gemma_family.z_image_controlnet, "ZImageControlNetInpaintPipeline", 9),
        settings={INPUTS: PICTURE | MASK | CONTROL},
        **Z_IMAGE,
    ),
}

NEWER = {
    "Flux2Pipeline": Entry(build=newer.flux2),
    "LongCatImagePipeline": Entry(build=newer.longcat, settings={INPUTS: {"enable_prompt_rewrite": False}}),
    "Krea2Pipeline": Entry(build=newer.krea2, attended=krea_tokens, own=PROMPT_FIRST),
    "ErnieImagePipeline": Entry(build=newer.ernie, attended=ernie_tokens),
    "HunyuanImagePipeline": Entry(build=newer.hunyuan_image, attended=hunyuan_tokens, own=(True,), settings=NO_GUIDANCE),
    "BriaFiboPipeline": Entry(build=newer.bria_fibo, attended=fibo_tokens),
}

REFUSED = {
    "CogView4ControlPipeline": Entry(refused="noise to its control image that no seed sets"),
    "ChromaInpaintPipeline": Entry(refused="asks its transformer for guidance_embeds, which Chroma's has not"),
    "FluxPriorReduxPipeline": Entry(refused="only converts what another pipeline draws"),
    "VisualClozeGenerationPipeline": Entry(refused="takes no prompt"),
    "VisualClozePipeline": Entry(refused="takes no prompt"),
}

ENTRIES: dict[str, Entry] = {**FLUX, **QWEN, **SD3, **CROSS, **ONE_STREAM, **NEWER, **REFUSED}
