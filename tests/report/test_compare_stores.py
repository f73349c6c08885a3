"""Two stores side by side, against their arrays."""

from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.report.compare_stores import compare_stores
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, first_half, small_config

Run = tuple[Config, Store]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first half of the prompts, another threshold."""
    return first_half(tmp_path_factory.mktemp("other"))


def test_numbers_are_those_of_the_arrays(finished: Run, other: Run) -> None:
    (config, store), (other_config, other_store) = finished, other
    found = compare_stores(config, store, other_config, other_store, store.sites)
    fields = {row.field: row.values for row in found.differences}
    assert fields["project.relative_threshold"] == (0.05, 0.02)
    assert "original_knowledge_prompts" in fields
    assert "weights" not in fields
    theirs = {site.name: site for site in other_store.sites}
    for site, row in zip(store.sites, found.sites, strict=True):
        pair = [(store, site), (other_store, theirs[site.name])]
        p, q = (load_projector(s, at).dense() for s, at in pair)
        c, d = (second_moment(pooled(s, at, range(at.num_recorded(4)))) for s, at in pair)
        assert row.null_dim == tuple(s.projectors.read_cut(at, 0).null_dim for s, at in pair)
        assert row.overlap == pytest.approx(np.trace(p @ q) / min(row.null_dim), abs=1e-9)
        assert row.chance == pytest.approx(max(row.null_dim) / site.dim)
        assert row.leakage[0] == pytest.approx(np.sqrt(np.trace(p @ c @ p) / np.trace(c)), rel=1e-6)
        assert row.leakage_on_the_other[0] == pytest.approx(np.sqrt(np.trace(p @ d @ p) / np.trace(d)), rel=1e-6)
        assert row.leakage_on_the_other[1] == pytest.approx(np.sqrt(np.trace(q @ c @ q) / np.trace(c)), rel=1e-6)
    totals = found.totals
    assert totals.null_dim == tuple(sum(row.null_dim[i] for row in found.sites) for i in (0, 1))
    assert totals.largest_leakage == tuple(max(row.leakage[i] for row in found.sites) for i in (0, 1))
    assert totals.mean_overlap == pytest.approx(np.mean([row.overlap for row in found.sites]))


def test_a_store_equals_itself(finished: Run) -> None:
    config, store = finished
    found = compare_stores(config, store, config, store, store.sites)
    assert found.differences == ()
    assert found.only_in == ((), ())
    for row in found.sites:
        assert row.overlap == pytest.approx(1.0)
        assert row.leakage_on_the_other == pytest.approx(row.leakage, rel=1e-6)


def test_sites_that_one_lacks_are_named(finished: Run, tmp_path: Path) -> None:
    changes = {"collect__cross_attention_layers": ["mid_block*"], "original_knowledge_prompts": PROMPTS[:3]}
    part_config = small_config(tmp_path / "run.zarr", **changes)
    part = execute(part_config, "collect", "covariance", "project")
    found = compare_stores(*finished, part_config, part, finished[1].sites)
    assert {row.layer for row in found.sites} == {"mid_block.attentions.0.transformer_blocks.0.attn2"}
    # The text's recording is named after the first layer that was looked at.
    assert found.only_in[1] == ("mid_block.attentions.0.transformer_blocks.0.attn2.k",)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.q" in found.only_in[0]
    only_text = [site for site in finished[1].sites if site.feature == "k"]
    with pytest.raises(ConfigError, match="have no site in common"):
        compare_stores(*finished, part_config, part, only_text)


def test_scopes_that_differ_are_refused(finished: Run) -> None:
    config, store = finished
    stepwise = config.model_copy(update={"project": config.project.model_copy(update={"scope": "timestep"})})
    with pytest.raises(ConfigError, match=r"has projectors of scope pooled, .* of scope timestep") as caught:
        compare_stores(config, store, stepwise, store, store.sites)
    assert "project.scope=pooled" in caught.value.hint
