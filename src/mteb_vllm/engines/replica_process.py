"""One replica of an engine: a child process with a complete vLLM that computes what `engines.replicas` sends to it.

It exits when its parent exits for whatever reason, and so do the processes of its engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import (
    Engine,
    EngineSpec,
    TokensRefusedError,
    close_engines,
    exit_if_engine_dies,
    open_engine,
)
from mteb_vllm.results.failures import ENGINE_DIED
from mteb_vllm.util.child_process import ChildProcess, connect
from mteb_vllm.util.machine import on_cores
from mteb_vllm.util.masking import register, watch_environment
from mteb_vllm.util.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

START = """
import json, sys
sys.path[:], orders, lifeline = json.loads(sys.argv[1])
from mteb_vllm.engines.replica_process import main
main(orders, lifeline)
"""

# Methods of an engine that take inputs as they arrive and yield results as they finish.
_STREAMING = ("embed_tokens", "score_arriving")

# The attributes of an open engine that its parent needs.
_ATTRIBUTES = (
    "dtype", "max_model_len", "dim", "resolved", "separates_pairs", "labels", "own_template", "threading", "warnings"
)  # fmt: skip


@dataclass(frozen=True)
class OpenEngine:
    """Command: open an engine.

    Attributes:
        number: The replica's number, from 0.
        spec: The specification of its engine.
        secrets: The values to mask in all output.
    """

    number: int
    spec: EngineSpec
    secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Call:
    """Command: call a method of the engine.

    Attributes:
        number: A number that identifies the call.
        method: The method. A streaming one takes the inputs of consecutive calls as a single stream.
        arguments: Its arguments.
        options: Its keyword arguments.
    """

    number: int
    method: str
    arguments: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """Event: the engine is open.

    Attributes:
        attributes: Its attributes that the parent needs.
        tokenizer: Its tokenizer, pickled; None if that is not possible.
        processes: Ids of its other processes.
    """

    attributes: dict[str, Any]
    tokenizer: bytes | None
    processes: list[int]


@dataclass(frozen=True)
class Result:
    """Event: a call has returned.

    Attributes:
        number: The call's number.
        value: The returned value; for a streaming method, the results in the order of the inputs.
        cached_tokens: Tokens found in the prefix cache since the previous result.
    """

    number: int
    value: object
    cached_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """Event: the engine did not open, or a call failed.

    Attributes:
        error: The error.
        number: The call's number; None if the engine did not open.
    """

    error: Exception
    number: int | None = None


Command = OpenEngine | Call
Event = Opened | Result | Failed


def start_process(log: Path, env: Mapping[str, str], cores: Sequence[int]) -> ChildProcess[Command, Event]:
    """Start a replica's process on this machine; it waits for the command to open its engine.

    Args:
        log: The file for its output.
        env: Its environment variables.
        cores: Ids of the cores that it runs on; empty: all.
    """
    with on_cores(cores):
        return ChildProcess(START, log, env)


def main(orders: int, lifeline: int) -> None:
    """Open an engine and execute calls until the pipe closes.

    Args:
        orders: File descriptor of the pipe to the parent.
        lifeline: File descriptor of a pipe that closes when the parent ends.
    """
    with connect(orders, lifeline) as pipe, quiet_libraries(), contextlib.suppress(EOFError, BrokenPipeError):
        command: OpenEngine = pipe.recv()
        watch_environment()
        for value in command.secrets:
            register(value)
        form = f"[%(asctime)s][replica {command.number}][%(name)s][%(levelname)s] - %(message)s"
        logging.basicConfig(level=logging.INFO, format=form)
        try:
            engine = open_engine(command.spec)
        except Exception as error:
            logger.exception("the engine did not open")
            pipe.send(Failed(_portable(error)))
            return
        signal.signal(signal.SIGTERM, _stop)
        threading.Thread(target=exit_if_engine_dies, daemon=True).start()
        try:
            tokenizer = _pickle_tokenizer(engine.tokenizer)
            attributes = {name: getattr(engine, name) for name in _ATTRIBUTES}
            pipe.send(Opened(attributes, tokenizer, [process.pid for process in engine.processes]))
            _Server(engine, pipe).serve()
        finally:
            close_engines()


class _Server:
    """Executes calls with an open engine."""

    def __init__(self, engine: Engine, pipe: Connection) -> None:
        self._engine, self._pipe = engine, pipe
        self._cached_tokens = 0

    def serve(self) -> None:
        """Execute calls until the parent closes the pipe.

        Raises:
            EOFError: then.
        """
        following: Call | None = None
        while True:
            call: Call = following or self._pipe.recv()
            following = None
            try:
                if call.method in _STREAMING:
                    following = self._stream(call)
                else:
                    self._send(call.number, getattr(self._engine, call.method)(*call.arguments, **call.options))
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                if type(error.__cause__).__name__ == "EngineDeadError":
                    logger.exception("this replica ends, since its engine has died")
                    logging.shutdown()
                    os._exit(ENGINE_DIED)
                if not isinstance(error, TokensRefusedError):
                    logger.exception("%s failed", call.method)
                self._pipe.send(Failed(_portable(error), call.number))

    def _stream(self, first: Call) -> Call | None:
        """Execute consecutive calls of a streaming method as one stream, so that the engine does not drain between them.

        Returns:
            the next call, which is of another kind.
        """
        places: dict[int, tuple[_Results, int]] = {}  # position in the stream -> its results, position in them
        following: Call | None = None

        def inputs() -> Iterator[object]:
            nonlocal following
            call, position = first, 0
            while True:
                (given,) = call.arguments
                assert isinstance(given, list)
                results = _Results(call.number, len(given))
                for at, one in enumerate(given):
                    places[position] = (results, at)
                    position += 1
                    yield one
                while places and not self._pipe.poll():
                    yield None
                following = self._pipe.recv()
                if (following.method, following.options) != (first.method, first.options):
                    return
                call, following = following, None

        for positions, block in getattr(self._engine, first.method)(inputs(), **first.options):
            for position, value in zip(positions, block, strict=True):
                results, at = places.pop(position)
                if results.add(at, value):
                    self._send(results.number, results.values)
        return following

    def _send(self, number: int, value: object) -> None:
        cached, self._cached_tokens = self._cached_tokens, self._engine.cached_tokens
        self._pipe.send(Result(number, value, self._cached_tokens - cached))


class _Results:
    """The results of one call of a streaming method, which arrive in any order."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.values: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._count = self._left = count

    def add(self, at: int, value: npt.NDArray[np.float32] | np.float32) -> bool:
        """Add the result at a position; return whether it was the last one."""
        if self._left == self._count:
            self.values = np.empty((self._count, *np.shape(value)), dtype=np.float32)
        self.values[at] = value
        self._left -= 1
        return not self._left


def _portable(error: Exception) -> Exception:
    """Return an error that the parent can unpickle without importing vLLM.

    It has the same type if that is built in or this package's, else the built-in type that it is derived from.
    """
    if type(error).__module__.partition(".")[0] in ("builtins", "mteb_vllm"):
        with contextlib.suppress(Exception):  # an error may hold anything
            pickle.dumps(error)
            return error
    base = next((one for one in (ValueError, TypeError, LookupError) if isinstance(error, one)), RuntimeError)
    return base(f"{type(error).__name__}: {error}")


def _pickle_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """Return a pickled tokenizer without the cache that vLLM wraps around it, which the parent would import vLLM for."""
    with contextlib.suppress(Exception):  # tokenizers with code of their own may raise anything
        reduced = tokenizer.__reduce__()
        assert isinstance(reduced, tuple)
        wrapped = getattr(reduced[0], "__module__", "").startswith("vllm.")
        return pickle.dumps(reduced[1][0] if wrapped else tokenizer)
    return None


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
