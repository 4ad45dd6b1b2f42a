"""Opens, shares and closes engines, whatever works in them.

An engine is what its specification says: model, revision, every engine argument, and the environment. Asking for the same
one again shares it; asking for another closes the one that is open. `vllm.py` and `sentence_transformers.py` say how one is
opened, asked and shut down.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines import environment
from mteb_vllm.engines.timing import Phases
from mteb_vllm.errors import ModelError
from mteb_vllm.models.files import Model
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.models.sentence_transformers_files import Applied, apply_files
from mteb_vllm.util import masking
from mteb_vllm.util.fingerprint import METHOD, callable_identity, fingerprint
from mteb_vllm.util.machine import device, versions
from mteb_vllm.util.plain import Json, JsonObject

if TYPE_CHECKING:
    from psutil import Process
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Convert = Literal["embed", "classify"]
Backend = Literal["vllm", "sentence_transformers"]


@dataclass(frozen=True)
class EngineSpec:
    """Everything that makes an engine what it is.

    Attributes:
        model: The model that it loads.
        convert: What the model is used for: embeddings, or scores of pairs.
        args: Engine arguments by the backend's names, without those that are not set.
        env: Environment variables that it is opened with.
        preset: Which preset of `conf/engine/` filled in what nobody set, for the record only.
        backend: What works in it.
    """

    model: Model
    convert: Convert
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    preset: str = "none"
    backend: Backend = "vllm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", masking.with_secrets(self.args))
        object.__setattr__(self, "env", masking.with_secrets(self.env, ("env",)))

    @property
    def works(self) -> str:
        """What works in it, in words."""
        return {"vllm": "vLLM", "sentence_transformers": "sentence-transformers"}[self.backend]

    @functools.cached_property
    def applied(self) -> Applied:
        """What vLLM is told so that it computes what the model's files ask for; sentence-transformers reads them itself."""
        if self.backend != "vllm":
            return Applied()
        return apply_files(self.model.files, self.model.config, self.args, self.convert)

    def settings(self) -> JsonObject:
        """What of this changes results, as plain values."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "weights": self.model.digest,
            "convert": self.convert,
            "backend": self.backend,
            "args": _plain(masking.without_secrets(self.args)),
            "files": self.applied.settings() if self.backend == "vllm" else None,
            "env": _plain(masking.without_secrets(self.env)),
            "shell": environment.shell(self.env),
            "device": device(),
            "method": METHOD,
            "versions": dict(versions(self.backend)),
        }

    @property
    def process(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What a process cannot change once it has opened an engine: what computes, and how its threads are made."""
        return self.backend, tuple(environment.threading(self.env).items())

    @property
    def fingerprint(self) -> str:
        """The hash of everything above that changes results."""
        return fingerprint(self.settings())


class Bar(Protocol):
    """What an engine needs of a progress bar: a part of `tqdm.tqdm`."""

    def update(self, count: int, /) -> object:
        """Count texts that are done."""

    def close(self) -> object:
        """End it."""


# Makes the bar of one call, as `tqdm.tqdm` does; False: there is none.
MakeBar = Callable[..., Bar] | Literal[False]


class Scores(NamedTuple):
    """What an engine says of pairs.

    Attributes:
        values: float32 array, shape (n_pairs,).
        lengths: Tokens of each pair.
        cached: Tokens of all of them that were in the prefix cache.
    """

    values: npt.NDArray[np.float32]
    lengths: list[int]
    cached: int = 0


@dataclass(frozen=True)
class LongPair:
    """A pair that was too long, cut to the context.

    Attributes:
        tokens: Token ids, special tokens included.
        first_length: Tokens of the first segment, for models that tell segments apart; None for others.
        cut: Whether the document lost anything (a pair near the limit may fit after all).
    """

    tokens: list[int]
    first_length: int | None
    cut: bool


@dataclass
class Engine(ABC):
    """An open engine.

    Attributes:
        spec: What it was opened from.
        llm: What does the work: vLLM's `LLM`, or mteb's wrapper of sentence-transformers; None once it is closed.
        seconds: What opening took, imports included.
        dtype: What `dtype` resolved to, as `bfloat16`.
        max_model_len: Tokens after which a text is cut, special tokens included.
        dim: Length of an embedding.
        resolved: All of what became of unset arguments, for the record.
        separates_pairs: Whether the two texts of a pair are tokenised as a pair, with a separator; else as one text.
        labels: What a classification head gives, or None where the model has none.
        in_process: Whether it works in this process, and not in one of its own.
        own_template: Whether pairs are read through a template of the model's own, which we do not know.
        processes: The processes that it works in, beside this one.
        log: Where those write to: what standard error was when they began, if that was a file.
        owners: Who asked for it and has not let go; the last one's leaving closes it.
        cached_tokens: Of all tokens that it was given so far, those that were in its prefix cache.
        threading: The variables of the threading runtime that its process has found.
        warnings: What it said of the model while it opened.
    """

    spec: EngineSpec
    llm: Any
    seconds: float
    dtype: str
    max_model_len: int
    dim: int
    resolved: dict[str, Any]
    separates_pairs: bool = True
    labels: int | None = None
    in_process: bool = False
    own_template: bool = False
    processes: Sequence[Process] = ()
    log: Path | None = None
    owners: set[int] = field(default_factory=set)
    cached_tokens: int = 0
    threading: dict[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def late(self) -> dict[str, str]:
        """Variables of `engine.env` that came too late: the threading runtime of its process had been loaded before."""
        wanted = environment.threading(self.spec.env)
        return {key: value for key, value in wanted.items() if self.threading.get(key) != value}

    @property
    def vectors_fingerprint(self) -> str:
        """The hash of everything that its embeddings depend on but the text."""
        settings = {
            "engine": self.spec.settings(),
            "dimensions": self.dim,
            "normalized": self.resolved.get("normalized"),
        }
        return fingerprint(settings)

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, of transformers' kind."""

    @abstractmethod
    def embed(
        self, texts: list[str], bar: MakeBar = False, prompt: str = ""
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Embeds texts in one call, as a caller would; a text that is too long is cut at its end.

        Args:
            texts: The texts, prompts included.
            prompt: What each of them begins with, for models that do not pool a prompt's tokens.
            bar: Makes what is told of progress, called as `tqdm.tqdm` is; false: nothing is.

        Returns:
            embeddings: float32 array, shape (n_texts, dim); and the tokens that each text had in the engine.

        Raises:
            EngineError: if the engine has died, or failed at work.
        """

    @abstractmethod
    def score(
        self,
        queries: list[str],
        documents: list[str],
        *,
        template: str | None = None,
        activation: Activation | None = None,
        bar: MakeBar = False,
    ) -> Scores:
        """Scores pairs in one call, as a caller would; with `activation` other than None the scores are logits.

        Args:
            queries: The first text of each pair.
            documents: The second, as many.
            template: The jinja template that a pair is read through; None where the model joins the two texts itself.
            activation: None: what the model's files say.
            bar: As in `embed`.

        Raises:
            EngineError: if the engine has died, or failed at work.
        """

    @abstractmethod
    def score_tokens(
        self, pairs: Sequence[LongPair], *, activation: Activation | None = None, bar: MakeBar = False
    ) -> Scores:
        """As `score`, of pairs that are tokens already, cut to the context."""

    @abstractmethod
    def timed(self) -> contextlib.AbstractContextManager[Phases]:
        """Takes down where the time of the calls in here goes."""

    @property
    def pools_prompts(self) -> bool:
        """Whether the tokens of a prompt are pooled like a text's: else `embed` must know which part is the prompt."""
        return self.spec.model.files.pools_prompts

    def forget_prefixes(self) -> bool:
        """Empties the prefix cache; returns whether there is one."""
        return False

    def release(self, owner: object) -> None:
        """Takes note that `owner` needs the engine no more, and closes it when nobody does."""
        if id(owner) in self.owners:
            self.owners.remove(id(owner))
            if not self.owners:
                self.close()

    def close(self) -> None:
        """Close the engine and give its memory back; again does nothing."""
        if self.llm is None:
            return
        if self in _open:
            _open.remove(self)
        self._shut_down()
        gc.collect()
        self._leave()
        environment.leave()

    def _shut_down(self) -> None:
        """Ends what works here, and lets go of it."""
        self.llm = None

    @abstractmethod
    def _leave(self) -> None:
        """Give back what an engine of this kind leaves in the process."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[str]] | None:
    """Return the special tokens that a tokenizer puts before and behind a text; None where it cannot be asked so."""
    try:
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
    except Exception as error:  # for the record only: tokenizers of other kinds than transformers' fail in many ways
        logger.info("special tokens are not known: %s", error)
        return None
    at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), len(whole))
    return [list(tokenizer.convert_ids_to_tokens(ids)) for ids in (whole[:at], whole[at + len(bare) :])]


def is_open(spec: EngineSpec) -> bool:
    """Whether the engine of this specification is open."""
    wanted = spec.fingerprint
    return any(engine.llm is not None and engine.spec.fingerprint == wanted for engine in _open)


# The open engine; another one closes it.
_open: list[Engine] = []


def open_engine(spec: EngineSpec) -> Engine:
    """Return the engine of this specification: the one that is open, or a new one in its place.

    Raises:
        MissingPackageError: if what works in it is not installed.
        EngineStartError: if it does not open with these arguments.
        ModelError: if the model's files have changed since it was found, so that its results would be kept as another's.
    """
    wanted = spec.fingerprint
    for engine in _open:
        if engine.llm is not None and engine.spec.fingerprint == wanted:
            return engine
    close_engines()
    engine = _start(spec)
    _open.append(engine)
    # Only now: what was read while it opened has to be what the specification says, too.
    if spec.model.has_changed():
        engine.close()
        raise ModelError(f"the files in {spec.model.location} have changed since the run began: run again")
    return engine


def close_engines(*, owned: bool = True) -> None:
    """Closes the open engines.

    Args:
        owned: Also those that somebody still owns.
    """
    for engine in reversed(list(_open)):
        if owned or not engine.owners:
            engine.close()
    if not _open:
        environment.leave()  # what a run has prepared without opening an engine


atexit.register(close_engines)


def working_processes() -> list[Process]:
    """The processes of open engines, beside this one."""
    return [process for engine in _open for process in engine.processes]


def dead_processes() -> list[int]:
    """Processes of open engines that have ended, as the system has it: vLLM itself may notice late, or never."""
    import psutil

    gone = []
    for engine in _open:
        for process in engine.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            gone.append(process.pid)
    return gone


def _start(spec: EngineSpec) -> Engine:
    started = time.perf_counter()
    backend = importlib.import_module(f"mteb_vllm.engines.{spec.backend}")
    environment.enter(spec.env)
    try:
        engine: Engine = backend.load(spec)
    except BaseException:
        environment.leave()
        raise
    # A process of its own reads the variables when it starts.
    engine.threading = environment.in_effect() if engine.in_process else environment.threading(os.environ)
    if engine.late:
        logger.warning("torch was loaded before these variables were set: %s", engine.late)
    engine.seconds = time.perf_counter() - started
    logger.info("%s opened in %.1f s: %s", spec.backend, engine.seconds, engine.resolved)
    return engine


def _plain(value: object) -> Json:
    """A value as JSON can hold it, so that two different ones never look alike."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(value):
        return callable_identity(value)
    return f"{type(value).__name__}: {value!r}"
