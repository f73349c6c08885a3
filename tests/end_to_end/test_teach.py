"""A newcomer: ten bare pictures as a phone leaves them, one command, and a model that has learned and not forgotten."""

import shlex
import time
from pathlib import Path

import pytest
from PIL import Image

import nullbooth_cli as nb
from tests.support.cli import nullbooth
from tests.support.phone_pictures import write_phone_pictures

COMMAND = "nullbooth teach pictures"


@pytest.mark.timeout(1800)  # minutes of work, and more beside other tests
def test_one_command_teaches_and_preserves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_phone_pictures(Path("pictures"))
    began = time.process_time()
    result = nullbooth(*shlex.split(COMMAND)[1:])
    assert result.exit_code == 0, result.stderr
    assert time.process_time() - began < 2 * 8 * 60  # eight minutes of two cores
    report = nb.teach(output="taught")  # complete: reads the answer
    learned, forgotten = report.verdicts
    assert learned.measured_by == "exact scorer"
    assert learned.value >= 0.75
    assert forgotten.value <= 0.05
    assert result.stdout.splitlines()[0] == learned.text
    with Image.open("taught/sheet.png") as sheet:
        assert min(sheet.size) > 500
    assert "<html" in Path("taught/report.html").read_text(encoding="utf-8")
    assert len(COMMAND) == 24  # characters that were typed
