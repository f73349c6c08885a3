"""The report of `status --watch`: what it makes of states and notes, and looks that meet a change half way."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import StoreError
from nullbooth_cli.pipeline.state import StageState
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.watch import MAX_FAILURES, Ages, WatchReport, WorkerNote, poll, read_notes, watch_report
from nullbooth_cli.store import Store
from tests.support.notes import note


def state(stage: str, name: str = "partial", done: int = 2, total: int | None = 8, **parts: Any) -> StageState:
    return StageState(stage=stage, state=name, units_done=done, units_total=total, **parts)


STATES = {
    "schedule": state("schedule", "complete", 1, 1),
    "collect": state("collect", heldout=state("collect", "missing", 0, 1)),
    "covariance": state("covariance", "missing", 0, None),
}


def report(*notes: WorkerNote, states: dict[str, StageState] | None = None, ages: Ages | None = None) -> WatchReport:
    return watch_report("run.zarr", states or STATES, list(notes), ages or Ages())


class TestReport:
    def test_rates_add_up(self) -> None:
        now = time.time()
        other = note("1-of-1.1", began=now - 38, last=now - 2)
        row = report(("", note()), ("", other)).stages["collect"]
        assert (row.state, row.units_done, row.units_total) == ("partial", 2, 8)
        assert row.units_per_minute == pytest.approx(15 + 5)
        assert row.seconds_left == pytest.approx(6 / 20 * 60)
        assert row.heldout is not None
        assert row.heldout.units_per_minute is None

    @given(st.lists(st.tuples(st.floats(0.01, 1e4), st.integers(1, 1000)), min_size=1, max_size=5))
    def test_the_rate_is_the_sum_of_what_each_does(self, processes: list[tuple[float, int]]) -> None:
        now = time.time()
        notes = [
            ("", note(f"1-of-1.{rank}", began=now - 2 - seconds * units, units=units, last=now - 2))
            for rank, (seconds, units) in enumerate(processes)
        ]
        row = report(*notes).stages["collect"]
        assert row.units_per_minute == pytest.approx(sum(60 / seconds for seconds, _ in processes), rel=1e-3)

    def test_no_pace_before_the_first_unit(self) -> None:
        found = report(("", note(units=0, last=None)))
        assert found.stages["collect"].units_per_minute is None
        assert found.stages["collect"].seconds_left is None
        assert (found.workers[0].seconds_per_unit, found.workers[0].seconds_since_unit) == (None, None)

    def test_the_heldout_prompts_have_a_rate_of_their_own(self) -> None:
        found = report(("heldout", note()))
        assert found.stages["collect"].units_per_minute is None
        assert found.stages["collect"].heldout is not None
        assert found.stages["collect"].heldout.units_per_minute == pytest.approx(15)
        assert found.workers[0].heldout

    def test_attention_maps_have_a_rate_of_their_own(self) -> None:
        states = {**STATES, "collect": state("collect", "complete", 8, 8, attention=state("attention", done=1, total=3))}
        row = report(("", note(stage="attention")), states=states).stages["collect"]
        assert row.units_per_minute is None
        assert row.attention is not None
        assert row.attention.seconds_left == pytest.approx(8)

    def test_a_silent_process_does_not_count(self) -> None:
        found = report(("", note()), ("", note("1-of-1.1", time=time.time() - 100)))
        assert found.stages["collect"].units_per_minute == pytest.approx(15)
        assert [process.silent_seconds for process in found.workers] == [None, pytest.approx(100, abs=60)]

    def test_notes_about_work_that_is_done_are_left_out(self) -> None:
        assert report(("", note(stage="schedule"))).workers == ()

    def test_notes_about_a_stage_of_another_version_are_left_out(self) -> None:
        assert report(("", note(stage="distil")), ("heldout", note(stage="distil"))).workers == ()

    def test_clocks_may_differ(self) -> None:
        """The other machine's clock is an hour behind: its process is alive once it is seen to give a heartbeat."""
        ages, now = Ages(), time.time()
        behind = now - 3600
        assert ages.age("", note(time=behind), now=now, clock=10.0) == pytest.approx(3600)
        assert ages.age("", note(time=behind + 3), now=now, clock=13.0) == 0.0
        assert ages.age("", note(time=behind + 3), now=now, clock=20.0) == 7.0

    def test_notes_are_read_from_both_stores(self, tmp_path: Path) -> None:
        store = Store.create(tmp_path / "run.zarr", {})
        store.heartbeats.write(outer := note())
        assert read_notes(store) == [("", outer)]
        store.inside_or_create(HELDOUT, {}).heartbeats.write(inner := note("1-of-1.1"))
        assert read_notes(store) == [("", outer), ("heldout", inner)]

    def test_its_json(self) -> None:
        """The keys are an interface (docs/how-to/watch-a-run.md)."""
        found = to_json(report(("", note())))
        assert list(found) == ["schema_version", "store", "time", "stages", "workers"]
        assert found["schema_version"] == 1
        units = ["state", "units_done", "units_total", "units_per_minute", "seconds_left"]
        assert list(found["stages"]["collect"]) == [*units, "stale_because", "heldout"]
        assert list(found["stages"]["collect"]["heldout"]) == units
        assert list(found["workers"][0]) == [
            *("worker", "stage", "heldout", "host", "pid", "units"),
            *("seconds", "seconds_per_unit", "seconds_since_unit", "silent_seconds"),
        ]

    def test_what_counts_as_a_change(self) -> None:
        same = [report(("", note())).change_key() for _ in range(2)]
        assert same[0] == same[1], "neither the time nor the rate alone"
        one_more = {**STATES, "collect": state("collect", done=3, heldout=STATES["collect"].heldout)}
        assert report(("", note()), states=one_more).change_key() != same[0]
        assert report().change_key() != same[0]
        assert report(("", note(time=time.time() - 100))).change_key() != same[0]


class TestPolling:
    def test_a_look_that_fails_once_is_repeated(self) -> None:
        partial, done = (report(states={"collect": state("collect", name)}) for name in ("partial", "complete"))
        found: Iterator[Any] = iter([StoreError("torn", ""), KeyError("layout"), partial, done])

        def look() -> WatchReport:
            if isinstance(item := next(found), Exception):
                raise item
            assert isinstance(item, WatchReport)
            return item

        assert [seen.stages["collect"].state for seen in poll(look, None, 0.0)] == ["partial", "complete"]

    def test_a_look_that_fails_again_and_again_is_an_error(self) -> None:
        times = itertools.count()

        def look() -> WatchReport:
            next(times)
            raise StoreError("a chunk is damaged", "")

        with pytest.raises(StoreError, match="a chunk is damaged"):
            list(poll(look, None, 0.0))
        assert next(times) == MAX_FAILURES

    def test_it_waits_for_the_attention_maps(self) -> None:
        rows = [state("collect", "complete", 8, 8, attention=state("attention", name)) for name in ("partial", "complete")]
        found = iter([report(states={"collect": row}) for row in rows])
        assert len(list(poll(lambda: next(found), "collect", 0.0))) == 2
