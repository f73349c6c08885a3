"""What teaching would take."""

from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.teaching import plan
from nullbooth_cli.teaching.plan import TeachPlan, plan_teaching
from nullbooth_cli.training.memory import TrainingMemory
from nullbooth_cli.training.step_cost import StepCost
from tests.support.teaching import SETTINGS


@pytest.fixture
def planned(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> TeachPlan:
    """Of a step that takes six seconds."""
    parts = ("weights", "constraint", "teacher", "gradients", "optimizer", "averages", "activations")
    kept: dict[str, Any] = {
        "kept_plain": 0,
        "kept_checkpointed": 0,
        "helpers": {"vae": 1},
        "phases": {"train": 1000, "encode": 10},
    }
    memory = TrainingMemory(**dict.fromkeys(parts, 0), **kept)
    cost = StepCost(seconds=6.0, memory=memory, checkpoint_bytes=10**6, result_bytes=10**7)
    monkeypatch.setattr(plan, "cost_of", lambda *_: cost)
    given: dict[str, Any] = {"pictures": str(photos), "steps": 8, "settings": SETTINGS}
    return plan_teaching(given, str(tmp_path / "out"), device="cpu")


def test_steps_and_pictures_make_the_time(planned: TeachPlan) -> None:
    assert planned.steps == 8
    assert planned.train_seconds == 48.0
    # Four prompts of each set and four of the subject, by the base, its other seed and the taught model.
    assert planned.pictures == 3 * (4 + 4 + 4)
    # A forward of one picture is a third of the step of two; two steps of two branches for each picture.
    assert planned.draw_seconds == 36 * 2 * 2 * 1.0


def test_disk_has_the_store_checkpoints_and_result(planned: TeachPlan) -> None:
    store = sum(stage.bytes_needed for stage in planned.stages.values())
    assert store > 0
    assert planned.bytes_needed == store + 4 * 10**6 + 10**7  # a checkpoint at every second of eight steps
    assert planned.device_bytes == 1000


def test_nothing_is_written(planned: TeachPlan) -> None:
    assert not Path(planned.output).exists()


def test_mistakes_are_found(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"the word 'circle' is in \d+ preserved prompts"):
        plan_teaching({"pictures": str(photos), "word": "circle"}, str(tmp_path / "out"), device="cpu")
