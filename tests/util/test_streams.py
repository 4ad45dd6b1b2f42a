"""Standard output that is closed, full or cannot encode all characters: the run goes on without a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mteb_vllm.util.console import Console
from mteb_vllm.util.streams import Lenient, lenient

COMMAND = f"{sys.executable} -m mteb_vllm"


def shell(text: str, cwd: Path) -> tuple[int, str, str]:
    """Run a line of bash; return the exit status of the last failed command, standard output and standard error."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    # `true` ends before anything is written, and the output fits into one buffer, so only the flush fails.
    status, out, err = shell(f"(sleep 1; {COMMAND} --help) | true", tmp_path)
    assert (status, out, err) == (141, "", "")


@pytest.mark.parametrize(
    ("redirection", "status", "err"),
    [
        (">/dev/full", 1, "Standard output cannot be written to: No space left on device\n"),
        (">/dev/full 2>&1", 1, ""),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_full_and_closed_standard_output(redirection: str, status: int, err: str, tmp_path: Path) -> None:
    assert shell(f"{COMMAND} --help {redirection}", tmp_path) == (status, "", err)


def test_a_configuration_error_keeps_its_exit_status(tmp_path: Path) -> None:
    assert shell(f"{COMMAND} --config-name x >/dev/full", tmp_path)[0] == 2


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os\nfrom mteb_vllm.util.streams import open_standard_streams\nopen_standard_streams()\n"
        "file = open('opened', 'w')\nprint('printed')\nos.write(1, b'printed')\nfile.write(str(file.fileno()))\n"
    )
    assert shell(f"{sys.executable} script.py >&- 2>&-", tmp_path)[0] == 0
    assert int((tmp_path / "opened").read_text()) > 2


def test_unencodable_characters_are_replaced() -> None:
    raw = io.BytesIO()
    out = lenient(io.TextIOWrapper(raw, encoding="ascii"))
    Console(file=out, width=40).print("org/日本 x")
    assert raw.getvalue() == b"org/?? x\n"
    utf8 = lenient(io.TextIOWrapper(raw, encoding="utf-8"))
    utf8.write("a file's name \udcff")  # bytes that are not valid UTF-8
    utf8.flush()
    assert raw.getvalue().endswith(b"a file's name ?") and utf8.error is None  # type: ignore[attr-defined]


def test_after_an_error_writes_succeed_and_the_first_error_is_kept() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = Lenient(os.fdopen(writer, "w"))
    console = Console(file=stream, width=40)  # type: ignore[arg-type]
    console.print("lost")
    assert isinstance(stream.error, BrokenPipeError)
    console.print("as well")
    assert os.path.samestat(os.fstat(writer), Path(os.devnull).stat())
    stream.close()
    stream.write("closed by somebody")
    assert isinstance(stream.error, BrokenPipeError)


def test_a_stream_is_wrapped_only_once_and_none_becomes_devnull() -> None:
    once = lenient(sys.stdout)
    assert lenient(once) is once and once.encoding == sys.stdout.encoding
    assert lenient(None).write("nowhere") == 7
