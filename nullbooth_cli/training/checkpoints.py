"""Checkpoints of a training run: the state to resume from, and the validation pictures drawn from it.

    <output>/checkpoint-000200/
    <output>/validation/000200_0.png

A checkpoint gets its name when all of it is on disk, and only then the oldest is removed, if there are more than may stay. So a
run that was killed at any moment, or met a full disk, finds a whole checkpoint.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullbooth_cli.datatypes import TRAINED
from nullbooth_cli.errors import DataError
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.tensors import generators
from nullbooth_cli.training import checkpoint_files, durable, parameters
from nullbooth_cli.training.checkpoint_files import Checkpoint
from nullbooth_cli.training.ema import averaged
from nullbooth_cli.training.examples import guidance_of
from nullbooth_cli.training.parameters import trained_parameters
from nullbooth_cli.training.placement import at_hand
from nullbooth_cli.training.setup import TrainingRun
from nullbooth_cli.training.write_trained import write_trained


def save(run: TrainingRun) -> None:
    """Save the state after `run.steps_done` steps; every process calls this.

    Raises DataError if a weight is not finite, ResourceError if it cannot be written; earlier checkpoints are then still there.
    Cost: the bytes of the weights that train, once for the state and once in `trained/`, of the optimizer's state and of the
    averages. They are written, and read once for their digests.
    """
    _require_finite(run)
    accelerator, output = run.accelerator, run.recipe.output
    folder = checkpoint_files.folder_of(output, run.steps_done)
    first = accelerator.is_main_process
    with durable.replacing(folder) if first else contextlib.nullcontext(durable.partial_of(folder)) as partial:
        accelerator.wait_for_everyone()  # without this, a faster process has already written into it
        with durable.writing(folder.parent):
            _save_state(run, partial)
        accelerator.wait_for_everyone()  # a checkpoint is complete when every process has written its files
        if first:
            with averaged(run.averages):
                write_trained(run, partial / TRAINED)
            num_bytes = checkpoint_files.describe(partial, run.steps_done, run.record)
    if first:
        limit = checkpoint_files.limit_of(run.recipe.checkpoints_total_limit, num_bytes)
        with durable.writing(folder.parent):
            checkpoint_files.remove_old(output, run.steps_done, limit)


def _save_state(run: TrainingRun, folder: Path) -> None:
    """Write accelerate's state, and in place of whole models what trains; every process calls this."""
    hook = run.accelerator.register_save_state_pre_hook(lambda _, weights, __: weights.clear())
    try:
        run.accelerator.save_state(str(folder))
    finally:
        hook.remove()
    if run.accelerator.is_main_process:
        parameters.write(folder / parameters.PARAMETERS, trained_parameters(run.denoiser, run.word))
        if run.averages is not None:
            parameters.write(folder / parameters.AVERAGES, run.averages.tensors())


def _require_finite(run: TrainingRun) -> None:
    """Raise DataError for a weight that is not finite: the loss is that of the step before, and does not show it yet."""
    for name, parameter in trained_parameters(run.denoiser, run.word).items():
        if not parameter.isfinite().all():
            raise DataError(
                f"{name} is not finite after step {run.steps_done}", "lower learning_rate, or set mixed_precision to no"
            )


def load(run: TrainingRun, optimizer: torch.optim.Optimizer, rates: Any) -> None:
    """Load the run's checkpoint. Learning rates and weight decay stay those of this run's recipe.

    Every process calls this.
    """
    assert run.checkpoint is not None
    settings = [{key: group[key] for key in ("initial_lr", "weight_decay")} for group in optimizer.param_groups]
    _load_state(run, run.checkpoint)
    scheduler = rates.scheduler
    scheduler.base_lrs = [group["initial_lr"] for group in settings]
    for group, new, factor in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
        group.update(new, lr=new["initial_lr"] * factor(scheduler.last_epoch))
    run.steps_done = run.checkpoint.step


@torch.no_grad()
def _load_state(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Load accelerate's state and what trains."""
    hook = run.accelerator.register_load_state_pre_hook(lambda models, _: models.clear())
    try:
        run.accelerator.load_state(str(checkpoint.folder))
    finally:
        hook.remove()
    trained = trained_parameters(run.denoiser, run.word)
    for name, value in parameters.read(checkpoint.folder / parameters.PARAMETERS, trained).items():
        trained[name].copy_(value)
    if run.averages is not None:
        averages = parameters.read(checkpoint.folder / parameters.AVERAGES, run.averages.tensors())
        run.averages.load(averages, checkpoint.step)


@torch.no_grad()
def draw_validation(run: TrainingRun) -> None:
    """Draw the validation prompts into the folder `validation`, each from the same noise at every checkpoint.

    Only the main process draws. Raises DataError for a picture that is not finite, ResourceError for one that cannot be written.
    """
    from PIL import Image

    recipe = run.recipe
    if not run.validation_prompts or not run.accelerator.is_main_process:
        return
    run.denoiser.eval()
    with quiet_libraries(), averaged(run.averages), at_hand(run.pipe, run.accelerator.device):
        drawn = run.pipe(
            list(run.validation_prompts),
            num_inference_steps=recipe.validation_inference_steps,
            guidance_scale=guidance_of(recipe, type(run.pipe)),
            generator=generators(range(recipe.seed, recipe.seed + len(run.validation_prompts))),
            output_type="np",
        ).images
    run.denoiser.train()
    if not np.isfinite(drawn).all():
        raise DataError(f"a validation picture is not finite at step {run.steps_done}", "lower guidance_scale or learning_rate")
    for i, picture in enumerate(drawn):
        encoded = io.BytesIO()
        Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(encoded, "png")
        with durable.replacing(Path(recipe.output) / "validation" / f"{run.steps_done:06d}_{i}.png") as partial:
            partial.write_bytes(encoded.getvalue())
