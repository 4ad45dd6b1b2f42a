"""Failures: the kinds of exceptions and process exits, and their storage."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from mteb_vllm import errors
from mteb_vllm.results import failures
from mteb_vllm.results.digests import write_note
from mteb_vllm.results.failures import (
    Ending,
    Failure,
    Kind,
    add_log,
    earlier_failure,
    failure_from_exception,
    failure_from_exit,
    failure_from_timeout,
    load_failures,
    save_failures,
)
from mteb_vllm.util.phase import Phase


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CUDA = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)
NODE = ValueError(
    "Available memory on node 0 (20/23 GiB) on startup is less than desired CPU memory utilization (1.0, 23 GiB)."
)


@pytest.mark.parametrize(
    ("error", "task", "kind"),
    [
        (caused(errors.EngineStartError("vLLM failed to start with x: ..."), CUDA), None, "out_of_memory_loading"),
        (caused(errors.EngineStartError("vLLM failed to start with x: ..."), NODE), "STS12", "out_of_memory_loading"),
        (errors.EngineStartError("vLLM failed to start with x: no such dtype"), "STS12", "engine_start"),
        (caused(errors.EngineError("vLLM's engine failed at work"), CPU), "STS12", "out_of_memory_encoding"),
        (MemoryError(), "STS12", "out_of_memory_encoding"),
        (errors.EngineError("vLLM's engine died at work"), "STS12", "engine_died"),
        (errors.DataError("ConnectionError: no network"), "STS12", "data"),
        (errors.NonFiniteError("NaN"), "STS12", "not_finite"),
        (errors.ModelError("there is no folder /x"), None, "model"),
        (errors.MissingPackageError("vLLM is not installed"), None, "missing_package"),
        (errors.FirstStageError("/x cannot be read"), "STS12", "first_stage"),
        (
            caused(errors.FirstStageError("the first stage failed: ..."), errors.DataError("no network")),
            "STS12",
            "data",
        ),
        (ZeroDivisionError("division by zero"), "STS12", "task"),
        (KeyError("a bug"), None, "error"),
        (KeyboardInterrupt(), None, "interrupted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kind_of_an_exception(error: BaseException, task: str | None, kind: str) -> None:
    failure = failure_from_exception(error, task)
    assert (failure.kind, failure.task) == (kind, task)
    assert failure.message and "\n" not in failure.message


@pytest.mark.parametrize(
    ("status", "log", "task", "kind"),
    [
        (-signal.SIGKILL, [], "STS12", "killed"),
        (-signal.SIGSEGV, [], "STS12", "segmentation_fault"),
        (-signal.SIGBUS, [], None, "segmentation_fault"),
        (-signal.SIGABRT, ["terminate called after throwing an instance of 'std::bad_alloc'"], None, "out_of_memory_loading"),
        (-signal.SIGABRT, ["terminate called ...: can't allocate memory"], "STS12", "out_of_memory_encoding"),
        (-signal.SIGABRT, ["assertion failed"], "STS12", "crash"),
        (3, [], None, "crash"),
        (-40, [], "STS12", "crash"),
        (failures.ENGINE_DIED, [], "STS12", "engine_died"),
    ],
)  # fmt: skip
def test_the_kind_of_a_process_that_ends(status: int, log: list[str], task: str | None, kind: str) -> None:
    phase, doing = (Phase.ENCODING, "at queries of STS12") if task else (Phase.OPENING_ENGINE, "opening vLLM: org/name")
    failure = failure_from_exit(Ending(status), phase, doing, log, task)
    assert failure.phase is phase
    assert (failure.kind, failure.log) == (kind, log) and failure.advice
    assert doing in str(failure)


def test_every_kind_has_advice_or_gives_it_in_its_message() -> None:
    own = {"first_stage", "model", "missing_package", "interrupted"}  # their messages contain the advice, or need none
    assert set(failures._ADVICE) == set(get_args(Kind)) - own
    assert "hydra.launcher.point_timeout" in failure_from_timeout(60, Phase.OPENING_ENGINE, "opening vLLM").advice
    error = errors.EngineStartError("vLLM failed to start with x: y", "lower engine.max_model_len")
    assert str(error) == "vLLM failed to start with x: y\n  What to try: lower engine.max_model_len."
    assert failure_from_exception(error).advice == ""


def test_the_out_of_memory_message_of_onednn_is_recognised() -> None:
    failed = "vLLM's engine failed at work: RuntimeError: could not create a primitive"
    assert failure_from_exception(errors.EngineError(failed)).kind == "out_of_memory_encoding"
    assert failure_from_exception(errors.EngineError(f"{failed} descriptor for a matmul")).kind == "engine_died"


def test_a_log_can_reveal_that_an_engine_process_ran_out_of_memory() -> None:
    started = Failure("engine_start", "Engine core initialization failed. See root cause above.")
    lines = ["INFO Available KV cache memory: 3.2 GiB", "torch.OutOfMemoryError: CUDA out of memory."]
    assert add_log(started, lines).kind == "out_of_memory_loading"
    assert add_log(started, lines[:1]).kind == "engine_start", "a line that vLLM always prints is no evidence"
    other = add_log(Failure("task", "x", "STS12"), lines)
    assert (other.kind, other.log) == ("task", lines)


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert failures.last_lines(log) == []
    log.write_bytes(b"\n".join(b"line %d \xff" % at for at in range(9_000)) + b"\n" + b"x" * 100_000 + b"\n\n")
    lines = failures.last_lines(log)
    assert lines[-1] == "x" * 400 and len(lines) <= failures.LOG_LINES


def test_the_stack_of_a_hanging_process(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    frames = [f'  File "x.py", line {at} in f{at}' for at in range(60)]
    one, current = "Thread 0x1 (most recent call first):", "Current thread 0x2 (most recent call first):"
    log.write_text("\n".join(["INFO ...", one, *frames, current, '  File "y.py", line 7 in hang', *frames]))
    lines = failures.last_stack(log)
    assert lines[1] == '  File "y.py", line 7 in hang' and len(lines) == failures.LOG_LINES
    log.write_text("INFO ...")
    assert failures.last_stack(log) == ["INFO ..."]


def test_failures_are_stored_until_there_is_a_score(tmp_path: Path) -> None:
    one, whole = Failure("task", "x", "STS12"), Failure("killed", "y")
    save_failures(tmp_path, "abc", {}, [one, whole, Failure("interrupted", "KeyboardInterrupt")], [])
    assert load_failures(tmp_path, "abc", {}) == {"STS12": one, "": whole}
    save_failures(tmp_path, "abc", {}, [replace(one, kind="data", tried=False)], [])
    assert load_failures(tmp_path, "abc", {}) == {"STS12": one, "": whole}, (
        "failures that were not tried are not stored"
    )
    found = earlier_failure(load_failures(tmp_path, "abc", {}), "STS13")
    assert found is not None and (found.kind, found.task) == ("killed", "STS13"), (
        "the whole point failed, and STS13 with it"
    )
    save_failures(tmp_path, "abc", {}, [], ["STS13"])
    assert earlier_failure(load_failures(tmp_path, "abc", {}), "STS13") is None
    assert earlier_failure(load_failures(tmp_path, "abc", {}), "STS12") == replace(one, tried=False)
    save_failures(tmp_path, "abc", {}, [], ["STS12"])
    assert not any((tmp_path / "failures").iterdir())


def test_a_damaged_failures_file_is_ignored_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = Failure("task", "x", "STS12")
    path = tmp_path / "failures" / "abc.json"
    save_failures(tmp_path, "abc", {}, [one], [])
    right = path.read_text()
    bare = '{"StdlibDocsClassification": {"kind": 5, "message": 7}}'
    for harm in (
        "half a",
        "[]",
        "5",
        bare,
        right.replace('"x"', "5"),
        right.replace("STS12", "STS13"),
        "[" * 200_000,
        None,
    ):
        path.unlink(missing_ok=True)
        path.mkdir() if harm is None else path.write_text(harm)
        assert load_failures(tmp_path, "abc", {}) == {}
        save_failures(tmp_path, "abc", {}, [], [])
        assert path.exists() == (harm is None), "an unreadable file is treated as missing"
        save_failures(tmp_path, "abc", {}, [one], [])
        assert load_failures(tmp_path, "abc", {}) == {"STS12": one}
    write_note(tmp_path, path, {"STS12": {"kind": "task", "cause": "of a later version"}})
    assert load_failures(tmp_path, "abc", {}) == {}
    locked = []
    monkeypatch.setattr(failures, "lock", lambda *_, **__: locked.append(1))
    save_failures(tmp_path, "other", {}, [], ["STS12"])
    assert not locked, "no lock is taken when there is nothing to store"

    def no_lock(*_: object, **__: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(failures, "lock", no_lock)
    save_failures(tmp_path, "abc", {}, [one], [])
    assert "Permission denied" in caplog.text


def test_a_failure_on_some_subsets_says_nothing_about_others(tmp_path: Path) -> None:
    whole, german = {"names": ["STS17"]}, {"names": ["STS17"], "subsets": ["de"]}
    benchmark = {"names": None, "benchmark": "MTEB(eng, v2)"}
    one, engine = Failure("data", "no file", "STS17"), Failure("killed", "y")
    save_failures(tmp_path, "abc", german, [one], [])
    assert load_failures(tmp_path, "abc", german) == {"STS17": one}
    others = (
        whole,
        {**german, "subsets": ["en"]},
        {**whole, "splits": ["de"]},
        {**whole, "languages": ["deu"]},
        benchmark,
    )
    assert all(load_failures(tmp_path, "abc", tasks) == {} for tasks in others)
    assert load_failures(tmp_path, "abd", german) == {}
    # An engine that fails does so on all of them.
    save_failures(tmp_path, "abc", benchmark, [engine], [])
    assert load_failures(tmp_path, "abc", german) == {"STS17": one, "": engine}
    save_failures(tmp_path, "abc", whole, [], ["STS17"])
    assert load_failures(tmp_path, "abc", german) == {"STS17": one}
    save_failures(tmp_path, "abc", german, [], ["STS17"])
    assert load_failures(tmp_path, "abc", german) == {}
