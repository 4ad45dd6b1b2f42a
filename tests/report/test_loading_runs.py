"""Runs and results are found in any folder, and read as they were written."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from measured_runs import mixed_runs, parity_runs, throughput_runs
from mteb_vllm.errors import ConfigError
from mteb_vllm.report.comparison import Point, compare
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.counters import Measured, Work
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import CacheRecord, EngineRecord, Memory
from mteb_vllm.results.parity import Hint
from mteb_vllm.results.record import SCHEMA, FirstStageRecord, RunRecord, TaskOutcome, read_record, write_record
from mteb_vllm.util.console import Console
from mteb_vllm.util.files import dump_sealed
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.phase import Phase

ENGINE = {
    "model": "org/name",
    "revision": "abc",
    "weights": "0" * 64,
    "args": {"dtype": "float32", "enforce_eager": True, "pooler_config": {"seq_pooling_type": "CLS"}},
    "env": {"VLLM_X": "1"},
    "device": "cpu: Some CPU",
}
CONFIG = {
    "model": {"name": "org/name"},
    "tasks": {"benchmark": "demo", "names": ["STS12"], "splits": ["test"], "subsets": None},
    "pipeline": {"top_k": 10},
}
OPENED = EngineRecord("vllm", "vllm_cpu", "f", opened=1, seconds=20.0)
STS12 = TaskOutcome(
    "STS12", "STS", "computed", "cosine_spearman", 0.7,
    scores={"test": {"default": {"main_score": 0.7, "odd": [{"a": "}\n"}]}}},
    seconds={"load": 1.0, "encode": 2.0, "score": 3.0}, texts=120, computed=100, tokens=900,
    prompts={"texts": {"prefix": "", "key": None, "example": '\n      }\n      "scores": {\n'}},
)  # fmt: skip


def write_run(folder: Path, *tasks: TaskOutcome, started: str = "2026-11-24T10:00:00+00:00", **more: Any) -> Path:
    settings = {"engine": ENGINE, "prompts": {"prompts": {"query": "query: "}, "default": None, "template": None}}
    record = RunRecord(settings=settings, config=CONFIG, tasks=list(tasks or (STS12,)), started=started)
    folder.mkdir(parents=True)
    write_record(replace(record, **more), folder)
    return folder


def write_result(folder: Path, task: str, scores: dict[str, dict[str, float]], **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        split: [{"hf_subset": subset, "main_score": score, "languages": []} for subset, score in subsets.items()]
        for split, subsets in scores.items()
    }
    result = {
        "dataset_revision": "x",
        "task_name": task,
        "mteb_version": "2.0.0",
        "scores": entries,
        "evaluation_time": 2.5,
    }
    (folder / f"{task}.json").write_text(json.dumps(result | more, indent=2))


def names(points: list[Point]) -> list[str]:
    return [point.name for point in points]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = TaskOutcome("A", "STS", "cached", "m", 0.5)
    pairs = TaskOutcome(
        "B", "Reranking", "computed", "m", 0.6, seconds={"encode": 1.0}, texts=9, computed=8, tokens=7,
        first_stage=0.4, ceiling=0.9, prompts={"default pair": {"key": None, "example": ""}},
    )  # fmt: skip
    lost = TaskOutcome("C", "STS", "failed", "m", failure=Failure("data", "gone", "C", ["line"], "try"))
    write_run(
        tmp_path / "run", STS12, known, pairs, lost,
        overrides=["tasks=[STS12,A]", "+engine.block_size=16", "~prompts.query"],
        engine=replace(OPENED, resolved={"dtype": "float32", "max_model_len": 256}),
        failure=Failure("engine_died", "died"), seconds=30.0,
    )  # fmt: skip
    (tmp_path / "run" / "report.md").touch()
    [point] = read_runs([tmp_path])
    first, reused, rerank, failed = point.tasks
    assert (first.score, first.computed, first.tokens, first.seconds, first.unit) == (0.7, 100, 900, 2.0, "texts")
    assert (reused.score, reused.computed, reused.seconds, reused.failed) == (0.5, None, None, False)
    assert (rerank.unit, rerank.first_stage, rerank.ceiling) == ("pairs", 0.4, 0.9)
    assert failed.failed and failed.score is None
    assert point.failures == [Failure("engine_died", "died"), lost.failure]
    assert point.overrides == {"tasks": "[STS12,A]", "engine.block_size": "16", "prompts.query": "(removed)"}
    assert point.arguments == ("tasks=[STS12,A]", "+engine.block_size=16", "~prompts.query")
    assert point.started == "2026-11-24T10:00:00+00:00"
    assert (point.engine, point.engine_seconds, point.seconds) == ("f", 20.0, 30.0)
    assert (point.name, point.source) == ("run", "run")
    facts = point.facts
    assert facts["engine.pooler_config"] == '{"seq_pooling_type": "CLS"}' and facts["engine.enforce_eager"] == "true"
    assert (facts["weights"], facts["prompts"], facts["tasks"]) == ("0" * 12, 'query="query: "', "STS12")
    assert facts["resolved.max_model_len"] == "256" and "resolved.dtype" not in facts
    assert facts["engine.env.VLLM_X"] == "1" and facts["tasks.splits"] == "test" and "versions.python" in facts


def test_a_cached_result_has_a_score_and_no_measurements(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", TaskOutcome("A", "STS", "cached", "m", 0.5), peak_memory_mb=Memory(900.0, 0.0))
    record = json.loads((folder / "run.json").read_text())
    measured = {"computed": 8, "stored": 2, "tokens": 70, "seconds": 4.0, "unit": "pairs"}
    del record["sha256"]
    record["tasks"][0]["measured"] = measured
    (folder / "run.json").write_text(dump_sealed(record))
    [point] = read_runs([folder / "run.json"])
    (task,) = point.tasks
    assert (task.score, task.unit, task.computed, task.stored, task.tokens, task.seconds) == (0.5, "pairs", *[None] * 4)
    assert point.engine == fingerprint(ENGINE), "the engine that it never opened"
    assert (point.engine_seconds, point.peak_memory_mb) == (None, None)
    assert task.cached and point.cached and (point.total("computed"), point.total("stored")) == (0, 0)


def test_the_start_of_an_engine_is_that_of_the_run_that_opened_it(tmp_path: Path) -> None:
    noted = [
        TaskOutcome(name, "STS", "cached", "m", 0.5, measured=Measured(computed=8, seconds=4.0, engine_seconds=seconds))
        for name, seconds in {"A": 20.0, "B": 30.0, "C": None}.items()
    ]
    own = replace(OPENED, seconds=5.0)
    for number, engine in enumerate((None, own, replace(own, opened=0))):
        write_run(tmp_path / str(number), *noted, point=number, engine=engine)
    assert [point.engine_seconds for point in read_runs([tmp_path])] == [None, 5.0, None]


def test_sweeps_and_runs_have_an_order_and_names(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_run(tmp_path / "sweeps" / "a" / str(number), point=number, started=f"2026-11-24T12:00:{number:02}+00:00")
    assert names(read_runs([tmp_path])) == ["0", "2", "10"]
    write_run(tmp_path / "sweeps" / "b" / "0", point=0, started="2026-11-24T11:00:00+00:00")
    assert names(read_runs([tmp_path])) == ["b/0", "a/0", "a/2", "a/10"], "the sweep that began first"
    write_run(tmp_path / "runs" / "single", started="2026-11-24T11:30:00+00:00")
    assert names(read_runs([tmp_path])) == ["b/0", "runs/single", "a/0", "a/2", "a/10"]
    sweeps = f"{tmp_path}/sweeps/*"
    assert names(read_runs([tmp_path / "runs", sweeps, sweeps])) == ["runs/single", "b/0", "a/0", "a/2", "a/10"]


def test_a_record_that_cannot_be_read_is_a_failed_point(tmp_path: Path) -> None:
    for number in range(4):
        write_run(tmp_path / str(number), point=number)
    (tmp_path / "1" / "run.json").write_text('{"tasks": [')
    (tmp_path / "2" / "run.json").write_text('["another format"]')
    points = read_runs([tmp_path])
    assert names(points) == ["0", "1", "2", "3"]
    assert [[failure.kind for failure in point.failures] for point in points] == [[], ["damaged"], ["damaged"], []]
    assert str(tmp_path / "1" / "run.json") in points[1].failures[0].message
    assert [row.mean for row in compare(points).rows] == [0.7, None, None, 0.7]


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    for number, schema in enumerate((SCHEMA, None, SCHEMA + 1)):
        path = write_run(tmp_path / str(number), point=number) / "run.json"
        content = json.loads(path.read_text())
        del content["sha256"]
        path.write_text(dump_sealed(content | {"schema": schema, "versions": {"mteb-vllm": "0.0.1"}}))
    points = read_runs([tmp_path])
    assert [len(point.tasks) for point in points] == [1, 0, 0], "and nothing else of it is in the report"
    for point, schema in zip(points[1:], (0, SCHEMA + 1), strict=True):
        what = f"written by mteb-vllm 0.0.1 in format {schema}, but this version reads format {SCHEMA}"
        assert f"{point.folder}/run.json" in point.failures[0].message and what in point.failures[0].message


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    for run in (*mixed_runs(), *throughput_runs()):
        run.embedding_cache = CacheRecord("folder", 1, 2, 3, "the disk is full")
        run.first_stage = FirstStageRecord("dense", {"engine": {"model": "m"}}, engine=run.engine, work=Work(texts=3))
        run.failure = Failure("task", "gone", "T", ["log"], "try", phase=Phase.ENCODING)
        run.tasks.append(
            TaskOutcome("T", "STS", "cached", "m", 0.5, scores={"test": {"en": {"m": 0.5}}}, measured=Measured(3))
        )
        write_record(run, tmp_path)
        assert read_record(tmp_path / "run.json") == run
        assert read_record(tmp_path / "run.json", scores=False).tasks[-1] == replace(run.tasks[-1], scores={})


def test_undecodable_bytes_do_not_break_a_record(tmp_path: Path) -> None:
    odd = "d\udcff"
    folder = write_run(
        tmp_path / "run", replace(STS12, prompts={odd: {"key": odd}}), output_dir=odd, warnings=[odd], overrides=[odd]
    )
    record = read_record(folder / "run.json")
    assert record.output_dir == "d\\udcff" and record.tasks[0].prompts == {"d\\udcff": {"key": "d\\udcff"}}
    assert read_runs([folder])[0].tasks[0].score == 0.7


def test_a_number_that_is_not_finite_is_unknown(tmp_path: Path) -> None:
    (run,) = parity_runs()[:1]
    hint = Hint("reference", "no split in common", float("inf"), float("nan"))
    run.parity.hints = [hint]
    run.tasks[0].main_score = float("nan")
    write_record(run, tmp_path)
    read = read_record(tmp_path / "run.json")
    assert read.parity.hints == [replace(hint, worst=None, median=None)] and read.tasks[0].main_score is None


def test_results_of_others_count_the_splits_and_subsets_of_the_task(tmp_path: Path) -> None:
    old, new = (tmp_path / "results" / "org__some__model" / revision for revision in ("0123456789", "main"))
    write_result(old, "STS12", {"test": {"default": 0.8}, "train": {"default": 0.1}})
    write_result(old, "STS22.v2", {"test": {"en": 0.5, "de": 0.7, "unknown": 0.0}})
    write_result(old, "Unknown", {"a": {"x": 0.25, "y": 0.5}, "b": {"x": 0.75}})
    write_result(new, "STS12", {"test": {"default": float("nan")}})
    (new / "STS13.json").write_text('{"task_name": "STS13", ')
    (new / "model_meta.json").write_text(json.dumps({"name": "org/some/model", "revision": "main"}))
    (new / "notes.json").write_text("{}")
    first, second = read_runs([tmp_path / "results"])
    assert (first.name, first.source, first.seconds) == ("org/some__model", "results", 7.5)
    assert {task.name: task.score for task in first.tasks} == {"STS12": 0.8, "STS22.v2": 0.6, "Unknown": 0.5}
    assert [task.type for task in first.tasks[::2]] == ["STS", ""]
    assert first.facts["incomplete"] == "STS22.v2" and first.facts["versions.mteb"] == "2.0.0"
    assert second.name == "org/some/model" and [task.score for task in second.tasks] == [None, None]
    assert [failure.task for failure in second.failures] == ["STS13"]
    for folder in (old, old.parent):
        assert first.tasks == read_runs([folder])[0].tasks


def test_a_score_is_that_of_mteb_for_the_same_file(tmp_path: Path) -> None:
    from mteb.results import TaskResult

    subsets = {"en": 0.5, "de": 0.7, "es": 0.61}
    write_result(tmp_path, "STS22.v2", {"test": subsets})
    [point] = read_runs([tmp_path])
    assert point.tasks[0].score == pytest.approx(sum(subsets.values()) / 3)
    assert point.name == tmp_path.name, "a folder of results alone is called what it is called"
    entries = [{"hf_subset": key, "main_score": value, "languages": ["eng-Latn"]} for key, value in subsets.items()]
    result = TaskResult.from_validated(task_name="STS22.v2", scores={"test": entries})
    assert result.get_score() == pytest.approx(point.tasks[0].score)


def test_results_are_distinguished_by_revision_and_experiment(tmp_path: Path) -> None:
    for revision, experiments in {"0123456789": ["a", "b"], "abcdef": ["a"]}.items():
        for experiment in experiments:
            write_result(
                tmp_path / "org__m" / revision / "experiments" / experiment, "STS12", {"test": {"default": 0.8}}
            )
    write_result(tmp_path / "org__n" / "abcdef", "STS12", {"test": {"default": 0.8}})
    points = read_runs([tmp_path])
    assert names(points) == ["org/m@01234567/a", "org/m@01234567/b", "org/m@abcdef/a", "org/n"]
    assert compare(points).columns == ["model", "revision", "experiment"]
    found = names(points)
    write_run(tmp_path / "run")
    assert names(read_runs([tmp_path])) == ["run", *found]


@pytest.mark.parametrize("revision", ["0123abcd", "rev1", "no_revision_available"])
def test_models_without_an_organisation_are_named_after_mtebs_folders(tmp_path: Path, revision: str) -> None:
    for number, model in enumerate(
        ("first", "second", "__home__me__models__mine", ".__models__mine", "no_model_name_available")
    ):
        write_result(tmp_path / "others" / model / revision, "STS12", {"test": {"default": number / 10}})
    points = read_runs([tmp_path / "others"])
    models = ["./models/mine", "/home/me/models/mine", "first", "others/no_model_name_available", "second"]
    assert sorted(names(points)) == models == sorted(point.facts["model"] for point in points)
    assert {point.facts["revision"] for point in points if "no_model" not in point.name} == {revision}
    write_result(tmp_path / "others" / "first" / "main" / "experiments" / "x", "STS12", {"test": {"default": 0.9}})
    points = read_runs([tmp_path / "others"])
    assert {name for name in names(points) if "first" in name} == {f"first@{revision}", "first@main"}


def test_models_of_unknown_names_are_named_after_their_paths(tmp_path: Path) -> None:
    unknown = Path("no_model_name__available", "no_revision_available")
    for folder in ("a/x", "b/x", "b/y"):
        write_result(tmp_path / folder, "STS12", {"test": {"default": 0.5}})
    for folder in ("c", "d"):
        write_result(tmp_path / folder / unknown, "STS12", {"test": {"default": 0.5}})
        meta = {"name": "no_model_name/available", "revision": "no_revision_available"}
        (tmp_path / folder / unknown / "model_meta.json").write_text(json.dumps(meta))
    points = read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "d"])
    models = ["a/x", "b/x", "b/y", "c/no_model_name__available", "d/no_model_name__available"]
    shown = [point.facts["model"] for point in points]
    assert len(set(shown)) == 5 and names(points) == shown
    assert all(one.endswith(model) for one, model in zip(shown, models, strict=True))


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "elsewhere" / "run")
    write_result(tmp_path / "elsewhere" / "org__m" / "abc", "STS12", {"test": {"default": 0.5}})
    here = tmp_path / "here"
    write_result(here / "org__n" / "abc", "STS12", {"test": {"default": 0.6}})
    (here / "latest").symlink_to(here / "org__n")
    (here / "above").symlink_to(here)
    assert names(read_runs([here])) == ["org/n"]
    (here / "org__m").symlink_to(tmp_path / "elsewhere" / "org__m")
    assert sorted(names(read_runs([here]))) == ["org/m", "org/n"]
    for name in ("first", "second"):
        (here / name).symlink_to(run)
    points = read_runs([here, tmp_path])
    assert sorted(names(points)) == ["first", "org/m", "org/n"], "each once"
    assert len(read_runs([tmp_path])) == 3
    write_run(here / "outputs" / "runs" / "own")
    write_result(here / "outputs" / "results" / "org__own" / "abc", "STS12", {"test": {"default": 0.5}})
    assert sorted(names(read_runs([here]))) == ["first", "org/m", "org/n", "own"], "not the results of runs"


def test_the_same_model_in_two_places_is_two_points(tmp_path: Path) -> None:
    for who in ("a", "b"):
        write_result(tmp_path / who / "org__m" / "abc", "STS12", {"test": {"default": 0.5}})
    assert names(read_runs([tmp_path])) == ["org/m in a/org__m/abc", "org/m in b/org__m/abc"]


def test_control_characters_in_the_names_of_folders_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "a\nb")
    write_result(tmp_path / "c\td\x1b[31m", "STS12", {"test": {"default": 0.8}})
    write_result(tmp_path / "org__e\nf" / "a\nb", "STS12", {"test": {"default": 0.8}})
    write_result(tmp_path / "org__e\nf" / "a\nb", "Own\ntask", {"test": {"default": 0.8}})
    points = read_runs([tmp_path])
    assert [task.name for task in points[2].tasks] == ["Own\\ntask", "STS12"]
    assert names(points) == ["a\\nb", "c\\td\\x1b[31m", "org/e\\nf"]
    comparison = compare(points)
    lines = comparison_csv(comparison).splitlines()
    assert len(lines) == 4 and all("\t" not in line for line in lines)
    console = Console(file=io.StringIO(), width=400)
    print_comparison(console, comparison)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(sum(line.startswith(name) for line in shown.splitlines()) == 1 for name in names(points))
    markdown = comparison_markdown(comparison).split("## Conclusions")[0].splitlines()
    assert len([line for line in markdown if line.startswith("| ")]) == 5, "a header, a rule, and a line for each point"


def test_the_results_of_runs_are_not_read_again(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "day" / "1")
    write_result(tmp_path / "results" / "org__m" / "abcdef", "STS12", {"test": {"default": 0.8}})
    write_result(tmp_path / "others" / "org__n" / "abcdef", "STS12", {"test": {"default": 0.8}})
    assert names(read_runs([tmp_path])) == ["1", "org/n"]
    assert names(read_runs([tmp_path / "results"])) == ["org/m"]


def test_a_path_without_runs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        read_runs([tmp_path / "empty", tmp_path / "typo*"])
    first, second = caught.value.mistakes
    assert first.what == "contains neither runs nor results" and second.what == "there is no such file or folder"
    assert first.where == f"runs={tmp_path / 'empty'}" and "run.json" in first.allowed


def test_a_pipeline_that_a_command_line_leaves_out_is_no_setting(tmp_path: Path) -> None:
    pipeline = {"_target_": "mteb_vllm.pipelines.evaluate.Evaluate", "top_k": 10}
    for number, overrides in enumerate(([], ["pipeline=evaluate"])):
        write_run(tmp_path / str(number), point=number, overrides=overrides, config=CONFIG | {"pipeline": pipeline})
    made = compare(read_runs([tmp_path]))
    assert made.columns == [] and made.constants["pipeline"] == "evaluate"
