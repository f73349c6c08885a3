"""The answer of a dry run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nullbooth_cli.pipeline.plan import Plan
from nullbooth_cli.report.json_document import Document


@dataclass(frozen=True, kw_only=True)
class PlanReport(Document):
    """The plans of stages, by stage."""

    dry_run: bool = True
    stages: Mapping[str, Plan]


def plan_report(plans: Iterable[Plan]) -> PlanReport:
    """The plans by stage, in their order."""
    return PlanReport(stages={plan.stage: plan for plan in plans})
