"""Checkpoints of a training run: the state to resume from, and the validation pictures drawn from it.

    <output>/checkpoint-000200/          accelerate's state, recipe.json
    <output>/validation/000200_0.png

Only the newest checkpoint stays. It gets its name when it is complete, and only then the one before is removed. So a run that was
killed at any moment finds a whole checkpoint.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.tensors import generators
from nullbooth_cli.training.setup import TrainingRun

CHECKPOINT = "checkpoint-{:06d}"
MAY_CHANGE = "max_train_steps"  # more steps continue the same run


def save(run: TrainingRun, done: int) -> None:
    """Save the state after `done` steps, and draw the validation pictures. Every process calls this.

    Raises ResourceError if the folder cannot be written.
    """
    accelerator, folder = run.accelerator, Path(run.recipe.output)
    partial = folder / f"{CHECKPOINT.format(done)}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()  # without this, a faster process has already written into it
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()  # a checkpoint is complete when every process has written its files
        if accelerator.is_main_process:
            (partial / "recipe.json").write_text(run.recipe.model_dump_json(indent=2) + "\n")
            final = folder / CHECKPOINT.format(done)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in folder.glob("checkpoint-*"):
                if old != final:
                    shutil.rmtree(old)
            draw_validation(run, done)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error}", "free some space and train again: the run resumes from the last checkpoint"
        ) from error


def resume(run: TrainingRun) -> int:
    """Load the last checkpoint, if there is one; returns the number of steps that are done.

    Raises ConfigError if another recipe made it.
    """
    found = sorted(path for path in Path(run.recipe.output).glob("checkpoint-*") if path.suffix != ".partial")
    if not found:
        return 0
    before = json.loads((found[-1] / "recipe.json").read_text())
    now = json.loads(run.recipe.model_dump_json())
    changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key] and key != MAY_CHANGE]
    if changed:
        raise ConfigError(
            f"{found[-1]} was made with other settings\n  " + "\n  ".join(changed), "name another output, or remove that folder"
        )
    run.accelerator.load_state(str(found[-1]))
    return int(found[-1].name.rpartition("-")[2])


@torch.no_grad()
def draw_validation(run: TrainingRun, done: int) -> None:
    """Draw the validation prompts into the folder `validation`, each from the same noise at every checkpoint."""
    from PIL import Image

    recipe = run.recipe
    if not recipe.validation_prompts:
        return
    run.denoiser.eval()
    drawn = run.pipe(
        recipe.validation_prompts,
        num_inference_steps=recipe.validation_inference_steps,
        guidance_scale=recipe.guidance_scale,
        generator=generators(range(recipe.seed, recipe.seed + len(recipe.validation_prompts))),
        output_type="np",
    ).images
    run.denoiser.train()
    folder = Path(recipe.output) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(drawn):
        Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(folder / f"{done:06d}_{i}.png")
