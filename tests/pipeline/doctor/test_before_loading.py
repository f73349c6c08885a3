"""The checks before the model is loaded, each in its failing form."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.model import load as load_module
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import locked, open_backing, shard_locked
from nullbooth_cli.store.local import LocalBacking
from tests.support.builders import PROMPTS
from tests.support.doctor import files, findings, found, little, refused
from tests.support.stores import as_format


def nullbooth(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="nullbooth")


def written(config: Config, folder: Path) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return str(folder / "c.yaml")


class TestPackages:
    def test_missing_and_unfit_ones_are_all_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        installed = metadata.version

        def version(name: str) -> str:
            if name == "pillow":
                raise metadata.PackageNotFoundError(name)
            return "1.13.0" if name == "torch" else installed(name)

        monkeypatch.setattr(metadata, "version", version)
        every = findings(little(tmp_path / "run.zarr"))
        refused(every["packages"], "pillow is not installed; nullbooth needs >=", "torch 1.13.0 is installed; nullbooth needs >=")
        assert {finding.verdict for name, finding in every.items() if name != "packages"} == {"ok"}

    def test_nullbooth_itself_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def requires(name: str) -> list[str]:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "requires", requires)
        refused(
            found("packages", little(tmp_path / "run.zarr")), "whose requirements are checked, is not installed", "pip install"
        )

    def test_one_that_cannot_be_imported_stops_only_what_uses_it(self, tmp_path: Path) -> None:
        code = "import sys; sys.modules['torch'] = None; from nullbooth_cli.cli import app; app(sys.argv[1:])"
        command = [sys.executable, "-c", code, "doctor", "-c", written(little(tmp_path / "run.zarr"), tmp_path), "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 2, ran.stderr
        verdicts = {each["check"]: each["verdict"] for each in json.loads(ran.stdout)["checks"]}
        assert {name for name, verdict in verdicts.items() if verdict == "error"} == {"device", "schedule"}
        for name in ("config", "prompts", "store", "write access", "lock", "stages"):
            assert verdicts[name] == "ok"


class TestConfig:
    def test_all_problems_are_shown_and_the_rest_is_checked(self, tmp_path: Path) -> None:
        bad = {"modle": "toy", "schedule": {"num_denoising_steps": "many"}, "collect": {"keep": "everything"}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(bad))
        result = nullbooth("-c", str(tmp_path / "c.yaml"), "--device", "cpu", "--json")
        assert result.exit_code == 2, result.stderr
        document = json.loads(result.stdout)
        checks = {each["check"]: each for each in document["checks"]}
        for word in ("unknown key 'modle'", "schedule.num_denoising_steps", "'many'", "collect.keep"):
            assert word in checks["config"]["text"]
        assert "did you mean 'model' for" in checks["config"]["hint"]
        assert [name for name, each in checks.items() if each["verdict"] == "ok"] == ["packages", "device"]
        others = [each for name, each in checks.items() if name not in ("packages", "config", "device")]
        assert {each["text"] for each in others} == {"not checked, because of config"}
        assert (document["schema_version"], document["verdict"], document["errors"]) == (1, "error", 1)
        assert (document["warnings"], document["not_checked"]) == (0, len(others))

    def test_no_config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        result = nullbooth("--device", "cpu")
        assert result.exit_code == 2
        assert re.search(r"error +config +no config: there is neither", result.stdout)
        assert re.search(r"ok +packages", result.stdout)

    def test_prompts_and_held_out_prompts(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr", original_knowledge_prompts="gone.txt", heldout_prompts="away.txt")
        every = findings(config)
        refused(every["prompts"], "no prompt file at gone.txt", "original_knowledge_prompts")
        refused(every["held-out prompts"], "no prompt file at away.txt", "heldout_prompts")
        assert every["stages"].text == "not checked, because of prompts, held-out prompts"
        for name in ("store", "write access", "schedule", "model", "layers"):
            assert every[name].verdict == "ok"

    def test_a_held_out_prompt_that_is_kept(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr", heldout_prompts=[PROMPTS[2]])
        refused(found("held-out prompts", config), "1 of the held-out prompts", PROMPTS[2])

    def test_the_device(self, tmp_path: Path) -> None:
        every = findings(little(tmp_path / "run.zarr"), "cuda:99")
        refused(every["device"], "no such device: cuda:99", "device")
        assert every["schedule"].verdict == "ok"
        assert every["model"].text == "not checked, because of device"


class TestStore:
    def test_something_else_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes/a.txt").write_text("mine")
        every = findings(little(tmp_path / "notes"))
        refused(every["store"], "exists and is not a nullbooth store", "name another place")
        assert every["write access"].text == "not checked, because of store"
        assert every["probe"].verdict == "ok"

    @pytest.mark.parametrize(("version", "word"), [(99, "upgrade nullbooth with pip"), (1, "earlier nullbooth")])
    def test_another_format(self, begun: Config, version: int, word: str) -> None:
        as_format(Path(begun.store), version)
        refused(found("store", begun), f"store format {version}", word)

    def test_metadata_that_are_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "run.zarr/zarr.json").mkdir(parents=True)
        refused(found("store", little(tmp_path / "run.zarr")), "zarr.json is damaged", "put this file back")

    def test_the_client_of_a_url_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed = metadata.version
        monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "obstore" else installed(name))
        config = little("s3://bucket/run.zarr")  # type: ignore[arg-type]
        refused(found("store", config), "obstore 0.1 is installed; nullbooth needs >=")

    def test_nobody_may_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        every = findings(little(tmp_path / "file/run.zarr"))
        refused(every["write access"], "cannot write to", "Not a directory", "inside a folder")
        assert every["lock"].text == "not checked, because of write access"
        assert every["probe"].verdict == "ok"
        assert files(tmp_path) == {tmp_path / "file": b""}

    @pytest.mark.parametrize("hold", [locked, lambda backing: shard_locked(backing, 1, 2)], ids=["whole", "shard"])
    def test_somebody_else_writes(self, begun: Config, hold: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nullbooth_cli.store.local.PROBE_SECONDS", 0.1)
        with hold(open_backing(begun.store)):
            refused(found("lock", begun), "is in use by process", "wait for it")
        assert found("lock", begun).verdict == "ok"

    def test_a_damaged_store(self, begun: Config) -> None:
        cell = Path(begun.store, "progress/collect/c.0")
        cell.write_bytes(bytes(len(cell.read_bytes())))
        every = findings(begun)
        refused(every["stages"], "progress/collect", "repair=True")
        assert every["disk"].text == "not checked, because of stages"

    def test_stale_stages(self, begun: Config) -> None:
        changed = begun.model_copy(update={"collect": begun.collect.model_copy(update={"guidance_scale": 2.0})})
        every = findings(changed)
        refused(every["stale"], "collect is stale", "collect.guidance_scale: 4.0 -> 2.0", "force=True")
        assert every["time"].verdict == "ok"

    def test_another_model_than_the_one_it_was_begun_with(self, begun: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(load_module, "weights_digest", lambda _, **__: "0123")
        refused(found("probe", begun), "is not the one this collection was started with", "-> 0123", "force=True")

    def test_the_disk_is_too_small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalBacking, "free_nbytes", lambda _: 1000)
        every = findings(little(tmp_path / "run.zarr"))
        refused(every["disk"], "1,000 are free", "free some space")
        assert every["time"].verdict == "ok"
