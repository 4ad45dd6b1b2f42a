"""An engine of several replicas, each a complete vLLM in a process of its own, that share the work.

Replicas are child processes of this process, or of Ray actors on the nodes of a cluster (`engines.ray_replica`). Inputs are
sent in chunks to whichever replica has room. The chunks of a replica that dies are given to another one.
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
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines import environment
from mteb_vllm.engines.base import Engine, EngineSpec, MakeBar, Scores, Tokenization, TokenPair
from mteb_vllm.engines.replica_process import (
    Call,
    Command,
    Event,
    Failed,
    Opened,
    OpenEngine,
    Result,
    start_process,
)
from mteb_vllm.engines.shares import shares
from mteb_vllm.engines.timing import Phase, Phases
from mteb_vllm.engines.vllm import stderr_file
from mteb_vllm.errors import EngineError, EngineStartError, ModelError
from mteb_vllm.models.score_templates import Activation
from mteb_vllm.results.failures import describe_exit, last_lines
from mteb_vllm.util.attributes import replace_attributes
from mteb_vllm.util.masking import registered

if TYPE_CHECKING:
    from psutil import Process
    from transformers import PreTrainedTokenizerBase

    from mteb_vllm.engines.ray_replica import Cluster

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Tokens in a chunk at most, unless a single input has more. The first chunks are smaller, so that all replicas soon have one.
_CHUNK_TOKENS, _FIRST_CHUNK_TOKENS = 16_384, 1024

# Methods of an engine that compute the inputs in their first argument.
_COMPUTING = ("embed", "score", "embed_tokens", "score_arriving")

# Chunks that a replica has at a time: the one that it computes, and the next.
_IN_FLIGHT = 2

# Characters of a token, roughly, for texts that the replicas tokenise.
_TOKEN_CHARACTERS = 4

# Seconds that replicas may take to close their engines.
_CLOSE_WITHIN = 30.0


class ReplicaProcess(Protocol):
    """A replica's process, on this machine (`util.child_process.ChildProcess`) or on a node of a cluster."""

    def send(self, message: Command, /) -> None:
        """Send a command."""

    def receive(self, seconds: float, /) -> Event | None:
        """Return the next event; None if there is none within this many seconds.

        Raises:
            EOFError: if the process has ended; with a reason if more than its exit status is known.
        """

    def terminate(self) -> None:
        """Let it close its engine and exit."""

    def wait(self, seconds: float = 0.0, /) -> int:
        """Wait so long for it to exit, and kill what remains of it; return its exit status as in `subprocess`."""

    def close(self) -> None:
        """Free what is held for a process that has ended."""

    @property
    def pid(self) -> int | None:
        """Its process id; None on another node."""


class _Replica:
    """A replica's process, and a thread that receives its events.

    Args:
        number: Its number, from 0.
        process: The process.
        spec: The specification of its engine.
        node: The name of its node; None on this machine.
        log: The file that its output is appended to.
        events: Where its events go; None for its end.

    Attributes:
        status: Its exit status as in `subprocess`; None while it runs.
    """

    def __init__(
        self, number: int, process: ReplicaProcess, spec: EngineSpec, node: str | None, log: Path, events: _Events
    ) -> None:
        self.number, self.process, self.spec, self.node = number, process, spec, node
        self._log, self._events = log, events
        self._written = log.stat().st_size
        self._reason = ""
        self.status: int | None = None
        self._thread = threading.Thread(target=self._receive, name=f"mteb-vllm replica {number}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"replica {self.number}" + (f" on {self.node}" if self.node is not None else "")

    def _receive(self) -> None:
        try:
            while True:
                event = self.process.receive(1.0)
                if event is not None:
                    self._events.put((self, event))
        except EOFError as end:
            self._reason = str(end)
        except Exception:
            logger.exception("%s sent a message that cannot be read", self.name)
        finally:
            self.status = self.process.wait(10)
            self._events.put((self, None))

    def describe_end(self) -> str:
        """Return how it ended, and log that, with the last lines of its log unless that is this process's too."""
        how = self._reason or describe_exit(self.status or 0)
        lines = [] if self._log == run_log() else last_lines(self._log, since=self._written)
        logger.error("%s ended (%s)%s", self.name, how, "".join(f"\n  {line}" for line in lines))
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


def _environment(spec: EngineSpec) -> dict[str, str]:
    return {**environment.outer_variables(), **environment.threading_variables(spec.env)}


def _located(error: Exception, replica: _Replica) -> Exception:
    """Return the error of a replica, with the name of its node."""
    if replica.node is None:
        return error
    message = f"on {replica.node}: {error}"
    if isinstance(error, ModelError):
        return ModelError(message)
    located = EngineStartError(message)
    located.advises = isinstance(error, EngineStartError) and error.advises
    located.__cause__ = error
    return located


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
        self._cluster: Cluster | None = None

    def open(self, spec: EngineSpec) -> None:
        """Start all replicas and wait until their engines are open.

        Raises:
            EngineStartError: if an engine does not open.
        """
        if (log := run_log()) is None:
            handle, name = tempfile.mkstemp(prefix="mteb-vllm-replicas-", suffix=".log")
            os.close(handle)
            log = self._own_log = Path(name)
        if spec.ray_address is not None:
            self._open_together(self._start_on_nodes(spec, log))
        else:
            for _, together in itertools.groupby(shares(spec), key=lambda share: share.turn):
                self._open_together(
                    self._add(start_process(log, _environment(share.spec), share.cores), share.spec, None, log)
                    for share in together
                )
        self.living = list(self.all)

    def _start_on_nodes(self, spec: EngineSpec, log: Path) -> Iterator[_Replica]:
        from mteb_vllm.engines import ray_replica

        assert spec.ray_address is not None
        self._cluster = ray_replica.Cluster(spec.ray_address)
        for process, own, node in self._cluster.start(spec, log):
            yield self._add(process, own, node, log)

    def _add(self, process: ReplicaProcess, spec: EngineSpec, node: str | None, log: Path) -> _Replica:
        replica = _Replica(len(self.all), process, spec, node, log, self.events)
        self.all.append(replica)
        return replica

    def _open_together(self, replicas: Iterable[_Replica]) -> None:
        """Let replicas open their engines at the same time, and wait for them.

        Raises:
            EngineStartError: if an engine does not open.
            ModelError: if a replica cannot read the model, or finds other files.
        """
        for replica in replicas:
            try:
                replica.process.send(OpenEngine(replica.number, replica.spec, registered()))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise EngineStartError(f"replicas need arguments that can be pickled: {error}") from error
        while len(self.opened) < len(self.all):
            replica, event = self.events.get()
            if isinstance(event, Failed):
                raise _located(event.error, replica)
            if not isinstance(event, Opened):
                lines = "".join(f"\n  {line}" for line in replica.last_lines())
                how = replica.describe_end()
                raise EngineStartError(f"{replica.name} ended ({how}) while its engine opened{lines}")
            self.opened[replica] = event

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
        if self._cluster is not None:
            self._cluster.leave()
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
    engine.computed_by = [0] * len(replicas.all)
    engine.nodes = [replica.node for replica in replicas.all if replica.node is not None]
    if first.tokenizer is not None:
        with contextlib.suppress(Exception):  # a tokenizer with code of its own may raise anything
            engine._tokenizer = pickle.loads(first.tokenizer)
    return engine


def _processes(replicas: _Replicas) -> list[Process]:
    import psutil

    found = []
    for replica, opened in replicas.opened.items():
        if (own := replica.process.pid) is None:
            continue  # on another node, where ids mean other processes
        for pid in (own, *opened.processes):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died since
                found.append(psutil.Process(pid))
    return found
