"""Whatever stops nullbooth, at whatever instant: nothing is lost, nothing counts twice, and the same command finishes."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.collect import open_model
from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.model import load as load_module
from nullbooth_cli.pipeline import collect, heartbeat
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store, locks, open_backing, shard_locked
from nullbooth_cli.store.local import DurableLocalStore, LocalBacking
from tests.support.builders import MANY, MID, PROMPTS, execute, small_config, states_of
from tests.support.cli import nullbooth, refused, saved
from tests.support.comparisons import assert_same_run
from tests.support.zygote import Twist, Worker, launch, stopped


class TestKill9:
    """Two processes of one launch, killed at random instants of both stages, again and again."""

    @pytest.mark.parametrize("keep", ["both", "features"])
    def test_any_number_of_kills_changes_nothing(self, tmp_path: Path, fast: None, keep: str) -> None:
        rng = random.Random(keep)
        config = small_config(tmp_path / "killed.zarr", **MID, collect__keep=keep)
        reference = small_config(tmp_path / "whole.zarr", **MID, collect__keep=keep)
        twists = {rank: Twist(slow=0.1, checkpoint_share=0.5) for rank in range(2)}
        wanted, kills, advanced, partial = 0, 0, 0, Counter[str]()
        while kills < 15 or min(partial["collect"], partial["covariance"]) < 3:
            wanted += 5
            assert wanted <= len(MANY), f"only {kills} kills hit anything; stages that were left partial: {partial}"
            prompts = {"original_knowledge_prompts": MANY[:wanted]}
            config, reference = (c.model_copy(update=prompts) for c in (config, reference))
            arguments = saved(config, tmp_path / "c.yaml")
            for stage in ("collect", "covariance"):
                while (states := found_states(config))[stage] != "complete":
                    before = done_units(config)
                    with stopped(launch([stage, *arguments], tmp_path / "log", 2, twists)) as workers:
                        if not self.kill_somewhere(workers, rng):
                            continue
                    kills += 1
                    advanced += done_units(config) > before
                    states = found_states(config)
                    partial.update(name for name, state in states.items() if state == "partial")
            execute(reference, "collect", "covariance")
        assert advanced > kills / 3, "the kills came too early to test anything"
        assert_same_run(Store.open(config.store), Store.open(reference.store))

    def kill_somewhere(self, workers: list[Worker], rng: random.Random) -> bool:
        """Let some units pass and a moment more, then kill both. False if they had ended well before."""
        units = rng.randint(0, 2)
        while len(re.findall(r"^co\w+ \d+/", workers[0].err, re.MULTILINE)) < units and workers[0].is_alive():
            time.sleep(0.002)
        time.sleep(rng.random() * (0.05 if units else 0.8))
        for worker in rng.sample(workers, 2):
            worker.kill()
        codes = [worker.finish() for worker in workers]
        assert set(codes) <= {0, -signal.SIGKILL}, [worker.err for worker in workers]
        return codes != [0, 0]


def found_states(config: Config) -> dict[str, str]:
    return states_of(config) if Store.exists(config.store) else dict.fromkeys(("collect", "covariance"), "missing")


def done_units(config: Config) -> int:
    if not Store.exists(config.store):
        return 0
    store = Store.open(config.store)
    return sum(int(store.progress.done(stage).sum()) for stage in ("collect", "covariance"))


class Killed(BaseException):
    """The process is gone: nothing it would have done after this reaches the disk."""


@contextmanager
def dying(instant: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Storage that refuses everything from the given instant on. An instant is a write, a flush or the middle of a removal;
    yields their names."""
    happened: list[str] = []
    died: list[str] = []

    def wrapped(owner: type, function: str) -> None:
        real = getattr(owner, function)

        def refusing(self: Any, *arguments: Any) -> Any:
            name = " ".join([function, *(argument for argument in arguments if isinstance(argument, str))])
            if len(happened) == instant:
                if function == "delete_dir" and not died:
                    for path in sorted((self.root / arguments[0]).rglob("*.*"))[::2]:
                        path.unlink() if path.is_file() else None
                died.append(name)
                raise Killed(name)
            happened.append(name)
            return real(self, *arguments)

        patched.setattr(owner, function, refusing)

    with monkeypatch.context() as patched:
        for owner, functions in ((LocalBacking, ("put", "sync", "delete")), (DurableLocalStore, ("delete", "delete_dir"))):
            for function in functions:
                wrapped(owner, function)
        yield happened


class TestEveryInstant:
    """One process that dies before its n-th write, for every n there is."""

    @pytest.fixture(autouse=True)
    def quick(self, fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """The model is looked at once: the order of writes is in question."""
        known: dict[str, Any] = {}
        load, digest = open_model.load_recordable, load_module.weights_digest
        monkeypatch.setattr(
            collect, "load_recordable", lambda *a, **_: known.get("loaded") or known.setdefault("loaded", load(*a))
        )
        monkeypatch.setattr(
            load_module, "weights_digest", lambda pipe, **_: known.get("digest") or known.setdefault("digest", digest(pipe))
        )
        monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 3600.0)  # a sign of life would be an instant at random

    def survives(
        self, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, wanted: tuple[str, ...], begun: Store | None = None
    ) -> tuple[Store, Store]:
        """Run the wanted stages from what was begun, with a death before each instant, and once more; returns the last such
        store, and one that was never interrupted."""

        def prepared(name: str) -> Config:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            if begun is not None:
                shutil.copytree(begun.path, tmp_path / name)
            return config.model_copy(update={"store": str(tmp_path / name)})

        with dying(-1, monkeypatch) as instants:
            expected = execute(prepared("whole.zarr"), *wanted)
        assert len(instants) > 15
        for instant, name in enumerate(instants):
            killed = prepared("killed.zarr")
            with dying(instant, monkeypatch), pytest.raises(Killed):
                execute(killed, *wanted)
            try:
                found = execute(killed, *wanted)
                if "collect" in wanted:
                    assert_same_run(found, expected, exactly=True)
            except BaseException as error:
                raise AssertionError(f"killed before instant {instant} of {len(instants)}: {name}") from error
        return found, expected

    TINY = {
        "collect__cross_attention_layers": ["mid_block*"],
        "collect__collect_features__q_features": False,
        "collect__collect_features__out_features": False,
        "collect__batch_size": 1,
        "schedule__num_denoising_steps": 2,
    }

    def test_of_a_schedule(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = small_config(tmp_path, **self.TINY, original_knowledge_prompts=PROMPTS[:2])
        found, expected = self.survives(tmp_path, config, monkeypatch, ("schedule",))
        assert found.schedule() == expected.schedule()

    def test_of_a_run_that_keeps_moments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = small_config(
            tmp_path / "begun.zarr", **self.TINY, collect__keep="moments", original_knowledge_prompts=PROMPTS[:2]
        )
        begun = execute(config, "schedule")
        self.survives(tmp_path, config, monkeypatch, ("collect", "covariance"), begun)

    def test_of_a_run_that_adds_prompts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches of two, the last half empty: the new prompt begins a unit of its own."""
        changes = {**self.TINY, "collect__batch_size": 2, "original_knowledge_prompts": PROMPTS[:3]}
        config = small_config(tmp_path / "begun.zarr", **changes)
        begun = execute(config, "collect", "covariance")
        more = config.model_copy(update={"original_knowledge_prompts": PROMPTS[:4]})
        self.survives(tmp_path, more, monkeypatch, ("collect", "covariance"), begun)


def mounted(command: list[str], place: Path) -> Callable[[], None]:
    """Mount something; returns what takes it away again. Skips where the machine does not allow it."""
    done = subprocess.run(["mount", *command, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    return lambda: subprocess.run(["umount", "-l", str(place)], check=True)  # type: ignore[return-value]


def await_line(worker: Worker, pattern: str) -> None:
    while not re.search(pattern, worker.err, re.MULTILINE):
        assert worker.is_alive(), worker.err
        time.sleep(0.005)


class TestNoRoom:
    """The room is there when a command begins, and gone on the way."""

    def check(self, worker: Worker, config: Config, told: str) -> None:
        assert worker.finish() == 5, worker.err
        assert re.search(rf"^error: {told}[^\n]*\n\nhint: free some space", worker.err, re.MULTILINE), worker.err
        assert "Traceback" not in worker.err
        assert worker.out == ""
        assert not list(Path(config.store).rglob("*.partial"))

    @pytest.mark.parametrize("keep", ["features", "moments"])
    def test_others_fill_the_disk(self, tmp_path: Path, fast: None, keep: str) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        with ExitStack() as stack:
            stack.callback(mounted(["-t", "tmpfs", "-o", "size=20m", "tmpfs"], disk))
            config = small_config(disk / "run.zarr", **MID, collect__keep=keep)
            arguments = saved(config, tmp_path / "c.yaml")
            twist = Twist(slow=0.2, checkpoint_share=1e9)
            with stopped([Worker(["collect", *arguments], tmp_path / "log", twist=twist)]) as (worker,):
                await_line(worker, "^collect 2/")
                (disk / "others").write_bytes(bytes(shutil.disk_usage(disk).free))
                self.check(worker, config, "no room left")
            done = Store.open(config.store).progress.done("collect").sum()
            assert 2 <= done < 8
            again = nullbooth("collect", *arguments)
            refused(again, 5, "error: ")  # still full: the lock, the records and the room check fail as cleanly
            subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
            assert nullbooth("collect", *arguments).exit_code == 0
            assert nullbooth("covariance", *arguments).exit_code == 0
            whole = small_config(tmp_path / "whole.zarr", **MID, collect__keep=keep)
            assert_same_run(Store.open(config.store), execute(whole, "collect", "covariance"))

    def test_a_limit_on_files(self, tmp_path: Path, fast: None) -> None:
        """Needs no right to mount: the system refuses every file beyond 40 kB, which only a chunk of features reaches."""
        config = small_config(tmp_path / "run.zarr", **MID | {"collect__batch_size": 8})
        arguments = saved(config, tmp_path / "c.yaml")
        twist = Twist(largest_file=40_000)
        with stopped([Worker(["collect", *arguments], tmp_path / "log", twist=twist)]) as (worker,):
            self.check(worker, config, "no room left")
        assert not Store.open(config.store).progress.done("collect").any()
        assert nullbooth("collect", *arguments).exit_code == 0


class TestReadOnly:
    """A store that cannot be written to can be looked at, and is told apart from one that is damaged."""

    @pytest.fixture
    def partial(self, tmp_path: Path, fast: None) -> Config:
        place = tmp_path / "place"
        place.mkdir()
        config = small_config(place / "run.zarr", **MID)
        execute(config, "collect", "covariance", "project")
        store = Store.open(config.store, write=True)
        for stage in ("collect", "covariance"):
            store.progress.mark(stage, [0], 0)
        return config

    @pytest.mark.parametrize("what", ["store", "folder"])
    def test_looking_works_and_writing_is_refused(self, tmp_path: Path, partial: Config, what: str) -> None:
        arguments = saved(partial, tmp_path / "c.yaml")
        place = Path(partial.store) if what == "store" else Path(partial.store).parent
        with ExitStack() as stack:
            if os.geteuid() == 0:
                stack.callback(mounted(["--bind", str(place)], place))
                subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
            else:
                for path in (place, *place.rglob("*")):
                    path.chmod(path.stat().st_mode & ~0o222)
                    stack.callback(path.chmod, path.stat().st_mode | 0o200)
            before = contents(Path(partial.store))
            assert "collect" in nullbooth("status", *arguments).stdout
            refused(nullbooth("collect", *arguments), 5, "cannot write to", "mount the file system for writing")
            for stage in ("covariance", "schedule"):
                refused(nullbooth(stage, *arguments, "--force"), 5, "cannot write to")
            assert contents(Path(partial.store)) == before

    def test_inspect(self, tmp_path: Path, fast: None) -> None:
        config = small_config(tmp_path / "run.zarr", **MID)
        execute(config, "collect", "covariance", "project")
        with ExitStack() as stack:
            stack.callback(mounted(["--bind", config.store], Path(config.store)))
            subprocess.run(["mount", "-o", "remount,ro,bind", config.store], check=True)
            assert nullbooth("inspect", "-s", config.store).exit_code == 0
            assert nullbooth("status", "-s", config.store, "--check", "project").exit_code == 0
            refused(nullbooth("covariance", "-s", config.store, "--force"), 5, "cannot write to")
            refused(nullbooth("project", "-s", config.store, "--force", "--yes"), 5, "cannot write to")
            assert set(states_of(config).values()) == {"complete"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestShardLocks:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locks, "PROBE_SECONDS", 0.1)

    def test_who_may_work_beside_whom(self, tmp_path: Path, fast: None) -> None:
        config = small_config(tmp_path / "run.zarr", **MID)
        arguments = saved(config, tmp_path / "c.yaml")
        assert nullbooth("schedule", *arguments).exit_code == 0
        with shard_locked(open_backing(config.store), 1, 3):
            holder = f"in use by process {os.getpid()}"
            refused(nullbooth("collect", *arguments, "--shard", "1/3"), 4, holder)
            refused(nullbooth("collect", *arguments, "--shard", "1/2"), 4, holder)
            refused(nullbooth("collect", *arguments, "--shard", "2/2"), 4, holder)
            for command in (["collect"], ["schedule", "--force"], ["run"]):
                refused(nullbooth(*command, *arguments), 4, holder)
            assert nullbooth("collect", *arguments, "--shard", "3/3").exit_code == 0
        assert nullbooth("collect", *arguments, "--shard", "1/2").exit_code == 0
        assert nullbooth("collect", *arguments).exit_code == 0
        assert nullbooth("covariance", *arguments).exit_code == 0

    def test_a_process_whose_launch_lost_its_first_still_holds_the_store(self, tmp_path: Path, fast: None) -> None:
        """Process 0, which has the store's lock, is killed while process 1 is in the middle of a unit."""
        config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
        arguments = saved(config, tmp_path / "c.yaml")
        with stopped(launch(["collect", *arguments], tmp_path / "log", 2, {1: Twist(slow=2.0)})) as (first, second):
            await_line(first, "^collect 1/")
            while not second.begun:
                assert second.is_alive(), second.err
                time.sleep(0.01)
            first.kill()
            first.join()
            refused(nullbooth("collect", *arguments), 4, f"in use by process {second.pid}")
            assert second.finish() == 3, second.err
            assert "process 0 of this launch failed or was stopped" in second.err
        finished = Store.open(config.store)
        assert any(second.begun[0] in part.units for part in finished.moments.all_partial_sums()), "the unit that ran was written"
        assert nullbooth("collect", *arguments).exit_code == 0


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_folded_units_are_written_before_the_end(self, tmp_path: Path, fast: None, number: int) -> None:
        config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
        arguments = saved(config, tmp_path / "c.yaml")
        with stopped([Worker(["collect", *arguments], tmp_path / "log", twist=Twist(slow=0.3, checkpoint_share=1e-9))]) as (
            worker,
        ):
            while len(worker.begun) < 4:
                assert worker.is_alive(), worker.err
                time.sleep(0.005)
            assert Store.open(config.store).progress.done("collect").sum() == 1, "the others are folded, not written"
            os.kill(worker.pid or 0, number)
            assert worker.finish() == 128 + number
        assert "finishing and writing the unit that runs" in worker.err
        assert "run the same command again to resume" in worker.err
        assert "Traceback" not in worker.err
        store = Store.open(config.store)
        assert store.progress.done("collect").tolist() == [True] * 4 + [False] * 4
        assert [part.units for part in store.moments.all_partial_sums()] == [(0, 1, 2, 3)]
        assert nullbooth("collect", *arguments).exit_code == 0
        whole = small_config(tmp_path / "whole.zarr", **MID, collect__keep="moments")
        assert_same_run(Store.open(config.store), execute(whole, "collect"))

    @pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
    def test_a_background_job_does_not_hear_ctrl_c(
        self, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int
    ) -> None:
        """A shell starts the background jobs of a script with SIGINT ignored: it is meant for what is in front."""
        follow = Terminal.follow

        def interrupted(terminal: Terminal, events: Any) -> None:
            os.kill(os.getpid(), number)
            follow(terminal, events)

        monkeypatch.setattr(Terminal, "follow", interrupted)
        here = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            result = nullbooth("schedule", *saved(small_config(tmp_path / "run.zarr", **MID), tmp_path / "c.yaml"))
        finally:
            signal.signal(signal.SIGINT, here)
        assert result.exit_code == exit_code, result.stderr
