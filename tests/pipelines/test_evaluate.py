"""Evaluation of tasks: failures limited to single tasks, aggregates, shared results, and engines that fail."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mteb.mocks import mock_tasks

from mteb_vllm.engines.vllm import VllmEngine
from mteb_vllm.errors import EngineError
from mteb_vllm.models.files import Model
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.pipelines import mteb_run
from mteb_vllm.pipelines.base import RunContext
from mteb_vllm.pipelines.evaluate import Evaluate
from mteb_vllm.pipelines.mteb_run import compute
from mteb_vllm.plan import make_plan
from mteb_vllm.preflight.command import check
from mteb_vllm.progress import Progress
from mteb_vllm.results.record import describe_subsets
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.tasks.loading import check_candidates
from mteb_vllm.util.console import Console
from mteb_vllm.wrappers import VllmEncoderWrapper


class Encoder:
    """A model with a wrapper's interface: embeddings by hash, and failures on demand."""

    def __init__(self, *, opens: bool = True, fails: tuple[str, ...] = (), alike: bool = False) -> None:
        from mteb_vllm.results.counters import Work
        from mteb_vllm.wrappers import model_meta

        self.mteb_model_meta = model_meta(Model("org/model", "abc", "org/model", None, {}), "aaaa")
        self.work, self.applied = Work(), {}
        self.opens, self.fails, self.alike = opens, fails, alike
        self.tried, self.encoded = 0, []

    @property
    def engine(self) -> Any:
        self.tried += 1
        if not self.opens:
            raise EngineError("vLLM failed to start with")
        return self

    def engine_record(self) -> None:
        return None

    def encode(self, inputs: Any, *, task_metadata: Any, **_: Any) -> Any:
        import zlib

        self.encoded.append(task_metadata.name)
        if task_metadata.name in self.fails:
            raise EngineError("vLLM's engine died at work")
        texts = [text for batch in inputs for text in batch["text"]]
        seeds = [0 if self.alike else zlib.crc32(text.encode()) for text in texts]
        return np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds], dtype=np.float32)

    def similarity(self, one: Any, other: Any) -> Any:
        return np.asarray(one) @ np.asarray(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        return (np.asarray(one) * np.asarray(other)).sum(1)


def evaluate(tmp_path: Path, model: Any, *tasks: Any, reuse: bool = True) -> list[Any]:
    progress = Progress(Console(file=io.StringIO()), len(tasks))
    return list(Evaluate().run(RunContext(model, tasks, ResultsStore(tmp_path), progress, reuse=reuse)))


def test_runs_with_the_same_inputs_share_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.pipelines import mteb_run
    from mteb_vllm.wrappers import model_meta

    name = mock_tasks.MockSTSTask.metadata.name
    catalogue = SimpleNamespace(tasks={name: SimpleNamespace(sides=("",))})
    monkeypatch.setattr(mteb_run, "mteb_catalogue", lambda: catalogue)
    store = ResultsStore(tmp_path)

    def status(settings: str, inputs: str | None, *, reuse: bool = True, side: str | None = None) -> str:
        model = Encoder()
        model.mteb_model_meta = model_meta(Model("org/model", "abc", "org/model", None, {}), settings)
        model.applied = {(name, side): {}, ("AnotherTask", "query"): {}}
        progress = Progress(Console(file=io.StringIO()), 1)
        context = RunContext(
            model, [mock_tasks.MockSTSTask()], store, progress, reuse=reuse, input_fingerprints={name: inputs}
        )
        (outcome,) = Evaluate().run(context)
        assert bool(model.encoded) == (outcome.status == "computed"), outcome.reason
        return str(outcome.status)

    assert status("a", "same") == "computed"
    assert status("b", "same") == "cached" and status("b", None) == "cached", "adopted results are stored for the run"
    assert status("c", "other") == "computed" and status("d", None) == "computed"
    assert status("e", "same", reuse=False) == "computed"
    # A side that the catalogue does not list was not part of the hash.
    assert status("f", "query's", side="query") == "computed" and status("g", "query's") == "computed"
    # A damaged result is not shared.
    for path in tmp_path.glob(f"results/*/*/experiments/*/{name}.json"):
        path.write_bytes(b"{}")
    assert status("h", "same") == "computed"


def test_a_failure_of_one_task_does_not_affect_the_others(tmp_path: Path) -> None:
    sts, retrieval = mock_tasks.MockSTSTask(), mock_tasks.MockRetrievalTask()
    model = Encoder(fails=(sts.metadata.name,))
    failed, fine = evaluate(tmp_path, model, sts, retrieval)
    assert failed.status == "failed" and "died" in failed.reason and fine.status == "computed"
    again = evaluate(tmp_path, Encoder(), mock_tasks.MockSTSTask(), mock_tasks.MockRetrievalTask())
    assert [outcome.status for outcome in again] == ["computed", "cached"], "only missing results are computed"


def test_an_engine_that_does_not_open_is_tried_once(tmp_path: Path) -> None:
    evaluate(tmp_path, Encoder(), mock_tasks.MockRetrievalTask())
    model = Encoder(opens=False)
    outcomes = evaluate(
        tmp_path, model, mock_tasks.MockSTSTask(), mock_tasks.MockRetrievalTask(), mock_tasks.MockSTSTask()
    )
    assert [outcome.status for outcome in outcomes] == ["failed", "cached", "failed"] and model.tried == 1


def test_a_score_that_is_not_a_number_fails_the_task(tmp_path: Path) -> None:
    for _ in range(2):
        (outcome,) = evaluate(tmp_path, Encoder(alike=True), mock_tasks.MockSTSTask())
        assert outcome.status == "failed" and "not a number" in outcome.reason


def test_an_aggregate_computes_only_missing_parts(tmp_path: Path) -> None:
    task = mock_tasks.MockAggregatedTask()
    parts = [part.metadata.name for part in task.metadata.tasks]
    assert len(parts) > 1
    evaluate(tmp_path, Encoder(), task.metadata.tasks[0])
    model = Encoder()
    (outcome,) = evaluate(tmp_path, model, task)
    assert outcome.status == "computed" and set(model.encoded) == set(parts[1:])
    (again,) = evaluate(tmp_path, Encoder(opens=False), task)
    assert again.status == "cached" and again.main_score == outcome.main_score
    model = Encoder()
    (forced,) = evaluate(tmp_path, model, task, reuse=False)
    assert set(model.encoded) == set(parts) and forced.main_score == pytest.approx(outcome.main_score)


def test_prompts_of_an_aggregate_are_named_after_its_parts(tmp_path: Path) -> None:
    task, alone = mock_tasks.MockAggregatedTask(), mock_tasks.MockSTSTask()
    one, other = (part.metadata.name for part in task.metadata.tasks[:2])
    model = Encoder()
    model.applied = {(one, None): {"key": "a"}, (other, "query"): {"key": "b"}, ("AnotherTask", None): {"key": "c"}}
    (outcome,) = evaluate(tmp_path, model, task)
    assert outcome.prompts == {f"{one}: texts": {"key": "a"}, f"{other}: query": {"key": "b"}}
    model.applied = {(alone.metadata.name, None): {"key": "a"}, (one, None): {"key": "c"}}
    (outcome,) = evaluate(tmp_path / "alone", model, alone)
    assert outcome.prompts == {"texts": {"key": "a"}}, "a single task is not named"


def test_the_next_block_never_repeats_a_finished_subset() -> None:
    units = [(subset, split) for split in ("dev", "test") for subset in ("en", "de")]
    assert mteb_run._next_block(units) == units
    assert mteb_run._next_block(units[1:]) == [("de", "dev")], "mteb would evaluate en of dev again"
    assert mteb_run._next_block(units[2:]) == units[2:] and mteb_run._next_block(units[::2]) == units[::2]


def test_recomputing_a_subset_keeps_the_others(tmp_path: Path) -> None:
    complete = mock_tasks.MockMultilingualSTSTask()
    evaluate(tmp_path, Encoder(), complete)
    part = mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=complete.hf_subsets[:1])
    (outcome,) = evaluate(tmp_path, Encoder(), part, reuse=False)
    assert list(outcome.scores["test"]) == complete.hf_subsets[:1]
    (again,) = evaluate(tmp_path, Encoder(opens=False), mock_tasks.MockMultilingualSTSTask())
    assert again.status == "cached"


def test_a_task_that_another_run_is_computing_is_postponed_and_not_recomputed(tmp_path: Path) -> None:
    one, other = mock_tasks.MockSTSTask(), mock_tasks.MockClassificationTask()
    store, model, outcomes = ResultsStore(tmp_path), Encoder(), []
    here = threading.Thread(target=lambda: outcomes.extend(evaluate(tmp_path, model, one, other)))
    with store.claim(one, model.mteb_model_meta):  # like another run
        here.start()
        while store.cached_result(mock_tasks.MockClassificationTask(), model.mteb_model_meta) is None:
            assert here.is_alive() or outcomes
            time.sleep(0.01)
        computing = mock_tasks.MockSTSTask()
        compute(Encoder(), computing, store, reuse=True)
        assert set(model.encoded) == {other.metadata.name}
    here.join(60)
    statuses = [(outcome.name, outcome.status) for outcome in outcomes]
    assert statuses == [(other.metadata.name, "computed"), (one.metadata.name, "cached")]
    assert set(model.encoded) == {other.metadata.name}


def test_a_reranking_task_without_candidates_is_refused() -> None:
    task = mock_tasks.MockRerankingTask()
    task.load_data()
    check_candidates(task)
    for splits in task.dataset.values():
        for part in splits.values():
            part["top_ranked"] = None
    with pytest.raises(LookupError, match="top_ranked"):
        check_candidates(task)


def dead_engine(error: BaseException, unfinished: bool = False) -> tuple[VllmEngine, list[str]]:
    closed: list[str] = []

    class Dying(VllmEngine):
        def close(self) -> None:
            closed.append("closed")

    def encode(texts: list[str], **_: Any) -> Any:
        raise error

    core = SimpleNamespace(has_unfinished_requests=lambda: unfinished)
    llm = SimpleNamespace(encode=encode, llm_engine=core)
    return Dying(SimpleNamespace(), llm, 0.0, "float32", 8, 4, {}), closed  # type: ignore[arg-type]


def test_an_engine_is_closed_after_errors_that_leave_requests_behind() -> None:
    engine, closed = dead_engine(ValueError("too long"))
    with pytest.raises(ValueError, match="too long"):
        engine.call("encode", ["a"])
    assert not closed, "vLLM removes the requests after an ordinary error"
    engine, closed = dead_engine(ValueError("in a step"), unfinished=True)
    with pytest.raises(EngineError, match="failed: ValueError: in a step"):
        engine.call("encode", ["a"])
    assert closed, "the next call would return results of unfinished requests"
    engine, closed = dead_engine(RuntimeError("can't allocate memory"))
    with pytest.raises(EngineError, match="failed: RuntimeError: can't allocate memory"):
        engine.call("encode", ["a"])
    assert closed, "the error may have occurred within a step"
    engine, closed = dead_engine(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.call("encode", ["a"])
    assert closed, "after Ctrl-C, the next call would return results of the interrupted one"
    engine, closed = dead_engine(type("EngineDeadError", (Exception,), {})())
    with pytest.raises(EngineError, match="died"):
        engine.call("encode", ["a"])
    assert closed


@pytest.mark.vllm
def test_an_interrupted_call_does_not_affect_later_ones(minilm: Any) -> None:
    from mteb_vllm.inference.encoding import encode_texts

    texts = [f"text number {at}" for at in range(300)]
    expected, _ = encode_texts(minilm.engine, texts, len(texts))

    def interrupt(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_texts(minilm.engine, [text.upper() for text in texts], len(texts), progress=interrupt)
    again, _ = encode_texts(minilm.engine, texts, len(texts))
    np.testing.assert_allclose(again, expected, atol=1e-6)
    assert VllmEncoderWrapper.from_spec(minilm.spec, Prompts()).engine is minilm.engine


def test_closing_an_engine_restores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.engines import base as engines
    from mteb_vllm.engines import environment

    left: list[int] = []
    monkeypatch.setattr(engines, "_open", [])
    monkeypatch.setattr(environment, "_before", None)
    monkeypatch.setattr(VllmEngine, "_release_memory", lambda _: left.append(len(engines._open)))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    environment.apply_variables({"VLLM_X": "1"})
    assert (
        environment.outer_variables()["VLLM_CPU_KVCACHE_SPACE"] == "4" and "VLLM_X" not in environment.outer_variables()
    )
    engine = VllmEngine(SimpleNamespace(env={}), SimpleNamespace(), 0.0, "float32", 8, 4, {}, in_process=True)  # type: ignore[arg-type]
    engines._open.append(engine)
    engine.close()
    engine.close()
    assert left == [0] and engine.llm is None and not engines._open
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "4" and "VLLM_X" not in os.environ


@pytest.mark.parametrize(
    "overrides",
    [
        ["tasks=sts12"],
        ["pipeline=rerank", "pipeline.scoring=cosine", "tasks=demo_retrieval", "pipeline/first_stage=dense"],
    ],
    ids=["evaluate", "rerank"],
)
def test_results_do_not_depend_on_the_chunk_size(overrides: list[str]) -> None:
    one, other = (make_plan(check([*overrides, f"pipeline.chunk_size={size}"])[0].config) for size in (64, 8192))
    assert (one.pipeline.chunk_size, other.pipeline.chunk_size) == (64, 8192)
    assert one.settings == other.settings
    assert [one.settings_for(task) for task in one.tasks] == [other.settings_for(task) for task in other.tasks]
    assert one.wrapper().mteb_model_meta.experiment_kwargs == other.wrapper().mteb_model_meta.experiment_kwargs


def test_what_is_counted_for_a_result_is_of_its_own_subsets(tmp_path: Path) -> None:
    def task(*subsets: str) -> Any:
        return mock_tasks.MockMultilingualSTSTask().filter_languages(None, hf_subsets=list(subsets))

    one, other = mock_tasks.MockMultilingualSTSTask().hf_subsets[:2]
    (first,) = evaluate(tmp_path, Encoder(), task(one))
    assert first.subsets == f"test: {one}"
    (both,) = evaluate(tmp_path, Encoder(), task(one, other))
    assert both.status == "computed" and both.subsets == f"test: {', '.join(sorted((one, other)))}"
    (again,) = evaluate(tmp_path, Encoder(opens=False), task(one, other))
    assert again.status == "cached" and again.measured is not None
    assert (again.subsets, again.measured.subsets) == (both.subsets, ""), "only the other one was computed"
    evaluate(tmp_path, Encoder(), task(one, other), reuse=False)
    (again,) = evaluate(tmp_path, Encoder(opens=False), task(one, other))
    assert again.measured is not None and again.measured.subsets == both.subsets
    (part,) = evaluate(tmp_path, Encoder(opens=False), task(other))
    assert part.measured is not None and (part.subsets, part.measured.subsets) == (f"test: {other}", both.subsets)


def test_subsets_have_a_short_form() -> None:
    assert describe_subsets([("test", "en"), ("dev", "en"), ("test", "de")]) == "dev: en; test: de, en"
    many = [("test", f"subset{at}") for at in range(2000)]
    assert describe_subsets(many) == describe_subsets(many[::-1]) != describe_subsets([*many[1:], ("test", "x")])
    assert describe_subsets(many).startswith("2,000 subsets (") and describe_subsets([]) == ""
