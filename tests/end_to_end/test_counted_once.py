"""Whatever is damaged, repaired, added, removed, forced or killed: complete moments are those of a fresh collection.

The model is pretended (`tests.support.recorded`), everything else is real. A failure shows its seed and what happened.
NULLBOOTH_SEQUENCES is the number of sequences for each `keep`.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline import stages
from nullbooth_cli.pipeline.collect import release_features
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.pipeline.workers import Workers
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store
from nullbooth_cli.store.local import LocalBacking
from nullbooth_cli.store.verify import Damage, forget_damaged, run_checks
from tests.support.builders import prompts_of
from tests.support.recorded import assert_fresh, pretended_model
from tests.support.stores import TIMED

SEQUENCES = int(os.environ.get("NULLBOOTH_SEQUENCES", "4"))
EVENTS = 8
MOST_HINTS = 10  # commands that lead out of any mess
STAGES = ("schedule", "collect", "covariance")
CONTROLS: tuple[dict[str, Any], ...] = ({}, {}, {"repair": True}, {"repair": True}, {"force": True}, {"limit": 1})


class Killed(BaseException):
    """The process is gone before its next write."""


@contextmanager
def killed_before(instant: int | None) -> Iterator[None]:
    """Every write from the n-th on fails, as if the process had been killed before it."""
    with pytest.MonkeyPatch.context() as patched, suppress(Killed):
        left = [instant]
        for name in ("put", "delete") if instant is not None else ():
            real = getattr(LocalBacking, name)

            def dying(self: LocalBacking, *given: Any, real: Any = real) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                real(self, *given)

            patched.setattr(LocalBacking, name, dying)
        yield


class Process(Workers):
    """One process of any launch, whose partial sums have a name of their own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @property
    def name(self) -> str:
        return self._name


class Sequence:
    """One store, and everything that can happen to it. `happened` tells it, in order."""

    def __init__(self, place: Path, keep: str, rng: random.Random, *, is_factored: bool = False) -> None:
        self.place, self.keep, self.rng = place, keep, rng
        self.batch_size, self.prompts, self.next_prompt = rng.randint(1, 3), list[str](), 0
        self.factors = {"factor_above": 2, "factor_rank": 2} if is_factored else {}
        self.happened: list[str] = []
        self.add(rng.randint(2, 7))
        self.execute("collect")
        self.execute("covariance")

    @property
    def config(self) -> Config:
        return build_config(
            {
                "store": str(self.place),
                "original_knowledge_prompts": self.prompts,
                "collect": {"keep": self.keep, "batch_size": self.batch_size, "feature_dtype": "float32"},
                "covariance": self.factors,
            }
        )

    def store(self) -> Store:
        return Store.open_or_create(self.place, self.config.model_dump())

    def execute(self, stage: str, instant: int | None = None, process: int = 0, **control: Any) -> None:
        self.happened.append(f"{stage} {control or ''} in process {process}{'' if instant is None else f', killed at {instant}'}")
        workers, store = Process(f"1-of-1.{process}"), self.store()
        run = Run(config=self.config, prompts=prompts_of(self.config), store=store, device="cpu", workers=workers, **control)
        with store.lock(), killed_before(instant):
            list(stages.execute(stage, run))

    # What may happen

    def happen(self) -> None:
        self.rng.choice(
            [self.run, self.run, self.run, self.damage, self.damage, self.add, self.remove, self.rebatch, self.release]
        )()

    def run(self) -> None:
        instant = self.rng.randrange(60) if self.rng.random() < 0.4 else None
        with suppress(NullboothError):
            stage = self.rng.choice(STAGES[1:])
            self.execute(stage, instant, self.rng.randrange(2), **self.rng.choice(CONTROLS))

    def add(self, count: int = 1) -> None:
        self.happened.append(f"add {count}")
        self.prompts += [f"prompt {self.next_prompt + i}" for i in range(count)]
        self.next_prompt += count

    def remove(self) -> None:
        if len(self.prompts) > 1:
            self.prompts.remove(gone := self.rng.choice(self.prompts))
            self.happened.append(f"remove {gone}")

    def rebatch(self) -> None:
        self.batch_size = self.rng.randint(1, 3)
        self.happened.append(f"batch size {self.batch_size}")

    def damage(self) -> None:
        """Flip a bit in a chunk, or remove it; a missing cell is no damage, but a unit that is not done."""
        group = self.rng.choice(("features", "parts", "moments", "staged", "progress"))
        if chunks := sorted((self.place / group).rglob("c.*")):
            path = self.rng.choice(chunks)
            self.happened.append(f"damage {path.relative_to(self.place)}")
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            if group != "progress" and self.rng.random() < 0.5:
                path.unlink()

    def release(self) -> None:
        with suppress(NullboothError):
            if self.states()["covariance"] == "complete":
                self.happened.append("release")
                release_features(self.store())

    # What must hold

    def states(self) -> dict[str, str]:
        found = stage_states(self.config, prompts_of(self.config), self.store())
        return {stage: state.state for stage, state in found.items()}

    def damage_found(self) -> list[Damage]:
        results = (result for stage in STAGES for result in run_checks(self.store(), stage))
        return [result for result in results if isinstance(result, Damage)]

    def check(self) -> None:
        """Moments that count as complete, in a store without damage, are right."""
        with suppress(NullboothError):
            if self.states()["covariance"] == "complete" and not self.damage_found():
                assert_fresh(self.place, self.prompts)

    def lead_out(self) -> None:
        """The plain commands, and the hint of each error that they meet, end in moments that are right."""
        hint: tuple[str, dict[str, bool]] | None = None
        for _ in range(MOST_HINTS):
            try:
                if hint:
                    (stage, control), hint = hint, None
                    self.execute(stage, **control)
                    continue
                self.execute("collect")
                self.execute("covariance")
                if damaged := self.damage_found():
                    raise damaged[0].error
            except NullboothError as error:
                if error.rerun is None:
                    raise
                hint = error.rerun.stage, {name: True for name in ("force", "repair") if getattr(error.rerun, name)}
                self.happened.append(f"-> {error.message.splitlines()[0]}")
            else:
                return assert_fresh(self.place, self.prompts)
        raise AssertionError("the hints lead nowhere")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Sequence]:
    """Six prompts in three units, features and moments, recorded and summed by two processes in turn."""
    with pretended_model():
        sequence = Sequence(tmp_path / "run.zarr", "both", random.Random(0))
        sequence.prompts, sequence.batch_size = [f"prompt {i}" for i in range(6)], 2
        sequence.execute("collect", force=True, limit=1)
        sequence.execute("collect", process=1)
        yield sequence


def damage_unit(sequence: Sequence, unit: int) -> None:
    path = sequence.place / f"features/{TIMED.name}/c.0.{unit}.0.0"
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("unit", [0, 1, 2])
@pytest.mark.parametrize("process", [0, 1, 2])
def test_features_are_recorded_again_and_not_summed_again(both: Sequence, unit: int, process: int) -> None:
    """Whichever process folded the unit, and whichever repairs it."""
    damage_unit(both, unit)
    both.execute("collect", process=process, repair=True)
    assert both.damage_found() == []
    both.execute("covariance", force=True)
    assert_fresh(both.place, both.prompts)


def test_a_repair_that_is_killed_is_finished_by_the_plain_command(both: Sequence) -> None:
    """The unit is in the sums, and has no cell: its features are damaged, and not only its cell lost."""
    damage_unit(both, 1)
    forget_damaged(both.store(), "collect")
    both.execute("collect")
    assert both.damage_found() == []


@pytest.mark.parametrize("keep", ["features", "both"])
@pytest.mark.parametrize(("count", "batch_size"), [(6, 3), (6, 1), (7, 2), (8, 4)])
def test_a_forced_collection_with_other_units_has_no_moments(both: Sequence, keep: str, count: int, batch_size: int) -> None:
    both.keep, both.prompts, both.batch_size = keep, both.prompts[:5], 2
    both.execute("collect", force=True)
    both.execute("covariance", force=True)
    both.prompts, both.batch_size = [f"prompt {i}" for i in range(count)], batch_size
    for control in ({"force": True}, {}):
        both.execute("collect", **control)
        both.check()
    both.lead_out()


@pytest.mark.parametrize("seed", range(SEQUENCES))
@pytest.mark.parametrize("is_factored", [False, True])
@pytest.mark.parametrize("keep", ["features", "moments", "both"])
def test_any_sequence_ends_in_the_moments_of_a_fresh_collection(tmp_path: Path, keep: str, is_factored: bool, seed: int) -> None:
    with pretended_model():
        sequence = Sequence(tmp_path / "run.zarr", keep, random.Random(f"{keep} {seed}"), is_factored=is_factored)
        try:
            sequence.check()
            for _ in range(EVENTS):
                sequence.happen()
                sequence.check()
            sequence.lead_out()
            if sequence.states()["collect"] != "released" or keep != "features":
                sequence.execute("covariance", force=True)  # from the same features or sums once more
                assert_fresh(sequence.place, sequence.prompts)
        except BaseException as error:
            error.add_note("\n".join(sequence.happened))
            raise
