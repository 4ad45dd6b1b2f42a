"""The token feed: the token ids of the engine's own front end, made in batches on a background thread."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import engine_inputs
import rerankers
import tiny_models
from mteb_vllm import VllmCrossEncoderWrapper, VllmEncoderWrapper
from mteb_vllm.engines.base import EngineSpec, TokenPair, close_engines, open_engine
from mteb_vllm.engines.vllm import VllmEngine
from mteb_vllm.errors import EngineError
from mteb_vllm.inference.encoding import encode_texts
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.inference.token_feed import SAMPLE, TokenBatch, TokenFeed, batches, prefetch

TEXTS = [
    *SAMPLE, "word " * 254, "word " * 255, "word " * 256, "the list of words " * 2000, "x" * 90_000, "a b c " * 40_000,
    *(f"return item number {at} of a list " + "and so on " * (at % 50) for at in range(700)),
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    yield tiny_models.tiny_encoder(tmp_path / "tiny")
    close_engines()


def opened(folder: Path) -> VllmEncoderWrapper:
    return VllmEncoderWrapper("org/tiny", path=str(folder), dtype="float32")


@pytest.mark.vllm
def test_the_core_gets_the_tokens_of_vllms_own_front_end(minilm: Any) -> None:
    import torch

    texts = list(dict.fromkeys(text for text in TEXTS[:250] if len(text) < 50_000))
    with engine_inputs.recorded(minilm.engine) as ours:
        found, work = encode_texts(minilm.engine, texts, len(texts))
    assert minilm.engine.takes_text is None and minilm.engine_record().text_reason is None
    with engine_inputs.recorded(minilm.engine) as its:
        truncate = {"truncate_prompt_tokens": -1}
        outputs = minilm.llm.encode(texts, pooling_task="embed", use_tqdm=False, tokenization_kwargs=truncate)
    assert ours == its
    plain = torch.stack([output.outputs.data for output in outputs]).float().numpy()
    np.testing.assert_array_equal(found, plain, "steps of the engine consist of the same texts")
    whole = [len(ids) for ids in minilm.engine.tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    assert work.truncated == sum(length > 256 for length in whole) > 1
    assert work.tokens == sum(min(length, 256) for length in whole)
    assert 256 in whole, "a text that fits exactly is not counted"


@pytest.mark.vllm
def test_lower_case_is_applied_as_vllm_does(tiny: Path) -> None:
    """The tokenizer distinguishes case; `do_lower_case` of the model's files makes vLLM lower the text first."""
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (tiny / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((tiny / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (tiny / "tokenizer_config.json").write_text(json.dumps(settings))
    (tiny / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": True}))
    from mteb_vllm.engines.arguments import resolve_arguments
    from mteb_vllm.models.files import find_model

    arguments = resolve_arguments({"preset": "vllm_cpu"}, {})
    engine = open_engine(EngineSpec(find_model("org/tiny", None, str(tiny)), "embed", *arguments))
    assert engine.tokenization().lower_case
    with engine_inputs.recorded(engine) as given:
        encode_texts(engine, ["A CAT Sleeps"], 1)
    assert engine.takes_text is None
    assert given == [engine.tokenizer("a cat sleeps")["input_ids"]] != [engine.tokenizer("A CAT Sleeps")["input_ids"]]


@pytest.mark.vllm
@pytest.mark.parametrize("when", ["on the sample", "on the texts"])
def test_text_is_used_where_tokens_differ(
    tiny: Path, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenize = TokenFeed.tokenize
    bad = SAMPLE[3] if when == "on the sample" else "a cat sleeps"

    def wrong(self: TokenFeed, texts: list[str]) -> TokenBatch:
        batch = tokenize(self, texts)
        return TokenBatch(
            [ids[:-1] if text == bad else ids for text, ids in zip(texts, batch.ids, strict=True)], batch.truncated
        )

    texts = ["a cat sleeps", "rain falls"]
    with opened(tiny) as model:
        expected, _ = encode_texts(model.engine, texts, 2)
        model.engine.feed = None
        monkeypatch.setattr(TokenFeed, "tokenize", wrong)
        with caplog.at_level(logging.WARNING):
            found, _ = encode_texts(model.engine, texts, 2)
        record = model.engine_record()
    np.testing.assert_array_equal(found, expected)
    assert record is not None and record.text_reason is not None and bad in record.text_reason
    assert "gets text instead of token ids" in caplog.text


@pytest.mark.vllm
def test_text_is_used_without_a_fast_tokenizer_or_with_another_interface(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tiny) as model:
        expected, _ = encode_texts(model.engine, ["a cat"], 1)
        monkeypatch.setattr(type(model.engine.tokenizer), "is_fast", False)
        model.engine.feed = None
        np.testing.assert_array_equal(encode_texts(model.engine, ["a cat"], 1)[0], expected)
        assert model.engine.takes_text == "its tokenizer has no fast implementation"
        monkeypatch.undo()
        model.engine.feed = model.engine.takes_text = None
        monkeypatch.setattr(model.llm, "renderer", SimpleNamespace())
        assert model.engine.feed is None
        with pytest.raises(Exception, match="internal API"):
            model.engine.tokenization()


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_pairs_reach_the_core_as_transformers_tokenises_them(tmp_path: Path, name: str) -> None:
    folder = rerankers.small(name, tmp_path, 64)
    queries = ["how to sort", "", "naïve CAFÉ", "why not " * 6, "empty"]
    documents = ["use sorted() " * 50, "a text", "深度学习 🙂", "a document " * 30, ""]
    with VllmCrossEncoderWrapper(f"test/{name}", path=str(folder), dtype="float32", activation="none") as model:
        with engine_inputs.recorded(model.engine) as given:
            scores, work = score_pairs(model.engine, queries, documents, activation="none")
        assert model.engine.takes_text is None
        tokenizer = model.engine.tokenizer
        expected = tokenizer(queries, documents, truncation="only_second", max_length=64)["input_ids"]
        assert given == expected
        model.engine.feed, model.engine.takes_text = None, "to compare"
        text, text_work = score_pairs(model.engine, queries, documents, activation="none")
    np.testing.assert_allclose(scores, text, atol=1e-6)
    assert np.std(scores) > 0
    assert (work.truncated, work.tokens) == (text_work.truncated, text_work.tokens) == (2, sum(map(len, expected)))


@pytest.mark.parametrize(
    ("error", "raised"),
    [(RuntimeError("no memory"), EngineError), (KeyboardInterrupt(), KeyboardInterrupt), (None, GeneratorExit)],
)
def test_an_engine_that_holds_requests_is_closed(error: BaseException | None, raised: type[BaseException]) -> None:
    closed: list[str] = []

    class Engine(VllmEngine):
        def close(self) -> None:
            closed.append("closed")

    def step() -> list[Any]:
        if error is not None:
            raise error
        return [SimpleNamespace(request_id="0", num_cached_tokens=0)]

    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=1))
    core = SimpleNamespace(add_request=lambda *_: None, step=step, vllm_config=config)
    llm = SimpleNamespace(llm_engine=core, request_counter=iter(range(9)))
    engine = Engine(SimpleNamespace(), llm, 0.0, "float32", 8, 4, {})  # type: ignore[arg-type]
    run = engine._run_requests(([1], None) for _ in range(9))  # type: ignore[misc]
    if error is None:
        next(run)
        run.close()
    else:
        with pytest.raises(raised):
            next(run)
    assert closed


def test_items_are_made_ahead_but_not_without_bound() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for at in range(100):
            made.append(at)
            yield at

    with prefetch(items(), ahead=2) as ready:
        stream = iter(ready)
        assert next(stream) == 0
        time.sleep(0.3)
        assert len(made) == 3, "one was taken, and two are ahead"
        assert [next(stream) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(made) < 12
    assert not [one for one in threading.enumerate() if "token feed" in one.name]


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt()])
def test_an_error_while_tokenising_is_raised_where_the_items_are_used(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    found = []
    with pytest.raises(type(error)), prefetch(items()) as ready:
        for item in ready:
            found.append(item)
    assert found == [1] and not [one for one in threading.enumerate() if "token feed" in one.name]


def test_batches_have_about_the_same_number_of_characters() -> None:
    sizes = [10, 200_000, 5, 5, 131_000, 100, 7]
    assert list(batches(sizes)) == [slice(0, 2), slice(2, 6), slice(6, 7)]
    assert list(batches([])) == [] and list(batches([0, 0])) == [slice(0, 2)]


def test_a_pair_is_equal_to_one_of_the_same_tokens() -> None:
    assert TokenPair([1, 2], 1, False) == TokenPair([1, 2], 1, False) != TokenPair([1, 2], 2, False)
