"""`nullbooth inspect`: its document and its filters, the files it draws as a user gets them, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.model import device as device_module
from nullbooth_cli.model import load
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.report.inspection import inspect_store, most_leaking
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import per_timestep
from tests.support.cli import nullbooth, refused


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


@pytest.fixture(scope="module")
def drawn(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pictures")
    shown = inspect(str(finished[1].path), "--plots", str(folder), "--json")
    assert shown.exit_code == 0, shown.stderr
    return folder, json.loads(shown.stdout)


class TestPlots:
    def test_every_kind_is_there_and_listed(self, drawn: Any) -> None:
        folder, document = drawn
        names = sorted(path.name for path in folder.iterdir())
        assert sorted(Path(path).name for path in document["files"]) == names
        kinds = {name.split(".")[0].rstrip("-0123456789") for name in names}
        assert kinds == {
            "spectra",
            "leakage",
            "timesteps-q",
            "effective-rank-q",
            "timesteps-out",
            "effective-rank-out",
            "evolution",
            "distribution",
            "similarity-timesteps",
            "similarity-layers",
        }

    def test_they_are_pictures_of_a_readable_size(self, drawn: Any) -> None:
        for path in drawn[0].iterdir():
            with Image.open(path) as picture:
                assert 600 <= picture.width <= 2000, path.name
                assert 300 <= picture.height <= 2500, path.name
                assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50, path.name

    def test_per_timestep_the_leakiest_of_each_site_is_drawn(self, finished: Any, tmp_path: Path) -> None:
        config, store = finished
        stepwise, _ = per_timestep(config, store, tmp_path)
        shown = inspect(str(tmp_path / "run.zarr"), "--layer", "mid_block", "--plots", str(tmp_path / "p"), "--json")
        assert shown.exit_code == 0, shown.stderr
        document = json.loads(shown.stdout)
        report = inspect_store(stepwise, Store.open(stepwise.store), layer="mid_block")
        kept = most_leaking(report.sites)
        assert len(document["sites"]) == len(report.sites) > len(kept) == len({entry.site_name for entry in report.sites})
        for entry in kept:
            assert entry.leakage == max(other.leakage for other in report.sites if other.site_name == entry.site_name)
        assert (tmp_path / "p" / "spectra.png").exists()

    def test_a_site_gets_its_moment(self, finished: Any, tmp_path: Path) -> None:
        store = finished[1]
        name = next(site.name for site in store.sites if site.name.startswith("mid_block") and site.feature == "q")
        shown = inspect(str(store.path), "--plots", str(tmp_path), "--site", name, "--format", "svg", "--json")
        assert shown.exit_code == 0, shown.stderr
        assert len(json.loads(shown.stdout)["sites"]) == 1
        assert (tmp_path / f"moment-{name}.svg").read_text().lstrip().startswith("<?xml")
        assert not (tmp_path / "similarity-layers.svg").exists()

    def test_without_a_display(self, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.setenv("MPLBACKEND", "tkagg")  # would fail if anything asked for a window
        shown = inspect(str(finished[1].path), "--plots", str(tmp_path), "--site", "mid_block*q")
        assert shown.exit_code == 0, shown.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--plots", "x", "--format", "bmp"), "cannot draw picture.bmp"),
            (("--site", "nowhere.q"), "no site nowhere.q"),
            (("another.zarr", "third.zarr"), "one store, or two"),
        ],
    )
    def test_refused(self, finished: Any, arguments: tuple[str, ...], words: str) -> None:
        shown = inspect("-s", str(finished[1].path), *arguments)
        assert shown.exit_code == 2
        assert words in shown.stderr

    def test_a_folder_that_cannot_be_made(self, finished: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        shown = inspect(str(finished[1].path), "--plots", str(tmp_path / "file" / "in"), "--site", "mid_block*q")
        assert shown.exit_code == 5
        assert "cannot write" in shown.stderr


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (("--layer", "mid_block*", "--feature", "q"), 1),
        (("--layer", "mid_block"), 3),
        (("--feature", "v"), 1),
        (("--feature", "out"), 10),
    ],
)
def test_inspect_filters(done: str, filters: tuple[str, ...], count: int) -> None:
    document = json.loads(nullbooth("inspect", "-s", done, "--json", *filters).stdout)
    assert len(document["sites"]) == count == document["totals"]["sites"]


def test_inspect_by_timestep(done: str) -> None:
    assert nullbooth("project", "-s", done, "--set", "project.scope=timestep", "--force").exit_code == 0
    document = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)
    assert (document["scope"], len(document["sites"])) == ("timestep", 20 * 4 + 1)
    timesteps = {site["timestep"] for site in document["sites"]}
    one = json.loads(nullbooth("inspect", "-s", done, "--json", "--timestep", "775").stdout)["sites"]
    assert 775.0 in timesteps
    assert {(site["timestep"], site["step_index"], site["key"]) for site in one} == {(775.0, 1, "alpha_01_7e2")}


def test_csv(done: str) -> None:
    import csv

    rows = list(csv.DictReader(nullbooth("inspect", "-s", done, "--csv").stdout.splitlines()))
    sites = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)["sites"]
    assert [int(row["null_dim"]) for row in rows] == [site["null_dim"] for site in sites]
    assert rows[1]["weights"].split() == sites[1]["weights"]


def test_inspect(done: str, finished: tuple[Config, Store]) -> None:
    document = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)
    keys = "layer feature side weights step_index key timestep dim count null_dim effective_rank largest smallest condition"
    keys += " threshold noise_floor leakage heldout_leakage warnings arrays"
    import zarr

    group = zarr.open_group(done, mode="r")
    for site in document["sites"]:
        assert set(site) == set(keys.split())
        for path in site["arrays"].values():
            assert path in group
    text = next(site for site in document["sites"] if len(site["weights"]) > 1)
    assert len(text["weights"]) == 20
    names = {name for name, _ in denoiser_of(_pipe()).named_parameters()}
    assert {weight for site in document["sites"] for weight in site["weights"]} <= names


def _pipe() -> Any:
    return load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=device_module.pick_device("cpu")
    )


def test_two_answers(done: str) -> None:
    assert "two answers" in json.loads(nullbooth("inspect", "-s", done, "--json", "--csv").stderr)["error"]
    refused(nullbooth("inspect", "-s", done, "--layer", "nothing"), 2, "no layer matches nothing", "mid_block")
    refused(nullbooth("inspect", "-s", done, "--feature", "kv"), 2, "kv is not a feature", "choose one of q, k, v, out")
