"""The log of a training run's steps, also of one that was stopped, killed or resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.errors import ResourceError
from nullbooth_cli.training.step_log import StepLog
from tests.support.tiny_dreambooth import recipe, run


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]


def write(output: Path, after: int, until: int) -> None:
    """A run that resumes after a step, and ends after another."""
    with StepLog(str(output), after) as log:
        for step in range(after + 1, until + 1):
            log.add(step=step, loss=1 / step, learning_rate=1e-3, seconds=0.12345678)


def test_a_line_a_step(tmp_path: Path) -> None:
    write(tmp_path / "new", 0, 3)
    assert lines(tmp_path / "new")[1] == {"step": 2, "loss": 0.5, "learning_rate": 1e-3, "seconds": 0.1235}
    assert (tmp_path / "new/train.jsonl").read_bytes().endswith(b"\n")


@given(runs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 40)), max_size=4))
def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int, int]]
) -> None:
    """Whatever was done after the checkpoint, and wherever the last line was cut."""
    whole, output = (tmp_path_factory.mktemp(name) for name in ("whole", "resumed"))
    write(whole, 0, 9)
    done = 0  # steps whose lines are whole
    for resumed, steps, cut in runs:
        after = min(resumed, done)
        write(output, after, after + steps)
        with (output / "train.jsonl").open("ab") as file:
            file.write(b'{"step": 99, "loss": 0.25, "learning_rate": 1}\n'[:cut])
        done = after + steps
    after = min(5, done)
    write(output, after, 9)
    assert (output / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()


def test_every_line_is_there_before_the_next_step(tmp_path: Path) -> None:
    with StepLog(str(tmp_path), 0) as log:
        for step in (1, 2):
            log.add(step=step, loss=1.0, learning_rate=1.0, seconds=1.0)
            assert [line["step"] for line in lines(tmp_path)] == list(range(1, step + 1))


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    with StepLog(str(tmp_path), 0, is_written=False) as log:
        log.add(step=1, loss=1.0, learning_rate=1.0, seconds=1.0)
        log.flush()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(ResourceError, match="cannot write to"), StepLog(str(tmp_path), 0):
        pytest.fail("it is a folder")


def test_of_a_run(tmp_path: Path) -> None:
    """The learning rate is that of the step, not the next one's."""
    changes = {"lr_scheduler": "linear"}
    run(recipe(tmp_path / "whole", **changes))
    run(recipe(tmp_path / "stopped", **changes), stop_after=3)
    assert len(lines(tmp_path / "stopped")) == 3
    run(recipe(tmp_path / "stopped", **changes))
    one, other = ([{**line, "seconds": 0} for line in lines(tmp_path / name)] for name in ("whole", "stopped"))
    assert one == other
    assert [line["step"] for line in one] == [1, 2, 3, 4]
    assert [line["learning_rate"] for line in one] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
