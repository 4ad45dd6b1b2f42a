"""`pipeline=throughput` on an engine of known speed, and on the real one."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mteb_vllm import run
from mteb_vllm.engines.vllm import VllmEngine
from mteb_vllm.pipelines.throughput.measure import Stopwatch, measure
from mteb_vllm.pipelines.throughput.requests import Requests
from mteb_vllm.results.measurements import Lengths, ThroughputRecord

# Seconds for tokenising a text, for a step of at most `SEQS` texts, and for returning the results of a call.
TOKENISE, STEP, COLLECT, SEQS = 0.01, 0.08, 0.04, 4
TOKENS = 7


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only advances by sleeping, independent of the machine's load."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])


class Sleeping:
    """A replacement for vLLM's `LLM` with a known speed."""

    def __init__(self) -> None:
        self.llm_engine = self
        self.waiting: list[str] = []
        self.encoded: list[str] = []
        self.resets = 0

    def encode(self, texts: list[str], **_: Any) -> list[Any]:
        import torch

        self.encoded += texts
        for text in texts:
            time.sleep(TOKENISE)
            self.llm_engine.add_request(text)
        while self.waiting:
            self.llm_engine.step()
        time.sleep(COLLECT)
        answer = SimpleNamespace(prompt_token_ids=[1] * TOKENS, outputs=SimpleNamespace(data=torch.ones(2)))
        return [answer for _ in texts]

    def add_request(self, text: str) -> None:
        self.waiting.append(text)

    def step(self) -> None:
        time.sleep(STEP)
        del self.waiting[:SEQS]

    def reset_prefix_cache(self) -> None:
        self.resets += 1


def sleeping(prefixes: bool = False) -> tuple[VllmEngine, Sleeping]:
    llm = Sleeping()
    resolved = {"enable_prefix_caching": prefixes}
    spec = SimpleNamespace(env={}, applied=SimpleNamespace(truncate_dim=None))
    engine = VllmEngine(spec, llm, 0.0, "float32", 8, 2, resolved, takes_text="its texts have no tokens")  # type: ignore[arg-type]
    return engine, llm  # type: ignore[return-value]


@pytest.mark.usefixtures("clock")
def test_all_figures_match_an_engine_of_known_speed() -> None:
    engine, _ = sleeping()
    requests = Requests([f"text {at}" for at in range(8)])
    figures = ThroughputRecord("texts", 8, Lengths("tasks"))
    how: dict[str, Any] = {"steps": 4, "seconds": 0.01, "repeats": 3, "notify": lambda _: None}
    lengths = measure(engine, requests, figures, batch_sizes=[1, 6], **how)
    near = pytest.approx
    for step, size in zip(figures.steps, (1, 6), strict=True):
        phases = {"tokenise": size * TOKENISE, "engine": -(-size // SEQS) * STEP, "collect": COLLECT}
        total = sum(phases.values())
        assert (step.batch_size, step.steps) == (size, 4)
        assert vars(step.latency_ms) == near(dict.fromkeys(("mean", "p50", "p90", "p99"), total * 1000.0))
        assert step.requests_per_second == near(size / total)
        assert step.tokens_per_second == near(size * TOKENS / total)
        assert vars(step.phases_ms) == near({key: seconds * 1e3 for key, seconds in phases.items()})
        assert sum(vars(step.phases_ms).values()) == near(step.latency_ms.mean)
        assert step.spread == near(0)
    saturated, total = figures.saturated, 8 * TOKENISE + 2 * STEP + COLLECT
    assert len(saturated.seconds) == saturated.repeats == 3
    assert saturated.seconds == near([total] * 3)
    assert saturated.requests_per_second == near(8 / total)
    assert saturated.tokens_per_second == near(8 * TOKENS / total)
    assert vars(saturated.phases_s) == near({"tokenise": 8 * TOKENISE, "engine": 2 * STEP, "collect": COLLECT})
    assert sum(vars(saturated.phases_s).values()) == near(total)
    assert lengths == [TOKENS] * 8 and saturated.cached_share == 0
    assert figures.warm_up_seconds == near(2 * (6 * TOKENISE + 2 * STEP + COLLECT))


def test_measurements_before_an_engine_dies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.errors import EngineError
    from mteb_vllm.report.one_run import write_run
    from mteb_vllm.results.failures import failure_from_exception
    from mteb_vllm.results.record import RunRecord

    engine, _ = sleeping()
    steps: list[int] = []

    def step(self: Sleeping) -> None:
        steps.append(len(self.waiting))
        if len(steps) > 5:  # two warm-up calls, then three with one text each
            raise RuntimeError("out of memory")
        self.waiting.clear()

    monkeypatch.setattr(Sleeping, "step", step)
    figures = ThroughputRecord("texts", 8, Lengths("varied", distribution="uniform"))
    requests = Requests([f"text {at}" for at in range(8)])
    how: dict[str, Any] = {"steps": 2, "seconds": 0.01, "repeats": 1, "notify": lambda _: None}
    with pytest.raises(EngineError, match="out of memory") as caught:
        measure(engine, requests, figures, batch_sizes=[1, 4], **how)
    assert engine.llm is None and [step.batch_size for step in figures.steps] == [1]
    record = RunRecord(throughput=figures, failure=failure_from_exception(caught.value), status="failed")
    write_run(record, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "out of memory" in report and "varied (uniform)" in report and (tmp_path / "throughput.png").exists()


def test_the_prefix_cache_is_cleared_before_requests_are_repeated() -> None:
    for prefixes in (False, True):
        engine, llm = sleeping(prefixes)
        watch = Stopwatch(engine, Requests([str(at) for at in range(3)]))
        for count in (2, 1, 2):
            watch.time_call(count)
        assert llm.encoded == ["0", "1", "2", *(["2"] if prefixes else []), "0", "1"]
        assert llm.resets == prefixes
        assert not {"add_request", "step"} & set(vars(llm)), "the timing hooks are removed after each call"


SMALL = ["pipeline.tokens=12", "pipeline.batch_sizes=[4,1,4]", "pipeline.requests=24", "pipeline.steps=2"]
SMALL += ["pipeline.seconds=0.05", "pipeline.repeats=2"]


@pytest.mark.vllm
def test_both_backends_are_timed_on_texts_of_exact_lengths(tmp_path: Path, minilm: Any) -> None:
    shared = ["pipeline=throughput", f"results.dir={tmp_path}", *SMALL]
    points = [
        run([*shared, "pipeline.lengths=varied", "prompts={query: 'query: ', document: 'passage: '}"], show=False),
        run([*shared, "engine=sentence_transformers"], show=False),
    ]
    for record, kind in zip(points, ("varied", "fixed"), strict=True):
        assert (record.status, record.failure, record.tasks) == ("ok", None, [])
        figures = record.throughput
        lengths = figures.lengths
        assert (figures.unit, figures.requests, lengths.kind, lengths.mean) == ("texts", 24, kind, 12)
        assert (lengths.min == lengths.max == 12) == (kind == "fixed")
        assert [step.batch_size for step in figures.steps] == [1, 4]
        for step in figures.steps:
            assert step.tokens_per_second == pytest.approx(12 * step.requests_per_second, rel=0.5)
            assert sum(vars(step.phases_ms).values()) == pytest.approx(step.latency_ms.mean, rel=0.02)
            assert min(vars(step.phases_ms).values()) > 0
        saturated = figures.saturated
        assert saturated.tokens_per_second == pytest.approx(12 * saturated.requests_per_second)
        roofline = figures.roofline
        assert roofline.tokens_per_second * roofline.flops_per_token == pytest.approx(roofline.flops_per_second)
        assert roofline.mfu == pytest.approx(saturated.tokens_per_second / roofline.tokens_per_second)
        assert roofline.flops_per_token == pytest.approx(21.3e6, rel=0.02)
        assert figures.memory_mb.process > 100 and record.engine.resolved["dtype"] == "float32"
        folder = Path(record.output_dir)
        assert (
            "Offline (saturated)" in (folder / "report.md").read_text()
            and (folder / "throughput.png").stat().st_size > 10_000
        )
    assert [record.engine.backend for record in points] == ["vllm", "sentence_transformers"]
    assert points[0].prompts["values" if "values" in points[0].prompts else "prompts"]["document"] == "passage: "
    assert not (tmp_path / "embeddings").exists() and not list((tmp_path / "results").glob("*/*"))


@pytest.mark.vllm
def test_texts_longer_than_the_context_fail_the_run(tmp_path: Path, minilm: Any) -> None:
    record = run(["pipeline=throughput", f"results.dir={tmp_path}", *SMALL, "pipeline.tokens=1000"], show=False)
    assert record.status == "failed" and record.failure is not None
    assert "pipeline.lengths=fixed: texts of 1000 tokens are not possible" in record.failure.message
    assert "4 to 256" in record.failure.message
    again = run(
        ["pipeline=throughput", f"results.dir={tmp_path}", *SMALL, "pipeline.tokens=1000", "retry_failed=false"],
        show=False,
    )
    assert "was not tried again" in again.warnings[-1]


@pytest.mark.vllm
def test_texts_and_pairs_sampled_from_tasks(tmp_path: Path, minilm: Any) -> None:
    import mteb.mocks.mock_tasks as mock_tasks
    import numpy as np

    from mteb_vllm.models.prompts import Prompts
    from mteb_vllm.models.score_templates import ScoreTemplate
    from mteb_vllm.pipelines.throughput.pipeline import Throughput
    from mteb_vllm.pipelines.throughput.requests import sample_requests

    how = Throughput(batch_sizes=[1], lengths="tasks", requests=4)
    tasks = [mock_tasks.MockRetrievalTask(), mock_tasks.MockSTSTask()]
    prompts = Prompts(values={"query": "q: ", "document": "d: "})
    requests = sample_requests(tasks, how.workload, prompts, None)
    assert len(requests) == 4 and len(set(requests.texts)) == 4 and requests.unit == "texts"
    all_texts = sample_requests(
        tasks, Throughput(batch_sizes=[1], lengths="tasks", requests=1000).workload, prompts, None
    )
    assert set(requests.texts) < set(all_texts.texts)
    assert {text[:3] for text in all_texts.texts} > {"q: ", "d: "}
    assert all(np.array(all_texts.run(minilm.engine, range(len(all_texts)))) > 2)
    pairs = sample_requests(tasks[:1], how.workload, prompts, ScoreTemplate(None, "Q ", "D ", None))
    assert pairs.unit == "pairs" and pairs.documents is not None
    assert all(text.startswith("Q ") for text in pairs.texts) and all(text.startswith("D ") for text in pairs.documents)
    with pytest.raises(ValueError, match="tasks=demo_retrieval"):
        sample_requests(tasks[1:], how.workload, prompts, ScoreTemplate(None, "", "", None))
