"""Standard output and error that never end a run: closed or full ones are given up, unknown characters are replaced.

Secrets are masked in what is written to them.

A run goes on for hours and writes its files, whoever has stopped reading what it prints. What became of standard output is
said once, by the exit status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TextIO, cast

from mteb_vllm.util.masking import mask


class Lenient:
    """A text stream whose writes do not fail; all else is the stream's own.

    After the first error the stream's descriptor leads to `os.devnull`, so that what is still buffered, and what child
    processes write to the same place, goes there as well.

    Args:
        stream: The stream.

    Attributes:
        error: The first error; None where all was written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text, secrets masked, as far as the stream takes it; characters outside its encoding become `?`."""
        try:
            self._stream.write(mask(text))
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, errors="replace").decode(encoding))
        except (OSError, ValueError) as error:  # a ValueError where it is closed
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        self.error = self.error or error
        with contextlib.suppress(OSError, ValueError):  # not every stream has a descriptor
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


# This process's standard output, which others may wrap again.
_standard_output: Lenient | None = None


def lenient(stream: TextIO | None) -> TextIO:
    """Return a stream whose writes do not fail: the stream itself, or `os.devnull` where there is none."""
    if stream is None:
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long-lived as what it stands for
    return stream if isinstance(stream, Lenient) else cast("TextIO", Lenient(stream))


def open_standard_streams() -> None:
    """Make this process's standard streams usable for good, those that whoever started it has closed included."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file that anything opens would get the number, and what is printed would end up in it.
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)
    global _standard_output
    sys.stdout, sys.stderr = lenient(sys.stdout), lenient(sys.stderr)
    _standard_output = cast("Lenient", sys.stdout)


def exit_status(status: int) -> int:
    """Return the exit status of the process, which also says that standard output could not be written to.

    Args:
        status: What it would be otherwise.

    Returns:
        `status` where all was written or there was a failure anyway; 141 for a pipe that nobody reads, as of a process that
        SIGPIPE has ended; 1 for anything else, which is said on standard error.
    """
    sys.stdout.flush()
    out = _standard_output
    if out is None or out.error is None:
        return status
    if isinstance(out.error, BrokenPipeError):
        return status or 128 + signal.SIGPIPE
    print(f"Standard output cannot be written to: {getattr(out.error, 'strerror', None) or out.error}", file=sys.stderr)
    return status or 1
