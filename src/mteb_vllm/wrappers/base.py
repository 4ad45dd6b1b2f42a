"""What all wrappers share: an engine, its settings, and the metadata that mteb asks of a model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from mteb.models.model_meta import ModelMeta, ScoringFunction

from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import Convert, Engine, EngineSpec, is_open, open_engine
from mteb_vllm.errors import ModelError
from mteb_vllm.models.files import Model, find_model, missing_files
from mteb_vllm.results.counters import Work
from mteb_vllm.results.measurements import EngineRecord
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.plain import Json, JsonObject

if TYPE_CHECKING:
    from typing_extensions import Self
    from vllm import LLM

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Is told how many of a call's texts or pairs are computed."""

    def __call__(self, what: str, done: int, total: int, unit: str = "texts") -> None:
        """Take note.

        Args:
            what: Which texts or pairs.
            done: How many are computed.
            total: How many there are.
            unit: "texts" or "pairs".
        """


class Recorder(Protocol):
    """Keeps some of the texts or pairs that pass through a wrapper, with what was computed for them."""

    def watch(self, task: str, side: str | None, texts: Iterable[str]) -> Iterator[str]:
        """Pass on texts that are about to be embedded, and note those to keep."""

    def take(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Keep embeddings of the texts that were watched last.

        Args:
            embeddings: float32 array, shape (n_texts, dim).
        """

    def watch_pairs(self, task: str, texts: Iterable[str]) -> Iterator[str]:
        """Pass on the texts of one side of pairs: queries first, then documents."""

    def take_pairs(self, scores: npt.NDArray[np.float32]) -> None:
        """Keep the scores of the pairs that were watched last.

        Args:
            scores: float32 array, shape (n_pairs,).
        """


class VllmWrapperBase:
    """A vLLM engine with the metadata that mteb asks of a model.

    Args:
        model: Name on the Hub, local folder, or mteb's `ModelMeta`.
        revision: Commit, branch or tag on the Hub; a `ModelMeta`'s own wins.
        path: Local folder with the weights of the model that `model` names.
        env: Environment variables that vLLM is opened with.
        max_num_seqs: Texts in one step of the engine.
        head_dtype: dtype of the pooling or classification head.
        **engine_args: Any argument of vLLM's `EngineArgs`: dtype, max_model_len, pooler_config, ... What is not set is as
            the configuration's `engine=auto` has it: on a CPU float32, in this process; on a GPU vLLM's defaults.

    Raises:
        ModelError: if the model cannot be had.
        EngineError: if vLLM does not open with these arguments.
        MissingPackageError: if vLLM is not installed.
    """

    convert: Convert = "embed"
    mteb_model_meta: ModelMeta
    opening: Callable[[], contextlib.AbstractContextManager[None]] | None = None
    progress: Progress | None = None
    _engine: Engine | None = None
    _owner = False
    n_opened = 0

    def __init__(
        self,
        model: str | ModelMeta,
        revision: str | None = None,
        *,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        max_num_seqs: int = 128,
        head_dtype: str | None = None,
        **engine_args: object,
    ) -> None:
        name, revision = (model.name, model.revision) if isinstance(model, ModelMeta) else (model, revision)
        found = find_model(name, revision, path)
        chosen = {"preset": "auto", "max_num_seqs": max_num_seqs, "head_dtype": head_dtype, **engine_args, "env": env}
        spec = EngineSpec(found, self.convert, *resolve_arguments(chosen, {}))
        if problems := (*missing_files(found), *spec.applied.refused):
            raise ModelError("; ".join(problems))
        self._start(spec, model if isinstance(model, ModelMeta) else None)
        self._owner = True
        self.engine  # noqa: B018 - opened now: whoever constructs a wrapper wants to know whether it works

    def _start(self, spec: EngineSpec, meta: ModelMeta | None) -> None:
        self.spec = spec
        self._engine = None
        self.work = Work()
        # (task, side) -> what was in front of the texts, by which key, and one rendered example.
        self.applied: dict[tuple[str, str | None], dict[str, str | None]] = {}
        self._meta = meta
        self._always: JsonObject = {}
        self.set_extra_settings({})

    def set_fixed_settings(self, settings: Mapping[str, Json]) -> None:
        """Count more among the settings that results depend on, whatever `set_extra_settings` is given later."""
        self._always = dict(settings)
        self.set_extra_settings({})

    def set_extra_settings(self, settings: Mapping[str, Json]) -> None:
        """Counts more among the settings that results depend on from now on, as the first stage that a reranker follows."""
        self.mteb_model_meta = model_meta(self.spec.model, fingerprint({**self.settings(), **settings}), self._meta)

    def settings(self) -> JsonObject:
        """Everything that changes this model's results, as plain values."""
        return {"engine": self.spec.settings(), **self._always}

    @property
    def engine(self) -> Engine:
        """The open engine; opened now if it is not.

        Raises:
            EngineError: if vLLM does not open with these arguments.
        """
        if self._engine is None or self._engine.llm is None:
            new = not is_open(self.spec)
            with self.opening() if new and self.opening is not None else contextlib.nullcontext():
                self._engine = open_engine(self.spec)
            self.n_opened += new
            if self._owner:
                self._engine.owners.add(id(self))
        return self._engine

    @property
    def last_engine(self) -> Engine | None:
        """The engine that was used last, open or closed; None if there was none."""
        return self._engine

    def engine_record(self) -> EngineRecord | None:
        """Return how the engine was opened; None if it was not."""
        if self._engine is None:
            return None
        return EngineRecord(
            backend=self.spec.backend,
            preset=self.spec.preset,
            fingerprint=self.spec.fingerprint,
            opened=self.n_opened,
            seconds=self._engine.seconds,
            resolved=self._engine.resolved,
            threading=self._engine.threading,
            late=self._engine.late,
            warnings=list(self._engine.warnings),
        )

    @property
    def llm(self) -> LLM:
        """Return vLLM's `LLM`."""
        llm: LLM = self.engine.llm
        return llm

    def cleanup(self) -> None:
        """Lets go of the engine, which closes and gives its memory back unless another wrapper shares it.

        Again does nothing; a text that is encoded afterwards opens the engine again.
        """
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cleanup()

    def __del__(self) -> None:
        # No contextlib: at interpreter shutdown modules may be gone already. The engine itself is closed by `atexit`.
        try:  # noqa: SIM105
            self.cleanup()
        except Exception:
            pass


def model_meta(model: Model, settings_hash: str, meta: ModelMeta | None = None) -> ModelMeta:
    """Return mteb's metadata of a model, with the hash of the settings, by which mteb's cache tells two settings apart.

    Only the hash goes there, never prompts: mteb maps several characters to one before it names a folder by them.
    """
    if meta is None:
        from mteb.models.model_implementations import MODEL_REGISTRY

        meta = MODEL_REGISTRY.get(model.name)
    known = {
        "dot": ScoringFunction.DOT_PRODUCT,
        "dot_product": ScoringFunction.DOT_PRODUCT,
        "euclidean": ScoringFunction.EUCLIDEAN,
        "manhattan": ScoringFunction.MANHATTAN,
    }
    similarity = model.sentence_transformers.get("similarity_fn_name")
    if meta is None:
        meta = ModelMeta.create_empty({"similarity_fn_name": known.get(str(similarity), ScoringFunction.COSINE)})
    name = model.name if "/" in model.name else f"local/{model.name}"
    return meta.model_copy(
        update={
            "name": name,
            "revision": model.revision,
            "loader": None,
            "modalities": ["text"],
            "experiment_kwargs": {"settings": settings_hash},
        }
    )
