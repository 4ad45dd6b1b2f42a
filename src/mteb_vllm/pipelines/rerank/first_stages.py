"""First stages: what retrieves the candidates that a reranker then reads.

BM25 and an embedding model retrieve; `Saved` reads what was retrieved before. All others lie between two anchors:
`Random` draws its candidates, and those of `Oracle` hold every relevant document.
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

from mteb_vllm.config.schema import InstructionConfig, ModelConfig, NotNegative, NotNegativeInt, Share, TextsByKey
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.errors import FirstStageError, Mistake
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.pipelines.rerank.candidates import DrawnSearch, SavedSearch, search_meta
from mteb_vllm.results.lookup import changed_since
from mteb_vllm.util.files import read_json
from mteb_vllm.util.fingerprint import METHOD
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.suggestions import nearest

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import SearchProtocol

    from mteb_vllm.wrappers import VllmEncoderWrapper

# Whose stop words bm25s has, by mteb's names.
_STOPWORDS = ("en", "de", "nl", "fr", "es", "pt", "it", "ru", "sv", "no", "zh")


class _Configured:
    """What `pipeline.first_stage` may name."""

    is_first_stage: ClassVar[bool] = True
    spec: ClassVar[EngineSpec | None] = None
    encoder: ClassVar[Any] = None
    prompts: Any = None

    @property
    def name(self) -> str:
        """What it is called."""
        return type(self).__name__.lower()

    def mistakes(self, where: str, tasks: Sequence[str]) -> list[Mistake]:
        """What is wrong with it beyond its types.

        Args:
            where: The part of the configuration that it is made of.
            tasks: The tasks that it shall retrieve for.
        """
        return []


@dataclass(frozen=True, kw_only=True)
class BM25(_Configured):
    """mteb's BM25 (`mteb/baseline-bm25s`), with stemmer and stop words by the task's language.

    Attributes:
        k1: How slowly the weight of a repeated term saturates.
        b: How much a document's length counts, from 0 to 1.
        stopwords: Whose stop words are left out, as bm25s names the language ("en"); None: the task's language's.
        stemmer_language: Whose stems are taken, as PyStemmer names it ("english"); None: the task's language's.
    """

    k1: NotNegative = 1.5
    b: Share = 0.75
    stopwords: str | None = None
    stemmer_language: str | None = None

    def mistakes(self, where: str, tasks: Sequence[str]) -> list[Mistake]:
        """Find languages that bm25s or PyStemmer do not have."""
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
    """An embedding model in vLLM, with an engine of its own.

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
    """A first stage that embeds and searches all of the corpus: what a `Dense` comes down to on this machine.

    Attributes:
        spec: Its engine.
        prompts: Its prompts.
        chunk_size: How many different texts are handed to the engine at once.
    """

    name: ClassVar[str] = "dense"

    spec: EngineSpec
    prompts: Prompts
    chunk_size: int = 8192

    def settings(self, task: str) -> JsonObject:
        """Return those of the encoder."""
        # The encoder's own: what an evaluation of the same model has computed is the same result.
        return {"engine": self.spec.settings(), "prompts": self.prompts.settings()}

    @functools.cached_property
    def encoder(self) -> VllmEncoderWrapper:
        """The wrapper; its engine opens when the first text is embedded."""
        from mteb_vllm.wrappers import VllmEncoderWrapper

        return VllmEncoderWrapper.planned(self.spec, self.prompts, self.chunk_size)

    def searcher(self, task: AbsTask) -> VllmEncoderWrapper:
        """Return the encoder."""
        return self.encoder


@dataclass(frozen=True, kw_only=True)
class Saved(_Configured):
    """Predictions of an earlier run, in mteb's form.

    Attributes:
        path: A file, or a folder that holds `<Task>_predictions.json` for each task.
    """

    path: str

    def file(self, task: str) -> Path:
        """The file for a task; it may not be there."""
        path = Path(os.path.expanduser(self.path))  # noqa: PTH111 - as it is where there is no such user
        return path / f"{task}_predictions.json" if os.path.isdir(path) else path  # noqa: PTH112 - says no of odd names

    def mistakes(self, where: str, tasks: Sequence[str]) -> list[Mistake]:
        """Find tasks without a file of predictions."""
        wrong = functools.partial(Mistake, f"{where}.path", value=self.path)
        files = [self.file(task) for task in tasks]
        missing = [file for file in files if not os.path.isfile(file)]  # noqa: PTH113
        if not missing:
            several = len(tasks) > 1 and len(set(files)) == 1
            what = f"is one file, and there are {len(tasks)} tasks"
            return [wrong(what, "Name a folder that holds <Task>_predictions.json for each.")] if several else []
        folder = Path(os.path.expanduser(self.path))  # noqa: PTH111
        if not os.path.isdir(folder):  # noqa: PTH112
            return [wrong("there is no such file or folder")]
        there = ", ".join(sorted(file.name for file in folder.glob("*_predictions.json")))
        return [wrong(f"holds no {missing[0].name}", f"It holds: {there or 'no predictions'}.")]

    def settings(self, task: str) -> JsonObject:
        """Return the digest of the task's file."""
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
            raise FirstStageError(f"{file} holds no predictions of mteb's: {type(error).__name__} {error}") from None
        if changed_since(file):
            raise FirstStageError(f"{file} was changed after it was written: it does not match its digest")
        about = content.get("mteb_vllm")
        about = about if isinstance(about, dict) else {}
        named = file.name.removesuffix("_predictions.json")
        of = about.get("task") or (named if named != file.name else task.metadata.name)
        if of != task.metadata.name:
            raise FirstStageError(f"{file} holds the predictions for {of}, and not for {task.metadata.name}")
        revised = about.get("dataset_revision", task.metadata.revision)
        if revised != task.metadata.revision:
            raise FirstStageError(
                f"{file} was made with revision {revised} of the data, and the task now has {task.metadata.revision}"
            )
        meta = search_meta(name if "/" in name else f"local/{name}", revision, self.settings(task.metadata.name))
        return SavedSearch(file, content, meta)


def _digest(file: Path) -> str:
    """The hash of a file of predictions; computed once while the file stays the same."""
    try:
        status = file.stat()
        return _digest_once(file, (status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError as error:
        raise FirstStageError(f"the predictions {file} cannot be read: {error.strerror}") from None


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
        raise FirstStageError(f"{file} holds no predictions of mteb's: {error}") from None
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Random(_Configured):
    """Documents drawn at random: the bottom, which every first stage should be far above.

    Attributes:
        seed: Of the draw.
    """

    seed: NotNegativeInt = 0
    kind: ClassVar[str] = "random"

    def settings(self, task: str) -> JsonObject:
        """Return the seed."""
        return {"kind": self.kind, "seed": self.seed, "method": METHOD}

    def searcher(self, task: AbsTask) -> DrawnSearch:
        """Return a search that draws documents."""
        meta = search_meta(f"mteb-vllm/{self.kind}", str(METHOD), self.settings(task.metadata.name))
        return DrawnSearch(task, meta, self.seed, relevant_first=False)


@dataclass(frozen=True, kw_only=True)
class Oracle(Random):
    """The relevant documents, then others drawn at random: what any reranker could reach if retrieval were perfect."""

    kind: ClassVar[str] = "oracle"

    def searcher(self, task: AbsTask) -> DrawnSearch:
        """Return a search that puts the relevant documents first."""
        meta = search_meta(f"mteb-vllm/{self.kind}", str(METHOD), self.settings(task.metadata.name))
        return DrawnSearch(task, meta, self.seed, relevant_first=True)
