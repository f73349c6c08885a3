"""Whether a run would succeed, examined before hours are spent on it.

    for finding in examine(Examination(configure, device)):
        print(finding.verdict, finding.check, finding.text)

`checks` has the checks, in order. A check is left out if it needs one that failed, and its finding names the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.pipeline.doctor.checks import CHECKS, Check
from nullbooth_cli.pipeline.doctor.examination import Caution, Examination


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`verdict` is ok, warning or error; an error means that the run would fail. `hint` is how to fix a warning or error.

    A check that was left out is a warning that is not `checked`, without a hint: its text names the check whose error to fix.
    """

    check: str
    verdict: str
    text: str
    hint: str | None = None
    checked: bool = True
    error: NullboothError | None = None


def examine(exam: Examination) -> Iterator[Finding]:
    """Make every check that can be made; yields one finding for each as soon as it is known.

    Cost: loads the model, runs two steps of one prompt and a few of a batch. Nothing is written but a probe that is removed.
    """
    causes: dict[str, list[str]] = {}  # for each check without a result: the checks that failed
    for name, (check, needs) in CHECKS.items():
        if because := list(dict.fromkeys(cause for need in needs for cause in causes.get(need, ()))):
            causes[name] = because
            text = f"not checked, because of {', '.join(because)}"
            yield Finding(check=name, verdict="warning", text=text, checked=False)
            continue
        finding = _run_check(name, check, exam)
        if finding is None:
            continue
        if finding.verdict == "error":
            causes[name] = [name]
        yield finding


def _run_check(name: str, check: Check, exam: Examination) -> Finding | None:
    """The finding of one check; None if it does not apply to the run."""
    try:
        found = check(exam)
    except NullboothError as error:
        return Finding(check=name, verdict="error", text=error.message, hint=error.hint, error=error)
    except ImportError as error:
        text, hint = f"a package cannot be imported: {error}", "remove it with pip uninstall, and install it again"
        return Finding(check=name, verdict="error", text=text, hint=hint)
    except OSError as error:
        return Finding(check=name, verdict="error", text=str(error), hint="check the path and its permissions")
    if isinstance(found, Caution):
        return Finding(check=name, verdict="warning", text=found.text, hint=found.hint)
    return None if found is None else Finding(check=name, verdict="ok", text=found)
