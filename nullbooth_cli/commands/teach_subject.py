"""Runs `nullbooth teach`, and draws its answer."""

import contextlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.draw import draw_plans
from nullbooth_cli.commands.signals import interruptible
from nullbooth_cli.commands.train_plan import memory_lines, steps_line
from nullbooth_cli.commands.train_result import offering_the_model
from nullbooth_cli.evaluation.verdict import Question
from nullbooth_cli.formatting import counted, duration, size
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.report.plan import plan_report
from nullbooth_cli.settings.places import expanded
from nullbooth_cli.settings.starter import RECIPE
from nullbooth_cli.teaching.plan import TeachPlan, plan_teaching
from nullbooth_cli.teaching.teach import TeachReport, teach_events


@dataclass(frozen=True, kw_only=True)
class TeachOptions:
    """The options of the command; `given` are those that are fields of the request and that the user named."""

    given: Mapping[str, Any]
    output: str
    push_to_hub: str | None
    device: str | None
    dry_run: bool
    as_json: bool
    quiet: bool
    verbose: bool


def teach_subject(options: TeachOptions) -> None:
    """Teach, and answer with the verdicts and the files."""
    terminal = Terminal(as_json=options.as_json, quiet=options.quiet)
    output = expanded(options.output)
    if options.verbose:
        terminal.note(f"into {output}")
    if options.dry_run:
        terminal.answer(plan_teaching(options.given, output, device=options.device), draw_plan)
        return
    interrupts = Interrupts()
    events = teach_events(options.given, output, device=options.device, push_to=options.push_to_hub, interrupts=interrupts)
    with (
        interruptible(interrupts, terminal.note, "the unit or step that runs"),
        offering_the_model(terminal, output, ["-c", str(Path(output) / RECIPE)]),
        # Closed inside: after an interrupt while a bar is drawn, the stage must end before its files are unlocked.
        contextlib.closing(events),
    ):
        report = terminal.result_of(events)
    terminal.answer(report, draw_report)
    terminal.next(shlex.join(["nullbooth", "sample", report.output, report.prompt]))


def draw_report(report: TeachReport) -> list[Any]:
    """A line for each verdict, with what to do if it is not good, and the files."""
    lines: list[Any] = []
    for verdict in report.verdicts:
        lines += [verdict.text, *([] if verdict.is_good else _advice(verdict.question, report))]
    return [*lines, f"pictures {report.sheet}", f"page     {report.page}", f"model    {report.result}"]


def _advice(question: Question, report: TeachReport) -> list[str]:
    """What can be done with this command if an answer is not good."""
    threshold = "--set project.relative_threshold"
    if question == "learned":
        return [
            f"  to learn more: raise max_train_steps in {Path(report.output) / RECIPE}, and run this again",
            f"  or teach into another output (-o) with {threshold}=3e-4, or what is larger than yours",
        ]
    base = [] if report.after is None else ["--base", report.after]
    evaluate = shlex.join(["nullbooth", "evaluate", report.output, "-s", report.store, *base, "--checkpoints"])
    return [
        f"  to forget less: take an earlier checkpoint, {evaluate} names the best",
        f"  or teach into another output (-o) with {threshold}=3e-5, or what is smaller than yours",
    ]


def draw_plan(plan: TeachPlan) -> list[Any]:
    """The decisions, the stages of the pipeline, and a line for each of training, evaluation, disk and memory."""
    free = "" if plan.bytes_free is None else f", {size(plan.bytes_free)} are free"
    return [
        *plan.notes,
        draw_plans(plan_report(plan.stages.values())),
        *([f"remember  {counted(len(plan.remembers), 'prompt')} of what was taught before"] if plan.remembers else []),
        f"train     {steps_line(plan.steps, plan.steps_done, plan.train_seconds, plan.device)}",
        f"evaluate  {plan.pictures} pictures{'' if plan.draw_seconds is None else f', about {duration(plan.draw_seconds)}'}",
        f"disk      {size(plan.bytes_needed)}{free}",
        f"memory    {size(plan.device_bytes)} at most in training, {size(plan.device_bytes_free)} are free",
        *memory_lines(plan.memory),
    ]
