"""The base class of the wrappers: an engine, its settings, and the metadata that mteb requires of a model."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from mteb.models.model_meta import ModelMeta, ScoringFunction

from mteb_vllm.engines.arguments import (
    backend_of,
    cluster_problem,
    replicas_problem,
    resolve_arguments,
    unknown_arguments,
)
from mteb_vllm.engines.base import Convert, Engine, EngineSpec, is_open, open_engine
from mteb_vllm.errors import ModelError
from mteb_vllm.models.files import Model, find_model, missing_files
from mteb_vllm.results.counters import Work
from mteb_vllm.results.measurements import EngineRecord
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.plain import Json, JsonObject
from mteb_vllm.util.setting_names import SettingNames
from mteb_vllm.util.type_names import require

if TYPE_CHECKING:
    from typing_extensions import Self
    from vllm import LLM

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Reports how many texts or pairs of a call are done."""

    def __call__(self, what: str, done: int, total: int, unit: str = "texts") -> None:
        """Report progress.

        Args:
            what: A label of the texts or pairs.
            done: How many are done.
            total: How many there are.
            unit: "texts" or "pairs".
        """


class Recorder(Protocol):
    """Keeps some of the texts or pairs that pass through a wrapper, with their embeddings or scores."""

    def watch(self, task: str, side: str | None, texts: Iterable[str]) -> Iterator[str]:
        """Pass on texts that are about to be embedded, and choose those to keep."""

    def take(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Keep embeddings of the texts of the last call of `watch`.

        Args:
            embeddings: float32 array, shape (n_texts, dim).
        """

    def watch_pairs(self, task: str, texts: Iterable[str]) -> Iterator[str]:
        """Pass on the texts of one side of pairs: queries first, then documents."""

    def take_pairs(self, scores: npt.NDArray[np.float32]) -> None:
        """Keep scores of the pairs of the last two calls of `watch_pairs`.

        Args:
            scores: float32 array, shape (n_pairs,).
        """


class VllmWrapperBase:
    """A vLLM engine with the metadata that mteb requires of a model.

    Args:
        model: Name on the Hub, local folder, or mteb's `ModelMeta`.
        revision: Commit, branch or tag on the Hub; the revision of a `ModelMeta` wins.
        path: Local folder with the weights of `model`.
        env: Environment variables for vLLM.
        max_num_seqs: The most texts in one step of the engine.
        head_dtype: dtype of the pooling or classification head.
        replicas: How many engines share the work, each in a process of its own; "auto": one for each GPU or group of GPUs.
        ray_address: The Ray cluster on whose nodes they run, "auto" or "host:port"; None: on this machine.
        **engine_args: Any argument of vLLM's `EngineArgs`: dtype, max_model_len, pooler_config, ... Defaults as in
            `conf/engine/auto.yaml`: on a CPU float32, in this process; on a GPU vLLM's defaults.

    Raises:
        TypeError: if there is no such argument, with suggestions.
        ValueError: if there cannot be so many replicas, or not on that cluster.
        ModelError: if the model cannot be found or read.
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
        replicas: int | Literal["auto"] | None = None,
        ray_address: str | None = None,
        **engine_args: object,
    ) -> None:
        self._check_keywords(engine_args)
        require("model", model, (str, os.PathLike, ModelMeta))
        require("revision", revision, str)
        require("path", path, (str, os.PathLike))
        require("env", env, (dict, Mapping))
        on_cluster = ray_address is not None
        if (problem := replicas_problem(replicas, backend_of(engine_args), on_cluster=on_cluster)) is not None:
            raise ValueError(f"replicas={replicas}: {'. '.join(filter(None, problem))}")
        if on_cluster and (refused := cluster_problem(ray_address, replicas, engine_args, env or {})) is not None:
            raise ValueError(f"ray_address={ray_address!r}: {refused}")
        name, revision = (model.name, model.revision) if isinstance(model, ModelMeta) else (model, revision)
        found = find_model(name, revision, path, names=SettingNames.KEYWORDS)
        own = {"preset": "auto", "max_num_seqs": max_num_seqs, "head_dtype": head_dtype, "replicas": replicas}
        chosen = {**own, "ray_address": ray_address, **engine_args, "env": env}
        spec = EngineSpec(found, self.convert, *resolve_arguments(chosen, {}), names=SettingNames.KEYWORDS)
        if problems := (*missing_files(found), *spec.applied.refused):
            raise ModelError("; ".join(problems))
        self._start(spec, model if isinstance(model, ModelMeta) else None)
        self._owner = True
        self.engine  # noqa: B018 - opened now, so that errors appear in the constructor

    @classmethod
    def _check_keywords(cls, engine_args: Mapping[str, object]) -> None:
        """Raise TypeError for keywords that are no arguments of the wrapper or of its backend."""
        own = {name for base in cls.__mro__ for name in inspect.signature(base).parameters}
        unknown = unknown_arguments(
            engine_args, backend_of(engine_args), own - {"self", "args", "kwargs", "engine_args"}
        )
        if unknown:
            lines = [
                f"{cls.__name__} has no argument {name!r}" + (f". Did you mean {' or '.join(near)}?" if near else "")
                for name, near in unknown.items()
            ]
            raise TypeError("\n".join(lines))

    def _start(self, spec: EngineSpec, meta: ModelMeta | None) -> None:
        self.spec = spec
        self._engine = None
        self.work = Work()
        # (task, side) -> the prefix of the texts, its key, and one rendered example.
        self.applied: dict[tuple[str, str | None], dict[str, str | None]] = {}
        self._meta = meta
        self._fixed_settings: JsonObject = {}
        self.set_extra_settings({})

    def set_fixed_settings(self, settings: Mapping[str, Json]) -> None:
        """Include further settings in the fingerprint, permanently."""
        self._fixed_settings = dict(settings)
        self.set_extra_settings({})

    def set_extra_settings(self, settings: Mapping[str, Json]) -> None:
        """Include further settings in the fingerprint, such as a reranker's first stage, in place of earlier ones."""
        self.mteb_model_meta = model_meta(self.spec.model, fingerprint({**self.settings(), **settings}), self._meta)

    def settings(self) -> JsonObject:
        """Return everything that can change this model's results, as plain values."""
        return {"engine": self.spec.settings(), **self._fixed_settings}

    @property
    def engine(self) -> Engine:
        """The open engine; opens it if necessary.

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
        """Return the record of the engine; None if it was never opened."""
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
            text_reason=self._engine.takes_text,
            replicas=self.spec.replicas,
            replicas_lost=self._engine.replicas_lost,
            ray_address=self.spec.ray_address,
            nodes=list(self._engine.nodes),
        )

    @property
    def llm(self) -> LLM:
        """Return vLLM's `LLM`; with several replicas there is none in this process."""
        llm: LLM = self.engine.llm
        return llm

    def cleanup(self) -> None:
        """Release the engine, which closes it and frees its memory unless another wrapper uses it.

        Can be called repeatedly; encoding a text afterwards opens the engine again.
        """
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cleanup()

    def __del__(self) -> None:
        # Without contextlib, since modules may be gone at interpreter shutdown. `atexit` closes the engine.
        try:  # noqa: SIM105
            self.cleanup()
        except Exception:
            pass


def model_meta(model: Model, settings_hash: str, meta: ModelMeta | None = None) -> ModelMeta:
    """Return mteb's metadata of a model, with the hash of the settings, by which mteb's cache distinguishes settings.

    The metadata has only the hash and never prompts, since mteb maps several characters to one in the names of folders.
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
