"""A real SLURM of one node on this machine, from the installed daemons; it listens on loopback only.

It needs root, because SLURM's daemons do. There is no accounting, as on many small clusters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")


def missing() -> str | None:
    """Return why no SLURM can be started here; None if one can, or if `SLURM_CONF` names one."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if os.environ.get("SLURM_CONF"):
        return None
    return f"{absent[0]} is not installed" if absent else None if os.geteuid() == 0 else "its daemons need root"


@contextlib.contextmanager
def single_node(folder: Path) -> Iterator[None]:
    """Run a SLURM inside the block, which `SLURM_CONF` names; if it already names one, use that.

    Args:
        folder: A new folder for its state.
    """
    if os.environ.get("SLURM_CONF"):
        yield
        return
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(_configuration(folder))
    os.environ["SLURM_CONF"] = str(config)
    munge = [
        "munged", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
        f"--log-file={folder}/munge.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    try:
        for command in (munge, ["slurmctld", "-f", str(config)], ["slurmd", "-f", str(config)]):
            subprocess.run(command, check=True, env={**os.environ, "PATH": _path()}, capture_output=True)
        _wait(lambda: "idle" in _output("sinfo", "--noheader", "--format=%t"))
        yield
    finally:
        for state in ("PENDING", "RUNNING"):
            subprocess.run(["scancel", "--user=root", f"--state={state}"], check=False, capture_output=True)
        with contextlib.suppress(TimeoutError):
            _wait(lambda: not _output("squeue", "--noheader"))
        for name in ("slurmd", "slurmctld", "munged"):
            _end(folder / f"{name}.pid")
        del os.environ["SLURM_CONF"]


def _configuration(folder: Path) -> str:
    host = socket.gethostname().partition(".")[0]
    memory = psutil.virtual_memory().total // 2**20 * 8 // 10
    return f"""
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
KillWait=5
OverTimeLimit=0
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _path() -> str:
    """Return the search path with the folders of daemons, which an ordinary shell does not search."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


def _end(pid_file: Path) -> None:
    """End a daemon by its file, by force if need be."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        daemon = psutil.Process(int(pid_file.read_text()))
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except psutil.TimeoutExpired:
            daemon.kill()
