"""The wrapper of cross-encoders."""

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
from mteb_vllm.models.architectures import label_count_error
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.models.score_templates import Activation, ScoreTemplate
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.type_names import require
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
        query_prefix: Prefix of each query.
        document_prefix: Prefix of each document.
        score_template: The jinja template that renders a pair (vLLM's `chat_template`): `messages` has one message of the
            role `query` and one of the role `document`; `instruction` is the task's instruction.
        prompt_dict: Instructions that replace the tasks' own, by mteb's precedence: `Task-query`, `Task`,
            `TaskType-query`, `TaskType`, `query`.
        activation: Activation of the logit: "sigmoid", "none" for the raw logit, None for that of the model's files.
        chunk_size: How many distinct pairs are passed to the engine at once.
        **kwargs: See `VllmWrapperBase`.

    Raises:
        ModelError: if the model cannot be found or read, or does not give exactly one score for a pair.
        ValueError: if there are instructions but no template for them, or a template omits or changes a text.
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
        require("score_template", score_template, str)
        require("prompt_dict", prompt_dict, (dict, Mapping))
        require("chunk_size", chunk_size, int)
        template = ScoreTemplate(score_template, query_prefix, document_prefix, activation)
        if prompt_dict and not template.takes_instruction:
            raise ValueError("prompt_dict has instructions, but there is no score_template with {{ instruction }}")
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
        """Return a wrapper that opens its engine when it scores the first pair; the caller closes the engine."""
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
        """The open engine; opens it if necessary.

        Raises:
            EngineError: if vLLM does not open with these arguments.
            ModelError: if the model does not give exactly one score for a pair, or vLLM has its own template for it.
        """
        engine = super().engine
        if engine.labels not in (None, 1):
            self.cleanup()
            raise ModelError(f"{self.spec.model.name} {label_count_error(engine.labels, self.spec.names)}")
        if engine.own_template:
            self.cleanup()
            raise ModelError(
                f"vLLM renders pairs for {self.spec.model.name} with a built-in template, which is not supported: "
                "pairs that exceed the context length could not be truncated"
            )
        return engine

    def settings(self) -> JsonObject:
        """Return everything that can change this model's results, as plain values."""
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
        """Score query-document pairs, each distinct pair once.

        Args:
            inputs1: Batches of queries, key "text".
            inputs2: Batches of documents, key "text", one for each query.
            task_metadata: Metadata of the task; determines the instruction.
            hf_split: The evaluated split.
            hf_subset: The evaluated subset.
            prompt_type: Not used.
            **kwargs: mteb's encode arguments, not used.

        Returns:
            scores: float32 array, shape (n_pairs,).

        Raises:
            NonFiniteError: if the engine returns NaN or Inf.
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
