"""The wrappers on real vLLM: the exact inputs that it gets, and the life cycle of wrappers and engines."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.types import PromptType

import engine_inputs
from mteb_vllm import VllmCrossEncoderWrapper, VllmEncoderWrapper
from mteb_vllm.engines.base import open_engine
from mteb_vllm.inference.token_feed import TokenBatch, TokenFeed
from mteb_vllm.models.prompts import Prompts, resolve

pytestmark = pytest.mark.vllm


@pytest.fixture
def handed(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every text whose tokens vLLM's core gets from now on; the engine still computes."""
    known: dict[tuple[int, ...], str] = {}
    tokenize = TokenFeed.tokenize

    def spy(self: TokenFeed, texts: Sequence[str]) -> TokenBatch:
        batch = tokenize(self, texts)
        known.update(zip(map(tuple, batch.ids), texts, strict=True))
        return batch

    monkeypatch.setattr(TokenFeed, "tokenize", spy)
    with engine_inputs.recorded(minilm.engine) as ids:
        yield _Texts(ids, known)  # type: ignore[misc]


class _Texts:
    """The texts of recorded token ids."""

    def __init__(self, ids: list[list[int]], known: dict[tuple[int, ...], str]) -> None:
        self._ids, self._known = ids, known

    def __iter__(self) -> Iterator[str]:
        return (self._known[tuple(one)] for one in self._ids)

    def __eq__(self, other: object) -> bool:
        return list(self) == other

    def clear(self) -> None:
        self._ids.clear()


@pytest.fixture
def given(minilm_args: dict[str, Any], handed: list[str]) -> Callable[..., list[str]]:
    """Returns the texts that the engine gets for one text of a task, from a wrapper with the given arguments."""

    def of(task: str, side: PromptType | None, **kwargs: Any) -> list[str]:
        handed.clear()
        wrapper = VllmEncoderWrapper(**minilm_args, **kwargs)
        encode(wrapper, ["text"], task, side)
        return list(handed)

    return of


def encode(wrapper: Any, texts: list[str], task: str = "SciFact", side: PromptType | None = PromptType.query) -> Any:
    from datasets import Dataset
    from torch.utils.data import DataLoader

    metadata = mteb.get_task(task).metadata
    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)
    return wrapper.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=side)


LEVELS = {
    "SciFact-query": "1> ",
    "SciFact": "2> ",
    "Retrieval-query": "3> ",
    "Retrieval": "4> ",
    "query": "5> ",
}


@pytest.mark.parametrize("level", range(5))
def test_static_prompts_reach_the_engine_at_all_five_levels(given: Callable[..., list[str]], level: int) -> None:
    prompts = dict(list(LEVELS.items())[level:])
    assert given("SciFact", PromptType.query, prompt_dict=prompts) == [f"{level + 1}> text"]


def test_documents_and_tasks_without_sides(given: Callable[..., list[str]]) -> None:
    prompts = {"query": "q: ", "document": "d: ", "STS": "s: ", "SciFact-document": "D: "}
    assert given("SciFact", PromptType.document, prompt_dict=prompts) == ["D: text"]
    assert given("NFCorpus", PromptType.document, prompt_dict=prompts) == ["d: text"]
    assert given("STS12", None, prompt_dict=prompts) == ["s: text"]
    assert given("Banking77Classification", None, prompt_dict=prompts) == ["text"]


def test_instruction_template_with_and_without_a_prompt_dict(given: Callable[..., list[str]]) -> None:
    own = mteb.get_task("SciFact").metadata.prompt["query"]
    with_template = {"use_instructions": True, "instruction_template": "Instruct: {instruction}\nQuery:"}
    assert own
    assert given("SciFact", PromptType.query, **with_template) == [f"Instruct: {own}\nQuery:text"]
    assert given("SciFact", PromptType.query, **with_template, prompt_dict={"SciFact": "Check it"}) == [
        "Instruct: Check it\nQuery:text"
    ]
    documents = {**with_template, "prompt_dict": {"SciFact": "Check it"}}
    assert given("SciFact", PromptType.document, **documents) == ["Instruct: Check it\nQuery:text"]
    assert given("SciFact", PromptType.document, **documents, apply_instruction_to_documents=False) == ["text"]


def test_a_callable_template(given: Callable[..., list[str]]) -> None:
    def template(instruction: str, prompt_type: PromptType | None) -> str:
        return f"<{prompt_type.value if prompt_type else '-'}|{instruction}> "

    kwargs = {
        "use_instructions": True,
        "instruction_template": template,
        "prompt_dict": {"SciFact": "Check", "STS": "Alike"},
    }
    assert given("SciFact", PromptType.query, **kwargs) == ["<query|Check> text"]
    assert given("SciFact", PromptType.document, **kwargs) == ["<document|Check> text"]
    assert given("STS12", None, **kwargs) == ["<-|Alike> text"]


def test_prompts_of_the_registry_and_none_against_a_recipe(minilm: Any, handed: list[str]) -> None:
    from mteb_vllm.catalogue import mteb_catalogue
    from mteb_vllm.config.schema import InstructionConfig
    from mteb_vllm.preflight.command import check

    registry = mteb_catalogue().models["intfloat/multilingual-e5-small"]
    other_sources: dict[str, Any] = {"recipe_instruction": None, "registry": registry, "sentence_transformers": {}}
    recipe = {"query": "recipe query: ", "STS": "recipe sts: "}
    cases: list[tuple[str, Any, str, Any, str]] = [
        ("prompts=auto", None, "SciFact", PromptType.query, "query: text"),
        ("prompts=auto", None, "SciFact", PromptType.document, "passage: text"),
        ("prompts=auto", recipe, "STS12", None, "recipe sts: text"),
        ("prompts=none", recipe, "STS12", None, "text"),
        ("prompts=none", recipe, "SciFact", PromptType.query, "text"),
        ("prompts=e5", recipe, "STS12", None, "query: text"),
    ]
    for choice, own, task, side, expected in cases:
        (point,) = check([choice, f"tasks.names=[{task}]"])
        prompts = resolve(point.config.prompts, InstructionConfig(), recipe=own, **other_sources)
        handed.clear()
        encode(VllmEncoderWrapper.from_spec(minilm.spec, prompts), ["text"], task, side)
        assert handed == [expected], (choice, own, task, side)


def test_applied_prompts_are_kept_for_the_record(minilm: Any) -> None:
    wrapper = VllmEncoderWrapper.from_spec(minilm.spec, Prompts({"query": "q: "}))
    encode(wrapper, ["first text", "second"])
    assert wrapper.applied["SciFact", "query"] == {"prefix": "q: ", "key": "query", "example": "q: first text"}


def test_mistakes_are_value_errors_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="To use instructions, an instruction_template must be provided"):
        VllmEncoderWrapper("no/such", use_instructions=True)
    with pytest.raises(ValueError, match=r"must contain the string '\{instruction\}'"):
        VllmEncoderWrapper("no/such", use_instructions=True, instruction_template="nowhere")


def test_different_settings_have_different_metadata(minilm: Any, minilm_args: dict[str, Any]) -> None:
    plain = minilm.mteb_model_meta
    prompted = VllmEncoderWrapper(**minilm_args, prompt_dict={"query": "q: "}).mteb_model_meta
    assert plain.name == prompted.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert plain.revision.startswith("local-")
    assert plain.experiment_name != prompted.experiment_name
    again = VllmEncoderWrapper(**minilm_args).mteb_model_meta
    assert again.experiment_name == plain.experiment_name
    # mteb maps several characters to one in folder names; prompts that differ only in those must not collide.
    pair = [VllmEncoderWrapper(**minilm_args, prompt_dict={"query": text}).mteb_model_meta for text in ("a/b", "a:b")]
    assert pair[0].experiment_name != pair[1].experiment_name


def test_protocols_of_mteb(minilm: Any) -> None:
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(minilm, EncoderProtocol)
    empty = encode(minilm, [])
    assert empty.shape == (0, 384)


def test_wrappers_share_an_engine_and_the_last_one_closes_it(minilm: Any, minilm_args: dict[str, Any]) -> None:
    shared = minilm.engine
    with VllmEncoderWrapper(**minilm_args) as same:
        assert same.engine is shared
        first = encode(same, ["text"])
    assert shared.llm is not None, "another wrapper shares it"
    same.cleanup()
    same.__del__()
    with VllmEncoderWrapper(**{**minilm_args, "dtype": "bfloat16"}) as other:
        assert other.engine.dtype == "bfloat16"
        assert shared.llm is None, "never two engines at once"
        mine = other.engine
    assert mine.llm is None, "the last wrapper closes it"
    # A wrapper whose engine was closed by another wrapper opens it again.
    np.testing.assert_array_equal(first, encode(minilm, ["text"]))
    assert open_engine(minilm.spec) is minilm.engine


@pytest.mark.slow
def test_five_lines_without_a_configuration(tmp_path: Path, minilm_args: dict[str, Any]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import mteb
        from mteb_vllm import VllmEncoderWrapper
        from mteb.mocks import mock_tasks
        if __name__ == "__main__":
            model = VllmEncoderWrapper(model={minilm_args["path"]!r})
            tasks = [mock_tasks.MockRetrievalTask(), mock_tasks.MockClassificationTask()]
            results = mteb.evaluate(model, tasks, cache=mteb.ResultCache({str(tmp_path)!r}))
            print([result.get_score() for result in results.task_results])
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].startswith("[")
    stored = [path.name for path in tmp_path.rglob("experiments/settings_*/*.json")]
    assert "MockRetrievalTask.json" in stored


def test_cross_encoder_scores_each_distinct_pair_once(tmp_path: Path, minilm_args: dict[str, Any]) -> None:
    """Compare a one-label head of random weights on MiniLM's body with sentence-transformers' CrossEncoder."""
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    path = str(tmp_path / "cross")
    body = AutoModelForSequenceClassification.from_pretrained(minilm_args["path"], num_labels=1)
    body.classifier.weight.data.normal_(0, 1)  # an untrained head would give nearly equal scores
    body.save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm_args["path"]).save_pretrained(path)
    queries = ["what is a list", "what is a list", "how to sort", "what is a list"]
    documents = ["a mutable sequence", "a mapping", "use sorted()", "a mutable sequence"]
    args = {**minilm_args, "model": "test/cross", "path": path}
    with VllmCrossEncoderWrapper(**args, query_prefix="q: ", document_prefix="d: ") as reranker:
        loaders = [DataLoader(Dataset.from_dict({"text": texts}), batch_size=3) for texts in (queries, documents)]
        metadata = mteb.get_task("SciFact").metadata
        with engine_inputs.recorded(reranker.engine) as given:
            scores = reranker.predict(*loaders, task_metadata=metadata, hf_split="test", hf_subset="default")
    pairs = [(f"q: {query}", f"d: {document}") for query, document in zip(queries, documents, strict=True)]
    assert given == AutoTokenizer.from_pretrained(path)(pairs[:3])["input_ids"]
    reference = CrossEncoder(path, device="cpu").predict(pairs)
    assert scores.shape == (4,) and scores.dtype == np.float32 and scores[0] == scores[3]
    np.testing.assert_allclose(scores, reference, atol=1e-5)
    assert np.ptp(scores) > 1e-3
