"""The rest of a store's life once it remembers tasks: damage, copies, merging, other settings, more prompts, a kill, a launch."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, NullboothError, StoreError
from nullbooth_cli.pipeline.doctor.examine import Finding
from nullbooth_cli.pipeline.merge import check_mergeable
from nullbooth_cli.report.compare_stores import SettingDifference, compare_stores
from nullbooth_cli.report.status import verify_store
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store, leftovers, list_task, tasks_of
from tests.support.builders import PROMPTS, execute, states_of
from tests.support.cli import nullbooth, refused
from tests.support.doctor import found as found_by_doctor
from tests.support.doctor import refused as refused_by_doctor
from tests.support.tasks import collected, dog_and_cat, forget, remember, spectra

MORE = "a photo of a zebra"


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Path]]:
    """A store that remembers a dog, and the models."""
    folder = tmp_path_factory.mktemp("remembered")
    models = dog_and_cat(folder)
    config = collected(folder / "run.zarr")
    remember(config, models["dog"])
    return config, models


@pytest.fixture
def copy(remembered: tuple[Config, dict[str, Path]], tmp_path: Path) -> Config:
    """A copy of it, in another place."""
    shutil.copytree(remembered[0].store, tmp_path / "copy.zarr")
    return remembered[0].model_copy(update={"store": str(tmp_path / "copy.zarr")})


def test_a_copy_in_another_place_is_whole(copy: Config) -> None:
    assert set(states_of(copy).values()) == {"complete"}
    opened = nb.open_store(copy.store)
    [task] = opened.tasks()
    assert (task.name, task.sites[0].null_dim) == ("dog", opened.projector(task.sites[0].site).null_dim)
    assert opened.provenance()["tasks"] == [{"name": "dog", "kind": "hard", "weight": 1, "source": task.source, "prompts": 2}]
    verified = verify_store(opened.store)
    assert verified.checked > verify_store(Store.open(f"{copy.store}/tasks/dog")).checked
    assert not verified.damaged


@pytest.mark.parametrize("place", ["moments/*/sum_xxT/c*", "moments/*/count/zarr.json", "zarr.json", "moments/*/sum_x/c*"])
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_damage_in_a_task_names_it_and_is_mended_by_remembering_again(
    copy: Config, remembered: tuple[Config, dict[str, Path]], place: str, how: str
) -> None:
    before = spectra(copy)
    [file] = Path(copy.store, "tasks/dog").glob(place)
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    [*_, first] = (damage for damage in verify_store(Store.open(copy.store)).damaged)
    assert "tasks/dog" in first.error
    assert first.hint == "remember the task dog again, or forget it: nothing else is lost with it"
    if how == "gone":
        refused(nullbooth("status", "-s", copy.store), 4, "tasks/dog", "remember the task dog again")
    if place.endswith("sum_x/c*"):
        shown = nullbooth("remember", "--forget", "dog", "-s", copy.store)
        assert shown.exit_code == 0, shown.stderr
    remember(copy, remembered[1]["dog"])
    np.testing.assert_array_equal(spectra(copy), before)
    assert not verify_store(Store.open(copy.store)).damaged


@pytest.mark.parametrize("killed_at", [None, "_begin", "_record", "_list"])
def test_a_damaged_task_keeps_its_place_in_the_chain(
    copy: Config, remembered: tuple[Config, dict[str, Path]], killed_at: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model is before another one's, which stays the end of the chain."""
    from nullbooth_cli.pipeline import remember as module

    models = remembered[1]
    remember(copy, models["cat"], "cat", ("a zwx cat",))
    before, weights = spectra(copy), tasks_of(Store.open(copy.store))[-1].weights
    [file] = Path(copy.store, "tasks/dog").glob("moments/*/sum_xxT/c*")
    file.unlink()
    if killed_at is not None:
        with monkeypatch.context() as patched:
            patched.setattr(module, killed_at, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                remember(copy, models["dog"])
        if killed_at != "_list":
            refused(nullbooth("status", "-s", copy.store), 4, "tasks/dog", "remember the task dog again")
    remember(copy, models["dog"])
    assert [task.name for task in tasks_of(Store.open(copy.store))] == ["dog", "cat"]
    assert tasks_of(Store.open(copy.store))[-1].weights == weights
    np.testing.assert_array_equal(spectra(copy), before)
    assert set(states_of(copy).values()) == {"complete"}
    with pytest.raises(ConfigError, match="remembers another task by the name dog"):
        remember(copy, models["dog"], prompts=("a sks dog",))


def test_another_setting_of_the_projectors_is_said(copy: Config, remembered: tuple[Config, dict[str, Path]]) -> None:
    shown = nullbooth(
        *("remember", str(remembered[1]["cat"]), "a zwx cat", "-s", copy.store, "--set", "project.relative_threshold=1e-3")
    )
    assert "computed with another setting: project.relative_threshold: 0.05 -> 0.001" in shown.stderr


def test_a_missing_array_of_the_budget_is_rebuilt_by_project(copy: Config) -> None:
    [folder] = Path(copy.store).glob("projectors/*/tasks")
    shutil.rmtree(folder)
    refused(nullbooth("inspect", "-s", copy.store), 4, "/tasks", "nullbooth project --force")
    assert nullbooth("project", "--force", "--yes", "-s", copy.store).exit_code == 0
    assert nb.open_store(copy.store).tasks()[0].sites


def test_tasks_of_two_stores_are_not_exchanged(copy: Config, tmp_path: Path) -> None:
    other = collected(tmp_path / "other.zarr", PROMPTS[:2])
    shutil.copytree(Path(copy.store, "tasks"), Path(other.store, "tasks"))
    store = Store.open(other.store, write=True)
    list_task(store, "dog", kind="hard", weight=1, source="x")
    with pytest.raises(StoreError, match="it belongs to another run") as caught:
        states_of(other)
    assert "remember the task dog again, or forget it" in caught.value.hint


def test_what_a_stopped_run_left_is_listed(copy: Config) -> None:
    store = Store.open(copy.store, write=True)
    store.inside_or_create("tasks/cat", {})
    assert leftovers(store) == ["cat"]
    shown = nullbooth("status", "-s", copy.store)
    assert "tasks: dog\nunfinished task cat: the same command resumes, --forget cat removes it" in shown.stdout
    found = json.loads(nullbooth("status", "-s", copy.store, "--json").stdout)
    assert (found["tasks"], found["unfinished_tasks"]) == (["dog"], ["cat"])
    (Path(copy.store) / "tasks/cat/zarr.json").write_text("{")
    assert nullbooth("remember", "--forget", "cat", "-s", copy.store).exit_code == 0
    assert leftovers(Store.open(copy.store)) == []


def test_stores_with_tasks_are_not_merged(copy: Config, tmp_path: Path) -> None:
    other = collected(tmp_path / "other.zarr", [MORE])
    with pytest.raises(ConfigError, match="remembers dog, recorded on models that followed it alone"):
        check_mergeable([Store.open(other.store), Store.open(copy.store)])


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("schedule", {}),
        ("schedule", {"schedule": {"num_denoising_steps": 3}}),
        ("collect", {}),
        ("collect", {"covariance": {"factor_above": 8, "factor_rank": 8}}),
    ],
)
def test_what_the_tasks_were_recorded_like_is_not_done_again(copy: Config, stage: str, change: dict[str, Any]) -> None:
    data = copy.model_dump()
    config = build_config({**data, **{section: {**data[section], **values} for section, values in change.items()}})
    before = spectra(copy)
    with pytest.raises(NullboothError, match=rf"remembers dog, and with another {stage} it would no longer fit"):
        execute(config, stage, force=True)
    assert set(states_of(copy).values()) == {"complete"}
    np.testing.assert_array_equal(spectra(copy), before)


def test_another_base_does_not_take_its_place(copy: Config, remembered: tuple[Config, dict[str, Path]]) -> None:
    config = copy.model_copy(update={"model": str(remembered[1]["cat"]), "original_knowledge_prompts": PROMPTS[:3]})
    with pytest.raises(ConfigError, match="remembers dog, taught to another model than"):
        execute(config, "collect", force=True)


def test_more_prompts_join_the_base(copy: Config, tmp_path: Path) -> None:
    config = copy.model_copy(update={"original_knowledge_prompts": [*PROMPTS, MORE]})
    execute(config, "collect", "covariance", store=Store.open(copy.store, write=True))
    execute(config, "project", store=Store.open(copy.store, write=True), force=True)
    task = tasks_of(Store.open(copy.store))[0]
    store, alone = nb.open_store(config.store), nb.open_store(collected(tmp_path / "all.zarr", [*PROMPTS, MORE]).store)
    for site in store.sites():
        own = task.store.moments.read_one(task.store.sites[0], 0)
        base = alone.moment(site)
        expected = (base.kept * base.count + own[0]) / (base.count + own[2])
        np.testing.assert_allclose(store.moment(site).kept, expected, rtol=1e-9, atol=1e-12)
    forget(config, "dog")
    np.testing.assert_allclose(
        spectra(config), [alone.store.projectors.read_eigenvalues(s, 0) for s in alone.sites()], atol=1e-10
    )


def test_another_scope_and_threshold_have_their_own_budget(copy: Config) -> None:
    data = copy.model_dump()
    for project in ({"scope": "timestep"}, {"pool_weight": "timestep"}, {"relative_threshold": 1e-4}):
        config = build_config({**data, "project": {**data["project"], **project}})
        execute(config, "project", force=True)
        opened = nb.open_store(config.store)
        [entry] = opened.tasks()[0].sites
        assert entry.null_dim == opened.store.projectors.read_cut(opened.sites()[0], 0).null_dim


def test_a_killed_run_is_resumed_by_the_same_command(copy: Config, remembered: tuple[Config, dict[str, Path]]) -> None:
    """Killed at each of its steps, as by kill -9, in a process of its own."""
    cat = remembered[1]["cat"]
    for function in ("_begin", "_list", "_project"):
        pid = os.fork()
        if pid == 0:
            from nullbooth_cli.pipeline import remember as module

            setattr(module, function, lambda *_, **__: os._exit(9))
            remember(copy, cat, "cat", ("a zwx cat",))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        names = [task.name for task in tasks_of(Store.open(copy.store))]
        assert names == (["dog", "cat"] if function == "_project" else ["dog"])
        assert states_of(copy)["project"] == ("stale" if function == "_project" else "complete")
    assert "tasks: dog -> dog, cat" in nullbooth("status", "-s", copy.store).stdout
    remember(copy, cat, "cat", ("a zwx cat",))
    assert [task.name for task in nb.open_store(copy.store).tasks()] == ["dog", "cat"]


def test_a_repair_looks_at_the_tasks_too(copy: Config) -> None:
    [mine] = Path(copy.store, "moments").glob("*/sum_xxT/c*")
    [of_task] = Path(copy.store, "tasks/dog/moments").glob("*/sum_xxT/c*")
    for file in (mine, of_task):
        file.unlink()
    refused(nullbooth("covariance", "--repair", "-s", copy.store), 4, "tasks/dog", "remember the task dog again")
    assert mine.exists(), "what a repair can mend is mended first"
    refused(nullbooth("collect", "--repair", "-s", copy.store), 4, "tasks/dog", "remember the task dog again")


def test_doctor_looks_at_the_tasks(copy: Config) -> None:
    def found() -> Finding:
        return found_by_doctor("tasks", copy)

    assert (found().verdict, found().text) == ("ok", "dog: all can be read")
    store = Store.open(copy.store, write=True)
    store.inside_or_create("tasks/cat", {})
    refused_by_doctor(found(), "cat was not finished", "forget", verdict="warning")
    store.delete("tasks/cat")
    [file] = Path(copy.store, "tasks/dog/moments").glob("*/sum_xxT/c*")
    file.write_bytes(file.read_bytes()[:-1])
    refused_by_doctor(found(), "tasks/dog", "remember the task dog again")
    shutil.rmtree(Path(copy.store, "tasks/dog"))
    refused_by_doctor(found(), "tasks/dog is missing", "remember the task dog again")


def test_stores_that_remember_other_tasks_are_compared(copy: Config, tmp_path: Path) -> None:
    shutil.copytree(copy.store, tmp_path / "without.zarr")
    without = copy.model_copy(update={"store": str(tmp_path / "without.zarr")})
    forget(without, "dog")
    one, other = (Store.open(each.store) for each in (copy, without))
    found = compare_stores(copy, one, without, other, one.sites)
    assert found.differences == (SettingDifference("tasks", ("dog (hard, weight 1, 2 prompts)", None)),)
    assert found.sites[0].null_dim == tuple(each.projectors.read_cut(each.sites[0], 0).null_dim for each in (one, other))
    shown = nullbooth("inspect", without.store, "-s", copy.store)
    assert "tasks: dog (hard, weight 1, 2 prompts) | None" in shown.stdout
