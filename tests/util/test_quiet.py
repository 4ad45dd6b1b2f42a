"""The output of libraries stays off the terminal, except for warnings about a model."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from mteb_vllm.engines import environment
from mteb_vllm.util.quiet import quiet_libraries, warnings_about_models

SCRIPT = """
import os, subprocess, sys, warnings
from pathlib import Path
from mteb_vllm.progress import Progress, terminal
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.quiet import output_into
from mteb_vllm.util.streams import exit_status, open_standard_streams

open_standard_streams()
console = terminal()
with output_into(Path(sys.argv[1]), console), Progress(console, 1) as progress:
    progress.note(Phase.IMPORTING, "Importing mteb")
    print("printed by Python")
    print("a bar of tqdm's", file=sys.stderr)
    os.write(1, b"written by C\\n")
    subprocess.run(["echo", "written by a child"], check=True)
    progress.line("a line of ours")
console.print_line("printed afterwards")
sys.exit(exit_status(0))
"""
LIBRARIES = ["printed by Python", "a bar of tqdm's", "written by C", "written by a child"]


def test_warnings_about_a_model_are_collected_once() -> None:
    with warnings_about_models() as found:
        for _ in range(2):
            logging.getLogger("vllm.config.model").warning("Casting %s\n  to %s.", "bfloat16", "float16")
        logging.getLogger("vllm.config.model").info("not a warning")
        logging.getLogger("vllm.triton_utils.importing").warning("Triton is not installed")
        logging.getLogger("vllm.transformers_utils.config").warning(
            "Unable to determine Sentence Transformers pooling type from %s", "1_Pooling/config.json"
        )
    logging.getLogger("vllm.config.model").warning("afterwards")
    assert found == ["Casting bfloat16 to float16."]


@pytest.mark.parametrize("on_terminal", [True, False])
def test_what_libraries_write_goes_into_the_log(tmp_path: Path, on_terminal: bool) -> None:
    log = tmp_path / "run.log"
    log.touch()
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    with os.fdopen(writer, "wb") as out:
        subprocess.run([sys.executable, "-c", SCRIPT, log], stdout=out, stderr=out, check=True, timeout=60)
    shown = b""
    try:
        while chunk := os.read(reader, 4096):
            shown += chunk
    except OSError:  # Linux: the terminal has no writer any more
        pass
    os.close(reader)
    text = shown.decode()
    assert "Importing mteb" in text and "a line of ours" in text and "printed afterwards" in text
    assert not [line for line in LIBRARIES if line in text]
    assert sorted(log.read_text().splitlines()) == sorted(LIBRARIES)


def test_without_a_log_output_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, tmp_path / "nowhere.log"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "printed by Python" in done.stdout and not list(tmp_path.iterdir())


def test_a_closed_pipe_is_noticed_while_output_goes_into_the_log(tmp_path: Path) -> None:
    (tmp_path / "run.log").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    line = f"set -o pipefail; (sleep 1; {sys.executable} script.py run.log) | true"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


class Busy(BaseHTTPRequestHandler):
    """Answers the first two requests for a path with 503, and later ones with 404."""

    seen: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.seen.append(self.path)
        self.send_response(404 if self.seen.count(self.path) > 2 else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def test_retries_of_the_hub_are_not_shown(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    script = "from mteb_vllm.models.files import find_model\nfind_model('org/name')"
    quiet = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    Busy.seen.clear()
    script = "from huggingface_hub import hf_hub_download\nhf_hub_download('org/name', 'config.json')"
    loud = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    server.shutdown()
    assert "ModelError: " in quiet.stderr and "Retrying in" not in quiet.stderr and "503" not in quiet.stderr
    assert "Retrying in" in loud.stderr, "there was something to hide"


def test_vllm_has_no_handler_of_its_own_when_the_first_engine_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CONFIGURE_LOGGING", raising=False)
    environment.restore_variables()
    environment.apply_variables({"VLLM_LOGGING_PREFIX": "x"})  # a run prepares its engine before it silences libraries,
    with quiet_libraries():
        environment.restore_variables()  # and closes other engines before it opens its own
        assert os.environ["VLLM_CONFIGURE_LOGGING"] == "0" and "VLLM_LOGGING_PREFIX" not in os.environ
    assert "VLLM_CONFIGURE_LOGGING" not in os.environ
