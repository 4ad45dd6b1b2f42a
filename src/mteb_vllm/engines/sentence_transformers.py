"""The sentence-transformers backend: SentenceTransformer and CrossEncoder, through mteb's own wrappers."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines import memory
from mteb_vllm.engines.base import Engine, EngineSpec, Scores, special_tokens
from mteb_vllm.engines.timing import Phases
from mteb_vllm.errors import EngineError, EngineStartError, MissingPackageError
from mteb_vllm.models.architectures import position_limit
from mteb_vllm.models.score_templates import Activation, render_pair
from mteb_vllm.util.attributes import replace_attributes

if TYPE_CHECKING:
    import torch
    from mteb.models.sentence_transformer_wrapper import CrossEncoderWrapper, SentenceTransformerEncoderWrapper
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from mteb_vllm.engines.base import MakeBar, TokenPair

# The values that modules pass to each other, by name.
Features: TypeAlias = "dict[str, torch.Tensor]"

logger = logging.getLogger(__name__)

INSTALL = "sentence-transformers is not installed: pip install sentence-transformers"


class SentenceTransformersEngine(Engine):
    """An open SentenceTransformer or CrossEncoder."""

    _phases: Phases | None = None

    @property
    def model(self) -> SentenceTransformer | CrossEncoder:
        """The SentenceTransformer or CrossEncoder."""
        model: SentenceTransformer | CrossEncoder = self.llm.model
        return model

    @property
    def batch_size(self) -> int:
        """Texts in one forward pass."""
        return int(self.spec.args["batch_size"])

    @property
    def renormalizes(self) -> bool:
        """Whether to normalise again: vLLM truncates dimensions before it normalises, sentence-transformers after."""
        return self.spec.args.get("dimensions") is not None and "Normalize" in self.resolved["modules"]

    @property
    def positions(self) -> int | None:
        """The number of tokens for which the model has position embeddings; None if it has none."""
        return _positions(self.model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's transformers tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.model.tokenizer
        return tokenizer

    def embed(
        self, texts: list[str], bar: MakeBar = False, prompt: str = ""
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """See `Engine.embed`."""
        prompts: dict[str, Any] = {}
        if prompt and not self.pools_prompts:
            # sentence-transformers excludes a prompt's tokens from pooling only if it adds the prompt itself.
            texts = [text.removeprefix(prompt) for text in texts]
            prompts = {"prompts": {"prompt": prompt}, "default_prompt_name": "prompt"}
        with (
            self._track_texts(len(texts), bar) as lengths,
            replace_attributes(self.model, **prompts),
            _translate_errors(),
        ):
            vectors = self.llm.encode(
                _Loader(texts), **_no_task(), **self._call_options(), normalize_embeddings=self.renormalizes
            )
        return np.asarray(vectors, dtype=np.float32), [lengths[text] for text in texts]

    def score(
        self,
        queries: list[str],
        documents: list[str],
        *,
        template: str | None = None,
        activation: Activation | None = None,
        bar: MakeBar = False,
    ) -> Scores:
        """See `Engine.score`."""
        if template is not None:
            pairs = zip(queries, documents, strict=True)
            rendered = [render_pair(self.tokenizer, template, query, document) for query, document in pairs]
            ids = self.tokenizer(rendered, truncation=True, max_length=self.max_model_len)
            if self._phases is not None:
                self._phases.add("tokenise")
            return self._score_ids(
                [dict(zip(ids, row, strict=True)) for row in zip(*ids.values(), strict=True)], activation, bar
            )
        import torch

        how = self._call_options() | ({} if activation is None else {"activation_fn": torch.nn.Identity()})
        with self._track_texts(len(queries), bar) as lengths, _translate_errors():
            values = self.llm.predict(_Loader(queries), _Loader(documents), **_no_task(), **how)
        return Scores(_flatten(values), [lengths[pair] for pair in zip(queries, documents, strict=True)])

    def score_tokens(
        self, pairs: Sequence[TokenPair], *, activation: Activation | None = None, bar: MakeBar = False
    ) -> Scores:
        """See `Engine.score_tokens`."""
        rows = []
        for pair in pairs:
            first = pair.first_length
            types = {} if first is None else {"token_type_ids": [0] * first + [1] * (len(pair.tokens) - first)}
            rows.append({"input_ids": pair.tokens, **types})
        return self._score_ids(rows, activation, bar)

    def _score_ids(self, rows: list[dict[str, list[int]]], activation: Activation | None, bar: MakeBar) -> Scores:
        """Score tokenised pairs, sorted by length as sentence-transformers sorts texts."""
        import torch

        model: CrossEncoder = self.llm.model
        own = model.activation_fn
        made = torch.nn.Identity() if activation is not None or own is None else own
        values = np.empty(len(rows), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at]["input_ids"]))
        with self._track_texts(len(rows), bar), _translate_errors(), torch.inference_mode():
            model.eval()
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                features = self.tokenizer.pad([rows[at] for at in batch], return_tensors="pt").to(model.device)
                scores = made(model(dict(features))["scores"].float())
                values[batch] = _flatten(scores.cpu().numpy())
        return Scores(values, [len(row["input_ids"]) for row in rows])

    def _call_options(self) -> dict[str, object]:
        return {"batch_size": self.batch_size, "show_progress_bar": False}

    @contextlib.contextmanager
    def _track_texts(self, n_texts: int, bar: MakeBar) -> Iterator[dict[str | tuple[str, ...], int]]:
        """Record the number of tokens of each text, after truncation, and advance a progress bar."""
        lengths: dict[str | tuple[str, ...], int] = {}
        shown = bar(total=n_texts, desc="Processed prompts") if bar else None
        preprocess: Callable[..., Features] = self.model.preprocess
        forward: Callable[..., Features] = self.model.forward

        def counting_preprocess(batch: Sequence[str | list[str]], *args: object, **kwargs: object) -> Features:
            features = preprocess(batch, *args, **kwargs)
            tokens = features["attention_mask"].sum(1).tolist()
            lengths.update(zip((tuple(one) if isinstance(one, list) else one for one in batch), tokens, strict=True))
            return features

        def counting_forward(features: Features, *args: object, **kwargs: object) -> Features:
            out = forward(features, *args, **kwargs)
            if shown is not None:
                shown.update(len(features["input_ids"]))
            return out

        with replace_attributes(self.model, preprocess=counting_preprocess, forward=counting_forward):
            yield lengths
        if shown is not None:
            shown.close()

    @contextlib.contextmanager
    def time_phases(self) -> Iterator[Phases]:
        """See `Engine.time_phases`."""
        phases = Phases()
        preprocess: Callable[..., Features] = self.model.preprocess
        forward: Callable[..., Features] = self.model.forward

        def timed_preprocess(*args: object, **kwargs: object) -> Features:
            with phases.measure("tokenise"):
                return preprocess(*args, **kwargs)

        def timed_forward(*args: object, **kwargs: object) -> Features:
            with phases.measure("engine"):
                out = forward(*args, **kwargs)
                self._synchronize()
                return out

        with (
            replace_attributes(self.model, preprocess=timed_preprocess, forward=timed_forward),
            replace_attributes(self, _phases=phases),
        ):
            yield phases
            phases.add("collect")

    def _synchronize(self) -> None:
        """Wait for the GPU, whose work would otherwise be counted in the next phase."""
        if self.model.device.type == "cuda":
            import torch

            torch.cuda.synchronize()

    def _release_memory(self) -> None:
        """See `Engine._release_memory`."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _flatten(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32).reshape(-1)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError, also when out of memory
        raise EngineError(f"sentence-transformers failed: {type(error).__name__}: {error}") from error


class _Loader(list[dict[str, list[str]]]):
    """Texts as a data loader of one batch, as mteb's wrappers expect it."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__([{"text": texts}])
        self.dataset = SimpleNamespace(features=("text",))


def _no_task() -> dict[str, object]:
    """Return the arguments from which mteb's wrappers choose prompts: no task, as the texts already have their prompts."""
    return {"task_metadata": SimpleNamespace(name="", type=""), "hf_split": "", "hf_subset": ""}


def load(spec: EngineSpec) -> SentenceTransformersEngine:
    """Open a SentenceTransformer or a CrossEncoder.

    Args:
        spec: The specification of the engine.

    Raises:
        MissingPackageError: if sentence-transformers is not installed.
        EngineStartError: if the model does not load with these arguments.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingPackageError(INSTALL)
    memory.record_baseline()
    try:
        wrapper = _make_wrapper(spec)
        if spec.args.get("max_model_len") is not None:
            wrapper.model.max_seq_length = spec.args["max_model_len"]
        wrapper.model.max_seq_length = _context(wrapper.model)
    except Exception as error:
        logger.exception("sentence-transformers could not load")
        gc.collect()
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineStartError(f"sentence-transformers could not load {spec.model.name}: {first}") from error
    model = wrapper.model
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    resolved = {
        "modules": [type(module).__name__ for module in model],
        "dtype": dtype,
        "max_model_len": _context(model),
        "batch_size": spec.args["batch_size"],
        "attn_implementation": getattr(model[0].model.config, "_attn_implementation", None),
        "device": str(model.device),
        "special_tokens": special_tokens(model.tokenizer),
    }
    if spec.convert == "embed":
        modes = [one.pooling_mode for one in model if hasattr(one, "pooling_mode")]
        resolved |= {
            "pooling": " and ".join(modes[0] if isinstance(modes[0], tuple) else modes[:1]) if modes else None,
            "normalized": "Normalize" in resolved["modules"],
            "dimensions": model.get_embedding_dimension(),
        }
    return SentenceTransformersEngine(
        spec=spec,
        llm=wrapper,
        seconds=0.0,
        dtype=dtype,
        max_model_len=_context(model),
        dim=model.get_embedding_dimension() if spec.convert == "embed" else 0,
        resolved=resolved,
        labels=model.num_labels if spec.convert == "classify" else None,
        in_process=True,
    )


def _context(model: SentenceTransformer | CrossEncoder) -> int:
    """Return the model's context length in tokens, limited by its number of positions."""
    limits = [model.max_seq_length, _positions(model)]
    return min(int(limit) for limit in limits if limit is not None)


def _positions(model: SentenceTransformer | CrossEncoder) -> int | None:
    """Return the number of tokens for which the model has position embeddings; None if it has none."""
    first: Any = model[0]
    config: PreTrainedConfig = first.model.config
    return position_limit(config.to_dict()) or getattr(config, "max_position_embeddings", None)


def _make_wrapper(spec: EngineSpec) -> SentenceTransformerEncoderWrapper | CrossEncoderWrapper:
    """Return mteb's wrapper of the model, without the model's own prompts."""
    from mteb.models import sentence_transformer_wrapper as wrappers

    args = spec.args
    how: dict[str, Any] = {
        "dtype": args["dtype"],
        "use_safetensors": True if args["load_format"] == "safetensors" else None,
    }
    if args.get("attn_implementation") is not None:
        how["attn_implementation"] = args["attn_implementation"]
    common = {
        "revision": spec.model.hub_revision,
        "device": args.get("device"),
        "trust_remote_code": args["trust_remote_code"],
        "model_kwargs": how,
    }
    if spec.convert == "embed":
        encoder = wrappers.SentenceTransformerEncoderWrapper(
            spec.model.location, embed_dim=args.get("dimensions"), **common
        )
        encoder.model_prompts, encoder.model.prompts, encoder.model.default_prompt_name = None, {}, None
        return encoder
    wrapper = wrappers.CrossEncoderWrapper(spec.model.location, **common)
    wrapper.model.prompts, wrapper.model.default_prompt_name = {}, None
    _set_answer_tokens(wrapper.model, args.get("hf_overrides") or {})
    return wrapper


def _set_answer_tokens(model: CrossEncoder, overrides: Mapping[str, Any]) -> None:
    """Make a language model score by the tokens that the recipe names for vLLM: `[no, yes]`, or a single token."""
    tokens = overrides.get("classifier_from_token")
    last: Any = model[-1]
    if not tokens or not hasattr(last, "true_token_id"):
        return
    ids = [model.tokenizer.convert_tokens_to_ids(token) for token in tokens]
    last.true_token_id, last.false_token_id = ids[-1], (ids[0] if len(ids) == 2 else None)
