"""Stage schedule: the steps of a diffusers scheduler, and the record that later stages compare."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from nullbooth_cli.pipeline.workers import Shard, Workers
from nullbooth_cli.progress import Progress
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.store import Store
from tests.support.builders import small_config
from tests.support.by_hand import NOISE
from tests.support.stages import events


def scheduled(folder: Path, **changes: Any) -> tuple[Store, list[Any]]:
    config = small_config(folder / "run.zarr", **changes)
    store = Store.create(config.store, config.model_dump())
    return store, events(config, store, "schedule")


@pytest.mark.parametrize("num_steps", [2, 7])
def test_steps_are_those_of_the_scheduler(tmp_path: Path, num_steps: int) -> None:
    store, said = scheduled(tmp_path, schedule__num_denoising_steps=num_steps)
    scheduler = diffusers.DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True, steps_offset=1)
    scheduler.set_timesteps(num_steps)
    np.testing.assert_array_equal([step.timestep for step in store.schedule()], scheduler.timesteps)
    np.testing.assert_allclose([step.sigma for step in store.schedule()], scheduler.sigmas[:-1], rtol=1e-5)
    assert said[-1] == Progress("schedule", 1, 1, f"{num_steps} steps")


def test_its_record_names_the_scheduler_and_the_values(tmp_path: Path) -> None:
    store, _ = scheduled(tmp_path)
    record = store.records["schedule"]
    assert record["scheduler"] == "DPMSolverMultistepScheduler"
    assert record["values"] == fingerprint([(step.timestep, step.sigma) for step in store.schedule()])
    assert "size" not in record, "only the steps of a flow-matching model depend on the size of the image"


def test_another_noise_schedule_of_the_steps_has_another_record(tmp_path: Path) -> None:
    records = [scheduled(tmp_path / name, schedule__sampler_strategy=name)[0].records["schedule"] for name in ("DDIM", "Euler")]
    assert len({record["fingerprint"] for record in records}) == 2


def test_a_shard_leaves_the_schedule_of_another_one_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr")
    store, _ = scheduled(tmp_path)
    monkeypatch.setattr(Store, "write_schedule", lambda *_: pytest.fail("it is written already"))
    before = store.records["schedule"]
    events(config, store, "schedule", workers=Workers(Shard(2, 2)))
    assert Store.open(config.store).records["schedule"] == before
