"""`nullbooth evaluate`: the options that it refuses."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.toy import FOLDER
from tests.support.cli import nullbooth, refused, start_nullbooth


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--against", "x"], ["named twice"]),
        (["x", "--features", "clip"], ["has no '='", "--features clip=FOLDER"]),
        (["x", "--features", "vgg=x"], ["no feature space vgg", "clip, dino"]),
        (["x", "--features", "clip=nowhere"], ["no CLIP model at nowhere"]),
        (["x", "--instances", "x"], ["no subject is named", "--subject"]),
        (["x", "--subject", "a", "--subject-prompts", "x"], ["name the same"]),
        (["x", "--paraphrases", "{pairs}"], ["--paraphrases are of an edit", "add --edits"]),
        (["x", "--edits", "nowhere.yaml"], ["nowhere.yaml", "source: target"]),
        (["x", "--subject", " "], ["--subject is an empty text", "write a prompt of the subject"]),
    ],
)
def test_what_cannot_be_meant(finished: Any, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "pairs.yaml").write_text("a: b\n")
    arguments = [word.format(pairs=tmp_path / "pairs.yaml") for word in arguments]
    shown = nullbooth("evaluate", *arguments, "-s", str(finished[1].path), "--num-prompts", "1", "-q")
    refused(shown, 2, *words)


@pytest.mark.parametrize("option", ["--html", "--images"])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_drawn(finished: Any, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    shown = nullbooth("evaluate", "x", "-s", str(finished[1].path), "-q", option, str(tmp_path / "file/place/x"))
    refused(shown, 5, f"cannot write into {tmp_path}/file/place", "check the folder")


def test_a_page_is_a_file(finished: Any, tmp_path: Path) -> None:
    refused(nullbooth("evaluate", "x", "-s", str(finished[1].path), "--html", str(tmp_path)), 2, "is a folder", "name a file")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_code(finished: Any, number: int, code: int) -> None:
    arguments = ("evaluate", str(FOLDER), "-s", str(finished[1].path), "--num-prompts", "5", "--device", "cpu")
    with start_nullbooth(*arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stderr is not None
        while not (line := running.stderr.readline()).startswith("evaluate "):
            assert running.poll() is None, line
        running.send_signal(number)
        assert running.wait(60) == code
