"""Fixtures of every room: the embedded model (loaded once) and one small finished run."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nullbooth_cli.model import device, load
from nullbooth_cli.pipeline import collect
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import execute, small_config

SHIPPED: list[tuple[Any, Any]] = []  # the shared model, once it is loaded, and its own scheduler


@pytest.fixture(scope="session")
def pipe() -> Any:
    """The embedded model in float32 on the CPU. A test may put another scheduler in; it is taken out again after it."""
    made = load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=device.pick_device("cpu")
    )
    SHIPPED.append((made, made.scheduler))
    return made


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
    """Commands in this process use the model that is loaded already."""
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)


@pytest.fixture
def one_chunk_a_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small runs would hold all timesteps of a site in one chunk."""
    layout_of = collect.layout_of
    monkeypatch.setattr(collect, "layout_of", lambda *how: replace(layout_of(*how), chunk_bytes=1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """A complete small run. Read only: a test that changes a store makes its own."""
    config = small_config(tmp_path_factory.mktemp("finished") / "run.zarr")
    return config, execute(config, "schedule", "collect", "covariance", "project")
