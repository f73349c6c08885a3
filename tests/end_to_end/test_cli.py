"""The commands as a user meets them: what spans commands, and every command as a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of, small_config
from tests.support.cli import nullbooth, refused, start


class TestAnswers:
    def test_tables_are_never_cut_off_a_terminal(self, done: str) -> None:
        shown = nullbooth("inspect", "-s", done).stdout
        assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2 " in shown
        assert "…" not in shown


class TestDocuments:
    def test_errors_are_json_too(self) -> None:
        result = nullbooth("status", "-s", "gone.zarr", "-c", "gone.yaml", "--json")
        assert result.stdout == ""
        assert json.loads(result.stderr) == {
            "error": "no config file at gone.yaml",
            "hint": "give one with -c; nullbooth init writes one",
            "exit_code": 2,
        }


class TestBadInput:
    def test_unknown_command(self) -> None:
        refused(nullbooth("colect"), 2, "no such command 'colect'", "did you mean 'nullbooth collect'?")
        refused(nullbooth("xyzzy"), 2, "no such command 'xyzzy'", "choose one of init, teach, run, schedule")

    def test_unknown_option(self) -> None:
        refused(nullbooth("collect", "--dryrun"), 2, "--dryrun", "nullbooth collect --help")
        refused(nullbooth("collect", "--limit", "0"), 2, "--limit")

    @pytest.mark.parametrize("command", ["covariance", "project", "inspect"])
    def test_out_of_order(self, small: Path, command: str) -> None:
        refused(nullbooth(command, "-c", str(small)), 3, "nothing was collected yet", "nullbooth collect -c")
        nullbooth("collect", "-c", str(small), "--limit", "1")
        refused(nullbooth(command, "-c", str(small)), 3, "nullbooth")


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
            second = nullbooth("run", "-c", str(tmp_path / "c.yaml"))
            assert second.exit_code == 0, second.stderr
            assert f"collect {finished.sum() + 1}/4" in second.stderr
        finally:
            subprocess.run(["umount", str(disk)], check=True)
