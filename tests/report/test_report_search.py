"""What is shown and written at the end of a search."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from test_objective import record, task

from mteb_vllm.report.run_records import read_run
from mteb_vllm.report.search import print_search
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import RunRecord, write_record
from mteb_vllm.results.search import Search
from mteb_vllm.util.console import Console

CHOICES = {"experiment": None, "model": "e5_small", "engine": "auto", "prompts": "auto", "tasks": "sts12"}
FIXED = ["model=e5_small", "engine.max_model_len=64", "report.objective=texts_per_second", "results.reuse=none"]


def point(
    number: int,
    seconds: float,
    score: float = 0.5,
    dtype: str | None = None,
    name: str = "texts_per_second",
    **more: Any,
) -> RunRecord:
    searched = [f"engine.dtype={dtype}", "prompts=e5"] if dtype else []
    engine = {"preset": "auto", "dtype": dtype, "max_model_len": 64, "max_num_seqs": None, "env": {}}
    overrides = [*more.pop("fixed", FIXED), *searched]
    config = {"engine": engine, "experiment": more.pop("experiment", None), "model": {}, "tasks": {}, "pipeline": {}}
    return record(name, task("A", score, seconds=seconds), point=number, overrides=overrides, config=config, **more)


def searched(*trials: RunRecord, **more: Any) -> Search:
    found = Search(("engine.dtype", "prompts"), 0.01, point(0, 2.0, **more))
    for trial in trials:
        found.add(trial)
    return found


def shown(search: Search, folder: Path, **choices: Any) -> str:
    file = io.StringIO()
    print_search(Console(file=file, width=400), search, {**CHOICES, **choices}, folder)
    return file.getvalue()


def test_the_best_point_is_shown_against_the_default_as_yaml_and_as_a_command(tmp_path: Path) -> None:
    search = searched(point(1, 1.0, dtype="float16"), point(2, 0.5, score=0.52, dtype="bfloat16"))
    search.add(point(3, 1.0, dtype="auto", failure=Failure("engine_start", "no memory")))
    text = shown(search, tmp_path)
    assert "Best of 3 points: point 1 (engine.dtype=float16 prompts=e5), 100.0 texts/s, mean score 0.50000\n" in text
    assert "Default: point 0, 50.0 texts/s" in text and "2.00 times as fast, in a single measurement of each" in text
    rejected = "point 2 (engine.dtype=bfloat16 prompts=e5): its scores differ by more than report.score_tolerance=0.01"
    assert f"Rejected: {rejected}: A 0.52000 instead of 0.50000\n" in text
    assert "No objective: point 3" in text and "no memory" in text
    written = (tmp_path / "best" / "engine" / "mine.yaml").read_text()
    assert yaml.safe_load(written) == {"preset": "auto", "dtype": "float16", "max_model_len": 64}
    assert written.startswith("# Found by a search: texts_per_second: 100.\n") and written in text
    assert f"To use it: mteb-vllm --config-dir {tmp_path}/best model=e5_small prompts=e5 engine=mine\n" in text


def test_a_speed_up_is_that_of_the_measurements_in_turn(tmp_path: Path) -> None:
    search = searched(point(1, 1.0, dtype="float16"))
    search.pairs = [(point(2, 2.0), point(3, 1.0, dtype="float16")), (point(5, 2.5), point(4, 1.0, dtype="float16"))]
    figures = "default 50.0 and 40.0, best 100.0 and 100.0 texts/s"
    assert f"{figures}. The best is 2.25 times as fast (2.00 to 2.50)." in shown(search, tmp_path)
    search.pairs[1] = (point(5, 0.9), point(4, 1.0, dtype="float16"))
    assert "best 100.0 and 100.0 texts/s. There is no measurable difference." in shown(search, tmp_path)
    search.pairs[1] = (point(5, 0.9, failure=Failure("killed", "gone")), search.pairs[1][1])
    assert "in a single measurement of each" in shown(search, tmp_path)


def test_pairs_are_called_pairs(tmp_path: Path) -> None:
    search = searched(point(1, 1.0, dtype="float16"))
    for run in (search.default, *search.trials):
        assert run is not None
        run.tasks[0].prompts = {"A pair": {}}
    text = shown(search, tmp_path)
    assert "100.0 pairs/s" in text and "50.0 pairs/s" in text and "texts/s" not in text


def test_a_search_can_find_nothing(tmp_path: Path) -> None:
    slower = shown(searched(point(1, 2.5, dtype="float16")), tmp_path)
    assert "found nothing better than the default" in slower and "times as fast" not in slower
    rejected = shown(searched(point(1, 1.0, score=0.7, dtype="float16")), tmp_path)
    assert "The search found nothing: each of the chosen points (1) failed or was rejected.\n" in rejected
    assert "To use it" not in rejected


def test_scores_are_compared_by_their_difference(tmp_path: Path) -> None:
    search = searched(point(1, 1.0, score=0.75, dtype="float16", name="mean"), name="mean")
    search.rejected.clear()
    text = shown(search, tmp_path)
    assert "mean score 0.75000" in text and "The mean score of the best is higher by 0.25000." in text


def test_the_command_names_what_an_experiment_chose_but_not_the_experiment(tmp_path: Path) -> None:
    """The experiment would search again."""
    fixed = ["experiment=tune", "tasks=sts12"]
    text = shown(
        searched(point(1, 1.0, dtype="float16", fixed=fixed)), tmp_path, experiment="tune", pipeline="evaluate"
    )
    assert text.splitlines()[-1].endswith("/best model=e5_small pipeline=evaluate tasks=sts12 prompts=e5 engine=mine")


def test_a_search_over_prompts_alone_has_no_engine_to_save(tmp_path: Path) -> None:
    search = searched(point(1, 1.0, dtype="float16"))
    search.searched = ("prompts",)
    text = shown(search, tmp_path)
    assert "To use it: mteb-vllm model=e5_small engine.max_model_len=64 engine.dtype=float16 prompts=e5\n" in text
    assert not (tmp_path / "best").exists()


def test_a_report_recommends_no_command_that_would_search_again(tmp_path: Path) -> None:
    for experiment, expected in (
        ("tune", None),
        (None, ("model=e5_small", "engine.max_model_len=64", "results.reuse=none")),
    ):
        write_record(point(0, 1.0, experiment=experiment), tmp_path)
        assert read_run(tmp_path).point.arguments == expected
