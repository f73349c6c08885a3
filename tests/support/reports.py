"""Reports made by hand, without a store."""

from typing import Any

import numpy as np

from nullbooth_cli.datatypes import Site
from nullbooth_cli.report.inspection import ArrayPaths, InspectReport, InspectTotals, Rule, SiteReport
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
UP = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
CALLED = {LAYER: "mid_block.attentions.0", UP: "up_blocks.0.attentions.0"}


def site_report(layer: str = LAYER, feature: str = "q", **changes: Any) -> SiteReport:
    """A pooled projector of 8 dimensions, 3 of them null."""
    values: dict[str, Any] = {
        "layer": layer,
        "feature": feature,
        "side": "input",
        "weights": (f"{layer}.to_{feature}.weight",),
        "step_index": None,
        "key": "pooled",
        "timestep": None,
        "dim": 8,
        "count": 100,
        "null_dim": 3,
        "effective_rank": 4.0,
        "largest": 10.0,
        "smallest": 0.001,
        "condition": 1e4,
        "threshold": 0.1,
        "noise_floor": 1e-12,
        "leakage": 0.02,
        "heldout_leakage": None,
        "arrays": ArrayPaths(features="f", moments="m", projector="p"),
    }
    return SiteReport(**{**values, **changes})


def inspect_report(leakage: float = 0.02, heldout: float | None = 0.04, empty: bool = False) -> InspectReport:
    """Two sites of 8 dimensions, 3 of each null; the second one may have none."""
    sites = (site_report(), site_report(feature="out", null_dim=0 if empty else 3))
    totals = InspectTotals(
        sites=2, weights=5, dim=16, null_dim=6, count=100, largest_leakage=leakage, largest_heldout_leakage=heldout
    )
    return InspectReport(
        store="run.zarr", scope="pooled", rule=Rule("relative_threshold", 1e-3), centred=False, sites=sites, totals=totals
    )


def site_over_timesteps(layer: str = LAYER, feature: str = "q", null_dim: tuple[float, ...] = (3, 4, 5)) -> SiteOverTimesteps:
    """A site of 8 dimensions at three timesteps."""
    site = Site(
        layer=layer,
        feature=feature,
        side="input",
        weights=(f"{layer}.to_{feature}.weight",),
        timestep_free=False,
        num_tokens=4,
        dim=8,
    )
    count = len(null_dim)
    return SiteOverTimesteps(
        site=site,
        timesteps=np.linspace(900, 0, count),
        eigenvalues=np.tile(np.geomspace(1e-3, 10, 8), (count, 1)),
        null_dim=np.array(null_dim, dtype=np.float64),
        effective_rank=np.full(count, 2.0),
        leakage=np.linspace(0.1, 0.2, count),
        heldout_leakage=np.full(count, np.nan),
        overlap=np.where(np.eye(count) > 0, 1.0, 0.6),
        chance=max(null_dim) / 8,
    )
