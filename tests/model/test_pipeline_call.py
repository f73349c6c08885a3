"""How a pipeline class is called."""

import sys
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.pipeline_call import call_of, class_named
from nullbooth_cli.tensors import generators

TWO = ("cat", "dog")


def arguments(pipeline_class: type, prompts: Sequence[str] = TWO, output_type: str = "latent", **inputs: Any) -> dict[str, Any]:
    return call_of(pipeline_class).arguments(
        prompts,
        num_inference_steps=4,
        guidance_scale=3.0,
        size={"height": 32, "width": 64},
        generators=generators([5, 6][: len(prompts)]),
        output_type=output_type,
        inputs=inputs,
    )


class TestArguments:
    """What a class takes, and no more."""

    def test_those_of_stable_diffusion(self) -> None:
        given = arguments(StableDiffusionPipeline)
        seeds = [generator.initial_seed() for generator in given.pop("generator")]
        assert seeds == [5, 6]
        assert given == {
            "prompt": ["cat", "dog"],
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "height": 32,
            "width": 64,
            "output_type": "latent",
        }

    def test_a_class_without_guidance_or_size_gets_none(self) -> None:
        class Plain:
            def __call__(self, prompt: list[str], num_inference_steps: int = 2) -> None: ...

        assert arguments(Plain) == {"prompt": ["cat", "dog"], "num_inference_steps": 4}

    def test_a_decoders_own_names(self) -> None:
        given = arguments(diffusers.UnCLIPPipeline)
        assert (given["decoder_num_inference_steps"], given["decoder_guidance_scale"]) == (4, 3.0)
        assert given.keys() & {"prior_num_inference_steps", "prior_guidance_scale", "num_inference_steps"} == set()
        assert arguments(diffusers.StableCascadeCombinedPipeline)["num_inference_steps"] == 4
        assert arguments(diffusers.StableCascadeCombinedPipeline)["decoder_guidance_scale"] == 3.0

    def test_a_class_without_latents_ends_in_tensors(self) -> None:
        assert arguments(diffusers.IFPipeline)["output_type"] == "pt"
        assert arguments(diffusers.IFPipeline, output_type="np")["output_type"] == "np"

    def test_texts_and_tensors_are_for_each_prompt_and_pictures_for_all(self) -> None:
        embeds = torch.randn(1, 3)
        given = arguments(
            diffusers.KandinskyPipeline, negative_prompt="blurry", image_embeds=embeds, negative_image_embeds=torch.zeros(2, 3)
        )
        assert given["negative_prompt"] == ["blurry", "blurry"]
        assert torch.equal(given["image_embeds"], torch.cat([embeds, embeds]))
        assert given["negative_image_embeds"].shape == (2, 3)
        picture = object()
        assert arguments(StableDiffusionImg2ImgPipeline, image=picture, strength=1.0)["image"] is picture

    def test_a_class_of_one_prompt_gets_a_text_and_one_generator(self) -> None:
        class OnePrompt:
            def __call__(
                self, prompt: str | None = None, negative_prompt: str = "", num_inference_steps: int = 2, generator: Any = None
            ) -> None: ...

        given = arguments(OnePrompt, ["cat"], negative_prompt="blurry")
        assert (given["prompt"], given["negative_prompt"], given["generator"].initial_seed()) == ("cat", "blurry", 5)
        with pytest.raises(ConfigError, match="OnePrompt takes one prompt a call, not 2") as caught:
            arguments(OnePrompt)
        assert caught.value.hint == "set collect.batch_size to 1"
        with pytest.raises(ConfigError, match="OnePrompt takes one prompt a call, not 8"):
            call_of(OnePrompt).require_settings(guidance_is_set=False, size_is_set=False, batch_size=8)
        assert call_of(diffusers.AnimateDiffVideoToVideoPipeline).takes_one_prompt

    @pytest.mark.parametrize(
        ("name", "each"),
        [("StableDiffusionInpaintPipeline", True), ("FluxFillPipeline", True), ("FluxKontextInpaintPipeline", False)],
    )
    def test_every_prompt_has_a_picture_of_its_own_where_a_class_takes_pictures(self, name: str, each: bool) -> None:
        picture, mask = Image.new("RGB", (8, 8)), Image.new("L", (8, 8))
        given = arguments(getattr(diffusers, name), image=picture, mask_image=mask, strength=1.0)
        assert given["image"] == ([picture, picture] if each else picture)
        assert given["mask_image"] == ([mask, mask] if each else mask)

    def test_pictures_that_are_no_start_are_given_once(self) -> None:
        """A list of them may be one for each of several control networks."""
        picture = Image.new("RGB", (8, 8))
        assert arguments(diffusers.StableDiffusionControlNetPipeline, image=picture)["image"] is picture


class TestInputs:
    """Names, what is needed, and where the path starts."""

    @pytest.mark.parametrize(
        ("name", "needed"),
        [
            ("StableDiffusionImg2ImgPipeline", "image beside"),
            ("StableDiffusionInpaintPipeline", "image, mask_image beside"),
            ("StableDiffusionControlNetPipeline", "image beside"),
            ("KandinskyPipeline", "image_embeds, negative_image_embeds beside"),
            ("BlipDiffusionPipeline", "reference_image, source_subject_category, target_subject_category beside"),
        ],
    )
    def test_the_error_names_what_is_missing(self, name: str, needed: str) -> None:
        with pytest.raises(ConfigError, match=f"^{name} needs {needed}") as caught:
            arguments(getattr(diffusers, name))
        assert caught.value.hint.startswith("set collect.pipeline_inputs to {")

    def test_a_typo_gets_the_name_that_there_is(self) -> None:
        with pytest.raises(ConfigError, match="StableDiffusionPipeline has no input negativ_prompt") as caught:
            arguments(StableDiffusionPipeline, negativ_prompt="blurry")
        assert caught.value.hint == "did you mean negative_prompt?"
        with pytest.raises(ConfigError, match="no input zzz") as caught:
            arguments(StableDiffusionPipeline, zzz=1)
        assert "negative_prompt" in caught.value.hint
        assert "output_type" not in caught.value.hint

    @pytest.mark.parametrize(
        ("name", "key"), [("height", "collect.height"), ("prompt", "original_knowledge_prompts"), ("latents", "collect.seed")]
    )
    def test_what_another_key_sets_is_no_input(self, name: str, key: str) -> None:
        with pytest.raises(ConfigError, match=f"has {name}, which is set by {key}"):
            arguments(StableDiffusionPipeline, **{name: 1})

    @pytest.mark.parametrize("given", [{}, {"strength": 0.5}])
    def test_a_path_that_starts_in_the_middle_is_refused(self, given: dict[str, float]) -> None:
        share = given.get("strength", 0.8)
        with pytest.raises(ConfigError, match=f"only the last part of the stored schedule with strength {share}") as caught:
            arguments(StableDiffusionImg2ImgPipeline, image=object(), **given)
        assert "strength: 1.0" in caught.value.hint
        assert arguments(StableDiffusionImg2ImgPipeline, image=object(), strength=1)["strength"] == 1

    def test_a_strength_of_a_condition_is_no_share_of_the_path(self) -> None:
        assert arguments(diffusers.LTXConditionPipeline, strength=0.5)["strength"] == 0.5

    def test_guidance_and_size_that_are_not_taken_are_errors(self) -> None:
        call = call_of(diffusers.HunyuanImagePipeline)
        with pytest.raises(ConfigError, match="HunyuanImagePipeline takes no guidance_scale") as caught:
            call.require_settings(guidance_is_set=True, size_is_set=True)
        assert "distilled_guidance_scale" in caught.value.hint
        call.require_settings(guidance_is_set=False, size_is_set=True)
        with pytest.raises(ConfigError, match="StableDiffusionImg2ImgPipeline takes no size"):
            call_of(StableDiffusionImg2ImgPipeline).require_settings(guidance_is_set=True, size_is_set=True)


class TestClass:
    """A class by its name."""

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("DDPMPipeline", "DDPMPipeline takes no prompt"),
            ("DiTPipeline", "takes no prompt: it draws from class_labels"),
            ("LTX2DFRPipeline", "takes no number of steps"),
            ("StableDiffusionParadigmsPipeline", "several steps at once"),
            ("UNet2DConditionModel", "is not a pipeline of diffusers"),
        ],
    )
    def test_one_that_cannot_be_used(self, name: str, reason: str) -> None:
        with pytest.raises(ModelError, match=reason):
            class_named(name)

    @pytest.mark.parametrize("name", ["AltDiffusionPipeline", "UnCLIPPipeline", "WuerstchenDecoderPipeline"])
    def test_one_whose_parts_diffusers_has_moved(self, name: str) -> None:
        with pytest.raises(ModelError, match=rf"^diffusers [\d.]+ cannot load a {name}: it no longer finds the class of \w+"):
            class_named(name)

    def test_an_unused_part_that_diffusers_has_moved_is_no_reason(self) -> None:
        assert class_named("StableDiffusionPipelineSafe") is diffusers.StableDiffusionPipelineSafe

    def test_one_that_is_not_there(self) -> None:
        with pytest.raises(ConfigError, match="this diffusers does not know the pipeline FuturePipeline") as caught:
            class_named("FuturePipeline")
        assert caught.value.hint == "upgrade it: pip install -U diffusers"

    def test_one_whose_library_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers.utils import dummy_torch_and_transformers_and_sentencepiece_objects as dummies

        monkeypatch.setattr(diffusers, "KolorsPipeline", dummies.KolorsPipeline, raising=False)
        monkeypatch.setitem(
            diffusers.utils.import_utils.BACKENDS_MAPPING,
            "sentencepiece",
            (lambda: False, "it requires the sentencepiece library: `pip install sentencepiece`"),
        )
        with pytest.raises(ConfigError, match="cannot import KolorsPipeline: it needs sentencepiece") as caught:
            class_named("KolorsPipeline")
        assert caught.value.hint == "pip install sentencepiece"


@pytest.mark.parametrize(
    ("name", "package"),
    [("SkyReelsV2Pipeline", "ftfy"), ("WanVACEPipeline", "ftfy"), ("Cosmos2TextToImagePipeline", "cosmos_guardrail")],
)
def test_a_package_that_is_missing_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[getattr(diffusers, name).__module__]
    monkeypatch.delattr(module, package, raising=False)
    with pytest.raises(ConfigError, match=f"{name} .* its prompts with the package {package}, which is not installed") as caught:
        class_named(name)
    assert caught.value.hint == f"pip install {package}"


def test_a_package_that_is_there_or_that_a_class_does_without_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[diffusers.SkyReelsV2Pipeline.__module__]
    monkeypatch.setattr(module, "ftfy", object(), raising=False)
    assert class_named("SkyReelsV2Pipeline") is diffusers.SkyReelsV2Pipeline
    assert class_named("WanPipeline") is diffusers.WanPipeline
