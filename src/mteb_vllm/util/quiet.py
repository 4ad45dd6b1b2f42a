"""What libraries print, out of the way: off, or into a run's log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mteb_vllm.util import disk


class LogFile(logging.FileHandler):
    """A log file whose disk may be full: what cannot be written is lost, and shown nowhere else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Show no traceback where it is the disk's fault."""
        error = sys.exc_info()[1]
        if error is None or disk.cause(error) is None:
            super().handleError(record)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lets other libraries' bars and logs not fight with ours on the terminal."""
    import tqdm  # noqa: F401 - reads its variables once: bars of whoever called us must not be off for good

    # vLLM's log goes where everything else is logged.
    quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "true", "VLLM_CONFIGURE_LOGGING": "0"}
    added = {key: value for key, value in quiet.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


# Where vLLM writes of a model's files and weights; its other warnings are of the machine, and in the log.
_OF_MODELS = (
    "vllm.config.model", "vllm.config.pooler", "vllm.transformers_utils", "vllm.tokenizers", "vllm.renderers",
    "vllm.model_executor.models", "vllm.model_executor.model_loader", "vllm.model_executor.layers.pooler",
)  # fmt: skip


# What it does not find in a model's files, it is told.
_SETTLED = "Unable to determine Sentence Transformers pooling type"


@contextlib.contextmanager
def warnings_about_models() -> Iterator[list[str]]:
    """Collect what vLLM warns of while a model is loaded in this process, each warning once."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if record.name.startswith(_OF_MODELS) and text not in found and not text.startswith(_SETTLED):
                found.append(text)

    collector, vllm = Collector(logging.WARNING), logging.getLogger("vllm")
    vllm.addHandler(collector)
    try:
        yield found
    finally:
        vllm.removeHandler(collector)


@contextlib.contextmanager
def errors_into(log: Path) -> Iterator[None]:
    """Lets what libraries, compiled ones too, write on standard error go into the log, if there is one."""
    try:
        # Without O_CREAT: only if there is one.
        file = os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND), "ab")
    except OSError:
        yield
        return
    logging.captureWarnings(True)
    sys.stderr.flush()
    before = os.dup(2)
    with file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        logging.captureWarnings(False)
