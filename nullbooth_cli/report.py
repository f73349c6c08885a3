"""The dictionaries behind every answer: built first, then printed as JSON or drawn as a table."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from nullbooth_cli import spectrum
from nullbooth_cli.config import Config
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.plans import Plan
from nullbooth_cli.states import StageState, bytes_of
from nullbooth_cli.store import Site, Store

SCHEMA_VERSION = 1


def schedule_document(config: Config, store: Store) -> dict[str, Any]:
    section = config.schedule
    return {
        "schema_version": SCHEMA_VERSION,
        "store": store.url,
        "strategy": section.sampler_strategy,
        "mode": section.timestep_mode,
        "scheduler": store.records["schedule"]["scheduler"],
        "seed": section.seed,
        "steps": [
            {"index": step.index, "key": step.key, "timestep": step.timestep, "sigma": step.sigma} for step in store.schedule()
        ],
    }


def status_document(path: str, store: Store | None, states: dict[str, StageState]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "store": path,
        "stages": {
            stage: {
                "state": found.state,
                "units_done": found.units_done,
                "units_total": found.units_total,
                "bytes": bytes_of(store, stage) if store else 0,
                "stale_because": [
                    {"field": because.field, "old": because.old, "new": because.new} for because in found.stale_because
                ],
            }
            for stage, found in states.items()
        },
    }


def plan_document(plans: Iterable[Plan]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "dry_run": True, "stages": {plan.stage: vars(plan) for plan in plans}}


def stage_document(stage: str, state: StageState, store: Store) -> dict[str, Any]:
    """What collect and covariance answer."""
    return {
        "schema_version": SCHEMA_VERSION,
        "store": store.url,
        "stage": stage,
        "state": state.state,
        "units_done": state.units_done,
        "units_total": state.units_total,
        "bytes": bytes_of(store, stage),
    }


def inspect_document(
    config: Config, store: Store, layer: str | None = None, feature: str | None = None, timestep: float | None = None
) -> dict[str, Any]:
    """The projectors of a store, one entry per recording and scope, filtered. Raises ConfigError if a filter leaves none."""
    rule, value = config.project.rule()
    entries = [entry for site in store.sites for entry in _entries(config, store, site, rule, value)]
    kept = [e for e in entries if _passes(e, layer, feature, timestep)]
    if not kept:
        layers = "\n  ".join(dict.fromkeys(e["layer"] for e in entries))
        raise ConfigError("no site passes the filters", f"--layer takes a name or a glob pattern; the sites are on\n  {layers}")
    return {
        "schema_version": SCHEMA_VERSION,
        "store": store.url,
        "scope": config.project.scope,
        "rule": {"name": rule, "value": value},
        "centred": config.covariance.centred,
        "sites": kept,
        "totals": {
            "sites": len(kept),
            "weights": len({weight for e in kept for weight in e["weights"]}),
            "dim": sum(e["dim"] for e in kept),
            "null_dim": sum(e["null_dim"] for e in kept),
            "count": sum(e["count"] for e in kept),
            "largest_leakage": max(e["leakage"] for e in kept),
        },
    }


def _passes(entry: dict[str, Any], layer: str | None, feature: str | None, timestep: float | None) -> bool:
    """A shared recording passes for every layer and feature that it feeds."""
    fed = [_layer_and_feature(weight) for weight in entry["weights"]]
    return (
        (layer is None or any(fnmatchcase(name, layer) or fnmatchcase(name, f"*{layer}*") for name, _ in fed))
        and (feature is None or any(name == feature for _, name in fed))
        and (timestep is None or entry["timestep"] == timestep)
    )


def _layer_and_feature(weight: str) -> tuple[str, str]:
    layer, _, projection = weight.removesuffix(".weight").removesuffix(".0").rpartition(".")
    return layer, projection.removeprefix("to_")


def _entries(config: Config, store: Store, site: Site, rule: str, value: float) -> Iterable[dict[str, Any]]:
    steps = store.schedule()
    recorded = site.num_recorded(len(steps))
    pooled = config.project.scope == "pooled"
    counts = [store.read_count(site, t) for t in range(recorded)]
    for index in range(1 if pooled else recorded):
        eigenvalues = store.read_eigenvalues(site, index)
        null_dim, leakage = store.read_cut(site, index)
        step = None if pooled or site.timestep_free else steps[index]
        condition = spectrum.condition(eigenvalues)
        yield {
            "layer": site.layer,
            "feature": site.feature,
            "side": site.side,
            "weights": list(site.weights),
            "step_index": step.index if step else None,
            "key": step.key if step else "pooled",
            "timestep": step.timestep if step else None,
            "dim": site.dim,
            "count": sum(counts) if pooled else counts[index],
            "null_dim": null_dim,
            "effective_rank": spectrum.effective_rank(eigenvalues),
            "largest": float(eigenvalues[-1]),
            "smallest": float(eigenvalues[0]),
            "condition": condition if condition < float("inf") else None,
            "threshold": spectrum.threshold(eigenvalues, rule, value),
            "leakage": leakage,
            "heldout_leakage": None,
            "arrays": {
                "features": f"features/{site.name}",
                "moments": f"moments/{site.name}",
                "projector": f"projectors/{site.name}",
            },
        }
