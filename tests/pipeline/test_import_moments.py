"""Moments come back from plain files, and bad files are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nullbooth_cli as nb
from tests.support.cli import nullbooth, refused

pytestmark = pytest.mark.usefixtures("empty_folder")

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"


def test_moments_and_projectors_come_back(done: str, covariances: Path) -> None:
    assert not list(covariances.rglob("*_projection.npy"))
    assert nullbooth("import", str(covariances), "-s", "back.zarr").exit_code == 0
    for place in (done, "back.zarr"):
        made = nullbooth("project", "-s", place, "--set", "project.relative_threshold=0.02", "--force")
        assert made.exit_code == 0, made.stderr
    states = json.loads(nullbooth("status", "-s", "back.zarr", "--json").stdout)["stages"]
    assert {found["state"] for found in states.values()} == {"complete"}
    mine, theirs = nb.open_store("back.zarr"), nb.open_store(done)
    assert [step.timestep for step in mine.schedule()] == [step.timestep for step in theirs.schedule()]
    assert set(mine.projectors()) == set(theirs.projectors())
    for site in theirs.sites():
        if not site.timestep_free:
            for step in range(4):
                one, other = mine.moment(site.name, step), theirs.moment(site, step)
                assert one.count == other.count
                np.testing.assert_allclose(one.second_moment, other.second_moment, rtol=1e-12, atol=1e-14)
    for weight, projector in theirs.projectors().items():
        np.testing.assert_allclose(mine.projectors()[weight].dense(), projector.dense(), atol=1e-8)
    refused(nullbooth("project", "-s", "back.zarr", "--set", "covariance.centred=true", "--force"), 7, "not finite")


def test_it_says_that_it_was_imported(covariances: Path, pipe: Any) -> None:
    nullbooth("import", str(covariances), "-s", "back.zarr")
    nullbooth("project", "-s", "back.zarr")
    assert nb.open_store("back.zarr").provenance()["weights"] == "imported"
    with pytest.raises(nb.NullboothError, match="does not record which weights"):
        nb.open_store("back.zarr").projectors(pipe.unet)


def spoiled(covariances: Path, feature: str = "q") -> Path:
    return covariances / sorted(folder.name for folder in covariances.iterdir())[1] / LAYER / f"{feature}_covariance.npy"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.with_name("q_metadata.json").unlink(), "q_metadata.json: FileNotFoundError"),
        (lambda path: path.with_name("q_metadata.json").write_text("{}"), "q_metadata.json: KeyError: 'timestep'"),
        (lambda path: path.with_name("q_metadata.json").write_text('{"timestep": 1}'), "KeyError: 'tokens'"),
        (lambda path: path.with_name("q_metadata.json").write_text('{"centred": true}'), "q_covariance.npy is centred"),
        (lambda path: path.rename(path.with_name("x_covariance.npy")), "x_covariance.npy: 'x' is not a feature"),
        (lambda path: path.unlink(), "q has no covariance in"),
        (lambda path: np.save(path, np.zeros((3, 4))), "q_covariance.npy is float64 [3, 4]"),
        (lambda path: np.save(path, np.zeros((3, 3), int)), "q_covariance.npy is int64 [3, 3]"),
        (lambda path: np.save(path, np.zeros((3, 3))), "has 3 dimensions, other steps have"),
        (lambda path: path.write_bytes(b"no array"), "cannot read"),
    ],
)
def test_bad_files_are_named(covariances: Path, spoil: Any, said: str) -> None:
    spoil(spoiled(covariances))
    refused(nullbooth("import", str(covariances), "-s", "back.zarr", "-q"), 2, said)
