"""Everything that can go wrong, as one tree.

MtebVllmError
├── ConfigError           the user's mistakes, all of them at once; exit status 2, no traceback
├── MissingPackageError   something has to be installed first; exit status 2
├── CatalogueError        mteb or vLLM is installed, but cannot be read; exit status 2
├── ModelError            the model cannot be had or is not one that vLLM knows
├── EngineError           vLLM stopped working
│   └── EngineStartError  vLLM did not open
├── StorageError          a disk is full, or a folder cannot be written to
├── DataError             a task's data cannot be loaded
├── LockError             the results store cannot be locked
├── PartialResultError    some subsets of a task failed; the others' results are stored
├── TemplateError         a score template does not fit the model's tokenizer, or a callable template cannot be imported
├── MeasureError          what is to be measured cannot be had: texts of such a length, or such tasks
├── FirstStageError       a first stage's predictions cannot be had, or belong to something else
└── NonFiniteError        NaN or Inf came out of the engine
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mteb_vllm.util.masking import mask

# What kind of mistake it is, as far as anything is decided by it or a program may want to know it.
Code = Literal[
    "invalid",  # a value that is not allowed where it stands
    "syntax",  # a text that Hydra, YAML or OmegaConf cannot read or resolve
    "unknown_key",  # a key that there is not
    "unknown_choice",  # a value, file or name that there is not
    "missing",  # something that has to be set
    "model_kind",  # a model of a kind that the pipeline does not take
    "conflict",  # right by itself, and not beside something else that is set
    "refused",  # refused for safety: code, secrets, Hydra's own settings
    "not_installed",  # a package that is not installed
    "not_writable",  # a folder that cannot be written to
]


@dataclass(frozen=True)
class Mistake:
    """One mistake of the user's, and the way out.

    The texts are for people; whatever is decided about a mistake is decided by its code and its key.

    Attributes:
        key: The key of the configuration that it is about, as `engine.dtype`; else what it is about, as a file.
        what: What is wrong with it.
        allowed: What would be right, in words; empty where `what` says it.
        nearest: The nearest right names, best first.
        value: The key's value, where that is what is wrong; None where it is not shown.
        written: What the user wrote, where that is shown in place of the key and its value.
        code: What kind of mistake it is.
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
        """Where it is, as shown: `engine.dtype=flaot32` or `prompts.qury`."""
        return self.written or (self.key if self.value is None else f"{self.key}={self.value}")

    @property
    def section(self) -> str:
        """The part of the configuration that it is about, as `engine`."""
        return self.key.partition(".")[0].partition("/")[0].partition("@")[0]

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}"]
        if self.nearest:
            lines.append(f"    Did you mean {_alternatives(self.nearest)}?")
        if self.allowed:
            lines.append(f"    {self.allowed}")
        return mask("\n".join(lines))


class MtebVllmError(Exception):
    """Base class of all errors that this package raises on purpose."""


class ConfigError(MtebVllmError, ValueError):
    """Every mistake found in a configuration, reported together.

    Attributes:
        mistakes: The mistakes, in the order in which they were found, each once.
    """

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.mistakes)
        head = "1 error" if count == 1 else f"{count} errors"
        return "\n".join([f"{head} in the configuration:", *(f"  - {mistake}" for mistake in self.mistakes)])


class MissingPackageError(MtebVllmError, ImportError):
    """A package that is needed now is not installed; the message holds the install line."""


class CatalogueError(MtebVllmError, RuntimeError):
    """mteb or vLLM could not be read; the message ends with what the child process wrote last."""


class ModelError(MtebVllmError):
    """The model cannot be found, may not be read, or is of a kind that this vLLM does not know."""


class EngineError(MtebVllmError):
    """vLLM stopped working, or does not start to."""


class EngineStartError(EngineError):
    """vLLM did not open with these arguments.

    Attributes:
        advises: Whether the message says what to try.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(f"{message}\n  What to try: {advice}." if advice else message)
        self.advises = bool(advice)


class StorageError(MtebVllmError):
    """A disk is full or broken, or a folder cannot be written to; the message names the folder and the reason."""


DATA_ADVICE = "correct the data set, or put a right copy of it into a folder of its name in the working directory"


class DataError(MtebVllmError, LookupError):
    """A task's data cannot be loaded, or are not what the task needs.

    Attributes:
        advice: What to try.
    """

    def __init__(self, message: str, advice: str = DATA_ADVICE) -> None:
        super().__init__(message)
        self.advice = advice


class PartialResultError(MtebVllmError):
    """Some subsets of a task, or parts of an aggregate, could not be evaluated; the results of the others are stored.

    Attributes:
        failed: What could not be evaluated, and why.
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
    """A template cannot be used: a score template changes its texts with this model, or a callable cannot be imported."""


class FirstStageError(MtebVllmError):
    """Predictions of a first stage cannot be read, or are those of another task, split or corpus."""


class MeasureError(MtebVllmError):
    """What shall be measured cannot be had: texts of such a length, or such tasks."""


class LockError(MtebVllmError, OSError):
    """The results store cannot be locked, so that nothing may be written into it."""


class NonFiniteError(MtebVllmError, ArithmeticError):
    """The engine returned NaN or Inf, which no metric survives."""


def _alternatives(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} or {names[-1]}"
