"""What the name of a pipeline class tells."""

import pytest

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.pipeline_classes import needed_inputs, require_usable, why_refused

REFUSED = {
    "OnnxStableDiffusionPipeline": "torch",
    "FluxModularPipeline": "modular",
    "AudioLDM2Pipeline": "sound",
    "StableAudioPipeline": "sound",
    "LLaDA2Pipeline": "text, not pictures",
    "DiffusionGemmaPipeline": "text, not pictures",
    "AmusedPipeline": "discrete tokens",
    "VQDiffusionPipeline": "discrete tokens",
    "StableDiffusionParadigmsPipeline": "several steps at once",
    "TextToVideoZeroSDXLPipeline": "several times",
    "StableDiffusionPix2PixZeroPipeline": "gradients.*source_embeds",
    "StableDiffusionAttendAndExcitePipeline": "gradients.*token_indices",
    "CycleDiffusionPipeline": "two prompts",
    "KandinskyV22Pipeline": "KandinskyV22CombinedPipeline has both",
    "KandinskyV22ControlnetImg2ImgPipeline": "no prompt",
    "HunyuanVideoFramepackPipeline": "piece by piece",
    "EasyAnimateControlPipeline": "text_encoder_index",
}
USABLE = (
    *("StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline", "KandinskyV22CombinedPipeline", "UnCLIPPipeline"),
    *("KandinskyV22PriorPipeline", "SkyReelsV2Pipeline", "AnyFlowPipeline"),
)


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_cannot_be_used_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name} cannot be used here: .*{REFUSED[name]}"):
        require_usable(name)


@pytest.mark.parametrize("name", USABLE)
def test_others_are_not(name: str) -> None:
    assert why_refused(name) is None


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("StableDiffusionPipeline", []),
        ("FluxKontextPipeline", []),
        ("Kandinsky6TI2VAPipeline", []),
        ("StableDiffusionXLImg2ImgPipeline", ["image"]),
        ("I2VGenXLPipeline", ["image"]),
        ("HunyuanImageRefinerPipeline", ["image"]),
        ("FluxFillPipeline", ["image", "mask_image"]),
        ("FluxControlPipeline", ["control_image"]),
        ("StableDiffusionControlNetInpaintPipeline", ["control_image", "image", "mask_image"]),
        ("WanVideoToVideoPipeline", ["video"]),
        ("StableDiffusionGLIGENPipeline", ["gligen_phrases", "gligen_boxes"]),
    ],
)
def test_what_a_class_needs_beside_the_prompt(name: str, needed: list[str]) -> None:
    assert [names[0] for names in needed_inputs(name)] == needed
