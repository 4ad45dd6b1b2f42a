"""Open, share and close engines of any backend.

An engine is identified by its specification: model, revision, every engine argument, and the environment. Opening the same
specification again returns the open engine; opening another one closes it. `vllm.py` and `sentence_transformers.py`
implement the backends, and `replicas.py` an engine of several copies.
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
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines import environment
from mteb_vllm.engines.timing import Phases
from mteb_vllm.errors import ModelError
from mteb_vllm.models.files import Model, folder_digests
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.models.sentence_transformers_files import Applied, apply_files
from mteb_vllm.results.failures import ENGINE_DIED
from mteb_vllm.results.measurements import identity
from mteb_vllm.util import masking
from mteb_vllm.util.fingerprint import METHOD, callable_identity, fingerprint
from mteb_vllm.util.garbage import garbage_collection_paused
from mteb_vllm.util.machine import device, versions
from mteb_vllm.util.plain import Json, JsonObject
from mteb_vllm.util.setting_names import SettingNames

if TYPE_CHECKING:
    from psutil import Process
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Seconds that vLLM may take to notice that one of its processes has died.
_NOTICE_WITHIN = 10.0

Convert = Literal["embed", "classify"]
Backend = Literal["vllm", "sentence_transformers"]


@dataclass(frozen=True)
class EngineSpec:
    """Everything that identifies an engine.

    Attributes:
        model: The model that it loads.
        convert: Whether the model computes embeddings or scores of pairs.
        args: Engine arguments by the backend's names, without unset ones.
        env: Environment variables that it is opened with.
        preset: The preset of `conf/engine/` that supplied defaults, for the record only.
        backend: The library that runs the model.
        replicas: How many copies of the engine share the work; results do not depend on it.
        ray_address: The Ray cluster on whose nodes they run; None for this machine.
        names: How messages name settings.
        folders: The digests of the folders that `args` name; see `folder_digests`.
    """

    model: Model
    convert: Convert
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    preset: str = "none"
    backend: Backend = "vllm"
    replicas: int = 1
    ray_address: str | None = None
    names: SettingNames = SettingNames.CONFIGURATION
    folders: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", masking.with_secrets(self.args))
        object.__setattr__(self, "env", masking.with_secrets(self.env, ("env",)))
        object.__setattr__(self, "folders", folder_digests(self.args))

    @property
    def backend_name(self) -> str:
        """The backend's name for messages."""
        return {"vllm": "vLLM", "sentence_transformers": "sentence-transformers"}[self.backend]

    @functools.cached_property
    def applied(self) -> Applied:
        """The settings that make vLLM follow the model's files; empty for sentence-transformers, which reads them itself."""
        if self.backend != "vllm":
            return Applied()
        return apply_files(self.model.files, self.model.config, self.args, self.convert, self.names)

    def settings(self) -> JsonObject:
        """Return everything that can change results, as plain values."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "weights": self.model.digest,
            "convert": self.convert,
            "backend": self.backend,
            "args": _plain(masking.without_secrets(self.args)),
            "files": self.applied.settings() if self.backend == "vllm" else None,
            "env": _plain(masking.without_secrets(self.env)),
            "shell": environment.shell_variables(self.env),
            "device": device(),
            "method": METHOD,
            "versions": dict(versions(self.backend)),
            **({"folders": dict(self.folders)} if self.folders else {}),
        }

    def has_changed(self) -> bool:
        """Whether local files that it loads have changed since it was made."""
        try:
            return self.model.has_changed() or folder_digests(self.args) != self.folders
        except ModelError:  # a folder can no longer be read
            return True

    @property
    def process(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The settings that are fixed by a process's first engine: backend and variables of the threading runtime."""
        return self.backend, tuple(environment.threading_variables(self.env).items())

    @property
    def fingerprint(self) -> str:
        """The hash of `settings()`."""
        return fingerprint(self.settings())

    @property
    def identity(self) -> str:
        """Return the key of an open engine: its fingerprint, and its replicas if there are several or on a cluster."""
        return identity(self.fingerprint, self.replicas, self.ray_address)

    @property
    def replicated(self) -> bool:
        """Whether it runs in processes that are fed with chunks, rather than as one engine of this process."""
        return self.replicas > 1 or self.ray_address is not None


class Bar(Protocol):
    """The part of `tqdm.tqdm` that an engine uses."""

    def update(self, count: int, /) -> object:
        """Count finished texts."""

    def close(self) -> object:
        """End the bar."""


# Makes the progress bar of one call; takes the arguments of `tqdm.tqdm`. False: no bar.
MakeBar = Callable[..., Bar] | Literal[False]


class Scores(NamedTuple):
    """Scores of pairs.

    Attributes:
        values: float32 array, shape (n_pairs,).
        lengths: Tokens of each pair.
        cached: Tokens of all pairs together that were in the prefix cache.
    """

    values: npt.NDArray[np.float32]
    lengths: list[int]
    cached: int = 0


class TokensRefusedError(Exception):
    """An engine takes no token ids, or not those that we would make; it gets text, and no user sees this error."""


@dataclass(frozen=True)
class Tokenization:
    """How the front end of an engine tokenises a text.

    Attributes:
        arguments: The arguments of its call of the tokenizer, such as `truncation` and `max_length`.
        lower_case: Whether it first converts the text to lower case.
        limit: Tokens after which a text is truncated, special tokens included.
    """

    arguments: Mapping[str, Any]
    lower_case: bool
    limit: int


@dataclass(frozen=True)
class TokenPair:
    """A tokenised pair, truncated to the context length.

    Attributes:
        tokens: Token ids, special tokens included.
        first_length: Tokens of the first segment, for models with token type ids; None for others.
        cut: Whether the document was truncated (a pair near the limit may fit after all).
    """

    tokens: list[int]
    first_length: int | None
    cut: bool


@dataclass
class Engine(ABC):
    """An open engine.

    Attributes:
        spec: The specification that it was opened from.
        llm: The backend's object: vLLM's `LLM`, or mteb's wrapper of sentence-transformers; None once closed.
        seconds: Seconds that opening took, imports included.
        dtype: The resolved dtype, such as `bfloat16`.
        max_model_len: Tokens after which a text is truncated, special tokens included.
        dim: Length of an embedding.
        resolved: The resolved values of unset arguments, for the record.
        separates_pairs: Whether the two texts of a pair are tokenised as a pair, with a separator; else as one text.
        labels: The outputs of the classification head; None if the model has none.
        in_process: Whether the model runs in this process.
        own_template: Whether vLLM renders pairs with a template of the model's own, which is not accessible here.
        processes: The engine's other processes.
        replicas_lost: How many of its replicas have died.
        nodes: The node of each replica on a Ray cluster; empty on this machine.
        computed_by: How many texts or pairs each of its replicas has computed; empty without replicas.
        log: The file that those write to: standard error at their start, if that was a file.
        owners: Ids of the objects that use the engine; it is closed when the last one releases it.
        cached_tokens: Tokens found in the prefix cache so far.
        threading: The variables of the threading runtime in effect in its process.
        warnings: Warnings about the model that were logged while it opened.
        takes_text: Why it gets text instead of token ids; None if it gets token ids, or if that is not decided yet.
        feed: The tokeniser of its inputs (`inference.token_feed.TokenFeed`); None until it is decided, or if it gets text.
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
    takes_text: str | None = None
    feed: object = None
    replicas_lost: int = 0
    computed_by: list[int] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)

    @property
    def late(self) -> dict[str, str]:
        """The variables of `engine.env` that are not in effect, because the threading runtime was loaded before."""
        wanted = environment.threading_variables(self.spec.env)
        return {key: value for key, value in wanted.items() if self.threading.get(key) != value}

    @property
    def vectors_fingerprint(self) -> str:
        """The hash of everything but the text that its embeddings depend on."""
        settings = {
            "engine": self.spec.settings(),
            "dimensions": self.dim,
            "normalized": self.resolved.get("normalized"),
        }
        return fingerprint(settings)

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's transformers tokenizer."""

    @abstractmethod
    def embed(
        self, texts: list[str], bar: MakeBar = False, prompt: str = ""
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Embed texts in one call of the backend; a text that is too long loses its end.

        Args:
            texts: The texts, prompts included.
            prompt: The prompt that all texts begin with, for models that exclude a prompt's tokens from pooling.
            bar: Makes the progress bar; False for none.

        Returns:
            embeddings: float32 array, shape (n_texts, dim); and the number of tokens of each text, after truncation.

        Raises:
            EngineError: if the engine has died or failed.
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
        """Score pairs in one call of the backend.

        Args:
            queries: The first text of each pair.
            documents: The second text of each pair.
            template: The jinja template that renders a pair; None if the model joins the two texts itself.
            activation: None applies the activation of the model's files; with any other value the scores are logits.
            bar: As in `embed`.

        Raises:
            EngineError: if the engine has died or failed.
        """

    @abstractmethod
    def score_tokens(
        self, pairs: Sequence[TokenPair], *, activation: Activation | None = None, bar: MakeBar = False
    ) -> Scores:
        """Score tokenised pairs; otherwise like `score`."""

    def _refuse_tokens(self) -> TokensRefusedError:
        return TokensRefusedError(f"{self.spec.backend_name} tokenises by itself")

    # The following five belong together: an engine that takes token ids implements all of them.

    def tokenization(self) -> Tokenization:
        """Return how its front end tokenises a text.

        Raises:
            TokensRefusedError: if it takes no token ids, or if that cannot be determined.
        """
        raise self._refuse_tokens()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids that its front end makes of texts.

        Raises:
            TokensRefusedError: as for `tokenization`.
        """
        raise self._refuse_tokens()

    def embed_tokens(self, tokens: Iterable[list[int] | None]) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Embed tokenised texts as they arrive, in steps as full as the engine allows.

        A caller that does not use all results must close the generator, or later calls might get them.

        Args:
            tokens: The token ids of each text, special tokens included, truncated to the context. None in place of a text
                means that there is none at the moment.

        Yields:
            the positions of the texts that were finished, and their embeddings: float32 array, shape (n_finished, dim).

        Raises:
            EngineError: if the engine has died or failed.
            TokensRefusedError: as for `tokenization`.
        """
        raise self._refuse_tokens()

    def tokenize_pairs(
        self, queries: Sequence[str], documents: Sequence[str], template: str | None
    ) -> list[tuple[list[int], list[int] | None]]:
        """Return the token ids and the token type ids, if it has any, that its front end makes of pairs.

        Raises:
            TokensRefusedError: as for `tokenization`.
        """
        raise self._refuse_tokens()

    def score_arriving(
        self, pairs: Iterable[TokenPair | None], *, activation: Activation | None = None
    ) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Score tokenised pairs as they arrive; otherwise like `embed_tokens`.

        Yields:
            the positions of the pairs that were finished, and their scores: float32 array, shape (n_finished,).
        """
        raise self._refuse_tokens()

    @abstractmethod
    def time_phases(self) -> contextlib.AbstractContextManager[Phases]:
        """Measure the time that the calls inside the block spend in each phase."""

    @property
    def pools_prompts(self) -> bool:
        """Whether a prompt's tokens are pooled like the text's; if not, `embed` needs the prompt."""
        return self.spec.model.files.pools_prompts

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache; return whether there is one."""
        return False

    def release(self, owner: object) -> None:
        """Remove an owner, and close the engine if it was the last one."""
        if id(owner) in self.owners:
            self.owners.remove(id(owner))
            if not self.owners:
                self.close()

    def close(self) -> None:
        """Close the engine and free its memory; does nothing if it is closed."""
        if self.llm is None:
            return
        if self in _open:
            _open.remove(self)
        try:
            self._shut_down()
            gc.collect()
            self._release_memory()
        finally:
            environment.restore_variables()

    def _shut_down(self) -> None:
        """Shut the backend down and drop it."""
        self.llm = None

    def dead_processes(self) -> list[int]:
        """Return the ids of those of its processes that have ended, if it cannot work without them."""
        return [process.pid for process in self.processes if has_ended(process)]

    @abstractmethod
    def _release_memory(self) -> None:
        """Free the memory that the backend still holds in this process after shutdown."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[str]] | None:
    """Return the special tokens that a tokenizer adds before and after a text; None if they cannot be determined."""
    try:
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
    except Exception as error:  # for the record only, and tokenizers other than transformers' fail in many ways
        logger.info("special tokens are unknown: %s", error)
        return None
    at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), len(whole))
    return [list(tokenizer.convert_ids_to_tokens(ids)) for ids in (whole[:at], whole[at + len(bare) :])]


def is_open(spec: EngineSpec) -> bool:
    """Return whether the engine of this specification is open."""
    wanted = spec.identity
    return any(engine.llm is not None and engine.spec.identity == wanted for engine in _open)


# Holds at most one engine.
_open: list[Engine] = []


def open_engine(spec: EngineSpec) -> Engine:
    """Return the open engine of this specification, or open one and close any other.

    Raises:
        MissingPackageError: if the backend is not installed.
        EngineStartError: if the engine does not open with these arguments.
        ModelError: if the model's files have changed since the specification was made: its fingerprint would be wrong.
    """
    wanted = spec.identity
    for engine in _open:
        if engine.llm is not None and engine.spec.identity == wanted:
            return engine
    close_engines()
    engine = _start(spec)
    _open.append(engine)
    # Checked after opening, so that changes while the files were being read are found too.
    if spec.has_changed():
        engine.close()
        folders = ", ".join(filter(None, [spec.model.location, *(str(spec.args[name]) for name in spec.folders)]))
        raise ModelError(f"the files in {folders} have changed since the run began: run again")
    return engine


def close_engines(*, owned: bool = True) -> None:
    """Close the open engines.

    Args:
        owned: Whether to close engines that still have owners too.
    """
    for engine in reversed(list(_open)):
        if owned or not engine.owners:
            engine.close()
    if not _open:
        environment.restore_variables()  # a run may have set variables without opening an engine


atexit.register(close_engines)


def engine_processes() -> list[Process]:
    """Return the processes of open engines, without this one."""
    return [process for engine in _open for process in engine.processes]


def has_ended(process: Process) -> bool:
    """Return whether a process has ended according to the system."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def exit_if_engine_dies() -> None:
    """Exit this process when processes of an open engine have died and vLLM has not noticed; to be run on a thread."""
    missing: set[int] = set()
    while True:
        time.sleep(_NOTICE_WITHIN)
        # Normally vLLM notices between two checks, and the engine closes.
        dead = {pid for engine in _open for pid in engine.dead_processes()}
        if still := dead & missing:
            logger.error("a process of the engine has ended (%s) and vLLM has not noticed", sorted(still))
            logging.shutdown()
            os._exit(ENGINE_DIED)
        missing = dead


def _start(spec: EngineSpec) -> Engine:
    started = time.perf_counter()
    backend = importlib.import_module(f"mteb_vllm.engines.{'replicas' if spec.replicated else spec.backend}")
    environment.apply_variables(spec.env)
    try:
        with garbage_collection_paused():
            engine: Engine = backend.load(spec)
    except BaseException:
        environment.restore_variables()
        raise
    if engine.in_process:
        engine.threading = environment.effective_threading_variables()
    elif not engine.threading:
        # A separate process reads the variables when it starts.
        engine.threading = environment.threading_variables(os.environ)
    if engine.late:
        logger.warning("torch was loaded before these variables were set: %s", engine.late)
    engine.seconds = time.perf_counter() - started
    logger.info("%s opened in %.1f s: %s", spec.backend, engine.seconds, engine.resolved)
    return engine


def _plain(value: object) -> Json:
    """Convert a value to JSON types such that different values stay different."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(value):
        return callable_identity(value)
    return f"{type(value).__name__}: {value!r}"
