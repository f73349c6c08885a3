"""Which models `nullbooth edit --after` still has to remember: those behind the place that the store does not have."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from nullbooth_cli.commands.edit_after import edits_before, record_of, remember_chain
from nullbooth_cli.editing import remember as request_module
from nullbooth_cli.editing.record import write_edit_record
from nullbooth_cli.editing.report import EditedWeight, EditReport
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After
from nullbooth_cli.pipeline import remember as module
from nullbooth_cli.progress import Event, Interrupts, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, list_task
from tests.support.stores import small_store
from tests.support.trained_folders import training_output


def edited(folder: Path, prompt: str, after: After | None = None) -> str:
    """A folder with the record of an edit."""
    folder.mkdir(parents=True)
    weights = {"k": EditedWeight(missing=0.1, drift=0.01, change=0.2)}
    rest = {"keys": {}, "tensors": {"k": prompt}, "by_pair": {prompt: 0.1}}
    report = EditReport(method="uce", tokens="all", pairs={prompt: "x"}, weights=weights, **rest)
    write_edit_record(folder, report, settings={}, after=after, store={}, dtype="float32")
    return str(folder)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """All that is asked of a session: its store and its config."""
    store = small_store(tmp_path)
    return SimpleNamespace(url=store.url, config=Config(store=store.url, model="toy"), open=lambda: Store.open(store.url))


def prompts_before(session: Any, place: str) -> list[list[str]]:
    return [list(report.pairs) for report in edits_before(session, place)]


def test_an_edit_of_the_same_name_elsewhere_does_not_pass_for_it(session: Any, tmp_path: Path) -> None:
    other, mine = (edited(tmp_path / folder / "star", f"a star of {folder}") for folder in ("other", "mine"))
    list_task(session.open(), "star", kind="soft", weight=1, source=other)
    assert prompts_before(session, mine) == [["a star of mine"]]
    assert prompts_before(session, other) == []


def test_what_was_named_from_another_folder_is_remembered(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = edited(tmp_path / "star", "a star")
    monkeypatch.chdir(tmp_path)
    list_task(session.open(), "mine", kind="soft", weight=1, source="star")
    monkeypatch.chdir("/")
    assert prompts_before(session, place) == []


def test_only_what_comes_after_the_last_that_is_remembered(session: Any, tmp_path: Path) -> None:
    places = [edited(tmp_path / "0", "a 0")]
    for i in (1, 2, 3):
        places.append(edited(tmp_path / str(i), f"a {i}", record_of(session.config, places[-1], tmp_path / str(i))))
    assert prompts_before(session, places[3]) == [["a 0"], ["a 1"], ["a 2"], ["a 3"]]
    list_task(session.open(), "one", kind="soft", weight=1, source=places[1])
    assert prompts_before(session, places[3]) == [["a 2"], ["a 3"]]
    (tmp_path / "0").rename(tmp_path / "gone")
    assert prompts_before(session, places[3]) == [["a 2"], ["a 3"]], "nothing asks for it"


def test_an_earlier_model_that_has_changed_is_noticed(session: Any, tmp_path: Path) -> None:
    lora = training_output(tmp_path / "dog", "lora", 200, result=False)
    place = edited(tmp_path / "star", "a star", record_of(session.config, str(lora), tmp_path / "star"))
    with pytest.raises(ConfigError, match=r"does not remember .*dog yet") as before:
        edits_before(session, place)
    assert before.value.hint == f"nullbooth remember {lora} -s {session.url}"
    word = lora / "checkpoint-000200/trained/learned_embeds.safetensors"
    word.write_bytes(word.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match=r"star was edited after .*dog, which has changed since"):
        edits_before(session, place)


def test_a_model_of_the_hub_has_no_way_to_it(session: Any, tmp_path: Path) -> None:
    after = After.of("owner/name", tmp_path, digest=None)
    assert json.loads(json.dumps(after.document())) == {"place": "owner/name", "relative": None, "digest": None, "prompts": []}
    assert After.read({"after": after.document()}) == after
    assert after.find(tmp_path / "anywhere") == Path("owner/name")


def test_sigterm_while_it_remembers_ends_with_its_code(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def events(*_: object, interrupts: Interrupts, **__: object) -> Iterator[Event]:
        yield Note("begun")
        interrupts.unwritten = True
        os.kill(os.getpid(), signal.SIGTERM)
        yield Note("the unit is written" if interrupts.requested else "lost")
        raise KeyboardInterrupt

    said: list[str] = []
    note = said.append

    def draw(found: Iterator[Note]) -> None:
        for event in found:
            note(event.text)

    terminal = SimpleNamespace(note=note, follow=draw)
    session = SimpleNamespace(**vars(session), terminal=terminal)
    monkeypatch.setattr(request_module, "request_of", lambda *_: SimpleNamespace(name="star"))
    monkeypatch.setattr(module, "remember_events", events)
    with pytest.raises(typer.Exit) as caught:
        remember_chain(session, edited(tmp_path / "star", "a star"), None)
    assert caught.value.exit_code == 143
    assert said[1].startswith("interrupted: finishing and writing the unit that runs")
    assert [said[0], *said[2:]] == ["begun", "the unit is written"]
