"""What is shown and written at the end of a search."""

from __future__ import annotations

import io
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_objective import record, task

from mteb_vllm.config.schema import compose_run
from mteb_vllm.preflight.command import check
from mteb_vllm.report.run_records import read_run
from mteb_vllm.report.search import print_search
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.record import RunRecord, write_record
from mteb_vllm.results.search import Search
from mteb_vllm.util.console import Console

CHOICES = {"experiment": None, "model": "e5_small", "engine": "auto", "prompts": "auto", "tasks": "sts12"}
FIXED = [
    "model=e5_small",
    "engine.max_model_len=64",
    "tasks=sts12",
    "report.objective=texts_per_second",
    "results.reuse=none",
]


def point(
    number: int,
    seconds: float,
    score: float = 0.5,
    dtype: str | None = None,
    name: str = "texts_per_second",
    **more: Any,
) -> RunRecord:
    searched = [f"engine.dtype={dtype}", "prompts=e5"] if dtype else []
    overrides = [*more.pop("fixed", FIXED), *searched]
    config = asdict(compose_run(overrides, more.pop("config_dir", None)))
    return record(name, task("A", score, seconds=seconds), point=number, overrides=overrides, config=config, **more)


def searched(*trials: RunRecord, **more: Any) -> Search:
    found = Search(("engine.dtype", "prompts"), 0.01, point(0, 2.0, **more))
    for trial in trials:
        found.add(trial)
    return found


def shown(search: Search, folder: Path, *search_path: str, **choices: Any) -> str:
    file = io.StringIO()
    print_search(Console(file=file, width=400), search, {**CHOICES, **choices}, search_path, folder)
    return file.getvalue()


def last_command(text: str) -> tuple[list[str], str | None]:
    """Return the overrides and the `--config-dir` of the command that is shown last."""
    words = shlex.split(text.splitlines()[-1].partition("To use it: mteb-vllm ")[2])
    return (words[2:], words[1]) if words[0] == "--config-dir" else (words, None)


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
    assert yaml.safe_load(written).items() >= {"preset": "auto", "dtype": "float16", "max_model_len": 64}.items()
    assert written.startswith("# Found by a search: texts_per_second: 100.\n") and written in text
    assert (
        f"To use it: mteb-vllm --config-dir {tmp_path}/best model=e5_small tasks=sts12 prompts=e5 engine=mine\n" in text
    )


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
    fixed = ["experiment=tune_throughput", "tasks=sts12"]
    search = searched(point(1, 1.0, dtype="float16", fixed=fixed))
    text = shown(search, tmp_path, experiment="tune_throughput", model="minilm", pipeline="evaluate")
    assert text.splitlines()[-1].endswith("/best model=minilm pipeline=evaluate tasks=sts12 prompts=e5 engine=mine")
    overrides, folder = last_command(text)
    found = compose_run(overrides, folder)
    assert (found.model.name, found.engine["dtype"], found.prompts["query"]) == (
        "sentence-transformers/all-MiniLM-L6-v2", "float16", "query: ",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("defaults", "values", "choices", "expected"),
    [
        # Choices of an experiment can be repeated.
        ({"override /engine": "vllm_cpu"}, {}, {"engine": "vllm_cpu"}, "engine=vllm_cpu tasks=sts12 prompts=e5"),
        (
            {"override /pipeline": "rerank", "override /pipeline/first_stage": "random"}, {},
            {"pipeline": "rerank", "pipeline/first_stage": "random"},
            "tasks=sts12 pipeline=rerank pipeline/first_stage=random prompts=e5",
        ),
        # Its values cannot, so it is run without its search.
        ({}, {"engine": {"max_num_seqs": 7}}, {}, "experiment=mine prompts=e5 hydra.mode=RUN report.score_tolerance=null"),
        (
            {"override /pipeline": "rerank", "override /tasks": "demo_retrieval"},
            {"pipeline": {"scoring": "cosine", "top_k": 7}}, {"pipeline": "rerank", "tasks": "demo_retrieval"},
            "experiment=mine prompts=e5 hydra.mode=RUN report.score_tolerance=null",
        ),
        ({}, {"tasks": {"names": ["STS13"]}}, {}, "experiment=mine prompts=e5 hydra.mode=RUN report.score_tolerance=null"),
    ],
)  # fmt: skip
def test_the_command_runs_what_the_search_has_found(
    tmp_path: Path, defaults: dict[str, str], values: dict[str, Any], choices: dict[str, Any], expected: str
) -> None:
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    mine = {"defaults": [{key: value} for key, value in ({"override /tasks": "sts12"} | defaults).items()], **values}
    searching = {"experiment": "mine", "report": {"objective": "texts_per_second", "score_tolerance": 0.001}}
    text = yaml.safe_dump({**mine, **searching, "hydra": {"mode": "MULTIRUN"}}, sort_keys=False)
    (own / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    best = point(1, 1.0, fixed=["experiment=mine", "prompts=e5"], config_dir=str(own))
    search = Search(("prompts",), 0.01, point(0, 2.0, fixed=["experiment=mine"], config_dir=str(own)))
    search.add(best)
    text = shown(search, tmp_path, "--config-dir", str(own), **{"experiment": "mine", "model": "minilm", **choices})
    assert text.splitlines()[-1].endswith(expected)
    overrides, folder = last_command(text)
    if "pipeline/first_stage" not in choices:  # no reranker is available offline
        (checked,) = check(overrides, config_dir=folder)
        assert not checked.swept
    found = asdict(compose_run(overrides, folder))
    assert {key: found[key] for key in ("model", "engine", "prompts", "tasks", "pipeline")} == {
        key: best.config[key] for key in ("model", "engine", "prompts", "tasks", "pipeline")
    }


def test_the_folder_of_the_best_engine_is_added_to_the_users_own(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    (own / "model").mkdir(parents=True)
    (own / "model" / "mine.yaml").write_text("defaults: [minilm]\nname: org/mine\n")
    (other / "tasks").mkdir(parents=True)
    (other / "tasks" / "two.yaml").write_text("defaults: [fields]\nnames: [STS12, STS13]\n")
    for path in ([], [f"hydra.searchpath=[file://{other}]"]):
        fixed = [
            *path,
            "model=mine",
            "report.objective=texts_per_second",
            *(["tasks=two"] if path else ["tasks=sts12"]),
        ]
        search = searched(
            point(1, 1.0, dtype="float16", fixed=fixed, config_dir=str(own)), fixed=fixed, config_dir=str(own)
        )
        overrides, folder = last_command(shown(search, tmp_path, "--config-dir", str(own), *path))
        assert folder == str(own) and overrides[0].startswith("hydra.searchpath=")
        found = compose_run(overrides, folder)
        assert (found.model.name, found.engine["dtype"]) == ("org/mine", "float16")
        assert found.tasks.names == (["STS12", "STS13"] if path else ["STS12"])


def test_a_search_over_prompts_alone_has_no_engine_to_save(tmp_path: Path) -> None:
    search = searched(point(1, 1.0, dtype="float16"))
    search.searched = ("prompts",)
    text = shown(search, tmp_path)
    assert (
        "To use it: mteb-vllm model=e5_small engine.max_model_len=64 tasks=sts12 engine.dtype=float16 prompts=e5\n"
        in text
    )
    assert not (tmp_path / "best").exists()


def test_a_report_recommends_no_command_that_would_search_again(tmp_path: Path) -> None:
    for fixed, expected in (
        (["experiment=tune_throughput"], None),
        (
            FIXED,
            ("--config-dir", "own", "model=e5_small", "engine.max_model_len=64", "tasks=sts12", "results.reuse=none"),
        ),
    ):
        write_record(point(0, 1.0, fixed=fixed, search_path=["--config-dir", "own"]), tmp_path)
        assert read_run(tmp_path).point.arguments == expected
