"""What each remembered task took and met, against float64 numpy, for any order, scope, weight and threshold."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import WHOLE, AnySums, Factoring, Site, Sums
from nullbooth_cli.errors import StoreError
from nullbooth_cli.nullspace.budget import budgets
from nullbooth_cli.nullspace.decompose import ProjectUnit, project
from nullbooth_cli.nullspace.factored import reduced
from nullbooth_cli.nullspace.pooling import DecompositionSettings, FactoredSums, Pooling
from nullbooth_cli.store import Store, list_task, unlist_task
from tests.support.stores import FREE, TIMED, start_collection

SITES, STEPS = (FREE, TIMED), 3
Vectors = dict[str, list[np.ndarray]]


def vectors(rng: np.random.Generator, sites: Sequence[Site] = SITES) -> Vectors:
    """For each site and recorded timestep some vectors, with a spectrum over four decades; timesteps differ in number."""
    found: Vectors = {}
    for site in sites:
        turn = np.linalg.qr(rng.standard_normal((site.dim, site.dim)))[0]
        scale = np.logspace(0, -2, site.dim)
        found[site.name] = [
            rng.standard_normal((int(rng.integers(5, 30)), site.dim)) * scale @ turn for _ in range(site.num_recorded(STEPS))
        ]
    return found


def write(store: Store, data: Vectors, factoring: Factoring = WHOLE, sites: Sequence[Site] = SITES) -> None:
    """Moments of these vectors, as covariance leaves them."""
    start_collection(store, tuple(sites), num_steps=STEPS, num_rows=2, keep="moments")
    above = {"covariance.factor_above": factoring.above, "covariance.factor_rank": factoring.rank}
    store.write_record("covariance", {"settings": {} if factoring is WHOLE else above})
    store.moments.create(sites, STEPS, store.layout, factoring)
    for site in sites:
        for block in store.blocks(site):
            store.moments.write(site, block, [sums_of(data[site.name][t], factoring.rows(site.dim)) for t in block])


def sums_of(x: np.ndarray, rows: int) -> AnySums:
    if rows == x.shape[1]:
        return Sums(x.T @ x, x.sum(0), len(x))
    factor, delta = reduced(x, rows)
    return FactoredSums(factor, x.sum(0), len(x), trace=float(np.square(x).sum()), delta=delta)


def projected(store: Store, how: DecompositionSettings, num_tasks: int, **rule: object) -> None:
    units = [ProjectUnit(i, *unit) for i, unit in enumerate(how.pooling.units(store.sites, how.steps))]
    counts = {site.name: len(how.pooling.groups(site, how.steps)) for site in store.sites}
    store.projectors.create(store.sites, counts, store.moments.rows, num_tasks=num_tasks)
    store.progress.create("project", len(units))
    for _ in project(store, torch.device("cpu"), how, units, may_be_empty=True, **rule):  # type: ignore[arg-type]
        pass


def moment(parts: Sequence[tuple[int, Vectors]], site: Site, timesteps: Sequence[int], weight: str) -> np.ndarray:
    """The mean of x x^T over vectors that count so many times; with weight "timestep" the mean of those of the timesteps."""
    each = []
    for t in timesteps:
        total = sum(times * data[site.name][t].T @ data[site.name][t] for times, data in parts)
        each.append((total, sum(times * len(data[site.name][t]) for times, data in parts)))
    if weight == "timestep":
        return sum(total / count for total, count in each) / len(each)
    return sum(total for total, _ in each) / sum(count for _, count in each)


def null_of(values: np.ndarray, rule: str, value: float, heldout: np.ndarray | None) -> int:
    """The number of null directions, written plainly for three rules."""
    if rule == "relative_threshold":
        return int((values < value * values.max()).sum())
    if rule == "null_dim":
        return int(value)
    energies = values if heldout is None else heldout
    return int((np.sqrt(np.cumsum(energies) / energies.sum()) <= value).sum())


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    weights=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    pooling=st.sampled_from([Pooling(), Pooling("timestep"), Pooling(weight="timestep"), Pooling(timesteps=(997.5, 998.5))]),
    rule=st.sampled_from([("relative_threshold", 1e-3), ("null_dim", 2.0), ("target_leakage", 0.05)]),
    has_heldout=st.booleans(),
)
def test_it_is_that_of_plain_numpy(
    seed: int, weights: list[int], pooling: Pooling, rule: tuple[str, float], has_heldout: bool
) -> None:
    rng = np.random.default_rng(seed)
    base, heldout = vectors(rng), vectors(rng) if has_heldout else None
    tasks = [(times, vectors(rng)) for times in weights]
    with TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "run.zarr", {})
        write(store, base)
        if heldout is not None:
            write(store.inside_or_create("heldout", {}), heldout)
        for place, (times, data) in enumerate(tasks):
            write(store.inside_or_create(f"tasks/task{place}", {}), data)
            list_task(store, f"task{place}", kind="hard", weight=times, source="x")
        how = DecompositionSettings(pooling, store.schedule(), heldout=has_heldout)
        projected(store, how, len(tasks), rule=rule[0], value=rule[1])
        found = budgets(store, how, *rule, store.sites)
        every = [(site, group) for site in store.sites for group in pooling.groups(site, how.steps)]
        for k, budget in enumerate(found):
            assert (budget.name, budget.weight, budget.prompts) == (f"task{k}", weights[k], 2)
            for (site, group), entry in zip(every, budget.sites, strict=True):
                null_dims, shares = [], []
                own = moment([tasks[k]], site, group, pooling.weight)
                for parts in ([(1, base), *tasks[:k]], [(1, base), *tasks[: k + 1]], [(1, base), *tasks]):
                    values, u = np.linalg.eigh(moment(parts, site, group, pooling.weight))
                    held = None if heldout is None else moment([(1, heldout)], site, group, pooling.weight)
                    n = null_of(values, *rule, None if held is None else np.einsum("dk,de,ek->k", u, held, u))
                    p = u[:, :n] @ u[:, :n].T
                    null_dims.append(n)
                    shares.append([np.trace(p @ c) / np.trace(c) for c in (own, (u * values) @ u.T, held) if c is not None])
                assert (entry.null_dim_before, entry.null_dim) == tuple(null_dims[:2])
                assert entry.taken == null_dims[0] - null_dims[1]
                assert entry.energy == pytest.approx(shares[0][0], abs=1e-9)
                assert entry.preserved_energy == pytest.approx(shares[0][1], abs=1e-9)
                assert entry.heldout_energy == (pytest.approx(shares[0][2], abs=1e-9) if has_heldout else None)
                assert entry.leakage**2 == pytest.approx(shares[2][0], abs=1e-9)


def test_of_factors(tmp_path: Path) -> None:
    """With as many rows as vectors, a factor lacks nothing: the budget is that of whole moments."""
    rng, site = np.random.default_rng(0), Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), True, 2, 40)
    data = [{site.name: [rng.standard_normal((5, 40))]} for _ in range(2)]
    found = []
    for name, factoring in (("whole", WHOLE), ("factors", Factoring(12, 12))):
        store = Store.create(tmp_path / name, {})
        write(store, data[0], factoring, [site])
        write(store.inside_or_create("tasks/dog", {}), data[1], factoring, [site])
        list_task(store, "dog", kind="hard", weight=2, source="x")
        how = DecompositionSettings(Pooling(), store.schedule())
        projected(store, how, 1, rule="relative_threshold", value=1e-6)
        [budget] = budgets(store, how, "relative_threshold", 1e-6, store.sites)
        found.append(budget.sites[0])
    assert (found[1].null_dim_before, found[1].null_dim, found[1].taken) == (35, 30, 5)
    assert (found[0].null_dim_before, found[0].null_dim) == (35, 30)
    assert found[1].energy == pytest.approx(found[0].energy, rel=1e-9)
    assert found[1].leakage == pytest.approx(0, abs=1e-6)


def test_forgetting_one_in_the_middle_gives_the_budget_without_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = [vectors(rng) for _ in range(4)]
    reports = []
    for name, kept in (("all", (1, 2, 3)), ("never", (1, 3))):
        store = Store.create(tmp_path / name, {})
        write(store, data[0])
        for k in kept:
            write(store.inside_or_create(f"tasks/task{k}", {}), data[k])
            list_task(store, f"task{k}", kind="hard", weight=1, source="x")
        how = DecompositionSettings(Pooling(), store.schedule())
        projected(store, how, len(kept), rule="null_dim", value=2.0)
        if name == "all":
            unlist_task(store, "task2")
            projected(store, how, 2, rule="null_dim", value=2.0)
        reports.append(budgets(store, how, "null_dim", 2.0, store.sites))
    assert reports[0] == reports[1]


def test_soft_tasks_take_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run.zarr", {})
    rng = np.random.default_rng(2)
    write(store, vectors(rng))
    write(store.inside_or_create("tasks/edit", {}), vectors(rng))
    list_task(store, "edit", kind="soft", weight=1, source="edited")
    how = DecompositionSettings(Pooling(), store.schedule())
    projected(store, how, 0, rule="null_dim", value=2.0)
    [budget] = budgets(store, how, "null_dim", 2.0, store.sites)
    assert (budget.kind, budget.sites) == ("soft", ())
    with pytest.raises(StoreError, match=r"has no array projectors/mid\.attn2\.k/tasks"):
        store.projectors.read_tasks(FREE, 0)
