"""The thresholds under which an edit reaches its targets, tried in memory from the stored decompositions: nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site
from nullbooth_cli.editing.problem import Problem
from nullbooth_cli.editing.report import EditPlan
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.projector import Projector

if TYPE_CHECKING:
    from torch import nn

LADDER = tuple(m * 10.0**e for e in range(-6, 0) for m in (1, 3))


class CutStore(OpenStore):
    """A store whose projectors are cut at another relative threshold, in memory; all else is the store's."""

    def __init__(self, opened: OpenStore, value: float) -> None:
        super().__init__(opened.store)
        self._value = value

    def projectors(self, model: "nn.Module | Mapping[str, Any] | None" = None) -> dict[str, Projector]:
        """As in the store, cut anew. Cost: 8 D^2 bytes more read for each site."""
        by_weight = {weight: site for site in self.sites() for weight in site.weights}
        cut = {site: self._cut(site) for site in self.sites()}
        return {weight: cut[by_weight[weight]] for weight in super().projectors(model)}

    def null_dim(self, site: Site) -> int | None:
        """The null_dim of a site at this threshold; None if its moment is a factor that does not have all that is preserved."""
        found = self.store.projectors.read_eigenvalues(site, 0)
        null_dim = spectrum.null_dim(found, "relative_threshold", self._value)
        return None if null_dim < self.store.projectors.num_dropped(site) else null_dim

    def _cut(self, site: Site) -> Projector:
        null_dim = self.null_dim(site)
        assert null_dim is not None
        return Projector.of(self.store.projectors.read_eigenvectors(site, 0), null_dim)


@dataclass(frozen=True, kw_only=True)
class EditRung:
    """An edit by `method` under another relative threshold, with the null_dim of the store's projectors over all sites; None for
    `uce`, which needs none.

    `missing` is that of the pair furthest from its target, `elsewhere` the largest in other prompts that have what is edited
    (None without any), `drift` and `heldout` are the largest of all weights.
    """

    method: str
    relative_threshold: float | None
    null_dim: int | None
    missing: float
    elsewhere: float | None
    drift: float
    heldout: float | None


def thresholds(problem: Problem, plan: EditPlan) -> tuple[EditRung, ...]:
    """The edit of a plan under relative thresholds that leave more null dimensions than now, then by `uce`.

    They go up to the first that reaches every target: a larger one only drifts more. Nothing for an edit by `uce`, which has no
    threshold. Cost: that of `Problem.solve`, for each of up to twelve; no prompt runs.
    """
    method = plan.report.method
    if method == "uce":
        return ()
    before = sum(problem.store.store.projectors.read_cut(site, 0).null_dim for site in problem.sites)
    rungs: list[EditRung] = []
    for value in LADDER:
        cut = CutStore(problem.store, value)
        dims = [cut.null_dim(site) for site in problem.sites]
        if None not in dims and (total := sum(dim or 0 for dim in dims)) > before:
            before = total
            tried = problem.solve(projectors=cut.projectors(), rule=("relative_threshold", value))
            rungs.append(_rung(tried, value, total))
            if tried.report.is_reached:
                break
    return (*rungs, _rung(problem.solve(method="uce")))


def _rung(plan: EditPlan, threshold: float | None = None, null_dim: int | None = None) -> EditRung:
    report = plan.report
    return EditRung(
        method=report.method,
        relative_threshold=threshold,
        null_dim=null_dim,
        missing=max(report.by_pair.values()),
        elsewhere=max((each.missing for each in report.in_context), default=None),
        drift=report.drift,
        heldout=report.heldout,
    )
