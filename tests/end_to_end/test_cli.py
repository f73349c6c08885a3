"""The commands as a user meets them: answers, JSON documents, and every kind of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullbooth_cli.model import device as device_module
from nullbooth_cli.model import load
from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.store.local import LocalBacking
from tests.support.builders import PROMPTS, prompts_of, small_config
from tests.support.cli import nullbooth, refused, start


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A config file of a small run on one layer."""
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"], collect__batch_size=4)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return tmp_path / "c.yaml"


@pytest.fixture
def done(finished: tuple[Config, Store], tmp_path: Path) -> str:
    """A copy of the finished run, free to be spoiled."""
    shutil.copytree(finished[1].path, tmp_path / "done.zarr")
    return str(tmp_path / "done.zarr")


class TestAnswers:
    def test_run_then_everything_is_complete(self, small: Path) -> None:
        result = nullbooth("run", "-c", str(small), "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        assert "dimensions are null" in result.stdout
        assert "next: nullbooth inspect" in result.stderr
        assert "collect 2/2" in result.stderr
        again = nullbooth("run", "-c", str(small))
        assert again.exit_code == 0
        assert again.stderr.count("is complete") == 4

    def test_the_store_alone_is_enough(self, done: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        for arguments in (("status", "-s", done), ("inspect", "-s", done), ("project", "-s", done)):
            assert nullbooth(*arguments).exit_code == 0
        monkeypatch.setenv("NULLBOOTH_STORE", done)
        assert nullbooth("status").exit_code == 0

    def test_tables_are_never_cut_off_a_terminal(self, done: str) -> None:
        shown = nullbooth("inspect", "-s", done).stdout
        assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2 " in shown
        assert "…" not in shown

    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            (("--layer", "mid_block*", "--feature", "q"), 1),
            (("--layer", "mid_block"), 3),
            (("--feature", "v"), 1),
            (("--feature", "out"), 10),
        ],
    )
    def test_inspect_filters(self, done: str, filters: tuple[str, ...], count: int) -> None:
        document = json.loads(nullbooth("inspect", "-s", done, "--json", *filters).stdout)
        assert len(document["sites"]) == count == document["totals"]["sites"]

    def test_inspect_by_timestep(self, done: str) -> None:
        assert nullbooth("project", "-s", done, "--set", "project.scope=timestep", "--force").exit_code == 0
        document = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)
        assert (document["scope"], len(document["sites"])) == ("timestep", 20 * 4 + 1)
        timesteps = {site["timestep"] for site in document["sites"]}
        one = json.loads(nullbooth("inspect", "-s", done, "--json", "--timestep", "775").stdout)["sites"]
        assert 775.0 in timesteps
        assert {(site["timestep"], site["step_index"], site["key"]) for site in one} == {(775.0, 1, "alpha_01_7e2")}

    def test_csv(self, done: str) -> None:
        import csv

        rows = list(csv.DictReader(nullbooth("inspect", "-s", done, "--csv").stdout.splitlines()))
        sites = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)["sites"]
        assert [int(row["null_dim"]) for row in rows] == [site["null_dim"] for site in sites]
        assert rows[1]["weights"].split() == sites[1]["weights"]

    def test_dry_run_writes_nothing(self, small: Path) -> None:
        result = nullbooth("run", "-c", str(small), "--dry-run", "--json")
        document = json.loads(result.stdout)
        assert set(document["stages"]) == {"schedule", "collect", "covariance", "project"}
        assert document["stages"]["collect"]["units_total"] == 2
        assert all(stage["seconds"] is None for stage in document["stages"].values())
        assert not (small.parent / "run.zarr").exists()
        assert not (small.parent / "run.zarr.lock").exists()

    @pytest.mark.parametrize("keep", ["features", "moments"])
    def test_dry_run_of_what_is_begun_knows_the_time(self, small: Path, keep: str) -> None:
        keeping = ("--set", f"collect.keep={keep}")
        assert nullbooth("collect", "-c", str(small), *keeping, "--limit", "1").exit_code == 0
        before = {path: path.stat().st_mtime_ns for path in (small.parent / "run.zarr").rglob("*")}
        result = nullbooth("collect", "-c", str(small), *keeping, "--dry-run", "--json")
        plan = json.loads(result.stdout)["stages"]["collect"]
        assert (plan["units_done"], plan["units_total"]) == (1, 2)
        assert plan["seconds"] > 0
        # The part that moments need was made for the first unit.
        assert plan["bytes_free"] > plan["bytes_needed"]
        assert (plan["bytes_needed"] > 0) == (keep == "features")
        assert (plan["device_bytes_needed"] > 0) == (keep == "moments")
        assert plan["device_bytes_free"] > 0
        table = nullbooth("collect", "-c", str(small), *keeping, "--dry-run").stdout
        assert re.search(r"collect +1 +1 +\d+ (s|min|h)", table)
        assert {path: path.stat().st_mtime_ns for path in (small.parent / "run.zarr").rglob("*")} == before

    def test_verify_reads_everything(self, done: str) -> None:
        result = nullbooth("status", "-s", done, "--verify")
        assert result.exit_code == 0, result.stderr
        assert re.search(r"verified: \d+ pieces read, 0 damaged", result.stdout)
        chunk = next(Path(done, "features").rglob("c.0.0.0.0"))
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
        Path(done, "schedule/sigmas/c.0").unlink()
        result = nullbooth("status", "-s", done, "--verify", "--json")
        assert result.exit_code == 4
        verified = json.loads(result.stdout)["verify"]
        assert [damage["stage"] for damage in verified["damaged"]] == ["schedule", "collect"]
        assert "schedule/sigmas chunk c.0 is damaged: it is missing" in verified["damaged"][0]["error"]
        assert f"collect --repair -s {done}" in verified["damaged"][1]["hint"]

    def test_release_and_merge(self, small: Path, tmp_path: Path) -> None:
        half = ("--set", f"original_knowledge_prompts=[{PROMPTS[0]}, {PROMPTS[1]}]", "-s", str(tmp_path / "half.zarr"))
        for arguments in (("-c", str(small), "--set", f"original_knowledge_prompts=[{PROMPTS[2]}]"), ("-c", str(small), *half)):
            assert nullbooth("collect", *arguments).exit_code == 0
            released = nullbooth("covariance", *arguments, "--release")
            assert re.search(r"released \d+\.\d MB of features", released.stderr)
        status = json.loads(nullbooth("status", "-s", str(tmp_path / "half.zarr"), "--json").stdout)
        assert status["stages"]["collect"]["state"] == "released"
        sources = (str(tmp_path / "run.zarr"), str(tmp_path / "half.zarr"))
        merged = nullbooth("merge", *sources, "-s", str(tmp_path / "all.zarr"), "--json")
        assert merged.exit_code == 0, merged.stderr
        assert json.loads(merged.stdout)["state"] == "complete"
        assert nullbooth("project", "-s", str(tmp_path / "all.zarr")).exit_code == 0
        refused(nullbooth("merge", *sources, "-s", str(tmp_path / "all.zarr")), 4, "has a collection already")
        refused(nullbooth("merge", sources[0], sources[0], "-s", str(tmp_path / "x.zarr")), 2, "two or more different stores")

    def test_quiet_and_verbose(self, small: Path) -> None:
        assert nullbooth("schedule", "-c", str(small), "-q").stderr == ""
        assert "config " in nullbooth("status", "-c", str(small), "-v").stderr

    def test_set_is_recorded(self, small: Path) -> None:
        nullbooth("schedule", "-c", str(small), "--set", "schedule.num_denoising_steps=6")
        store = Store.open(small.parent / "run.zarr")
        assert store.config["schedule"]["num_denoising_steps"] == 6
        assert len(store.schedule()) == 6


class TestDocuments:
    def test_schedule(self, small: Path) -> None:
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

    def test_status(self, done: str) -> None:
        document = json.loads(nullbooth("status", "-s", done, "--json").stdout)
        assert (document["schema_version"], document["store"]) == (1, done)
        assert list(document["stages"]) == ["schedule", "collect", "covariance", "project"]
        for stage in document["stages"].values():
            assert set(stage) == {"state", "units_done", "units_total", "bytes", "stale_because"}
            assert stage["state"] == "complete"
            assert stage["bytes"] > 0
            assert stage["units_done"] == stage["units_total"]

    def test_status_of_a_stale_run(self, done: str) -> None:
        stale = json.loads(nullbooth("status", "-s", done, "--set", "collect.seed=9", "--json").stdout)["stages"]
        assert [stage["state"] for stage in stale.values()] == ["complete", "stale", "stale", "stale"]
        assert stale["collect"]["stale_because"] == [{"field": "collect.seed", "old": 0, "new": 9}]

    def test_inspect(self, done: str, finished: tuple[Config, Store]) -> None:
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
        names = {name for name, _ in load.denoiser_of(_pipe()).named_parameters()}
        assert {weight for site in document["sites"] for weight in site["weights"]} <= names

    def test_errors_are_json_too(self) -> None:
        result = nullbooth("status", "-s", "gone.zarr", "-c", "gone.yaml", "--json")
        assert result.stdout == ""
        assert json.loads(result.stderr) == {
            "error": "no config file at gone.yaml",
            "hint": "give one with -c; configs/nullbooth.yaml is an example",
            "exit_code": 2,
        }


def _pipe() -> Any:
    return load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=device_module.pick_device("cpu")
    )


class TestBadInput:
    def test_unknown_command(self) -> None:
        refused(nullbooth("colect"), 2, "no such command 'colect'", "did you mean 'nullbooth collect'?")
        refused(nullbooth("xyzzy"), 2, "no such command 'xyzzy'", "choose one of run, schedule")

    def test_unknown_option(self) -> None:
        refused(nullbooth("collect", "--dryrun"), 2, "--dryrun", "nullbooth collect --help")
        refused(nullbooth("collect", "--limit", "0"), 2, "--limit")

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("schedule.num_denoising_step=3", ["unknown key", "did you mean 'num_denoising_steps'?"]),
            ("schedule.num_denoising_steps=many", ["schedule.num_denoising_steps", "'many'"]),
            ("schedule.num_denoising_steps=0", ["schedule.num_denoising_steps", "0"]),
            ("schedule.num_denoising_steps=1", ["num_denoising_steps 1 "]),
            ("schedule.num_denoising_steps=1001", ["1001", "1000"]),
            ("project.relative_threshold='1e-5'", ["project.relative_threshold", "'1e-5'", "without quotes"]),
            ("project.energy=0.9", ["more than one threshold rule is set: energy, relative_threshold"]),
            ("original_knowledge_prompts=gone.txt", ["no prompt file at gone.txt"]),
            ("original_knowledge_prompts=[a dog, a dog]", ["prompt 2 repeats prompt 1"]),
            ("original_knowledge_prompts=[]", ["has no prompt"]),
            ("model=./gone", ["no model folder at gone"]),
            ("collect.keep=everything", ["collect.keep"]),
        ],
    )
    def test_config(self, small: Path, override: str, words: list[str]) -> None:
        refused(nullbooth("collect", "-c", str(small), "--set", override), 2, *words)

    def test_a_model_folder_that_is_not_one(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        refused(nullbooth("collect", "-c", str(small), "--set", f"model={tmp_path / 'model'}"), 2, "it has no model_index.json")
        (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        refused(nullbooth("collect", "-c", str(small), "--set", f"model={tmp_path / 'model'}"), 2, "cannot load the model")

    def test_a_model_without_its_weights(self, small: Path, tmp_path: Path) -> None:
        from nullbooth_cli.toy import FOLDER

        for name in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
            shutil.copytree(FOLDER / name, tmp_path / "model" / name)
        shutil.copy(FOLDER / "model_index.json", tmp_path / "model")
        (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").unlink()
        refused(nullbooth("collect", "-c", str(small), "--set", f"model={tmp_path / 'model'}"), 2, "cannot load the model")

    def test_a_layer_pattern_that_matches_nothing(self, small: Path) -> None:
        result = nullbooth("collect", "-c", str(small), "--set", "collect.cross_attention_layers=[middle*]")
        refused(result, 2, "'middle*' matches none of the 10 layers", "mid_block.attentions.0")

    def test_no_config_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        refused(nullbooth("status"), 2, "no config", "-c")

    @pytest.mark.parametrize("command", ["covariance", "project", "inspect"])
    def test_out_of_order(self, small: Path, command: str) -> None:
        refused(nullbooth(command, "-c", str(small)), 3, "nothing was collected yet", "nullbooth collect -c")
        nullbooth("collect", "-c", str(small), "--limit", "1")
        refused(nullbooth(command, "-c", str(small)), 3, "nullbooth")

    def test_stale(self, done: str) -> None:
        result = nullbooth("collect", "-s", done, "--set", "collect.guidance_scale=2")
        refused(result, 3, "collect.guidance_scale: 4.0 -> 2", "--force")
        assert nullbooth("status", "-s", done, "--check", "project").exit_code == 0

    def test_check(self, small: Path, done: str) -> None:
        assert nullbooth("status", "-s", done, "--check", "project").exit_code == 0
        result = nullbooth("status", "-c", str(small), "--check", "collect")
        assert result.exit_code == 3
        assert re.search("collect in .* is missing", result.stderr)
        assert nullbooth("status", "-c", str(small), "--check", "colect").exit_code == 2

    def test_stores_that_are_none(self, small: Path, tmp_path: Path, done: str) -> None:
        import zarr

        zarr.create_group(tmp_path / "foreign.zarr")
        refused(nullbooth("collect", "-c", str(small), "-s", str(tmp_path / "foreign.zarr")), 4, "not a nullbooth store")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "mine").write_text("x")
        refused(nullbooth("collect", "-c", str(small), "-s", str(tmp_path / "folder")), 4, "is not a nullbooth store")
        refused(nullbooth("inspect", "-c", str(small), "-s", str(tmp_path / "folder")), 4, "is not a Zarr v3 group")
        document = json.loads((Path(done) / "zarr.json").read_text())
        document["attributes"]["format_version"] = 99
        (Path(done) / "zarr.json").write_text(json.dumps(document))
        refused(nullbooth("inspect", "-s", done), 4, "store format 99", "upgrade")

    def test_credentials_in_the_url_of_a_store(self, small: Path) -> None:
        result = nullbooth("schedule", "-c", str(small), "-s", "s3://key:secret@bucket/run.zarr")
        refused(result, 2, "carries credentials", "storage_options")
        assert "secret" not in result.output

    def test_a_damaged_chunk_and_the_command_that_mends_it(self, done: str) -> None:
        chunk = next((Path(done) / "moments").rglob("sum_xxT/c.0.0.0"))
        data = bytearray(chunk.read_bytes())
        data[20] ^= 255
        chunk.write_bytes(data)
        refused(nullbooth("project", "-s", done, "--force", "--yes"), 4, "is damaged", "nullbooth covariance")
        assert nullbooth("covariance", "-s", done, "--force").exit_code == 0
        assert nullbooth("project", "-s", done, "--force").exit_code == 0
        assert nullbooth("status", "-s", done, "--check", "project").exit_code == 0

    def test_no_room(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalBacking, "free_nbytes", lambda self: 10)
        refused(nullbooth("collect", "-c", str(small)), 5, "10 are free")

    @pytest.mark.parametrize("shard", ["4/3", "0/3", "3", "a/b"])
    def test_a_shard_of_nothing(self, small: Path, shard: str) -> None:
        refused(nullbooth("collect", "-c", str(small), "--shard", shard), 2, f"{shard} is not a shard", "such as 3/16")

    def test_force_would_undo_other_shards(self, small: Path) -> None:
        refused(nullbooth("collect", "-c", str(small), "--shard", "1/2", "--force"), 2, "the work of the other shards")

    def test_nothing_to_repair(self, small: Path) -> None:
        refused(nullbooth("collect", "-c", str(small), "--repair"), 3, "there is nothing to repair")

    @pytest.mark.parametrize("device", ["cuda:7", "gpu", "tpu"])
    def test_no_such_device(self, small: Path, device: str) -> None:
        refused(nullbooth("collect", "-c", str(small), "--device", device), 5, f"no such device: {device}", "cpu")

    def test_outputs_are_not_projected(self, small: Path) -> None:
        result = nullbooth("run", "-c", str(small), "--set", "collect.side=output")
        refused(result, 2, "features are outputs", "set collect.side to input")
        assert nullbooth("status", "-c", str(small), "--set", "collect.side=output", "--check", "covariance").exit_code == 0

    def test_two_answers(self, done: str) -> None:
        assert "two answers" in json.loads(nullbooth("inspect", "-s", done, "--json", "--csv").stderr)["error"]
        refused(nullbooth("inspect", "-s", done, "--layer", "nothing"), 2, "no site passes the filters", "mid_block")


class TestExplore:
    def test_a_ladder_is_shown_and_nothing_written(self, done: str, tmp_path: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")}
        picture = tmp_path / "pictures/ladder.png"
        result = nullbooth("project", "-s", done, "--explore", "--json", "--plot", str(picture))
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert {path: path.stat().st_mtime_ns for path in Path(done).rglob("*")} == before
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert document["heldout"] is False
        values = [rung["value"] for rung in document["ladder"]]
        assert values == sorted(values)
        assert 0.05 in values
        inspected = json.loads(nullbooth("inspect", "-s", done, "--json").stdout)
        now = document["ladder"][values.index(0.05)]
        assert now["null_dim"] == inspected["totals"]["null_dim"]
        assert [s["null_dim"] for s in now["sites"]] == [s["null_dim"] for s in inspected["sites"]]
        assert [s["leakage"] for s in now["sites"]] == pytest.approx([s["leakage"] for s in inspected["sites"]])
        for key in ("null_dim", "largest_leakage"):
            of_rungs = [rung[key] for rung in document["ladder"]]
            assert of_rungs == sorted(of_rungs)

    def test_before_project_it_decomposes_in_memory(self, done: str) -> None:
        stored = json.loads(nullbooth("project", "-s", done, "--explore", "--json").stdout)
        shutil.rmtree(f"{done}/projectors")
        store = Store.open(done, write=True)
        store.write_record("project", None)
        store.write_record("decomposition", None)
        fresh = json.loads(nullbooth("project", "-s", done, "--explore", "--json").stdout)
        assert not Path(done, "projectors").exists()
        for mine, theirs in zip(fresh["ladder"], stored["ladder"], strict=True):
            assert mine["largest_leakage"] == pytest.approx(theirs["largest_leakage"], abs=1e-7)
            if not theirs["below_noise"]:
                assert mine["null_dim"] == theirs["null_dim"]

    @pytest.mark.parametrize(
        "rule", ["nullspace_threshold=0.1", "threshold_percent=33", "energy=0.97", "target_leakage=0.03", "null_dim=3"]
    )
    def test_the_ladder_is_of_the_rule_in_force(self, done: str, rule: str) -> None:
        name, value = rule.split("=")
        shown = nullbooth(
            "project", "-s", done, "--set", "project.relative_threshold=null", "--set", f"project.{rule}", "--explore"
        )
        assert shown.exit_code == 0, shown.stderr
        assert name in shown.stdout
        in_force = re.search(r"(\S+) \* ", shown.stdout)
        assert in_force
        assert float(in_force[1]) == float(value)
        assert "no held-out prompts" in shown.stdout

    def test_what_cannot_be_drawn(self, done: str) -> None:
        refused(nullbooth("project", "-s", done, "--explore", "--plot", "x.gif"), 2, "cannot draw x.gif", ".png")
        refused(nullbooth("project", "-s", done, "--plot", "x.png"), 2, "--explore")


class TestProcess:
    """Through a real process: streams, pipes, environment."""

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nullbooth_cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)

    def test_stdout_is_one_document_and_stderr_has_no_noise(self, small: Path) -> None:
        done = self.run("run", "-c", str(small), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["totals"]["sites"] == 3
        for line in done.stderr.splitlines():
            assert re.match(r"(schedule|collect|covariance|project) \d+/\d+ |loading the model toy", line), line

    def test_no_colour_off_a_terminal(self, done: str) -> None:
        for shown in (self.run("inspect", "-s", done), self.run("inspect", "-s", "gone.zarr")):
            assert "\x1b" not in shown.stdout + shown.stderr

    def test_a_reader_that_stops_early_gets_no_traceback(self, done: str) -> None:
        command = f"{sys.executable} -m nullbooth_cli inspect -s {done} --csv | head -n 1"
        shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("layer,feature")
        assert "Traceback" not in shown.stderr

    def test_a_second_writer_is_told_who_holds_the_store(self, done: str) -> None:
        code = f"""
import time
from nullbooth_cli.store import Store
with Store.open({done!r}, write=True).lock():
    print(1, flush=True)
    time.sleep(600)
"""
        with start([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            refusal = self.run("project", "-s", done, "--force")
            holder.kill()
        assert refusal.returncode == 4
        assert f"in use by process {holder.pid}" in refusal.stderr

    def test_a_full_disk_keeps_what_is_finished(self, tmp_path: Path) -> None:
        """A real disk that fills up on the way, where the machine lets us mount one: exit 5, and then the run goes on."""
        disk = tmp_path / "disk"
        disk.mkdir()
        config = small_config(disk / "run.zarr", collect__batch_size=2, collect__cross_attention_layers=[0, 9])
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        needed = plan(("collect",), config, prompts_of(config), None, device="cpu")[0].bytes_needed
        # The estimate fits; the metadata and the rounding to whole pages that come on top do not.
        mount = ["mount", "-t", "tmpfs", "-o", f"size={needed + 60_000}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        try:
            first = self.run("run", "-c", str(tmp_path / "c.yaml"))
            assert first.returncode == 5, first.stderr
            assert "no room left" in first.stderr
            assert "hint: free some space" in first.stderr
            finished = Store.open(disk / "run.zarr").progress.done("collect")
            assert 0 < finished.sum() < len(finished)
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            second = self.run("run", "-c", str(tmp_path / "c.yaml"))
            assert second.returncode == 0, second.stderr
            assert f"collect {finished.sum() + 1}/4" in second.stderr
        finally:
            subprocess.run(["umount", str(disk)], check=True)
