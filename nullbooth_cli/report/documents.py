"""The dictionaries behind every answer: built first, then printed as JSON or drawn as a table."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from nullbooth_cli.datatypes import Site, Step, choose_sites
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import Decomposing
from nullbooth_cli.nullspace.spectrum import Eigenvalues
from nullbooth_cli.pipeline.plan import Plan
from nullbooth_cli.pipeline.project import decomposing
from nullbooth_cli.pipeline.state import StageState, bytes_of
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store

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
            {
                "index": step.index,
                "key": step.key,
                "timestep": step.timestep,
                "sigma": step.sigma if step.sigma == step.sigma else None,
            }
            for step in store.schedule()
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
                **({"heldout": _units_document(found.heldout)} if found.heldout else {}),
                **({"attention": _units_document(found.attention)} if found.attention else {}),
            }
            for stage, found in states.items()
        },
    }


def _units_document(found: StageState) -> dict[str, Any]:
    return {"state": found.state, "units_done": found.units_done, "units_total": found.units_total}


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
    config: Config,
    store: Store,
    layer: str | None = None,
    feature: str | None = None,
    timestep: float | None = None,
    site: str | None = None,
) -> dict[str, Any]:
    """The projectors of a store, one entry per recording and scope, filtered. Raises ConfigError if a filter leaves none."""
    rule, value = config.project.rule()
    settings = decomposing(config, store)
    chosen = choose_sites(store.sites, layer, feature, site)
    entries = (entry for each in chosen for entry in _entries(settings, store, each, rule, value))
    kept = [entry for entry in entries if timestep is None or entry["timestep"] == timestep]
    if not kept:
        there = ", ".join(f"{step.timestep:g}" for step in settings.steps)
        raise ConfigError(
            f"no site has a projector of its own for timestep {timestep:g}", f"scope timestep gives one for each of {there}"
        )
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
            "largest_heldout_leakage": max(
                (e["heldout_leakage"] for e in kept if e["heldout_leakage"] is not None), default=None
            ),
        },
    }


# What `project --explore` tries under each rule; the value in force comes on top.
LADDERS: dict[str, tuple[float, ...]] = {
    "nullspace_threshold": tuple(m * 10.0**e for e in range(-8, 2) for m in (1, 3)),
    "threshold_percent": (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "relative_threshold": tuple(m * 10.0**e for e in range(-8, 0) for m in (1, 3)),
    "energy": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 0.99999),
    "target_leakage": tuple(m * 10.0**e for e in range(-4, 0) for m in (1, 2, 5)),
    "null_dim": tuple(2**e for e in range(13)),
}


def explore_document(
    config: Config, store: Store, spectra: Iterable[tuple[Site, int, Eigenvalues, Eigenvalues, float]]
) -> dict[str, Any]:
    """A ladder of thresholds under the rule in force: for each, what every site and all of them would come to.

    `spectra` gives site, number, eigenvalues `[D]`, energies `[2, D]` and noise floor of each decomposition. A threshold below
    the noise floor of a site is marked, not refused.
    """
    rule, value = config.project.rule()
    found = list(spectra)
    smallest = min(len(eigenvalues) for _, _, eigenvalues, _, _ in found)
    ladder = sorted({*LADDERS[rule], float(value)})
    steps = store.schedule()
    rungs = [
        _rung(rule, tried, found, steps, config.project.scope) for tried in ladder if rule != "null_dim" or tried <= smallest
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "store": store.url,
        "scope": config.project.scope,
        "rule": {"name": rule, "value": value},
        "heldout": any(np.isfinite(energies[1]).all() for _, _, _, energies, _ in found),
        "ladder": rungs,
    }


def _rung(
    rule: str,
    value: float,
    spectra: list[tuple[Site, int, Eigenvalues, Eigenvalues, float]],
    steps: tuple[Step, ...],
    scope: str,
) -> dict[str, Any]:
    sites: list[dict[str, Any]] = []
    for site, index, eigenvalues, energies, floor in spectra:
        null_dim, held = spectrum.null_dim_of(eigenvalues, energies, rule, value)
        threshold = spectrum.threshold(eigenvalues, rule, value, null_dim)
        sites.append(
            {
                "layer": site.layer,
                "feature": site.feature,
                "key": "pooled" if scope == "pooled" or site.timestep_free else steps[index].key,
                "dim": site.dim,
                "null_dim": null_dim,
                "leakage": spectrum.leakage(energies[0], null_dim),
                "heldout_leakage": None if held is None else spectrum.leakage(held, null_dim),
                "below_noise": threshold is not None and threshold < floor,
            }
        )
    return {
        "value": float(value),
        "null_dim": sum(s["null_dim"] for s in sites),
        "dim": sum(s["dim"] for s in sites),
        "largest_leakage": max(s["leakage"] for s in sites),
        "largest_heldout_leakage": max((s["heldout_leakage"] for s in sites if s["heldout_leakage"] is not None), default=None),
        "empty": sum(s["null_dim"] == 0 for s in sites),
        "below_noise": sum(s["below_noise"] for s in sites),
        "sites": sites,
    }


def spectra_of(store: Store, entries: Iterable[dict[str, Any]]) -> list[Eigenvalues]:
    """The eigenvalues `[D]`, ascending, behind each entry of an inspect document."""
    sites = {site.name: site for site in store.sites}
    return [
        store.projectors.read_eigenvalues(sites[f"{entry['layer']}.{entry['feature']}"], entry["step_index"] or 0)
        for entry in entries
    ]


def sparklines(store: Store, document: dict[str, Any]) -> list[str]:
    """The spectrum of each entry of an inspect document, in a few characters."""
    entries = document["sites"]
    found = zip(spectra_of(store, entries), entries, strict=True)
    return [spectrum.sparkline(eigenvalues, entry["null_dim"]) for eigenvalues, entry in found]


def most_leaking(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the entries of each site, one per timestep, the one that leaks most."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        before = found.setdefault((entry["layer"], entry["feature"]), entry)
        if entry["leakage"] > before["leakage"]:
            found[entry["layer"], entry["feature"]] = entry
    return list(found.values())


def compare_document(compared: dict[str, Any]) -> dict[str, Any]:
    """What `analysis.compare` found, with its totals."""
    sites = compared["sites"]
    return {
        "schema_version": SCHEMA_VERSION,
        **compared,
        "totals": {
            "sites": len(sites),
            "dim": sum(site["dim"] for site in sites),
            "null_dim": [sum(site["null_dim"][i] for site in sites) for i in (0, 1)],
            "largest_leakage": [max(site["leakage"][i] for site in sites) for i in (0, 1)],
            "largest_leakage_on_the_other": [max(site["leakage_on_the_other"][i] for site in sites) for i in (0, 1)],
            "mean_overlap": sum(site["overlap"] for site in sites) / len(sites),
        },
    }


def _entries(settings: Decomposing, store: Store, site: Site, rule: str, value: float) -> Iterable[dict[str, Any]]:
    steps, scope = settings.steps, settings.pooling.scope
    counts = store.moments.counts(site)
    for index, group in enumerate(settings.pooling.groups(site, steps)):
        eigenvalues, noise_floor = store.projectors.read_eigenvalues(site, index), store.projectors.read_noise_floor(site, index)
        null_dim, leakage, heldout_leakage = store.projectors.read_cut(site, index)
        count = int(counts[group].sum())
        step = None if scope == "pooled" or site.timestep_free else steps[index]
        threshold = spectrum.threshold(eigenvalues, rule, value, null_dim)
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
            "count": count,
            "null_dim": null_dim,
            "effective_rank": spectrum.effective_rank(eigenvalues),
            "largest": float(eigenvalues[-1]),
            "smallest": float(eigenvalues[0]),
            "condition": condition if condition < float("inf") else None,
            "threshold": threshold,
            "noise_floor": noise_floor,
            "leakage": leakage,
            "heldout_leakage": heldout_leakage,
            "warnings": spectrum.spectrum_warnings(
                dim=site.dim,
                count=count,
                null_dim=null_dim,
                threshold=threshold,
                noise_floor=noise_floor,
                leakage=leakage,
                heldout_leakage=heldout_leakage,
            ),
            "arrays": {
                "features": f"features/{site.name}",
                "moments": f"moments/{site.name}",
                "projector": f"projectors/{site.name}",
            },
        }
