"""Variables of engines: which both engines get, and whether torch finds those that it reads only once."""

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
environment.prepare({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "VLLM_X": "1"})
import torch
found = environment.in_effect()
environment.leave()
environment.prepare({"OMP_WAIT_POLICY": "ACTIVE"})
import os
print(json.dumps([early, found, environment.in_effect(), sorted(set(os.environ) & {"OMP_WAIT_POLICY", "VLLM_X"})]))
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has neither opened an engine nor loaded torch."""
    monkeypatch.setattr(environment, "_before", None)
    monkeypatch.setattr(environment, "_found_by_torch", None)
    monkeypatch.setattr(environment, "sys", SimpleNamespace(modules={}))
    for key in environment.threading(os.environ):  # torch and vLLM set some when other tests import them
        monkeypatch.delenv(key)
    return monkeypatch


def test_the_threading_runtime_of_torch_finds_what_a_run_prepares() -> None:
    # An engine that another test opened has left variables here, of vLLM's CPU build one that loads a runtime early.
    shell = {key: value for key, value in os.environ.items() if key not in (*THREADS, "LD_PRELOAD")}
    done = subprocess.run(
        [sys.executable, "-c", RUNTIME],
        env={**shell, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    early, first, second, left = json.loads(done.stdout.splitlines()[-1])
    assert not early, "nothing that starts a run loads torch"
    assert {key: first[key] for key in THREADS} == THREADS and first == second, "once loaded, it stays so"
    assert left == [], "the shell's variables are back"
    # What libgomp itself says.
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr and "GOMP_SPINCOUNT = '0'" in done.stderr


def test_both_engines_have_the_same_threads_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def env(**engine: Any) -> dict[str, str]:
        return resolve_arguments(engine, {"env": {"VLLM_Y": 1, "OMP_NUM_THREADS": 2}})[1]

    vllm, other = env(preset="vllm_cpu"), env(backend="sentence_transformers", device="cpu")
    assert environment.threading(vllm) == other == {**THREADS, "OMP_NUM_THREADS": "2"}
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" in vllm and "VLLM_Y" in vllm
    own = env(backend="sentence_transformers", device="cpu", env={"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": None})
    assert own == {"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "2"}
    # On a GPU neither has them, unless it shall compute on the CPU all the same.
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
    said = {mistake.where: str(mistake) for mistake in error.value.mistakes}
    assert set(said) == {"engine.env.VLLM_PLUGINS", "engine.env.X=True", "pipeline.reference.engine.env.VLLM_PLUGINS"}
    assert "is a variable of vLLM's, and this engine is sentence-transformers" in said["engine.env.VLLM_PLUGINS"]


def test_variables_are_there_for_as_long_as_engines_are(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    environment.prepare({**THREADS, "VLLM_X": "1"})
    assert environment.threading(os.environ) == THREADS and "VLLM_X" not in os.environ, "an engine's own wait for it"
    environment.enter({**THREADS, "VLLM_X": "1"})
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = os.environ["VLLM_SET_BY_VLLM"] = "8"
    environment.enter({"VLLM_SET_BY_VLLM": "9"})
    outer = environment.outer()
    assert outer["VLLM_CPU_KVCACHE_SPACE"] == "4" and not outer.keys() & {*THREADS, "VLLM_X", "VLLM_SET_BY_VLLM"}
    environment.leave()
    assert {key: os.environ.get(key) for key in outer} == outer and set(os.environ) == set(outer)
    environment.leave()
    assert environment.outer() == outer


def test_what_comes_too_late_is_known(fresh: pytest.MonkeyPatch) -> None:
    assert environment.in_effect() == {}, "not loaded, nothing found"
    fresh.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment.sys.modules["torch"] = SimpleNamespace()  # type: ignore[assignment]
    environment.prepare(THREADS)
    environment.enter(THREADS)
    assert environment.in_effect() == {"OMP_WAIT_POLICY": "ACTIVE"} and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    environment.leave()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_an_engine_says_what_it_works_with() -> None:
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
    assert first.startswith("OMP_WAIT_POLICY=PASSIVE is not in effect for vllm") and "found ACTIVE" in first
    assert len(others) == 2


def test_a_sweeps_child_starts_with_the_variables_of_its_engine(tmp_path: Path) -> None:
    from mteb_vllm.sweep.process import Child

    child = Child(tmp_path / "child.log", {"OMP_WAIT_POLICY": "ACTIVE"})
    try:
        environ = Path(f"/proc/{child.pid}/environ")
        deadline = time.monotonic() + 60
        while not environ.read_bytes() and time.monotonic() < deadline:  # it is empty until the program has started
            time.sleep(0.05)
        started = environ.read_bytes().split(b"\0")
    finally:
        child.kill()
    assert b"OMP_WAIT_POLICY=ACTIVE" in started


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "sentence_transformers"])
def test_a_whole_run_computes_with_threads_that_wait_passively(engine: str, tmp_path: Path) -> None:
    # An engine that another test opened has left variables here, of vLLM's CPU build one that loads a runtime early.
    shell = {key: value for key, value in os.environ.items() if key not in (*THREADS, "LD_PRELOAD")}
    command = [sys.executable, "-m", "mteb_vllm", f"engine={engine}", "tasks.names=[StdlibDocsClassification]"]
    subprocess.run([*command, f"results.dir={tmp_path}"], env=shell, capture_output=True, text=True, check=True)
    (record,) = (json.loads(path.read_text()) for path in tmp_path.rglob("run.json"))
    assert {key: record["engine"]["threading"][key] for key in THREADS} == THREADS
    assert record["engine"]["late"] == {} and not [text for text in record["warnings"] if "not in effect" in text]
    assert environment.threading(record["settings"]["engine"]["env"]) == THREADS
