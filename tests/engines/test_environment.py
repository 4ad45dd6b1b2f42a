"""Environment variables of engines: which ones each backend gets, and whether they are set before torch reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from measured_runs import parity
from mteb_vllm.engines import arguments, environment
from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.report.one_run import ineffective_variable_notes
from mteb_vllm.results.measurements import EngineRecord
from mteb_vllm.results.record import FirstStageRecord, RunRecord

THREADS = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}

RUNTIME = """
import json, sys
import mteb_vllm.cli, mteb_vllm.preflight.command, mteb_vllm.api, mteb_vllm.sweep.launcher
early = "torch" in sys.modules
from mteb_vllm.engines import environment
environment.set_threading_variables({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "VLLM_X": "1"})
import torch
found = environment.effective_threading_variables()
environment.restore_variables()
environment.set_threading_variables({"OMP_WAIT_POLICY": "ACTIVE"})
import os
left = sorted(set(os.environ) & {"OMP_WAIT_POLICY", "VLLM_X"})
print(json.dumps([early, found, environment.effective_threading_variables(), left]))
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has neither opened an engine nor loaded torch."""
    monkeypatch.setattr(environment, "_before", None)
    monkeypatch.setattr(environment, "_found_by_torch", None)
    monkeypatch.setattr(environment, "sys", SimpleNamespace(modules={}))
    for key in environment.threading_variables(os.environ):  # torch and vLLM set some when other tests import them
        monkeypatch.delenv(key)
    return monkeypatch


def test_the_threading_runtime_of_torch_reads_the_variables_of_a_run() -> None:
    # An engine opened by another test may have set variables; LD_PRELOAD of vLLM's CPU build loads a runtime early.
    shell = {key: value for key, value in os.environ.items() if key not in (*THREADS, "LD_PRELOAD")}
    done = subprocess.run(
        [sys.executable, "-c", RUNTIME],
        env={**shell, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    early, first, second, left = json.loads(done.stdout.splitlines()[-1])
    assert not early, "no module that starts a run loads torch"
    assert {key: first[key] for key in THREADS} == THREADS and first == second, "once loaded, nothing changes"
    assert left == [], "the shell's variables are restored"
    # The report of libgomp itself.
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr and "GOMP_SPINCOUNT = '0'" in done.stderr


def test_both_engines_have_the_same_threads_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def env(**engine: Any) -> dict[str, str]:
        return resolve_arguments(engine, {"env": {"VLLM_Y": 1, "OMP_NUM_THREADS": 2}})[1]

    vllm, other = env(preset="vllm_cpu"), env(backend="sentence_transformers", device="cpu")
    assert environment.threading_variables(vllm) == other == {**THREADS, "OMP_NUM_THREADS": "2"}
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" in vllm and "VLLM_Y" in vllm
    own = env(backend="sentence_transformers", device="cpu", env={"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": None})
    assert own == {"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "2"}
    # On a machine with a GPU neither has them, unless it computes on the CPU all the same.
    monkeypatch.setattr(arguments, "device", lambda: "cuda: NVIDIA H200")
    assert env(backend="sentence_transformers") == env(backend="sentence_transformers", device="cuda:1")
    assert env(backend="sentence_transformers") == {"OMP_NUM_THREADS": "2"}
    assert env(backend="sentence_transformers", device="cpu") == other


def test_engine_env_works_for_both_engines_and_vllms_own_variables_for_vllm_only() -> None:
    from mteb_vllm.errors import ConfigError
    from mteb_vllm.preflight.command import check

    other = "engine=sentence_transformers"
    for engine in ("engine=auto", other):
        (point,) = check([engine, "+engine.env.OMP_NUM_THREADS=1"])
        assert resolve_arguments(point.config.engine, {})[1]["OMP_NUM_THREADS"] == "1"
    reference = "+pipeline.reference.engine.env"
    assert check(["pipeline=parity", f"{reference}.OMP_NUM_THREADS=1"])
    with pytest.raises(ConfigError) as error:
        check(
            [
                "pipeline=parity",
                other,
                "+engine.env.VLLM_PLUGINS=x",
                "+engine.env.X=true",
                f"{reference}.VLLM_PLUGINS=x",
            ]
        )
    messages = {mistake.where: str(mistake) for mistake in error.value.mistakes}
    assert set(messages) == {
        "engine.env.VLLM_PLUGINS",
        "engine.env.X=true",
        "pipeline.reference.engine.env.VLLM_PLUGINS",
    }
    assert "is a vLLM variable, but this engine is sentence-transformers" in messages["engine.env.VLLM_PLUGINS"]


def test_variables_are_set_while_engines_are_open(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    environment.set_threading_variables({**THREADS, "VLLM_X": "1"})
    assert environment.threading_variables(os.environ) == THREADS and "VLLM_X" not in os.environ, (
        "only those of the runtime are set before an engine opens"
    )
    environment.apply_variables({**THREADS, "VLLM_X": "1"})
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = os.environ["VLLM_SET_BY_VLLM"] = "8"
    environment.apply_variables({"VLLM_SET_BY_VLLM": "9"})
    outer = environment.outer_variables()
    assert outer["VLLM_CPU_KVCACHE_SPACE"] == "4" and not outer.keys() & {*THREADS, "VLLM_X", "VLLM_SET_BY_VLLM"}
    environment.restore_variables()
    assert {key: os.environ.get(key) for key in outer} == outer and set(os.environ) == set(outer)
    environment.restore_variables()
    assert environment.outer_variables() == outer


def test_variables_that_are_set_too_late_are_not_in_effect(fresh: pytest.MonkeyPatch) -> None:
    assert environment.effective_threading_variables() == {}, "empty while torch is not loaded"
    fresh.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment.sys.modules["torch"] = SimpleNamespace()  # type: ignore[assignment]
    environment.set_threading_variables(THREADS)
    environment.apply_variables(THREADS)
    assert (
        environment.effective_threading_variables() == {"OMP_WAIT_POLICY": "ACTIVE"}
        and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    )
    environment.restore_variables()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_variables_that_are_not_in_effect_are_reported() -> None:
    from mteb_vllm.engines.vllm import VllmEngine

    engine = VllmEngine(SimpleNamespace(env={**THREADS, "VLLM_X": "1"}), None, 0.0, "float32", 8, 4, {})  # type: ignore[arg-type]
    assert engine.late == THREADS
    engine.threading = {**THREADS, "OMP_NUM_THREADS": "2"}
    assert engine.late == {}
    late = EngineRecord(
        "vllm", "", "", 1, 0.0, late={"OMP_WAIT_POLICY": "PASSIVE"}, threading={"OMP_WAIT_POLICY": "ACTIVE"}
    )  # fmt: skip
    record = RunRecord(overrides=[], config={}, started="", output_dir="")
    assert list(ineffective_variable_notes(record)) == []
    record.engine, record.first_stage, record.parity = late, FirstStageRecord("dense", engine=late), parity(0.0)
    record.parity.reference.engine = late
    first, *others = ineffective_variable_notes(record)
    assert (
        first.startswith("OMP_WAIT_POLICY=PASSIVE has no effect on vllm") and "its value at that time: ACTIVE" in first
    )
    assert len(others) == 2


def test_a_sweeps_child_starts_with_the_variables_of_its_engine(tmp_path: Path) -> None:
    from mteb_vllm.sweep.process import Child
    from mteb_vllm.sweep.queue import Place

    child = Child(tmp_path / "child.log", {"OMP_WAIT_POLICY": "ACTIVE"}, Place())
    try:
        environ = Path(f"/proc/{child.pid}/environ")
        deadline = time.monotonic() + 60
        while not environ.read_bytes() and time.monotonic() < deadline:  # empty until the program has started
            time.sleep(0.05)
        started = environ.read_bytes().split(b"\0")
    finally:
        child.kill()
    assert b"OMP_WAIT_POLICY=ACTIVE" in started


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "first"), [("auto", True), ("auto", False), ("sentence_transformers", False)])
def test_threads_of_a_complete_run_wait_passively(engine: str, first: bool, tmp_path: Path) -> None:
    # An engine opened by another test may have set variables; LD_PRELOAD of vLLM's CPU build loads a runtime early.
    shell = {key: value for key, value in os.environ.items() if key not in (*THREADS, "LD_PRELOAD")}
    if first:  # vLLM is imported while the catalogues are made
        shell["MTEB_VLLM_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "mteb_vllm", f"engine={engine}", "tasks.names=[StdlibDocsClassification]"]
    done = subprocess.run([*command, f"results.dir={tmp_path}"], env=shell, capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if not line.startswith("Reading the ")] == []
    (record,) = (json.loads(path.read_text()) for path in tmp_path.rglob("run.json"))
    assert {key: record["engine"]["threading"][key] for key in THREADS} == THREADS
    assert record["engine"]["late"] == {} and not [text for text in record["warnings"] if "not in effect" in text]
    assert environment.threading_variables(record["settings"]["engine"]["env"]) == THREADS


@pytest.mark.vllm
def test_a_process_that_imports_vllm_and_opens_no_engine_ends_quietly() -> None:
    code = "from mteb_vllm.engines.vllm import import_early; import_early({})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "leaked" not in done.stderr
