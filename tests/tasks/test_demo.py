"""The demo tasks: reproducible, valid, small, and able to distinguish good models from bad ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models import ModelMeta
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from mteb_vllm.tasks import demo
from mteb_vllm.tasks.labels import labels_as_lists

Vectorise = Callable[[list[str]], np.ndarray]


def load(name: str) -> Any:
    task = demo.TASKS[name]()
    task.load_data()
    return task.dataset


@pytest.fixture(scope="module")
def retrieval() -> Any:
    return load("StdlibDocsRetrieval")["default"]["test"]


@pytest.fixture(scope="module")
def classification() -> Any:
    return load("StdlibDocsClassification")


@pytest.fixture(scope="module")
def clustering() -> Any:
    return load("StdlibDocsClustering")["test"]


def normal(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")


class Vectors:
    """An mteb encoder around a function from texts to vectors; counts its texts."""

    def __init__(self, vectorise: Vectorise) -> None:
        self.mteb_model_meta = ModelMeta.create_empty({"name": "test/vectors", "revision": "1"})
        self.vectorise = vectorise
        self.n_texts = 0

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        self.n_texts += len(texts)
        return self.vectorise(texts)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left @ right.T

    def similarity_pairwise(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left * right).sum(axis=1)


def random_vectors(texts: list[str]) -> np.ndarray:
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    return np.stack([np.random.default_rng(seed).standard_normal(64) for seed in seeds]).astype(np.float32)


@pytest.fixture(scope="module")
def tf_idf() -> Vectorise:
    # Hashed into few dimensions, so that k-means takes no longer than on embeddings.
    words = HashingVectorizer(stop_words="english", n_features=1024, norm=None)
    weights = TfidfTransformer().fit(abs(words.transform([doc.text for doc in demo.docstrings()])))
    return lambda texts: weights.transform(words.transform(texts)).toarray().astype(np.float32)


def evaluate(vectorise: Vectorise) -> tuple[dict[str, float], int]:
    model = Vectors(vectorise)
    # On busy cores the threads of k-means mostly spin: one thread is up to 60 times faster than two.
    with threadpool_limits(1):
        tasks = [task() for task in demo.TASKS.values()]
        with contextlib.ExitStack() as stack:
            for task in tasks:
                stack.enter_context(labels_as_lists(task))
            result = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
    return {task.task_name: task.get_score() for task in result.task_results}, model.n_texts


def test_metadata_is_complete() -> None:
    for name, task in demo.TASKS.items():
        assert task.metadata.name == name
        assert task.metadata.is_filled()
        assert task.metadata.prompt
        assert task.metadata.revision.startswith(f"{demo.RECIPE}-py{sys.version_info.major}.{sys.version_info.minor}")


def test_data_do_not_depend_on_the_hash_seed() -> None:
    # `import mteb` takes seconds, so the two processes run in parallel.
    code = """if True:
        import hashlib
        from mteb_vllm.tasks import demo
        for name, task in demo.TASKS.items():
            task = task()
            task.load_data()
            dataset = task.dataset
            if name == "StdlibDocsRetrieval":
                split = dataset["default"]["test"]
                rows = [list(split["corpus"]), list(split["queries"]), split["relevant_docs"]]
            else:
                rows = [list(split) for split in dataset.values()]
            print(name, task.metadata.revision, hashlib.sha256(repr(rows).encode()).hexdigest())
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, two = (process.communicate(timeout=120)[0] for process in processes)
    assert len(one.splitlines()) == 3
    assert one == two


def test_private_and_test_code_is_excluded() -> None:
    docs = demo.docstrings()
    assert len(docs) > 3000
    for doc in docs:
        path = f"{doc.module}.{doc.name}".split(".")
        assert not any(part.startswith("_") for part in path)
        assert not {"test", "tests", "site-packages", *demo.DETACHED} & set(doc.module.split("."))
    assert len({doc.place for doc in docs}) == len(docs)


def test_without_sources_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    demo._sources.cache_clear()
    demo.docstrings.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="no source files"):
            load("StdlibDocsClustering")
    finally:
        demo._sources.cache_clear()


def test_every_query_has_relevant_documents_that_do_not_repeat_it(retrieval: Any) -> None:
    documents = {row["id"]: normal(row["text"]) for row in retrieval["corpus"]}
    queries = {row["id"]: normal(row["text"]) for row in retrieval["queries"]}
    assert retrieval["relevant_docs"].keys() == queries.keys()
    for query, relevant in retrieval["relevant_docs"].items():
        assert relevant
        assert not any(queries[query] in documents[document] for document in relevant)


def test_documents_and_queries_are_distinct_and_duplicates_share_their_judgements(retrieval: Any) -> None:
    for rows in (retrieval["corpus"], retrieval["queries"]):
        assert len(set(rows["id"])) == len(rows)
        assert len({normal(text) for text in rows["text"]}) == len(rows)
    n_relevant = Counter(len(relevant) for relevant in retrieval["relevant_docs"].values())
    times_relevant = Counter(doc for relevant in retrieval["relevant_docs"].values() for doc in relevant)
    assert sum(n for size, n in n_relevant.items() if size > 1) > 10
    assert max(times_relevant.values()) > 1
    assert len(times_relevant) < len(retrieval["corpus"]), "no distractors"


def test_classes_are_balanced_and_splits_disjoint(classification: Any) -> None:
    train, test = classification["train"], classification["test"]
    assert set(Counter(train["label"]).values()) == {demo.N_TRAIN}
    assert len(set(train["label"])) == demo.N_PACKAGES
    sizes = Counter(test["label"])
    assert sizes.keys() == set(train["label"])
    assert min(sizes.values()) >= demo.N_TEST // 2
    texts = [normal(text) for text in (*train["text"], *test["text"])]
    assert len(set(texts)) == len(texts)


def test_clusters_are_balanced(clustering: Any) -> None:
    sizes = Counter(clustering["labels"])
    assert len(sizes) == demo.N_MODULES
    assert min(sizes.values()) >= demo.N_PER_MODULE // 2
    assert len({normal(text) for text in clustering["sentences"]}) == len(clustering)


def test_random_vectors_score_near_chance_and_words_score_better_but_not_perfectly(
    tf_idf: Vectorise, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"the demo tasks access the network: {args}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    chance, n_texts = evaluate(random_vectors)
    assert n_texts <= 5000
    assert chance["StdlibDocsRetrieval"] < 0.01
    assert chance["StdlibDocsClassification"] == pytest.approx(1 / demo.N_PACKAGES, abs=0.02)
    assert chance["StdlibDocsClustering"] < 0.1

    words, _ = evaluate(tf_idf)
    assert 0.25 < words["StdlibDocsRetrieval"] < 0.8
    assert 0.3 < words["StdlibDocsClassification"] < 0.8
    assert 0.25 < words["StdlibDocsClustering"] < 0.8
