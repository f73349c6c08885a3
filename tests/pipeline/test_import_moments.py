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


def describe(path: Path, text: str) -> None:
    path.with_name("q_metadata.json").write_text(text)


def matrix(path: Path) -> Any:
    return np.load(path)


@pytest.mark.parametrize("field", ["timestep", "tokens", "sigma"])
@pytest.mark.parametrize("value", ["-1", "true", "Infinity", "NaN", '"12"', "[]", "null", "1e400", "0.5", "0"])
def test_a_field_of_the_metadata_is_a_number_in_its_range(covariances: Path, field: str, value: str) -> None:
    """Every spoiled field is named with its value, and those that are allowed are taken over."""
    for file in spoiled(covariances).parents[1].rglob("*_metadata.json"):
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, field: "VALUE"}).replace('"VALUE"', value))
    allowed = {"timestep": ("0.5", "0"), "tokens": (), "sigma": ("-1", "null", "0.5", "0")}[field]
    made = nullbooth("import", str(covariances), "-s", "back.zarr", "-q")
    if value in allowed:
        assert made.exit_code == 0, made.stderr
    else:
        refused(made, 2, f"_metadata.json: {field} is {json.loads(value)!r}")


@pytest.mark.parametrize("text", ["[]", "{", "", '"x"', "[" * 100_000])
def test_metadata_that_is_no_mapping_of_json(covariances: Path, text: str) -> None:
    describe(spoiled(covariances), text)
    refused(nullbooth("import", str(covariances), "-s", "back.zarr", "-q"), 2, "q_metadata.json")


def test_one_folder_is_one_timestep(covariances: Path) -> None:
    file = spoiled(covariances).with_name("q_metadata.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "timestep": 3}))
    refused(nullbooth("import", str(covariances), "-s", "back.zarr", "-q"), 2, "has timestep 3 and sigma")


def test_files_in_single_precision_have_its_noise_floor(covariances: Path) -> None:
    """Their rounding gives small negative eigenvalues, which are no damage."""
    for file in covariances.rglob("*_covariance.npy"):
        np.save(file, np.load(file).astype("f4"))
    assert nullbooth("import", str(covariances), "-s", "back.zarr").exit_code == 0
    assert nb.open_store("back.zarr").config.covariance.accumulate == "float32"
    made = nullbooth("project", "-s", "back.zarr", "--set", "project.relative_threshold=0.02")
    assert made.exit_code == 0, made.stderr


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.with_name("q_metadata.json").unlink(), "q_metadata.json"),
        (lambda path: describe(path, '{"centred": true}'), "q_covariance.npy is centred"),
        (lambda path: path.rename(path.parents[1] / path.name), "q_covariance.npy is not in the folder of a layer"),
        (lambda path: path.write_bytes(b""), "q_covariance.npy: No data left in file"),
        (lambda path: np.save(path, matrix(path).astype("f2")), "q_covariance.npy is float16"),
        (lambda path: np.save(path, matrix(path) * np.nan), "q_covariance.npy has values that are not finite"),
        (lambda path: np.save(path, np.triu(matrix(path))), "q_covariance.npy is not symmetric: values across its diagonal"),
        (lambda path: np.save(path, -matrix(path)), "q_covariance.npy is not the second moment of any vectors"),
        (lambda path: np.save(path, matrix(path) - np.eye(len(matrix(path))) * 1e-4), "its smallest eigenvalue is -0.0001"),
        (lambda path: np.save(path, 0 * matrix(path)), "q_covariance.npy is not the second moment of any vectors"),
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
