"""Searches with hydra/sweeper=optuna: what is checked before, how points end, and what is reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_own_pipeline import own

from mteb_vllm import run
from mteb_vllm.errors import ConfigError, MtebVllmError
from mteb_vllm.preflight.command import Point, check
from mteb_vllm.results.record import RunRecord, read_record
from tiny_models import tiny_encoder

__all__ = ["own"]  # the fixture

SEARCH = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=3"]
MEAN = [*SEARCH, "report.objective=mean"]
SPEED = [*SEARCH, "report.objective=texts_per_second", "results.reuse=none"]
SIZES = "engine.max_num_seqs=choice(16,64)"


def message(*overrides: str, multirun: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        check(overrides, multirun=multirun)
    return str(caught.value)


def searched(*overrides: str) -> Point:
    (point,) = check([*MEAN, *overrides], multirun=True)
    return point


# Before a search.


def command_line(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "mteb_vllm", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [["experiment=tune_throughput"], ["-m", *MEAN, SIZES, "hydra/sweeper/sampler=grid"]],
    ids=["experiment", "command line"],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(words: list[str], tmp_path: Path) -> None:
    hidden = tmp_path / "hydra_plugins" / "hydra_optuna_sweeper"  # found first, and without a sweeper
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").touch()
    done = command_line(*words, path=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hydra/sweeper=optuna: needs the package hydra-optuna-sweeper" in done.stderr
    assert "pip install 'mteb-vllm[search]'" in done.stderr
    mistakes = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    assert len(mistakes) == 1, done.stderr


def test_only_the_default_is_a_point_and_it_lacks_the_searched_keys() -> None:
    point = searched(SIZES, "engine.max_model_len=range(64,257,64)", "engine.dtype=float32", "prompts=none,e5")
    assert point.searched == ("engine.max_num_seqs", "engine.max_model_len", "prompts")
    assert point.launched == ("report.objective=mean", "engine.dtype=float32")
    assert point.config.engine["max_num_seqs"] is None


def test_the_experiment_searches_and_its_keys_can_be_replaced() -> None:
    keys = ("engine.max_num_seqs", "engine.max_num_batched_tokens", "engine.dtype", "engine.enforce_eager")
    (point,) = check(["experiment=tune_throughput"])
    assert point.searched == keys and point.config.engine["dtype"] is None
    (point,) = check(["experiment=tune_throughput", "engine.dtype=float32", "engine.max_num_seqs=choice(1,2)"])
    assert point.searched == (*keys[:2], keys[3]) and point.config.engine["dtype"] == "float32"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["engine.dtype=choice(float32,bfloat61)"], "bfloat61"),
        (["engine.max_model_len=range(-64,257,64)"], "-64"),
        (["engine.max_model_len=range(64,1000001,999936)"], "1000000"),
        (["engine.max_num_seqs=interval(0,8)"], "max_num_seqs"),
        (["engine.max_num_seq=choice(1,2)"], "engine.max_num_seqs"),
        (["prompts=choice(none,e6)"], "prompts=e5"),
        (["engine.max_num_seqs=range(64,8)"], "ascending"),
        (["prompts=glob(*)"], "list the values"),
        (["engine.max_num_seqs=range(8,64,8)", "hydra/sweeper/sampler=grid"], "a grid search needs a list of values"),
        (["hydra.job.name=choice(a,b)"], "Hydra's own settings cannot be swept"),
    ],
)
def test_each_value_is_checked(overrides: list[str], expected: str) -> None:
    text = message(*MEAN, *overrides)
    assert expected in text and "nothing to search" not in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*SEARCH, SIZES], "a search needs an objective"),
        (MEAN, "there is nothing to search"),
        ([SEARCH[0], SIZES, "report.objective=mean"], "hydra.sweeper.direction=maximize"),
        ([*MEAN, SIZES, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials"),
        ([*MEAN, SIZES, "hydra.sweeper.sampler.sead=0"], "hydra.sweeper.sampler.sead"),
        ([*MEAN, SIZES, "hydra/sweeper/sampler=gird"], "hydra/sweeper/sampler=grid"),
        ([*MEAN, SIZES, "hydra.sweeper.custom_search_space=evil.run"], "hydra.sweeper.custom_search_space"),
        ([*MEAN, SIZES, "hydra.sweeper.storage=sqlite:///search.db"], "hydra.sweeper.storage"),
        ([*MEAN, SIZES, "report.baseline=3"], "compared with its default, point 0"),
        ([*MEAN, SIZES, "report.score_tolerance=0.1"], "is only for searches for speed"),
        ([*SPEED, SIZES, "results.reuse=exact"], "a cached result has no speed"),
        ([*SPEED, SIZES, "embedding_cache.use=always"], "a cached embedding has no speed"),
        (
            [*SPEED, SIZES, "report.score_tolerance=0.1", "hydra/launcher=basic"],
            "only hydra/launcher=engine_grouped or slurm runs",
        ),
        ([*SPEED, SIZES, "hydra.launcher.workers=2"], "a search for speed runs one at a time"),
    ],
)
def test_settings_of_a_search_are_checked(overrides: list[str], expected: str) -> None:
    assert expected in message(*overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["report.objective=speed"], "Allowed: mean, texts_per_second"),
        (["report.objective=mean", "pipeline=throughput"], "pipeline=throughput has no scores"),
        (["report.score_tolerance=0.1"], "only used in a search"),
        (["report.score_tolerance=-1"], "report.score_tolerance"),
    ],
)
def test_objectives_are_checked_in_every_run(overrides: list[str], expected: str) -> None:
    assert expected in message(*overrides, multirun=False)


def test_a_dry_run_says_how_many_points_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    (planned,) = run([*MEAN, SIZES, "dry_run=true"], multirun=True)  # type: ignore[misc]
    assert planned.number == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "The table shows only point 0, the default. The search then chooses 3 more points, varying engine.max_" in text
    )


# A search.


TIMED = '''
from dataclasses import dataclass

from mteb_vllm.pipelines.base import Pipeline
from mteb_vllm.results.record import TaskOutcome


@dataclass(frozen=True, kw_only=True)
class Count(Pipeline):
    """Takes as long as it is told to, without an engine."""

    seconds: float = 1.0
    score: float = 0.5

    def run(self, context):
        if self.seconds == 9:
            raise RuntimeError("it does not work")
        for task in context.tasks:
            name = task.metadata.name
            context.progress.start_task(name)
            outcome = TaskOutcome(name, "STS", "computed", "score", self.score, computed=100)
            outcome.seconds["encode"] = self.seconds
            context.progress.end_task(outcome)
            yield outcome
'''

YAML = "_target_: my_package.counting.Count\nseconds: 1.0\nscore: 0.5\n"


@pytest.fixture
def timed(own: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A user's pipeline whose speed and score are two of its fields."""
    (tmp_path / "my_package" / "counting.py").write_text(TIMED)
    (tmp_path / "conf" / "pipeline" / "count.yaml").write_text(YAML)
    return own


def words(folder: Path, *more: str) -> list[str]:
    return [
        "pipeline=count", "tasks.names=[StdlibDocsClassification]", f"results.dir={folder / 'out'}",
        "allowed_targets=[my_package.]", *more,
    ]  # fmt: skip


def point_of(records: list[RunRecord], **fields: float) -> RunRecord:
    """The first point with these fields of the pipeline."""
    return next(record for record in records if fields.items() <= record.config["pipeline"].items())


@pytest.mark.slow
def test_a_search_finds_the_fastest_point_that_keeps_the_score(
    timed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although a faster one has another score and another one fails; it and the default are then run again, in turn."""
    axes = ["pipeline.seconds=choice(0.25,0.5,9)", "pipeline.score=choice(0.5,0.75)", "hydra/sweeper/sampler=grid"]
    search = [*SPEED, "hydra.sweeper.n_trials=10", "hydra.sweeper.n_jobs=3", "report.score_tolerance=0.1"]
    records: Any = run(words(tmp_path, *search, *axes), multirun=True, **timed)
    assert [record.point for record in records] == list(range(11)), "the default, all 6 of the grid, and two pairs"
    assert records[0].config["pipeline"]["seconds"] == 1, "the default is point 0"
    best, rejected = point_of(records, seconds=0.25, score=0.5), point_of(records, seconds=0.25, score=0.75)
    failed = point_of(records, seconds=9)
    assert best.objective.value == 400 and rejected.objective.value == 400 and records[0].objective.value == 100
    assert (rejected.status, failed.status) == ("ok", "failed") and "it does not work" in failed.objective.reason
    assert [record.config["pipeline"]["seconds"] for record in records[7:]] == [1, 0.25, 0.25, 1]
    folder = Path(best.output_dir).parent
    learnt = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert learnt["best_value"] == 400 and learnt["best_params"] == {"pipeline.seconds": 0.25, "pipeline.score": 0.5}
    assert read_record(Path(best.output_dir) / "run.json").objective == best.objective
    assert len(json.loads((folder / "sweep.json").read_text())["points"]) == 11
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Best of 6 points: point {best.point} (pipeline.seconds=0.25 pipeline.score=0.5), 400.0 texts/s" in shown
    assert f"Rejected: point {rejected.point} (pipeline.seconds=0.25 pipeline.score=0.75)" in shown
    assert (
        "default 100.0 and 100.0, best 400.0 and 400.0 texts/s. The best is 4.00 times as fast (4.00 to 4.00)." in shown
    )
    assert (
        f"To use it: mteb-vllm --config-dir {timed['config_dir']} pipeline=count" in shown and "Traceback" not in shown
    )


def test_an_invalid_combination_is_a_failed_point(timed: dict[str, Any], tmp_path: Path) -> None:
    """Each value is valid by itself, so the check before the search cannot find it."""
    axes = ["pipeline=count,evaluate", "pipeline.score=choice(0.25,0.75)", "hydra/sweeper/sampler=grid"]
    (tmp_path / "conf" / "experiment").mkdir()
    counting = "# @package _global_\ndefaults:\n  - override /pipeline: count\n"
    (tmp_path / "conf" / "experiment" / "counting.yaml").write_text(counting)
    search = [*MEAN, "hydra.sweeper.n_jobs=4", "hydra.sweeper.n_trials=4", "experiment=counting"]
    fixed = [word for word in words(tmp_path) if not word.startswith("pipeline=")]
    records: Any = run([*fixed, *search, *axes], multirun=True, show=False, **timed)
    failed = [record for record in records if record.status == "failed"]
    assert len(records) == 5 and len(failed) == 2
    assert all("pipeline=evaluate" in record.overrides for record in failed)
    assert all("pipeline.score" in record.objective.reason for record in failed), failed[0].objective.reason
    assert max(record.objective.value or 0 for record in records) == 0.75


def test_a_search_that_finds_nothing_fails(timed: dict[str, Any], tmp_path: Path) -> None:
    search = words(tmp_path, *SPEED, "pipeline.seconds=choice(9)", "hydra/launcher=basic")
    done = command_line("-m", "--config-dir", timed["config_dir"], *search, path=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "The search found nothing: each of the chosen points (3) failed or was rejected." in " ".join(
        done.stdout.split()
    )
    # A run prints the traceback of an unexpected error; the search adds none.
    assert "mteb_vllm/sweep/" not in done.stderr and "mteb_vllm/report/" not in done.stderr


def test_without_the_scores_of_the_default_no_point_can_be_judged(timed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "conf" / "pipeline" / "count.yaml").write_text(YAML.replace("1.0", "9.0"))
    search = words(tmp_path, *SPEED, "report.score_tolerance=0.1", "pipeline.seconds=choice(2,3)")
    with pytest.raises(MtebVllmError, match="its default, point 0, failed, so no score"):
        run(search, multirun=True, show=False, **timed)


def test_hydras_own_launcher_searches_too(timed: dict[str, Any], tmp_path: Path) -> None:
    search = words(tmp_path, *MEAN, "pipeline.score=choice(0.25,0.75)", "hydra/launcher=basic")
    records: Any = run(search, multirun=True, show=False, **timed)
    assert [record.point for record in records] == [0, 1, 2], "it runs no default"
    assert all(record.objective.value == record.config["pipeline"]["score"] for record in records)


# On the real engine.


def tiny(folder: Path, *more: str) -> list[str]:
    model = folder / "model"
    if not model.exists():
        tiny_encoder(model)
    return [
        "model=custom", f"model.path={model}", "tasks.names=[StdlibDocsClassification]", f"results.dir={folder / 'out'}",
        "hydra.sweeper.sampler.seed=0", *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.vllm
def test_a_real_search_ends_with_a_file_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = tiny(tmp_path, "engine.max_model_len=64")
    search = [*SPEED, SIZES, "engine.dtype=choice(float32)", "report.score_tolerance=0.01"]
    records: Any = run([*fixed, *search], multirun=True)
    assert len(records) in (4, 8) and all(record.status == "ok" and record.objective.value for record in records)
    best = max(records[1:4], key=lambda record: record.objective.value)
    (written,) = (tmp_path / "out").glob("sweeps/*/*/best/engine/mine.yaml")
    values = yaml.safe_load(written.read_text())
    size = best.config["engine"]["max_num_seqs"]
    assert values == {"preset": "auto", "dtype": "float32", "max_model_len": 64, "max_num_seqs": size}
    shown = " ".join(capsys.readouterr().out.split())
    assert "Best of 3 points" in shown and "engine=mine" in shown and "Rejected" not in shown
    assert ("Both were measured again, in turn" in shown) == (len(records) == 8)
    plain = [word for word in fixed if not word.startswith("hydra.")]  # it is not a search
    (point,) = check([*plain, "engine=mine"], config_dir=str(written.parents[1]))
    assert point.config.engine["max_num_seqs"] == size and point.config.engine["preset"] == "auto"


@pytest.mark.slow
@pytest.mark.vllm
def test_the_same_search_again_takes_cached_scores_and_goes_on(tmp_path: Path) -> None:
    """Points of a batch that differ only in prompts share an engine."""
    prompts = '+prompts.StdlibDocsClassification=choice("a: ","b: ","c: ","d: ","e: ","f: ")'
    search = tiny(tmp_path, *MEAN, "hydra.sweeper.n_jobs=3", prompts)
    first: Any = run(search, multirun=True, show=False)
    assert len({one.overrides[0] for one in first[1:]}) > 1, "choose another seed"
    summary = json.loads((Path(first[0].output_dir).parent / "sweep.json").read_text())
    assert summary["engines_opened"] == 1, "for the default and the whole batch"
    again: Any = run([word.replace("n_trials=3", "n_trials=4") for word in search], multirun=True, show=False)
    assert [one.overrides for one in again][:4] == [one.overrides for one in first] and len(again) == 5
    assert all(task.status == "cached" for record in again[:4] for task in record.tasks)
    assert [one.objective.value for one in again][:4] == [one.objective.value for one in first]
