"""`nullbooth inspect`: the files it draws as a user gets them, two stores, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.report.inspection import inspect_store, most_leaking
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, small_config


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
            "timesteps-out",
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
        shutil.copytree(store.path, tmp_path / "run.zarr")
        stepwise = config.model_copy(
            update={"store": str(tmp_path / "run.zarr"), "project": config.project.model_copy(update={"scope": "timestep"})}
        )
        execute(stepwise, "project", force=True)
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


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The other half of the prompts, another threshold."""
    config = small_config(
        tmp_path_factory.mktemp("other") / "run.zarr",
        original_knowledge_prompts=PROMPTS[:4],
        project__relative_threshold=0.02,
    )
    return execute(config, "collect", "covariance", "project")


class TestCompare:
    def test_as_a_table(self, finished: Any, other: Store) -> None:
        shown = inspect("-s", str(finished[1].path), str(other.path), "--layer", "mid_block")
        assert shown.exit_code == 0, shown.stderr
        assert f"A = {finished[1].path}" in shown.stdout
        assert f"B = {other.path}" in shown.stdout
        assert "project.relative_threshold: 0.05 | 0.02" in shown.stdout
        assert "mean overlap" in shown.stdout
        assert "held-out" not in shown.stdout

    def test_scopes_that_differ_are_refused(self, finished: Any, tmp_path: Path) -> None:
        config, store = finished
        shutil.copytree(store.path, tmp_path / "run.zarr")
        stepwise = config.model_copy(
            update={"store": str(tmp_path / "run.zarr"), "project": config.project.model_copy(update={"scope": "timestep"})}
        )
        execute(stepwise, "project", force=True)
        shown = inspect(str(store.path), str(tmp_path / "run.zarr"))
        assert shown.exit_code == 2
        assert "scope pooled" in shown.stderr
        again = inspect(str(tmp_path / "run.zarr"), str(tmp_path / "run.zarr"), "--json")
        assert len(json.loads(again.stdout)["sites"]) > len(store.sites)

    def test_unfinished_is_refused(self, finished: Any, tmp_path: Path) -> None:
        shown = inspect(str(finished[1].path), str(tmp_path / "none.zarr"))
        assert shown.exit_code in (2, 3)
        assert "error: " in shown.stderr
