"""Locks of a results store: one holder at a time, none after its death, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mteb_vllm.errors import LockError
from mteb_vllm.results.failures import Failure, load_failures, save_failures
from mteb_vllm.results.locks import BusyError, clear, lock, staging

HOLD = """
import sys, time
from pathlib import Path
from mteb_vllm.results.locks import lock, staging
with lock(Path(sys.argv[1]), "settings_x.STS12"), staging(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half a")
    print("held", flush=True)
    time.sleep(1000)
"""
COUNT = """
import sys
from pathlib import Path
from mteb_vllm.results.locks import clear, lock
root, counter = Path(sys.argv[1]), Path(sys.argv[1], "counter")
for _ in range(200):
    with lock(root, "counter"):
        counter.write_text(str(int(counter.read_text()) + 1))
    clear(root)
"""


def started(script: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)


def test_a_lock_has_one_holder_at_a_time_while_lock_files_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [started(COUNT, tmp_path) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "800"
    assert not any((tmp_path / ".locks").iterdir())


def test_a_killed_holder_releases_its_lock_and_its_leftovers_are_removed(tmp_path: Path) -> None:
    holder = started(HOLD, tmp_path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError), lock(tmp_path, "settings_x.STS12", wait=False):
        pass
    clear(tmp_path)
    assert len(list(tmp_path.glob(".writing-*/half"))) == 1, "a folder in use is kept"
    assert len(list((tmp_path / ".locks").iterdir())) == 2
    holder.kill()
    holder.wait()
    started_at = time.perf_counter()
    with lock(tmp_path, "settings_x.STS12"):
        assert time.perf_counter() - started_at < 5, "acquired immediately"
        clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"] and not any((tmp_path / ".locks").iterdir())


def test_a_staging_folder_is_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staging(tmp_path) as folder:
        (folder / "x").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.glob(".writing-*")) and not any((tmp_path / ".locks").iterdir())


def test_an_obstacle_to_a_lock_file_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("a file")
    with lock(tmp_path, "x"):
        pass
    (tmp_path / ".locks" / "x.lock" / "y").mkdir(parents=True)
    with lock(tmp_path, "x"):
        assert (tmp_path / ".locks" / "x.lock.broken" / "y").is_dir()
    assert (tmp_path / ".locks.broken").read_text() == "a file"


def test_a_store_that_cannot_be_locked_raises_but_can_be_read(tmp_path: Path) -> None:
    (tmp_path / ".locks").symlink_to(tmp_path / "missing")  # even root cannot write through a broken link
    (tmp_path / ".writing-x").mkdir()
    with pytest.raises(LockError, match=r"the results store .* cannot be locked: .*\.locks"), lock(tmp_path, "x"):
        pass
    clear(tmp_path)
    save_failures(tmp_path, "abc", {}, [Failure("task", "x", "STS12")], [])
    save_failures(tmp_path, "abc", {}, [], ["STS12"])
    assert load_failures(tmp_path, "abc", {}) == {}


def test_a_lock_file_that_cannot_be_removed_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    with lock(tmp_path, "x"):
        pass
    with lock(tmp_path, "x", wait=False):
        pass
