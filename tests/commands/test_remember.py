"""`nullbooth remember`: its answer, what it takes from a training run, what it refuses, and its Python form."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import nullbooth_cli as nb
from nullbooth_cli.editing.remember import request_of
from nullbooth_cli.pipeline import remember as module
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, list_task, tasks_of
from tests.support.builders import PROMPTS
from tests.support.cli import nullbooth, refused
from tests.support.doctor import files
from tests.support.tasks import collected, spectra
from tests.support.trained_folders import training_output

MADE = ("a sks circle", "a sks circle on a red background")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a training run, with its captions."""
    folder = training_output(tmp_path_factory.mktemp("runs") / "circle", "full", 200, result=False)
    base = folder / "checkpoint-000200" / "trained" / "base.json"
    base.write_text(json.dumps({**json.loads(base.read_text()), "prompts": MADE}))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return collected(tmp_path / "run.zarr", PROMPTS[:6], heldout_prompts=PROMPTS[6:])


def test_a_training_run_is_remembered_by_its_name_and_captions_and_forgotten(config: Config, run: Path) -> None:
    before = spectra(config)
    shown = nullbooth("remember", str(run), "-s", config.store, "--weight", "2", "--json")
    assert shown.exit_code == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert {key: answer[key] for key in ("store", "task", "kind", "weight", "prompts")} == {
        "store": config.store,
        "task": "circle",
        "kind": "hard",
        "weight": 2,
        "prompts": list(MADE),
    }
    [task] = answer["tasks"]
    [at_site] = task["sites"]
    assert (task["name"], task["prompts"], at_site["taken"]) == ("circle", 2, at_site["null_dim_before"] - at_site["null_dim"])
    assert 0 < at_site["energy"] < 1
    assert 0 < at_site["heldout_energy"] < 1
    assert json.loads(nullbooth("inspect", "-s", config.store, "--json").stdout)["tasks"] == answer["tasks"]
    again = nullbooth("remember", str(run), "-s", config.store, "--weight", "2")
    assert "the task circle is remembered already" in again.stderr
    assert f"next: nullbooth inspect -s {config.store}" in again.stderr
    assert again.stdout.splitlines()[0].split()[:2] == ["task", "kind"]
    assert again.stdout.splitlines()[-1].endswith("of the energy of its 2 prompts was in them")
    forgotten = nullbooth("remember", "--forget", "circle", "-s", config.store)
    assert forgotten.stdout == f"{config.store} remembers no task\n"
    np.testing.assert_array_equal(spectra(config), before)


def test_what_is_refused(config: Config, run: Path, tmp_path: Path) -> None:
    store = ("-s", config.store)
    refused(nullbooth("remember", *store), 2, "no model is named")
    refused(nullbooth("remember", str(run), "--forget", "dog", *store), 2, "--forget names a task, and no model")
    refused(nullbooth("remember", "--forget", "dog", "--name", "x", *store), 2, "--forget takes the name of a task alone")
    refused(nullbooth("remember", "--forget", "dog", *store), 2, "has no task dog")
    refused(nullbooth("remember", str(tmp_path / "none"), "x", *store), 2, "no model at")
    refused(nullbooth("remember", str(run), "a circle", *store), 2, "no prompt has the word that was taught: write sks")
    refused(nullbooth("remember", str(run), "--weight", "0", *store), 2, "weight is 0")
    refused(nullbooth("remember", str(run), "--name", "a/b", *store), 2, "'a/b' cannot be the name of a task")
    refused(nullbooth("remember", str(run), f"{PROMPTS[6]}", "a sks circle", *store), 2, "are also preserved")
    refused(nullbooth("remember", str(run), "-s", str(tmp_path / "nothing.zarr")), 3, "nothing.zarr")
    with Store.open(config.store, write=True).lock():
        refused(nullbooth("remember", str(run), *store), 4, config.store)
    assert Store.open(config.store).inside("tasks/circle") is None, "nothing was begun"


def test_what_no_change_can_follow(tmp_path: Path, run: Path) -> None:
    config = collected(tmp_path / "run.zarr", project__scope="timestep")
    refused(nullbooth("remember", str(run), "-s", config.store), 2, "per-timestep projectors cannot constrain a weight")
    store = Store.open(config.store, write=True)
    project = store.records["project"]
    store.write_record("project", {**project, "settings": {**project["settings"], "project.scope": "pooled"}})
    store.write_record("collect", {key: value for key, value in store.records["collect"].items() if key != "tensors"})
    refused(nullbooth("remember", str(run), "-s", config.store), 2, "does not record which weights it was made from")
    store.write_record("covariance", None)
    refused(nullbooth("remember", str(run), "-s", config.store), 3, "covariance", "nullbooth covariance")


def test_a_word_and_a_name(config: Config, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[module.RememberRequest] = []

    def events(_: Config, request: module.RememberRequest, **__: object) -> Any:
        asked.append(request)
        return iter(())

    monkeypatch.setattr(module, "remember_events", events)
    nullbooth("remember", str(run / "checkpoint-000200"), "--word", "sks circle", "-s", config.store)
    nullbooth("remember", str(run), "a sks circle", "--word", "sks circle", "--name", "other", "-s", config.store)
    first, second = asked
    assert first.name == "circle"
    assert first.prompts[:2] == MADE
    assert len(first.prompts) > 100
    assert (second.name, second.prompts[0]) == ("other", "a sks circle")
    assert MADE[1] not in second.prompts


def test_a_name_that_nobody_gave_is_made_by_one_rule(config: Config, run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The folder's, as a task may be called; that of the task that is there, wherever the model is named from."""
    place = shutil.copytree(run, tmp_path / "my dog (1)")
    assert request_of(config, str(place)).name == "my-dog--1-"
    store = Store.open(config.store, write=True)
    list_task(store, "dog", kind="hard", weight=1, source=str(place))
    assert request_of(config, str(place)).name == "dog"
    monkeypatch.chdir(tmp_path)
    assert request_of(config, "my dog (1)").name == "dog"
    shutil.copytree(run, tmp_path / "dog")
    assert request_of(config, "dog").name == "dog-2", "another model of the name"


def test_in_python(config: Config, run: Path) -> None:
    before = spectra(config)
    opened = nb.remember(run, config.store, "a sks circle", name="dog")
    [budget] = opened.tasks()
    assert (budget.name, budget.prompts, len(budget.sites)) == ("dog", 1, 1)
    assert [task.name for task in tasks_of(opened.store)] == ["dog"]
    assert nb.forget("dog", opened).tasks() == ()
    np.testing.assert_array_equal(spectra(config), before)


def test_an_edit_is_remembered_softly_or_hard(config: Config, tmp_path: Path) -> None:
    edited = str(tmp_path / "star")
    made = nullbooth("edit", "a sks star", "a red star", "-s", config.store, "-o", edited, "--max-missing", "1")
    assert made.exit_code == 0, made.stderr
    refused(nullbooth("remember", edited, "a star", "--soft", "-s", config.store), 2, "an edit is remembered softly by the rows")
    shown = nullbooth("remember", edited, "-s", config.store, "--json")
    assert shown.exit_code == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert (answer["task"], answer["kind"], answer["prompts"]) == ("star", "soft", ["a sks star"])
    assert answer["tasks"][0]["sites"] == []
    opened = nb.open_store(config.store)
    [site] = opened.sites()
    rows = load_file(tmp_path / "star" / "edit.safetensors")[site.name]
    np.testing.assert_allclose(opened.edited(site), rows.T @ rows, rtol=1e-12)
    assert nullbooth("remember", edited, "--hard", "--name", "hard", "-s", config.store).exit_code == 0
    assert [(task.name, task.kind) for task in opened.tasks()] == [("star", "soft"), ("hard", "hard")]


def test_only_an_edit_is_remembered_softly(config: Config, run: Path) -> None:
    refused(nullbooth("remember", str(run), "--soft", "-s", config.store), 2, "only an edit is remembered softly")


def test_a_dry_run_checks_the_request_and_writes_nothing(config: Config, run: Path) -> None:
    before, dry = files(Path(config.store)), ("--dry-run", "-s", config.store)

    def shown(*arguments: str) -> str:
        result = nullbooth("remember", str(run), *dry, *arguments)
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return result.stdout

    lines = [f"{config.store} would remember circle (hard, weight 3) by 2 prompts:", *(f"  {prompt}" for prompt in MADE)]
    assert shown("--weight", "3").splitlines() == lines
    assert "\n  and " in shown("--word", "sks circle")
    found = json.loads(shown("--name", "other", "--json"))
    assert (found["dry_run"], found["task"], found["prompts"], found["state"]) == (True, "other", list(MADE), "new")
    refused(nullbooth("remember", str(run), "a circle", "--dry-run", "-s", config.store), 2, "no prompt has the word")
    refused(
        nullbooth("remember", str(run), f"{PROMPTS[6]}", "a sks circle", "--dry-run", "-s", config.store), 2, "also preserved"
    )
    refused(
        nullbooth("remember", "--forget", "dog", "--dry-run", "-s", config.store), 2, "--forget takes the name of a task alone"
    )
    assert files(Path(config.store)) == before
    assert nullbooth("remember", str(run), "-s", config.store).exit_code == 0
    assert "remembers already circle" in shown()
    refused(nullbooth("remember", str(run), "--weight", "2", *dry), 2, "another task by the name")
    [file] = Path(config.store, "tasks/circle/moments").glob("*/sum_xxT/c*")
    file.unlink()
    assert "would record again circle" in shown()
