"""The exception hierarchy.

MtebVllmError
├── ConfigError           errors in the configuration, all of them at once; exit status 2, no traceback
├── MissingPackageError   a required package is not installed; exit status 2
├── CatalogueError        mteb or vLLM is installed but cannot be inspected; exit status 2
├── ModelError            the model cannot be found or loaded, or vLLM does not support it
├── EngineError           the engine failed
│   └── EngineStartError  the engine did not open
├── StorageError          a disk is full, or a folder is not writable
├── DataError             a task's data cannot be loaded
├── LockError             the results store cannot be locked
├── JobError              a job cannot be submitted to SLURM, or cannot run there
├── PartialResultError    some subsets of a task failed; the results of the others are stored
├── TemplateError         a score template does not fit the model's tokenizer, or a callable template cannot be imported
├── MeasureError          a measurement is not possible: texts of such a length, or such tasks, are not available
├── FirstStageError       a first stage's predictions cannot be read, or belong to something else
└── NonFiniteError        the engine returned NaN or Inf
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mteb_vllm.util.masking import mask
from mteb_vllm.util.sentences import sentence

# The machine-readable kind of a mistake.
Code = Literal[
    "invalid",  # a value that is not allowed for its key
    "syntax",  # text that Hydra, YAML or OmegaConf cannot parse or resolve
    "unknown_key",  # a key that does not exist
    "unknown_choice",  # a value, file or name that does not exist
    "missing",  # a required setting is missing
    "model_kind",  # a kind of model that the pipeline does not support
    "conflict",  # valid by itself, but incompatible with another setting
    "refused",  # refused for safety: code, secrets, Hydra's own settings
    "not_installed",  # a package that is not installed
    "not_writable",  # a folder that is not writable
]


@dataclass(frozen=True)
class Mistake:
    """One error in the configuration, and how to correct it.

    The texts are for people; programs should use the code and the key.

    Attributes:
        key: The configuration key concerned, e.g. `engine.dtype`, or else the file or other subject.
        what: The problem.
        allowed: A description of the allowed values; empty if it is part of `what`.
        nearest: The nearest valid names, best first.
        value: The key's value, if the value is wrong; None if it is not shown.
        written: The user's own text, if it is shown in place of the key and its value.
        code: The kind of error.
    """

    key: str
    what: str
    allowed: str = ""
    nearest: tuple[str, ...] = ()
    value: str | None = field(default=None, kw_only=True)
    written: str = field(default="", kw_only=True)
    code: Code = field(default="invalid", kw_only=True)

    @property
    def where(self) -> str:
        """The location as shown to the user: `engine.dtype=flaot32` or `prompts.qury`."""
        return self.written or (self.key if self.value is None else f"{self.key}={self.value}")

    @property
    def section(self) -> str:
        """The section of the configuration concerned, e.g. `engine`."""
        return self.key.partition(".")[0].partition("/")[0].partition("@")[0]

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}"]
        if self.nearest:
            lines.append(f"    Did you mean {_alternatives(self.nearest)}?")
        if self.allowed:
            lines.append(f"    {self.allowed}")
        return mask("\n".join(lines))


class MtebVllmError(Exception):
    """Base class of all errors raised by this package."""


class ConfigError(MtebVllmError, ValueError):
    """All errors found in a configuration, reported together.

    Attributes:
        mistakes: The errors in the order in which they were found, without duplicates.
    """

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.mistakes)
        head = "1 error" if count == 1 else f"{count} errors"
        return "\n".join([f"{head} in the configuration:", *(f"  - {mistake}" for mistake in self.mistakes)])


class MissingPackageError(MtebVllmError, ImportError):
    """A required package is not installed; the message contains the install command."""


class CatalogueError(MtebVllmError, RuntimeError):
    """mteb or vLLM could not be inspected; the message ends with the last output of the child process."""


class ModelError(MtebVllmError):
    """The model cannot be found, must not be accessed, or is not supported by this vLLM."""


class EngineError(MtebVllmError):
    """The engine failed or did not start."""


class EngineStartError(EngineError):
    """The engine did not open with these arguments.

    Attributes:
        advises: Whether the message already contains advice.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(f"{message}\n  What to try: {sentence(advice)}" if advice else message)
        self.advises = bool(advice)


class StorageError(MtebVllmError):
    """A disk is full or broken, or a folder is not writable; the message names the folder and the reason."""


DATA_ADVICE = (
    "fix the data set, or put a corrected copy of it into a folder with its name (org/name) in the working directory"
)


class DataError(MtebVllmError, LookupError):
    """A task's data cannot be loaded, or does not have the required form.

    Attributes:
        advice: A suggested remedy.
    """

    def __init__(self, message: str, advice: str = DATA_ADVICE) -> None:
        super().__init__(message)
        self.advice = advice


class PartialResultError(MtebVllmError):
    """Some subsets of a task, or parts of an aggregate, could not be evaluated; the results of the others are stored.

    Attributes:
        failed: The name of each failed subset or part, with its error.
    """

    def __init__(self, failed: Mapping[str, Exception], n_all: int, what: str) -> None:
        self.failed = dict(failed)
        self.__cause__ = next(iter(self.failed.values()))
        named = [
            f"{name}: {error if isinstance(error, MtebVllmError) else f'{type(error).__name__}: {error}'}"
            for name, error in list(self.failed.items())[:5]
        ]
        named += [f"and {len(self.failed) - 5} more"] if len(self.failed) > 5 else []
        super().__init__(f"{len(self.failed)} of {n_all} {what} failed: {'; '.join(named)}")


class TemplateError(MtebVllmError):
    """A score template does not preserve its texts with this model, or a callable template cannot be imported."""


class FirstStageError(MtebVllmError):
    """Predictions of a first stage cannot be read, or belong to another task, split or corpus."""


class MeasureError(MtebVllmError):
    """A measurement is not possible: texts of the requested length, or the requested tasks, are not available."""


class LockError(MtebVllmError, OSError):
    """The results store cannot be locked, so nothing may be written to it."""


class JobError(MtebVllmError):
    """A job cannot be submitted to SLURM, or cannot run on its nodes."""


class NonFiniteError(MtebVllmError, ArithmeticError):
    """The engine returned NaN or Inf, for which no metric is defined."""


def _alternatives(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} or {names[-1]}"
