"""Launchers of Hydra's plugins, which run points in processes of their own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import run
from mteb_vllm.engines.base import close_engines
from mteb_vllm.preflight.command import check
from mteb_vllm.progress import quiet_console
from mteb_vllm.results.record import RunRecord, write_record
from mteb_vllm.sweep.job import Job
from mteb_vllm.sweep.planning import plan_points
from mteb_vllm.util import masking
from tiny_models import tiny_overrides

WORDS = ["tasks.names=[StdlibDocsClassification]", "prompts=none,e5"]
QUICK = ["engine=sentence_transformers", "engine.max_model_len=16"]


@pytest.mark.slow
def test_submitit_runs_points_one_by_one(tmp_path: Path) -> None:
    close_engines()  # processes inherit the variables that an engine sets while it is open
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="NOT TESTED: its launcher is not installed")
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=20"]
    found: Any = run(
        [*tiny_overrides(), *WORDS, *QUICK, f"results.dir={tmp_path}/out", *launcher], multirun=True, show=False
    )
    assert [(record.point, record.status) for record in found] == [(0, "ok"), (1, "ok")]
    assert [task.status for record in found for task in record.tasks] == ["computed"] * 2
    sweep = Path(found[0].output_dir).parent
    assert (sweep / "report.md").exists() and not list((tmp_path / "out").glob(".returned-*"))
    basic = [f"results.dir={tmp_path}/here", "hydra/launcher=basic"]
    here: Any = run([*tiny_overrides(), *WORDS, *QUICK, *basic], multirun=True, show=False)
    assert [record.scores for record in found] == [record.scores for record in here]
    assert [record.fingerprint for record in found] == [record.fingerprint for record in here]


def test_a_copy_of_the_job_in_another_process_knows_secrets_and_returns_records(tmp_path: Path) -> None:
    secret = "a-long-secret-value"
    words = [*WORDS, f"results.dir={tmp_path}/out", f"+engine.hf_token={secret}"]
    job = Job(quiet_console(), plan_points(check(words, multirun=True)))
    content = pickle.dumps(job)
    masking.forget()
    copy = pickle.loads(content)
    assert masking.mask(secret) == "***"
    assert [point.launched for point in copy.points] == [point.launched for point in job.points]
    assert copy.points[0].plan is None and copy.returned == job.returned and copy.returned.is_dir()
    # What a copy notes is found by the original; a point without a record is not done.
    folder = tmp_path / "out" / "sweeps" / "1"
    folder.mkdir(parents=True)
    write_record(RunRecord(point=1, config={}, output_dir=str(folder)), folder)
    (copy.returned / "1").write_text(str(folder))
    (copy.returned / "0").write_text(str(tmp_path / "nowhere"))
    job._add_returned()
    assert [record.point for record in job.records] == [1] and not copy.returned.exists()
