"""DreamBooth training, constrained by a store or not: small enough to be read before it is trusted.

1. `prepare()` loads the model, encodes pictures and captions once, marks what is trained and puts the constraint in its place,
   before the optimizer is built.
2. `train()` is the loop; it yields an event for every optimizer step, checkpoints, and can go on from the last one.
3. `finish()` writes plain weights (a pipeline folder, or a LoRA file) and what they would move of the knowledge kept.

The loss is the one of diffusers' train_dreambooth.py: the mean squared error of what the model predicts about the noise of a
picture at a random timestep, and beside it, with a weight, the same on pictures of the class. (Ruiz et al., arXiv 2208.12242.)
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nullbooth_cli import checkpoints, images, model
from nullbooth_cli.embedding import WordEmbedding
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.events import Event, Note, Progress
from nullbooth_cli.examples import Examples, draw_class, encode_pictures, encode_texts
from nullbooth_cli.recipe import Recipe
from nullbooth_cli.sites import Projection, find_projections

if TYPE_CHECKING:
    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.constraint import Constraint


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


def prepare(recipe: Recipe, device: str | None = None, store: "OpenStore | None" = None) -> Training:
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
    pipe = model.load_pipeline(
        recipe.model,
        revision=recipe.revision,
        variant=recipe.variant,
        dtype="float32",
        local_files_only=recipe.local_files_only,
        device=accelerator.device,
    )
    denoiser = model.denoiser_of(pipe)
    _check(pipe, denoiser)
    pipe.text_encoder.requires_grad_(False)
    captioned = images.captioned_files(recipe.instance_images)
    captions = [recipe.instance_prompt or caption.text for caption in captioned]
    subject = Examples(encode_pictures(pipe, list(captioned.values())), captions, encode_texts(pipe, captions))
    prior = None if recipe.class_prompts is None else draw_class(recipe, pipe)
    teacher = None
    if prior is not None and recipe.prior == "distill":
        teacher = copy.deepcopy(denoiser)
    projections = find_projections(denoiser, tuple(recipe.features), "all")
    open_up(denoiser, projections, recipe)
    constraint = None
    if store is not None:
        recipe = recipe.model_copy(update={"store": store.url})
    elif recipe.store is not None:
        from nullbooth_cli import api

        store = api.open_store(recipe.store)
    if store is not None:
        from nullbooth_cli.constraint import constrain

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


def open_up(denoiser: nn.Module, projections: Sequence[Projection], recipe: Recipe) -> None:
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


def train(training: Training) -> Iterator[Event]:
    """Run the optimizer steps that are not done yet; yields one event for each.

    Raises ConfigError if the loss is not finite. Cost: a step is `gradient_accumulation_steps` forwards and backwards.
    """
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler

    recipe, accelerator = training.recipe, training.accelerator
    noising = DDPMScheduler.from_config(training.pipe.scheduler.config)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in training.denoiser.parameters() if parameter.requires_grad]}
    ]
    if training.word is not None:
        # Decay would pull the word to zero, where no word is.
        groups.append({"params": [training.word.row], "lr": recipe.word_learning_rate, "weight_decay": 0.0})
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.adam_weight_decay)
    # accelerate moves a scheduler on once for every process.
    lengths = {"num_warmup_steps": recipe.lr_warmup_steps, "num_training_steps": recipe.max_train_steps}
    lengths = {name: steps * accelerator.num_processes for name, steps in lengths.items()}
    rates = get_scheduler(recipe.lr_scheduler, optimizer, **lengths)
    denoiser, optimizer, rates = accelerator.prepare(training.denoiser, optimizer, rates)
    if training.word is not None:
        training.word.attach(accelerator.prepare(training.word))
    # While the word trains, its captions mean something else in every step.
    encode = partial(encode_texts, training.pipe) if training.word is not None else None
    if recipe.tensorboard:
        accelerator.init_trackers("nullbooth")
    first = checkpoints.resume(training)
    if first:
        yield Note(f"goes on from step {first}")
    denoiser.train()
    for step in range(first, recipe.max_train_steps):
        losses = []
        for micro in range(recipe.gradient_accumulation_steps):
            # Seeded by the step itself, so that a run that was stopped goes on with the draws it would have made.
            key = np.random.SeedSequence((recipe.seed, step, micro, accelerator.process_index)).generate_state(1, np.uint64)
            generator = torch.Generator("cpu").manual_seed(int(key[0]) >> 1)
            with accelerator.accumulate(denoiser):
                batch = training.subject.batch(generator, recipe.train_batch_size, encode)
                loss = _loss(denoiser, noising, *batch, generator)
                if training.prior is not None:
                    batch = training.prior.batch(generator, recipe.train_batch_size)
                    loss = loss + recipe.prior_weight * _loss(denoiser, noising, *batch, generator, training.teacher)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, recipe.max_grad_norm)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
        mean = sum(losses) / len(losses)
        if not np.isfinite(mean):
            raise ConfigError(f"the loss is {mean} at step {step + 1}", "lower learning_rate, or set mixed_precision to no")
        if recipe.tensorboard:
            accelerator.log({"loss": mean, "lr": rates.get_last_lr()[0]}, step=step + 1)
        done = step + 1
        if done % recipe.checkpointing_steps == 0 or done == recipe.max_train_steps:
            checkpoints.save(training, done)
        yield Progress("train", done, recipe.max_train_steps, f"loss {mean:.4f}")


def _loss(
    denoiser: nn.Module,
    noising: Any,
    latents: torch.Tensor,
    texts: torch.Tensor,
    generator: torch.Generator,
    teacher: nn.Module | None = None,
) -> torch.Tensor:
    """Mean squared error about the noise of a batch at random timesteps; with a teacher, about what it predicts."""
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timesteps = torch.randint(noising.config.num_train_timesteps, (len(latents),), generator=generator).to(latents.device)
    noisy = noising.add_noise(latents, noise, timesteps)
    predicted = denoiser(noisy, timesteps, texts, return_dict=False)[0]
    if teacher is not None:
        with torch.no_grad():
            target = teacher(noisy, timesteps, texts, return_dict=False)[0]
    elif noising.config.prediction_type == "epsilon":
        target = noise
    elif noising.config.prediction_type == "v_prediction":
        target = noising.get_velocity(latents, noise, timesteps)
    else:
        raise ConfigError(
            f"the model predicts {noising.config.prediction_type}", "nullbooth train knows epsilon and v_prediction"
        )
    return F.mse_loss(predicted.float(), target.float())


def finish(training: Training) -> dict[str, Any]:
    """Write the result: a pipeline folder, or a LoRA file that `load_lora_weights` reads; returns what is said of it.

    With a store, `drift` is norm(dW K0) / norm(W0 K0) of each weight, from the moments, in the precision that is saved.
    """
    recipe, folder = training.recipe, Path(training.recipe.output)
    training.denoiser.eval()
    drift = training.constraint.drift() if training.constraint else None
    place = folder / ("lora" if recipe.method == "lora" else "pipeline")
    if not training.accelerator.is_main_process:
        return {}
    if recipe.method == "lora":
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(training.denoiser))
        training.pipe.save_lora_weights(place, unet_lora_layers=layers)
    else:
        if training.constraint:
            training.constraint.merge()
        if training.word is not None:
            training.word.settle()
        training.pipe.save_pretrained(place)
    document = {
        "schema_version": 1,
        "output": str(place),
        "steps": recipe.max_train_steps,
        "trained": len(training.trained),
        "constrained_by": recipe.store,
        "largest_drift": max(drift.values()) if drift else None,
        "drift": drift,
    }
    (folder / "train.json").write_text(json.dumps({**document, "recipe": recipe.model_dump()}, indent=2) + "\n")
    return document
