"""Which tasks a store has of a changed model: by its place, wherever that was named from and moved to, never by its name."""

import os
import shutil
from pathlib import Path

import pytest

from nullbooth_cli.store import Store, list_task, name_for, remembered
from nullbooth_cli.store.tasks import list_copied, listed_tasks, place_of, resolved


def test_a_place_is_the_same_from_every_folder(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/dog").mkdir(parents=True)
    (tmp_path / "link").symlink_to("runs/dog")
    monkeypatch.chdir(tmp_path)
    list_task(store, "dog", kind="hard", weight=1, source="runs/dog")
    monkeypatch.chdir("/")
    for source in (
        f"{tmp_path}/runs/dog",
        f"{tmp_path}/runs/../runs/dog/",
        f"{tmp_path}/link",
        os.path.relpath(tmp_path / "link"),
    ):
        found = remembered(store, source)
        assert found is not None
        assert (found.name, found.source) == ("dog", str(tmp_path / "runs/dog"))
    assert remembered(store, "runs/dog") is None, "that is another folder here"


def test_another_model_of_the_name_is_not_remembered(store: Store, tmp_path: Path) -> None:
    for folder in ("one/dog", "two/dog"):
        (tmp_path / folder).mkdir(parents=True)
    list_task(store, "dog", kind="hard", weight=1, source=str(tmp_path / "one/dog"))
    assert remembered(store, str(tmp_path / "two/dog")) is None
    assert remembered(store, str(tmp_path / "one/dog"), "soft") is None
    assert name_for(store, str(tmp_path / "two/dog"), "hard", "dog") == "dog-2"
    assert name_for(store, str(tmp_path / "one/dog"), "hard", "anything") == "dog"


def test_places_that_are_no_paths_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b+c", "d@e"):
        Path(name).touch()
    assert [resolved(place) for place in ("owner/name", "https://host/a/../b", "@0.5")] == [
        "owner/name",
        "https://host/a/../b",
        "@0.5",
    ]
    assert resolved("a@0.8+owner/name") == f"{tmp_path}/a@0.8+owner/name"
    assert [resolved(place) for place in ("b+c", "d@e")] == [f"{tmp_path}/b+c", f"{tmp_path}/d@e"]


def test_a_result_and_its_output_are_one_place(store: Store, tmp_path: Path) -> None:
    for folder in ("dog/pipeline", "dog/checkpoint-000200/trained", "other/pipeline", "other/trained", "dog/extra"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dog/train.json").touch()
    list_task(store, "dog", kind="hard", weight=1, source=str(tmp_path / "dog/pipeline"))
    assert [entry.source for entry in listed_tasks(store)] == [str(tmp_path / "dog")]
    assert remembered(store, str(tmp_path / "dog")) is not None
    assert resolved(f"{tmp_path}/dog/checkpoint-000200/trained@0.8+{tmp_path}/dog/pipeline") == (
        f"{tmp_path}/dog/checkpoint-000200@0.8+{tmp_path}/dog"
    )
    for apart in ("other/pipeline", "other/trained", "dog/extra"):
        assert resolved(str(tmp_path / apart)) == str(tmp_path / apart)


def test_a_copy_leads_to_the_models_from_its_own_place(tmp_path: Path, store: Store) -> None:
    runs = Path(store.url).parent
    (runs / "dog").mkdir()
    list_task(store, "dog", kind="hard", weight=1, source=str(runs / "dog"))
    list_task(store, "hub", kind="hard", weight=1, source="owner/name")
    moved = runs.rename(runs.parent / "moved")
    source = str(moved / Path(store.url).name)
    (tmp_path / "deep/er").mkdir(parents=True)
    copy = shutil.copytree(source, tmp_path / "deep/er/copy.zarr")
    list_copied(Store.open(str(copy), write=True), source, str(copy))
    dog, hub = listed_tasks(Store.open(str(copy)))
    assert (dog.source, dog.relative) == (str(moved / "dog"), os.path.relpath(moved / "dog", copy))
    assert (hub.source, hub.relative) == ("owner/name", None)


def test_a_store_and_a_model_that_are_moved_together(tmp_path: Path, store: Store) -> None:
    root = Path(store.url).parent
    (root / "dog").mkdir()
    list_task(store, "dog", kind="hard", weight=1, source=str(root / "dog"))
    moved = root.parent / "elsewhere"
    root.rename(moved)
    found = remembered(Store.open(str(moved / Path(store.url).name)), str(moved / "dog"))
    assert found is not None
    assert found.name == "dog"


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ("my dog (1)", "my-dog--1-"),
        ("..dog", "dog"),
        ("-", "task"),
        ("犬", "task"),
        ("d" * 90, "d" * 60),
        ("sd1.5_dog", "sd1.5_dog"),
    ],
)
def test_a_name_that_no_folder_can_have_is_changed(store: Store, named: str, name: str) -> None:
    assert name_for(store, "owner/name", "hard", named) == name
    list_task(store, name, kind="hard", weight=1, source="owner/other")
    assert name_for(store, "owner/name", "hard", named) == f"{name}-2"
    assert place_of(f"{name}-2") == f"tasks/{name}-2"
