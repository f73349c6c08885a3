"""`nullbooth edit`: what it saves is what the library edits, and a folder that is there is left alone."""

import json
from pathlib import Path

import diffusers
import pytest
import torch

import nullbooth_cli as nb
from nullbooth_cli.model import load
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import nullbooth, refused
from tests.support.edited_models import toy

PAIR = {"a sks star": "a red star"}


@pytest.mark.parametrize("method", ["alphaedit", "uce"])
def test_the_options_reach_the_edit(finished: tuple[Config, Store], tmp_path: Path, method: str) -> None:
    output, url = tmp_path / "edited", finished[1].url
    options = ("--method", method, "--ridge", "0.5", "--preserve", "2", "--device", "cpu")
    shown = nullbooth("edit", *next(iter(PAIR.items())), "-s", url, "-o", str(output), *options, "--json")
    assert shown.exit_code == 0, shown.stderr
    pipe = toy()
    report = nb.edit(pipe, nb.open_store(url), PAIR, method=method, ridge=0.5, preserve=2.0)  # type: ignore[arg-type]
    document = json.loads(shown.stdout)
    assert (document["method"], document["pairs"], document["output"]) == (method, PAIR, str(output))
    assert document["weights"].keys() == report.weights.keys()
    assert document["missing"] == pytest.approx(report.missing)
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
    ],
)
def test_what_cannot_be_edited(
    finished: tuple[Config, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(load, "load_pipeline", None)  # none is loaded for that
    refused(nullbooth("edit", *arguments, "-s", finished[1].url, "-o", str(tmp_path / "edited"), "--device", "cpu"), 2, words)
    assert not (tmp_path / "edited").exists()
