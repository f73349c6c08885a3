"""The answer of doctor, as a document."""

from collections.abc import Sequence
from dataclasses import dataclass

from nullbooth_cli.pipeline.doctor.examine import Finding
from nullbooth_cli.report.json_document import Document


@dataclass(frozen=True, kw_only=True)
class DoctorCheck:
    """One check, as `Finding` describes it."""

    check: str
    verdict: str
    text: str
    hint: str | None
    checked: bool


@dataclass(frozen=True, kw_only=True)
class DoctorReport(Document):
    """All checks; `verdict` is the worst of them. Checks that were left out are `not_checked`, and no `warnings`."""

    verdict: str
    errors: int
    warnings: int
    not_checked: int
    checks: tuple[DoctorCheck, ...]


def doctor_report(findings: Sequence[Finding]) -> DoctorReport:
    """The findings, counted by verdict."""
    verdicts = [finding.verdict for finding in findings]
    return DoctorReport(
        verdict=next((verdict for verdict in ("error", "warning") if verdict in verdicts), "ok"),
        errors=verdicts.count("error"),
        warnings=sum(finding.verdict == "warning" and finding.checked for finding in findings),
        not_checked=sum(not finding.checked for finding in findings),
        checks=tuple(
            DoctorCheck(
                check=finding.check, verdict=finding.verdict, text=finding.text, hint=finding.hint, checked=finding.checked
            )
            for finding in findings
        ),
    )
