"""Fixtures of every room: the embedded model (loaded once) and one small finished run."""

import copy
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker for each core: threads of their own would only wait for each other
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import psutil
import pytest
from hypothesis import HealthCheck, settings

from nullbooth_cli.model import device, load
from nullbooth_cli.pipeline import prepare_collect
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER

if TYPE_CHECKING:
    from tests.support.bucket import Bucket, Place

pytest.register_assert_rewrite("tests.support")
WORKER_BYTES = 2 * 10**9  # one worker with torch, the embedded model, and the processes that it starts
# No property may fail because the machine is slow.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
SHIPPED: list[tuple[Any, Any]] = []  # the shared model, once it is loaded, and its own scheduler


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one worker for each core that this process may use, and as many as fit into memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // WORKER_BYTES))


def pytest_collection_finish() -> None:
    """What is imported by now stays. With torch and diffusers, every full collection would look through it for 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def pipe() -> Iterator[Any]:
    """The embedded model in float32 on the CPU. A test may put another scheduler in; it is taken out again after it.

    A test that changes its weights and leaves them so is an error at the end of the session.
    """
    made = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=device.pick_device("cpu")
    )
    SHIPPED.append((made, made.scheduler))
    before = load.weights_digest(made, encodes=True)
    yield made
    assert load.weights_digest(made, encodes=True) == before, "a test has changed the weights of the shared model"


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """No test cuts the power. What is flushed, and when, is seen by a test that watches these calls."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("fdatasync", "fsync"):
            if hasattr(os, name):
                patched.setattr(os, name, lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _the_embedded_model_is_read_once() -> Iterator[None]:
    """Each load of it is a copy of the first, in half the time. The tests of loading, and every process, read the files."""
    real, first = load.load_pipeline, dict[str, Any]()

    def load_pipeline(model: str, **how: Any) -> Any:
        if model != "toy":
            return real(model, **how)
        key = repr(sorted(how.items()))
        if key not in first:
            first[key] = real(model, **how)
        # A copied tokenizer lacks its decoder: texts that are decoded have the marks of their tokens.
        old = first[key].tokenizer
        return copy.deepcopy(first[key], {id(old): type(old).from_pretrained(FOLDER / "tokenizer")})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "load_pipeline", load_pipeline)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_offloaded_by_groups() -> Iterator[None]:
    """diffusers asks every module of a pipeline for it, five times a call: as much work as a step of a tiny model."""
    from diffusers.hooks import group_offloading

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(group_offloading, "_get_top_level_group_offload_hook", lambda module: None)
        yield


@pytest.fixture(autouse=True)
def _no_launch_is_left() -> Iterator[None]:
    """accelerate keeps one state for a process: after a test that trained, the next launch would be that one."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(autouse=True)
def _shipped_scheduler() -> Iterator[None]:
    yield
    for made, scheduler in SHIPPED:
        made.scheduler = scheduler


@pytest.fixture
def fast(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process use the model that is loaded already, each with the scheduler that it ships with."""
    from tests.support.loading import use_loaded  # not before it is registered for rewriting

    use_loaded(pipe, monkeypatch)


@pytest.fixture
def one_chunk_a_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small runs would hold all timesteps of a site in one chunk."""
    layout_of = prepare_collect.layout_of
    monkeypatch.setattr(prepare_collect, "layout_of", lambda *how: replace(layout_of(*how), chunk_bytes=1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """A complete small run. Read only: a test that changes a store makes its own."""
    from tests.support.builders import execute, small_config  # not before it is registered for rewriting

    config = small_config(tmp_path_factory.mktemp("finished") / "run.zarr")
    return config, execute(config, "schedule", "collect", "covariance", "project")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A config file of a small run on one layer."""
    from tests.support.builders import small_config
    from tests.support.cli import saved

    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"], collect__batch_size=4)
    saved(config, tmp_path / "c.yaml")
    return tmp_path / "c.yaml"


@pytest.fixture
def done(finished: tuple[Config, Store], tmp_path: Path) -> str:
    """A copy of the finished run, free to be spoiled."""
    shutil.copytree(finished[1].path, tmp_path / "done.zarr")
    return str(tmp_path / "done.zarr")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def covariances(done: str, empty_folder: None) -> Path:
    """The moments of the finished run, as plain files in the current folder; its copy `done` has no projectors."""
    from tests.support.cli import exported

    Store.open(done, write=True).write_record("project", None)  # they need none
    return Path(exported("out", "-s", done, "--only-covariance")["path"])


@pytest.fixture(scope="session")
def bucket() -> Iterator["Bucket"]:
    """An S3 server in a process of its own."""
    from tests.support.bucket import serving

    with serving() as made:
        yield made


@pytest.fixture
def place(bucket: "Bucket", tmp_path: Path) -> "Place":
    """A place in the bucket for this test alone."""
    from tests.support.bucket import Place

    return Place(bucket, tmp_path)
