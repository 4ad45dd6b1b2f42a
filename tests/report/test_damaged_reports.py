"""Damaged files are named and shown as failures, and the rest of a report is complete."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_loading_runs import STS12, write_result, write_run

from mteb_vllm.errors import ConfigError
from mteb_vllm.pipelines.parity.stored import stored_scores
from mteb_vllm.report.answer import conclusion
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.page import page
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.counters import Measured
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.util.console import Console
from mteb_vllm.util.files import dump_sealed

TRUE = 0.7


def reported(*paths: Path) -> tuple[Comparison, str]:
    """Compare the runs at paths; return the comparison and all texts of its report."""
    comparison = compare(read_runs(paths))
    console = Console(file=io.StringIO(), width=400)
    print_comparison(console, comparison)
    texts = [comparison_markdown(comparison), comparison_csv(comparison), page(comparison, conclusion(comparison), "x")]
    return comparison, "\n".join([console.file.getvalue(), *texts])  # type: ignore[attr-defined]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    lost = TaskOutcome("C", "STS", "failed", "m", failure=Failure("data", "gone", "C", ["line"], "try"))
    tasks = [
        STS12,
        replace(STS12, name="A", first_stage=0.5, ceiling=0.9, measured=Measured(computed=8, seconds=4.0)),
        lost,
    ]
    for number in range(3):
        folder = write_run(tmp_path / "sweep" / str(number), *tasks, point=number, overrides=[f"engine.dtype={number}"])
        (folder / ".hydra").mkdir()
    return tmp_path / "sweep"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a record and renew its checksum."""
    content = json.loads((folder / "run.json").read_text())
    del content["sha256"]
    change(content)
    (folder / "run.json").write_text(dump_sealed(content), errors="backslashreplace")


def test_a_flipped_bit_in_a_record_is_noticed(sweep: Path) -> None:
    path = sweep / "1" / "run.json"
    text = path.read_bytes()
    for at in range(text.index(b'"main_score"'), text.index(b'"main_score"') + 20):
        for bit in (1, 16):
            path.write_bytes(text[:at] + bytes([text[at] ^ bit]) + text[at + 1 :])
            [one, damaged, _] = read_runs([sweep])
            assert one.tasks[0].score == TRUE
            assert damaged.tasks == [] and damaged.failures[0].kind == "damaged"
            assert str(path) in damaged.failures[0].message
    path.write_text(json.dumps(json.loads(text)))
    assert "was changed after it was written" in read_runs([sweep])[1].failures[0].message


def test_a_record_without_its_checksum_is_noticed(sweep: Path) -> None:
    path = sweep / "1" / "run.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content, indent=2))
    assert "was changed after it was written" in read_runs([sweep])[1].failures[0].message


def test_a_single_runs_record_in_the_place_of_a_points_is_noticed(sweep: Path, tmp_path: Path) -> None:
    single = write_run(tmp_path / "single")
    (sweep / "1" / "run.json").write_bytes((single / "run.json").read_bytes())
    (sweep / "multirun.yaml").touch()
    assert "it is the record of a single run, not of a point of this sweep" in read_runs([sweep])[1].failures[0].message


def test_a_record_in_the_place_of_another_is_noticed(sweep: Path) -> None:
    (sweep / "1" / "run.json").write_bytes((sweep / "2" / "run.json").read_bytes())
    assert "it is the record of point 2, not of point 1" in read_runs([sweep])[1].failures[0].message


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a record."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(*at, key) for key in keys] + [place for key in keys for place in places(value[key], (*at, key))]


@pytest.mark.parametrize(
    "value",
    [None, True, "x", 7, -1e300, 10**400, float("nan"), [], ["x"], {}, {"x": {"y": 1}}, [[]], "\ud800"],
    ids=lambda value: str(value)[:9].encode("ascii", "backslashreplace").decode(),
)
def test_values_of_any_other_type_in_a_record(sweep: Path, value: Any) -> None:
    folder = sweep / "1"
    before = json.loads((folder / "run.json").read_text())
    there = [
        one for one in places(before) if one[0] not in ("hardware", "versions", "sha256") and "scores" not in one[:-1]
    ]
    for place in random.Random(ascii(value)).sample(there, 30):

        def change(content: dict[str, Any], place: tuple[Any, ...] = place) -> None:
            for key in place[:-1]:
                content = content[key]
            content[place[-1]] = value

        (folder / "run.json").write_text(json.dumps(before))
        rewrite(folder, change)
        points = read_runs([sweep])
        assert [point.tasks[0].score for point in points[::2]] == [TRUE, TRUE]
        if not points[1].failures or points[1].failures[0].kind != "damaged":
            compare(points)  # whatever was accepted can be compared
    reported(sweep)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[" * 100_000, b"\xff\xfe{}", b'{"a": 1', b"[]", b"7"], ids=lambda one: one[:5]
)
def test_files_that_are_no_records(sweep: Path, content: bytes) -> None:
    (sweep / "1" / "run.json").write_bytes(content)
    comparison, text = reported(sweep)
    assert [row.point.failed for row in comparison.rows] == [True, True, True]
    assert [len(row.point.tasks) for row in comparison.rows] == [3, 0, 3]
    assert str(sweep / "1" / "run.json") in text


@pytest.mark.parametrize("kind", ["gone", "folder", "fifo", "loop", "dangling"])
def test_something_other_than_a_file_in_place_of_a_record(sweep: Path, kind: str) -> None:
    path = sweep / "1" / "run.json"
    path.unlink()
    {
        "gone": lambda: None,
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "dangling": lambda: path.symlink_to("nowhere"),
    }[kind]()
    comparison, text = reported(sweep)
    assert [row.point.name for row in comparison.rows] == ["0", "1", "2"]
    assert [len(row.point.tasks) for row in comparison.rows] == [3, 0, 3]
    assert f"{sweep}/1" in text


def test_a_folder_that_cannot_be_listed(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/1"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    points = read_runs([sweep])
    assert sorted(point.name for point in points) == ["0", "1", "2"]
    [damaged] = [point for point in points if point.name == "1"]
    assert damaged.failures[0].message == f"{sweep}/1: Permission denied"


def test_damaged_results_leave_the_others_alone(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "org__model" / "abc"
    for name in ("STS12", "STS13", "STS14", "STS15", "Own", "STS16", "STS17", "STSBenchmark", "BIOSSES"):
        write_result(folder, name, {"test": {"default": TRUE}})
    (folder / "STS13.json").write_text("")
    (folder / "STS14.json").write_text("{}")
    (folder / "Own.json").write_text("")
    (folder / "STS15.json").write_bytes((folder / "STS12.json").read_bytes())
    (folder / "STS16.json").unlink()
    (folder / "STS16.json").mkdir()
    (folder / "STS17.json").unlink()
    os.mkfifo(folder / "STS17.json")
    (folder / "BIOSSES.json").unlink()
    (folder / "BIOSSES.json").symlink_to("BIOSSES.json")
    text = (folder / "STSBenchmark.json").read_text()
    (folder / "STSBenchmark.json").write_text(text.replace("0.7", '"0.7"'))
    (folder / "notes.json").write_text('{"mine": 1}')
    (folder / "model_meta.json").write_text("null")
    comparison, text = reported(tmp_path / "results")
    [row] = comparison.rows
    damaged = ["BIOSSES", "Own", "STS13", "STS14", "STS15", "STS16", "STS17", "STSBenchmark"]
    assert {name for name, score in row.scores.items() if score is None} == set(damaged)
    assert row.scores["STS12"] == TRUE and row.point.facts["model"] == "org/model"
    assert [failure.task for failure in row.point.failures] == damaged, "a damaged model_meta.json fails nothing"
    for name in (*damaged, "model_meta"):
        assert str(folder / f"{name}.json") in text
    assert "it contains the scores of STS12" in text and "notes.json" not in text


@pytest.mark.parametrize(
    "meta", [{"name": "org/other"}, {"name": "mteb-vllm/ceiling"}, {"revision": "other"}, {"name": 7}]
)
def test_scores_are_not_shown_as_those_of_another_model(tmp_path: Path, meta: dict[str, Any]) -> None:
    folder = tmp_path / "org__model" / "abc" / "experiments" / "settings_x"
    write_result(folder, "STS12", {"test": {"default": TRUE}})
    (folder / "model_meta.json").write_text(json.dumps({"name": "org/model", "revision": "abc"}))
    assert not read_runs([tmp_path])[0].failures
    (folder / "model_meta.json").write_text(json.dumps({"name": "org/model", "revision": "abc"} | meta))
    [point] = read_runs([tmp_path])
    assert (point.facts["model"], point.facts["revision"], point.tasks[0].score) == ("org/model", "abc", TRUE)
    assert not point.failures and str(folder / "model_meta.json") in point.warnings[0]


@pytest.mark.parametrize(
    ("content", "why"),
    {
        "": "it is empty",
        "{": "it is not valid JSON: ",
        "\xff": "it is not valid JSON: not a text in UTF-8",
        "[]": "it is not a JSON object",
        "[[]]": "it is not a JSON object",
        "7": "it is not a JSON object",
        '{"name": []}': "the name and the revision must be strings",
        '{"name": "org/m", "revision": {}}': "the name and the revision must be strings",
    }.items(),
)
def test_a_damaged_model_meta_is_a_warning(tmp_path: Path, content: str, why: str) -> None:
    folder, good = (tmp_path / name / "abc" for name in ("plain", "org__good"))
    write_result(folder, "STS12", {"test": {"default": TRUE + 0.1}})
    write_result(good, "STS12", {"test": {"default": TRUE}})
    (folder / "model_meta.json").write_bytes(content.encode("latin-1"))
    comparison, text = reported(tmp_path)
    assert [(row.point.name, row.mean) for row in comparison.rows] == [("org/good", TRUE), ("plain", TRUE + 0.1)]
    assert not any(row.point.failed for row in comparison.rows) and comparison.best is comparison.rows[1]
    assert text.count(f"{folder / 'model_meta.json'} cannot be used ({why}") == 4, "in each form of the report"
    assert "Error" not in comparison.rows[1].point.warnings[0]


def test_a_model_meta_that_cannot_be_opened_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "org__m" / "abc"
    write_result(folder, "STS12", {"test": {"default": TRUE}})
    (folder / "model_meta.json").symlink_to("model_meta.json")
    [point] = read_runs([tmp_path])
    assert (point.facts["model"], point.failed) == ("org/m", False)
    assert "Too many levels of symbolic links" in point.warnings[0] and "Errno" not in point.warnings[0]


@pytest.mark.parametrize(
    ("content", "why"),
    {
        "": "it is empty",
        '{"task_name": "STS12"}': "its scores are missing or are not a JSON object",
        '{"task_name": "STS12", "scores": []}': "its scores are missing or are not a JSON object",
        '{"task_name": "STS12", "scores": {"test": {}}}': "the scores of split test are not a list",
        '{"task_name": "STS12", "scores": {"test": [3]}}': "an entry of split test has no subset or no main score",
        '{"task_name": "STS12", "scores": {"test": [{"hf_subset": "x"}]}}': "an entry of split test has no subset or no main",
        '{"scores": {}}': "task_name is missing",
    }.items(),
)
def test_the_damage_of_a_result_is_told_in_plain_words(tmp_path: Path, content: str, why: str) -> None:
    folder = tmp_path / "org__m" / "abc"
    write_result(folder, "STS13", {"test": {"default": TRUE}})
    (folder / "STS12.json").write_text(content)
    [point] = read_runs([tmp_path])
    assert point.failures[0].message.startswith(f"{folder / 'STS12.json'} is not a readable result ({why}")
    assert [task.score for task in point.tasks] == [None, TRUE]


def test_the_wrong_type_of_a_records_setting_is_told_in_plain_words(sweep: Path) -> None:
    rewrite(sweep / "1", lambda content: content.update(settings={"engine": [3]}))
    rewrite(sweep / "2", lambda content: content.update(config={}))
    [_, wrong, missing] = read_runs([sweep])
    assert wrong.failures[0].message.endswith("run.json is not a readable record (a value has an unexpected type)")
    assert missing.failures[0].message.endswith("run.json is not a readable record (tasks is missing)")


@pytest.mark.parametrize("value", [float("nan"), None, float("inf"), -float("inf")])
def test_a_score_that_is_not_a_number_is_no_score(tmp_path: Path, value: Any) -> None:
    for name, score in {"odd": value, "good": TRUE}.items():
        write_result(tmp_path / f"org__{name}" / "abc", "STS12", {"test": {"default": score}})
        write_result(tmp_path / f"org__{name}" / "abc", "STS13", {"test": {"default": 0.9}})
    comparison, text = reported(tmp_path)
    good, odd = comparison.rows
    assert (odd.point.failed, odd.mean, odd.without) == (False, None, {"STS12": "not a number"})
    assert "The baseline" not in text
    assert comparison.best is comparison.recommended is good and good.mean == pytest.approx(0.8)
    note = "A main score that is not a number (NaN, infinite or null) is no score, so it counts in no mean and no ranking: "
    assert text.count(f"{note}STS12 of org/odd.") == 3
    assert "| org/odd | not a number | not a number | 0.90000 |" in text
    assert '<td class="task">not a number</td>' in text and ",STS12: not a number\n" in text


def test_a_record_with_a_null_score_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", replace(STS12, main_score=float("nan")))
    comparison, text = reported(tmp_path)
    assert comparison.rows[0].without == {"STS12": "not a number"}
    assert "STS12 of run." in text


def test_nothing_is_said_on_means_where_there_are_none(tmp_path: Path) -> None:
    write_result(tmp_path / "org__train" / "abc", "STS12", {"train": {"default": 0.3}})
    write_result(tmp_path / "org__train" / "abc", "STS13", {"train": {"default": 0.3}})
    write_result(tmp_path / "org__bad" / "abc", "STS12", {"test": {"default": float("nan")}})
    comparison, text = reported(tmp_path)
    assert comparison.rows[1].without == {"STS12": "no score", "STS13": "no score"}
    assert "those that are present" not in text and "Means leave out" not in text and "Means and speeds are" not in text
    write_result(tmp_path / "org__half" / "abc", "STS22.v2", {"test": {"en": 0.5}})
    assert "The results of org/half lack some splits or subsets" in reported(tmp_path)[1]


@pytest.mark.parametrize(
    "path", ["~nosuchuser/runs", "a**b", "x\0y", "n" * 300, "{loop}/x", "{file}"], ids=lambda path: path[:9].encode()
)
def test_paths_that_name_nothing_are_errors(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        read_runs([path.format(loop=tmp_path / "loop", file=tmp_path / "file")])
    assert "runs=" in str(caught.value)


def test_a_loop_of_links_is_a_failed_point(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    comparison, text = reported(sweep, tmp_path / "loop")
    assert [row.point.name for row in comparison.rows][-1] == "loop" and len(comparison.rows) == 4
    assert "Too many levels of symbolic links" in text


def test_the_damage_of_a_reference_is_named(sweep: Path) -> None:
    (sweep / "1" / "run.json").write_text("null")
    with pytest.raises(ConfigError, match=r"contains no results for STS12(?s:.*)is not a readable record"):
        stored_scores([str(sweep / "1")], ["STS12"])
