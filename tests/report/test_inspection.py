"""The report of a store's projectors: what it is made of, and what is chosen of it."""

from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.report.inspection import inspect_store, most_leaking, sparklines, spectra_of, warning_lines, worst_first
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import execute, small_config
from tests.support.reports import CALLED, site_report

Run = tuple[Config, Store]


def test_entries_are_those_of_the_arrays(finished: Run) -> None:
    config, store = finished
    report = inspect_store(config, store)
    assert [entry.site_name for entry in report.sites] == [site.name for site in store.sites]
    for site, entry, eigenvalues in zip(store.sites, report.sites, spectra_of(store, report.sites), strict=True):
        sums = [store.moments.read_one(site, t) for t in range(site.num_recorded(4))]
        pooled = sum(each.sum_xxt for each in sums) / sum(each.count for each in sums)
        np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(pooled), atol=1e-9 * eigenvalues[-1])
        assert entry.count == sum(each.count for each in sums)
        assert (entry.largest, entry.smallest) == (eigenvalues[-1], eigenvalues[0])
        assert entry.threshold == pytest.approx(0.05 * eigenvalues[-1])
        assert entry.null_dim == int((eigenvalues < entry.threshold).sum())
        assert entry.leakage == pytest.approx(spectrum.leakage(eigenvalues, entry.null_dim), rel=1e-9)


def test_totals_are_those_of_the_entries(finished: Run) -> None:
    report = inspect_store(*finished)
    assert report.totals.null_dim == sum(entry.null_dim for entry in report.sites)
    assert report.totals.largest_leakage == max(entry.leakage for entry in report.sites)
    assert report.totals.weights == len({weight for entry in report.sites for weight in entry.weights})
    assert report.totals.largest_heldout_leakage is None
    assert report.files is None


@pytest.mark.parametrize(
    ("filters", "count"), [({"layer": "mid_block"}, 2), ({"feature": "out"}, 10), ({"site": "mid_block*q"}, 1)]
)
def test_filters(finished: Run, filters: dict[str, str], count: int) -> None:
    entries = inspect_store(*finished, **filters).sites
    everything = inspect_store(*finished).sites
    assert set(entries) < set(everything)
    assert len([entry for entry in entries if entry.feature != "k"]) == count


def test_a_timestep_has_no_projector_where_they_are_pooled(finished: Run) -> None:
    with pytest.raises(ConfigError, match="no site has a projector of its own for timestep 775") as caught:
        inspect_store(*finished, timestep=775.0)
    assert "999" in caught.value.hint
    assert caught.value.rerun is not None
    assert caught.value.rerun.settings == ("project.scope=timestep",)


def test_in_scope_timestep_there_is_an_entry_for_each_step(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"], project__scope="timestep")
    store = execute(config, "schedule", "collect", "covariance", "project")
    report = inspect_store(config, store)
    of_steps = [entry for entry in report.sites if entry.timestep is not None]
    assert [entry.step_index for entry in of_steps] == list(range(4)) * (len(of_steps) // 4)
    assert [entry.key for entry in of_steps[:4]] == [step.key for step in store.schedule()]
    one = inspect_store(config, store, timestep=of_steps[1].timestep)
    assert {entry.step_index for entry in one.sites} == {1}
    with pytest.raises(ConfigError, match="for timestep 1") as caught:
        inspect_store(config, store, timestep=1.0)
    assert caught.value.hint.startswith("choose one of 999")


def test_a_sparkline_for_each_entry(finished: Run) -> None:
    report = inspect_store(*finished)
    lines = sparklines(finished[1], report)
    assert len(lines) == len(report.sites)
    assert {len(line) for line in lines} == {17}


def test_the_most_leaking_of_each_site() -> None:
    one, two = site_report(leakage=0.1), site_report(leakage=0.3, timestep=1.0)
    other = site_report(feature="out", leakage=0.2)
    assert most_leaking([one, two, other]) == [two, other]
    assert most_leaking([two, one]) == [two]


def test_the_worst_of_each_kind_of_warning() -> None:
    few = site_report(leakage=0.2, count=60)
    later = site_report(leakage=0.3, timestep=5.0, key="timestep_0005")
    assert few.warnings == (
        "60 vectors for 8 dimensions; 80 or more are advised",
        "leakage 0.2 on the collected prompts, more than 0.1",
    )
    assert warning_lines([few, later, site_report(feature="k", leakage=0.25)]) == [
        f"60 vectors for 8 dimensions; 80 or more are advised: {few.site_name}",
        f"leakage 0.3 on the collected prompts, more than 0.1: {few.site_name} at timestep_0005, the worst of 2 sites",
    ]
    assert warning_lines([few], CALLED)[0] == "60 vectors for 8 dimensions; 80 or more are advised: mid_block.attentions.0 q"
    assert warning_lines([site_report()]) == []


def test_the_worst_first() -> None:
    """By the held-out prompts where they were measured."""
    one, two, three = (site_report(leakage=leakage) for leakage in (0.1, 0.3, 0.2))
    assert worst_first([one, two, three]) == [two, three, one]
    measured = site_report(leakage=0.1, heldout_leakage=0.25)
    assert worst_first([measured, two, three]) == [two, measured, three]
