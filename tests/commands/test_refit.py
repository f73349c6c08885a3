"""`nullbooth refit`: its options reach the library, its table marks the chosen m, and it refuses before anything is loaded."""

import json
import re
from pathlib import Path

import pytest

import nullbooth_cli as nb
from nullbooth_cli.model import load
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support import lora_files
from tests.support.cli import nullbooth, refused
from tests.support.keys import keys_of

USED = ["a zwx circle on a red background", "a zwx star"]
RUNG = "{m missing largest_missing drift largest_drift}"
WEIGHT = "missing drift drift_before"


@pytest.fixture
def lora(tmp_path: Path) -> str:
    return str(lora_files.kohya_file(tmp_path / "style.safetensors"))


def test_the_options_reach_the_refit(finished: tuple[Config, Store], lora: str, tmp_path: Path) -> None:
    (tmp_path / "used.txt").write_text("\n".join(USED))
    output, url = str(tmp_path / "new.safetensors"), finished[1].url
    options = ("--prompts", str(tmp_path / "used.txt"), "--prompts", "a zwx ring", "--outside", "drop", "--device", "cpu")
    shown = nullbooth("refit", lora, *options, "-s", url, "-o", output, "--m", "7", "--json")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    report = nb.refit(lora, nb.open_store(url), [*USED, "a zwx ring"], output=None, m=7, device="cpu")
    assert document["prompts"] == [*USED, "a zwx ring"]
    assert (document["m"], document["output"], document["file"]) == (7, output, lora)
    assert document["chosen"]["missing"] == pytest.approx(report.chosen.missing)
    assert Path(output).is_file()
    weight = f"{lora_files.LAYER}.weight"
    document["weights"] = document["weights"][weight]
    assert keys_of(document) == (
        f"{{schema_version file store output prompts[] m chosen{RUNG} drift_before largest_drift_before ladder[{RUNG}] "
        f"weights{{{WEIGHT}}} outside[] text_encoders[] dropped notes[]}}"
    )


def test_a_dry_run_shows_the_ladder_and_writes_nothing(finished: tuple[Config, Store], lora: str, tmp_path: Path) -> None:
    shown = nullbooth("refit", lora, "--prompts", USED[0], "-s", finished[1].url, "--dry-run", "--device", "cpu")
    assert shown.exit_code == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[0][:2] == ["m", "missing"]
    assert rows[2][:5] == ["as", "it", "is", "0", "0"]
    assert [row[0] for row in rows if "chosen" in row] == re.findall(r"refitted at m = (\S+):", shown.stdout)
    assert "next:" not in shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]


def test_the_line_that_follows_measures_it(finished: tuple[Config, Store], lora: str, tmp_path: Path) -> None:
    output, url = str(tmp_path / "new.safetensors"), finished[1].url
    shown = nullbooth("refit", lora, "--prompts", USED[0], "-s", url, "-o", output, "--device", "cpu")
    assert shown.exit_code == 0, shown.stderr
    assert f"next: nullbooth evaluate {output} -s {url} --subject '{USED[0]}'" in shown.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompts", "a"], "no output is named"),
        (["--prompts", "a", "--dry-run", "-o", "new.safetensors"], "--dry-run writes nothing"),
        (["-o", "new.safetensors"], "no prompt uses the change"),
        (["--prompts", "a", "-o", "new.safetensors", "--m", "some"], "--m some is not a number"),
        (["--prompts", "a", "-o", "new.safetensors", "--m", "-1"], "m=-1.0 is not a weight"),
        (["--prompts", "a", "-o", "new.safetensors", "--outside", "all"], "outside='all' is not a choice"),
        (["--word", "the dog", "-o", "new.safetensors"], "begins with an article"),
        (["--prompts", "a", "-o", "."], ". exists already"),
        (["--prompts", "a", "--prompts", " ", "-o", "new.safetensors"], "a prompt is empty"),
        (["--prompts", "usde.txt", "-o", "new.safetensors"], "usde.txt"),
        (["--prompts", "usde.csv#title", "-o", "new.safetensors"], "usde.csv"),
        (["--prompts", "a", "-o", "new.safetensors", "--m", "1e-12"], "m=1e-12 is not a weight"),
    ],
)
def test_what_cannot_be_refitted(
    finished: tuple[Config, Store], lora: str, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.setattr(load, "load_pipeline", None)  # none is loaded for that
    refused(nullbooth("refit", lora, *options, "-s", finished[1].url, "--device", "cpu"), 2, words)
