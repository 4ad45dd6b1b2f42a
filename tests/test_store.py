"""The results store: mteb's layout, whole files only."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.mocks import mock_tasks

from mteb_vllm.store import ResultsStore
from mteb_vllm.wrappers import model_meta


class Model:
    """A model of mteb's protocol that costs nothing."""

    def __init__(self, settings: str) -> None:
        from mteb_vllm.models import Model as Found

        self.mteb_model_meta = model_meta(Found("org/model", "abc", "org/model", None, {}), settings)
        self.calls = 0

    def encode(self, inputs: Any, **_: Any) -> Any:
        self.calls += 1
        texts = [text for batch in inputs for text in batch["text"]]
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=8) for text in texts]
        return np.array(rows, dtype=np.float32)

    def similarity(self, one: Any, other: Any) -> Any:
        return one @ other.T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        return (one * other).sum(1)


@pytest.fixture
def sts() -> Any:
    return mock_tasks.MockSTSTask()


def evaluate(store: ResultsStore, settings: str, task: Any) -> Model:
    model = Model(settings)
    mteb.evaluate(model, task, cache=store, show_progress_bar=False, co2_tracker=False)
    return model


def test_mteb_itself_reads_what_is_stored_and_tells_settings_apart(tmp_path: Path, sts: Any) -> None:
    store = ResultsStore(tmp_path)
    one = evaluate(store, "aaaa", sts)
    files = {path.name for path in (tmp_path / "results/org__model/abc/experiments/settings_aaaa").iterdir()}
    assert files == {f"{sts.metadata.name}.json", "model_meta.json", "run_settings.jsonl"}
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".locks", "results"] and not any((tmp_path / ".locks").iterdir()), "nothing is left of the writing"
    assert store.known(sts, one.mteb_model_meta) is not None
    assert store.known(sts, Model("bbbb").mteb_model_meta) is None
    assert evaluate(store, "bbbb", sts).calls > 0, "another setting computes"
    assert evaluate(store, "aaaa", sts).calls == 0, "the same one does not"
    loaded = mteb.ResultCache(tmp_path).load_results(models=["org/model"], load_experiments="match_name")
    assert len([result for model in loaded.model_results for result in model.task_results]) == 2


def test_other_data_is_not_the_same_result(tmp_path: Path, sts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultsStore(tmp_path)
    meta = evaluate(store, "aaaa", sts).mteb_model_meta
    path = store.get_task_result_path(sts.metadata.name, meta)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "dataset_revision": "of another time"}))
    assert store.known(sts, meta) is None and not store.started(sts, meta)


def test_half_a_file_is_set_aside_and_computed_again(
    tmp_path: Path, sts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = ResultsStore(tmp_path)
    meta = evaluate(store, "aaaa", sts).mteb_model_meta
    path = store.get_task_result_path(sts.metadata.name, meta)
    path.write_text(path.read_text()[:100])
    assert store.known(sts, meta) is None
    assert "set aside" in caplog.text and path.name in caplog.text
    assert path.with_suffix(".json.broken").exists() and not path.exists()
    assert evaluate(store, "aaaa", sts).calls > 0
    assert store.known(sts, meta) is not None


def test_a_missing_subset_is_not_known(tmp_path: Path) -> None:
    store, task = ResultsStore(tmp_path), mock_tasks.MockMultilingualSTSTask()
    assert len(task.hf_subsets) > 1
    meta = evaluate(
        store, "aaaa", mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=task.hf_subsets[:1])
    )
    assert store.started(task, meta.mteb_model_meta) and store.known(task, meta.mteb_model_meta) is None


def test_a_score_that_is_no_number_is_not_known(tmp_path: Path, sts: Any) -> None:
    store = ResultsStore(tmp_path)
    model = Model("aaaa")
    model.encode = lambda inputs, **_: np.ones((len(inputs.dataset), 8), dtype=np.float32)  # type: ignore[method-assign]
    mteb.evaluate(model, sts, cache=store, show_progress_bar=False, co2_tracker=False)
    assert store.load_task_result(sts.metadata.name, model.mteb_model_meta) is not None
    assert store.known(sts, model.mteb_model_meta) is None


def test_a_passing_read_error_harms_no_file(tmp_path: Path, sts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb.results import TaskResult

    store = ResultsStore(tmp_path)
    meta = evaluate(store, "aaaa", sts).mteb_model_meta

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(TaskResult, "from_disk", fail)
        with pytest.raises(OSError):
            store.known(sts, meta)
    assert store.known(sts, meta) is not None
