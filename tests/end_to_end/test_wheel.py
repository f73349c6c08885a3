"""nullbooth as people install it: from a wheel, in a virtual environment and a folder of their own, without the repository.

The environment takes its dependencies from that of the tests, so nothing is downloaded.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.builders import ROOT
from tests.support.phone_pictures import write_phone_pictures
from tests.support.teaching import SETTINGS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("nullbooth-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel in it."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    made = environment / "bin/python"
    asked = subprocess.check_output([made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # Only the folder: .pth files inside it, such as that of an editable installation, are not followed.
    Path(asked.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(made), *install], check=True, capture_output=True)
    return made


def call(folder: Path, program: Path, *arguments: str) -> str:
    """Run a program of the environment in a folder, with nothing of the repository in its variables; returns what it answers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NULLBOOTH"))}
    ran = subprocess.run([program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert str(ROOT) not in ran.stdout + ran.stderr
    return ran.stdout


def test_the_wheel_has_every_shipped_file(wheel: Path) -> None:
    inside = {name.removeprefix("nullbooth_cli/shipped/") for name in zipfile.ZipFile(wheel).namelist()}
    for folder in ("configs", "dataset/prompts", "dataset/instances"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert files
        assert files <= inside
    assert not [name for name in inside if name.startswith(("tests/", "docs/", "dataset/lists"))]


def test_a_run_in_a_folder_of_ones_own(python: Path, tmp_path: Path) -> None:
    nullbooth = python.parent / "nullbooth"
    code = (
        "import nullbooth_cli; from nullbooth_cli.settings.shipped import shipped; print(nullbooth_cli.__file__, shipped('sdxl'))"
    )
    for found in call(tmp_path, python, "-c", code).split():
        assert Path(found).is_relative_to(python.parent.parent)
    call(tmp_path, nullbooth, "init", "dog", "--model", "sd15")
    assert (tmp_path / "dog/nullbooth.yaml").read_text().startswith("# StableDiffusionPipeline, 860 M parameters")
    call(tmp_path, nullbooth, "init")
    for name, count in (("toy.txt", 4), ("toy_heldout.txt", 2)):
        file = tmp_path / "prompts" / name
        file.write_text("\n".join(file.read_text().splitlines()[:count]))
    call(tmp_path, nullbooth, "run", "--set", "schedule.num_denoising_steps=2", "--set", "project.relative_threshold=1e-1")
    assert "project     complete" in call(tmp_path, nullbooth, "status", "-s", "runs/toy.zarr")
    # Without a config, on the prompts in the wheel: no other file is needed.
    (tmp_path / "empty").mkdir()
    held = "heldout_prompts=nullbooth:toy_heldout.txt"
    planned = json.loads(call(tmp_path / "empty", nullbooth, "run", "-s", "new.zarr", "--set", held, "--dry-run", "--json"))
    assert planned["stages"]["collect"]["units_total"] == 240 / 8


def test_a_taught_model_in_a_folder_of_ones_own(python: Path, tmp_path: Path) -> None:
    nullbooth = python.parent / "nullbooth"
    write_phone_pictures(tmp_path / "pictures")
    quick = [part for setting in SETTINGS for part in ("--set", setting)]
    report = json.loads(call(tmp_path, nullbooth, "teach", "pictures", "--steps", "2", *quick, "--json"))
    assert [verdict["question"] for verdict in report["verdicts"]] == ["learned", "forgotten"]
    assert report["steps"] == 2
    assert {path.name for path in (tmp_path / "taught").iterdir()} > {"report.html", "sheet.png", "pipeline", "store.zarr"}
    call(tmp_path, nullbooth, "sample", "taught", "a photo of sks circle", "--seeds", "1", "--steps", "2")
