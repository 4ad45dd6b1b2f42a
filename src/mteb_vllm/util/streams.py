"""Standard output and error that never end a run: write errors are ignored, and unencodable characters replaced.

Secrets are masked in everything that is written.

A run takes hours and writes its files even if its output is no longer read. A failure to write to standard output is
reported once, through the exit status.
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
    """A wrapper of a text stream whose writes do not fail; everything else is delegated to the stream.

    After the first error the stream's descriptor is redirected to `os.devnull`, which also discards buffered text and the
    output of child processes.

    Args:
        stream: The stream.

    Attributes:
        error: The first error; None if there was none.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text with secrets masked; characters that the stream cannot encode become `?`."""
        try:
            self._stream.write(mask(text))
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, errors="replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError if it is closed
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write the buffer."""
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


# This process's standard output, kept because other code may wrap it again.
_standard_output: Lenient | None = None


def lenient(stream: TextIO | None) -> TextIO:
    """Return a stream, or `os.devnull` in place of None, wrapped so that writes do not fail."""
    if stream is None:
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open as long as the process
    return stream if isinstance(stream, Lenient) else cast("TextIO", Lenient(stream))


def open_standard_streams() -> None:
    """Replace this process's standard streams by ones that never fail, and open those that were closed by the parent."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file to be opened would get this number, and receive the printed output.
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)
    global _standard_output
    sys.stdout, sys.stderr = lenient(sys.stdout), lenient(sys.stderr)
    _standard_output = cast("Lenient", sys.stdout)


def exit_status(status: int) -> int:
    """Return the exit status of the process, taking into account whether standard output could be written.

    Args:
        status: The exit status of the command itself.

    Returns:
        `status` if everything was written or `status` is not 0; 141, as for a process ended by SIGPIPE, for a closed pipe;
        1 for any other error, which is printed to standard error.
    """
    sys.stdout.flush()
    out = _standard_output
    if out is None or out.error is None:
        return status
    if isinstance(out.error, BrokenPipeError):
        return status or 128 + signal.SIGPIPE
    print(f"Standard output cannot be written to: {getattr(out.error, 'strerror', None) or out.error}", file=sys.stderr)
    return status or 1
