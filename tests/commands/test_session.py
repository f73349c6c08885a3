"""The config and the store that a command works on, and places that hold no store."""

from pathlib import Path

import pytest

from tests.support.cli import nullbooth, refused
from tests.support.stores import as_format


def test_the_store_alone_is_enough(done: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("status", "-s", done), ("inspect", "-s", done), ("project", "-s", done)):
        assert nullbooth(*arguments).exit_code == 0
    monkeypatch.setenv("NULLBOOTH_STORE", done)
    assert nullbooth("status").exit_code == 0


def test_quiet_and_verbose(small: Path) -> None:
    assert nullbooth("schedule", "-c", str(small), "-q").stderr == ""
    assert "config " in nullbooth("status", "-c", str(small), "-v").stderr


def test_stores_that_are_none(small: Path, tmp_path: Path, done: str) -> None:
    import zarr

    zarr.create_group(tmp_path / "foreign.zarr")
    refused(nullbooth("collect", "-c", str(small), "-s", str(tmp_path / "foreign.zarr")), 4, "not a nullbooth store")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    refused(nullbooth("collect", "-c", str(small), "-s", str(tmp_path / "folder")), 4, "is not a nullbooth store")
    refused(nullbooth("inspect", "-c", str(small), "-s", str(tmp_path / "folder")), 4, "is not a Zarr v3 group")
    as_format(Path(done), 99)
    refused(nullbooth("inspect", "-s", done), 4, "store format 99", "upgrade")


def test_credentials_in_the_url_of_a_store(small: Path) -> None:
    result = nullbooth("schedule", "-c", str(small), "-s", "s3://key:secret@bucket/run.zarr")
    refused(result, 2, "carries credentials", "storage_options")
    assert "secret" not in result.output


def test_no_config_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NULLBOOTH_STORE", raising=False)
    refused(nullbooth("status"), 2, "no config", "write one with nullbooth init", "-c")


def test_without_a_config_a_store_is_made_by_stages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key has a default; a command that only reads does not take a mistyped store for a new one."""
    monkeypatch.chdir(tmp_path)
    for arguments in (("status",), ("inspect",), ("project",), ("status", "--check", "project"), ("export", "x.pt")):
        refused(nullbooth(*arguments, "-s", "run.zarr"), 3, "no store at run.zarr", "nullbooth collect -s run.zarr")
    refused(nullbooth("status", "--set", "collect.seed=1"), 3, "no store at runs/toy.zarr")
    refused(nullbooth("run", "--set", "collect.sed=1"), 2, "unknown key 'collect.sed'")
    made = nullbooth("schedule", "-s", "run.zarr", "--set", "schedule.num_denoising_steps=3")
    assert made.exit_code == 0, made.stderr
    assert made.stderr.startswith("no config file: every key that is not set has its default; the model is toy\n")
    assert made.stderr.endswith("next: nullbooth collect -s run.zarr --set schedule.num_denoising_steps=3\n")
    again = nullbooth("schedule", "-s", "run.zarr")
    assert (again.exit_code, again.stdout) == (0, made.stdout)
    assert "no config file" not in again.stderr, "the store has it"
    refused(nullbooth("status", "-s", "runn.zarr"), 3, "set store to one beside it: run.zarr")
