"""What the name of a pipeline class tells, before diffusers is imported: whether it can be used, what it needs, what it takes.

`why_refused()` gives the reason that a class cannot be collected from, `needed_inputs()` what it needs beside the prompt. The
rest is read from the class itself (`pipeline_call`).
"""

import re

from nullbooth_cli.errors import ModelError

OTHER = "set model to a text-to-image pipeline of diffusers"
# Parts that only look at finished pictures, or that a text alone does not need.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_PIECES = "it draws a video piece by piece, and walks the schedule again for each piece, so that a step has no single place in it"
_GRADIENTS = "it changes the latents by gradients while it denoises, so that what its layers receive is no denoising path"

# A class is refused for the first pattern that its whole name matches.
REFUSED: tuple[tuple[str, str], ...] = (
    (r"Onnx.*|.*Onnx.*Pipeline|Flax.*", "it does not run in torch, so that its layers cannot be seen"),
    (r".*ModularPipeline", "it is a modular pipeline, which is put together when it is used"),
    (r"(Audio|Music|StableAudio|AceStep|LongCatAudio|Dance|Spectrogram).*", "it makes sound, not pictures"),
    (r"LLaDA2Pipeline|DiffusionGemmaPipeline", "it writes text, not pictures"),
    (r"ShapE.*", "it makes three-dimensional objects, not pictures"),
    (r"RFD4Proteina.*", "it makes proteins, not pictures"),
    (r"(Amused|VQDiffusion).*", "it draws discrete tokens, so that it has no latents and no noise schedule"),
    (r".*Paradigms.*", "it denoises several steps at once, so that a forward has no single timestep"),
    (
        r".*Panorama.*",
        "it steps its scheduler once for each of several views, so that a step has no single place in the schedule",
    ),
    (r"TextToVideoZero.*", "it walks parts of its schedule several times, on other latents each time"),
    (
        r"SkyReelsV2DiffusionForcing.*",
        "every frame has a timestep and a scheduler of its own, so that a step has no single timestep",
    ),
    (r"AnyFlowFAR.*|Helios.*|HunyuanVideoFramepack.*|LTXI2VLong.*", _PIECES),
    (r".*AttendAndExcite.*", f"{_GRADIENTS}, and it needs the places of words (token_indices)"),
    (r".*Pix2PixZero.*", f"{_GRADIENTS}, and it needs the directions of an edit (source_embeds, target_embeds)"),
    (r"CycleDiffusion.*", "it takes two prompts, of the picture that is there and of the one to draw"),
    (
        r".*ModelEditing.*",
        "it is for changing the weights of a model (edit_model); StableDiffusionPipeline draws the same with them",
    ),
    (r".*DiffEdit.*|LEditsPP.*", "it edits a picture that it has walked back to noise before, along a schedule of its own"),
    (
        r"KandinskyV22(Img2Img|Inpaint|Controlnet\w*)?Pipeline",
        "it takes no prompt but what a prior made of one; KandinskyV22CombinedPipeline has both",
    ),
    (r"CogView4Control.*", "it adds noise to its control image that no seed sets, so that nothing of it can be recorded again"),
    (
        r"ChromaInpaint.*",
        "it asks its transformer for guidance_embeds, which Chroma's has not, and ends with an error in diffusers",
    ),
    (
        r"EasyAnimateControl.*",
        "it calls its own encode_prompt with text_encoder_index, which that has not, and ends with an error in diffusers",
    ),
    (r"I2VGenXL.*", "diffusers reads its prompts through CLIPTextModel.text_model, which transformers 5 no longer has"),
    (r"FluxPriorRedux.*|LTX\w*Upsample.*|.*DiffusionDecode.*", "it only converts what another pipeline draws or takes"),
)

# The inputs that a class needs although its signature lets them be missing. Of the names in a row, the class takes the first.
_NEEDED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"Control(Net|Pipeline|Img2Img|Inpaint)", ("control_image", "control_video", "conditioning_frames", "image")),
    (
        r"Img2Img|Image2Image|Depth2Img|Pix2Pix|Upscale|Refiner|ImageTo|Image2Video|(?<!T)I2V|SuperResolution|Edit(?!ing)|Layered|PIA",
        ("image", "images"),
    ),
    (r"ControlNetUnion", ("control_mode",)),
    (r"Img2ImgSuper|InpaintingSuper", ("original_image",)),
    (r"Inpaint|Fill", ("image", "video")),
    (r"Inpaint|Fill", ("mask_image", "mask_video", "control_mask", "mask")),
    (r"VideoToVideo|Video2Video|EasyAnimateInpaint", ("video",)),
    (r"DiffusionAdapter|XLAdapter", ("image",)),
    (r"GLIGEN", ("gligen_phrases",)),
    (r"GLIGEN", ("gligen_boxes",)),
)
# Classes without output_type latent: they end in tensors of pixels or embeddings.
_NO_LATENTS = (
    r"IF.*|UnCLIP.*|Wuerstchen(Prior|Combined).*|LDMTextToImage.*|BlipDiffusion.*|StableDiffusionPipelineSafe|StableCascade(Prior|Combined).*"
    r"|Kandinsky(Img2Img|Inpaint)?(Combined)?Pipeline|Kandinsky(V22)?(Prior.*|\w*CombinedPipeline)"
)
# Classes that take one prompt a call, although their signature has a list, or the frames of one video for all prompts.
_ONE_PROMPT = (
    r"(QwenImageEditPlus|DreamLiteMobile|WanVACE|LucyEdit|VideoToVideoSD)Pipeline|AnimateDiff(ControlNet|VideoToVideo).*|PIA.*"
)
# Classes that take a picture for each prompt. In others a list of pictures belongs to one prompt.
_PICTURES_BY_PROMPT = (
    r"(?!.*(Edit|Kontext|Omni|Layered|Flux2|Legacy)).*(Img2Img|Inpaint|Fill|Depth2Img|Pix2Pix|Upscale|Adapter|SuperResolution).*"
)


def why_refused(class_name: str) -> str | None:
    """The reason that a pipeline class cannot be used, from its name; None for one that may be."""
    return next((reason for pattern, reason in REFUSED if re.fullmatch(pattern, class_name)), None)


def require_usable(class_name: str) -> None:
    """Raise ModelError, with the reason, for a pipeline class that cannot be used."""
    if (reason := why_refused(class_name)) is not None:
        raise ModelError(f"{class_name} cannot be used here: {reason}", OTHER)


def needed_inputs(class_name: str) -> tuple[tuple[str, ...], ...]:
    """What a pipeline class needs beside the prompt, by its name: for each input the names that it may have, the likely first."""
    return tuple(names for pattern, names in _NEEDED if re.search(pattern, class_name))


def ends_in_latents(class_name: str) -> bool:
    """Whether a class has the output_type latent, which ends before its autoencoder."""
    return not re.fullmatch(_NO_LATENTS, class_name)


def takes_one_prompt(class_name: str) -> bool:
    """Whether a class takes one prompt a call although its signature has a list."""
    return re.fullmatch(_ONE_PROMPT, class_name) is not None


def takes_pictures_by_prompt(class_name: str) -> bool:
    """Whether a class takes a list of pictures as one for each prompt."""
    return re.fullmatch(_PICTURES_BY_PROMPT, class_name) is not None
