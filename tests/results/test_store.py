"""The results store: mteb's layout, atomic writes, verified reads."""

from __future__ import annotations

import errno
import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.mocks import mock_tasks
from test_digests import put

from mteb_vllm.errors import LockError
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.util import disk
from mteb_vllm.wrappers import model_meta


class Model:
    """A trivial model that follows mteb's protocol."""

    def __init__(self, settings: str) -> None:
        from mteb_vllm.models.files import Model as Found

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


def test_mteb_reads_the_store_and_distinguishes_settings(tmp_path: Path, sts: Any) -> None:
    store = ResultsStore(tmp_path)
    one = evaluate(store, "aaaa", sts)
    files = {path.name for path in (tmp_path / "results/org__model/abc/experiments/settings_aaaa").iterdir()}
    name = f"{sts.metadata.name}.json"
    assert files == {name, f"{name}.sha256", "model_meta.json", "run_settings.jsonl"}
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".locks", "results"] and not any((tmp_path / ".locks").iterdir()), "no temporary files are left"
    assert store.cached_result(sts, one.mteb_model_meta) is not None
    assert store.cached_result(sts, Model("bbbb").mteb_model_meta) is None
    assert evaluate(store, "bbbb", sts).calls > 0, "other settings compute"
    assert evaluate(store, "aaaa", sts).calls == 0, "the same settings do not"
    loaded = mteb.ResultCache(tmp_path).load_results(models=["org/model"], load_experiments="match_name")
    assert len([result for model in loaded.model_results for result in model.task_results]) == 2


def test_a_result_on_other_data_is_not_reused(tmp_path: Path, sts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultsStore(tmp_path)
    meta = evaluate(store, "aaaa", sts).mteb_model_meta
    path = store.get_task_result_path(sts.metadata.name, meta)
    put(tmp_path, path, path.read_bytes().replace(sts.metadata.revision.encode(), b"of another time"))
    assert store.load_task_result(sts.metadata.name, meta) is not None
    assert store.cached_result(sts, meta) is None and not store.has_partial_result(sts, meta)
    assert not store.quarantined, "it is not damaged"


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A read-only store with a result, and its model's metadata."""
    root = tmp_path_factory.mktemp("computed")
    return root, evaluate(ResultsStore(root), "aaaa", mock_tasks.MockSTSTask()).mteb_model_meta


def edited(content: bytes, score: Any) -> bytes:
    found = json.loads(content)
    found["scores"]["test"][0]["main_score"] = score
    return json.dumps(found).encode()


def flipped(content: bytes, at: int) -> bytes:
    """Return the content with the lowest bit of one character flipped, which turns a digit into another digit."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: dict[str, Any] = {
    "cut": lambda content: content[:100],
    "a flipped bit": lambda content: flipped(content, content.index(b'"main_score": ') + 17),
    "null": lambda content: edited(content, None),
    "text": lambda content: edited(content, "x"),
    "nan": lambda content: edited(content, math.nan),
    "a list": lambda _: b"[]",
    "scores of another type": lambda content: json.dumps({**json.loads(content), "scores": [1]}).encode(),
    "nested": lambda _: b"[" * 200_000,
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "no digest", "a folder"])
def test_a_damaged_result_is_quarantined_named_and_computed_again(
    damage: str, computed: tuple[Path, Any], tmp_path: Path, sts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before, meta = computed
    root = shutil.copytree(before, tmp_path / "root")
    store = ResultsStore(root)
    right = store.cached_result(sts, meta)
    path = store.get_task_result_path(sts.metadata.name, meta)
    if damage in DAMAGES:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    elif damage == "no digest":
        path.with_name(f"{path.name}.sha256").unlink()
    else:
        path.unlink()
        path.mkdir()
    from test_lookup import info

    from mteb_vllm.results.lookup import result_status

    assert result_status(root, path, info(sts)) == "unreadable" and path.exists(), "a look-up changes nothing"
    assert store.cached_result(sts, meta) is None and not store.has_partial_result(sts, meta)
    aside = path.with_name(f"{path.name}.broken")
    assert store.quarantined == [aside] and aside.exists() and not path.exists()
    assert "quarantined" in caplog.text and path.name in caplog.text
    assert evaluate(store, "aaaa", sts).calls > 0
    again = store.cached_result(sts, meta)
    assert right is not None and again is not None and again.get_score() == right.get_score()


def test_results_can_be_read_without_writable_locks(computed: tuple[Path, Any], tmp_path: Path, sts: Any) -> None:
    before, meta = computed
    root = shutil.copytree(before, tmp_path / "root")
    shutil.rmtree(root / ".locks")
    (root / ".locks").symlink_to(root / "a disk that is away")
    store = ResultsStore(root)
    assert store.cached_result(sts, meta) is not None
    with pytest.raises(LockError, match="cannot be locked"), store.claim(sts, Model("bbbb").mteb_model_meta):
        pass


def test_foreign_files_in_a_results_folder_are_tolerated(tmp_path: Path, sts: Any) -> None:
    for at, settings in enumerate((b"5", b'{"task": "x", "splits": 5, "subsets": 7}\n', b"\xff\xfe", None)):
        store, meta = ResultsStore(tmp_path / str(at)), Model("aaaa").mteb_model_meta
        folder = store.get_task_result_path(sts.metadata.name, meta).parent
        (folder / "model_meta.json" / "x").mkdir(parents=True)
        if settings is None:
            (folder / "run_settings.jsonl").mkdir()
        else:
            (folder / "run_settings.jsonl").write_bytes(settings)
        evaluate(store, "aaaa", sts)
        assert store.cached_result(sts, meta) is not None
        assert json.loads((folder / "model_meta.json").read_text())["name"] == "org/model"
        (line,) = (folder / "run_settings.jsonl").read_text().splitlines()
        assert json.loads(line)["task"] == sts.metadata.name


def test_a_writer_killed_before_its_result_appears_leaves_the_earlier_one_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, task = ResultsStore(tmp_path), mock_tasks.MockMultilingualSTSTask()
    half = mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=task.hf_subsets[:1])
    meta = evaluate(store, "aaaa", half).mteb_model_meta
    path = store.get_task_result_path(task.metadata.name, meta)
    replace = Path.replace

    def killed(self: Path, target: Path) -> Any:
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        (path.parent / "model_meta.json").unlink()
        evaluate(store, "aaaa", task)
    assert (path.parent / "model_meta.json").exists(), "the result is written last"
    assert (
        store.has_partial_result(task, meta) and store.cached_result(half, meta) is not None and not store.quarantined
    )
    evaluate(store, "aaaa", task)
    assert store.cached_result(task, meta) is not None


def test_a_result_is_adopted_only_as_it_was_written(computed: tuple[Path, Any], tmp_path: Path, sts: Any) -> None:
    before, meta = computed
    store = ResultsStore(shutil.copytree(before, tmp_path / "root"))
    other, path = Model("bbbb").mteb_model_meta, store.get_task_result_path(sts.metadata.name, meta)
    content = path.read_bytes()
    for harm in (edited(content, 0.99), b"[]", b""):
        path.write_bytes(harm)
        assert store.adopt(sts, other, path) is None
    assert store.adopt(sts, other, path.with_name("gone.json")) is None
    put(store.root, path, content.replace(sts.metadata.revision.encode(), b"of another time"))
    assert store.adopt(sts, other, path) is None, "other data"
    put(store.root, path, content)
    adopted, own = store.adopt(sts, other, path), store.cached_result(sts, meta)
    assert adopted is not None and own is not None and adopted.get_score() == own.get_score()
    assert store.cached_result(sts, other) is not None and not store.quarantined, "with a digest of its own"
    third = store.get_task_result_path(sts.metadata.name, Model("cccc").mteb_model_meta)
    third.parent.mkdir()
    shutil.copy(path, third)
    shutil.copy(f"{path}.sha256", f"{third}.sha256")
    assert store.cached_result(sts, Model("cccc").mteb_model_meta) is None, "a manual copy belongs to other settings"


def test_a_result_without_a_subset_is_not_complete(tmp_path: Path) -> None:
    store, task = ResultsStore(tmp_path), mock_tasks.MockMultilingualSTSTask()
    assert len(task.hf_subsets) > 1
    meta = evaluate(
        store, "aaaa", mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=task.hf_subsets[:1])
    )
    assert (
        store.has_partial_result(task, meta.mteb_model_meta) and store.cached_result(task, meta.mteb_model_meta) is None
    )


def test_a_nan_score_is_not_a_result(tmp_path: Path, sts: Any) -> None:
    store = ResultsStore(tmp_path)
    model = Model("aaaa")
    model.encode = lambda inputs, **_: np.ones((len(inputs.dataset), 8), dtype=np.float32)  # type: ignore[method-assign]
    mteb.evaluate(model, sts, cache=store, show_progress_bar=False, co2_tracker=False)
    assert store.load_task_result(sts.metadata.name, model.mteb_model_meta) is not None
    assert store.cached_result(sts, model.mteb_model_meta) is None


def test_a_transient_read_error_does_not_quarantine_a_file(
    tmp_path: Path, sts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ResultsStore(tmp_path)
    meta = evaluate(store, "aaaa", sts).mteb_model_meta

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("mteb_vllm.results.digests.read_file", fail)
        with pytest.raises(OSError):
            store.cached_result(sts, meta)
    assert store.cached_result(sts, meta) is not None


def test_a_result_that_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, sts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = evaluate(ResultsStore(tmp_path / "fine"), "aaaa", sts)
    expected = ResultsStore(tmp_path / "fine").result(sts, written.mteb_model_meta).get_score()
    store = ResultsStore(tmp_path / "full")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ResultsStore, "staging", full)
    with disk.collect_unwritten() as unwritten:
        model = evaluate(store, "aaaa", sts)
    assert store.result(sts, model.mteb_model_meta).get_score() == expected, "rounded as on disk"
    ((path, _),) = {str(path): error for path, error in unwritten}.items()
    assert path.endswith(f"{sts.metadata.name}.json") and not Path(path).exists()
    monkeypatch.undo()
    assert ResultsStore(tmp_path / "full").cached_result(sts, model.mteb_model_meta) is None, "the next run computes it"
    evaluate(store, "aaaa", sts)

    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr(ResultsStore, "staging", broken)
    with pytest.raises(TypeError):
        evaluate(ResultsStore(tmp_path / "bug"), "aaaa", sts)
