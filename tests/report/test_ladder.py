"""A ladder of thresholds: what is tried, and what it comes to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Site, Step
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.nullspace.cut import SiteSpectrum
from nullbooth_cli.report.inspection import Rule, inspect_store
from nullbooth_cli.report.ladder import LADDERS, explore_thresholds, rungs_of
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store

STEPS = [Step(0, "timestep_0999", 999.0, 1.0)]


def spectra(dims: list[int], seed: int, *, heldout: bool) -> list[SiteSpectrum]:
    """A random spectrum for each width; the collected data are those of the moment itself."""
    rng, found = np.random.default_rng(seed), []
    for i, dim in enumerate(dims):
        site = Site(f"l{i}", "q", "input", (f"l{i}.to_q.weight",), False, 4, dim)
        eigenvalues = np.sort(10.0 ** rng.uniform(-9, 1, dim))
        other = 10.0 ** rng.uniform(-9, 1, dim) if heldout else np.full(dim, np.nan)
        found.append(SiteSpectrum(site, 0, eigenvalues, np.stack([eigenvalues, other]), 1e-8))
    return found


@given(st.sampled_from(sorted(LADDERS)), st.lists(st.integers(2, 20), min_size=1, max_size=3), st.integers(0, 99), st.booleans())
def test_a_larger_null_space_leaks_more(rule: str, dims: list[int], seed: int, heldout: bool) -> None:
    in_force = LADDERS[rule][0]
    rungs = rungs_of(Rule(rule, in_force), spectra(dims, seed, heldout=heldout), STEPS, "pooled")
    assert in_force in [rung.value for rung in rungs]
    assert [rung.value for rung in rungs] == sorted({rung.value for rung in rungs})
    for rung in rungs:
        assert rung.null_dim == sum(site.null_dim for site in rung.sites) <= rung.dim == sum(dims)
        assert rung.largest_leakage == max(site.leakage for site in rung.sites)
        assert rung.empty == sum(site.null_dim == 0 for site in rung.sites)
        assert (rung.largest_heldout_leakage is None) == (not heldout)
    for i in range(len(dims)):
        of_site = sorted((rung.sites[i].null_dim, rung.sites[i].leakage) for rung in rungs)
        assert [leakage for _, leakage in of_site] == sorted(leakage for _, leakage in of_site)


def test_null_dim_stops_at_the_smallest_site() -> None:
    rungs = rungs_of(Rule("null_dim", 3), spectra([5, 16], 0, heldout=False), STEPS, "pooled")
    assert [rung.value for rung in rungs] == [1, 2, 3, 4]


def test_a_threshold_below_the_noise_floor_is_marked() -> None:
    rungs = rungs_of(Rule("nullspace_threshold", 1e-8), spectra([20], 0, heldout=False), STEPS, "timestep")
    assert [rung.below_noise for rung in rungs if rung.value < 1e-8] == []
    assert {rung.below_noise for rung in rungs} == {0}
    noisy = [each._replace(noise_floor=1e-3) for each in spectra([20], 0, heldout=False)]
    for rung in rungs_of(Rule("nullspace_threshold", 1e-8), noisy, STEPS, "timestep"):
        assert rung.below_noise == (rung.value < 1e-3)
        assert rung.sites[0].key == "timestep_0999"


def test_the_rung_in_force_is_what_was_projected(finished: tuple[Config, Store]) -> None:
    ladder = explore_thresholds(*finished, pick_device("cpu"))
    report = inspect_store(*finished)
    assert ladder.in_force.value == 0.05
    assert [site.null_dim for site in ladder.in_force.sites] == [entry.null_dim for entry in report.sites]
    assert [site.leakage for site in ladder.in_force.sites] == pytest.approx([entry.leakage for entry in report.sites])
    assert ladder.heldout is False
