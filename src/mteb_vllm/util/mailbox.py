"""Messages between processes that share nothing but a folder: each is appended to a file, and read from there.

Made for network file systems: a writer closes the file after each message, and a reader opens it each time, since only then
a file's size and content are those that another machine has written (close-to-open consistency, nfs(5)).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import threading
import zlib
from pathlib import Path
from typing import Generic, TypeVar

Message = TypeVar("Message")

# Length and checksum of a message.
_HEAD = struct.Struct(">QI")


class Outbox(Generic[Message]):
    """The end of a mailbox that messages are written to, by one process.

    Args:
        path: The file; only its owner can read it, since messages may hold secrets.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))

    def send(self, message: Message) -> None:
        """Append a message.

        Raises:
            OSError: if it cannot be written.
        """
        content = pickle.dumps(message)
        left = memoryview(_HEAD.pack(len(content), zlib.crc32(content)) + content)
        with self._lock, self._path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                # The reader would wait forever for the rest of this message.
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise


class Inbox(Generic[Message]):
    """The end of a mailbox that messages are read from.

    Args:
        path: The file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def receive(self) -> Message | None:
        """Return the next message; None if there is none, or not all of it has arrived."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    return None
                length, checksum = _HEAD.unpack(head)
                content = file.read(length)
        except OSError:  # it does not exist yet, or the file system is not reachable at the moment
            return None
        if len(content) < length or zlib.crc32(content) != checksum:
            return None
        self._at += _HEAD.size + length
        message: Message = pickle.loads(content)
        return message
