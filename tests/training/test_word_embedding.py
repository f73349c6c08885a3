"""The embedding of one word trains, and no other row of the text encoder's table."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from nullbooth_cli import toy
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.tiny_dreambooth import EMBEDDING, TEXT_ENCODER, recipe, run, weights


def test_its_embedding_is_trained_and_nothing_else_of_the_text_encoder(
    tmp_path: Path, finished: tuple[Config, Store], constrained_run: dict[str, Any]
) -> None:
    document = run(recipe(tmp_path, store=str(finished[1].path), word="sks"))
    before, after = (load_file(folder / TEXT_ENCODER) for folder in (toy.FOLDER, Path(document["output"])))
    pipe = StableDiffusionPipeline.from_pretrained(document["output"], dtype=torch.float32)
    [token] = pipe.tokenizer("sks", add_special_tokens=False).input_ids
    rows = (before.pop(EMBEDDING).float() != after.pop(EMBEDDING).float()).any(1).nonzero().flatten().tolist()
    assert rows == [token]
    assert all(torch.equal(tensor.float(), after[name].float()) for name, tensor in before.items())
    assert any(
        not torch.equal(tensor, weights(constrained_run["output"])[name]) for name, tensor in weights(document["output"]).items()
    )


def test_its_learning_rate_is_its_own(tmp_path: Path) -> None:
    moved = []
    for rate in (1e-3, 1e-2):
        document = run(recipe(tmp_path / f"{rate}", word="sks", word_learning_rate=rate, max_train_steps=1))
        before, after = (load_file(folder / TEXT_ENCODER)[EMBEDDING] for folder in (toy.FOLDER, Path(document["output"])))
        moved.append(float((after.float() - before.float()).abs().max()))
    # The first step of Adam has the size of the learning rate.
    assert moved == pytest.approx([1e-3, 1e-2], rel=1e-2)
