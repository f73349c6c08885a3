"""The memory of a training step on a GPU beside what is counted before: weights, what a forward keeps, and the peak.

The weights are zero: their values change no bytes. Two steps, because the first one makes gradients and optimizer state.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import torch

from nullbooth_cli.model import load
from nullbooth_cli.model.denoising_loss import predict
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import optimizers
from nullbooth_cli.training.before_loading import without_weights
from nullbooth_cli.training.memory import empty_denoiser, inputs_of, text_encoders, training_memory
from nullbooth_cli.training.precision import HALF
from tests.support.builders import ROOT

BFLOAT16 = {"dtype": "bfloat16", "mixed_precision": "bf16"}
SAVING = {"gradient_checkpointing": True}
LORA = {"method": "lora", "rank": 16, **BFLOAT16}
CASES: tuple[tuple[str, int, Mapping[str, Any]], ...] = (
    ("sd15", 512, {}),
    ("sd15", 512, {"mixed_precision": "fp16"}),
    ("sd15", 512, {**LORA, **SAVING, "train_batch_size": 4}),
    ("sdxl", 1024, LORA),
    ("sdxl", 1024, {**LORA, **SAVING}),
    ("sdxl", 1024, {**BFLOAT16, **SAVING}),
    ("sd3", 1024, LORA),
    ("pixart", 1024, LORA),
    ("flux", 512, LORA),
    ("flux", 512, {**LORA, **SAVING}),
)


def measured(name: str, side: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Counted and measured bytes of one case, each as [counted, measured]."""
    recipe = Recipe.model_validate({"model": str(ROOT / "tests/architectures" / name), "train_batch_size": 1, **settings})
    source, size, device = Source.of(recipe), (side, side), torch.device("cuda")
    pipe = without_weights(source)
    counted = training_memory(recipe, pipe, text_encoders(load.config_folder(source)), size)
    denoiser = empty_denoiser(recipe, pipe).to_empty(device=device)
    with torch.no_grad():
        for tensor in [*denoiser.parameters(), *denoiser.buffers()]:
            tensor.zero_()
    weights = torch.cuda.memory_allocated()
    optimizer = optimizers.build(recipe, [each for each in denoiser.parameters() if each.requires_grad])
    given, half = inputs_of(recipe, pipe, size, recipe.train_batch_size, device), HALF[recipe.mixed_precision]
    before = kept = of_step = 0
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", half, enabled=half is not None):
            loss = predict(denoiser, **given).float().square().mean()
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        of_step = torch.cuda.max_memory_allocated() - before
        optimizer.step()  # gradients stay, as with accumulation
        del loss
    return {
        "case": f"{name} {side} {' '.join(f'{key}={value}' for key, value in settings.items())}",
        "weights": [counted.weights, weights],
        "kept": [counted.kept_checkpointed if recipe.gradient_checkpointing else counted.kept_plain, kept],
        "activations": [counted.activations, of_step],
        "training": [counted.phases["train"], torch.cuda.max_memory_allocated()],
        "reserved": torch.cuda.max_memory_reserved(),
    }


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--only", help="cases whose model begins so")
    only = made.parse_args().only or ""
    for name, side, settings in CASES:
        if name.startswith(only):
            print(json.dumps(measured(name, side, settings)), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
