"""A pipeline of a user's own: one class in a package, one YAML file, and nothing else touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import run
from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight.command import check

CLASS = '''
from dataclasses import dataclass

from mteb_vllm.pipelines.base import Pipeline
from mteb_vllm.results.record import TaskOutcome


@dataclass(frozen=True, kw_only=True)
class Count(Pipeline):
    """Counts the texts of a task: no engine is opened."""

    factor: float = 1.0

    def run(self, context):
        for task in context.tasks:
            context.progress.start_task(task.metadata.name)
            task.load_data()
            n_texts = sum(len(split) for split in task.dataset.values())
            outcome = TaskOutcome(task.metadata.name, task.metadata.type, "computed", "texts", n_texts * self.factor)
            context.progress.end_task(outcome)
            yield outcome
'''

YAML = "_target_: my_package.counting.Count\nfactor: 1.0\n"
TASK = "StdlibDocsClassification"
ALLOWED = "allowed_targets=[my_package.]"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "counting.py").write_text(CLASS)
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "count.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    return {"config_dir": str(tmp_path / "conf")}


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["pipeline=count", f"tasks.names=[{TASK}]", f"results.dir={tmp_path / 'out'}", ALLOWED, *more]


def test_it_runs_singly_in_a_sweep_in_a_dry_run_and_in_a_report(own: dict[str, Any], tmp_path: Path) -> None:
    planned: Any = run(words(tmp_path, "dry_run=true"), show=False, **own)
    assert [task.state for task in planned[0].tasks] == ["to run"]
    record: Any = run(words(tmp_path), show=False, **own)
    assert record.status == "ok" and record.tasks[0].main_score > 500 and record.engine == {}
    assert record.settings["pipeline"] == {"class": "my_package.counting.Count", "factor": 1.0}
    swept: Any = run(words(tmp_path, "pipeline.factor=2,3"), multirun=True, show=False, **own)
    assert [one.tasks[0].main_score for one in swept] == [factor * record.tasks[0].main_score for factor in (2, 3)]
    assert len({one.fingerprint for one in [record, *swept]}) == 3
    compared: Any = run(
        ["pipeline=report", f"runs={Path(swept[0].output_dir).parent}", f"pipeline.dir={tmp_path / 'report'}"],
        show=False,
    )
    assert [row.mean for row in compared.rows] == [one.tasks[0].main_score for one in swept]
    assert json.loads((Path(record.output_dir) / "run.json").read_text())["status"] == "ok"


def test_only_the_command_line_allows_it(own: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check([one for one in words(tmp_path) if one != ALLOWED], **own)
    text = str(caught.value)
    assert "my_package.counting.Count: is not a class that a configuration may name" in text
    assert "allowed_targets=" in text
    folder = Path(own["config_dir"]) / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /pipeline: count\nallowed_targets: [my_package.]\n"
    )
    with pytest.raises(ConfigError, match="may only be set on the command line"):
        check(["experiment=mine", f"tasks.names=[{TASK}]"], **own)
    assert check(["experiment=mine", f"tasks.names=[{TASK}]", ALLOWED], **own)


@pytest.mark.parametrize("prefix", ["''", "os", "my_package", "'my package.'", "."])
def test_what_is_no_package_is_not_allowed(own: dict[str, Any], tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="is no package: a name and a dot"):
        check([*words(tmp_path)[:3], f"allowed_targets=[{prefix}]"], **own)


def test_a_class_that_is_no_pipeline_is_a_mistake(own: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no pipeline"):
        check([*words(tmp_path), "pipeline._target_=my_package.counting.TaskOutcome"], **own)
