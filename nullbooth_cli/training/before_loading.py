"""What a recipe names, read before its model is loaded: pictures, prompts, the word, and what the model's config files say.

Loading takes many seconds, and drawing pictures of the class minutes: what can be wrong before is found before.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from nullbooth_cli.collect.without_weights import build_pipeline
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.model import load
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.denoising_loss import NoiseProcess
from nullbooth_cli.model.families import require_trainable_folder
from nullbooth_cli.model.pipeline_folder import read_pipeline_folder
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.prompt_length import limits_of
from nullbooth_cli.model.protocols import LatentPipeline, Pipeline, config_of
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.captions import CaptionedImage, caption_places, captioned_images
from nullbooth_cli.settings.images import sizes_of
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Resizing, Size
from nullbooth_cli.settings.texts import cut
from nullbooth_cli.training.distillation import Captions, captions_by_picture
from nullbooth_cli.training.earlier import Earlier, source_of
from nullbooth_cli.training.examples import guidance_of
from nullbooth_cli.training.word_embedding import Word

PIXELS_TOGETHER = 8  # pipelines of diffusers refuse sides of another multiple, also with an autoencoder of a smaller factor
T5_ALONE_IS_READ = ("FluxPipeline",)  # word by word; CLIP gives one vector for a whole prompt


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The pictures of the subject, and the prompts of its class (none without prior preservation); `notes` are for the user.

    `word` is the word that trains, None if none does. `distilled` are the captions for distillation, None without any, and
    `distilled_pictures` its pictures if it has some of its own.
    """

    pictures: tuple[CaptionedImage, ...]
    resizing: Resizing
    class_captions: tuple[str, ...]  # one for each picture that is drawn
    word: Word | None = None
    distilled: Captions | None = None
    distilled_pictures: tuple[CaptionedImage, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def captions(self) -> list[str]:
        """The captions of the pictures of the subject, with the token that trains."""
        return self.written(picture.prompt.text for picture in self.pictures)

    @property
    def distilled_captions(self) -> list[str]:
        """The captions for distillation, each once."""
        return list(dict.fromkeys(text for texts in (self.distilled or {}).values() for text in texts))

    def written(self, texts: Iterable[str]) -> list[str]:
        """Texts with the token that trains in place of its word."""
        return [self.word.written(text) if self.word else text for text in texts]


def with_own_guidance(recipe: Recipe, folder: str) -> Recipe:
    """A recipe with a guidance_scale: its own, or what the pipeline of this folder draws with."""
    import diffusers

    pipeline = getattr(diffusers, read_pipeline_folder(folder, weights=False).class_name)
    return recipe.model_copy(update={"guidance_scale": guidance_of(recipe, pipeline)})


def read_inputs(recipe: Recipe, preserved: Sequence[str], protected: Collection[str] | None = None) -> Inputs:
    """Read everything that a recipe names beside weights; `preserved` are the prompts of its store.

    `protected` are the weights that the store has projectors for; None without a store. Raises ConfigError for pictures,
    captions, prompts, features and a word that cannot be trained on, ModelError for a model that cannot be trained here.
    Cost: decodes every picture; of a hub id, downloads the config files; some seconds.
    """
    pictures = captioned_images(recipe.instance_images, "instance_images", recipe.instance_prompt)
    is_own = recipe.distill_captions is not None and recipe.distill_pictures not in ("instance", "class")
    distilled = captioned_images(recipe.distill_pictures, "distill_pictures") if is_own else ()
    paths = [picture.path for picture in (*pictures, *distilled)]
    sizes = sizes_of(paths)
    class_captions, notes = _class_captions(recipe)
    earlier = Earlier.of(recipe)
    pipe = without_weights(source_of(recipe, earlier))
    _require_noise_settings(recipe, pipe)
    if protected is not None:
        _require_protected(recipe, pipe, protected)
    resizing = _resizing(recipe, pipe)
    for path, size in zip(paths, sizes, strict=True):
        resizing.require_taken(path, size)
    _require_places(pipe, {resizing.size, *map(resizing.target, sizes)})
    if small := [path.name for path, size in zip(paths, sizes, strict=True) if resizing.is_far_too_small(size)]:
        notes += (f"enlarged more than twice, which blurs what is learned: {listed(small)}",)
    inputs = Inputs(
        pictures=pictures,
        resizing=resizing,
        class_captions=class_captions,
        distilled_pictures=distilled,
        notes=(*_unread_captions(recipe), *notes),
    )
    if recipe.word is not None:
        earlier_prompts = () if earlier is None else earlier.chain.prompts
        inputs = _with_word(recipe, pipe, inputs, [*preserved, *earlier_prompts], earlier)
    return inputs if recipe.distill_captions is None else _with_distillation(recipe, inputs)


def _with_distillation(recipe: Recipe, inputs: Inputs) -> Inputs:
    """Inputs with the captions for distillation. Raises ConfigError if the word that trains is in one of them."""
    of_pictures = {
        "instance": dict(zip(inputs.captions, (picture.prompt.text for picture in inputs.pictures), strict=True)),
        "class": dict(zip(inputs.class_captions, inputs.class_captions, strict=True)),
    }
    own = {picture.prompt.text: picture.prompt.text for picture in inputs.distilled_pictures}
    inputs = replace(inputs, distilled=captions_by_picture(recipe, of_pictures.get(recipe.distill_pictures, own)))
    if inputs.word is not None and (found := [text for text in inputs.distilled_captions if inputs.word.name in text.split()]):
        raise ConfigError(
            f"the word '{inputs.word.name}' trains, and distillation would keep it from it: '{cut(found[0])}'",
            "leave it out of distill_captions",
        )
    return inputs


def _with_word(recipe: Recipe, pipe: Pipeline, inputs: Inputs, preserved: Sequence[str], earlier: Earlier | None) -> Inputs:
    """Inputs with the tokens of the recipe's word. A LoRA leaves the rows of the base as they are: its word is a new token."""
    assert recipe.word is not None
    tokenizers = load.load_tokenizers(source_of(recipe, earlier))
    if earlier is not None:
        earlier.add_tokens(tokenizers)
    clip = {key: tokenizer for key, tokenizer in tokenizers.items() if key.startswith("clip")}
    trained = clip if clip and recipe.word_encoders == "clip" else tokenizers
    word = Word.of(trained, recipe.word, beside=recipe.method == "lora")
    inputs = replace(inputs, word=word)
    word.require_trainable(
        trained, limits_of(pipe, trained), captions=inputs.captions, preserved=[*inputs.class_captions, *preserved]
    )
    notes = inputs.notes
    if word.name != word.word:
        notes += (f"the word trains as a new token: write {word.name} in prompts",)
    if not clip and recipe.word_encoders == "clip":
        notes += ("the word trains in T5: this model has no CLIP",)
    if "t5" not in trained and type(pipe).__name__ in T5_ALONE_IS_READ:
        notes += ("the word trains in CLIP, which gives this model one vector for a whole prompt: set word_encoders to all",)
    return replace(inputs, notes=notes)


def _unread_captions(recipe: Recipe) -> tuple[str, ...]:
    """A note if one caption for all replaces others."""
    if recipe.instance_prompt is None:
        return ()
    names = caption_places(recipe.instance_images)
    return (f"every picture has the caption of instance_prompt; not read: {listed(names)}",) if names else ()


def _class_captions(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions of the class pictures, and notes on them."""
    if recipe.class_prompts is None:
        return (), ()
    prompts, count = load_prompts(recipe.class_prompts, "class_prompts"), recipe.class_images
    note = f"class_images is {count}: only the first {count} of {len(prompts)} class_prompts get a picture"
    return tuple(prompts[i % len(prompts)].text for i in range(count)), (note,) if len(prompts) > count else ()


def without_weights(source: Source) -> LatentPipeline:
    """A pipeline without weights. Raises ModelError for one that cannot be trained here, by its class before all else."""
    folder = load.config_folder(source)
    require_trainable_folder(folder)
    return cast(LatentPipeline, build_pipeline(folder, load.load_scheduler(source)))


def _require_noise_settings(recipe: Recipe, pipe: LatentPipeline) -> None:
    """Raise ConfigError for a setting of the loss that has no meaning for this model."""
    process, name = NoiseProcess.of(pipe, recipe.timestep_density), type(pipe).__name__
    if recipe.snr_gamma is not None and process.family.noise == "flow":
        raise ConfigError(
            f"snr_gamma is for models that predict noise or velocity from a noise schedule, and {name} is one of flow matching",
            "set snr_gamma to null; timestep_density weighs its timesteps",
        )
    takes_guidance = process.family.takes_guidance and config_of(denoiser_of(pipe)).get("guidance_embeds")
    if recipe.training_guidance is not None and not takes_guidance:
        raise ConfigError(
            f"training_guidance is an input of Flux (dev), and the denoiser of this {name} has no such input",
            "set training_guidance to null",
        )


def _require_protected(recipe: Recipe, pipe: LatentPipeline, protected: Collection[str]) -> None:
    """Raise ConfigError for a feature that would train and that the store has no projector for."""
    found = find_projections(denoiser_of(pipe), tuple(recipe.features), "all", recipe.linear_layers)
    if without := [projection for projection in found if projection.weight not in protected]:
        features = ", ".join(dict.fromkeys(each.feature.removeprefix("add_") for each in without))
        raise ConfigError(
            f"{counted(len(without), 'weight')} would train without a constraint: {recipe.store} has no projector for "
            f"{listed([each.weight for each in without], 1)}",
            "collect them too (collect.collect_features, collect.cross_attention_layers, collect.linear_layers), or leave "
            f"{features} out of features{' and linear_layers' * bool(recipe.linear_layers)}",
        )


def _resizing(recipe: Recipe, pipe: LatentPipeline) -> Resizing:
    """How the recipe's pictures become those that a model trains on. Raises ConfigError for a resolution it cannot take."""
    config, factor = config_of(denoiser_of(pipe)), pipe.vae_scale_factor
    sample = getattr(pipe, "default_sample_size", None) or config["sample_size"]
    height, width = (side * factor for side in ((sample, sample) if isinstance(sample, int) else sample))
    step = math.lcm(factor * _places_together(config), PIXELS_TOGETHER)
    if recipe.resolution is not None:
        scale = recipe.resolution / min(width, height)
        width, height = (round(side * scale / step) * step for side in (width, height))
        if min(width, height) != recipe.resolution:
            below = recipe.resolution // step * step
            raise ConfigError(
                f"resolution is {recipe.resolution}, and the model takes multiples of {step}",
                f"set it to {below or step}{f' or {below + step}' if below else ''}, or to null",
            )
    return Resizing(how=recipe.resize, size=(width, height), step=step)


def _require_places(pipe: LatentPipeline, sizes: Collection[Size]) -> None:
    """Raise ConfigError for a size of pictures whose latents have more places than the table of a denoiser."""
    config = config_of(denoiser_of(pipe))
    places = config.get("pos_embed_max_size")  # of Stable Diffusion 3, which cuts a part out of its middle
    most = None if places is None else places * config["patch_size"] * pipe.vae_scale_factor
    longest = max(sizes, key=max)
    if most is not None and max(longest) > most:
        raise ConfigError(
            f"pictures would be {longest[0]} x {longest[1]} pixels, and this model has places for {most} pixels a side at most",
            "set a smaller resolution",
        )


def _places_together(config: Mapping[str, Any]) -> int:
    """How many places of the latents, in a row or column, a denoiser can only take together."""
    if "block_out_channels" in config:
        halvings = len(config["block_out_channels"]) - 1  # each block of a U-Net but the last halves the latents
        return int(2**halvings)
    return 2  # the patches of transformers, and what Flux packs
