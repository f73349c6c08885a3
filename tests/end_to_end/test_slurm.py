"""The page about SLURM arrays: its own script on a cluster of one node, through every way in which a task ends early."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, ROOT, small_config, states_of
from tests.support.cli import saved
from tests.support.slurm import Cluster, slurm_cluster, wait_for

TASKS = 3
MANY = [f"{prompt}, number {i}" for i in range(12) for prompt in PROMPTS]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with slurm_cluster(folder) as started:
        yield started


def page_blocks() -> tuple[str, str]:
    """The script of the page and the commands that submit it, for three tasks and without GPUs."""
    script, submit = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/how-to/slurm-array.md").read_text(), re.DOTALL)
    assert script.count("--array=1-16") == 1
    assert script.count("#SBATCH --gpus=1\n") == submit.count("--gpus=1 ") == 1
    script = script.replace("--array=1-16", f"--array=1-{TASKS}").replace("#SBATCH --gpus=1\n", "")
    return script, submit.replace("--gpus=1 ", "")


def process_of(task: int) -> int:
    """The process of nullbooth that does a shard."""
    wanted = f"{task}/{TASKS}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0") if (folder / "cmdline").exists() else []
        if b"--shard" in words and wanted in words:
            return int(folder.name)
    raise AssertionError(f"no process does shard {task}")


@pytest.mark.timeout(900)  # the queue of a cluster has waits of its own
def test_the_script_of_the_page(tmp_path: Path, cluster: Cluster) -> None:
    """A task that is requeued, one whose time runs out and one that is killed all finish, and the stages that follow run."""
    script, submit = page_blocks()
    folder = tmp_path / "work"
    (folder / "configs").mkdir(parents=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    config = small_config(
        folder / "run.zarr",
        collect__batch_size=4,
        collect__keep="moments",
        schedule__num_denoising_steps=20,
        original_knowledge_prompts=MANY,
    )
    saved(config, folder / "configs/nullbooth.yaml")
    (folder / "collect.sh").write_text(script)
    cluster.environment.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    submitted = cluster.run("bash", "-ec", f"{submit}echo $job", folder=folder)
    following, array = re.findall(r"\d+", submitted)
    tasks = {number: f"{array}_{number}" for number in range(1, TASKS + 1)}
    logs = {number: folder / f"slurm-{task}.out" for number, task in tasks.items()}
    held: dict[int, int] = {}
    wait_for(lambda: all_held(logs, held), 240, lambda: "\n".join(map(read, logs.values())))
    for number, task in tasks.items():
        if number == 1:
            cluster.run("scontrol", "requeue", task)
        elif number == 2:
            cluster.run("scancel", "--batch", "--signal=USR1", task)
            os.kill(held[number], signal.SIGCONT)
        else:
            os.kill(held[number], signal.SIGKILL)
            cluster.await_state(task, "FAILED")
            cluster.run("scontrol", "requeue", task)
    for number, task in tasks.items():
        cluster.await_state(task, "COMPLETED", 300)
        assert "Restarts=1" in cluster.run("scontrol", "show", "job", task), f"task {number} was started twice"
    cluster.await_state(following, "COMPLETED", 300)
    assert set(states_of(config).values()) == {"complete"}
    units = [unit for part in Store.open(config.store).moments.all_partial_sums() for unit in part.units]
    assert sorted(units) == list(range(24)), "each once, whatever stopped its task"


def all_held(logs: dict[int, Path], held: dict[int, int]) -> bool:
    """Stop each process of nullbooth once it is at work, so that none has finished when its turn comes to be ended."""
    for number, log in logs.items():
        if number not in held and re.search("^collect ", read(log), re.MULTILINE):
            held[number] = process_of(number)
            os.kill(held[number], signal.SIGSTOP)
    return held.keys() == logs.keys()


def read(log: Path) -> str:
    """What a job wrote so far."""
    return log.read_text() if log.exists() else ""
