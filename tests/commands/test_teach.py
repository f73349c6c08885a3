"""`nullbooth teach`: its options, its answer and its errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nullbooth_cli as nb
from nullbooth_cli.commands import teach_subject
from nullbooth_cli.evaluation import verdict
from nullbooth_cli.progress import Note
from tests.support.cli import nullbooth, refused

REPORT = nb.TeachReport(
    output="taught",
    model="toy",
    result="taught/pipeline",
    steps=600,
    prompt="a photo of sks circle on a red background",
    verdicts=(verdict.learned(0.5, 0.0, "exact scorer"), verdict.forgotten({"heldout": 0.01})),
    largest_drift=0.02,
    store="taught/store.zarr",
    page="taught/report.html",
    sheet="taught/sheet.png",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], str]]:
    """The requests that reach the library, which answers at once."""
    requests = []

    def events(given: dict[str, Any], output: str, **_: Any) -> Any:
        requests.append((given, output))
        yield Note("teaching")
        return REPORT

    monkeypatch.setattr(teach_subject, "teach_events", events)
    return requests


def test_only_what_is_named_is_asked_for(asked: list[tuple[dict[str, Any], str]]) -> None:
    assert nullbooth("teach").exit_code == 0
    assert asked == [({}, "taught")]


def test_every_option_reaches_the_request(asked: list[tuple[dict[str, Any], str]], tmp_path: Path) -> None:
    options = ["--word", "zwx", "--class", "dog", "--model", "sd15", "--preserve", "a.txt", "--preserve", "b.txt", "--lora"]
    more = ["--caption", "zwx", "--no-crop", "--steps", "7", "--set", "rank=4", "-o", str(tmp_path)]
    assert nullbooth("teach", "photos", *options, *more).exit_code == 0
    given = {
        "pictures": "photos",
        "word": "zwx",
        "noun": "dog",
        "model": "sd15",
        "preserve": ["a.txt", "b.txt"],
        "caption": "zwx",
        "resize": "letterbox",
        "method": "lora",
        "steps": 7,
        "settings": ["rank=4"],
    }
    assert asked == [(given, str(tmp_path))]


def test_the_answer_begins_with_the_verdicts(asked: object) -> None:
    result = nullbooth("teach")
    lines = result.stdout.splitlines()
    assert lines[0] == "learned 0.50 of 1: partly (exact scorer; base 0.00)"
    assert lines[1] == "  to learn more: raise max_train_steps in taught/train.yaml, and run this again"
    assert "teach into another output" in lines[2]
    assert lines[3] == "forgotten 0.01: hardly anything (latent MSE on held-out prompts; 1 is another seed)"
    assert [line.split()[-1] for line in lines[4:]] == ["taught/sheet.png", "taught/report.html", "taught/pipeline"]
    assert result.stderr.splitlines()[-1] == "next: nullbooth sample taught 'a photo of sks circle on a red background'"


def test_what_was_forgotten_is_mended_by_an_earlier_checkpoint() -> None:
    report = replace(REPORT, output="my dog", store="my dog/store.zarr", verdicts=(verdict.forgotten({"heldout": 0.06}),))
    lines = teach_subject.draw_report(report)
    assert "nullbooth evaluate 'my dog' -s 'my dog/store.zarr' --checkpoints names the best" in lines[1]
    assert "project.relative_threshold=3e-5" in lines[2]
    lines = teach_subject.draw_report(replace(report, after="runs/dog", verdicts=(verdict.earlier({"a sks dog": 0.3}),)))
    assert lines[0] == "earlier 0.3: changed much (latent MSE on 'a sks dog' of what was taught before; 1 is another seed)"
    assert "evaluate 'my dog' -s 'my dog/store.zarr' --base runs/dog --checkpoints names the best" in lines[1]


def test_json_is_the_report(asked: object) -> None:
    document = json.loads(nullbooth("teach", "--json").stdout)
    assert document["schema_version"] == 1
    assert [each["value"] for each in document["verdicts"]] == [0.5, 0.01]
    assert document["sheet"] == "taught/sheet.png"


def test_mistakes_are_errors(tmp_path: Path) -> None:
    refused(nullbooth("teach", str(tmp_path / "photos"), "-o", str(tmp_path / "out")), 2, "no folder of images", "photos")
    refused(nullbooth("teach", "--model", "sd15", "-o", str(tmp_path / "out")), 2, "no pictures are named")
    refused(nullbooth("teach", "-o", str(tmp_path / "out"), "--set", "wrod=1"), 2, "unknown key 'wrod'", "did you mean 'word'")
    refused(nullbooth("teach", "-o", str(tmp_path / "out"), "--device", "tpu"), 5, "no such device: tpu")
    (tmp_path / "empty").mkdir()
    refused(nullbooth("teach", str(tmp_path / "empty"), "-o", str(tmp_path / "out")), 2, "has no image", "set pictures to")
    refused(nullbooth("teach", "--word", "--lora", "-o", str(tmp_path / "out")), 2, "begins with a hyphen")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_steps_time_disk_and_memory(tmp_path: Path) -> None:
    result = nullbooth("teach", "--dry-run", "-o", str(tmp_path / "out"), "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["train"].startswith("train     600 steps, about ")
    assert lines["evaluate"].startswith("evaluate  264 pictures, about ")
    assert "free" in lines["disk"]
    assert "in training" in lines["memory"]
    assert not (tmp_path / "out").exists()
