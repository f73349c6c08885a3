"""Several processes on one store: a launch on one machine or two, and shards. What they make together is what one makes alone."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from nullbooth_cli.errors import StoreError
from nullbooth_cli.pipeline import workers
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import MID, ROOT, execute, small_config, states_of
from tests.support.cli import nullbooth, refused, saved
from tests.support.comparisons import assert_same_run
from tests.support.zygote import Twist, Worker, launch, stopped

HELDOUT = ["a white ring on a pink background", "a black star"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    """The run of one process that keeps the same."""
    made: dict[str, Store] = {}

    def run(keep: str) -> Store:
        if keep not in made:
            config = small_config(tmp_path_factory.mktemp(keep) / "alone.zarr", **MID, collect__keep=keep)
            made[keep] = execute(config, "collect", "covariance", "project")
        return made[keep]

    return run


def assert_parts_add_up(store: Store) -> None:
    """What is in force is the sum of the parts, to 1e-12, and no unit is in two of them."""
    units = sorted(chain.from_iterable(part.units for part in store.moments.all_partial_sums()))
    assert units == list(range(8))
    for site in store.sites:
        sums = [list(part.read(site)) for part in store.moments.all_partial_sums() if part.units]
        for step in range(site.num_recorded(store.num_steps)):
            sum_xxt, _, count = store.moments.read_one(site, step)
            np.testing.assert_allclose(sum_xxt, sum(of_part[step][0] for of_part in sums), rtol=1e-12)
            assert count == sum(of_part[step][2] for of_part in sums)


@pytest.mark.parametrize("keep", ["features", "moments", "both"])
def test_two_processes_share_the_units(tmp_path: Path, alone: Callable[[str], Store], keep: str) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep=keep)
    arguments = saved(config, tmp_path / "c.yaml")
    slow = {rank: Twist(slow=0.1) for rank in range(2)}
    with stopped(launch(["run", *arguments, "--json"], tmp_path / "log", 2, slow)) as (first, second):
        assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
    assert sorted(first.begun + second.begun) == list(range(8)), "each unit once"
    assert first.begun
    assert second.begun
    assert json.loads(first.out)["totals"]["sites"] == 3
    assert (second.out, second.err) == ("", "")
    progress = re.findall(r"^(\w+) (\d+)/(\d+) ", first.err, re.MULTILINE)
    for stage in ("collect", "covariance", "project"):
        done = [(int(n), int(total)) for name, n, total in progress if name == stage]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1], "counts everybody's units"
    found = Store.open(config.store)
    assert_same_run(found, alone(keep))
    if keep != "features":
        assert_parts_add_up(found)
    for site in found.sites:
        assert found.projectors.read_cut(site, 0)[0] == alone(keep).projectors.read_cut(site, 0)[0]


def test_two_processes_share_the_heldout_prompts(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, heldout_prompts=HELDOUT)
    expected = execute(small_config(tmp_path / "alone.zarr", **MID, heldout_prompts=HELDOUT), "collect", "covariance", "project")
    with stopped(launch(["run", *saved(config, tmp_path / "c.yaml")], tmp_path / "log", 2)) as (first, second):
        assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
    found = Store.open(config.store)
    inner, wanted = found.heldout(), expected.heldout()
    assert inner is not None
    assert wanted is not None
    assert_same_run(inner, wanted)
    for site in found.sites:
        mine, theirs = found.projectors.read_cut(site, 0), expected.projectors.read_cut(site, 0)
        assert mine.heldout_leakage == pytest.approx(theirs.heldout_leakage, rel=1e-3)


def test_two_processes_share_images(tmp_path: Path) -> None:
    """Noise belongs to the image's row, whoever runs it."""
    images = {"collect__latents": "images", "collect__images": str(ROOT / "dataset/images/toy"), "collect__batch_size": 6}
    config = small_config(tmp_path / "run.zarr", **{**MID, **images})
    expected = execute(small_config(tmp_path / "alone.zarr", **{**MID, **images}), "collect", "covariance", "project")
    with stopped(launch(["run", *saved(config, tmp_path / "c.yaml")], tmp_path / "log", 2)) as (first, second):
        assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
    assert_same_run(Store.open(config.store), expected)


def test_the_number_of_processes_may_change(tmp_path: Path, fast: None, alone: Callable[[str], Store]) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
    arguments = saved(config, tmp_path / "c.yaml")
    for size, limit in ((2, "3"), (1, "2"), (3, "8")):
        with stopped(launch(["collect", *arguments, "--limit", limit], tmp_path / f"log{size}", size)) as processes:
            assert [worker.finish() for worker in processes] == [0] * size, "".join(worker.err for worker in processes)
    store = Store.open(config.store)
    assert_parts_add_up(store)
    assert {part.name for part in store.moments.all_partial_sums()} <= {f"1-of-1.{rank}" for rank in range(3)}
    assert_same_run(store, alone("moments"))


def test_a_stage_waits_for_the_slowest_process(tmp_path: Path, alone: Callable[[str], Store]) -> None:
    """Covariance needs all of collect, and the answer is about all of covariance, whichever process is late."""
    for slow in range(2):
        config = small_config(tmp_path / f"{slow}.zarr", **MID)
        twists = {slow: Twist(slow=0.4), 1 - slow: Twist()}
        arguments = ["run", *saved(config, tmp_path / "c.yaml"), "--json"]
        with stopped(launch(arguments, tmp_path / f"log{slow}", 2, twists)) as (first, second):
            assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
        assert (first.begun, second.begun) == ([0, 2, 4, 6], [1, 3, 5, 7]), "every second unit, whatever they take"
        assert json.loads(first.out)["totals"]["sites"] == 3
        assert_same_run(Store.open(config.store), alone("features"))


def test_a_launch_replaces_what_is_stale_once(tmp_path: Path) -> None:
    """One process decides for all: none throws away what another has made of it by then."""
    config = small_config(tmp_path / "run.zarr", **MID)
    execute(config, "collect", "covariance", "project")
    other = small_config(tmp_path / "run.zarr", **MID, collect__seed=1)
    expected = execute(small_config(tmp_path / "alone.zarr", **MID, collect__seed=1), "collect", "covariance")
    arguments = saved(other, tmp_path / "c.yaml")
    twists = {0: Twist(slow=0.3), 1: Twist()}
    with stopped(launch(["run", *arguments, "--force"], tmp_path / "log", 2, twists)) as (first, second):
        assert (first.finish(), second.finish()) == (0, 0), first.err + second.err
    assert (first.begun, second.begun) == ([0, 2, 4, 6], [1, 3, 5, 7])
    assert_same_run(Store.open(config.store), expected)


@pytest.mark.parametrize("failing", [0, 1])
def test_when_a_process_fails_the_other_does_its_own_units(tmp_path: Path, failing: int) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
    twists = {failing: Twist(fails_after=2), 1 - failing: Twist(slow=0.3, checkpoint_share=1e-9)}
    with stopped(launch(["collect", *saved(config, tmp_path / "c.yaml")], tmp_path / "log", 2, twists)) as processes:
        codes = [worker.finish() for worker in processes]
    assert codes[failing] == 1
    assert "this unit fails" in processes[failing].err
    assert codes[1 - failing] == 3
    assert f"error: process {failing} of this launch failed or was stopped" in processes[1 - failing].err
    assert processes[1 - failing].begun == [1 - failing + 2 * i for i in range(4)]
    kept = [unit for part in Store.open(config.store).moments.all_partial_sums() for unit in part.units]
    assert set(processes[1 - failing].begun) <= set(kept)
    assert Store.open(config.store).progress.done("collect").sum() == len(kept) == len(set(kept))


@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_process_is_killed_the_other_ends_too(
    tmp_path: Path, fast: None, alone: Callable[[str], Store], killed: int
) -> None:
    """Without a launcher that watches them. The next command, of one process, finishes the stage."""
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
    arguments = saved(config, tmp_path / "c.yaml")
    twists = {rank: Twist(slow=0.2, checkpoint_share=1e-9) for rank in range(2)}
    with stopped(launch(["collect", *arguments], tmp_path / "log", 2, twists)) as processes:
        while len(processes[killed].begun) < 2:
            time.sleep(0.01)
        processes[killed].kill()
        assert processes[1 - killed].finish() == 3, processes[1 - killed].err
    assert f"process {killed} of this launch failed or was stopped" in processes[1 - killed].err
    done = Store.open(config.store).progress.done("collect")
    assert done[1 - killed :: 2].all(), "its own units"
    assert not done.all()
    assert states_of(config)["collect"] == "partial"
    assert nullbooth("collect", *arguments).exit_code == 0
    assert_parts_add_up(Store.open(config.store))
    assert_same_run(Store.open(config.store), alone("moments"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("keep", ["features", "moments"])
def test_a_launch_is_interrupted_and_resumed(
    tmp_path: Path, fast: None, alone: Callable[[str], Store], number: signal.Signals, keep: str
) -> None:
    """Every process gets the signal, as from a terminal or a launcher. Sums that are in memory only are written first."""
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep=keep)
    arguments = saved(config, tmp_path / "c.yaml")
    twists = {rank: Twist(slow=0.3, checkpoint_share=1e-9) for rank in range(2)}
    with stopped(launch(["collect", *arguments], tmp_path / "log", 2, twists)) as processes:
        while min(len(worker.begun) for worker in processes) < 3:  # the first was written by itself, the second was not
            time.sleep(0.01)
        for worker in processes:
            os.kill(worker.pid, number)
        time.sleep(0.05)
        for worker in processes:  # torchrun passes on the Ctrl-C of a terminal, which its processes have got already
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, number)
        assert [worker.finish() for worker in processes] == [128 + number] * 2, "".join(worker.err for worker in processes)
    assert processes[0].out == ""
    assert "interrupted: run the same command again to resume" in processes[0].err
    done = set(np.flatnonzero(Store.open(config.store).progress.done("collect")).tolist())
    started = {unit for worker in processes for unit in worker.begun}
    if keep == "moments":
        assert done == started, "the unit that ran was finished, and all of them were written"
    else:
        assert {0, 1, 2, 3} <= done <= started
    assert Store.open(config.store).heartbeats.read() == []
    assert nullbooth("collect", *arguments).exit_code == 0
    assert nullbooth("covariance", *arguments).exit_code == 0
    assert_same_run(Store.open(config.store), alone(keep))


def test_a_shard_is_interrupted_and_resumed(tmp_path: Path, fast: None) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
    arguments = saved(config, tmp_path / "c.yaml")
    twist = Twist(slow=0.2, checkpoint_share=1e-9)
    with stopped([Worker(["collect", *arguments, "--shard", "2/2"], tmp_path / "log", twist=twist)]) as (worker,):
        while len(worker.begun) < 3:
            time.sleep(0.01)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.finish() == 143, worker.err
    assert Store.open(config.store).moments.partial_sums("2-of-2.0").units == tuple(worker.begun)
    assert nullbooth("collect", *arguments, "--shard", "2/2").exit_code == 0
    assert Store.open(config.store).moments.partial_sums("2-of-2.0").units == (1, 3, 5, 7)


def test_a_process_that_waits_is_interrupted_at_once(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **MID)
    twists = {0: Twist(), 1: Twist(slow=3.0)}
    with stopped(launch(["collect", *saved(config, tmp_path / "c.yaml")], tmp_path / "log", 2, twists)) as (first, second):
        while len(first.begun) < 4 or not second.begun:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(first.pid, signal.SIGINT)
        assert first.finish() == 130, first.err
        assert second.is_alive(), "it did not wait for the other"
        assert second.finish() == 3, second.err
    assert second.begun == [1, 3, 5, 7]


def test_a_launch_may_be_a_shard(tmp_path: Path, fast: None, alone: Callable[[str], Store]) -> None:
    """The units of the shard are shared out among its processes."""
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
    arguments = saved(config, tmp_path / "c.yaml")
    with stopped(launch(["collect", *arguments, "--shard", "2/2"], tmp_path / "log", 2)) as processes:
        assert [worker.finish() for worker in processes] == [0, 0], "".join(worker.err for worker in processes)
    assert [worker.begun for worker in processes] == [[1, 5], [3, 7]]
    assert nullbooth("collect", *arguments, "--shard", "1/2").exit_code == 0
    assert nullbooth("covariance", *arguments).exit_code == 0
    store = Store.open(config.store)
    assert {part.name for part in store.moments.all_partial_sums()} == {"1-of-2.0", "2-of-2.0", "2-of-2.1"}
    assert_parts_add_up(store)
    assert_same_run(store, alone("moments"))


def test_a_launch_without_a_rendezvous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WORLD_SIZE alone is what some clusters set for every job."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in workers.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    config = small_config(tmp_path / "run.zarr", **MID)
    refused(nullbooth("collect", *saved(config, tmp_path / "c.yaml")), 2, "WORLD_SIZE is 2, but RANK", "torchrun")


def test_processes_that_do_not_find_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(workers, "START_SECONDS", 1.0)
    config = small_config(tmp_path / "run.zarr", **MID)
    refused(nullbooth("collect", *saved(config, tmp_path / "c.yaml")), 2, "do not find each other", "MASTER_ADDR")


def test_a_store_in_use_ends_the_launch(tmp_path: Path) -> None:
    """Process 0 cannot lock the store, and the others hear of it: they do not take the other command for it."""
    config = small_config(tmp_path / "run.zarr", **MID)
    store = Store.create(config.store, config.model_dump())
    with store.lock(), stopped(launch(["collect", *saved(config, tmp_path / "c.yaml")], tmp_path / "log", 2)) as (first, second):
        assert (first.finish(), second.finish()) == (4, 3), first.err + second.err
    assert "is in use by process" in first.err
    assert "process 0 of this launch failed" in second.err


@pytest.mark.parametrize("keep", ["features", "moments"])
def test_shards_at_once_and_in_any_order(tmp_path: Path, fast: None, alone: Callable[[str], Store], keep: str) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep=keep)
    arguments = saved(config, tmp_path / "c.yaml")
    started = [Worker(["collect", *arguments, "--shard", f"{k}/3"], tmp_path / f"log{k}", twist=Twist(slow=0.1)) for k in (3, 1)]
    with stopped(started) as (third, first):
        while len(first.begun) < 2:
            assert first.is_alive(), first.err
            time.sleep(0.005)
        first.kill()
        assert third.finish() == 0, third.err
    assert third.begun == [2, 5]
    refused(nullbooth("covariance", *arguments), 3, "collect in", "is partial")
    for k in (2, 1):
        assert nullbooth("collect", *arguments, "--shard", f"{k}/3").exit_code == 0
    assert states_of(config)["collect"] == "complete"
    for command in ("covariance", "project"):
        assert nullbooth(command, *arguments).exit_code == 0
    found = Store.open(config.store)
    assert_same_run(found, alone(keep))
    if keep == "moments":
        assert_parts_add_up(found)
        assert {part.name for part in found.moments.all_partial_sums()} == {f"{k}-of-3.0" for k in (1, 2, 3)}


def test_shards_of_a_collection_that_is_begun_again(tmp_path: Path, fast: None) -> None:
    """A shard may not throw away what the others did; the way that its hint names works."""
    arguments = saved(small_config(tmp_path / "run.zarr", **MID), tmp_path / "c.yaml")
    assert nullbooth("collect", *arguments, "--limit", "2").exit_code == 0
    other = [*arguments, "--set", "collect.seed=1"]
    refused(nullbooth("collect", *other, "--shard", "1/2", "--force"), 2, "nullbooth collect --force --limit 1")
    assert nullbooth("collect", *other, "--force", "--limit", "1", "--yes").exit_code == 0
    for k in (1, 2):
        assert nullbooth("collect", *other, "--shard", f"{k}/2").exit_code == 0
    assert nullbooth("status", *other, "--check", "collect").exit_code == 0


def test_a_shard_that_is_done_twice_is_noticed(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run.zarr", **MID, collect__keep="moments")
    store = execute(config, "collect")
    part = store.moments.partial_sums("2-of-3.0")
    part.create(store.sites, store.num_steps)
    part.checkpoint([], [4])
    with pytest.raises(StoreError, match=r"unit 4 is in the partial sums 1-of-1\.0 and 2-of-3\.0"):
        execute(config, "covariance", force=True)


class TestLaunchers:
    """The real ones. Their processes import everything, so each is started once."""

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=QUIET, cwd=ROOT, check=False)

    def check(self, done: subprocess.CompletedProcess[str], config: Config, expected: Store) -> None:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["units_done"] == 8
        assert re.search(r"^collect 8/8 ", done.stderr, re.MULTILINE)
        store = Store.open(config.store)
        assert_parts_add_up(store)
        assert len(store.moments.all_partial_sums()) == 2
        assert_same_run(store, expected)

    def test_torchrun(self, tmp_path: Path, alone: Callable[[str], Store]) -> None:
        config = small_config(tmp_path / "run.zarr", **MID, collect__keep="both")
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nullbooth_cli", "collect", "--json"]
        self.check(self.run([*command, *saved(config, tmp_path / "c.yaml")]), config, alone("both"))

    def test_accelerate_launch(self, tmp_path: Path, alone: Callable[[str], Store]) -> None:
        config = small_config(tmp_path / "run.zarr", **MID, collect__keep="both")
        flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
        command = ["accelerate.commands.launch", *flags.split(), "-m", "nullbooth_cli", "collect", "--json"]
        self.check(self.run([*command, *saved(config, tmp_path / "c.yaml")]), config, alone("both"))

    def test_two_hosts(self, tmp_path: Path, alone: Callable[[str], Store]) -> None:
        """Two network namespaces with a cable between them, and one folder that both see."""
        config = small_config(tmp_path / "run.zarr", **MID, collect__keep="both")
        arguments = ["collect", *saved(config, tmp_path / "c.yaml"), "--json"]
        if shutil.which("ip") is None:
            pytest.skip("no ip: install iproute2 to test two hosts")
        hosts = [f"nb{os.getpid()}{end}" for end in "ab"]
        try:
            for host in hosts:
                done = subprocess.run(["ip", "netns", "add", host], capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
            cable = f"ip link add va netns {hosts[0]} type veth peer name va netns {hosts[1]}"
            subprocess.run(cable.split(), check=True)
            for number, host in enumerate(hosts, 1):
                for command in (f"addr add 10.77.0.{number}/24 dev va", "link set va up", "link set lo up"):
                    subprocess.run(["ip", "-n", host, *command.split()], check=True)
            processes = []
            for number, host in enumerate(hosts):
                flags = f"--nnodes 2 --node_rank {number} --nproc_per_node 1 --master_addr 10.77.0.1 --master_port 29577"
                command = f"torch.distributed.run {flags} -m nullbooth_cli"
                processes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", host, sys.executable, "-m", *command.split(), *arguments],
                        env={**QUIET, "GLOO_SOCKET_IFNAME": "va"},
                        cwd=ROOT,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            (out, err), (other_out, other_err) = (process.communicate() for process in processes)
            assert processes[1].returncode == 0, other_err
            assert other_out == ""
            self.check(subprocess.CompletedProcess([], processes[0].returncode, out, err), config, alone("both"))
        finally:
            for host in hosts:
                subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)
