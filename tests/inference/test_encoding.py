"""Encoding: each distinct text is computed once, memory is bounded, and every text has a defined embedding."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from mteb_vllm.engines.base import Scores
from mteb_vllm.errors import DataError, NonFiniteError
from mteb_vllm.inference.encoding import encode_texts, loader_texts
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.util.setting_names import SettingNames


def test_each_distinct_text_is_computed_once_even_across_chunks(fake_engine: Any) -> None:
    engine = fake_engine()
    texts = ["a", "b", "a", "c", "b", "d", "a"]
    seen: list[tuple[int, int]] = []
    embeddings, stats = encode_texts(
        engine, texts, len(texts), prefix="p: ", chunk_size=3, progress=lambda done, total: seen.append((done, total))
    )
    assert engine.given == ["p: a", "p: b", "p: c", "p: d"]
    assert embeddings.dtype == np.float32 and embeddings.shape == (7, 384)
    for one, other in ((0, 2), (0, 6), (1, 4)):
        np.testing.assert_array_equal(embeddings[one], embeddings[other])
    assert len({tuple(row) for row in embeddings}) == 4
    assert (stats.texts, stats.computed) == (7, 4)
    assert seen[-1] == (7, 7) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_truncated_texts_are_counted_exactly(fake_engine: Any) -> None:
    engine = fake_engine(max_model_len=10)
    exactly, longer, book = "w " * 8, "w " * 9, "word " * 10_000
    texts = [exactly, longer, longer, book, "short"]
    _, stats = encode_texts(engine, texts, len(texts))
    assert stats.truncated == 3  # the longer one twice, and the book
    assert max(map(len, engine.given)) < 1_000, "a book is shortened before it is tokenised"
    assert stats.tokens == 10 + 10 + 10 + 3


class _Bare:
    """A tokenizer that adds no special tokens."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * len(text.split()) for text in texts]}


def test_a_text_without_tokens_is_zeros_and_reaches_no_engine(
    fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine, "tokenizer", _Bare())
    texts, engine = ["a cat", "", "日本", " \n", "", "\u2003"], fake_engine()
    vectors, work = encode_texts(engine, texts, len(texts), chunk_size=2)
    blank = [text.strip() == "" for text in texts]
    assert (vectors[blank] == 0).all() and (vectors[np.logical_not(blank)] != 0).any(axis=1).all()
    assert engine.given == ["a cat", "日本"] and (work.blank, work.computed, work.texts) == (4, 2, 6)
    engine = fake_engine()
    vectors, work = encode_texts(engine, texts, len(texts), prefix="query: ")
    assert work.blank == 0 and vectors.all(axis=1).any(), "with a prompt every text has tokens"
    vectors, work = encode_texts(fake_engine(), ["", " "], 2)
    assert not vectors.any() and (work.blank, work.computed) == (2, 0)


def test_a_value_that_is_not_a_string_is_refused(fake_engine: Any) -> None:
    with pytest.raises(DataError, match="text 1 of 2 is None"):
        encode_texts(fake_engine(), ["a", None], 2)  # type: ignore[list-item]


def test_pairs_without_tokens_have_the_score_0(fake_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_engine, "tokenizer", _Bare())
    given: list[tuple[str, str]] = []

    def score(self: Any, queries: list[str], documents: list[str], **_: Any) -> Scores:
        given.extend(zip(queries, documents, strict=True))
        return Scores(np.ones(len(queries), dtype=np.float32), [3] * len(queries))

    monkeypatch.setattr(fake_engine, "score", score, raising=False)
    monkeypatch.setattr(fake_engine, "separates_pairs", False, raising=False)
    for activation, one in (("none", 1.0), ("sigmoid", 1 / (1 + np.exp(-1)))):
        given.clear()
        scores, work = score_pairs(fake_engine(), ["a", "", "", ""], ["", "b", "", " "], activation=activation)
        np.testing.assert_allclose(scores, [one, one, 0, 0], rtol=1e-6)
        assert sorted(given) == [("", "b"), ("a", "")] and (work.blank, work.computed) == (2, 2)


def test_nan_names_the_model_the_dtype_and_the_remedy(fake_engine: Any) -> None:
    engine = fake_engine(broken="bad")
    with pytest.raises(
        NonFiniteError, match=r"1 of 2 .*fake/model in float16.*engine.dtype=bfloat16 or engine.dtype=float32"
    ):
        encode_texts(engine, ["good", "bad"], 2)
    engine.spec.names = SettingNames.KEYWORDS
    with pytest.raises(NonFiniteError, match=r"Try dtype='bfloat16' or dtype='float32'\."):
        encode_texts(engine, ["good", "bad"], 2)


def test_a_wrong_number_of_texts_is_an_error(fake_engine: Any) -> None:
    with pytest.raises(ValueError, match="got 2 texts, expected 3"):
        encode_texts(fake_engine(), ["a", "b"], 3)
    with pytest.raises(ValueError, match="more texts than the expected 1"):
        encode_texts(fake_engine(), ["a", "b"], 1)


def test_memory_holds_the_embeddings_and_one_chunk(fake_engine: Any) -> None:
    engine = fake_engine()
    engine.keep = False
    n_texts, chunk_size = 60_000, 8192
    tracemalloc.start()
    encode_texts(engine, (f"text number {at}" for at in range(chunk_size)), chunk_size, chunk_size=chunk_size)
    one_chunk = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    embeddings, _ = encode_texts(engine, (f"text number {at}" for at in range(n_texts)), n_texts, chunk_size=chunk_size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(engine.calls) == 1 + -(-n_texts // chunk_size)
    assert peak <= 1.2 * embeddings.nbytes + one_chunk, (peak / embeddings.nbytes, one_chunk)


def test_a_column_is_read_in_the_loaders_order() -> None:
    from datasets import Dataset
    from torch.utils.data import DataLoader

    texts = [f"text {at}" for at in range(2_500)]
    dataset = Dataset.from_dict({"text": texts, "id": texts})
    for loader in (DataLoader(dataset, batch_size=7), DataLoader(dataset, batch_size=7, collate_fn=_column)):
        stream, n_texts = loader_texts(loader)
        assert n_texts == 2_500 and list(stream) == texts
    shuffled, n_texts = loader_texts(DataLoader(dataset, batch_size=7, shuffle=True))
    assert sorted(shuffled) == sorted(texts) and n_texts == 2_500


def _column(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    return {"text": [row["text"] for row in rows]}


@pytest.mark.vllm
def test_odd_texts_have_a_defined_result(minilm: Any) -> None:
    texts = [
        "",
        "   ",
        "\n\t",
        "a\ud800b",
        "a\ufffdb",
        "\x00\x01",
        "\ud83d\ude00",
        "😀",
        "word " * 20_000,
        "x" * 100_000,
        "ok",
    ]
    embeddings, stats = encode_texts(minilm.engine, texts, len(texts))
    assert embeddings.shape == (len(texts), 384) and np.isfinite(embeddings).all()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(embeddings[3], embeddings[4])  # a lone surrogate becomes U+FFFD
    np.testing.assert_array_equal(embeddings[6], embeddings[7])  # a pair of them is a character
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-6)  # no difference to BERT's tokenizer
    assert stats.truncated == 1  # the book; one word of 100,000 letters is one unknown token
    empty, stats = encode_texts(minilm.engine, [], 0)
    assert empty.shape == (0, 384) and stats.computed == 0


@pytest.mark.vllm
def test_equals_sentence_transformers(minilm: Any, minilm_args: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    from mteb_vllm.tasks.demo import TASKS

    task = TASKS["StdlibDocsRetrieval"]()
    task.load_data()
    corpus = sorted(task.dataset["default"][task.eval_splits[0]]["corpus"]["text"], key=lambda text: (len(text), text))
    # Spread evenly over all lengths, from one word to far beyond the context, plus other scripts and odd spacing.
    step = len(corpus) / 190
    texts = [corpus[int(at * step)] for at in range(190)]
    texts += [
        "naïve café",
        "мама мыла раму",
        "深度学习模型",
        "  two  spaces ",
        "UPPER lower",
        "a" * 600,
        "1 2 3 " * 400,
        "x",
        "🙂🙃",
        "-",
    ]
    texts = list(dict.fromkeys(texts))
    assert len(texts) == 200 and max(len(text) for text in texts) > 2_000
    got, stats = encode_texts(minilm.engine, texts, len(texts))
    reference = SentenceTransformer(minilm_args["path"], device="cpu").encode(texts, batch_size=32)
    cosine = (got * reference).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(reference, axis=1)
    assert stats.truncated > 0
    assert cosine.min() >= 0.99999, texts[int(cosine.argmin())][:200]
