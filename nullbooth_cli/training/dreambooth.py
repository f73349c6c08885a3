"""DreamBooth training, constrained by a store or not: small enough to be read before it is trusted.

1. `prepare()` loads the model, encodes pictures and captions once, marks what is trained and puts the constraint in its place,
   before the optimizer is built.
2. `train()` is the loop; it yields an event for every optimizer step, checkpoints, and can go on from the last one.
3. `finish()` writes plain weights (a pipeline folder, or a LoRA file) and what they would move of the knowledge kept.

The loss is the one of diffusers' train_dreambooth.py: the mean squared error of what the model predicts about the noise of a
picture at a random timestep, and beside it, with a weight, the same on pictures of the class. (Ruiz et al., arXiv 2208.12242.)
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.training import checkpoints
from nullbooth_cli.training.examples import encode_texts
from nullbooth_cli.training.setup import Training


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


@quiet_libraries()
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
