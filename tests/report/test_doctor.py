"""What doctor found, as a document."""

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline.doctor.examine import Finding
from nullbooth_cli.report.doctor import doctor_report
from nullbooth_cli.report.json_document import to_json

OK = Finding(check="config", verdict="ok", text="c.yaml")
WARNING = Finding(check="disk", verdict="warning", text="little is free", hint="free some")
LEFT_OUT = Finding(check="probe", verdict="warning", text="not checked, because of model", checked=False)
ERROR = Finding(check="model", verdict="error", text="no model", hint="name one", error=ConfigError("no model", "name one"))


def test_the_worst_verdict_counts() -> None:
    assert [doctor_report(found).verdict for found in ([OK], [OK, WARNING], [WARNING, ERROR, OK])] == ["ok", "warning", "error"]


def test_a_check_that_was_left_out_is_no_warning() -> None:
    report = doctor_report([OK, WARNING, LEFT_OUT, ERROR])
    assert (report.errors, report.warnings, report.not_checked, len(report.checks)) == (1, 1, 1, 4)


def test_its_keys() -> None:
    assert to_json(doctor_report([ERROR])) == {
        "schema_version": 1,
        "verdict": "error",
        "errors": 1,
        "warnings": 0,
        "not_checked": 0,
        "checks": [{"check": "model", "verdict": "error", "text": "no model", "hint": "name one", "checked": True}],
    }
