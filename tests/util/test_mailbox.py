"""Messages through files: in order, whole, and only for their owner."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mteb_vllm.util.mailbox import Inbox, Outbox


def test_messages_arrive_in_order_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events"
    inbox: Inbox[object] = Inbox(path)
    assert inbox.receive() is None, "there is no file yet"
    outbox: Outbox[object] = Outbox(path)
    assert inbox.receive() is None
    outbox.send({"a": 1})
    outbox.send([2] * 100_000)
    assert inbox.receive() == {"a": 1} and inbox.receive() == [2] * 100_000 and inbox.receive() is None
    outbox.send(None)
    outbox.send("last")
    assert inbox.receive() is None and inbox.receive() == "last"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_message_counts_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "events"
    Outbox[object](whole).send("a text" * 100)
    content = whole.read_bytes()
    inbox: Inbox[object] = Inbox(path)
    for length in (0, 5, 12, 40, len(content) - 1):
        path.write_bytes(content[:length])
        assert inbox.receive() is None
    # A network file system may show the length of a file before its content.
    path.write_bytes(content[:40] + bytes(len(content) - 40))
    assert inbox.receive() is None
    path.write_bytes(content)
    assert inbox.receive() == "a text" * 100


def test_processes_exchange_messages(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mteb_vllm.util.mailbox import Outbox\n"
        "outbox = Outbox(Path(sys.argv[1]))\n"
        "for number in range(200): outbox.send((number, 'x' * number))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "events")], env=env)
    inbox: Inbox[tuple[int, str]] = Inbox(tmp_path / "events")
    found: list[tuple[int, str]] = []
    while len(found) < 200:
        ended = writer.poll() is not None
        if (message := inbox.receive()) is not None:
            found.append(message)
        else:
            assert not ended, "the writer ended before all messages came"
    assert found == [(number, "x" * number) for number in range(200)] and writer.wait() == 0


def test_a_message_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages after it would never be read."""
    path = tmp_path / "events"
    outbox: Outbox[str] = Outbox(path)
    outbox.send("first")
    size = path.stat().st_size
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        outbox.send("lost")
    assert path.stat().st_size == size
    monkeypatch.undo()
    outbox.send("second")
    inbox: Inbox[str] = Inbox(path)
    assert [inbox.receive() for _ in range(3)] == ["first", "second", None]
