"""A run of a stage: what its states cost, who decides, and what the record of a stage says."""

from typing import Any

import pytest

from nullbooth_cli.pipeline.run import Prepared, Run, decide, layout_of, my_units, prepare, units_to_do
from nullbooth_cli.pipeline.workers import Shard, Workers
from tests.support.builders import prompts_of, small_config
from tests.support.counting import counted


def run_of(tiny: Any, **how: Any) -> Run:
    config, store = tiny
    return Run(config=config, prompts=prompts_of(config), store=store, **how)


def test_states_are_read_once_until_something_is_prepared(tiny: Any) -> None:
    run = run_of(tiny)
    with counted() as objects:
        first = run.states()
        assert run.states() is first
        assert decide(run, lambda: run.states().own["project"].state) == "complete"
    assert objects.reads("progress/project/c.0") == 1
    prepare(run, Prepared)
    assert run.states() is not first
    assert run.states() == first


def test_a_shard_reads_them_anew_for_each_decision(tiny: Any) -> None:
    """Another shard may have written meanwhile."""
    run = run_of(tiny, workers=Workers(Shard(1, 2)))
    first = run.states()
    assert decide(run, lambda: run.states() is first) is False


def test_what_one_process_prepares_reaches_the_run(tiny: Any) -> None:
    prepared = prepare(run_of(tiny), lambda: Prepared(todo=[3, 1], done=2, total=4, notes=["said"]))
    assert (prepared.todo, prepared.done, prepared.total, prepared.notes) == ([3, 1], 2, 4, ["said"])
    assert list(my_units(run_of(tiny), prepared)) == [3, 1]


@pytest.mark.parametrize(("limit", "todo"), [(None, [1, 2, 3]), (2, [1, 2])])
def test_units_that_are_left(tiny: Any, limit: int | None, todo: list[int]) -> None:
    _, store = tiny
    store.progress.mark("collect", [1, 2, 3], 0)
    prepared = units_to_do(run_of(tiny, limit=limit), "collect", bool)
    assert (prepared.todo, prepared.done, prepared.total) == (todo, 1, 4)


def test_a_layout_is_that_of_the_settings(tmp_path: Any) -> None:
    section = small_config(tmp_path / "run.zarr", collect__keep="both", collect__compression="lz4").collect
    layout = layout_of(section)
    assert (layout.keep, layout.batch_size, layout.dtype, layout.compression) == ("both", 3, "float32", "lz4")
    assert layout_of(section, 5).batch_size == 5
