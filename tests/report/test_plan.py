"""The answer of a dry run."""

from nullbooth_cli.pipeline.plan import Plan
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.plan import plan_report


def test_plans_are_by_stage_in_their_order() -> None:
    plans = [
        Plan(
            stage=stage,
            units_done=0,
            units_total=2,
            seconds=None,
            bytes_needed=10,
            bytes_free=None,
            device="cpu",
            device_bytes_needed=0,
            device_bytes_free=5,
        )
        for stage in ("project", "collect")
    ]
    document = to_json(plan_report(plans))
    assert (document["schema_version"], document["dry_run"]) == (1, True)
    assert list(document["stages"]) == ["project", "collect"]
    assert document["stages"]["collect"]["operations"] is None
