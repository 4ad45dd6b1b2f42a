"""Published main scores of all-MiniLM-L6-v2 (embeddings-benchmark/results), reproduced with real data and real vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import run

pytestmark = pytest.mark.vllm

XQUAD = {"en": 0.94357, "de": 0.70324, "zh": 0.24225}


def score(tmp_path: Path, task: str, *overrides: str) -> Any:
    record: Any = run(
        ["model=minilm", f"tasks.names=[{task}]", "engine.dtype=float32", f"results.dir={tmp_path}", *overrides],
        show=False,
    )
    assert record.status == "ok", record.tasks[0].reason
    return record.tasks[0]


@pytest.mark.slow
def test_sts12_with_one_engine_and_with_two(hub_cache: Path, tmp_path: Path) -> None:
    one, two = (score(tmp_path / count, "STS12", f"engine.replicas={count}") for count in "12")
    assert one.main_score == pytest.approx(0.723690, abs=1e-4) and two.scores == one.scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "published"),
    [("STSBenchmark", 0.820325), ("SciFact", 0.64508), ("Banking77Classification", 0.800422)],
)
def test_english_tasks(hub_cache: Path, tmp_path: Path, task: str, published: float) -> None:
    assert score(tmp_path, task).main_score == pytest.approx(published, abs=1e-4)


@pytest.mark.slow
def test_xquad(hub_cache: Path, tmp_path: Path) -> None:
    scores = score(tmp_path, "XQuADRetrieval", f"tasks.subsets=[{','.join(XQUAD)}]").scores["validation"]
    assert {subset: values["ndcg_at_10"] for subset, values in scores.items()} == pytest.approx(XQUAD, abs=1e-4)
