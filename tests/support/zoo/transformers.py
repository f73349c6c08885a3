"""Pipelines of images whose denoiser is a transformer."""

import inspect
from functools import partial
from typing import Any

from tests.support import tiny
from tests.support.zoo import flux_family, gemma_family, newer, qwen_family, sd3_family
from tests.support.zoo.entry import Entry, text_comes_first

PROMPT_FIRST = (True, False)  # pipelines that run the prompt's forward before the empty one
INPUTS = "collect.pipeline_inputs"
TRUE_GUIDANCE = {"true_cfg_scale": 4.0, "negative_prompt": "blurred"}
ALONE = {"collect.batch_size": 1}  # its text is padded to the longest of a batch, and padding is attended to
WHOLE_PATH = {"strength": 1.0}  # from pure noise, as the stored schedule begins
UNPERTURBED = {"collect.cross_attention_layers": ["transformer_blocks.0.attn"]}  # pag_applied_layers has the others
PICTURE, MASK, CONTROL = {"image": "picture.png"}, {"mask_image": "mask.png"}, {"control_image": "picture.png"}


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
    "Flux2KleinKVPipeline": Entry(build=partial(flux_family.flux2_klein, "Flux2KleinKVPipeline")),
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
    "QwenImageControlNetPipeline": Entry(build=qwen_family.qwen_controlnet, settings={INPUTS: CONTROL}),
}

SD3 = {
    "StableDiffusion3Pipeline": Entry(build=tiny.sd3),
    "StableDiffusion3Img2ImgPipeline": Entry(
        build=partial(sd3_family.sd3_as, "StableDiffusion3Img2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}
    ),
    "StableDiffusion3InpaintPipeline": Entry(build=sd3_family.sd3_inpaint, settings={INPUTS: PICTURE | MASK | WHOLE_PATH}),
    "StableDiffusion3ControlNetPipeline": Entry(build=sd3_family.sd3_controlnet, settings={INPUTS: CONTROL}),
    "StableDiffusion3PAGPipeline": Entry(build=partial(sd3_family.sd3_as, "StableDiffusion3PAGPipeline"), settings=UNPERTURBED),
    "StableDiffusion3PAGImg2ImgPipeline": Entry(
        build=partial(sd3_family.sd3_as, "StableDiffusion3PAGImg2ImgPipeline"),
        settings={INPUTS: PICTURE | WHOLE_PATH, **UNPERTURBED},
    ),
    "AuraFlowPipeline": Entry(build=sd3_family.auraflow),
    "CogView3PlusPipeline": Entry(build=sd3_family.cogview3),
    "CogView4Pipeline": Entry(build=sd3_family.cogview4, settings=ALONE),
    "CogView4ControlPipeline": Entry(
        build=partial(sd3_family.cogview4, "CogView4ControlPipeline", 8), settings={INPUTS: CONTROL, **ALONE}
    ),
    "HunyuanDiTPipeline": Entry(build=sd3_family.hunyuandit),
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
        settings={INPUTS: PICTURE | WHOLE_PATH},
        attended=SANA,
        own=(True,),
    ),
    "SanaControlNetPipeline": Entry(build=gemma_family.sana_controlnet, settings={INPUTS: CONTROL}, attended=SANA),
    "LuminaPipeline": Entry(build=gemma_family.lumina, attended=text_comes_first(number_of_tokens, text=256), own=PROMPT_FIRST),
}

ONE_STREAM = {
    "Lumina2Pipeline": Entry(build=gemma_family.lumina2),
    "ZImagePipeline": Entry(build=gemma_family.z_image),
    "ZImageImg2ImgPipeline": Entry(
        build=partial(gemma_family.z_image, "ZImageImg2ImgPipeline"), settings={INPUTS: PICTURE | WHOLE_PATH}
    ),
    "ZImageInpaintPipeline": Entry(
        build=partial(gemma_family.z_image, "ZImageInpaintPipeline"), settings={INPUTS: PICTURE | MASK | WHOLE_PATH}
    ),
}

NEWER = {
    "Flux2Pipeline": Entry(build=newer.flux2),
    "LongCatImagePipeline": Entry(build=newer.longcat, settings={INPUTS: {"enable_prompt_rewrite": False}}),
    "Krea2Pipeline": Entry(build=newer.krea2),
    "ErnieImagePipeline": Entry(build=newer.ernie),
    "HunyuanImagePipeline": Entry(build=newer.hunyuan_image),
    "BriaFiboPipeline": Entry(build=newer.bria_fibo),
    "Ideogram4Pipeline": Entry(build=newer.ideogram4, settings={INPUTS: {"guidance_schedule": None}}),
}

# Entries that wait for a part of the library that is being written.
WAITING = {
    *(name for family in (FLUX, QWEN, SD3, CROSS, ONE_STREAM, NEWER) for name in family if INPUTS in family[name].settings),
    *("Flux2KleinKVPipeline", "ChromaPipeline", "CogView4Pipeline", "HunyuanDiTPipeline", "HunyuanDiTPAGPipeline"),
    *("SanaSprintPipeline", "LuminaPipeline", "Lumina2Pipeline", "ZImagePipeline", "ErnieImagePipeline"),
    *("HunyuanImagePipeline", "BriaFiboPipeline", "Krea2Pipeline"),
}
ENTRIES: dict[str, Entry] = {
    name: entry for family in (FLUX, QWEN, SD3, CROSS, ONE_STREAM, NEWER) for name, entry in family.items() if name not in WAITING
}
