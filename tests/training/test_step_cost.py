"""The cost of a step, from shapes and one timed step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nullbooth_cli.model import load
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import dreambooth, setup
from nullbooth_cli.training.before_loading import read_inputs, without_weights
from nullbooth_cli.training.memory import text_encoders
from nullbooth_cli.training.step_cost import StepCost, step_cost
from tests.support.tiny_dreambooth import CLASS_PROMPTS, recipe

CPU = torch.device("cpu")


def cost(made: Recipe) -> StepCost:
    source = Source.of(made)
    encoders = text_encoders(load.config_folder(source))
    return step_cost(made, without_weights(source), encoders, read_inputs(made, ()).resizing.size, CPU)


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("method", "place"), [("full", "pipeline"), ("lora", "lora")])
def test_files_have_about_the_bytes_that_were_counted(tmp_path: Path, method: str, place: str) -> None:
    made = recipe(tmp_path, method=method, max_train_steps=1, checkpointing_steps=1)
    counted = cost(made)
    ready = setup.set_up(made, "cpu")
    for _ in dreambooth.train(ready):
        pass
    dreambooth.finish(ready)
    # Of files this small, headers and the tokenizer count.
    assert file_bytes(tmp_path / place) == pytest.approx(counted.result_bytes, rel=0.05, abs=80e3)
    assert file_bytes(tmp_path / "checkpoint-000001") == pytest.approx(counted.checkpoint_bytes, rel=0.05, abs=80e3)


def test_what_does_not_fit_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullbooth_cli.training.step_cost.free_memory", lambda _: 10**6)
    found = cost(recipe(tmp_path))
    assert found.seconds is None
    assert found.memory.peak > 10**6


def test_short_steps_are_timed_several_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median: one of them may have waited for something else."""
    ticks = iter([0.0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2, 1.3])
    monkeypatch.setattr("nullbooth_cli.training.step_cost._now", lambda _: next(ticks))
    assert cost(recipe(tmp_path)).seconds == pytest.approx(0.1)
    assert next(ticks, None) is None


def test_seconds_grow_with_the_forwards_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("nullbooth_cli.training.step_cost._now", lambda _: float(next(ticks)))
    memory = cost(recipe(tmp_path)).memory
    monkeypatch.setattr("nullbooth_cli.training.step_cost.training_memory", lambda *_, **__: memory)
    changes: list[dict[str, Any]] = [
        {},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3, "class_prompts": CLASS_PROMPTS},
        {"distill_captions": "empty"},
    ]
    assert [cost(recipe(tmp_path, **change)).seconds for change in changes] == pytest.approx([1.0, 3.0, 6.0, 7 / 3])
