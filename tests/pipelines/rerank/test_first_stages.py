"""First stages: lower and upper bounds, saved predictions, and the errors in these."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import pytest
from mteb.mocks import mock_tasks

from mteb_vllm.errors import FirstStageError
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.rerank.candidates import Ceiling, DrawnSearch, SavedSearch
from mteb_vllm.pipelines.rerank.first_stages import BM25, Oracle, Random, Saved
from mteb_vllm.pipelines.rerank.pipeline import set_candidates
from mteb_vllm.results.lookup import is_intact
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.util.fingerprint import fingerprint


@pytest.fixture(scope="module", autouse=True)
def few_queries() -> Iterator[None]:
    """Use only every tenth query of the demo task, since the time of mteb's metrics grows with their number."""
    from mteb_vllm.tasks.demo import StdlibDocsRetrieval

    load = StdlibDocsRetrieval.load_data

    def load_few(self: Any, *args: Any, **kwargs: Any) -> None:
        loaded = self.data_loaded
        load(self, *args, **kwargs)
        if not loaded:
            part = self.dataset["default"]["test"]
            part["queries"] = part["queries"].select(range(0, len(part["queries"]), 10))
            part["relevant_docs"] = {query: part["relevant_docs"][query] for query in part["queries"]["id"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StdlibDocsRetrieval, "load_data", load_few)
        yield


@pytest.fixture
def task() -> Any:
    from mteb_vllm.tasks.demo import StdlibDocsRetrieval

    task = StdlibDocsRetrieval()
    task.load_data()
    return task


@pytest.fixture(scope="module")
def bm25(few_queries: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a results store with BM25's predictions, shared and not to be changed, and BM25's score."""
    from mteb_vllm.tasks.demo import StdlibDocsRetrieval

    folder = tmp_path_factory.mktemp("bm25")
    return folder, score(BM25(), StdlibDocsRetrieval(), folder)


def score(stage: Any, task: Any, tmp_path: Path) -> float:
    store = ResultsStore(tmp_path)
    mteb_run.compute(stage.searcher(task), task, store, reuse=True, predictions=True)
    return float(store.result(task, stage.searcher(task).mteb_model_meta).get_score())


def kept(stage: Any, task: Any, tmp_path: Path) -> Path:
    path = ResultsStore(tmp_path).predictions(task, stage.searcher(task).mteb_model_meta)
    assert path is not None
    return path


def test_bm25_lies_between_random_and_oracle(task: Any, tmp_path: Path, bm25: tuple[Path, float]) -> None:
    lower, upper = (score(stage, task, tmp_path) for stage in (Random(), Oracle()))
    assert lower < 0.01 < 0.4 < bm25[1] < 0.5 and upper == 1.0
    again = Random().searcher(task)
    task.load_data()
    part = task.dataset["default"]["test"]
    again.index(part["corpus"])
    one = again.search(part["queries"], hf_split="test", hf_subset="default")
    assert one == again.search(part["queries"], hf_split="test", hf_subset="default"), "the same for the same seed"
    query = part["queries"]["id"][0]
    other = Random(seed=1).searcher(task)
    other.index(part["corpus"])
    assert list(other.search(part["queries"], hf_split="test", hf_subset="default")[query]) != list(one[query])


def test_first_stages_have_distinct_settings() -> None:
    stages = [BM25(), BM25(b=0.5), Random(), Random(seed=1), Oracle()]
    assert len({fingerprint(stage.settings("SciFact")) for stage in stages}) == len(stages)


def test_the_ceiling_increases_with_the_candidates(task: Any, tmp_path: Path, bm25: tuple[Path, float]) -> None:
    store, (folder, first) = ResultsStore(tmp_path), bm25
    ceilings = []
    for top_k in (1, 10, 100):
        task.load_data()
        task.convert_to_reranking(kept(BM25(), task, folder), top_k=top_k)
        search = Ceiling(task, {"top_k": top_k})
        mteb_run.evaluate_loaded(search, task, store, reuse=True)
        ceilings.append(float(store.result(task, search.mteb_model_meta).get_score()))
        task.unload_data()
    assert ceilings == sorted(ceilings) and ceilings[0] < first < ceilings[1] < ceilings[2] < 1


def test_predictions_have_mtebs_format_and_are_verified(task: Any, tmp_path: Path) -> None:
    score(BM25(), task, tmp_path)
    path = kept(BM25(), task, tmp_path)
    content = json.loads(path.read_text())
    assert content["mteb_model_meta"] == {"model_name": "mteb/baseline-bm25s", "revision": "0_3_0"}
    assert path.parent.parent.name == "experiments" and path.name == "StdlibDocsRetrieval_predictions.json"
    # A file that was changed is quarantined, and not read.
    original = path.read_bytes()
    queries = content["default"]["test"]
    half = {**content, "default": {"test": {query: queries[query] for query in list(queries)[::2]}}}
    for at, damaged in enumerate((original[:1000], json.dumps(half).encode(), b"[]", b"")):
        path.write_bytes(damaged)
        store, meta = ResultsStore(tmp_path), BM25().searcher(task).mteb_model_meta
        assert not is_intact(tmp_path, path)
        assert store.predictions(task, meta) is None and len(store.quarantined) == 1 and not path.exists()
        assert len(list(path.parent.glob("*.broken*"))) == at + 1 and not is_intact(tmp_path, path)
    score(BM25(), task, tmp_path)
    assert kept(BM25(), task, tmp_path).read_bytes() == original and is_intact(tmp_path, path)


def test_candidates_are_needed_for_all_queries(task: Any, tmp_path: Path, bm25: tuple[Path, float]) -> None:
    store, meta = ResultsStore(tmp_path), BM25().searcher(task).mteb_model_meta
    with pytest.raises(FirstStageError, match="are missing"):
        set_candidates(task, store, meta, 3)
    content = json.loads(kept(BM25(), task, bm25[0]).read_text())
    written, queries = tmp_path / "x.json", content["default"]["test"]
    written.write_text(json.dumps(content))
    store.save_predictions(task, meta, written)
    assert set_candidates(task, store, meta, 3) == 0
    assert {len(one) for one in task.dataset["default"]["test"]["top_ranked"].values()} == {3}
    gone = next(iter(queries))
    shutil.rmtree(tmp_path / "predictions")
    written.write_text(
        json.dumps({**content, "default": {"test": {key: queries[key] for key in queries if key != gone}}})
    )
    store.save_predictions(task, meta, written)
    with pytest.raises(FirstStageError, match=f"no predictions for 1 of the .* queries of default/test .*{gone!r}"):
        set_candidates(task, store, meta, 3)
    task.dataset["default"]["test"]["relevant_docs"][gone] = {}  # mteb skips such queries
    assert set_candidates(task, store, meta, 3) == 1, "the query is counted"


def test_predictions_for_another_subset_are_added_to_the_existing_ones(tmp_path: Path) -> None:
    multilingual = mock_tasks.MockMultilingualRetrievalTask()
    first, second = multilingual.hf_subsets[:2]
    for subset in (first, second):
        part = mock_tasks.MockMultilingualRetrievalTask().filter_languages(None, hf_subsets=[subset])
        score(BM25(), part, tmp_path)
    content = json.loads(kept(BM25(), multilingual, tmp_path).read_text())
    assert {first, second} <= set(content)
    assert ResultsStore(tmp_path).cached_result(multilingual, BM25().searcher(multilingual).mteb_model_meta) is not None


def test_saved_predictions_have_the_score_of_their_first_stage(
    task: Any, tmp_path: Path, bm25: tuple[Path, float]
) -> None:
    folder, first = bm25
    path = kept(BM25(), task, folder)
    for place in (path, path.parent):
        assert score(Saved(path=str(place)), task, tmp_path / "other") == first
    # A file written by mteb itself has less metadata.
    bare = tmp_path / "mine.json"
    content = json.loads(path.read_text())
    del content["mteb_vllm"]
    bare.write_text(json.dumps(content))
    assert score(Saved(path=str(bare)), task, tmp_path / "third") == first


def test_saved_predictions_that_do_not_fit_are_refused_with_the_reason(
    task: Any, tmp_path: Path, bm25: tuple[Path, float]
) -> None:
    path = kept(BM25(), task, bm25[0])
    content = json.loads(path.read_text())

    def refused(change: Any, name: str = "changed.json") -> str:
        changed = json.loads(json.dumps(content))
        change(changed)
        file = tmp_path / name
        file.write_text(json.dumps(changed))
        with pytest.raises(FirstStageError) as error:
            score(Saved(path=str(file)), task, tmp_path / "other")
        task.unload_data()
        return str(error.value)

    def another_task(file: Any) -> None:
        file["mteb_vllm"]["task"] = "SciFact"

    def another_revision(file: Any) -> None:
        file["mteb_vllm"]["dataset_revision"] = "v0"

    def another_split(file: Any) -> None:
        file["default"] = {"train": file["default"]["test"]}

    def another_query(file: Any) -> None:
        file["default"]["test"].pop(next(iter(file["default"]["test"])))

    def another_corpus(file: Any) -> None:
        next(iter(file["default"]["test"].values()))["doc-1"] = 1.0

    def nothing(file: Any) -> None:
        file.clear()

    assert "contains predictions for SciFact, not for StdlibDocsRetrieval" in refused(another_task)
    assert "for NFCorpus" in refused(lambda file: file.pop("mteb_vllm"), "NFCorpus_predictions.json")
    assert "revision v0" in refused(another_revision)
    assert "has no predictions for default/test; it has default/train" in refused(another_split)
    assert "a different split or task: 1 of the" in refused(another_query)
    assert "a different corpus: it contains document 'doc-1'" in refused(another_corpus)
    assert "is not a predictions file in mteb's format" in refused(nothing)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FirstStageError, match="is not a predictions file in mteb's format"):
        Saved(path=str(tmp_path / "broken.json")).searcher(task)
    with pytest.raises(FirstStageError, match="cannot be read"):
        Saved(path=str(tmp_path / "nowhere.json")).settings("SciFact")


@pytest.mark.parametrize("odd", [[], 5, None, {"doc": "x"}, {"doc": None}, {"doc": math.nan}])
def test_saved_predictions_with_invalid_values_are_refused(odd: Any, tmp_path: Path) -> None:
    def search(content: dict[str, Any]) -> Any:
        made = SavedSearch(tmp_path / "x.json", content, meta=None)  # type: ignore[arg-type]
        made.index({"id": ["doc"]})
        return made.search({"id": ["q"]}, hf_split="test", hf_subset="default")

    assert search({"default": {"test": {"q": {"doc": 1}, "unused": odd}}}) == {"q": {"doc": 1}}
    with pytest.raises(FirstStageError, match="has no valid document scores for the query 'q' of default/test"):
        search({"default": {"test": {"q": odd}}})
    if not isinstance(odd, dict):
        for content in ({"default": odd}, {"default": {"test": odd}}):
            with pytest.raises(FirstStageError, match="has no predictions for default/test"):
                search(content)


def test_saved_predictions_without_metadata_are_accepted_for_the_task(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    made_by = {"model_name": "org/model", "revision": "abc"}
    for odd in ([5], "x", None, 5):
        file.write_text(json.dumps({"mteb_model_meta": made_by, "mteb_vllm": odd}))
        assert Saved(path=str(file)).searcher(mock_tasks.MockRetrievalTask()).file == file


def test_saved_predictions_in_a_store_are_verified(task: Any, tmp_path: Path, bm25: tuple[Path, float]) -> None:
    shutil.copytree(bm25[0], tmp_path / "root")
    path = kept(BM25(), task, tmp_path / "root")
    content = json.loads(path.read_text())
    best = next(iter(content["default"]["test"].values()))
    best[next(iter(best))] += 100
    path.write_text(json.dumps(content))
    with pytest.raises(FirstStageError, match="its checksum does not match"):
        Saved(path=str(path)).searcher(task)
    copy = shutil.copy(path, tmp_path / path.name)
    shutil.copy(f"{path}.sha256", f"{copy}.sha256")
    Saved(path=str(copy)).searcher(task)  # outside of a results store, a file is not verified
    path.with_name(f"{path.name}.sha256").unlink()
    Saved(path=str(path)).searcher(task)


def test_mteb_can_read_stored_predictions(task: Any, bm25: tuple[Path, float]) -> None:
    """mteb's own second stage works on our predictions folder."""
    other = type(task)()
    other.convert_to_reranking(kept(BM25(), task, bm25[0]).parent, top_k=3)
    lists = other.dataset["default"]["test"]["top_ranked"]
    assert lists and all(len(documents) == 3 for documents in lists.values())
    results = mteb.evaluate(Ceiling(other, {}), other, cache=None, show_progress_bar=False, co2_tracker=False)
    assert results.task_results[0].get_score() > 0.4


def test_errors_in_a_first_stages_configuration(tmp_path: Path) -> None:
    for fine in (BM25(), BM25(k1=0, b=0), BM25(b=1, stopwords="en", stemmer_language="english")):
        assert fine.mistakes("first", ["A"]) == []
    found = BM25(stopwords="eng", stemmer_language="englis").mistakes("first", ["A"])
    assert [mistake.where for mistake in found] == ["first.stopwords=eng", "first.stemmer_language=englis"]
    assert "english" in str(found[1])

    def mistakes(path: Path, *tasks: str) -> str:
        return "\n".join(map(str, Saved(path=str(path)).mistakes("first", tasks)))

    assert "there is no such file or folder" in mistakes(tmp_path / "nowhere", "A")
    assert "It contains: no predictions." in mistakes(tmp_path, "A")
    (tmp_path / "A_predictions.json").touch()
    assert mistakes(tmp_path, "A") == "" == mistakes(tmp_path / "A_predictions.json", "A")
    assert "contains no B_predictions.json" in mistakes(tmp_path, "A", "B")
    assert "It contains: A_predictions.json." in mistakes(tmp_path, "A", "B")
    assert "is a single file, but there are 2 tasks" in mistakes(tmp_path / "A_predictions.json", "A", "B")
    (tmp_path / "B_predictions.json").touch()
    assert mistakes(tmp_path, "A", "B") == "" and Saved(path=str(tmp_path)).file("B").name == "B_predictions.json"


def test_saved_predictions_of_a_model_without_an_organisation_are_named_local(tmp_path: Path) -> None:
    names = {}
    for name in ("mine", "org/mine"):
        (tmp_path / "x.json").write_text(json.dumps({"mteb_model_meta": {"model_name": name, "revision": "abc"}}))
        names[name] = Saved(path=str(tmp_path / "x.json")).searcher(mock_tasks.MockRetrievalTask()).mteb_model_meta.name
    assert names == {"mine": "local/mine", "org/mine": "org/mine"}


def test_only_oracle_candidates_start_with_the_relevant_documents() -> None:
    judged = {"q": {"good": 1, "best": 2, "zero": 0, "not in the corpus": 3}}
    task = SimpleNamespace(dataset={"default": {"test": {"relevant_docs": judged}}})
    documents = ["good", "zero", "best", *(f"doc {at}" for at in range(1200))]

    def drawn(relevant_first: bool, top_ranked: Any = None, query: str = "q", seed: int = 0) -> list[str]:
        made = DrawnSearch(task, meta=None, seed=seed, relevant_first=relevant_first)  # type: ignore[arg-type]
        made.index({"id": documents})
        how = {"hf_split": "test", "hf_subset": "default", "top_ranked": top_ranked}
        scores = made.search({"id": [query]}, **how)[query]
        assert list(scores) == sorted(scores, key=lambda one: -scores[one]), "best first"
        return list(scores)

    oracle, chance = drawn(True), drawn(False)
    assert oracle[:2] == ["best", "good"] and len(oracle) == len(set(oracle)) == 1000 == len(set(chance))
    assert chance[:2] != oracle[:2] and set(chance) <= set(documents) and set(oracle) <= set(documents)
    assert drawn(True, query="another")[:2] != ["best", "good"] and drawn(False, seed=1) != chance
    listed = {"q": ["doc 3", "zero", "good"]}
    assert sorted(drawn(False, listed)) == sorted(listed["q"]) and drawn(False, {}) == []
    assert drawn(True, listed)[:2] == ["best", "good"] and sorted(drawn(True, listed)[2:]) == ["doc 3", "zero"]


def test_a_ceiling_scores_candidates_by_their_relevance() -> None:
    task = SimpleNamespace(dataset={"default": {"test": {"relevant_docs": {"q": {"a": 2}}}}})
    search, how = Ceiling(task, {}).search, {"hf_split": "test", "hf_subset": "default"}  # type: ignore[arg-type]
    queries = {"id": ["q", "other"]}
    assert search(queries, top_ranked={"q": ["a", "b"]}, **how) == {"q": {"a": 2.0, "b": 0.0}, "other": {}}
    assert search(queries, top_ranked=None, **how) == {"q": {}, "other": {}}
