"""A model that was taught in two steps, from bare pictures."""

from dataclasses import replace
from pathlib import Path

import pytest

import nullbooth_cli as nb
from nullbooth_cli.progress import Event
from nullbooth_cli.teaching import request
from tests.support.phone_pictures import write_phone_pictures
from tests.support.teaching import FAST

FEW = replace(request.TOY, num_prompts=4, subject_images=1)  # pictures to draw


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts of each set, one picture of each prompt of the subject."""
    monkeypatch.setattr(request, "TOY", FEW)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bare pictures. Read only."""
    folder = tmp_path_factory.mktemp("photos")
    write_phone_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[nb.TeachReport, list[Event]]:
    """The report and the events. Read only."""
    events: list[Event] = []
    output = tmp_path_factory.mktemp("taught") / "out"
    with pytest.MonkeyPatch.context() as patch:  # it lives longer than the fixture for one test
        patch.setattr(request, "TOY", FEW)
        return nb.teach(photos, output=output, device="cpu", on_event=events.append, **FAST), events
