"""The wrappers of embedding models: as encoders, and as rerankers by cosine similarity."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from mteb_vllm.engines.base import Convert, EngineSpec
from mteb_vllm.inference.embedding_cache.cache import EmbeddingCache, Space
from mteb_vllm.inference.encoding import encode_texts, loader_texts
from mteb_vllm.inference.scoring import deduplicate
from mteb_vllm.models.prompts import Prompts, load_template
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.setting_names import SettingNames
from mteb_vllm.util.type_names import require
from mteb_vllm.wrappers.base import Recorder, VllmWrapperBase

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput, EncodeKwargs, PromptType
    from torch.utils.data import DataLoader
    from typing_extensions import Self, Unpack

logger = logging.getLogger(__name__)


class EmbeddingWrapper(VllmWrapperBase):
    """The base class of the wrappers of embedding models: an engine and prompts.

    Args:
        model: Name on the Hub, local folder, or mteb's `ModelMeta`.
        revision: Commit, branch or tag on the Hub.
        prompt_dict: Prompts by mteb's precedence: `Task-query`, `Task`, `TaskType-query`, `TaskType`, `query` or
            `document`. With `use_instructions` the values are instructions.
        use_instructions: Whether to prefix texts with `instruction_template`; if no key of `prompt_dict` applies, with the
            task's own instruction.
        instruction_template: A text with `{instruction}`, or a callable `(instruction, prompt_type) -> str`.
        apply_instruction_to_documents: Whether documents get an instruction too.
        chunk_size: How many texts are passed to the engine at once.
        **kwargs: See `VllmWrapperBase`.

    Raises:
        ValueError: if `use_instructions` is set without a template, or the template has no `{instruction}`.
    """

    convert: Convert = "embed"
    embedding_cache: EmbeddingCache | None = None
    recorder: Recorder | None = None

    def __init__(
        self,
        model: str | ModelMeta,
        revision: str | None = None,
        *,
        prompt_dict: Mapping[str, str] | None = None,
        use_instructions: bool = False,
        instruction_template: str | Callable[[str, PromptType | None], str] | None = None,
        apply_instruction_to_documents: bool = True,
        chunk_size: int = 8192,
        **kwargs: Any,
    ) -> None:
        require("prompt_dict", prompt_dict, (dict, Mapping))
        require("chunk_size", chunk_size, int)
        if use_instructions and instruction_template is None:
            raise ValueError(
                "To use instructions, an instruction_template must be provided. For example, `Instruction: {instruction}`"
            )
        if isinstance(instruction_template, str):
            if "{instruction}" not in instruction_template and ":" not in instruction_template:
                raise ValueError("Instruction template must contain the string '{instruction}'.")
            instruction_template = load_template(instruction_template, SettingNames.KEYWORDS)
        self._set(
            Prompts(
                values=dict(prompt_dict or {}),
                source="prompt_dict" if prompt_dict else "none",
                template=instruction_template if use_instructions else None,
                apply_to_documents=apply_instruction_to_documents,
            ),
            chunk_size,
        )
        super().__init__(model, revision, **kwargs)

    @classmethod
    def from_spec(cls, spec: EngineSpec, prompts: Prompts, chunk_size: int = 8192) -> Self:
        """Return a wrapper that opens its engine when it encodes the first text, since cached results need no engine.

        It does not own the engine, which the next point of a sweep may use too; the caller closes it.
        """
        wrapper = cls.__new__(cls)
        wrapper._set(prompts, chunk_size)
        wrapper._start(spec, None)
        return wrapper

    def _set(self, prompts: Prompts, chunk_size: int) -> None:
        self.prompts = prompts
        self.chunk_size = chunk_size

    def settings(self) -> JsonObject:
        """Return everything that can change this model's results, as plain values."""
        return {**super().settings(), "prompts": self.prompts.settings()}

    def embed(
        self,
        texts: Iterable[str],
        n_texts: int,
        task_metadata: TaskMetadata,
        hf_subset: str,
        prompt_type: PromptType | None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts, prefixed with the prompt of their task and side.

        Args:
            texts: The texts.
            n_texts: The number of texts.
            task_metadata: Metadata of the task; determines the prompt.
            hf_subset: The evaluated subset.
            prompt_type: Query, document, or None if the task has neither.

        Returns:
            embeddings: float32 array, shape (n_texts, dim).

        Raises:
            NonFiniteError: if the engine returns NaN or Inf.
        """
        prefix = self.prompts.prefix(task_metadata, prompt_type)
        side = prompt_type.value if prompt_type else None
        if n_texts == 0:
            return np.empty((0, self.engine.dim), dtype=np.float32)
        applied = {"prefix": prefix.text, "key": prefix.key, "example": None}
        if self.recorder is not None:
            texts = self.recorder.watch(task_metadata.name, side, texts)

        def with_example() -> Iterator[str]:
            for text in texts:
                if applied["example"] is None:
                    applied["example"] = (prefix.text + text)[:500]
                yield text

        if (task_metadata.name, side) not in self.applied:
            logger.info("%s, %s: prefix %r (key %s)", task_metadata.name, side or "texts", prefix.text, prefix.key)
            self.applied[task_metadata.name, side] = applied
        label = " ".join(part for part in (hf_subset if hf_subset != "default" else "", side or "texts") if part)
        report = self.progress
        embeddings, work = encode_texts(
            self.engine,
            with_example(),
            n_texts,
            prefix=prefix.text,
            chunk_size=self.chunk_size,
            progress=None if report is None else lambda done, total: report(label, done, total),
            cache=self._cache_space(),
        )
        self.work.add(work)
        if self.recorder is not None:
            self.recorder.take(embeddings)
        return embeddings

    def _cache_space(self) -> Space | None:
        """Return this engine's part of the embedding cache; None without a cache."""
        if self.embedding_cache is None:
            return None
        return self.embedding_cache.space(self.engine.vectors_fingerprint, self.engine.dim)


class VllmEncoderWrapper(EmbeddingWrapper, AbsEncoder):
    """An embedding model in vLLM, as mteb's `EncoderProtocol`; for its arguments see `EmbeddingWrapper`."""

    mteb_model_meta: ModelMeta  # mteb's class allows None

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> npt.NDArray[np.float32]:
        """Embed the texts of a data loader.

        Args:
            inputs: Batches with the key "text".
            task_metadata: Metadata of the task; determines the prompt.
            hf_split: The evaluated split.
            hf_subset: The evaluated subset.
            prompt_type: Query, document, or None if the task has neither.
            **kwargs: mteb's encode arguments, not used: batch size and progress bar are up to the engine.

        Returns:
            embeddings: float32 array, shape (n_texts, dim).

        Raises:
            NonFiniteError: if the engine returns NaN or Inf.
        """
        texts, n_texts = loader_texts(inputs)
        return self.embed(texts, n_texts, task_metadata, hf_subset, prompt_type)


class VllmEncoderReranker(EmbeddingWrapper):
    """An embedding model as mteb's `CrossEncoderProtocol`: scores are cosine similarities of a pair's embeddings.

    Each distinct text is embedded once, and only candidates are. For its arguments see `EmbeddingWrapper`.
    """

    def settings(self) -> JsonObject:
        """Return everything that can change this model's results, as plain values."""
        return {**super().settings(), "scoring": "cosine"}

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> npt.NDArray[np.float32]:
        """Score query-document pairs.

        Args:
            inputs1: Batches of queries, key "text".
            inputs2: Batches of documents, key "text", one for each query.
            task_metadata: Metadata of the task; determines the prompts.
            hf_split: The evaluated split.
            hf_subset: The evaluated subset.
            prompt_type: Not used.
            **kwargs: mteb's encode arguments, not used.

        Returns:
            scores: float32 array, shape (n_pairs,), each the cosine similarity of two embeddings.

        Raises:
            NonFiniteError: if the engine returns NaN or Inf.
        """
        from mteb.types import PromptType

        sides = []
        for inputs, side in ((inputs1, PromptType.query), (inputs2, PromptType.document)):
            rows, texts = deduplicate(loader_texts(inputs)[0])
            vectors = self.embed(texts, len(texts), task_metadata, hf_subset, side)
            # A zero vector has no direction; its cosine similarity becomes 0.
            lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            sides.append((rows, vectors / lengths))
        (query_rows, queries), (document_rows, documents) = sides
        scores = np.empty(len(query_rows), dtype=np.float32)
        for at in range(0, len(scores), 65_536):
            block = slice(at, at + 65_536)
            np.einsum("ij,ij->i", queries[query_rows[block]], documents[document_rows[block]], out=scores[block])
        return scores
