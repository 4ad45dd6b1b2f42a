"""Rerankers on real vLLM, score by score against independent references; small models of the real architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest

import engine_inputs
import rerankers
from mteb_vllm import ModelError, VllmCrossEncoderWrapper
from mteb_vllm.config.schema import ScoreTemplateConfig
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.score_templates import resolve
from mteb_vllm.wrappers import VllmEncoderReranker

pytestmark = pytest.mark.vllm

CONTEXT = 192
INSTRUCTION = mteb.get_task("SciFact").metadata.prompt["query"]
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "method": "from_2_way_softmax",
    },
    "gemma": {
        "architectures": ["GemmaForSequenceClassification"],
        "classifier_from_token": ["Yes"],
        "method": "no_post_processing",
    },
}
TEMPLATES = {"qwen3": "qwen3_reranker.jinja", "gemma": "bge_reranker_gemma.jinja"}


def pairs() -> tuple[list[str], list[str]]:
    """Forty pairs of real text, some far longer than the context; four documents for each query."""
    texts = rerankers.texts()
    queries = [text.split("\n")[0] for text in texts[:10] for _ in range(4)]
    documents = texts[100:140]
    documents[3], documents[7] = " ".join(texts[:60]), texts[5] * 30
    documents[13], queries[21] = "", ""
    documents[11] = "naïve café \U0001f600 日本語のテキスト " * 40
    return queries, documents


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., VllmCrossEncoderWrapper]]:
    """Opens a small reranker by its name, with the settings of its recipe in conf/."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("rerankers")

    def open_(name: str, **options: Any) -> VllmCrossEncoderWrapper:
        if name not in made:
            made[name] = rerankers.small(name, folder, CONTEXT)
        if name in LANGUAGE_MODELS:
            template = resolve(ScoreTemplateConfig(file=TEMPLATES[name]), None)
            options = {"hf_overrides": LANGUAGE_MODELS[name], "score_template": template.text, **options}
        return VllmCrossEncoderWrapper(f"test/{name}", path=str(made[name]), dtype="float32", **options)

    yield open_


@pytest.mark.parametrize("name", ["bert", "roberta", pytest.param("modernbert", marks=pytest.mark.slow)])
def test_cross_encoders_score_as_sentence_transformers_does(
    opened: Callable[..., VllmCrossEncoderWrapper], name: str
) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    queries, documents = pairs()
    with opened(name, activation="none") as reranker:
        scores = rerankers.predict(reranker, queries, documents)
        assert reranker.engine.max_model_len == CONTEXT  # for RoBERTa too, whose config.json has more positions
        work = reranker.work
        location = reranker.spec.model.location
    reference = CrossEncoder(location, device="cpu", activation_fn=torch.nn.Identity())
    expected = []
    for query, document in zip(queries, documents, strict=True):
        # Tokenised as in sentence-transformers, except that it would truncate the longer of the two texts.
        encoded = reference.tokenizer(
            [query], [document], truncation="only_second", max_length=CONTEXT, return_tensors="pt"
        )
        with torch.no_grad():
            expected.append(float(reference.model(**encoded).logits))
    short = [at for at, document in enumerate(documents) if len(document.split()) < 60]
    ready = reference.predict([(queries[at], documents[at]) for at in short], show_progress_bar=False)
    assert np.std(expected) > 0.05, "equal scores would prove nothing"
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    np.testing.assert_allclose(scores[short], ready, atol=1e-4)
    assert work.truncated >= 3 and work.truncated_queries == 0


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma", marks=pytest.mark.slow)])
def test_language_models_score_by_the_logits_of_their_answer(
    opened: Callable[..., VllmCrossEncoderWrapper], name: str
) -> None:
    """Compare with plain transformers and a prompt written out here, as the models' authors publish it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    queries, documents = pairs()
    with opened(name, activation="none") as reranker:
        scores = rerankers.predict(reranker, queries, documents)
        location, work = reranker.spec.model.location, reranker.work
        example = reranker.applied["SciFact", "pair"]
        cached = reranker.engine.resolved["enable_prefix_caching"]
    tokenizer = AutoTokenizer.from_pretrained(location)
    model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    answer = tokenizer.convert_tokens_to_ids
    expected = []
    for query, document in zip(queries, documents, strict=True):
        if name == "qwen3":
            head = (
                "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
                'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
                f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>:"
            )
            tail = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        else:
            head = f"A: {query}\nB:"
            tail = (
                "\nGiven a query A and a passage B, determine whether the passage contains an answer to the query by "
                "providing a prediction of either 'Yes' or 'No'."
            )
        first = tokenizer(head)["input_ids"]
        last = tokenizer(tail, add_special_tokens=False)["input_ids"]
        middle = tokenizer(f" {document}", add_special_tokens=False)["input_ids"][: CONTEXT - len(first) - len(last)]
        with torch.no_grad():
            logits = model(torch.tensor([first + middle + last])).logits[0, -1].double()
        score = logits[answer("yes")] - logits[answer("no")] if name == "qwen3" else logits[answer("Yes")]
        expected.append(float(score))
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert work.truncated >= 3 and cached
    if name == "qwen3":
        assert example["key"] == "task" and INSTRUCTION in example["example"]


def test_probabilities_are_the_sigmoid_of_logits(opened: Callable[..., VllmCrossEncoderWrapper]) -> None:
    queries, documents = pairs()
    scores = {}
    for activation in ("none", "sigmoid", None):
        with opened("qwen3", activation=activation) as reranker:
            scores[activation] = rerankers.predict(reranker, queries, documents)
    np.testing.assert_allclose(scores["sigmoid"], 1 / (1 + np.exp(-scores["none"])), atol=1e-6)
    np.testing.assert_allclose(scores[None], scores["sigmoid"], atol=1e-5)  # Qwen3-Reranker's: P(yes) of yes and no


def test_each_distinct_pair_reaches_the_engine_once_and_those_of_a_query_are_consecutive(
    opened: Callable[..., VllmCrossEncoderWrapper],
) -> None:
    # Only full blocks are shared, and by default a block on a CPU has 128 tokens.
    with opened("qwen3", block_size=32, max_num_seqs=8) as reranker:
        queries = ["a", "b", "a", "b", "a", "c", "a"]
        documents = ["1", "1", "2", "2", "1", "1", "3"]
        with engine_inputs.recorded(reranker.engine) as given:
            scores = rerankers.predict(reranker, queries, documents)
        template = reranker.template.with_instruction(reranker.applied["SciFact", "pair"]["prefix"])
        tokenizer = reranker.llm.get_tokenizer()
        expected = [
            [{"role": "query", "content": query}, {"role": "document", "content": document}]
            for query, document in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2"), ("c", "1")]
        ]
        rendered = [tokenizer.apply_chat_template(pair, chat_template=template, tokenize=False) for pair in expected]
        assert given == [tokenizer(text)["input_ids"] for text in rendered]
        assert scores[0] == scores[4] and len(set(scores.tolist())) == 6
        assert (reranker.work.texts, reranker.work.computed) == (7, 6)
        many = [f"{at} {text}" for at, text in enumerate(rerankers.texts()[:64])]
        rerankers.predict(reranker, ["how to sort a list"] * 64, many)
        assert reranker.work.cached_tokens > 32 * 32, "pairs of a query share the prefix before the document"
        odd, _ = score_pairs(reranker.engine, ["lone \ud800 surrogate", ""], ["", "text"])
        assert np.isfinite(odd).all() and rerankers.predict(reranker, [], []).shape == (0,)


@pytest.mark.parametrize("name", ["bert", "qwen3", "gemma"])
def test_the_query_and_the_templates_tail_survive(opened: Callable[..., VllmCrossEncoderWrapper], name: str) -> None:
    """The tokens of a pair with a document that is far too long end like the template, and contain the query."""
    with opened(name) as reranker:
        with engine_inputs.recorded(reranker.engine) as given:
            rerankers.predict(reranker, ["return the sorted list"], ["The number of items. " * 500])
        (tokens,) = given
        assert len(tokens) == CONTEXT
        text = reranker.llm.get_tokenizer().decode(tokens)
        assert "return the sorted list" in text
        if name == "qwen3":
            assert text.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        elif name == "gemma":
            assert text.endswith("a prediction of either 'Yes' or 'No'.")
        assert (reranker.work.truncated, reranker.work.truncated_queries) == (1, 0)


@pytest.mark.parametrize("name", ["bert", "gemma"])
def test_a_query_longer_than_the_context_is_cut_and_counted(
    opened: Callable[..., VllmCrossEncoderWrapper], name: str
) -> None:
    with opened(name) as reranker:
        long = "return the sorted list of items " * 200
        documents = ["a list", "a dictionary of words"]
        scores = rerankers.predict(reranker, [long, long, "short"], [*documents, "a list"])
        assert np.isfinite(scores).all() and scores[0] != scores[1], "the document still has an effect"
        assert (reranker.work.truncated, reranker.work.truncated_queries) == (0, 2)


def test_a_model_with_two_labels_is_refused(opened: Callable[..., VllmCrossEncoderWrapper]) -> None:
    with pytest.raises(ModelError, match="outputs 2 scores per pair"):
        opened("two_labels")


def test_prefixes_and_instructions_from_python(opened: Callable[..., VllmCrossEncoderWrapper]) -> None:
    with pytest.raises(ValueError, match="no score_template"):
        opened("bert", prompt_dict={"query": "Find it"})
    with opened("qwen3", prompt_dict={"SciFact": 'Say "ja"\nor {{ nein }} 😀'}, query_prefix="Q ") as reranker:
        rerankers.predict(reranker, ["one"], ["two"])
        applied = reranker.applied["SciFact", "pair"]
        assert applied["key"] == "SciFact"
        assert '<Instruct>: Say "ja"\nor {{ nein }} 😀\n<Query>: Q one\n<Document>: two<|im_end|>' in applied["example"]
        template = reranker.template.with_instruction(applied["prefix"])
        messages = [{"role": "query", "content": "Q one"}, {"role": "document", "content": "two"}]
        rendered = reranker.llm.get_tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False)
        assert rendered == applied["example"], "the recorded example is vLLM's rendering"


def test_cosine_scores_are_those_of_the_embeddings(minilm: Any, minilm_args: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    queries, documents = pairs()
    reranker = VllmEncoderReranker.from_spec(minilm.spec, minilm.prompts)
    scores = rerankers.predict(reranker, [*queries, queries[0]], [*documents, documents[0]])
    model = SentenceTransformer(minilm_args["path"], device="cpu")
    one, other = (model.encode(side, normalize_embeddings=True) for side in (queries, documents))
    np.testing.assert_allclose(scores[:-1], (one * other).sum(1), atol=1e-4)
    assert scores[-1] == scores[0]
    assert reranker.work.computed == len(set(queries)) + len(set(documents)), "each distinct text once"


def test_an_engine_opens_after_numba_was_loaded(opened: Callable[..., VllmCrossEncoderWrapper]) -> None:
    import numba  # noqa: F401

    with opened("bert") as reranker:
        assert np.isfinite(rerankers.predict(reranker, ["a"], ["b"])).all()
