"""`nullbooth schedule`: its document, and settings of the command line that the store records."""

import json
from pathlib import Path

import pytest

from nullbooth_cli.store import Store
from tests.support.cli import nullbooth


def test_schedule(small: Path) -> None:
    document = json.loads(nullbooth("schedule", "-c", str(small), "--json").stdout)
    assert document["schema_version"] == 1
    assert {"strategy", "mode", "scheduler", "seed", "steps"} <= set(document)
    assert document["scheduler"] == "DPMSolverMultistepScheduler"
    assert document["steps"][0] == {
        "index": 0,
        "key": "alpha_00_9e2",
        "timestep": 999.0,
        "sigma": pytest.approx(157.4, rel=1e-3),
    }


def test_set_is_recorded(small: Path) -> None:
    nullbooth("schedule", "-c", str(small), "--set", "schedule.num_denoising_steps=6")
    store = Store.open(small.parent / "run.zarr")
    assert store.config["schedule"]["num_denoising_steps"] == 6
    assert len(store.schedule()) == 6
