"""Training runs of four steps on the embedded model, and the weights that they leave."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nullbooth_cli import toy
from nullbooth_cli.model.conditioning import capture
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import dreambooth, setup
from tests.support.builders import ROOT

CLASS_PROMPTS = ["a red circle on a white background", "a blue circle on a gray background"]
DISTILLED = {"distill_captions": "own", "distill_pictures": "class"}  # the pictures of the class prompts
INSTANCES = ROOT / "dataset/instances/toy"
TEXT_ENCODER, EMBEDDING = "text_encoder/model.safetensors", "embeddings.token_embedding.weight"


def recipe(output: Path, **changes: Any) -> Recipe:
    """Four steps of two pictures, a checkpoint after the second and the last."""
    settings = {
        "output": str(output),
        "instance_images": str(INSTANCES),
        "max_train_steps": 4,
        "checkpointing_steps": 2,
        "train_batch_size": 2,
        "validation_inference_steps": 2,
        "learning_rate": 1e-2,
    }
    return Recipe(**{**settings, **changes})


def run(made: Recipe, stop_after: int | None = None) -> dict[str, Any]:
    """Train as the command does; the result as JSON, or an empty one of a run that was stopped."""
    ready = setup.set_up(made, "cpu")
    for done, _ in enumerate(dreambooth.train(ready), start=1):
        if done == stop_after:
            return {}
    result = dreambooth.finish(ready)
    assert result is not None
    return result.document()


def encoded(pipe: Any, texts: list[str]) -> torch.Tensor:
    """Texts as to_k and to_v of the embedded model receive them, `[N, L, D]`."""
    return capture(pipe, texts, size=(32, 32), guidance=1.0).by_row["encoder_hidden_states"]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """The U-Net of a pipeline folder."""
    return load_file(Path(folder) / "unet/diffusion_pytorch_model.safetensors")


def changed(folder: Path | str) -> set[str]:
    """The parameters of a saved U-Net that are not those of the embedded model; the saved one is float32."""
    before = weights(toy.FOLDER)
    return {name for name, tensor in weights(folder).items() if not torch.equal(tensor, before[name].float())}
