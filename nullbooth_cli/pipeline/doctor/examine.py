"""What `nullbooth doctor` finds: whether a run would succeed, looked at before hours are spent on it.

    for finding in examine(Patient(configure, device)):
        print(finding.verdict, finding.check, finding.text)

`checks` has the checks, in order. One that needs what an earlier one could not find is not made, and says so; all others are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.doctor.checks import CHECKS, Check
from nullbooth_cli.pipeline.doctor.examination import Caution, Examination

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Finding:
    """`verdict` is ok, warning or error; an error means that the run would fail. `hint` mends what is not ok.

    What could not be `checked` is a warning without a hint: it names the check whose error is to be mended.
    """

    check: str
    verdict: str
    text: str
    hint: str | None = None
    checked: bool = True


def examine(patient: Examination) -> Iterator[Finding]:
    """Make every check that can be made; yields one finding for each as soon as it is known.

    Cost: loads the model, runs two steps of one prompt and up to two of a batch. Nothing is written but a probe that is removed.
    """
    causes: dict[str, list[str]] = {}  # of each check that found nothing out: the ones that failed
    for name, (look, needs) in CHECKS.items():
        if because := list(dict.fromkeys(cause for need in needs for cause in causes.get(need, ()))):
            causes[name] = because
            yield Finding(name, "warning", f"not checked, because of {', '.join(because)}", checked=False)
            continue
        finding = _run_check(name, look, patient)
        if finding is None:
            continue
        if finding.verdict == "error":
            causes[name] = [name]
        yield finding


def _run_check(name: str, look: Check, patient: Examination) -> Finding | None:
    try:
        found = look(patient)
    except NullboothError as error:
        return Finding(name, "error", error.message, error.hint)
    except ImportError as error:
        return Finding(
            name, "error", f"a package cannot be imported: {error}", "install it again, with pip install --force-reinstall"
        )
    except OSError as error:
        return Finding(name, "error", str(error), "check the path and its permissions")
    if isinstance(found, Caution):
        return Finding(name, "warning", found.text, found.hint)
    return None if found is None else Finding(name, "ok", found)


def doctor_document(findings: Iterable[Finding]) -> dict[str, Any]:
    """What the command answers with `--json`."""
    found = list(findings)
    verdicts = [finding.verdict for finding in found]
    worst = next((verdict for verdict in ("error", "warning") if verdict in verdicts), "ok")
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": worst,
        "errors": verdicts.count("error"),
        "warnings": sum(finding.verdict == "warning" and finding.checked for finding in found),
        "not_checked": sum(not finding.checked for finding in found),
        "checks": [vars(finding) for finding in found],
    }
