"""Searches with hydra/sweeper=optuna: what is checked before, how points end, and what is reported."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_own_pipeline import CLASS, own, words

from mteb_vllm import run
from mteb_vllm.errors import ConfigError, MtebVllmError
from mteb_vllm.preflight import command, hydra
from mteb_vllm.preflight.command import Point, check
from mteb_vllm.results.record import read_record
from mteb_vllm.sweep.job import Job
from tiny_models import tiny_encoder

__all__ = ["own"]  # the fixture

INSTALLED = importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper")
needs_optuna = pytest.mark.skipif(
    not INSTALLED, reason="NOT TESTED: searches, since hydra-optuna-sweeper is not installed (mteb-vllm[optuna])"
)
SEARCH = [
    "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=0"
]  # fmt: skip
SIZES = "engine.max_num_seqs=choice(16,64)"


def message(*overrides: str, multirun: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        check(overrides, multirun=multirun)
    return str(caught.value)


def searched(*overrides: str) -> Point:
    (point,) = check([*SEARCH, "report.objective=mean", *overrides], multirun=True)
    return point


# Before a search.


@pytest.mark.skipif(bool(INSTALLED), reason="hydra-optuna-sweeper is installed")
@pytest.mark.parametrize("overrides", [["hydra/sweeper=optuna"], ["experiment=tune_throughput"]])
def test_a_missing_package_is_named_with_the_command_that_installs_it(overrides: list[str]) -> None:
    text = message(*overrides)
    assert "hydra-optuna-sweeper, which is not installed" in text and "pip install 'mteb-vllm[optuna]'" in text


@needs_optuna
def test_only_the_default_is_a_point_and_it_lacks_the_searched_keys() -> None:
    point = searched(SIZES, "engine.max_model_len=range(64,257,64)", "engine.dtype=float32", "prompts=none,e5")
    assert point.searched == ("engine.max_num_seqs", "engine.max_model_len", "prompts")
    assert point.launched == ("report.objective=mean", "engine.dtype=float32")
    assert point.config.engine["max_num_seqs"] is None


@needs_optuna
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("engine.dtype=choice(float32,bfloat61)", "bfloat61"),
        ("engine.max_model_len=range(-64,257,64)", "-64"),
        ("engine.max_model_len=range(64,1000001,999936)", "1000000"),
        ("engine.max_num_seqs=interval(0,8)", "max_num_seqs"),
        ("engine.max_num_seq=choice(1,2)", "engine.max_num_seqs"),
        ("prompts=choice(none,e6)", "prompts=e5"),
        ("engine.max_num_seqs=range(64,8)", "ascends"),
        ("prompts=glob(*)", "list the values"),
        ("hydra.job.name=choice(a,b)", "Hydra's own settings cannot be swept"),
    ],
)
def test_each_value_is_checked(override: str, expected: str) -> None:
    assert expected in message(*SEARCH, "report.objective=mean", override)


@needs_optuna
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*SEARCH, SIZES], "a search needs an objective"),
        ([*SEARCH, "report.objective=mean"], "there is nothing to search"),
        ([SEARCH[0], SIZES, "report.objective=mean"], "hydra.sweeper.direction=maximize"),
        ([*SEARCH, SIZES, "report.objective=mean", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials"),
        (
            [*SEARCH, SIZES, "report.objective=mean", "hydra.sweeper.custom_search_space=evil.run"],
            "custom_search_space",
        ),
        ([*SEARCH, SIZES, "report.objective=mean", "report.baseline=3"], "compared with its default, point 0"),
        (
            [*SEARCH, SIZES, "report.objective=mean", "report.score_tolerance=0.1", "hydra/launcher=basic"],
            "only hydra/launcher=engine_grouped runs",
        ),
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


# A search.


def failing_at(factor: float, folder: Path) -> None:
    """Make the user's pipeline fail with one value of its factor."""
    fails = f"if self.factor == {factor}: raise RuntimeError('it does not work')\n            task.load_data()"
    (folder / "my_package" / "counting.py").write_text(CLASS.replace("task.load_data()", fails))


def search(folder: Path, own: dict[str, Any], *more: str) -> Any:
    return run(words(folder, *SEARCH, "report.objective=mean", *more), multirun=True, show=False, **own)


@needs_optuna
def test_a_search_finds_the_best_point_although_others_fail(own: dict[str, Any], tmp_path: Path) -> None:
    failing_at(9.0, tmp_path)
    grid = ["hydra/sweeper/sampler=grid", "~hydra.sweeper.sampler.seed"]
    grid = [word for word in grid if not word.startswith("~")]
    axes = "pipeline.factor=choice(0.5,3,9)"
    plain = [word for word in SEARCH if "seed" not in word]
    records: Any = run(
        words(tmp_path, *plain, *grid, axes, "report.objective=mean", "report.score_tolerance=0.1"),
        multirun=True, show=False, **own,
    )  # fmt: skip
    assert [record.point for record in records] == [0, 1, 2, 3]
    factors = {record.config["pipeline"]["factor"]: record for record in records}
    assert set(factors) == {0.5, 1.0, 3.0, 9.0} and records[0] is factors[1.0], "the default is point 0"
    assert factors[3.0].objective.value == factors[3.0].tasks[0].main_score == 3 * factors[1.0].objective.value
    assert "score_tolerance=0.1" in factors[0.5].objective.reason and factors[0.5].status == "ok"
    assert "it does not work" in factors[9.0].objective.reason and factors[9.0].status == "failed"
    folder = Path(records[0].output_dir).parent
    assert yaml.safe_load((folder / "optimization_results.yaml").read_text())["best_params"] == {"pipeline.factor": 3}
    written = read_record(Path(factors[0.5].output_dir) / "run.json").objective
    assert written == factors[0.5].objective and written.reference_score == factors[1.0].tasks[0].main_score
    report = (folder / "report.md").read_text()
    assert "objective" in report and "no objective: the mean score" in report
    assert len(json.loads((folder / "sweep.json").read_text())["points"]) == 4


@needs_optuna
def test_a_search_that_finds_nothing_ends_and_fails(own: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    points = check(
        words(tmp_path, *SEARCH, "report.objective=mean", "report.score_tolerance=0.1", "pipeline.factor=choice(0.1,0.2)"),
        multirun=True, **own,
    )  # fmt: skip
    assert points[0].searched == ("pipeline.factor",)
    records = search(tmp_path, own, "report.score_tolerance=0.1", "pipeline.factor=choice(0.1,0.2)")
    assert [record.status for record in records] == ["ok"] * 4
    assert [record.objective.value is None for record in records] == [False, True, True, True]


@needs_optuna
def test_without_a_score_of_the_default_no_point_can_be_judged(own: dict[str, Any], tmp_path: Path) -> None:
    failing_at(1.0, tmp_path)
    with pytest.raises(MtebVllmError, match="its default, point 0, has no mean score"):
        search(tmp_path, own, "report.score_tolerance=0.1", "pipeline.factor=choice(2,3)")


@needs_optuna
def test_hydras_own_launcher_searches_too(own: dict[str, Any], tmp_path: Path) -> None:
    records = search(tmp_path, own, "pipeline.factor=choice(2,3)", "hydra/launcher=basic")
    assert [record.point for record in records] == [0, 1, 2] and all(record.objective.value for record in records)


@needs_optuna
@pytest.mark.slow
@pytest.mark.vllm
def test_a_real_search_ends_with_a_file_that_can_be_used(tmp_path: Path, capsys: Any) -> None:
    model = tiny_encoder(tmp_path / "model")
    fixed = [
        f"model=custom", f"model.path={model}", "tasks.names=[StdlibDocsClassification]", "engine.max_model_len=64",
        f"results.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    asked = [*SEARCH, SIZES, "engine.dtype=choice(float32)", "report.objective=texts_per_second", "results.reuse=none"]
    records: Any = run([*fixed, *asked], multirun=True, show=True)
    assert [record.status for record in records] == ["ok"] * 4 and all(record.objective.value for record in records)
    best = max(records[1:], key=lambda record: record.objective.value)
    (written,) = (tmp_path / "out").glob("sweeps/*/*/best/engine/mine.yaml")
    values = yaml.safe_load(written.read_text())
    assert values == {"preset": "auto", "max_num_seqs": best.config["engine"]["max_num_seqs"], "dtype": "float32"}
    shown = capsys.readouterr().out
    assert "Best of 3 points" in shown and "engine=mine" in shown and "times as fast" in shown
    (point,) = check([*fixed, "engine=mine"], config_dir=str(written.parents[1]))
    assert point.config.engine["max_num_seqs"] == values["max_num_seqs"]
