"""What a training run needs before its first step: model, pictures, captions, constraint, optimizer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.settings.captions import captioned_files
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training.examples import Examples, draw_class, encode_pictures, encode_texts
from nullbooth_cli.training.word_embedding import WordEmbedding

if TYPE_CHECKING:
    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.training.constraint import Constraint


@dataclass
class Training:
    """A run that is ready to start. `constraint` is None without a store."""

    recipe: Recipe
    pipe: Any
    accelerator: Any
    denoiser: nn.Module
    subject: Examples
    prior: Examples | None
    constraint: "Constraint | None"
    trained: tuple[str, ...]
    teacher: nn.Module | None = None
    word: WordEmbedding | None = None

    @property
    def held(self) -> str:
        return f"held by {self.recipe.store}" if self.constraint else "held by nothing: no store is named"


def set_up(recipe: Recipe, device: str | None = None, store: "OpenStore | None" = None) -> Training:
    """Load the model and make everything ready that the loop needs; `store` is the recipe's, if it is open already.

    Raises ConfigError for a model that is not a U-Net conditioned on text alone, and for pictures of another size.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    _require_packages(recipe)
    accelerator = Accelerator(
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        mixed_precision=recipe.mixed_precision,
        log_with="tensorboard" if recipe.tensorboard else None,
        project_config=ProjectConfiguration(project_dir=recipe.output, logging_dir=f"{recipe.output}/logs"),
        cpu=device == "cpu",
    )
    pipe = load.load_pipeline(
        recipe.model,
        revision=recipe.revision,
        variant=recipe.variant,
        dtype="float32",
        local_files_only=recipe.local_files_only,
        device=accelerator.device,
    )
    denoiser = load.denoiser_of(pipe)
    _check(pipe, denoiser)
    pipe.text_encoder.requires_grad_(False)
    captioned = captioned_files(recipe.instance_images)
    captions = [recipe.instance_prompt or caption.text for caption in captioned]
    subject = Examples(encode_pictures(pipe, list(captioned.values())), captions, encode_texts(pipe, captions))
    prior = None if recipe.class_prompts is None else draw_class(recipe, pipe)
    teacher = None
    if prior is not None and recipe.prior == "distill":
        teacher = copy.deepcopy(denoiser)
    projections = find_projections(denoiser, tuple(recipe.features), "all")
    make_trainable(denoiser, projections, recipe)
    constraint = None
    if store is not None:
        recipe = recipe.model_copy(update={"store": store.url})
    elif recipe.store is not None:
        from nullbooth_cli import api

        store = api.open_store(recipe.store)
    if store is not None:
        from nullbooth_cli.training.constraint import constrain

        constraint = constrain(denoiser, store, unprotected="refuse")
    word = None
    if recipe.word is not None:
        kept = [*(prior.captions if prior else ()), *(store.prompts() if store else ())]
        word = WordEmbedding(pipe, recipe.word, captions, kept)
    if recipe.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # torch has no type for what a module adds
    trained = tuple(name for name, parameter in denoiser.named_parameters() if parameter.requires_grad)
    return Training(recipe, pipe, accelerator, denoiser, subject, prior, constraint, trained, teacher, word)


def _require_packages(recipe: Recipe) -> None:
    from accelerate.utils import is_tensorboard_available

    lacking = [
        f"{key} needs {package}"
        for key, package, wanted, there in (
            ("method: lora", "peft", recipe.method == "lora", find_spec("peft") is not None),
            ("tensorboard: true", "tensorboardX", recipe.tensorboard, is_tensorboard_available()),
        )
        if wanted and not there
    ]
    if lacking:
        raise ConfigError(", ".join(lacking), "pip install 'nullbooth[train]'")


def _check(pipe: Any, denoiser: nn.Module) -> None:
    config: Any = denoiser.config
    if not hasattr(pipe, "unet") or config.get("addition_embed_type") or config.get("time_cond_proj_dim"):
        raise ConfigError(
            f"{type(pipe).__name__} needs more than a caption for a forward: nullbooth train knows Stable Diffusion 1 and 2",
            "put nb.constrain into a training script that knows this model: docs/how-to/constrain-training.md",
        )


def make_trainable(denoiser: nn.Module, projections: Sequence[Projection], recipe: Recipe) -> None:
    """Mark what is trained, and nothing else: the weights of the projections, or adapters on them."""
    denoiser.requires_grad_(False)
    if recipe.method == "lora":
        from peft import LoraConfig

        names = [projection.weight.removesuffix(".weight") for projection in projections]
        adapter = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=names)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)  # the adapters begin at random
            denoiser.add_adapter(adapter)  # type: ignore[operator]  # torch has no type for what a module adds
        return
    for projection in projections:
        projection.module.get_parameter("weight").requires_grad_(True)
