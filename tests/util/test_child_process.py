"""Child processes: messages, and that nothing of a child is left, whatever ends it or its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from mteb_vllm.util import child_process
from mteb_vllm.util.child_process import ChildProcess

START = """
import json, signal, subprocess, sys, time
sys.path[:], orders, lifeline = json.loads(sys.argv[1])
from multiprocessing.shared_memory import SharedMemory
from mteb_vllm.util.child_process import connect

pipe = connect(orders, lifeline)
"""

# Holds shared memory, as does a process of its own, until it is killed.
HOLDING = f"""{START}
memory = SharedMemory(create=True, size=1)
attach = '\\n'.join([
    "import sys, time", "from multiprocessing.shared_memory import SharedMemory", "memory = SharedMemory(sys.argv[1])",
    "print(flush=True)", "time.sleep(600)",
])
other = subprocess.Popen([sys.executable, "-c", attach, memory.name], stdout=subprocess.PIPE)
other.stdout.readline()
pipe.send((memory.name, other.pid))
time.sleep(600)
"""

# Counts what it gets, and does not end on SIGTERM.
STUBBORN = f"""{START}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    pipe.send(len(pipe.recv()))
"""

Child = ChildProcess[object, tuple[str, int]]


def holding(folder: Path) -> tuple[Child, Path, int]:
    """Start a child that holds shared memory; return it with the memory's file and the id of its own child."""
    child = Child(HOLDING, folder / "log.txt", os.environ)
    deadline = time.monotonic() + 60
    while (found := child.receive(0.1)) is None:
        assert time.monotonic() < deadline
    return child, Path("/dev/shm", found[0]), found[1]


def is_gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="NOT TESTED: shared memory, which has no folder here")
@pytest.mark.parametrize("killed", ["by its parent", "by another process"])
def test_a_killed_child_leaves_no_process_and_no_shared_memory(killed: str, tmp_path: Path) -> None:
    child, memory, other = holding(tmp_path)
    assert memory.exists() and not is_gone(other, 0.1)
    if killed == "by its parent":
        assert child.kill() == -signal.SIGKILL
    else:
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(EOFError):
            while True:
                child.receive(0.1)
        assert child.reap() == -signal.SIGKILL
    assert is_gone(child.pid) and is_gone(other) and not memory.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="NOT TESTED: shared memory, which has no folder here")
def test_a_killed_parent_leaves_no_process_and_no_shared_memory(tmp_path: Path) -> None:
    code = f"""
        import sys, time
        from pathlib import Path
        sys.path[:] = {sys.path!r}
        import test_child_process

        child, memory, other = test_child_process.holding(Path({str(tmp_path)!r}))
        print(child.pid, other, memory, flush=True)
        time.sleep(600)
    """
    path = [str(Path(__file__).parent), *sys.path]
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        *pids, memory = parent.stdout.readline().split()
        assert Path(os.fsdecode(memory)).exists()
        parent.kill()
    assert all(is_gone(int(pid)) for pid in pids) and not Path(os.fsdecode(memory)).exists()


def test_messages_of_any_size_pass_and_a_child_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "_END_WITHIN", 0.5)
    child: ChildProcess[bytes, int] = ChildProcess(STUBBORN, tmp_path / "log.txt", os.environ)
    for size in (1, 1 << 22):
        child.send(bytes(size))
        while (answer := child.receive(0.1)) is None:
            pass
        assert answer == size
    assert child.receive(0.0) is None
    child.end()
    assert is_gone(child.pid, 0.1)
    child.send(b"")  # to a child that has ended: no error
    with pytest.raises((EOFError, OSError)):
        child.receive(0.0)
