"""A SLURM cluster of one node on this machine, for the time of a test: daemons of its own, in a folder of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
# Credentials that expire at once: SLURM starts a requeued job again only after those of its first start have expired.
CONFIG = """
ClusterName=nullbooth
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` is what SLURM's commands need to find it."""

    environment: dict[str, str]

    def run(self, *command: str, folder: Path | None = None) -> str:
        """The output of a command, which must succeed."""
        done = subprocess.run(command, env=self.environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job or of a task of an array, such as PENDING."""
        described = self.run("scontrol", "--oneliner", "show", "job", job)
        return described.partition("JobState=")[2].split()[0]

    def await_state(self, job: str, wanted: str, seconds: float = 240) -> None:
        """Wait until a job is in a state."""
        wait_for(lambda: self.state(job) == wanted, seconds, lambda: self.run("scontrol", "show", "job", job))


def wait_for(is_so: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    """Wait for something, or fail with an explanation."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in a folder, and stop it whatever happens. Skips the test where SLURM cannot run, with the reason."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"SLURM is not installed (slurm-wlm, munge): no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("the daemons of SLURM need root")
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=_free_ports(2)))
    cluster = Cluster({**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file", "seed-file")]
    with ExitStack() as stack:
        _start(stack, folder, ["munged", "--foreground", "--force", *munge, f"--log-file={folder}/munged.log"])
        wait_for(lambda: (folder / "munge.socket").exists(), 120, lambda: _logs(folder))
        _start(stack, folder, ["slurmctld", "-D", "-f", f"{folder}/slurm.conf"])
        _start(stack, folder, ["slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N", host])
        wait_for(lambda: _is_up(cluster), 120, lambda: _logs(folder))
        stack.callback(_cancel_all, cluster)
        yield cluster


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def _start(stack: ExitStack, folder: Path, command: list[str]) -> None:
    """Start a daemon that ends with the stack."""
    output = stack.enter_context((folder / f"{command[0]}.out").open("w"))
    daemon = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def stop() -> None:
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    stack.callback(stop)


def _is_up(cluster: Cluster) -> bool:
    shown = subprocess.run(["sinfo", "-h", "-o", "%t"], env=cluster.environment, capture_output=True, text=True, check=False)
    return shown.stdout.strip() == "idle"


def _cancel_all(cluster: Cluster) -> None:
    subprocess.run(["scancel", "--me"], env=cluster.environment, capture_output=True, timeout=30, check=False)
    wait_for(lambda: not cluster.run("squeue", "-h"), 30, lambda: cluster.run("squeue"))


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.out")))
