"""Which prefix is applied where; the strings that vLLM really gets are in test_wrappers.py."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.config import InstructionConfig
from mteb_vllm.prompts import Prompts, applying_keys, load_template, resolve

TASK = SimpleNamespace(name="SciFact", type="Retrieval", prompt={"query": "Find evidence"})
STS = SimpleNamespace(name="STS12", type="STS", prompt="Retrieve similar texts")
KEYS = ["SciFact-query", "SciFact", "Retrieval-query", "Retrieval", "query", "document", "STS", "SciFact-document"]


def test_precedence_is_mtebs() -> None:
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    for size in range(len(KEYS) + 1):
        for keys in itertools.combinations(KEYS, size):
            prompts = Prompts({key: f"{key}> " for key in keys})
            for task, side in itertools.product((TASK, STS), (PromptType.query, PromptType.document, None)):
                expected: Any = get_prompt_name(dict(prompts.values), task, side)
                assert prompts.prefix(task, side).key == expected, (keys, task.name, side)


def test_instructions_are_mtebs() -> None:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    class Encoder(AbsEncoder):
        def encode(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

    for keys in (
        ["SciFact"],
        ["Retrieval"],
        ["query"],
        ["STS"],
        ["SciFact", "query"],
        ["Retrieval", "query"],
        ["STS12", "STS"],
    ):
        for task, side in ((TASK, PromptType.query), (STS, None)):
            encoder = Encoder()
            encoder.prompts_dict = {key: f"do {key}" for key in keys}
            encoder.instruction_template = "I: {instruction}\n"
            prompts = Prompts(encoder.prompts_dict, template="I: {instruction}\n")
            assert prompts.prefix(task, side).text == encoder.get_task_instruction(task, side), (keys, task.name)


def test_a_tasks_own_instruction_is_used_without_a_prompt_dict() -> None:
    prompts = Prompts(template="I: {instruction}\nQ: ", apply_to_documents=False)
    assert prompts.prefix(TASK, "query").text == "I: Find evidence\nQ: "
    assert prompts.prefix(TASK, "document").text == ""
    assert prompts.prefix(STS).text == "I: Retrieve similar texts\nQ: "
    # The task has no instruction for documents, so none is made up.
    assert Prompts(template="I: {instruction}\n").prefix(TASK, "document").text == ""


def test_a_callable_template_is_called_always() -> None:
    from mteb.types import PromptType

    calls = []

    def template(instruction: str, prompt_type: Any) -> str:
        calls.append((instruction, prompt_type))
        return f"<{instruction}>"

    prompts = Prompts({"SciFact": "check"}, template=template)
    assert prompts.prefix(TASK, "query").text == "<check>"
    assert Prompts(template=template).prefix(TASK, "document").text == "<>"
    assert calls == [("check", PromptType.query), ("", PromptType.document)], (
        "what mteb would give it, also for the audit"
    )


def test_templates_hold_an_instruction_or_lead_to_a_callable() -> None:
    assert load_template("a {instruction} b") == "a {instruction} b"
    assert load_template("textwrap:dedent") == load_template("textwrap.dedent")
    for bad in ("no place for it", "no.such.module:f", "textwrap:nothing", "string:digits"):
        with pytest.raises(ValueError):
            load_template(bad)


def test_keys_that_decide_nothing_are_told() -> None:
    tasks = mteb_catalogue().tasks
    two: list[Any] = [tasks["SciFact"], tasks["STS12"]]
    assert applying_keys(["query", "document", "Clustering"], two) == {"query", "document"}
    assert applying_keys(["query", "SciFact-query"], two) == {"SciFact-query"}
    assert applying_keys(["query"], two[1:]) == set()


def test_sides_are_those_that_mteb_asks_for() -> None:
    tasks = mteb_catalogue().tasks
    assert tasks["SciFact"].sides == tasks["AskUbuntuDupQuestions"].sides == ("query", "document")
    assert tasks["STS12"].sides == tasks["Banking77Classification"].sides == ("",)
    assert set(tasks["TERRa.V2"].sides) == {"query", "document"}, "an asymmetric pair classification"


def test_an_aggregate_is_its_parts() -> None:
    from mteb_vllm.tasks import parts

    catalogue = mteb_catalogue()
    names = [
        task.name for task in parts([catalogue.tasks["CQADupstackRetrieval"], catalogue.tasks["STS12"]], catalogue)
    ]
    assert len(names) == 13 and "CQADupstackAndroidRetrieval" in names and "STS12" in names


AUTO = {"from_model": True, "query": None, "document": None}
NONE = {"query": None, "document": None}
PLAIN = InstructionConfig(from_model=True)


def prompts_of(chosen: dict[str, Any], instruction: InstructionConfig = PLAIN, **model: Any) -> Prompts:
    said: dict[str, Any] = {"recipe": None, "recipe_instruction": None, "registry": None, "sentence_transformers": {}}
    return resolve(chosen, instruction, **{**said, **model})


def test_auto_takes_recipe_then_registry_then_the_models_own_config() -> None:
    own = {"prompts": {"query": "st: ", "document": ""}}
    said = {"recipe": {"query": "recipe: "}, "registry": {"query": "registry: "}, "sentence_transformers": own}
    assert prompts_of(AUTO, **said).values == {"query": "recipe: "}
    assert prompts_of(AUTO, **{**said, "recipe": None}).values == {"query": "registry: "}
    last = prompts_of(AUTO, sentence_transformers=own)
    assert last.values == {"query": "st: "} and "sentence-transformers" in last.source
    assert prompts_of(AUTO).values == {}
    assert prompts_of(AUTO, **{**said, "recipe": {}}).values == {}, "a recipe may say: none"


def test_what_is_chosen_wins() -> None:
    recipe = {"recipe": {"query": "recipe: ", "document": "doc: "}}
    assert prompts_of(NONE, **recipe).values == {}
    assert prompts_of({**AUTO, "query": "mine: "}, **recipe).values == {"query": "mine: ", "document": "doc: "}
    assert prompts_of({**NONE, "query": "mine: "}, **recipe).values == {"query": "mine: "}
    assert prompts_of({**AUTO, "query": ""}, **recipe).values["query"] == "", "an empty text is a prompt, null is none"


def test_whole_prompts_are_not_taken_for_instructions() -> None:
    template = InstructionConfig(template="I: {instruction}")
    own = {"prompts": {"query": "Instruct: do it\nQuery: "}}
    prompts = prompts_of(AUTO, template, registry={"query": "q: "}, sentence_transformers=own)
    assert prompts.values == {}
    assert prompts_of(AUTO, template, recipe={"query": "find it"}).values == {"query": "find it"}


def test_a_recipes_instruction_template() -> None:
    recipe = InstructionConfig(template="R: {instruction}", apply_to_documents=False)
    taken = prompts_of(AUTO, recipe_instruction=recipe)
    assert (taken.template, taken.apply_to_documents) == ("R: {instruction}", False)
    beaten = prompts_of(AUTO, InstructionConfig(), recipe_instruction=recipe)
    assert beaten.template is None


def test_a_models_default_prompt_stands_where_no_key_applies() -> None:
    own = {"prompts": {"query": "q: ", "sts": "s: "}, "default_prompt_name": "sts"}
    prompts = prompts_of(AUTO, sentence_transformers=own)
    assert prompts.prefix(STS).text == "s: "
    assert prompts.prefix(TASK, "query").text == "q: "


def test_documents_of_a_sentence_transformers_model() -> None:
    default = {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}
    prompts = prompts_of(AUTO, sentence_transformers=default)
    assert prompts.prefix(TASK, "document").text == "", "its empty prompt keeps the default one away"
    assert prompts.prefix(STS).text == "q: "
    passage = {"prompts": {"query": "q: ", "passage": "p: "}}
    assert prompts_of(AUTO, sentence_transformers=passage).prefix(TASK, "document").text == "p: "
