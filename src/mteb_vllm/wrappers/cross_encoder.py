"""Rerankers in vLLM that read a query and a document together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from mteb.models.model_meta import ModelMeta

from mteb_vllm.engines.base import Convert, Engine, EngineSpec
from mteb_vllm.errors import ModelError
from mteb_vllm.inference.encoding import loader_texts
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models import score_templates
from mteb_vllm.models.architectures import NOT_ONE_LABEL
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.models.score_templates import Activation, ScoreTemplate
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.wrappers.base import Recorder, VllmWrapperBase

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput, EncodeKwargs, PromptType
    from torch.utils.data import DataLoader
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)


class VllmCrossEncoderWrapper(VllmWrapperBase):
    """A cross-encoder in vLLM, as mteb's `CrossEncoderProtocol`.

    Args:
        model: Name on the Hub, local folder, or mteb's `ModelMeta`.
        revision: Commit, branch or tag on the Hub.
        query_prefix: What stands in front of each query.
        document_prefix: What stands in front of each document.
        score_template: The jinja template that a pair is read through (vLLM's `chat_template`): `messages` holds one of the
            role `query` and one of the role `document`; `instruction` is the task's own instruction.
        prompt_dict: Instructions to take instead of the tasks' own, by mteb's precedence: `Task-query`, `Task`,
            `TaskType-query`, `TaskType`, `query`.
        activation: What is made of the logit: "sigmoid", "none" for the raw logit; None: what the model's files say.
        chunk_size: How many different pairs are handed to the engine at once.
        **kwargs: See `VllmWrapperBase`.

    Raises:
        ModelError: if the model cannot be had, or gives other than one score for a pair.
        ValueError: if there are instructions, but no template that takes one; if a template lacks or changes a text.
    """

    convert: Convert = "classify"
    recorder: Recorder | None = None

    def __init__(
        self,
        model: str | ModelMeta,
        revision: str | None = None,
        *,
        query_prefix: str = "",
        document_prefix: str = "",
        score_template: str | None = None,
        prompt_dict: Mapping[str, str] | None = None,
        activation: Activation | None = None,
        chunk_size: int = 8192,
        **kwargs: Any,
    ) -> None:
        template = ScoreTemplate(score_template, query_prefix, document_prefix, activation)
        if prompt_dict and not template.takes_instruction:
            raise ValueError(
                "prompt_dict holds instructions, and there is no score_template that says {{ instruction }}"
            )
        if score_template is not None and (
            wrong := score_templates.template_mistakes("score_template", score_template)
        ):
            raise ValueError(str(wrong[0]))
        source = "prompt_dict" if prompt_dict else "none"
        self._set(template, Prompts(values=dict(prompt_dict or {}), source=source), chunk_size)
        super().__init__(model, revision, **kwargs)

    @classmethod
    def from_spec(
        cls, spec: EngineSpec, template: ScoreTemplate, prompts: Prompts, chunk_size: int = 8192
    ) -> VllmCrossEncoderWrapper:
        """A wrapper whose engine opens when the first pair is scored; whoever planned it closes it."""
        wrapper = cls.__new__(cls)
        wrapper._set(template, prompts, chunk_size)
        wrapper._start(spec, None)
        return wrapper

    def _set(self, template: ScoreTemplate, prompts: Prompts, chunk_size: int) -> None:
        self.template = template
        self.prompts = prompts
        self.chunk_size = chunk_size

    @property
    def engine(self) -> Engine:
        """The open engine; opened now if it is not.

        Raises:
            EngineError: if vLLM does not open with these arguments.
            ModelError: if the model gives other than one score for a pair, or has a template of its own.
        """
        engine = super().engine
        if engine.labels not in (None, 1):
            self.cleanup()
            raise ModelError(f"{self.spec.model.name} {NOT_ONE_LABEL.format(labels=engine.labels)}")
        if engine.own_template:
            self.cleanup()
            raise ModelError(
                f"vLLM reads pairs for {self.spec.model.name} through a template of its own, to which none can be cut"
            )
        return engine

    def settings(self) -> JsonObject:
        """Everything that changes this model's results, as plain values."""
        return {
            **super().settings(),
            "score_template": self.template.settings(),
            "instructions": dict(self.prompts.values) if self.template.takes_instruction else None,
        }

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
        """Scores pairs of a query and a document, each different pair once.

        Args:
            inputs1: Batches of queries, key "text".
            inputs2: Batches of documents, key "text", as many.
            task_metadata: Metadata of the task; decides about the instruction.
            hf_split: The split that is evaluated.
            hf_subset: The subset that is evaluated.
            prompt_type: Not used.
            **kwargs: mteb's encode arguments, not used.

        Returns:
            scores: float32 array, shape (n_pairs,).

        Raises:
            NonFiniteError: if NaN or Inf comes out of the engine.
        """
        instruction = self.prompts.instruction(task_metadata, "query")
        text = instruction.text if self.template.takes_instruction else ""
        applied: dict[str, str | None] = {
            "prefix": text, "key": instruction.key if text else None, "example": None
        }  # fmt: skip
        if (task_metadata.name, "pair") not in self.applied:
            logger.info("%s: instruction %r (key %s)", task_metadata.name, text, applied["key"])
            self.applied[task_metadata.name, "pair"] = applied
        first: list[str] = []

        def prefixed(inputs: DataLoader[BatchedInput], prefix: str) -> Iterator[str]:
            texts = loader_texts(inputs)[0]
            if self.recorder is not None:
                texts = self.recorder.watch_pairs(task_metadata.name, texts)
            for at, body in enumerate(texts):
                if at == 0:
                    first.append(body)
                yield prefix + body

        report = self.progress
        label = " ".join(part for part in (hf_subset if hf_subset != "default" else "", "pairs") if part)
        queries = prefixed(inputs1, self.template.query_prefix)
        documents = prefixed(inputs2, self.template.document_prefix)
        scores, work = score_pairs(
            self.engine,
            queries,
            documents,
            template=self.template.with_instruction(text),
            activation=self.template.activation or self.spec.applied.activation,
            chunk_size=self.chunk_size,
            progress=None if report is None else lambda done, total: report(label, done, total, "pairs"),
        )
        if len(first) == 2:
            applied["example"] = self.template.render(first[0], first[1], text, self.engine.tokenizer)[:1000]
        self.work.add(work)
        if self.recorder is not None:
            self.recorder.take_pairs(scores)
        return scores
