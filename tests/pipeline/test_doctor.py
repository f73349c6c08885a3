"""`nullbooth doctor`: every check in its failing form, what depends on it and what does not, and a run that can start."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.collect import batch_size, open_model
from nullbooth_cli.commands import console
from nullbooth_cli.model import load as load_module
from nullbooth_cli.pipeline import space
from nullbooth_cli.pipeline.doctor.checks import CHECKS
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, locked, open_backing, shard_locked
from nullbooth_cli.store.local import LocalBacking
from tests.support.builders import PROMPTS, execute
from tests.support.doctor import K_ONLY, Q_ONLY, files, findings, found, little, refused


def nullbooth(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="nullbooth")


def written(config: Config, folder: Path) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return str(folder / "c.yaml")


@pytest.fixture
def begun(tmp_path: Path) -> Config:
    """A run whose first of two units is collected."""
    config = little(tmp_path / "run.zarr")
    execute(config, "schedule", "collect", limit=1)
    return config


class TestARunThatCanStart:
    def test_everything_is_ok_and_nothing_is_left_behind(self, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        config = little(
            tmp_path / "runs/run.zarr",
            original_knowledge_prompts=str(tmp_path / "prompts.txt"),
            heldout_prompts=["a green cross on a black background"],
            collect__visual_attention_map=True,
        )
        before = files(tmp_path)
        every = findings(config)
        assert {finding.verdict for finding in every.values()} == {"ok"}, every
        assert list(every) == [check for check in CHECKS if check != "images"]
        assert files(tmp_path) == before
        assert not (tmp_path / "runs").exists()
        assert every["layers"].text == "1 of 10 cross-attention layers match, with 1 projection"
        assert "takes 16 tokens" in every["tokenizer"].text
        assert re.search(r"a step of 4 prompts takes \S+ s", every["batch"].text)
        assert re.search(r"about \S+ MB to write, \S+ GB free", every["disk"].text)
        assert re.search(r"^collect about \d+ s; not estimated.*: covariance, project$", every["time"].text)

    def test_what_the_run_does_without_is_not_mentioned(self, tmp_path: Path) -> None:
        every = findings(little(tmp_path / "run.zarr"))
        assert set(CHECKS) - set(every) == {"images", "held-out prompts", "attention maps"}

    def test_a_store_that_is_begun_goes_on(self, begun: Config) -> None:
        before = files(Path(begun.store))
        every = findings(begun)
        assert {finding.verdict for finding in every.values()} == {"ok"}, every
        assert "collect partial (1 of 2 units)" in every["stages"].text
        assert "when it was last run here" in every["batch"].text
        assert files(Path(begun.store)) == before

    def test_a_store_that_is_finished(self, finished: tuple[Config, Store]) -> None:
        every = findings(finished[0])
        assert {finding.verdict for finding in every.values()} <= {"ok", "warning"}
        assert every["time"].text == "nothing is left to do"
        assert every["disk"].text.startswith("about 0 B to write")

    def test_the_time_is_that_of_the_forwards_which_are_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batch_size, "time_step", lambda *_: 10.0)
        # 16 steps and 2 units; the text of a U-Net needs no forward at all.
        assert "collect about 5 min" in found("time", little(tmp_path / "a.zarr")).text
        config = little(tmp_path / "a.zarr", collect__collect_features=K_ONLY)
        assert "collect about 0 s" in found("time", config).text

    def test_what_is_planned_is_what_is_written(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr")
        text = found("disk", config).text
        store = execute(config, "schedule", "collect", "covariance", "project")
        arrays = sum(store.nbytes(name) for name in ("features", "moments", "projectors"))
        said = re.match(r"about (\S+) MB", text) or re.match(r"about (\S+) kB", text)
        assert said
        planned = float(said[1]) * (1e6 if " MB to" in text else 1e3)
        assert planned == pytest.approx(arrays, rel=0.05)


class TestPackages:
    def test_missing_and_unfit_ones_are_all_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        installed = metadata.version

        def version(name: str) -> str:
            if name == "plotly":
                raise metadata.PackageNotFoundError(name)
            return "1.13.0" if name == "torch" else installed(name)

        monkeypatch.setattr(metadata, "version", version)
        every = findings(little(tmp_path / "run.zarr"))
        refused(every["packages"], "plotly is not installed; needed is >=6", "torch 1.13.0 is installed; needed is >=")
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
        assert "did you mean 'model'?" in checks["config"]["hint"]
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

    @pytest.mark.parametrize(("version", "word"), [(99, "pip install --upgrade"), (1, "earlier nullbooth")])
    def test_another_format(self, begun: Config, version: int, word: str) -> None:
        metadata_file = Path(begun.store, "zarr.json")
        text = metadata_file.read_text()
        metadata_file.write_text(re.sub(r'"format_version": \d+', f'"format_version": {version}', text))
        refused(found("store", begun), f"store format {version}", word)

    def test_what_the_system_refuses(self, tmp_path: Path) -> None:
        (tmp_path / "run.zarr/zarr.json").mkdir(parents=True)
        refused(found("store", little(tmp_path / "run.zarr")), "Is a directory", "check the path")

    def test_a_url_with_credentials_is_not_shown(self, tmp_path: Path) -> None:
        every = findings(little("s3://me:secretword@bucket/run.zarr"))  # type: ignore[arg-type]
        refused(every["store"], "the store's URL carries credentials")
        assert "secretword" not in str(every)

    def test_the_client_of_a_url_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed = metadata.version
        monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "obstore" else installed(name))
        config = little("s3://bucket/run.zarr")  # type: ignore[arg-type]
        refused(found("store", config), "obstore 0.1 is installed; needed is >=")

    def test_nobody_may_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        every = findings(little(tmp_path / "file/run.zarr"))
        refused(every["write access"], "cannot write to", "Not a directory", "permissions")
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
        refused(every["stages"], "progress/collect", "--repair")
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


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: Exception) -> Iterator[None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        yield


class TestModel:
    @pytest.mark.parametrize(
        ("check", "changes", "words"),
        [
            ("schedule", {"schedule__num_denoising_steps": 1001}, ["1001 is more than the model's 1000"]),
            ("schedule", {"model": "./gone"}, ["no model folder at gone", "hub id"]),
            (
                "layers",
                {"collect__cross_attention_layers": ["middle*"]},
                ["'middle*' matches none of the 10 layers", "mid_block"],
            ),
            ("layers", {"collect__collect_features": {**Q_ONLY, "q_features": False}}, ["no feature is switched on"]),
            (
                "attention maps",
                {"collect__visual_attention_map": True, "collect__attention_prompts": ["a dog"]},
                ["'a dog' is not one of the 8 prompts"],
            ),
            (
                "attention maps",
                {"collect__visual_attention_map": True, "collect__attention_layers": ["middle*"]},
                ["'middle*' matches none"],
            ),
            (
                "probe",
                {"collect__height": 101, "collect__width": 96},
                ["StableDiffusionPipeline refuses this: `height`", "collect.height"],
            ),
            ("projectors", {"collect__side": "output"}, ["these features are outputs"]),
            ("projectors", {"project__timesteps": [1.5, 1.7]}, ["no timestep lies in project.timesteps"]),
            ("projectors", {"project__null_dim": 81, "project__relative_threshold": None}, ["more than the 80 dimensions"]),
            ("projectors", {"project__relative_threshold": 1e-16}, ["below the noise floor, 2e-15"]),
        ],
    )
    def test_what_the_config_asks_in_vain(self, tmp_path: Path, check: str, changes: dict[str, Any], words: list[str]) -> None:
        refused(found(check, little(tmp_path / "run.zarr", **changes)), *words)

    def test_weights_that_are_not_there(self, tmp_path: Path) -> None:
        from nullbooth_cli.toy import FOLDER

        shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        every = findings(little(tmp_path / "run.zarr", model=str(tmp_path / "model")))
        refused(every["model"], "cannot load the model", "revision and variant")
        assert every["schedule"].verdict == "ok"
        assert every["probe"].text == every["tokenizer"].text == "not checked, because of model"

    def test_a_device_that_is_too_small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = little(tmp_path / "run.zarr")
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        with failing(monkeypatch, open_model, "load_model", full):
            refused(found("model", config), "toy does not go to cpu: OutOfMemoryError: CUDA out of memory", "another device")
        with failing(monkeypatch, batch_size, "time_step", full):
            every = findings(config)
        refused(every["batch"], "a batch of 4 prompts fails: OutOfMemoryError", "collect.batch_size", "auto_batch")
        assert every["time"].text == "not checked, because of batch"
        assert every["disk"].verdict == "ok"

    def test_prompts_that_are_cut(self, tmp_path: Path) -> None:
        long = "a red circle on a blue background " * 3 + "and a hidden star"
        finding = found("tokenizer", little(tmp_path / "run.zarr", heldout_prompts=[long]))
        refused(finding, "1 of 9 prompts are too long (tokenizer takes 16 tokens)", "star", "shorten", verdict="warning")

    def test_values_that_are_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        load = open_model.load_model

        def broken(*arguments: Any) -> Any:
            pipe = load(*arguments)
            pipe.unet.conv_in.bias.fill_(float("nan"))
            return pipe

        monkeypatch.setattr(open_model, "load_model", broken)
        refused(found("batch", little(tmp_path / "run.zarr")), "a value is not finite: prompt", "set dtype to float32")

    def test_too_few_prompts(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr", original_knowledge_prompts=PROMPTS[:1], schedule__num_denoising_steps=2)
        refused(found("projectors", config), "16 vectors cannot fill 80 dimensions", "more prompts", verdict="warning")

    def test_sums_that_fit_nowhere_or_only_beside_the_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = little(tmp_path / "run.zarr", collect__keep="moments")
        monkeypatch.setattr(space, "free_memory", lambda _: 1000)
        refused(found("memory", config), "the sums of 1 sites and 16 steps need", "1,000 are free", "cross_attention_layers")
        monkeypatch.setattr(space, "place_for_sums", lambda *_: torch.device("meta"))
        refused(found("memory", config), "they stay in host memory", "fewer layers or steps", verdict="warning")

    @pytest.mark.parametrize(("patience", "forwards"), [(0.0, 1), (60.0, 2)])
    def test_a_step_is_timed_once_warm_unless_it_is_slow(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, forwards: int
    ) -> None:
        monkeypatch.setattr(batch_size, "PATIENCE_SECONDS", patience)
        config = little(tmp_path / "run.zarr")
        _, steps = open_model.compute_steps(config, 8)
        pipe, path = open_model.load_path(config, steps, "cpu")
        from nullbooth_cli.settings.prompts import load_prompts

        prompts = load_prompts(config.original_knowledge_prompts)
        loaded = open_model.find_recordable(config, pipe, path, prompts[0])
        ended = []
        pipe.unet.register_forward_hook(lambda *_: ended.append(1))
        seconds = batch_size.time_step(loaded, list(enumerate(prompts[:2])), "both")
        assert len(ended) == forwards
        assert seconds > 0


class TestAnswers:
    def test_lines_are_aligned_and_plain_in_a_pipe(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr", heldout_prompts=["gold " * 30])
        result = nullbooth("-c", written(config, tmp_path), "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        *lines, empty, summary = result.stdout.splitlines()
        assert (empty, summary) == ("", "20 checks, 0 errors, 1 warning, 0 not checked: the run can start")
        assert all(re.match(r"(ok |warning|error) {2,6}\S.{15}  \S| {27}hint: ", line) for line in lines)
        assert "\x1b" not in result.stdout
        assert result.stderr == f"next: nullbooth run -c {tmp_path / 'c.yaml'}\n"

    def test_the_store_alone_is_enough(self, begun: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(Path(begun.store).parent)
        result = nullbooth("-s", begun.store, "--device", "cpu", "--json")
        assert result.exit_code == 0, result.stdout
        document = json.loads(result.stdout)
        assert document["verdict"] == "ok"
        assert set(document["checks"][0]) == {"check", "verdict", "text", "hint", "checked"}
        assert document["checks"][2]["text"] == "8 prompts in the store"

    def test_on_a_terminal_it_is_coloured_and_folds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Screen(io.StringIO):
            def isatty(self) -> bool:
                return True

        def shown() -> str:
            screen = Screen()
            monkeypatch.setattr(sys, "stdout", screen)
            console.Terminal().verdict("error", "store", "word " * 20 + "\n  inner", hint="one\ntwo", width=6)
            monkeypatch.undo()
            return screen.getvalue()

        for name, value in {"TERM": "xterm", "COLUMNS": "60"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        lines = shown().splitlines()
        assert lines[0].startswith("\x1b[31merror\x1b[0m    store   word word")
        assert [line[17:] for line in lines[3:]] == ["  inner", "hint: one", "      two"]
        assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= 60 for line in lines)
        for name, value in {"TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
        assert "\x1b" not in shown()
