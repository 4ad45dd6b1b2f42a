"""End-to-end runs on real vLLM, through `mteb_vllm.run`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recompute
from mteb_vllm import run
from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import close_engines
from mteb_vllm.wrappers import VllmEncoderWrapper
from tiny_models import tiny_overrides

pytestmark = pytest.mark.vllm

TASK = "StdlibDocsClassification"
SHORT = {"max_model_len": 64}
CONTEXT = [f"engine.{key}={value}" for key, value in SHORT.items()]


def one(tmp_path: Path, *overrides: str) -> Any:
    """Run the task with a tiny model."""
    words = [f"results.dir={tmp_path}", f"tasks.names=[{TASK}]", *tiny_overrides(), *CONTEXT, *overrides]
    return run(words, show=False)


def result_files(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob(f"results/*/*/experiments/*/{TASK}.json"))


@pytest.fixture(scope="module")
def short(minilm_args: dict[str, Any]) -> Any:
    model = dict(word.removeprefix("model.").split("=", 1) for word in tiny_overrides()[1:])
    return VllmEncoderWrapper(**(minilm_args | SHORT | {"model": model["name"], "path": model["path"]}))


@pytest.fixture(autouse=True)
def stays_open(short: Any) -> None:
    """Keep the engine of these runs open, in case an earlier test has opened another."""
    short.engine  # noqa: B018 - opens it if it is closed


@pytest.fixture(scope="module")
def first(short: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("outputs")
    return folder, one(folder)


def test_a_run_writes_its_record(first: tuple[Path, Any]) -> None:
    folder, record = first
    assert record.status == "ok"
    (task,) = record.tasks
    assert task.status == "computed" and task.metric == "accuracy"
    assert 0.1 < task.main_score < 0.5, "20 classes, random weights"
    out = Path(record.output_dir)
    content = json.loads((out / "run.json").read_text())
    assert content["fingerprint"] == record.fingerprint
    assert content["config"]["model"]["name"] == "test/tiny"
    assert content["tasks"][0]["scores"]["test"]["default"]["accuracy"] == pytest.approx(task.main_score, abs=1e-4)
    assert set(content["tasks"][0]["seconds"]) == {"load", "encode", "store", "score"}
    assert content["tasks"][0]["tokens"] > content["tasks"][0]["computed"] > 500
    phases = content["first_score"]
    assert list(phases) == ["start", "import", "engine", "load", "encode", "store", "score", "other"]
    assert min(phases.values()) >= 0 and phases["encode"] == content["tasks"][0]["seconds"]["encode"]
    assert sum(phases.values()) - phases["start"] <= content["seconds"] + 0.1
    assert content["embedding_cache"]["written"] == content["tasks"][0]["computed"]
    assert content["embedding_cache"]["read"] == 0
    assert content["tasks"][0]["prompts"]["texts"]["example"]
    assert content["engine"]["resolved"]["dtype"] == "float32" and content["engine"]["resolved"]["max_model_len"] == 64
    assert content["versions"]["vllm"] and content["hardware"]["cores"] and content["peak_memory_mb"]["process"] > 100
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    (main,) = [row for row in rows if row["main"] == "1"]
    assert (main["task"], main["metric"]) == (TASK, "accuracy") and len(rows) > 3
    assert (out / ".hydra" / "config.yaml").exists() and TASK in (out / "report.md").read_text()
    (path,) = result_files(folder)
    assert path.parent.name == f"settings_{record.fingerprint}"


def test_repeating_a_run_computes_nothing_and_opens_no_engine(first: tuple[Path, Any]) -> None:
    folder, record = first
    again = one(folder)
    assert [task.status for task in again.tasks] == ["cached"] and again.engine is None and not again.first_score
    assert again.scores == record.scores and again.fingerprint == record.fingerprint
    assert again.warnings == record.warnings and "exceed the context length of 64 tokens" in again.warnings[0]


def test_a_truncated_result_is_reported_quarantined_and_computed_again(first: tuple[Path, Any]) -> None:
    folder, record = first
    (path,) = result_files(folder)
    path.write_bytes(path.read_bytes()[:200])
    again = one(folder)
    assert [task.status for task in again.tasks] == ["computed"] and again.scores == record.scores
    assert any(f"{path.name}.broken, and its content was computed again" in warning for warning in again.warnings)
    assert path.with_suffix(".json.broken").stat().st_size == 200 and path.stat().st_size > 200
    assert [task.status for task in one(folder).tasks] == ["cached"]


def test_reuse_none_computes_again(first: tuple[Path, Any]) -> None:
    folder, record = first
    again = one(folder, "results.reuse=none")
    assert [task.status for task in again.tasks] == ["computed"]
    assert again.scores == record.scores


def test_dtype_and_prompts_each_change_the_result(first: tuple[Path, Any]) -> None:
    folder, record = first
    dtype = one(folder, "engine.dtype=bfloat16")
    prompts = one(folder, "prompts=e5")
    assert [other.tasks[0].status for other in (dtype, prompts)] == ["computed", "computed"]
    assert len({record.fingerprint, dtype.fingerprint, prompts.fingerprint}) == 3
    assert len(result_files(folder)) == 3
    assert prompts.scores != record.scores
    assert prompts.tasks[0].prompts["texts"]["prefix"] == "query: "


def test_a_prompt_that_does_not_apply_to_a_task_does_not_change_its_result(first: tuple[Path, Any]) -> None:
    folder, record = first
    behind = '+prompts.Classification="q: "'
    one_way, same = one(folder, behind), one(folder, behind, 'prompts.query="x: "')
    assert [other.tasks[0].status for other in (one_way, same)] == ["computed", "cached"]
    assert same.fingerprint != one_way.fingerprint and same.scores == one_way.scores != record.scores
    found = {path.parent.name: path.read_bytes() for path in result_files(folder)}
    assert found[f"settings_{same.fingerprint}"] == found[f"settings_{one_way.fingerprint}"], (
        "it has a folder of its own"
    )
    again = one(folder, behind, 'prompts.query="y: "', "results.reuse=none")
    assert again.tasks[0].status == "computed" and again.scores == same.scores, "which justifies the reuse"


@pytest.mark.slow
def test_a_sweep_with_hydras_own_launcher(tmp_path: Path) -> None:
    close_engines()
    sweep = ["engine.dtype=float32,bfloat16", "prompts=none,e5", "hydra/launcher=basic"]
    overrides = [f"results.dir={tmp_path}", f"tasks.names=[{TASK}]", *tiny_overrides(), *CONTEXT, *sweep]
    records: Any = run(overrides, multirun=True, show=False)
    assert [(record.point, record.status) for record in records] == [(at, "ok") for at in range(4)]
    assert len(result_files(tmp_path)) == len({record.fingerprint for record in records}) == 4
    none, e5, none_bf16, e5_bf16 = (record.scores[TASK] for record in records)
    assert none != e5 and none_bf16 != e5_bf16
    assert (none_bf16, e5_bf16) == (pytest.approx(none, abs=0.01), pytest.approx(e5, abs=0.01))
    # One engine per pair of prompts, which run one after the other.
    assert [record.engine.opened for record in records] == [1, 0, 1, 0]
    folder = Path(records[0].output_dir).parent
    rows = sorted(csv.DictReader((folder / "report.csv").open()), key=lambda row: row["point"])
    assert [row["engine.dtype"] for row in rows] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert [float(row[TASK]) for row in rows] == [none, e5, none_bf16, e5_bf16]
    assert recompute.check(folder) > 60, "every figure is confirmed by the files"
    again: Any = run(overrides, multirun=True, show=False)
    assert {task.status for record in again for task in record.tasks} == {"cached"}
    assert [record.scores for record in again] == [record.scores for record in records]
    speeds = [
        [row["texts_per_second"] for row in csv.DictReader((Path(one[0].output_dir).parent / "report.csv").open())]
        for one in (records, again)
    ]
    assert all(speeds[0]) and not any(speeds[1]), "nothing was measured where all results were cached"


def test_data_that_cannot_be_loaded_fails_only_its_task(tmp_path: Path) -> None:
    record: Any = one(tmp_path, f"tasks.names=[NFCorpus,{TASK}]")
    failed, fine = record.tasks
    assert record.status == "failed"
    assert (
        failed.status == "failed"
        and failed.reason
        and "\n" not in failed.reason
        and "NFCorpus".lower() in failed.reason.lower()
    )
    assert fine.status == "computed"


def test_an_engine_that_does_not_open_fails_the_run_with_advice(tmp_path: Path) -> None:
    record: Any = one(tmp_path, "engine.gpu_memory_utilization=1.0")
    assert record.status == "failed"
    assert "What to try: lower engine.gpu_memory_utilization" in record.tasks[0].reason
    assert not result_files(tmp_path)
    fine: Any = one(tmp_path)
    assert fine.status == "ok", "the next run is not affected"


def test_the_command_line_prints_a_table_and_sets_the_exit_status(first: tuple[Path, Any], tmp_path: Path) -> None:
    folder, record = first
    command = [sys.executable, "-m", "mteb_vllm", f"results.dir={folder}", *tiny_overrides(), *CONTEXT]
    command += [f"tasks.names=[{TASK},NFCorpus]"]
    # As from a shell: variables set by an engine in this process would count as settings.
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"{record.scores[TASK]:.5f}" in done.stdout and "(cached)" in done.stdout
    assert "failed:" in done.stdout and done.stderr == ""
    fine = subprocess.run(
        [*command[:-1], f"tasks.names=[{TASK}]"], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
    )
    assert fine.returncode == 0 and fine.stderr == ""


def test_the_default_model_scores_as_it_should(tmp_path: Path) -> None:
    record: Any = run([f"results.dir={tmp_path}", f"tasks.names=[{TASK}]", *CONTEXT], show=False)
    assert record.config["model"]["name"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert 0.55 < record.scores[TASK] < 0.65


def test_the_tests_use_the_presets_engine(minilm: Any) -> None:
    args, env, preset, *_ = resolve_arguments({"preset": "vllm_cpu"}, {})
    assert preset == "vllm_cpu" and minilm.spec.args == args and minilm.spec.env == env
