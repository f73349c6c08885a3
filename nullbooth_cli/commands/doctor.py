"""The command `nullbooth doctor`."""

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

if TYPE_CHECKING:
    from nullbooth_cli.datatypes import Prompt
    from nullbooth_cli.report.doctor import DoctorReport
    from nullbooth_cli.settings.config import Config


def doctor(
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check everything that could stop a run, and estimate its cost.

    Packages, config, prompts, device, store, schedule, model, layers, tokenizer, memory, disk and time: each is ok, a
    warning, or an error with a hint. Two steps of one prompt and of one batch are run; nothing is written. Exit 2 if a run
    would fail.

    Example: nullbooth doctor -c configs/nullbooth.yaml && nullbooth run -c configs/nullbooth.yaml
    """
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.commands.hints import hint_of
    from nullbooth_cli.pipeline.doctor.checks import CHECKS
    from nullbooth_cli.pipeline.doctor.examination import Examination
    from nullbooth_cli.pipeline.doctor.examine import examine
    from nullbooth_cli.report.doctor import doctor_report

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    terminal = Terminal(as_json=as_json, quiet=quiet)
    options: tuple[str, ...] = ()  # name the config on a command line, once it is found

    def find() -> "tuple[Config, str, tuple[Prompt, ...] | None]":
        nonlocal options
        from nullbooth_cli.commands.find_config import configure

        found = configure(common)
        options = found.options
        return found.config, found.source, found.prompts

    findings = []
    exam = Examination(find, device)
    for finding in examine(exam):
        if finding.error is not None:
            finding = replace(finding, hint=hint_of(finding.error, options))
        findings.append(finding)
        if not as_json:
            terminal.verdict(finding.verdict, finding.check, finding.text, hint=finding.hint, width=max(map(len, CHECKS)))
    report = doctor_report(findings)
    terminal.answer(report, _summary)
    if report.verdict == "error":
        raise typer.Exit(2)
    terminal.next(*next_command.after_doctor(exam.states, options, exam.backing.url))


def _summary(report: "DoctorReport") -> str:
    from nullbooth_cli.formatting import counted

    found = f"{counted(report.errors, 'error')}, {counted(report.warnings, 'warning')}"
    ending = "the run would fail" if report.verdict == "error" else "the run can start"
    return f"\n{counted(len(report.checks), 'check')}, {found}, {report.not_checked} not checked: {ending}"
