"""A store's attributes, schedule and prompts come back; what was read stays until it is read anew."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nullbooth_cli.datatypes import HELDOUT, Prompt, Step
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store import Store
from tests.support.stores import FREE, TIMED


def test_schedule_prompts_sites_and_records_come_back(store: Store) -> None:
    steps = (Step(0, "alpha_00_9e2", 999.0, 14.6), Step(1, "alpha_01_5e2", 517.25, 1.5))
    prompts = (Prompt("a dog"), Prompt("ein Hündchen, 犬"))
    store.write_schedule(steps)
    store.write_schedule(steps)
    store.delete("prompts")
    store.write_rows(0, prompts)
    store.write_record("collect", {"fingerprint": "x"})
    again = Store.open(store.path)
    assert again.schedule() == steps
    assert again.num_steps == 2
    assert again.prompts() == prompts
    assert again.sites == (FREE, TIMED)
    assert again.records == {"collect": {"fingerprint": "x"}}


def test_sites_are_parsed_once_until_others_are_written(store: Store) -> None:
    before = store.sites
    assert store.sites is before
    store.write_record("project", {})
    assert store.sites is before
    store.write_sites([TIMED])
    assert store.sites == (TIMED,)


def test_sites_of_another_process_are_seen_after_reload(store: Store) -> None:
    other = Store.open(store.path, write=True)
    assert store.sites == (FREE, TIMED)
    other.write_sites([FREE])
    assert store.sites == (FREE, TIMED)
    store.reload()
    assert store.sites == (FREE,)


def test_what_a_caller_does_to_the_config_or_the_records_changes_nothing(store: Store) -> None:
    store.config["model"] = "other"
    del store.records["collect"]
    assert store.config == {"model": "toy"}
    assert "collect" in store.records


def test_a_record_is_replaced_or_removed(store: Store) -> None:
    store.write_record("project", {"one": 1})
    store.write_record("project", {"two": 2})
    assert store.records["project"] == {"two": 2}
    store.write_record("project", None)
    assert set(store.records) == {"collect"}


def test_rows_of_another_process_are_seen_after_reload(store: Store) -> None:
    assert len(store.rows) == 5
    Store.open(store.path, write=True).write_rows(5, [None, Prompt("a caption", "0123")])
    assert len(store.rows) == 5
    store.reload()
    assert store.rows[5:] == (None, Prompt("a caption", "0123"))
    assert store.members(2) == [(4, Prompt("prompt 4"))]
    assert store.members(3) == [(6, Prompt("a caption", "0123"))]


def test_a_record_of_another_process_makes_a_store_reload(store: Store) -> None:
    other = Store.open(store.path)
    assert not other.reload_if_changed()
    store.write_record("collect", None)
    assert other.reload_if_changed()
    assert not other.records
    assert not other.reload_if_changed()


def test_held_out_prompts_have_a_store_inside(store: Store) -> None:
    assert store.heldout() is None
    made = store.inside_or_create(HELDOUT, {"inner": True})
    made.write_rows(0, [Prompt("held out")])
    found = store.heldout()
    assert found is not None
    assert (found.config, found.prompts()) == ({"inner": True}, (Prompt("held out"),))
    assert store.inside_or_create(HELDOUT, {"inner": False}).config == {"inner": True}
    assert len(store.prompts()) == 5


def test_a_place_without_a_store_is_none_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    assert Store.open_if_there(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()
    made = Store.open_or_create(tmp_path / "run.zarr", {"first": 1})
    assert Store.open_or_create(tmp_path / "run.zarr", {"second": 2}).config == {"first": 1}
    there = Store.open_if_there(tmp_path / "run.zarr")
    assert there is not None
    assert there.config == made.config
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(StoreError, match="exists and is not a nullbooth store"):
        Store.open_if_there(tmp_path / "mine")


def test_the_config_is_replaced_and_nothing_else(store: Store) -> None:
    store.write_config({"model": "another"})
    attributes = json.loads((store.path / "zarr.json").read_text())["attributes"]
    assert attributes["config"] == {"model": "another"}
    assert len(attributes["sites"]) == 2


@pytest.mark.parametrize("wrong", ["/tmp/outside", "../../outside", "a/b", "..", "C:\\outside", "a\0"])
@pytest.mark.parametrize("where", ["layer", "weights", "key"])
def test_a_name_that_is_a_path_is_refused(store: Store, wrong: str, where: str) -> None:
    """Every reader of a store joins names of layers and steps to folders: exports, plots, arrays."""
    store.write_schedule([Step(0, wrong if where == "key" else "timestep_0999", 999.0, 1.0)])
    sites = {"layer": replace(FREE, layer=wrong), "weights": replace(FREE, weights=(f"{wrong}.to_k.weight",)), "key": FREE}
    store.write_sites([sites[where]])
    again = Store.open(store.path)
    with pytest.raises(StoreError, match=r"has a layer or step with the name .*, which is a path"):
        again.schedule() if where == "key" else again.sites
