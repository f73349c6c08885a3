"""Checkpoints of a training: all that is needed to go on, and pictures of how far it is."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nullbooth_cli.errors import ConfigError, ResourceError
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.tensors import generators

if TYPE_CHECKING:
    from nullbooth_cli.training.setup import Training

CHECKPOINT = "checkpoint-{:06d}"
MAY_GROW = "max_train_steps"


def save(training: "Training", done: int) -> None:
    """Save what is needed to go on; pictures of it are drawn from it. The newest is kept, and named when it is whole."""
    recipe, accelerator = training.recipe, training.accelerator
    folder = Path(recipe.output)
    partial = folder / f"{CHECKPOINT.format(done)}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()  # else a faster process has written into it already
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
            final = folder / CHECKPOINT.format(done)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in folder.glob("checkpoint-*"):
                if old != final:
                    shutil.rmtree(old)
            draw_validation(training, done)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error}", "free some space and run the same command: it goes on from the last checkpoint"
        ) from error


def resume(training: "Training") -> int:
    """Load the last checkpoint, if there is one; returns the steps that it holds.

    Raises ConfigError if another recipe made it.
    """
    found = sorted(path for path in Path(training.recipe.output).glob("checkpoint-*") if path.suffix != ".partial")
    if not found:
        return 0
    before = json.loads((found[-1] / "recipe.json").read_text())
    now = json.loads(training.recipe.model_dump_json())
    changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key] and key != MAY_GROW]
    if changed:
        raise ConfigError(
            f"{found[-1]} was made with other settings\n  " + "\n  ".join(changed), "name another output, or remove that folder"
        )
    training.accelerator.load_state(str(found[-1]))
    return int(found[-1].name.rpartition("-")[2])


@quiet_libraries()
@torch.no_grad()
def draw_validation(training: "Training", done: int) -> None:
    """Draw the validation prompts into the folder `validation`, each from the same noise every time."""
    from PIL import Image

    recipe, pipe = training.recipe, training.pipe
    if not recipe.validation_prompts:
        return
    training.denoiser.eval()
    drawn = pipe(
        recipe.validation_prompts,
        num_inference_steps=recipe.validation_inference_steps,
        guidance_scale=recipe.guidance_scale,
        generator=generators(range(recipe.seed, recipe.seed + len(recipe.validation_prompts))),
        output_type="np",
    ).images
    training.denoiser.train()
    folder = Path(recipe.output) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(drawn):
        Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(folder / f"{done:06d}_{i}.png")
