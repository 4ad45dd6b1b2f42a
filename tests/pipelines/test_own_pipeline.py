"""A user's own pipeline: one class in a package and one YAML file, without any other change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mteb_vllm
from mteb_vllm import run
from mteb_vllm.errors import ConfigError
from mteb_vllm.plan import make_plan
from mteb_vllm.preflight.command import check
from mteb_vllm.results import record
from mteb_vllm.util.fingerprint import fingerprint

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
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)  # imported by another test
    return {"config_dir": str(tmp_path / "conf")}


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["pipeline=count", f"tasks.names=[{TASK}]", f"results.dir={tmp_path / 'out'}", ALLOWED, *more]


def test_it_works_in_a_run_a_sweep_a_dry_run_and_a_report(own: dict[str, Any], tmp_path: Path) -> None:
    planned: Any = run(words(tmp_path, "dry_run=true"), show=False, **own)
    assert [task.state for task in planned[0].tasks] == ["to run"]
    record: Any = run(words(tmp_path), show=False, **own)
    assert record.status == "ok" and record.tasks[0].main_score > 500 and record.engine is None
    counted = record.settings["pipeline"]
    assert (counted["class"], counted["factor"], len(counted["source"])) == ("my_package.counting.Count", 1.0, 64)
    swept: Any = run(words(tmp_path, "pipeline.factor=2,3"), multirun=True, show=False, **own)
    assert [one.tasks[0].main_score for one in swept] == [factor * record.tasks[0].main_score for factor in (2, 3)]
    assert len({one.fingerprint for one in [record, *swept]}) == 3
    compared: Any = run(
        ["pipeline=report", f"runs={Path(swept[0].output_dir).parent}", f"pipeline.dir={tmp_path / 'report'}"],
        show=False,
    )
    assert [row.mean for row in compared.rows] == [one.tasks[0].main_score for one in swept]
    assert json.loads((Path(record.output_dir) / "run.json").read_text())["status"] == "ok"


DERIVED = """
from dataclasses import dataclass

from mteb_vllm.pipelines.evaluate import Evaluate
from mteb_vllm.pipelines.rerank.pipeline import Rerank


@dataclass(frozen=True, kw_only=True)
class Mine(Evaluate):
    version = 1


@dataclass(frozen=True, kw_only=True)
class Second(Rerank):
    pass
"""


def test_results_are_not_shared_between_pipelines(own: dict[str, Any], tmp_path: Path) -> None:
    """A class derived from a shipped one has its own results, and new ones when its source changes."""
    file = tmp_path / "my_package" / "derived.py"
    file.write_text(DERIVED)
    scripts = {"mine": "my_package.derived.Mine", "shipped": "mteb_vllm.pipelines.evaluate.Evaluate"}
    for name, target in scripts.items():
        (tmp_path / "conf" / "pipeline" / f"{name}.yaml").write_text(f"_target_: {target}\n")

    def planned(*overrides: str) -> tuple[Any, str]:
        made = make_plan(check([*overrides, ALLOWED], **own)[0].config)
        (task,) = made.tasks
        wanted, model = fingerprint(made.settings_for(task)), made.wrapper()
        if made.stage is not None:
            model.set_extra_settings(made.pipeline.candidate_settings(made.stage, task.type, [task.name]))
        # The wrapper, which stores results, and the plan, which looks them up, must use the same hash.
        assert model.mteb_model_meta.experiment_kwargs == {"settings": wanted}
        return made, wanted

    def mine() -> tuple[Any, str]:
        return planned("pipeline=mine", f"tasks.names=[{TASK}]")

    one, first = mine()
    shipped, other = planned("pipeline=evaluate", f"tasks.names=[{TASK}]")
    assert first != other and one.input_fingerprint(one.tasks[0]) != shipped.input_fingerprint(shipped.tasks[0])
    assert planned("pipeline=shipped", f"tasks.names=[{TASK}]")[1] == other
    assert mine()[1] == first
    file.write_text(DERIVED.replace("version = 1", "version = 20"))
    edited, second = mine()
    assert second != first and edited.pipeline.version == 20, "the edited module is imported again"
    rerank = ["pipeline=rerank", "pipeline.scoring=cosine", "tasks=demo_retrieval"]
    _, shipped_rerank = planned(*rerank)
    assert planned(*rerank, "pipeline._target_=my_package.derived.Second")[1] != shipped_rerank


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:", "cannot be read as Python"),
        ("class Count: pass\nraise RuntimeError('no licence')", "cannot be imported: RuntimeError: no licence"),
        ("x = 1", "does not define 'Count'"),
        (CLASS.replace("def run", "def runs"), "does not define run"),
    ],
    ids=["syntax", "raises", "no class", "abstract"],
)
def test_an_unusable_module_is_an_error(own: dict[str, Any], tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "my_package" / "counting.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        check(words(tmp_path), **own)
    assert message in str(caught.value)


def test_the_working_directory_is_not_searched_but_pythonpath_is(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the console script runs it: without the working directory, which `python -m` would add."""
    script = [sys.executable, "-c", "import sys; sys.path.pop(0); from mteb_vllm.cli import main; main()"]
    command = [*script, "--config-dir", "conf", *words(tmp_path, "dry_run=true")]

    def done(**more: str) -> subprocess.CompletedProcess[str]:
        found = os.pathsep.join(filter(None, [more.get("PYTHONPATH"), str(Path(mteb_vllm.__file__).parents[1])]))
        env = os.environ | {"PYTHONPATH": found}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    without = done()
    assert without.returncode == 2 and "Traceback" not in without.stderr
    assert "my_package.counting.Count: cannot be imported" in without.stderr
    assert "add the folder that contains it to PYTHONPATH" in without.stderr
    assert done(PYTHONPATH=".").returncode == 0


def test_targets_can_be_allowed_only_on_the_command_line(own: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check([one for one in words(tmp_path) if one != ALLOWED], **own)
    text = str(caught.value)
    assert "my_package.counting.Count: is not a class that a configuration may use" in text
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
def test_allowed_targets_must_be_packages(own: dict[str, Any], tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="must be the name of a package, followed by a dot"):
        check([*words(tmp_path)[:3], f"allowed_targets=[{prefix}]"], **own)


def test_a_class_that_is_not_a_pipeline_is_an_error(own: dict[str, Any], tmp_path: Path) -> None:
    before = record.TaskOutcome
    with pytest.raises(ConfigError, match="is not a pipeline class"):
        check([*words(tmp_path), "pipeline._target_=my_package.counting.TaskOutcome"], **own)
    assert record.TaskOutcome is before, "a module of this package was reloaded"


def test_a_pipeline_that_needs_an_unknown_kind_of_model_is_an_error(own: dict[str, Any], tmp_path: Path) -> None:
    source = CLASS.replace("    factor: float", '    model_kinds = ("colbert",)\n    factor: float')
    (tmp_path / "my_package" / "counting.py").write_text(source)
    with pytest.raises(ConfigError, match=r"pipeline=count needs a model \(model.kind=colbert\)"):
        check(words(tmp_path), **own)
