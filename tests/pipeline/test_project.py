"""Stage project under a config: what it decomposes, and what another threshold leaves alone."""

from typing import Any

import numpy as np
import pytest

from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.nullspace.pooling import pooled
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.progress import Note
from tests.support.builders import states_of
from tests.support.stages import changed, events


def test_another_threshold_only_cuts_again(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = tiny
    before = {site: store.projectors.read_cut(site, 0) for site in store.sites}
    monkeypatch.setattr("nullbooth_cli.nullspace.decompose.eigh", lambda *_: pytest.fail("decomposed again"))
    events(changed(config, project__relative_threshold=0.5), store, "project", force=True)
    after = {site: store.projectors.read_cut(site, 0) for site in store.sites}
    assert all(after[site][0] >= before[site][0] for site in store.sites)
    assert after != before


def test_an_empty_null_space_names_the_site_and_keeps_the_decomposition(tiny: Any) -> None:
    config, store = tiny
    with pytest.raises(ConfigError, match=r"the null space of mid_block.*is empty under relative_threshold 1e-09"):
        events(changed(config, project__relative_threshold=1e-9), store, "project", force=True)
    events(config, store, "project", force=True)
    assert set(states_of(config).values()) == {"complete"}


def test_the_hint_of_an_empty_null_space_can_be_followed_at_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What some sites were cut to serves nobody, and the decompositions stay; a complete stage is replaced only by force."""
    config, store = tiny
    refused = changed(config, project__relative_threshold=1e-9)
    with pytest.raises(ConfigError, match="is empty under relative_threshold 1e-09") as caught:
        events(refused, store, "project", force=True)
    assert "set project.empty to freeze" in caught.value.hint
    monkeypatch.setattr("nullbooth_cli.nullspace.decompose.eigh", lambda *_: pytest.fail("decomposed again"))
    frozen = changed(refused, project__empty="freeze")
    events(frozen, store, "project")
    assert states_of(frozen)["project"] == "complete"
    with pytest.raises(StageError, match=r"project in .* was made with other settings"):
        events(config, store, "project")


def test_an_empty_null_space_may_freeze_its_site(tiny: Any) -> None:
    config, store = tiny
    frozen = changed(config, project__relative_threshold=1e-9, project__empty="freeze")
    events(frozen, store, "project", force=True)
    assert set(states_of(frozen).values()) == {"complete"}
    sizes = {site: store.projectors.read_cut(site, 0).null_dim for site in store.sites}
    assert min(sizes.values()) == 0 < max(sizes.values())
    [empty, *_] = [site for site, size in sizes.items() if size == 0]
    assert not load_projector(store, empty).dense().any()
    assert store.projectors.read_cut(empty, 0).leakage == 0.0


def test_both_thresholds_are_announced(tiny: Any) -> None:
    config, store = tiny
    both = changed(config, project__relative_threshold=None, project__nullspace_threshold=0.1, project__threshold_percent=50.0)
    assert any(
        "the percentile is in force" in event.text
        for event in events(both, store, "project", force=True)
        if isinstance(event, Note)
    )


def test_per_timestep_scope(tiny: Any) -> None:
    config, store = tiny
    events(changed(config, project__scope="timestep"), store, "project", force=True)
    for site in store.sites:
        cuts = [store.projectors.read_cut(site, t) for t in range(1 if site.timestep_free else 4)]
        for t, (null_dim, leakage, _) in enumerate(cuts):
            sum_xxt, _, count = store.moments.read_one(site, t)
            eigenvalues = np.linalg.eigvalsh(sum_xxt / count)
            assert null_dim == (eigenvalues < 0.05 * eigenvalues[-1]).sum()
            assert leakage == pytest.approx(np.sqrt(eigenvalues[:null_dim].sum() / eigenvalues.sum()), abs=1e-9)


def test_centred_leakage_is_measured_about_zero(tiny: Any) -> None:
    config, store = tiny
    events(changed(config, covariance__centred=True), store, "project", force=True)
    for site in store.sites:
        sum_xxt, _, _ = pooled(store, site, range(site.num_recorded(4)))
        null_dim, leakage, _ = store.projectors.read_cut(site, 0)
        basis = store.projectors.read_eigenvectors(site, 0)[:, :null_dim]
        assert leakage == pytest.approx(np.sqrt(np.trace(basis.T @ sum_xxt @ basis) / np.trace(sum_xxt)), rel=1e-6)
