"""The budget of a store that remembers tasks: null dimensions, and the energy that each task met, task after task."""

from collections.abc import Sequence
from pathlib import Path

from nullbooth_cli.nullspace.budget import TaskBudget
from nullbooth_cli.report.plots.canvas import BLUE, GREY, ORANGE, axes, figure, plain, save, ticks

LETTERS = 70  # that an axis has room for


def draw_budget(tasks: Sequence[TaskBudget], path: Path) -> Path:
    """Above, the null dimensions left by each hard task, in percent of all; below, its energy in what was left before it.

    A thin line for each projector, a thick one for all together (of energies the mean); orange for the held-out prompts.
    """
    hard = [task for task in tasks if task.sites]
    made = figure(7, 5.5)
    room, energy = axes(made, "", "null dimensions, %", place=(2, 1, 1)), axes(made, "task", "share of energy", place=(2, 1, 2))
    places = list(range(len(hard) + 1))
    for of_site in zip(*(task.sites for task in hard), strict=True):
        left = [of_site[0].null_dim_before, *(each.null_dim for each in of_site)]
        room.plot(places, [100 * n / of_site[0].dim for n in left], color=GREY, linewidth=0.6)
        energy.plot(places[1:], [each.energy for each in of_site], color=GREY, linewidth=0.6)
    totals = [sum(each.null_dim_before for each in hard[0].sites), *(sum(each.null_dim for each in task.sites) for task in hard)]
    dims = sum(each.dim for each in hard[0].sites)
    room.plot(places, [100 * total / dims for total in totals], color=BLUE, linewidth=2.2, marker="o", label="all sites")
    energy.plot(places[1:], [mean_energy(task) for task in hard], color=BLUE, linewidth=2.2, marker="o", label="of the task")
    if heldout := [value for task in hard if (value := mean_heldout(task)) is not None]:
        energy.plot(places[1:], heldout, color=ORANGE, linestyle="--", marker="o", label="of held-out prompts")
    room.set_ylim(bottom=0)
    energy.set_yscale("log")
    for drawn in (room, energy):
        drawn.set_xlim(-0.3, len(hard) + 0.3)
        ticks(
            drawn.xaxis, [plain(_shortened(name, min(len(places), 12))) for name in ("preserved", *(task.name for task in hard))]
        )
        drawn.legend(frameon=False, fontsize=9)
    return save(made, path)


def _shortened(name: str, count: int) -> str:
    """A name that finds room among `count` of them."""
    most = max(LETTERS // count, 4)
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def mean_energy(task: TaskBudget) -> float:
    """The mean over the projectors of a hard task."""
    return sum(each.energy for each in task.sites) / len(task.sites)


def mean_heldout(task: TaskBudget) -> float | None:
    """The same of the held-out prompts; None without any."""
    found = [each.heldout_energy for each in task.sites if each.heldout_energy is not None]
    return sum(found) / len(found) if found else None
