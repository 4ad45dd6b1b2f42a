"""Typed failures of points and tasks: a kind, a message, the last lines of the log, and advice.

Failures are also stored with the results, so that a later run can report and skip earlier failures:

    <root>/failures/<hash of the settings, and of splits and subsets if some are selected>.json
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from mteb_vllm.errors import (
    DATA_ADVICE,
    DataError,
    EngineError,
    EngineStartError,
    FirstStageError,
    JobError,
    MissingPackageError,
    ModelError,
    MtebVllmError,
    NonFiniteError,
    PartialResultError,
    StorageError,
)
from mteb_vllm.results.digests import read_note, write_note
from mteb_vllm.results.locks import lock
from mteb_vllm.util import disk
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.masking import mask
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.plain import Json

Kind = Literal[
    "out_of_memory_loading",  # memory was, or would have been, exhausted while the engine opened
    "out_of_memory_encoding",  # memory was exhausted while encoding or scoring
    "engine_start",  # the engine did not open for another reason
    "engine_died",  # vLLM's engine core ended, or returned invalid output
    "segmentation_fault",
    "crash",  # the process ended in another way
    "killed",  # by a signal from outside, such as the kernel's when memory runs out
    "time_limit",  # a batch job reached its time limit
    "cancelled",  # a batch job was cancelled
    "node_down",  # the node of a batch job failed
    "not_submitted",  # a batch job could not be submitted
    "timeout",  # longer than hydra.launcher.point_timeout
    "disk",  # a disk is full, or a folder is not writable
    "data",  # a task's data cannot be loaded
    "task",  # an exception in a task
    "first_stage",  # a first stage's predictions cannot be read or computed
    "not_finite",  # NaN or Inf
    "model",  # the model cannot be found or loaded
    "missing_package",
    "damaged",  # a stored file is damaged or unreadable
    "interrupted",  # Ctrl-C or SIGTERM
    "error",  # anything else: a bug
]

# How kinds are shown to people; the others by their own words.
_LABELS: dict[Kind, str] = {
    "out_of_memory_loading": "out of memory while loading",
    "out_of_memory_encoding": "out of memory while encoding or scoring",
    "engine_start": "engine did not start",
    "disk": "disk error",
    "data": "data error",
    "task": "task error",
    "first_stage": "first-stage error",
    "not_finite": "NaN or Inf",
    "model": "model error",
    "damaged": "damaged file",
}

# Failures after which the engine and its process can no longer be trusted.
FATAL: tuple[Kind, ...] = (
    "out_of_memory_loading", "out_of_memory_encoding", "engine_start", "engine_died", "segmentation_fault", "crash",
    "killed", "timeout", "time_limit", "cancelled", "node_down",
)  # fmt: skip

_ADVICE: dict[Kind, str] = {
    "out_of_memory_loading": "lower engine.gpu_memory_utilization or engine.max_model_len, or use a smaller dtype",
    "out_of_memory_encoding": "lower engine.max_num_batched_tokens or engine.max_num_seqs, or use a smaller dtype",
    "engine_start": "see the log for details; set engine.enforce_eager=true to rule out compilation",
    "engine_died": "see the log for the reason; if it shows none, memory may have run out: lower engine.max_num_seqs",
    "segmentation_fault": "see the log for the stack trace; set engine.enforce_eager=true to rule out compiled code",
    "crash": "see the log for the stack trace",
    "killed": "memory probably ran out, and the kernel killed the process (check dmesg): lower engine.max_num_seqs or "
    "engine.max_num_batched_tokens, or use a smaller dtype",
    "timeout": "see the log for the stack trace; allow more time with hydra.launcher.point_timeout, in seconds",
    "time_limit": "allow more time with hydra.launcher.time, in minutes; the same command computes only what is missing",
    "cancelled": "repeat the command, which computes only what is missing",
    "node_down": "repeat the command, which computes only what is missing; if the same node fails again, leave it out: "
    "+hydra.launcher.additional_parameters.exclude=NAME",
    "not_submitted": "correct hydra.launcher, or wait until the queue accepts jobs, and repeat the command",
    "disk": "free space on that disk or fix the folder's permissions, or choose another folder with results.dir=...; then "
    "run the same command again, which computes only what is missing",
    "data": DATA_ADVICE,
    "task": "see the log for the traceback",
    "not_finite": "use another dtype: float16 overflows in models that were trained in bfloat16",
    "damaged": "run it again, or leave it out of the report",
    "error": "this may be a bug: please report it with the log",
}

_MEMORY = re.compile(
    r"out of memory|can(?:no|')t allocate memory|bad_alloc|unable to allocate|failed to allocate|not enough memory|"
    r"memoryerror|available memory on node.* less than|free memory on device.* less than|"
    r"no available memory for the cache|larger than the available kv cache memory|"
    # oneDNN's only message when there is no memory for its code.
    r"could not create a primitive(?! descriptor)",
    re.IGNORECASE,
)

# Failures that have nothing to do with the settings, and are not stored.
_TRANSIENT: tuple[Kind, ...] = ("interrupted", "disk", "cancelled", "node_down", "not_submitted")

LOG_LINES = 20

# Exit status of a sweep's child process when a process of its engine has died unnoticed by vLLM (sysexits.h: EX_SOFTWARE).
ENGINE_DIED = 70


@dataclass(frozen=True)
class Failure:
    """One failure.

    Attributes:
        kind: Its kind.
        message: The error, in one or a few lines.
        task: The task in which it happened; None if outside of any task.
        log: The last lines of the log.
        advice: A suggested remedy.
        tried: Whether it happened in this run; false if it comes from an earlier run or another point.
        phase: The phase in which a process ended or timed out; None for an exception.
    """

    kind: Kind
    message: str
    task: str | None = None
    log: Sequence[str] = field(default_factory=list)
    advice: str = ""
    tried: bool = True
    phase: Phase | None = None

    def __post_init__(self) -> None:
        if self.phase is not None:
            object.__setattr__(self, "phase", Phase(self.phase))  # a string when read from a file
        # Messages and logs of libraries may contain secrets.
        object.__setattr__(self, "message", mask(self.message))
        object.__setattr__(self, "log", [mask(line) for line in self.log])

    @property
    def label(self) -> str:
        """Its kind in words, e.g. "data error"."""
        return _LABELS.get(self.kind, self.kind.replace("_", " "))

    def __str__(self) -> str:
        at = f" in {self.task}" if self.task else ""
        return f"{self.label}{at}: {self.message}"


def failure_from_exception(error: BaseException, task: str | None = None) -> Failure:
    """Return the failure for an exception.

    Args:
        error: The exception; its causes are considered as well.
        task: The current task.
    """
    cause = error
    while isinstance(cause, (FirstStageError, PartialResultError)) and cause.__cause__ is not None:
        cause = cause.__cause__
    words = [f"{type(one).__name__}: {one}" for one in error_chain(error)]
    kind: Kind
    if any(isinstance(one, MemoryError) for one in error_chain(error)) or any(map(_MEMORY.search, words)):
        kind = "out_of_memory_loading" if isinstance(cause, EngineStartError) else "out_of_memory_encoding"
    else:
        other: Kind = "disk" if disk.cause(error) is not None else "task" if task else "error"
        kind = next((kind for cls, kind in _KINDS if isinstance(cause, cls)), other)
    message = str(error) if isinstance(error, MtebVllmError) else one_line_message(error)
    if kind == "disk" and not isinstance(error, MtebVllmError):
        found = disk.cause(error)
        at = f"{found.filename}: " if found is not None and found.filename else ""
        message = f"{at}{disk.reason(error)}"
    advice = cause.advice if isinstance(cause, DataError) else _ADVICE.get(kind, "")
    # Some of our own errors already contain advice.
    return Failure(kind, message, task, [], "" if isinstance(cause, EngineStartError) and cause.advises else advice)


def is_fatal(error: BaseException) -> bool:
    """Whether an error ends the whole task, because its remaining subsets need the same engine or model."""
    return failure_from_exception(error).kind in (*FATAL, "model", "missing_package", "disk")


def failures_from_unwritten(unwritten: Sequence[tuple[Path, BaseException]]) -> list[Failure]:
    """Return one failure per reason for which files could not be written, naming the files and their common folder."""
    alike: dict[str, dict[Path, None]] = {}
    for path, error in unwritten:
        alike.setdefault(disk.reason(error), {})[path.absolute()] = None
    failures = []
    for reason, paths in alike.items():
        folder = os.path.commonpath([path.parent for path in paths])
        names = ", ".join(dict.fromkeys(path.name for path in paths))
        failures.append(Failure("disk", f"{folder}: {reason} ({names})", advice=_ADVICE["disk"]))
    return failures


def add_log(failure: Failure, lines: Sequence[str]) -> Failure:
    """Return a failure with the last lines of its log.

    An engine failure becomes an out-of-memory failure if the log shows one: an engine core in a separate process reports its
    reason only there.
    """
    kind = failure.kind
    if kind in ("engine_start", "engine_died") and any(map(_MEMORY.search, lines)):
        kind = "out_of_memory_loading" if kind == "engine_start" else "out_of_memory_encoding"
        return replace(failure, kind=kind, log=list(lines), advice=_ADVICE[kind])
    return replace(failure, log=list(lines))


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        status: Its exit status as in `subprocess`: if negative, the signal that ended it.
        kind: The kind of the failure, if a batch system knows it; "out_of_memory_encoding" in any phase.
        how: The same in words.
    """

    status: int
    kind: Kind | None = None
    how: str = ""


def failure_from_exit(
    ending: Ending, phase: Phase, doing: str, log: Sequence[str] = (), task: str | None = None
) -> Failure:
    """Return the failure for a process that ended.

    Args:
        ending: How it ended.
        phase: Its phase at the time.
        doing: The same in words, e.g. "opening vLLM".
        log: The last lines of its log.
        task: The current task.
    """
    kind = ending.kind or _kind_of_exit(ending.status, log)
    if kind == "out_of_memory_encoding" and phase in (Phase.STARTING, Phase.IMPORTING, Phase.OPENING_ENGINE):
        kind = "out_of_memory_loading"
    died = "an engine process had died" if kind == "engine_died" else describe_exit(ending.status)
    message = f"the process ended ({ending.how or died}) while {doing}"
    return Failure(kind, message, task, list(log), _ADVICE[kind], phase=phase)


def _kind_of_exit(status: int, log: Sequence[str]) -> Kind:
    if status == ENGINE_DIED:
        return "engine_died"
    if status == -signal.SIGABRT and any(map(_MEMORY.search, log)):
        return "out_of_memory_encoding"
    if status in (-signal.SIGSEGV, -signal.SIGBUS):
        return "segmentation_fault"
    return "killed" if status in (-signal.SIGKILL, -signal.SIGTERM) else "crash"


def describe_exit(status: int) -> str:
    """Return an exit status as in `subprocess` in words: `SIGKILL` or `exit status 1`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # a real-time signal
        return f"signal {-status}"


def failure_from_timeout(
    seconds: float, phase: Phase, doing: str, log: Sequence[str] = (), task: str | None = None
) -> Failure:
    """Return the failure of a point that took longer than `seconds`; for the other arguments see `failure_from_exit`."""
    message = f"timed out after {seconds:g} s while {doing}"
    return Failure("timeout", message, task, list(log), _ADVICE["timeout"], phase=phase)


def one_line_message(error: BaseException) -> str:
    """Return an error's type and the first line of its message, with a hint if the cause is the Hub's offline mode."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    offline = "OfflineModeIsEnabled" in kind or any(
        "HF_HUB_OFFLINE" in line or "offline mode" in line.lower() for line in lines
    )
    text = f"{kind}: {lines[0]}" if lines else kind
    hint = " (HF_HUB_OFFLINE is set: unset it, or download the data first on a machine with network access)"
    return text + (hint if offline else "")


def failure_from_damage(why: str, task: str | None = None) -> Failure:
    """Return the failure for a file that a report cannot read, or that is damaged.

    Args:
        why: The problem, including its path.
        task: The task whose result it is; None for a whole run or folder.
    """
    return Failure("damaged", why, task, [], _ADVICE["damaged"])


def last_lines(log: Path, n: int = LOG_LINES, *, since: int = 0) -> list[str]:
    """Return the last non-empty lines of a log.

    Args:
        log: The file; if it does not exist, there are no lines.
        n: The maximum number of lines.
        since: The byte offset from which lines count.
    """
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(since, file.tell() - 400 * n))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line[:400] for line in lines if line.strip()][-n:]


def last_stack(log: Path) -> list[str]:
    """Return the stack that faulthandler last dumped into a log, starting with the current thread."""
    lines = last_lines(log, 400)
    found = [at for at, line in enumerate(lines) if line.startswith("Current thread")]
    return lines[found[-1] :][:LOG_LINES] if found else lines[-LOG_LINES:]


def save_failures(
    root: Path, settings: str, tasks: Mapping[str, Json], failures: Sequence[Failure], settled: Sequence[str]
) -> None:
    """Update the stored failures of some settings.

    Args:
        root: The results' root.
        settings: The settings' hash.
        tasks: The selection of tasks: the section `tasks` of the configuration.
        failures: The failures of this run.
        settled: Tasks that have a score now, whose stored failures are removed.
    """
    news = {failure.task or "": failure for failure in failures if failure.tried and failure.kind not in _TRANSIENT}
    # A failure outside of any task is removed once any task has a score.
    _update(root, settings, {"": news.pop("")} if "" in news else {}, [""] if settled else [])
    _update(root, _key(settings, tasks), news, [task for task in settled if task])


def _update(root: Path, key: str, news: Mapping[str, Failure], settled: Collection[str]) -> None:
    path = _path(root, key)
    if not news and not path.exists():
        return
    try:
        with lock(root, f"{key}.failures"):
            stored = _load(root, key)
            kept = {task: found for task, found in stored.items() if task not in settled} | dict(news)
            if kept:
                write_note(root, path, {task: asdict(found) for task, found in kept.items()})
            elif path.is_file():
                path.unlink()
    except OSError as error:
        disk.note(path, error, optional=True)


def load_failures(root: Path, settings: str, tasks: Mapping[str, Json]) -> dict[str, Failure]:
    """Return the stored failures of some settings: task to failure, with "" for one outside of any task.

    Args:
        root: The results' root.
        settings: The settings' hash.
        tasks: The selection of tasks: a failure on some splits or subsets of a task says nothing about others.
    """
    outside = {task: failure for task, failure in _load(root, settings).items() if not task}
    return _load(root, _key(settings, tasks)) | outside


def _load(root: Path, key: str) -> dict[str, Failure]:
    found = read_note(root, _path(root, key)) or {}
    try:
        return {task: Failure(**failure) for task, failure in found.items()}
    except (TypeError, ValueError):  # written by an incompatible version
        return {}


def _key(settings: str, tasks: Mapping[str, Json]) -> str:
    """Return the key of failures of tasks; a benchmark, too, may select some of a task's splits and subsets."""
    names = (
        ("languages", "splits", "subsets") if tasks.get("names") else ("benchmark", "languages", "splits", "subsets")
    )
    chosen = {name: tasks[name] for name in names if tasks.get(name)}
    return fingerprint({"settings": settings, **chosen}) if chosen else settings


def earlier_failure(failures: Mapping[str, Failure], task: str) -> Failure | None:
    """Return the stored failure of a task, or else that of its whole point, marked as not tried now."""
    found = failures.get(task) or failures.get("")
    return replace(found, task=task, tried=False) if found is not None else None


def _path(root: Path, key: str) -> Path:
    return root / "failures" / f"{key}.json"


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


_KINDS: tuple[tuple[type[BaseException], Kind], ...] = (
    (EngineStartError, "engine_start"),
    (EngineError, "engine_died"),
    (JobError, "not_submitted"),
    (StorageError, "disk"),
    (DataError, "data"),
    (FirstStageError, "first_stage"),
    (NonFiniteError, "not_finite"),
    (ModelError, "model"),
    (MissingPackageError, "missing_package"),
    (KeyboardInterrupt, "interrupted"),
)
