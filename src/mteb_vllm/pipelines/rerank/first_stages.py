"""First stages, which retrieve the candidates for a reranker.

`BM25` and `Dense` retrieve, `Saved` loads earlier predictions. `Random` and `Oracle` are the lower and the upper bound:
random candidates, and candidates that include all relevant documents.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mteb_vllm.config.schema import (
    InstructionConfig,
    ModelConfig,
    NotNegative,
    NotNegativeInt,
    PathName,
    Share,
    TextsByKey,
)
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.errors import FirstStageError, Mistake
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.pipelines.rerank.candidates import DrawnSearch, SavedSearch, search_meta
from mteb_vllm.results.lookup import predictions_changed
from mteb_vllm.util.files import read_json
from mteb_vllm.util.fingerprint import METHOD
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.suggestions import nearest

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import SearchProtocol

    from mteb_vllm.wrappers import VllmEncoderWrapper

# Languages for which bm25s has stop words.
_STOPWORDS = ("en", "de", "nl", "fr", "es", "pt", "it", "ru", "sv", "no", "zh")


class _Configured:
    """Base class of the classes that `pipeline.first_stage` may use."""

    is_first_stage: ClassVar[bool] = True
    spec: ClassVar[EngineSpec | None] = None
    encoder: ClassVar[Any] = None
    prompts: Any = None

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return type(self).__name__.lower()

    def mistakes(self, where: str, tasks: Sequence[str]) -> list[Mistake]:
        """Return the errors in its fields that their types do not rule out.

        Args:
            where: The key of its section in the configuration.
            tasks: The names of the tasks to retrieve for.
        """
        return []


@dataclass(frozen=True, kw_only=True)
class BM25(_Configured):
    """mteb's BM25 (`mteb/baseline-bm25s`); stemmer and stop words follow the task's language.

    Attributes:
        k1: Term-frequency saturation: higher values saturate more slowly.
        b: Document-length normalisation, from 0 (none) to 1 (full).
        stopwords: Language of the stop words, as named by bm25s ("en"); None: the task's language.
        stemmer_language: Language of the stemmer, as named by PyStemmer ("english"); None: the task's language.
    """

    k1: NotNegative = 1.5
    b: Share = 0.75
    stopwords: str | None = None
    stemmer_language: str | None = None

    def mistakes(self, where: str, tasks: Sequence[str]) -> list[Mistake]:
        """Return the errors for languages that bm25s or PyStemmer do not support."""
        import Stemmer

        found = []
        for name, choices in (("stopwords", _STOPWORDS), ("stemmer_language", Stemmer.algorithms())):
            value = getattr(self, name)
            if value is not None and value not in choices:
                near = tuple(suggest(f"{where}.{name}", choice) for choice in nearest(value, choices))
                allowed = f"Allowed: {', '.join(choices)}."
                found.append(Mistake(f"{where}.{name}", "there is no such language", allowed, near, value=f"{value}"))
        return found

    def settings(self, task: str) -> JsonObject:
        """Return its parameters and the versions that its ranking depends on."""
        versions = {name: importlib.metadata.version(name) for name in ("bm25s", "PyStemmer", "mteb")}
        return {"kind": "bm25", **asdict(self), "versions": versions, "method": METHOD}

    def searcher(self, task: AbsTask) -> SearchProtocol:
        """Return mteb's BM25 with these parameters."""
        import mteb
        from mteb.models.model_implementations.bm25 import BM25Search

        search: Any = BM25Search(**asdict(self))
        meta = mteb.get_model_meta("mteb/baseline-bm25s")
        search.mteb_model_meta = search_meta(
            str(meta.name), str(meta.revision), self.settings(task.metadata.name), meta
        )
        made: SearchProtocol = search
        return made


@dataclass(frozen=True, kw_only=True)
class Dense(_Configured):
    """The configuration of an embedding model in vLLM, with its own engine.

    Attributes:
        model: Its recipe.
        engine: Its engine arguments.
        prompts: Its prompts.
        instruction: Its instruction template.
    """

    model: ModelConfig
    engine: dict[str, Any] = field(default_factory=dict)
    prompts: TextsByKey = field(default_factory=lambda: {"from_model": True})
    instruction: InstructionConfig = field(default_factory=lambda: InstructionConfig(from_model=True))


@dataclass(frozen=True)
class EncoderStage:
    """A first stage that embeds and searches the whole corpus: a `Dense`, resolved for this machine.

    Attributes:
        spec: The specification of its engine.
        prompts: Its prompts.
        chunk_size: The maximum number of distinct texts passed to the engine at once.
    """

    name: ClassVar[str] = "dense"

    spec: EngineSpec
    prompts: Prompts
    chunk_size: int = 8192

    def settings(self, task: str) -> JsonObject:
        """Return the encoder's settings, such that results are shared with evaluations of the same model."""
        return {"engine": self.spec.settings(), "prompts": self.prompts.settings()}

    @functools.cached_property
    def encoder(self) -> VllmEncoderWrapper:
        """The wrapper; its engine is opened on first use."""
        from mteb_vllm.wrappers import VllmEncoderWrapper

        return VllmEncoderWrapper.from_spec(self.spec, self.prompts, self.chunk_size)

    def searcher(self, task: AbsTask) -> VllmEncoderWrapper:
        """Return the encoder."""
        return self.encoder


@dataclass(frozen=True, kw_only=True)
class Saved(_Configured):
    """Predictions of an earlier run, in mteb's format.

    Attributes:
        path: A file, or a folder with one `<Task>_predictions.json` per task.
    """

    path: PathName

    def file(self, task: str) -> Path:
        """Return the path of a task's file, whether it exists or not."""
        path = Path(os.path.expanduser(self.path))  # noqa: PTH111 - leaves an unknown user's path unchanged
        return path / f"{task}_predictions.json" if os.path.isdir(path) else path  # noqa: PTH112 - false for invalid names

    def mistakes(self, where: str, tasks: Sequence[str]) -> list[Mistake]:
        """Return the errors for tasks without a predictions file."""
        wrong = functools.partial(Mistake, f"{where}.path", value=self.path)
        files = [self.file(task) for task in tasks]
        missing = [file for file in files if not os.path.isfile(file)]  # noqa: PTH113
        if not missing:
            several = len(tasks) > 1 and len(set(files)) == 1
            what = f"is a single file, but there are {len(tasks)} tasks"
            return [wrong(what, "Set it to a folder with one <Task>_predictions.json per task.")] if several else []
        folder = Path(os.path.expanduser(self.path))  # noqa: PTH111
        if not os.path.isdir(folder):  # noqa: PTH112
            return [wrong("there is no such file or folder")]
        there = ", ".join(sorted(file.name for file in folder.glob("*_predictions.json")))
        return [wrong(f"contains no {missing[0].name}", f"It contains: {there or 'no predictions'}.")]

    def settings(self, task: str) -> JsonObject:
        """Return the hash of the task's file."""
        return {"kind": "saved", "digest": _digest(self.file(task)), "method": METHOD}

    def searcher(self, task: AbsTask) -> SavedSearch:
        """Return the predictions as a search.

        Raises:
            FirstStageError: if they cannot be read, or belong to another task or revision of its data.
        """
        file = self.file(task.metadata.name)
        content = _content(file)
        try:
            made_by: Any = content["mteb_model_meta"]
            name, revision = str(made_by["model_name"]), str(made_by["revision"])
        except (KeyError, TypeError) as error:
            raise FirstStageError(
                f"{file} is not a predictions file in mteb's format: {type(error).__name__} {error}"
            ) from None
        if predictions_changed(file):
            raise FirstStageError(f"{file} was changed after it was written: its checksum does not match")
        about = content.get("mteb_vllm")
        about = about if isinstance(about, dict) else {}
        named = file.name.removesuffix("_predictions.json")
        of = about.get("task") or (named if named != file.name else task.metadata.name)
        if of != task.metadata.name:
            raise FirstStageError(f"{file} contains predictions for {of}, not for {task.metadata.name}")
        revised = about.get("dataset_revision", task.metadata.revision)
        if revised != task.metadata.revision:
            raise FirstStageError(
                f"{file} was computed on revision {revised} of the data, but the task now uses {task.metadata.revision}"
            )
        meta = search_meta(name if "/" in name else f"local/{name}", revision, self.settings(task.metadata.name))
        return SavedSearch(file, content, meta)


def _digest(file: Path) -> str:
    """Return the hash of a predictions file; cached until the file changes."""
    try:
        status = file.stat()
        return _digest_once(file, (status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError as error:
        raise FirstStageError(f"the predictions file {file} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=256)
def _digest_once(file: Path, stamp: tuple[int, ...]) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _content(file: Path) -> dict[str, object]:
    return _content_once(file, _digest(file))


@functools.lru_cache(maxsize=1)
def _content_once(file: Path, digest: str) -> dict[str, object]:
    try:
        found = read_json(file)
    except ValueError as error:
        raise FirstStageError(f"{file} is not a predictions file in mteb's format: {error}") from None
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Random(_Configured):
    """Random documents: the lower bound for a first stage.

    Attributes:
        seed: The random seed.
    """

    seed: NotNegativeInt = 0
    kind: ClassVar[str] = "random"

    def settings(self, task: str) -> JsonObject:
        """Return the seed."""
        return {"kind": self.kind, "seed": self.seed, "method": METHOD}

    def searcher(self, task: AbsTask) -> DrawnSearch:
        """Return a search model that draws documents at random."""
        meta = search_meta(f"mteb-vllm/{self.kind}", str(METHOD), self.settings(task.metadata.name))
        return DrawnSearch(task, meta, self.seed, relevant_first=False)


@dataclass(frozen=True, kw_only=True)
class Oracle(Random):
    """The relevant documents, then random ones: with these a reranker reaches its score for perfect retrieval."""

    kind: ClassVar[str] = "oracle"

    def searcher(self, task: AbsTask) -> DrawnSearch:
        """Return a search model that ranks the relevant documents first."""
        meta = search_meta(f"mteb-vllm/{self.kind}", str(METHOD), self.settings(task.metadata.name))
        return DrawnSearch(task, meta, self.seed, relevant_first=True)
