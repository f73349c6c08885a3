"""Shared fixtures: the embedded model (loaded once) and one small finished run.

Eight prompts and four steps are enough: every property tested here holds or fails at any size.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from nullbooth_cli import collecting, model, stages
from nullbooth_cli.config import Config, build_config
from nullbooth_cli.images import knowledge_prompts
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.states import stage_states
from nullbooth_cli.store import Site, Store, Sums

SHIPPED: list[tuple[Any, Any]] = []  # the shared model, once it is loaded, and its own scheduler
ROOT = Path(__file__).parent.parent
PROMPTS = [
    "a red circle on a blue background",
    "a green square on a white background",
    "a yellow star at the left of a black background",
    "a cyan ring on a gray background",
    "a purple cross on a red background",
    "a pink triangle at the top of a green background",
    "a blue circle on a yellow background",
    "an orange star on a purple background",
]


def small_config(store: Path, **changes: Any) -> Config:
    """Eight prompts, four steps, three prompts a unit; `changes` are dotted keys with `__` for the dot."""
    data: dict[str, Any] = {
        "store": str(store),
        "original_knowledge_prompts": PROMPTS,
        "schedule": {"num_denoising_steps": 4, "sampler_strategy": "DPM++ 2M Karras"},
        "collect": {"batch_size": 3, "feature_dtype": "float32", "guidance_scale": 4.0},
        "project": {"relative_threshold": 0.05},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return build_config(data)


def execute(config: Config, *wanted: str, store: Store | None = None, **control: Any) -> Store:
    """Run stages through the library, as the commands do."""
    store = store or Store.open_or_create(config.store, config.model_dump())
    prompts = prompts_of(config)
    for stage in wanted:
        with store.lock():
            for _ in stages.execute(stage, stages.Run(config, prompts, store, "cpu", **control)):
                pass
    return store


def features_at(store: Store, site: Site, timestep: int, unit: int) -> NDArray[Any]:
    """The vectors of one recorded timestep and unit, `[b, L, D]` as stored."""
    block = next(block for block in store.blocks(site) if timestep in block)
    values: NDArray[Any] = store.read_features(site, block, unit)[timestep - block.start]
    return values


def set_moment(store: Store, site: Site, timestep: int, sums: Sums) -> None:
    """Put other sums in the place of one recorded timestep."""
    block = next(block for block in store.blocks(site) if timestep in block)
    store.write_moments(site, block, [sums if t == timestep else store.read_moment(site, t) for t in block])


def prompts_of(config: Config) -> tuple[Prompt, ...]:
    return knowledge_prompts(config)


def states_of(config: Config) -> dict[str, str]:
    return {name: found.state for name, found in stage_states(config, prompts_of(config), Store.open(config.store)).items()}


@pytest.fixture(scope="session")
def pipe() -> Any:
    """The embedded model in float32 on the CPU. A test may put another scheduler in; it is taken out again after it."""
    made = model.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=model.pick_device("cpu")
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
def one_chunk_a_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small runs would hold all timesteps of a site in one chunk."""
    layout_of = collecting.layout_of
    monkeypatch.setattr(collecting, "layout_of", lambda *how: replace(layout_of(*how), chunk_bytes=1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """A complete small run. Read only: a test that changes a store makes its own."""
    config = small_config(tmp_path_factory.mktemp("finished") / "run.zarr")
    return config, execute(config, "schedule", "collect", "covariance", "project")
