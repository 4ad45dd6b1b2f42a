"""Keep the output of other libraries off the terminal: it is switched off, or goes into the run's log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from mteb_vllm.util import disk
from mteb_vllm.util.console import Console
from mteb_vllm.util.streams import Lenient


class LogFile(logging.FileHandler):
    """A log file on a disk that may be full: lines that cannot be written are dropped without a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report an error as `logging` does, unless the disk is the cause."""
        error = sys.exc_info()[1]
        if error is None or disk.cause(error) is None:
            super().handleError(record)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switch off other libraries' progress bars, and leave their log records to the handlers of the run."""
    import tqdm  # noqa: F401 - reads its variables at import only, and the caller's own bars must not be off for good

    # Without its own handler, vLLM's records reach the run's log.
    quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "true", "VLLM_CONFIGURE_LOGGING": "0"}
    added = {key: value for key, value in quiet.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Switch off the progress bars of huggingface_hub and its messages about retries; errors are raised all the same."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


# vLLM's loggers whose warnings are about a model's files and weights; its other warnings are about the machine.
_MODEL_LOGGERS = (
    "vllm.config.model", "vllm.config.pooler", "vllm.transformers_utils", "vllm.tokenizers", "vllm.renderers",
    "vllm.model_executor.models", "vllm.model_executor.model_loader", "vllm.model_executor.layers.pooler",
)  # fmt: skip


# vLLM is given the pooling that it does not find in the model's files.
_RESOLVED = "Unable to determine Sentence Transformers pooling type"


@contextlib.contextmanager
def warnings_about_models() -> Iterator[list[str]]:
    """Collect vLLM's warnings about a model while it is loaded in this process, each once."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if record.name.startswith(_MODEL_LOGGERS) and text not in found and not text.startswith(_RESOLVED):
                found.append(text)

    collector, vllm = Collector(logging.WARNING), logging.getLogger("vllm")
    vllm.addHandler(collector)
    try:
        yield found
    finally:
        vllm.removeHandler(collector)


@contextlib.contextmanager
def output_into(log: Path, console: Console) -> Iterator[None]:
    """Send the process's standard output and error into a log, if it exists; a console keeps its terminal.

    The file descriptors are redirected, so that output of compiled libraries and of child processes is included.

    Args:
        log: The log; is not created.
        console: The console that shows the run.
    """
    try:
        # Without O_CREAT: only an existing log is written to.
        file = os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND), "ab")
    except OSError:
        yield
        return
    logging.captureWarnings(True)
    try:
        with file, _own_descriptor(console), _redirected(1, file), _redirected(2, file):
            yield
    finally:
        logging.captureWarnings(False)


@contextlib.contextmanager
def _own_descriptor(console: Console) -> Iterator[None]:
    """Let a console that writes to standard output write to a duplicate of its descriptor."""
    shared = cast("TextIO", console.file)
    try:
        number = shared.fileno()
    except (OSError, ValueError):  # not every stream has a descriptor
        number = -1
    if number != 1:
        yield
        return
    shared.flush()
    with os.fdopen(os.dup(1), "w", encoding=shared.encoding, errors=shared.errors) as own:
        stream = Lenient(cast("TextIO", own))
        console.file = cast("TextIO", stream)
        try:
            yield
        finally:
            console.file = shared
            stream.flush()
            # The exit status is decided by the errors of the shared stream.
            if isinstance(shared, Lenient) and shared.error is None:
                shared.error = stream.error


@contextlib.contextmanager
def _redirected(descriptor: int, file: BinaryIO) -> Iterator[None]:
    """Redirect a standard stream's descriptor to a file."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    stream.flush()
    before = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(before, descriptor)
        os.close(before)
