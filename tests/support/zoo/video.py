"""Pipelines of video, and those with several denoisers or stages."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site
from tests.support.zoo import stages, video_language, video_transformers, video_unets, wan_family
from tests.support.zoo.entry import Attended, Entry, text_comes_first

INPUTS = "collect.pipeline_inputs"
PROMPT_FIRST = (True, False)  # pipelines that run the prompt's forward before the empty one
GUIDER = {"collect.guidance_scale": 7.5}  # not set: guidance is a part of the pipeline
ALONE = {"collect.batch_size": 1}  # its pictures, or its generators, are for one prompt
FRAMES = {"num_frames": 5}
FILM = ["picture.png"] * 5
PICTURE, MASK = {"image": "picture.png"}, {"mask_image": "mask.png"}


def number_of_tokens(pipe: Any, text: str) -> int:
    return len(pipe.tokenizer(text).input_ids)


def kandinsky3_tokens(pipe: Any, text: str) -> int:
    """Of the empty prompt nothing is attended to."""
    return number_of_tokens(pipe, text) if text else 0


def hunyuan_tokens(pipe: Any, text: str) -> int:
    """Those after the instruction before a prompt."""
    return len(pipe.tokenizer(DEFAULT_PROMPT_TEMPLATE["template"].format(text)).input_ids) - DEFAULT_PROMPT_TEMPLATE["crop_start"]


def hunyuan15_tokens(pipe: Any, text: str) -> int:
    """As above; glyphs, of which there are none without quotes, and the image come behind them."""
    spoken = [{"role": "system", "content": pipe.system_message}, {"role": "user", "content": text or " "}]
    said = pipe.tokenizer.apply_chat_template(spoken, add_generation_prompt=True, tokenize=False)
    return len(pipe.tokenizer(said).input_ids) - pipe.prompt_template_encode_start_idx


def text_comes_last(num_attended: Callable[[Any, str], int], *, text: int) -> Attended:
    """Of the last `text` tokens the first ones are attended; in single blocks, the image precedes them."""

    def attended(pipe: Any, prompt: str, site: Site, length: int) -> NDArray[np.bool_] | None:
        if not (site.feature.startswith("add_") or "refiner" in site.layer or "single" in site.layer):
            return None
        return np.arange(length) - max(length - text, 0) < num_attended(pipe, prompt)

    return attended


def t5_first(text: int) -> Any:
    return text_comes_first(number_of_tokens, text=text)


PRIOR = text_comes_first(number_of_tokens, text=77, both="attn1")

OF_WAN = {
    "WanPipeline": Entry(build=wan_family.wan22, settings={INPUTS: FRAMES}, own=PROMPT_FIRST),
    "WanVideoToVideoPipeline": Entry(
        build=wan_family.wan_video_to_video, settings={INPUTS: {"video": FILM, "strength": 1.0}}, own=PROMPT_FIRST, output="pt"
    ),
    "WanVACEPipeline": Entry(build=wan_family.wan_vace, settings={INPUTS: FRAMES, **ALONE}, own=PROMPT_FIRST),
    "WanImageToVideoPipeline": Entry(build=wan_family.wan_image_to_video, settings={INPUTS: FRAMES | PICTURE}, own=PROMPT_FIRST),
    "SkyReelsV2Pipeline": Entry(build=wan_family.skyreels, settings={INPUTS: FRAMES}, own=PROMPT_FIRST),
    "LucyEditPipeline": Entry(
        build=wan_family.lucy_edit, settings={INPUTS: {"video": FILM, **FRAMES}, **ALONE}, own=PROMPT_FIRST
    ),
    "ChronoEditPipeline": Entry(build=wan_family.chrono_edit, settings={INPUTS: FRAMES | PICTURE}, own=PROMPT_FIRST),
    "AnyFlowPipeline": Entry(build=wan_family.anyflow, settings={INPUTS: FRAMES}, own=PROMPT_FIRST),
    "SanaVideoPipeline": Entry(
        build=wan_family.sana_video,
        settings={INPUTS: {"frames": 5, "use_resolution_binning": False, "complex_human_instruction": []}},
        size=32,
        attended=t5_first(300),
    ),
}
OF_TRANSFORMERS = {
    "LTXPipeline": Entry(build=video_transformers.ltx, settings={INPUTS: FRAMES}, size=32, attended=t5_first(128)),
    "AllegroPipeline": Entry(build=video_transformers.allegro, settings={INPUTS: FRAMES}, attended=t5_first(512)),
    "LattePipeline": Entry(build=video_transformers.latte, settings={INPUTS: {"video_length": 4}, **ALONE}),
    "CogVideoXPipeline": Entry(build=video_transformers.cogvideox, settings={INPUTS: FRAMES}),
    "MochiPipeline": Entry(build=video_transformers.mochi, settings={INPUTS: FRAMES}, attended=t5_first(256)),
    "HunyuanVideoPipeline": Entry(
        build=video_language.hunyuan_video,
        settings={INPUTS: FRAMES},
        own=(True,),
        attended=text_comes_last(hunyuan_tokens, text=256),
    ),
    "HunyuanVideo15Pipeline": Entry(
        build=video_language.hunyuan_video15,
        settings={INPUTS: FRAMES, **GUIDER},
        prompts=("a cat", "a dog with a hat"),
        own=PROMPT_FIRST,
        attended=text_comes_first(hunyuan15_tokens, text=1985, both="refiner"),
    ),
    "EasyAnimatePipeline": Entry(build=video_language.easy_animate, settings={INPUTS: {**FRAMES, "negative_prompt": "blurred"}}),
    "Kandinsky5T2VPipeline": Entry(
        build=video_language.kandinsky5, settings={INPUTS: FRAMES, **ALONE}, size=32, own=PROMPT_FIRST
    ),
    "MotifVideoPipeline": Entry(
        build=video_language.motif_video,
        settings={INPUTS: FRAMES, **GUIDER},
        own=PROMPT_FIRST,
        attended=text_comes_last(number_of_tokens, text=512),
    ),
}
OF_UNETS = {
    "AnimateDiffPipeline": Entry(build=video_unets.animatediff, settings={INPUTS: FRAMES}),
    "AnimateDiffPAGPipeline": Entry(build=video_unets.animatediff_pag, settings={INPUTS: FRAMES}, own=(False, True, True)),
    "AnimateDiffSDXLPipeline": Entry(build=video_unets.animatediff_sdxl, settings={INPUTS: FRAMES}),
    "AnimateDiffControlNetPipeline": Entry(
        build=video_unets.animatediff_controlnet, settings={INPUTS: {"conditioning_frames": FILM, **FRAMES}, **ALONE}
    ),
    "AnimateDiffSparseControlNetPipeline": Entry(
        build=video_unets.animatediff_sparse_controlnet,
        settings={INPUTS: {"conditioning_frames": ["picture.png"], "controlnet_frame_indices": [0], **FRAMES}},
    ),
    "AnimateDiffVideoToVideoPipeline": Entry(
        build=video_unets.animatediff_video_to_video, settings={INPUTS: {"video": FILM, "strength": 1.0}, **ALONE}
    ),
    "AnimateDiffVideoToVideoControlNetPipeline": Entry(
        build=video_unets.animatediff_video_to_video_controlnet,
        settings={INPUTS: {"video": FILM, "conditioning_frames": FILM, "strength": 1.0}, **ALONE},
    ),
    "PIAPipeline": Entry(build=video_unets.pia, settings={INPUTS: FRAMES | PICTURE, **ALONE}),
    "TextToVideoSDPipeline": Entry(build=video_unets.text_to_video, settings={INPUTS: FRAMES}),
    "VideoToVideoSDPipeline": Entry(
        build=video_unets.video_to_video, settings={INPUTS: {"video": FILM, "strength": 1.0}, **ALONE}, size=None
    ),
}
OF_STAGES = {
    "KandinskyPriorPipeline": Entry(build=stages.kandinsky_prior, size=None, output="pt", attended=PRIOR),
    "KandinskyCombinedPipeline": Entry(build=stages.kandinsky_combined, output="pt"),
    "KandinskyV22PriorPipeline": Entry(build=stages.kandinsky22_prior, size=None, output="pt", attended=PRIOR),
    "KandinskyV22CombinedPipeline": Entry(build=stages.kandinsky22_combined),
    "Kandinsky3Pipeline": Entry(build=stages.kandinsky3, settings=ALONE, attended=text_comes_first(kandinsky3_tokens, text=128)),
    "StableCascadePriorPipeline": Entry(build=stages.cascade_prior),
    "IFPipeline": Entry(build=stages.deepfloyd),
    "IFSuperResolutionPipeline": Entry(build=stages.deepfloyd_super, settings={INPUTS: PICTURE, **ALONE}),
    "IFImg2ImgPipeline": Entry(
        build=stages.deepfloyd_img2img, settings={INPUTS: {**PICTURE, "strength": 1.0}, **ALONE}, size=None
    ),
    "IFInpaintingPipeline": Entry(
        build=stages.deepfloyd_inpainting, settings={INPUTS: {**PICTURE, **MASK, "strength": 1.0}, **ALONE}, size=None
    ),
    "IFImg2ImgSuperResolutionPipeline": Entry(
        build=stages.deepfloyd_img2img_super,
        settings={INPUTS: {**PICTURE, "original_image": "picture.png", "strength": 1.0}, **ALONE},
        size=None,
    ),
    "IFInpaintingSuperResolutionPipeline": Entry(
        build=stages.deepfloyd_inpainting_super,
        settings={INPUTS: {**PICTURE, **MASK, "original_image": "picture.png", "strength": 1.0}, **ALONE},
        size=None,
    ),
}
WHOLE = {"strength": 1.0}
OF_PICTURES = {
    "CogVideoXImageToVideoPipeline": Entry(
        build=partial(video_transformers.cogvideox, "CogVideoXImageToVideoPipeline", 8),
        settings={INPUTS: FRAMES | PICTURE, **ALONE},
    ),
    "CogVideoXVideoToVideoPipeline": Entry(
        build=partial(video_transformers.cogvideox, "CogVideoXVideoToVideoPipeline"),
        settings={INPUTS: {"video": FILM, **WHOLE}, **ALONE},
    ),
    "LTXImageToVideoPipeline": Entry(
        build=partial(video_transformers.ltx, "LTXImageToVideoPipeline"),
        settings={INPUTS: FRAMES | PICTURE, **ALONE},
        size=32,
        attended=t5_first(128),
    ),
    "LTXConditionPipeline": Entry(
        build=partial(video_transformers.ltx, "LTXConditionPipeline"),
        settings={INPUTS: FRAMES | PICTURE},
        size=32,
        attended=t5_first(256),
    ),
    "SkyReelsV2ImageToVideoPipeline": Entry(
        build=wan_family.skyreels_image_to_video, settings={INPUTS: FRAMES | PICTURE}, own=PROMPT_FIRST
    ),
    "Kandinsky3Img2ImgPipeline": Entry(
        build=partial(stages.kandinsky3, "Kandinsky3Img2ImgPipeline"),
        settings={INPUTS: PICTURE | WHOLE, **ALONE},
        size=None,
        attended=text_comes_first(kandinsky3_tokens, text=128),
    ),
    "KandinskyImg2ImgCombinedPipeline": Entry(
        build=partial(stages.kandinsky_combined, "KandinskyImg2ImgCombinedPipeline"),
        settings={INPUTS: PICTURE | WHOLE},
        output="pt",
    ),
    "KandinskyInpaintCombinedPipeline": Entry(
        build=partial(stages.kandinsky_combined, "KandinskyInpaintCombinedPipeline", 9),
        settings={INPUTS: PICTURE | MASK},
        output="pt",
    ),
    "KandinskyV22Img2ImgCombinedPipeline": Entry(
        build=partial(stages.kandinsky22_combined, "KandinskyV22Img2ImgCombinedPipeline"), settings={INPUTS: PICTURE | WHOLE}
    ),
    "KandinskyV22InpaintCombinedPipeline": Entry(
        build=partial(stages.kandinsky22_combined, "KandinskyV22InpaintCombinedPipeline", 9), settings={INPUTS: PICTURE | MASK}
    ),
}
UNOPENED = {
    "refused": r"cannot load a \w+: it no longer finds the class of",
    "note": "diffusers no longer finds the class of one of its parts",
}
GUARDED = {
    "refused": r"package cosmos_guardrail, which is not",
    "note": "it needs the package cosmos_guardrail; not tested with it",
}
REFUSED = {
    "StableCascadeDecoderPipeline": Entry(build=stages.cascade_decoder, **UNOPENED),
    "StableCascadeCombinedPipeline": Entry(build=stages.cascade_combined, **UNOPENED),
    "WuerstchenPriorPipeline": Entry(build=stages.wuerstchen_prior, **UNOPENED),
    "WuerstchenDecoderPipeline": Entry(build=stages.wuerstchen_decoder, **UNOPENED),
    "WuerstchenCombinedPipeline": Entry(build=stages.wuerstchen_combined, **UNOPENED),
    "UnCLIPPipeline": Entry(**UNOPENED),
    **dict.fromkeys(
        ("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"),
        Entry(**GUARDED),
    ),
}
ENTRIES: dict[str, Entry] = {**OF_WAN, **OF_TRANSFORMERS, **OF_UNETS, **OF_STAGES, **OF_PICTURES, **REFUSED}
