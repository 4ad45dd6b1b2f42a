"""vLLM behind mteb's protocols, under the names and constructor arguments that users of mteb know.

They can be used without a configuration:

    import mteb
    from mteb_vllm import VllmEncoderWrapper

    if __name__ == "__main__":
        with VllmEncoderWrapper("intfloat/e5-small-v2", prompt_dict={"query": "query: ", "document": "passage: "}) as model:
            print(mteb.evaluate(model, mteb.get_tasks(["STS12", "SciFact"])))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from mteb_vllm.arguments import resolve_arguments
from mteb_vllm.encoding import EncodeStats, check_finite, encode_texts, readable, texts_of
from mteb_vllm.engine import Convert, Engine, EngineSpec, open_engine
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.models import Model, find_model
from mteb_vllm.prompts import Prompts, load_template

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput, PromptType
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


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
    mteb_model_meta: ModelMeta | None = None
    on_open: Callable[[], None] | None = None
    _engine: Engine | None = None
    _owner = False

    def __init__(
        self,
        model: str | ModelMeta,
        revision: str | None = None,
        *,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        max_num_seqs: int = 128,
        head_dtype: str | None = None,
        **engine_args: Any,
    ) -> None:
        name, revision = (model.name, model.revision) if isinstance(model, ModelMeta) else (model, revision)
        found = find_model(name, revision, path)
        chosen = {"preset": "auto", "max_num_seqs": max_num_seqs, "head_dtype": head_dtype, **engine_args, "env": env}
        spec = EngineSpec(found, self.convert, *resolve_arguments(chosen, {}))
        self._adopt(spec, model if isinstance(model, ModelMeta) else None)
        self._owner = True
        self.engine  # noqa: B018 - opened now: whoever constructs a wrapper wants to know whether it works

    def _adopt(self, spec: EngineSpec, meta: ModelMeta | None) -> None:
        self.spec = spec
        self._engine = None
        self.mteb_model_meta = model_meta(spec.model, fingerprint(self.settings()), meta)

    def settings(self) -> dict[str, Any]:
        """Everything that changes this model's results, as plain values."""
        return {"engine": self.spec.settings()}

    @property
    def engine(self) -> Engine:
        """The open engine; opened now if it is not.

        Raises:
            EngineError: if vLLM does not open with these arguments.
        """
        if self._engine is None or self._engine.llm is None:
            if self.on_open is not None:
                self.on_open()
            self._engine = open_engine(self.spec)
            if self._owner:
                self._engine.owners.add(id(self))
        return self._engine

    def engine_record(self) -> dict[str, Any]:
        """How the engine was opened; empty if it was not."""
        if self._engine is None:
            return {}
        return {
            "preset": self.spec.preset,
            "fingerprint": self.spec.fingerprint,
            "seconds": self._engine.seconds,
            "resolved": self._engine.resolved,
        }

    @property
    def llm(self) -> Any:
        """vLLM's `LLM`."""
        return self.engine.llm

    def cleanup(self) -> None:
        """Lets go of the engine, which closes and gives its memory back unless another wrapper shares it.

        Again does nothing; a text that is encoded afterwards opens the engine again.
        """
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.release(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cleanup()

    def __del__(self) -> None:
        # No contextlib: at interpreter shutdown modules may be gone already. The engine itself is closed by `atexit`.
        try:  # noqa: SIM105
            self.cleanup()
        except Exception:
            pass


class VllmEncoderWrapper(VllmWrapperBase, AbsEncoder):
    """An embedding model in vLLM, as mteb's `EncoderProtocol`.

    Args:
        model: Name on the Hub, local folder, or mteb's `ModelMeta`.
        revision: Commit, branch or tag on the Hub.
        prompt_dict: Prompts by mteb's precedence: `Task-query`, `Task`, `TaskType-query`, `TaskType`, `query` or
            `document`. With `use_instructions` the values are instructions.
        use_instructions: Read texts through `instruction_template`; without a fitting key of `prompt_dict` the task's own
            instruction is used.
        instruction_template: A text with `{instruction}`, or a callable `(instruction, prompt_type) -> str`.
        apply_instruction_to_documents: Whether documents carry an instruction too.
        window: How many different texts are handed to the engine at once.
        **kwargs: See `VllmWrapperBase`.

    Raises:
        ValueError: if instructions are asked for without a template, or a template lacks `{instruction}`.
    """

    convert: Convert = "embed"

    def __init__(
        self,
        model: str | ModelMeta,
        revision: str | None = None,
        *,
        prompt_dict: Mapping[str, str] | None = None,
        use_instructions: bool = False,
        instruction_template: str | Callable[[str, PromptType | None], str] | None = None,
        apply_instruction_to_documents: bool = True,
        window: int = 8192,
        **kwargs: Any,
    ) -> None:
        if use_instructions and instruction_template is None:
            raise ValueError(
                "To use instructions, an instruction_template must be provided. For example, `Instruction: {instruction}`"
            )
        if isinstance(instruction_template, str):
            if "{instruction}" not in instruction_template and ":" not in instruction_template:
                raise ValueError("Instruction template must contain the string '{instruction}'.")
            instruction_template = load_template(instruction_template)
        self._set(
            Prompts(
                values=dict(prompt_dict or {}),
                source="prompt_dict" if prompt_dict else "none",
                template=instruction_template if use_instructions else None,
                apply_to_documents=apply_instruction_to_documents,
            ),
            window,
        )
        super().__init__(model, revision, **kwargs)

    @classmethod
    def planned(cls, spec: EngineSpec, prompts: Prompts, window: int = 8192) -> VllmEncoderWrapper:
        """A wrapper whose engine opens when the first text is encoded, since known results need none.

        It does not own the engine: the next point of a sweep may use it too, and whoever planned closes it.
        """
        wrapper = cls.__new__(cls)
        wrapper._set(prompts, window)
        wrapper._adopt(spec, None)
        return wrapper

    def _set(self, prompts: Prompts, window: int) -> None:
        self.prompts = prompts
        self.window = window
        self.stats = EncodeStats()
        # (task, side) -> the prefix, its key, and one rendered example: what really was in front of the texts.
        self.applied: dict[tuple[str, str | None], dict[str, str | None]] = {}
        self.progress: Progress | None = None

    def settings(self) -> dict[str, Any]:
        """Everything that changes this model's results, as plain values."""
        return {**super().settings(), "prompts": self.prompts.settings()}

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """Embeds the texts of a data loader.

        Args:
            inputs: Batches with the key "text".
            task_metadata: Metadata of the task; decides about the prompt.
            hf_split: The split that is evaluated.
            hf_subset: The subset that is evaluated.
            prompt_type: Query, document, or None where a task has neither.
            **kwargs: mteb's encode arguments; batch size and progress bar are the engine's own affair.

        Returns:
            embeddings: float32 array, shape (n_texts, dim).

        Raises:
            NonFiniteError: if NaN or Inf comes out of the engine.
        """
        prefix = self.prompts.prefix(task_metadata, prompt_type)
        side = prompt_type.value if prompt_type else None
        texts, n_texts = texts_of(inputs)
        if n_texts == 0:
            return np.empty((0, self.engine.dim), dtype=np.float32)
        applied = {"prefix": prefix.text, "key": prefix.key, "example": None}

        def seen() -> Any:
            for text in texts:
                if applied["example"] is None:
                    applied["example"] = (prefix.text + text)[:500]
                yield text

        if (task_metadata.name, side) not in self.applied:
            logger.info("%s, %s: prefix %r (key %s)", task_metadata.name, side or "texts", prefix.text, prefix.key)
            self.applied[task_metadata.name, side] = applied
        label = " ".join(part for part in (hf_subset if hf_subset != "default" else "", side or "texts") if part)
        report = self.progress
        embeddings, stats = encode_texts(
            self.engine,
            seen(),
            n_texts,
            prefix=prefix.text,
            window=self.window,
            progress=None if report is None else lambda done, total: report(label, done, total),
        )
        self.stats.add(stats)
        return embeddings


class VllmCrossEncoderWrapper(VllmWrapperBase):
    """A cross-encoder in vLLM, as mteb's `CrossEncoderProtocol`.

    Args:
        model: Name on the Hub, local folder, or mteb's `ModelMeta`.
        revision: Commit, branch or tag on the Hub.
        query_prefix: What stands in front of each query.
        document_prefix: What stands in front of each document.
        **kwargs: See `VllmWrapperBase`.
    """

    convert: Convert = "classify"

    def __init__(
        self,
        model: str | ModelMeta,
        revision: str | None = None,
        *,
        query_prefix: str = "",
        document_prefix: str = "",
        **kwargs: Any,
    ) -> None:
        self.query_prefix = query_prefix
        self.document_prefix = document_prefix
        super().__init__(model, revision, **kwargs)

    def settings(self) -> dict[str, Any]:
        """Everything that changes this model's results, as plain values."""
        return {
            **super().settings(),
            "query_prefix": self.query_prefix,
            "document_prefix": self.document_prefix,
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
        **kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """Scores pairs of a query and a document, each different pair once.

        Args:
            inputs1: Batches of queries, key "text".
            inputs2: Batches of documents, key "text", as many.
            task_metadata: Metadata of the task.
            hf_split: The split that is evaluated.
            hf_subset: The subset that is evaluated.
            prompt_type: Not used.
            **kwargs: mteb's encode arguments, not used.

        Returns:
            scores: float32 array, shape (n_pairs,).

        Raises:
            NonFiniteError: if NaN or Inf comes out of the engine.
        """
        queries = [readable(self.query_prefix + text) for text in texts_of(inputs1)[0]]
        documents = [readable(self.document_prefix + text) for text in texts_of(inputs2)[0]]
        pairs = list(zip(queries, documents, strict=True))
        if not pairs:
            return np.empty(0, dtype=np.float32)
        unique = {pair: at for at, pair in enumerate(dict.fromkeys(pairs))}
        outputs = self.engine.call(
            "score",
            [query for query, _ in unique],
            [document for _, document in unique],
            use_tqdm=False,
            tokenization_kwargs={"truncate_prompt_tokens": -1},
        )
        scores = np.array([output.outputs.score for output in outputs], dtype=np.float32)
        check_finite(self.engine, scores[:, None], "scores")
        return scores[[unique[pair] for pair in pairs]]


def model_meta(model: Model, settings_hash: str, meta: ModelMeta | None = None) -> ModelMeta:
    """mteb's metadata of a model, with the hash of the run's settings, by which mteb's cache tells two settings apart.

    Only the hash goes there, never prompts: mteb maps several characters to one before it names a folder by them.
    """
    if meta is None:
        from mteb.models.model_implementations import MODEL_REGISTRY

        meta = MODEL_REGISTRY.get(model.name)
    known = {"dot": ScoringFunction.DOT_PRODUCT, "dot_product": ScoringFunction.DOT_PRODUCT}
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
