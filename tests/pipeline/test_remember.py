"""What a store remembers: sums of a task, the chain of models, and forgetting, against a collection made anew."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nullbooth_cli as nb
from nullbooth_cli.datatypes import Sums
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.model import load
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.pipeline import project as project_module
from nullbooth_cli.pipeline import remember as module
from nullbooth_cli.pipeline.remember import RememberRequest
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, leftovers, tasks_of
from tests.support.builders import execute, small_config, states_of
from tests.support.tasks import DOG, collected, dog_and_cat, forget, fresh, remember, spectra


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dog_and_cat(tmp_path_factory.mktemp("changed"))


@pytest.mark.parametrize("weight", [1, 3])
def test_a_task_counts_as_prompts_that_were_collected_so_many_times(tmp_path: Path, models: dict[str, Path], weight: int) -> None:
    config = collected(tmp_path / "run.zarr")
    remember(config, models["dog"], weight=weight)
    found = nb.open_store(config.store)
    apart = nb.open_store(collected(tmp_path / "dog.zarr", DOG).store)
    alone = nb.open_store(collected(tmp_path / "alone.zarr").store)
    for site in found.sites():
        base, task = alone.moment(site.name), apart.moment(site.name)
        count = base.count + weight * task.count
        expected = (base.kept * base.count + weight * task.kept * task.count) / count
        assert found.moment(site).count == count
        np.testing.assert_allclose(found.moment(site).kept, expected, rtol=1e-10, atol=1e-12)
        values = np.linalg.eigvalsh(expected)
        np.testing.assert_allclose(found.store.projectors.read_eigenvalues(site, 0), values, atol=1e-10)
    assert set(states_of(config).values()) == {"complete"}


def test_inputs_are_those_of_the_changed_model(tmp_path: Path, models: dict[str, Path]) -> None:
    # out receives what k and v made of the text: another model gives it other inputs.
    config = small_config(
        tmp_path / "run.zarr", collect__keep="moments", schedule__num_denoising_steps=2, project__empty="freeze"
    )
    execute(config, "collect", "covariance", "project")
    remember(config, models["dog"])
    task = tasks_of(Store.open(config.store))[0]
    other = small_config(
        tmp_path / "dog.zarr",
        model=str(models["dog"]),
        original_knowledge_prompts=list(DOG),
        collect__keep="moments",
        schedule__num_denoising_steps=2,
    )
    expected = execute(other, "collect", "covariance")
    for site, mine in zip(expected.sites, task.store.sites, strict=True):
        for t in range(site.num_recorded(2)):
            one, two = expected.moments.read_one(site, t), task.store.moments.read_one(mine, t)
            np.testing.assert_allclose(two[0], one[0], rtol=1e-6, atol=1e-6 * float(np.abs(one[0]).max()))


def test_forgetting_gives_back_what_was_there_before(tmp_path: Path, models: dict[str, Path]) -> None:
    config = collected(tmp_path / "run.zarr")
    before = spectra(config)
    remember(config, models["dog"])
    with_dog = spectra(config)
    remember(config, models["cat"], "cat", ("a zwx cat",))
    assert [task.name for task in tasks_of(Store.open(config.store))] == ["dog", "cat"]
    assert not np.array_equal(spectra(config)[0], with_dog[0])
    forget(config, "cat")
    np.testing.assert_array_equal(spectra(config), with_dog)
    forget(config, "dog")
    np.testing.assert_array_equal(spectra(config), before)
    assert not Store.open(config.store).nbytes("tasks/dog")
    with pytest.raises(ConfigError, match="has no task dog"):
        forget(config, "dog")


def test_the_base_and_the_end_of_the_chain_are_accepted(tmp_path: Path, models: dict[str, Path]) -> None:
    config = collected(tmp_path / "run.zarr")
    remember(config, models["dog"])
    remember(config, models["cat"], "cat", ("a zwx cat",))
    store = Store.open(config.store)
    check_model(store, fresh().unet.state_dict())
    load_unet = lambda name: load.load_pipeline(  # noqa: E731
        str(models[name]), revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    ).unet.state_dict()
    check_model(store, load_unet("cat"))
    with pytest.raises(ConfigError, match=r"after dog, cat\): 20 weights differ, such as .*attn2\.to_k\.weight"):
        check_model(store, load_unet("dog"))
    forget(config, "cat")
    check_model(Store.open(config.store), load_unet("dog"))


def test_the_same_request_again_does_nothing_and_another_is_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    config = collected(tmp_path / "run.zarr")
    remember(config, models["dog"])
    before = spectra(config)
    remember(config, models["dog"])
    np.testing.assert_array_equal(spectra(config), before)
    for rest in ({"weight": 2}, {"prompts": ("a sks dog",)}):
        with pytest.raises(ConfigError, match="remembers another task by the name dog"):
            remember(config, models["dog"], **rest)
    with pytest.raises(ConfigError, match="cannot be the name"):
        RememberRequest(source="x", prompts=DOG, name="../dog")


@pytest.mark.parametrize("weight", [0, -1, 0.5, 1.5, float("nan"), float("inf"), True, "2", None, 10**6 + 1])
def test_a_weight_is_a_whole_number(weight: Any) -> None:
    with pytest.raises(ConfigError, match=rf"weight is {weight}\b"):
        RememberRequest(source="x", prompts=DOG, name="dog", weight=weight)


def test_a_store_and_its_models_that_were_moved_together(tmp_path: Path, models: dict[str, Path]) -> None:
    shutil.copytree(models["dog"], tmp_path / "runs/dog")
    config = collected(tmp_path / "runs/run.zarr")
    remember(config, tmp_path / "runs/dog")
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = config.model_copy(update={"store": str(tmp_path / "moved/run.zarr")})
    before = spectra(moved)
    remember(moved, tmp_path / "moved/dog")
    assert [task.name for task in tasks_of(Store.open(moved.store))] == ["dog"]
    np.testing.assert_array_equal(spectra(moved), before)
    with pytest.raises(ConfigError, match="remembers another task by the name dog"):
        remember(moved, models["dog"])


def test_a_place_that_is_no_path_is_the_same_from_every_folder() -> None:
    for place in ("owner/name", "https://host/model.safetensors"):
        request = RememberRequest(source=place, prompts=DOG, name="dog", edits={}, digest="abcd")
        assert request.origin(Config())["source"] == place


def test_a_task_that_is_listed_and_gone_is_damage(tmp_path: Path, models: dict[str, Path]) -> None:
    config = collected(tmp_path / "run.zarr")
    remember(config, models["dog"])
    Store.open(config.store, write=True).delete("tasks/dog")
    with pytest.raises(StoreError, match="tasks/dog is missing"):
        nb.open_store(config.store).projectors()
    forget(config, "dog")
    assert states_of(config)["project"] == "complete"


def test_what_was_left_by_a_stopped_run_does_not_count(tmp_path: Path, models: dict[str, Path], monkeypatch: Any) -> None:
    config = collected(tmp_path / "run.zarr")
    before = spectra(config)
    with monkeypatch.context() as patched:
        patched.setattr(module, "list_task", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remember(config, models["dog"])
    np.testing.assert_array_equal(spectra(config), before)
    assert states_of(config)["project"] == "complete"
    remember(config, models["dog"], prompts=("a sks dog",))  # another request: it starts anew
    assert [prompt.text for prompt in tasks_of(Store.open(config.store))[0].store.prompts()] == ["a sks dog"]


def _stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_an_edit_is_remembered_softly(tmp_path: Path, models: dict[str, Path]) -> None:
    config = collected(tmp_path / "run.zarr")
    store = Store.open(config.store)
    before, site = spectra(config), store.sites[0]
    rows = np.random.default_rng(0).standard_normal((5, site.dim))
    edits = {site.name: Sums(rows.T @ rows, rows.sum(0), 5)}
    digests = {site.weights[0]: "0123"}
    remember(config, models["dog"], edits=edits, weights=digests, digest="abcd", weight=2)
    np.testing.assert_array_equal(spectra(config), before)
    opened = nb.open_store(config.store)
    np.testing.assert_allclose(opened.edited(site), 2 * rows.T @ rows, rtol=1e-12)
    assert tasks_of(opened.store)[0].weights[site.weights[0]] == "0123"
    opened.projectors()
    forget(config, "dog")
    assert nb.open_store(config.store).edited(site) is None


@pytest.mark.parametrize(
    ("at", "left"),
    [((module, "_project"), "stale"), ((project_module, "my_units"), "partial"), ((Store, "delete"), "complete")],
    ids=["before the projectors", "among the projectors", "before the sums are removed"],
)
def test_forgetting_resumes_where_it_was_stopped(
    tmp_path: Path, models: dict[str, Path], monkeypatch: Any, at: tuple[Any, str], left: str
) -> None:
    config = collected(tmp_path / "run.zarr")
    before = spectra(config)
    remember(config, models["dog"])
    with monkeypatch.context() as patched:
        if at[0] is Store:
            real = Store.delete
            patched.setattr(Store, "delete", lambda self, name: _stop() if name == "tasks/dog" else real(self, name))
        else:
            patched.setattr(*at, _stop)
        with pytest.raises(KeyboardInterrupt):
            forget(config, "dog")
    assert states_of(config)["project"] == left
    assert leftovers(Store.open(config.store)) == ["dog"]
    forget(config, "dog")
    assert (states_of(config)["project"], leftovers(Store.open(config.store))) == ("complete", [])
    np.testing.assert_array_equal(spectra(config), before)
    with pytest.raises(ConfigError, match="has no task dog"):
        forget(config, "dog")
