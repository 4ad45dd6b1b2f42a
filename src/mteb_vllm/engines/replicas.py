"""An engine of several replicas on one machine, each a complete vLLM in a process of its own, that share the work.

Inputs are sent in chunks to whichever replica has room. The chunks of a replica that dies are given to another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import pickle
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines import environment
from mteb_vllm.engines.arguments import gpus_per_engine
from mteb_vllm.engines.base import Engine, EngineSpec, MakeBar, Scores, Tokenization, TokenPair
from mteb_vllm.engines.memory import within_limit
from mteb_vllm.engines.replica_process import Call, Command, Event, Failed, Opened, OpenEngine, Result
from mteb_vllm.engines.timing import Phase, Phases, replace_attributes
from mteb_vllm.engines.vllm import stderr_file
from mteb_vllm.errors import EngineError, EngineStartError
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.results.failures import describe_exit, last_lines
from mteb_vllm.util.child_process import ChildProcess
from mteb_vllm.util.machine import cores, on_cores, split, visible_gpus
from mteb_vllm.util.masking import registered

if TYPE_CHECKING:
    from psutil import Process
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")

START = """
import json, sys
sys.path[:], orders, lifeline = json.loads(sys.argv[1])
from mteb_vllm.engines.replica_process import main
main(orders, lifeline)
"""

# Tokens in a chunk at most, unless a single input has more. The first chunks are smaller, so that all replicas soon have one.
_CHUNK_TOKENS, _FIRST_CHUNK_TOKENS = 16_384, 1024

# Methods of an engine that compute the inputs in their first argument.
_COMPUTING = ("embed", "score", "embed_tokens", "score_arriving")

# Chunks that a replica has at a time: the one that it computes, and the next.
_IN_FLIGHT = 2

# Characters of a token, roughly, for texts that the replicas tokenise.
_TOKEN_CHARACTERS = 4

# vLLM's own default of `gpu_memory_utilization`.
_MEMORY = 0.92

# Seconds that replicas may take to close their engines.
_CLOSE_WITHIN = 30.0


class Share(NamedTuple):
    """A replica's share of the machine.

    Attributes:
        spec: The specification of its engine.
        cores: Ids of the cores that it runs on; empty: all.
        turn: Replicas with the same one open at the same time. Those that share a GPU open one after another, because vLLM
            measures the GPU's free memory meanwhile.
    """

    spec: EngineSpec
    cores: Sequence[int] = ()
    turn: int = 0


def shares(spec: EngineSpec) -> list[Share]:
    """Divide this machine among the replicas of an engine: GPUs and their memory, or cores and memory.

    Variables of `spec.env` have precedence.
    """
    count, size, gpus = spec.replicas, gpus_per_engine(spec.args), visible_gpus()
    found = []
    if not gpus:
        for part in split(cores(), count):
            bound = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, rank)) for rank in split(part, size))}
            own_cores = () if bound.keys() & spec.env.keys() or len(part) < size else part
            found.append(Share(_reduce(spec, bound if own_cores else {}, count), own_cores))
        return found
    groups = [gpus[at : at + size] for at in range(0, len(gpus) - size + 1, size)] or [gpus]
    if "CUDA_VISIBLE_DEVICES" in spec.env:
        groups = [gpus]
    for number in range(count):
        group = number % len(groups)
        sharing = len(range(group, count, len(groups)))
        env = {"CUDA_VISIBLE_DEVICES": ",".join(groups[group])}
        found.append(Share(_reduce(spec, env, sharing), turn=number // len(groups)))
    return found


def _reduce(spec: EngineSpec, env: Mapping[str, str], sharing: int) -> EngineSpec:
    """Return the specification of one replica, whose memory is shared by so many."""
    memory = within_limit(float(spec.args.get("gpu_memory_utilization") or _MEMORY)) / sharing
    args = dict(spec.args) if sharing == 1 else {**spec.args, "gpu_memory_utilization": memory}
    return replace(spec, args=args, env={**env, **spec.env}, replicas=1)


class _Replica:
    """A replica's process, and a thread that receives its events.

    Args:
        number: Its number, from 0.
        share: Its share of the machine.
        log: The file for its output.
        events: Where its events go; None for its end.

    Attributes:
        status: Its exit status as in `subprocess`; None while it runs.
    """

    def __init__(self, number: int, share: Share, log: Path, events: _Events) -> None:
        self.number, self._log, self._events = number, log, events
        self._written = log.stat().st_size
        self.status: int | None = None
        env = {**environment.outer_variables(), **environment.threading_variables(share.spec.env)}
        with on_cores(share.cores):
            self.process: ChildProcess[Command, Event] = ChildProcess(START, log, env)
        self._thread = threading.Thread(target=self._receive, name=f"mteb-vllm replica {number}", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        try:
            while True:
                event = self.process.receive(1.0)
                if event is not None:
                    self._events.put((self, event))
        except EOFError:
            pass
        except Exception:
            logger.exception("replica %d sent a message that cannot be read", self.number)
        finally:
            self.status = self.process.wait(10)
            self._events.put((self, None))

    def describe_end(self) -> str:
        """Return how it ended, and log that, with the last lines of its log unless that is this process's too."""
        how = describe_exit(self.status or 0)
        lines = [] if self._log == run_log() else last_lines(self._log, since=self._written)
        logger.error("replica %d ended (%s)%s", self.number, how, "".join(f"\n  {line}" for line in lines))
        return how

    def last_lines(self) -> list[str]:
        """Return the last lines of its log."""
        return last_lines(self._log, 10, since=self._written)

    def stop(self) -> None:
        """Let it close its engine and exit."""
        self.process.terminate()

    def join(self, seconds: float) -> None:
        """Wait for its end, and kill it after so many seconds."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.process.wait()
            self._thread.join()
        self.process.close()  # not by the thread, which would take the descriptor from a `send`


_Events = queue.SimpleQueue[tuple[_Replica, Event | None]]


def run_log() -> Path | None:
    """Return the file that standard error is appended to, as in a run; None without one.

    Several processes cannot write to a file that a shell redirects to with `>`: they would overwrite each other's lines.
    """
    return stderr_file() if fcntl.fcntl(2, fcntl.F_GETFL) & os.O_APPEND else None


class _Replicas:
    """The replicas of an engine.

    Attributes:
        living: Those that have not died.
        all: All of them.
        events: Their events.
        opened: Those of opened engines.
    """

    def __init__(self) -> None:
        self.living: list[_Replica] = []
        self.all: list[_Replica] = []
        self.events: _Events = queue.SimpleQueue()
        self.opened: dict[_Replica, Opened] = {}
        self._own_log: Path | None = None

    def open(self, spec: EngineSpec) -> None:
        """Start all replicas and wait until their engines are open.

        Raises:
            EngineStartError: if an engine does not open.
        """
        if (log := run_log()) is None:
            handle, name = tempfile.mkstemp(prefix="mteb-vllm-replicas-", suffix=".log")
            os.close(handle)
            log = self._own_log = Path(name)
        for _, together in itertools.groupby(enumerate(shares(spec)), key=lambda one: one[1].turn):
            for number, share in together:
                replica = _Replica(number, share, log, self.events)
                self.all.append(replica)
                try:
                    replica.process.send(OpenEngine(number, share.spec, registered()))
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    raise EngineStartError(f"replicas need arguments that can be pickled: {error}") from error
            while len(self.opened) < len(self.all):
                replica, event = self.events.get()
                if isinstance(event, Failed):
                    raise event.error
                if not isinstance(event, Opened):
                    lines = "".join(f"\n  {line}" for line in replica.last_lines())
                    how = replica.describe_end()
                    raise EngineStartError(f"replica {replica.number} ended ({how}) while its engine opened{lines}")
                self.opened[replica] = event
        self.living = list(self.all)

    def remove(self, replica: _Replica) -> None:
        """Remove one that has died.

        Raises:
            EngineError: if it was the last one.
        """
        self.living.remove(replica)
        how = replica.describe_end()
        if not self.living:
            raise EngineError(f"all replicas ({len(self.all)}) died, the last one with {how}; the cause is in the log")

    def close(self) -> None:
        """End all replicas."""
        for replica in self.all:
            replica.stop()
        deadline = time.monotonic() + _CLOSE_WITHIN
        for replica in self.all:
            replica.join(max(0.0, deadline - time.monotonic()))
        if self._own_log is not None:
            self._own_log.unlink(missing_ok=True)


class _Calls:
    """Calls that replicas share.

    Args:
        living: The replicas.
        calls: The calls; None where there is none at the moment.

    Attributes:
        ended: Whether there are no more.
    """

    def __init__(self, living: Iterable[_Replica], calls: Iterator[Call | None]) -> None:
        self._in_flight: dict[_Replica, dict[int, Call]] = {replica: {} for replica in living}
        self._incoming, self._returned = calls, deque[Call]()
        self.ended = False

    @property
    def any_in_flight(self) -> bool:
        """Whether any result is expected."""
        return any(self._in_flight.values())

    def send(self) -> None:
        """Send calls to the replicas that have room for them."""
        while True:
            replica = min(self._in_flight, key=lambda one: len(self._in_flight[one]))
            if len(self._in_flight[replica]) >= _IN_FLIGHT or (call := self._next()) is None:
                return
            self._in_flight[replica][call.number] = call
            replica.process.send(call)

    def _next(self) -> Call | None:
        if self._returned:
            return self._returned.popleft()
        try:
            return next(self._incoming)
        except StopIteration:
            self.ended = True
            return None

    def finish(self, replica: _Replica, number: int | None) -> Call | None:
        """Return a call that a replica has finished; None if it is not one of these."""
        return None if number is None else self._in_flight[replica].pop(number, None)

    def take_back(self, replica: _Replica) -> None:
        """Take back the calls of a replica that has died."""
        self._returned.extend(self._in_flight.pop(replica).values())


class ReplicatedEngine(Engine):
    """An open engine of several replicas; `llm` are the replicas."""

    llm: _Replicas | None
    _tokenizer: PreTrainedTokenizerBase | None = None
    _phases: Phases | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's transformers tokenizer."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            model, trusted = self.spec.model, self.spec.args.get("trust_remote_code") is True
            name = self.spec.args.get("tokenizer") or model.location
            self._tokenizer = AutoTokenizer.from_pretrained(
                name, revision=model.hub_revision, trust_remote_code=trusted
            )
        return self._tokenizer

    def embed(
        self, texts: list[str], bar: MakeBar = False, prompt: str = ""
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """See `Engine.embed`."""
        chunks = ((chunk,) for chunk in self._chunks(texts, _text_tokens))
        found: list[tuple[npt.NDArray[np.float32], list[int]]] = self._collect(
            "embed", chunks, {"prompt": prompt}, len(texts), bar, lambda value: len(value[1])
        )
        return np.concatenate([vectors for vectors, _ in found]), [length for _, some in found for length in some]

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
        pairs = self._chunks(zip(queries, documents, strict=True), lambda pair: sum(map(_text_tokens, pair)))
        chunks = (tuple(map(list, zip(*chunk, strict=True))) for chunk in pairs)
        options = {"template": template, "activation": activation}
        before = self.cached_tokens
        found: list[Scores] = self._collect(
            "score", chunks, options, len(queries), bar, lambda value: len(value.lengths)
        )
        values = np.concatenate([one.values for one in found])
        return Scores(values, [length for one in found for length in one.lengths], self.cached_tokens - before)

    def score_tokens(
        self, pairs: Sequence[TokenPair], *, activation: Activation | None = None, bar: MakeBar = False
    ) -> Scores:
        """See `Engine.score_tokens`."""
        values, before = np.empty(len(pairs), dtype=np.float32), self.cached_tokens
        with _shown(bar, len(pairs)) as count:
            for positions, some in self.score_arriving(pairs, activation=activation):
                values[positions] = some
                count(len(positions))
        return Scores(values, [len(pair.tokens) for pair in pairs], self.cached_tokens - before)

    def tokenization(self) -> Tokenization:
        """See `Engine.tokenization`."""
        return cast("Tokenization", self._call("tokenization"))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Engine.tokenize`."""
        return cast("list[list[int]]", self._call("tokenize", list(texts)))

    def tokenize_pairs(
        self, queries: Sequence[str], documents: Sequence[str], template: str | None
    ) -> list[tuple[list[int], list[int] | None]]:
        """See `Engine.tokenize_pairs`."""
        found = self._call("tokenize_pairs", list(queries), list(documents), template)
        return cast("list[tuple[list[int], list[int] | None]]", found)

    def embed_tokens(self, tokens: Iterable[list[int] | None]) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """See `Engine.embed_tokens`."""
        return self._stream("embed_tokens", tokens, len, {})

    def score_arriving(
        self, pairs: Iterable[TokenPair | None], *, activation: Activation | None = None
    ) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """See `Engine.score_arriving`."""
        return self._stream("score_arriving", pairs, lambda pair: len(pair.tokens), {"activation": activation})

    def _stream(
        self, method: str, inputs: Iterable[T | None], size: Callable[[T], int], options: Mapping[str, object]
    ) -> Generator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Compute inputs as they arrive; yield the positions and the results of each chunk when it is finished."""
        starts = [0]

        def chunks() -> Iterator[tuple[object, ...] | None]:
            for chunk in self._chunks(inputs, size):
                if chunk:
                    starts.append(starts[-1] + len(chunk))
                yield (chunk,) if chunk else None

        with contextlib.closing(self._distribute(method, chunks(), options)) as done:
            for number, values in done:
                yield list(range(starts[number], starts[number + 1])), cast("npt.NDArray[np.float32]", values)

    def _chunks(self, inputs: Iterable[T | None], size: Callable[[T], int]) -> Iterator[list[T]]:
        """Divide inputs into chunks of about as many tokens as an engine computes in a step, the first ones smaller.

        Args:
            inputs: The inputs. None, where there is none at the moment, ends a chunk, and an empty one follows.
            size: Returns the number of tokens of an input.
        """
        most = min(_CHUNK_TOKENS, int(self.resolved.get("max_num_batched_tokens") or _CHUNK_TOKENS))
        chunk: list[T] = []
        tokens, limit, left = 0, min(_FIRST_CHUNK_TOKENS, most), self.spec.replicas
        for one in inputs:
            if one is None:
                if chunk:
                    yield chunk
                    chunk, tokens = [], 0
                yield []
                continue
            chunk.append(one)
            tokens += size(one)
            if tokens >= limit:
                yield chunk
                chunk, tokens, left = [], 0, left - 1
                if not left:
                    limit, left = min(2 * limit, most), self.spec.replicas
        if chunk:
            yield chunk

    def _collect(
        self,
        method: str,
        chunks: Iterable[tuple[object, ...]],
        options: Mapping[str, object],
        total: int,
        bar: MakeBar,
        length: Callable[[T], int],
    ) -> list[T]:
        """Return the values of a method for chunks, in order."""
        found: dict[int, T] = {}
        with _shown(bar, total) as count, contextlib.closing(self._distribute(method, chunks, options)) as done:
            for number, value in done:
                found[number] = cast("T", value)
                count(length(found[number]))
        return [found[number] for number in sorted(found)]

    def _call(self, method: str, *arguments: object) -> object:
        """Return the value of a method of one engine."""
        ((_, value),) = self._distribute(method, [arguments], {})
        return value

    def _distribute(
        self, method: str, chunks: Iterable[tuple[object, ...] | None], options: Mapping[str, object]
    ) -> Generator[tuple[int, object]]:
        """Call a method of the engines for each chunk of its arguments; yield a chunk's number and value when it is done.

        Like a single engine, all are closed if the iteration ends while they compute.

        Args:
            method: The method.
            chunks: Positional arguments of each call. None means that there are none at the moment.
            options: Keyword arguments of all calls.

        Raises:
            EngineError: if all have died, or one has failed.
            Exception: any other error of the method.
        """
        replicas = self.llm
        assert replicas is not None
        calls = _Calls(replicas.living, self._calls(method, chunks, options))
        try:
            while True:
                calls.send()
                if not calls.any_in_flight:
                    if calls.ended:
                        return
                    continue
                with self._measured("engine"):
                    replica, event = replicas.events.get()
                if event is None:
                    self.replicas_lost += 1
                    replicas.remove(replica)
                    calls.take_back(replica)
                elif isinstance(event, Failed):
                    calls.finish(replica, event.number)
                    if isinstance(event.error, EngineError):
                        self.close()  # that replica has closed its engine
                    raise event.error
                elif isinstance(event, Result) and (done := calls.finish(replica, event.number)) is not None:
                    self.cached_tokens += event.cached_tokens
                    if method in _COMPUTING:
                        self.computed_by[replica.number] += len(cast("Sequence[object]", done.arguments[0]))
                    yield event.number, event.value
        finally:
            if calls.any_in_flight:
                self.close()

    def _calls(
        self, method: str, chunks: Iterable[tuple[object, ...] | None], options: Mapping[str, object]
    ) -> Iterator[Call | None]:
        """Make a call for each chunk, with its number; None for None."""
        incoming, numbers = iter(chunks), itertools.count()
        while True:
            try:
                with self._measured("tokenise"):
                    arguments = next(incoming)
            except StopIteration:
                return
            yield None if arguments is None else Call(next(numbers), method, arguments, options)

    def _measured(self, phase: Phase) -> contextlib.AbstractContextManager[None]:
        return self._phases.measure(phase) if self._phases is not None else contextlib.nullcontext()

    @contextlib.contextmanager
    def time_phases(self) -> Iterator[Phases]:
        """See `Engine.time_phases`.

        Waiting for chunks of tokens counts as tokenisation, and waiting for results as the engine's.
        """
        phases = Phases()
        with replace_attributes(self, _phases=phases):
            yield phases
            phases.add("collect")

    def reset_prefix_cache(self) -> bool:
        """See `Engine.reset_prefix_cache`."""
        if not self.resolved.get("enable_prefix_caching") or self.llm is None:
            return False
        for replica in self.llm.living:
            # Nobody waits for the result, since it precedes those of later calls; no other call has this number.
            replica.process.send(Call(-1, "reset_prefix_cache"))
        return True

    def dead_processes(self) -> list[int]:
        """See `Engine.dead_processes`; none, since the end of a replica is noticed here."""
        return []

    def _shut_down(self) -> None:
        replicas, self.llm = self.llm, None
        if replicas is not None:
            replicas.close()

    def _release_memory(self) -> None:
        """See `Engine._release_memory`."""


def _text_tokens(text: str) -> int:
    return 1 + len(text) // _TOKEN_CHARACTERS


@contextlib.contextmanager
def _shown(bar: MakeBar, total: int) -> Iterator[Callable[[int], object]]:
    """Yield the function that advances a progress bar, inside the block."""
    made = bar(total=total, desc="Processed prompts") if bar else None
    yield made.update if made is not None else lambda count: None
    if made is not None:
        made.close()


def load(spec: EngineSpec) -> ReplicatedEngine:
    """Open the replicas of an engine.

    Args:
        spec: The specification of the engine.

    Raises:
        MissingPackageError: if vLLM is not installed.
        EngineStartError: if it does not open with these arguments.
    """
    replicas = _Replicas()
    try:
        replicas.open(spec)
    except BaseException:
        replicas.close()
        raise
    first = replicas.opened[replicas.all[0]]
    engine = ReplicatedEngine(
        spec=spec, llm=replicas, seconds=0.0, processes=_processes(replicas), log=run_log(), **first.attributes
    )
    engine.computed_by = [0] * spec.replicas
    if first.tokenizer is not None:
        with contextlib.suppress(Exception):  # a tokenizer with code of its own may raise anything
            engine._tokenizer = pickle.loads(first.tokenizer)
    return engine


def _processes(replicas: _Replicas) -> list[Process]:
    import psutil

    found = []
    for replica, opened in replicas.opened.items():
        for pid in (replica.process.pid, *opened.processes):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died since
                found.append(psutil.Process(pid))
    return found
