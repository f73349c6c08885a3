"""The tables of tasks, and the sentence on the last one."""

from typing import Any

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.draw_tasks import budget_line, draw_tasks
from nullbooth_cli.nullspace.budget import TaskAtSite, TaskBudget


def at_site(site: str, before: int, after: int, energy: float, **changes: Any) -> TaskAtSite:
    values = {"key": "pooled", "step_index": None, "timestep": None, "dim": 96, "preserved_energy": 1e-4, "heldout_energy": None}
    return TaskAtSite(site=site, null_dim_before=before, null_dim=after, energy=energy, leakage=0.01, **{**values, **changes})


def task(name: str, *sites: TaskAtSite, kind: str = "hard") -> TaskBudget:
    return TaskBudget(name=name, kind=kind, weight=1, source=name, prompts=150, sites=sites)


TWO = (
    task("dog", at_site("mid.q", 44, 41, 0.25), at_site("mid.k", 20, 19, 0.5)),
    task("edit", kind="soft"),
    task("cat", at_site("mid.q", 41, 41, 0.125), at_site("mid.k", 19, 17, 0.125)),
)


def shown(capsys: Any, *tasks: TaskBudget) -> list[list[str]]:
    Terminal().answer(TWO, lambda _: draw_tasks(tasks))
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip("─ ")]


def test_a_row_for_each_task_and_one_for_each_site(capsys: Any) -> None:
    head, dog, edit, cat, title, of_sites, q, k = shown(capsys, *TWO)
    assert " ".join(head) == "task kind weight prompts null before null after energy leakage"
    assert " ".join(dog) == "dog hard 1 150 64 60 0.25 to 0.5 1.00e-02"
    assert " ".join(edit) == "edit soft 1 150"
    assert " ".join(cat) == "cat hard 1 150 60 58 0.12 1.00e-02"
    assert title[:4] == ["null_dim", "after", "each", "task,"]
    assert of_sites == ["site", "before", "dog", "cat"]
    assert " ".join(q) == "mid.q 44 41 (0.25) 41 (0.12)"
    assert " ".join(k) == "mid.k 20 19 (0.5) 17 (0.12)"


def test_one_site_and_held_out_prompts(capsys: Any) -> None:
    head, dog = shown(capsys, task("dog", at_site("mid.q", 44, 41, 0.25, heldout_energy=0.03)))
    assert head[-3:] == ["energy", "held-out", "leakage"]
    assert " ".join(dog) == "dog hard 1 150 44 41 0.25 0.03 1.00e-02"
    assert draw_tasks([]) == []


def test_the_last_hard_task_in_a_sentence() -> None:
    assert budget_line(TWO) == (
        "cat: 58 of 192 dimensions are null, 60 before it; 0.12 of the energy of its 150 prompts was in them"
    )
    assert budget_line(TWO[1:2]) is None
