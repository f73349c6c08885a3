"""The tasks that a store remembers, as tables."""

from collections.abc import Callable, Sequence
from typing import Any

from nullbooth_cli.commands.tables import table
from nullbooth_cli.formatting import counted
from nullbooth_cli.nullspace.budget import TaskAtSite, TaskBudget


def draw_tasks(tasks: Sequence[TaskBudget], called: Callable[[str], str] = str) -> list[Any]:
    """A row for each task, over all projectors; below, where there are several, a row for each of them. Nothing without tasks.

    `called` gives the name of a site that is shown.
    """
    if not tasks:
        return []
    has_heldout = any(each.heldout_energy is not None for task in tasks for each in task.sites)
    columns = ["task", "kind", "weight", "prompts", "null before", "null after", "energy", *["held-out"] * has_heldout]
    rows = [_row(task, has_heldout=has_heldout) for task in tasks]
    drawn = [table([*columns, "leakage"], rows, right=frozenset(range(2, len(columns) + 1)))]
    hard = [task for task in tasks if task.sites]
    if hard and len(hard[0].sites) > 1:
        drawn += [
            "null_dim after each task, and the share of the task's energy that was null before it:",
            _of_sites(hard, called),
        ]
    return drawn


def _row(task: TaskBudget, *, has_heldout: bool) -> list[str]:
    found = task.sites
    head = [task.name, task.kind, str(task.weight), str(task.prompts)]
    if not found:
        return [*head, *[""] * (4 + has_heldout)]
    heldout = [each.heldout_energy for each in found if each.heldout_energy is not None]
    return [
        *head,
        str(sum(each.null_dim_before for each in found)),
        str(sum(each.null_dim for each in found)),
        _span([each.energy for each in found]),
        *([_span(heldout)] if heldout else []),
        f"{max(each.leakage for each in found):.2e}",
    ]


def _span(shares: Sequence[float]) -> str:
    """The least and the most of several shares; one alone where they do not differ."""
    least, most = (f"{value:.2g}" for value in (min(shares), max(shares)))
    return least if least == most else f"{least} to {most}"


def _of_sites(hard: Sequence[TaskBudget], called: Callable[[str], str]) -> Any:
    columns = ["site", "before", *(task.name for task in hard)]
    rows = []
    for at_site in zip(*(task.sites for task in hard), strict=True):
        cells = [f"{each.null_dim} ({each.energy:.2g})" for each in at_site]
        rows.append([_place(at_site[0], called), str(at_site[0].null_dim_before), *cells])
    return table(columns, rows, right=frozenset(range(1, len(columns))))


def _place(entry: TaskAtSite, called: Callable[[str], str]) -> str:
    name = called(entry.site)
    return name if entry.timestep is None else f"{name} at {entry.key}"


def budget_line(tasks: Sequence[TaskBudget]) -> str | None:
    """The last hard task in one sentence: what is left, and what it had; None without any."""
    last = next((task for task in reversed(tasks) if task.sites), None)
    if last is None:
        return None
    before, after = (sum(getattr(each, name) for each in last.sites) for name in ("null_dim_before", "null_dim"))
    of = sum(each.dim for each in last.sites)
    return (
        f"{last.name}: {after} of {of} dimensions are null, {before} before it; {_span([each.energy for each in last.sites])} of "
        f"the energy of its {counted(last.prompts, 'prompt')} was in them"
    )
