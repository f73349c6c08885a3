"""`nullbooth edit`: what it saves is what the library edits, and a folder that is there is left alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import nullbooth_cli as nb
from nullbooth_cli.collect.edited_model import load_edited, read_place
from nullbooth_cli.editing.record import read_edit_record
from nullbooth_cli.model import load
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.store.tasks import listed_tasks
from tests.support.builders import PROMPTS, TEXT_ONLY, execute, small_config
from tests.support.cli import nullbooth, refused
from tests.support.edited_models import toy
from tests.support.trained_folders import training_output

PAIR = {"a sks star": "a red star"}
KNOWN = PROMPTS[0]


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose projectors leave no room for what it preserves."""
    config = small_config(tmp_path_factory.mktemp("tight") / "run.zarr", project__relative_threshold=1e-6, **TEXT_ONLY)
    return execute(config, "schedule", "collect", "covariance", "project").url


@pytest.mark.parametrize("method", ["alphaedit", "uce"])
def test_the_options_reach_the_edit(finished: tuple[Config, Store], tmp_path: Path, method: str) -> None:
    output, url = tmp_path / "edited", finished[1].url
    settings: dict[str, Any] = {"ridge": 0.02, "copies": 1, **({"preserve": 2.0} if method == "uce" else {})}
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    settings |= {"weights": "kv", "seed": 0}
    options = ("--method", method, *given, "--tokens", "subject", "--device", "cpu")
    shown = nullbooth("edit", *next(iter(PAIR.items())), "-s", url, "-o", str(output), *options, "--json")
    assert shown.exit_code == 0, shown.stderr
    pipe = toy()
    report = nb.edit(pipe, nb.open_store(url), PAIR, method=method, tokens="subject", **settings)  # type: ignore[arg-type]
    document = json.loads(shown.stdout)
    assert (document["method"], document["pairs"], document["output"]) == (method, PAIR, str(output))
    assert document["weights"].keys() == report.weights.keys()
    assert document["missing"] == pytest.approx(report.missing)
    assert [verdict["question"] for verdict in document["verdicts"]] == ["missing", "drift"]
    record = read_edit_record(output)
    assert record is not None
    assert (record.pairs, record.method, record.tokens, record.settings) == (PAIR, method, "subject", settings)
    assert (record.tensors, record.store["url"]) == (report.tensors, url)
    assert {name: rows.tolist() for name, rows in record.rows().items()} == {
        name: rows.tolist() for name, rows in report.keys.items()
    }
    saved = diffusers.DiffusionPipeline.from_pretrained(output)
    for name, tensor in pipe.unet.state_dict().items():
        torch.testing.assert_close(saved.unet.state_dict()[name], tensor, rtol=0, atol=1e-5)


def test_prompts_that_are_cut_off_are_named(finished: tuple[Config, Store], tmp_path: Path) -> None:
    long = "a sks star at the left of a blue background with a green star and a red circle"
    pair = ("a sks star", long)
    shown = nullbooth("edit", *pair, "-s", finished[1].url, "-o", str(tmp_path / "edited"), "--device", "cpu", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert "1 prompt is too long for the tokenizer, which cuts off" in shown.stderr
    assert f"of '{long}'" in " ".join(shown.stderr.split())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    refused(nullbooth("edit", "a", "b", "-o", str(tmp_path)), 2, f"{tmp_path} exists already", "another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "'a' has no target"),
        ([], "no prompt to edit"),
        (["a", "a"], "'a' is its own target"),
        (["a", "b", "--method", "none"], "none"),
        (["a", "b", "--ridge", "inf"], "ridge=inf"),
        (["--map"], "--map has no SOURCE and TARGET"),
        (["--map", "a", "--map", "b", "c", "d"], "--map has no SOURCE and TARGET"),
        (["x", "--map", "a", "b", "y"], "--map comes after a source that has no target"),
        (["a", "b", "--tokens", "last"], "tokens='last' is not a choice"),
        (["a [b", "c"], "does not mark one subject"),
        (["a [b", "c", "--erase", ""], "a concept to erase is empty"),
        (["a", "b", "--preserve", "2"], "preserve has no part in alphaedit"),
        (["a", "b", "--max-missing", "2"], "less than or equal to 1"),
    ],
)
def test_what_cannot_be_edited(
    finished: tuple[Config, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(load, "load_pipeline", None)  # none is loaded for that
    refused(nullbooth("edit", *arguments, "-s", finished[1].url, "-o", str(tmp_path / "edited"), "--device", "cpu"), 2, words)
    assert not (tmp_path / "edited").exists()


def test_a_dry_run_writes_nothing_and_tells_what_would_be(tight: str, tmp_path: Path) -> None:
    pairs = ("--map", *next(iter(PAIR.items())), "--erase", KNOWN, "--around", "none")
    arguments = ("edit", *pairs, "-s", tight, "--dry-run", "--device", "cpu")
    shown = nullbooth(*arguments, "--json")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["output"] is None
    assert document["by_pair"][KNOWN] > 0.9, "it is preserved"
    assert document["verdicts"][0]["word"] == "out of reach"
    assert document["ladder"][-1]["method"] == "uce"
    assert list(tmp_path.iterdir()) == []
    assert [len(document["by_pair"]), document["tokens"]] == [2, "subject"]
    text = nullbooth(*arguments).stdout
    for part in (
        "2 prompts would be edited in 20 weights (alphaedit)",
        f"out of reach  {KNOWN} -> nothing",
    ):
        assert part in text


def test_the_settings_of_a_file_reach_the_edit(finished: tuple[Config, Store], tmp_path: Path) -> None:
    """Options come before them, and neither may have what the method does not take."""
    given = "{method: speed, weights: kv, prompts: 2, noise: 3, seed: 5, ridge: 0.5, tokens: all}"
    (tmp_path / "edits.yaml").write_text(f"map: [a sks star: a red star]\nsettings: {given}\n")
    arguments = ("edit", "--pairs", str(tmp_path / "edits.yaml"), "-s", finished[1].url, "--dry-run", "--device", "cpu", "--json")
    shown = nullbooth(*arguments, "--ridge", "0.02")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    numbers = {"weights": "kv", "ridge": 0.02, "copies": 0, "prompts": 2, "noise": 3, "seed": 5}
    assert (document["method"], document["tokens"], document["settings"]) == ("speed", "all", numbers)
    report = nb.plan_edit(toy(), nb.open_store(finished[1].url), PAIR, method="speed", tokens="all", **numbers).report  # type: ignore[arg-type]
    assert document["missing"] == pytest.approx(report.missing)
    refused(nullbooth(*arguments[:-1], "--method", "uce"), 2, "prompts has no part in uce", "method speed or ace")


def test_an_edit_that_reaches_nothing_is_refused(tight: str, tmp_path: Path) -> None:
    output = tmp_path / "edited"
    arguments = ("edit", KNOWN, "a green star", "-s", tight, "-o", str(output), "--device", "cpu")
    refused(nullbooth(*arguments), 2, f"of '{KNOWN}' would be missing", "nullbooth project --force", "--max-missing 1")
    assert not output.exists()
    saved = nullbooth(*arguments, "--max-missing", "1")
    assert saved.exit_code == 0, saved.stderr
    assert "out of reach" in saved.stdout
    assert (output / "model_index.json").exists()


def test_a_concept_that_is_preserved_is_not_erased(tight: str, tmp_path: Path) -> None:
    """By itself it would be reached, so the answer is about the prompts that have it."""
    arguments = ("edit", "--erase", "circle", "-s", tight, "--device", "cpu")
    shown = nullbooth(*arguments, "--dry-run", "--json")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert [verdict["question"] for verdict in document["verdicts"]] == ["missing", "elsewhere", "drift"]
    [found] = document["in_context"]
    assert (found["concept"], found["prompts"], found["missing"] > 0.9) == ("circle", "preserved", True)
    assert all(rung["elsewhere"] is not None for rung in document["ladder"])
    refused(nullbooth(*arguments, "-o", str(tmp_path / "x")), 2, "in preserved prompts with 'circle'", "it is itself preserved")
    assert not (tmp_path / "x").exists()


def test_edits_go_on_from_each_other(tight: str, tmp_path: Path) -> None:
    """A copy of the store remembers each edit before the next; a dry run gives the same figures and writes nothing."""
    shutil.copytree(tight, tmp_path / "run.zarr")
    url, folders = str(tmp_path / "run.zarr"), [str(tmp_path / name) for name in ("one", "two", "three")]
    common = ("-s", url, "--device", "cpu", "--max-missing", "1", "--json")
    words = ("sks", "zwx", "qfj")

    def run(i: int, *arguments: str) -> dict[str, Any]:
        after = ("--after", folders[i - 1]) if i else ()
        shown = nullbooth("edit", f"a {words[i]} star", "a red star", *after, *arguments, *common)
        assert shown.exit_code == 0, shown.stderr
        document: dict[str, Any] = json.loads(shown.stdout)
        return document

    run(0, "-o", folders[0])
    for i in (1, 2):
        before = [entry.name for entry in listed_tasks(Store.open(url))]
        tried = run(i, "--dry-run")
        assert [entry.name for entry in listed_tasks(Store.open(url))] == before
        made = run(i, "-o", folders[i])
        assert made["remembered"] == [Path(folders[i - 1]).name]
        assert made["missing"] == pytest.approx(tried["missing"], rel=1e-6)
    records = [read_edit_record(folder) for folder in folders]
    earlier = [record.after for record in records if record]
    assert [after and (after.place, after.relative) for after in earlier] == [
        None,
        (folders[0], "../one"),
        (folders[1], "../two"),
    ]
    assert [after and after.digest for after in earlier] == [None, *(record.digest for record in records[:2] if record)]
    (site,) = (site for site in nb.open_store(url).sites() if site.feature == "k")
    rows = [record.rows()[site.name] for record in records if record][:2]
    edited = nb.open_store(url).edited(site)
    assert edited is not None
    np.testing.assert_allclose(edited, sum(each.T @ each for each in rows), rtol=1e-8)
    refused(nullbooth("edit", "a vht", "a red star", *common[:4], "-o", str(tmp_path / "x"), "--after", "nowhere/at"), 2)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_edit_goes_on_from_what_was_trained(tight: str, tmp_path: Path, method: str) -> None:
    """The store remembers the training run first; the edit goes on top of its model, and names it."""
    shutil.copytree(tight, tmp_path / "run.zarr")
    url, dog, edited = str(tmp_path / "run.zarr"), training_output(tmp_path / "my dog", method, 200), tmp_path / "star"
    common = ("-s", url, "--after", str(dog), "--device", "cpu", "--max-missing", "1", "--json")
    pair = ("a zwx star", "a red star")
    refused(
        nullbooth("edit", *pair, *common[:-1], "--dry-run"), 2, f"does not remember {dog} yet", f"nullbooth remember '{dog}' -s"
    )
    shown = nullbooth("edit", *pair, *common, "-o", str(edited))
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["remembered"] == ["my-dog"]
    [task] = listed_tasks(Store.open(url))
    assert (task.name, task.kind, task.source) == ("my-dog", "hard", str(dog))
    record, config = read_edit_record(edited), nb.open_store(url).config
    assert record is not None
    assert record.after is not None
    assert (record.after.relative, record.after.digest) == ("../my dog", read_place(config, str(dog)).digest)
    assert (record.after.digest is None) is (method == "full")
    before, after = (load_edited(config, str(place), "cpu").unet.state_dict() for place in (dog, edited))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == record.tensors.keys()
    tried = nullbooth("edit", "a qfj star", "a red star", *common[:2], "--after", str(edited), *common[4:], "--dry-run")
    assert tried.exit_code == 0, tried.stderr
