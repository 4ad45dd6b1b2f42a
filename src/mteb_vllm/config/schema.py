"""The schema of the configuration as dataclasses, and composition from `conf/`.

Hydra composes, `parse` turns the result into a `RunConfig`; from there on no `DictConfig` is used. The keys of `engine` and
`prompts` are open here: they depend on the installed vLLM and mteb, and `preflight` checks them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.util.masking import watch_environment
from mteb_vllm.util.shell import shown, suggest, unquoted
from mteb_vllm.util.type_names import wrong_type

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

CONFIG_NAME = "config"

# Prefixes of classes that a configuration may name. Any other `_target_` is an error and is never imported.
TARGETS = ("mteb_vllm.pipelines.",)

T = TypeVar("T")


class _OneOrMore:
    # Imports of pydantic are local, since --help does not need it.
    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def listed(value: Any) -> Any:
            return [value] if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(listed, handler(source))


class _Words:
    """The kind of a value, for the reference of the configuration, which is more precise than its type."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __get_pydantic_json_schema__(
        self, source: object, handler: Callable[[object], dict[str, object]]
    ) -> dict[str, object]:
        return {**handler(source), "words": self._words}


Names = Annotated[list[str], _OneOrMore]
PathName = Annotated[str, _Words("path")]
Paths = Annotated[Names, _Words("path or pattern, or list of them")]


class _LineBreaks:
    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(with_line_breaks, handler(source))


# Texts passed to a model, alone or in a dict. They allow \n for a line break, which is hard to type in a shell.
Text = Annotated[str, _LineBreaks]
TextsByKey = Annotated[dict[str, Any], _LineBreaks]


def with_line_breaks(value: Any) -> Any:
    r"""Return a text, or a dict of texts, with `\n` as a line break and `\\n` as a backslash and an n."""
    if isinstance(value, Mapping):
        return {key: with_line_breaks(item) for key, item in value.items()}
    return (
        re.sub(r"\\(\\n|n)", lambda found: "\n" if found[1] == "n" else found[1], value)
        if isinstance(value, str)
        else value
    )


class _Valid:
    """Constraints on a value beyond its type: the name of a schema function of pydantic-core, and its arguments."""

    def __init__(self, schema: str, **limits: Any) -> None:
        self._schema, self._limits = schema, limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return getattr(core_schema, self._schema)(**self._limits)


Positive = Annotated[float, _Valid("float_schema", gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, _Valid("int_schema", gt=0)]
NotNegativeInt = Annotated[int, _Valid("int_schema", ge=0)]
Cosine = Annotated[float, _Valid("float_schema", ge=-1, le=1, allow_inf_nan=False)]
Share = Annotated[float, _Valid("float_schema", ge=0, le=1, allow_inf_nan=False)]
# Counts and times have an upper limit, since larger values are surely unintended.
Count = Annotated[int, _Valid("int_schema", gt=0, le=10_000_000)]
# Sigma of a lognormal distribution; beyond the limit a single text would hold nearly all tokens.
Spread = Annotated[float, _Valid("float_schema", ge=0, le=10, allow_inf_nan=False)]
Seconds = Annotated[float, _Valid("float_schema", gt=0, le=86_400, allow_inf_nan=False)]
NotNegative = Annotated[float, _Valid("float_schema", ge=0, allow_inf_nan=False)]
# A name that may look like a number.
Name = Annotated[str, _Valid("str_schema", coerce_numbers_to_str=True)]


class _Strict:
    # Unknown keys are errors everywhere.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - the form that pydantic requires


@dataclass(frozen=True, kw_only=True)
class InstructionConfig(_Strict):
    """The template that turns a task's instruction into a prefix of its texts.

    Attributes:
        from_model: Whether the model's recipe supplies the values that are null here.
        template: A text with `{instruction}`, or the import path of a callable `(instruction, prompt_type) -> str`.
            Null: no instructions.
        apply_to_documents: Whether documents get an instruction too. Null: yes.
    """

    from_model: bool = False
    template: Text | None = None
    apply_to_documents: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreTemplateConfig(_Strict):
    """The template that renders a query-document pair for a reranker; see `conf/score_template/`.

    Attributes:
        from_model: Whether the model's recipe supplies the values that are null here.
        template: A Jinja template; `messages` has one message of the role `query` and one of the role `document`.
        file: A file with such a template: a path, or the name of a shipped one.
        query_prefix: Text before each query.
        document_prefix: Text before each document.
        activation: The function applied to the logit; null: as in the model's files.
    """

    from_model: bool = False
    template: Annotated[str, _Words("Jinja template")] | None = None
    file: Annotated[str, _Words("path or file name")] | None = None
    query_prefix: Text | None = None
    document_prefix: Text | None = None
    activation: Literal["sigmoid", "none"] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Strict):
    """One model's complete recipe; see `conf/model/`."""

    name: str | None = None
    revision: str | None = None
    path: PathName | None = None
    package: Annotated[str, _Words("module/folder")] | None = None
    kind: Literal["encoder", "cross_encoder"] = "encoder"
    prompts: Annotated[dict[str, str | None], _LineBreaks] | None = None
    instruction: InstructionConfig | None = None
    score_template: ScoreTemplateConfig | None = None
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TasksConfig(_Strict):
    """The selection of MTEB tasks, splits and subsets; see `conf/tasks/`."""

    names: Annotated[Names, _Words("name of a task, or list of names")] | None = None
    benchmark: Annotated[str, _Words("name of a benchmark")] | None = None
    types: Annotated[Names, _Words("task type, or list of types")] | None = None
    languages: Annotated[Names, _Words("language code (eng, eng-Latn), or list of codes")] | None = None
    splits: Annotated[Names, _Words("name of a split, or list of names")] | None = None
    subsets: Annotated[Names, _Words("name of a subset, or list of names")] | None = None


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(_Strict):
    """Where results are stored and when they are reused; see `conf/config.yaml`."""

    dir: PathName = "outputs"
    reuse: Literal["exact", "none"] = "exact"


@dataclass(frozen=True, kw_only=True)
class EmbeddingCacheConfig(_Strict):
    """Whether embeddings are cached on disk, and how much space they may take; see `conf/config.yaml`."""

    use: Literal["auto", "always", "never"] = "auto"
    dir: PathName | None = None
    max_bytes: PositiveInt = 10_000_000_000


@dataclass(frozen=True, kw_only=True)
class ReportConfig(_Strict):
    """How runs are compared; see `conf/config.yaml`."""

    baseline: Name | None = None
    epsilon: NotNegative = 0.001
    objective: Literal["mean", "texts_per_second"] | None = None
    score_tolerance: NotNegative | None = None


@dataclass(frozen=True, kw_only=True)
class LauncherConfig(_Strict):
    """How the points of a sweep are run; see `conf/hydra/launcher/engine_grouped.yaml`."""

    point_timeout: Positive | None = None
    max_leftover_mb: Positive = 2000
    devices: Annotated[list[Name], _OneOrMore, _Words("`auto`, number of a GPU, or list of numbers")] | None = None
    workers: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(_Strict):
    """How the points of a sweep are run as jobs of SLURM; see `conf/hydra/launcher/slurm.yaml`."""

    partition: str | None = None
    account: Name | None = None
    time: PositiveInt = 60
    gpus: NotNegativeInt | None = None
    cpus: PositiveInt | None = None
    memory: Name | None = None
    modules: Annotated[Names, _Words("name of a module, or list of names")] = field(default_factory=list)
    setup: Annotated[Names, _Words("shell command, or list of commands")] = field(default_factory=list)
    max_jobs: PositiveInt | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    point_timeout: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class SearchConfig(_Strict):
    """The settings of Hydra's sweeper `optuna`.

    Settings that must be None are not supported.

    Attributes:
        search_space: Optuna's older form of `params`.
        custom_search_space: The import path of a function: it would run any code.
        storage: The database of a study: Optuna 2 cannot create one with SQLAlchemy 2.
        study_name: The name of a study in the database.
    """

    n_trials: PositiveInt = 20
    n_jobs: PositiveInt = 2
    direction: Any = "maximize"
    storage: None = None
    study_name: None = None
    max_failure_rate: Share = 0.0
    sampler: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] | None = None
    search_space: None = None
    custom_search_space: None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Strict):
    """The complete configuration of one run."""

    model: ModelConfig
    engine: dict[str, Any]
    prompts: TextsByKey
    instruction: InstructionConfig
    score_template: ScoreTemplateConfig
    tasks: TasksConfig
    pipeline: dict[str, Any]
    results: ResultsConfig
    embedding_cache: EmbeddingCacheConfig = field(default_factory=EmbeddingCacheConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    runs: Paths | None = None
    retry_failed: bool = True
    dry_run: bool = False
    experiment: str | None = None
    allowed_targets: Annotated[Names, _Words("import prefix, or list of prefixes")] | None = None


def conf_dir() -> Path:
    """Return the folder of the shipped configuration: inside the installed package, or at the top of a checkout.

    Raises:
        FileNotFoundError: if there is none.
    """
    here = Path(__file__).resolve().parent
    for candidate in (here.parent / "conf", here.parents[2] / "conf"):
        if (candidate / f"{CONFIG_NAME}.yaml").is_file():
            return candidate
    raise FileNotFoundError(
        f"mteb-vllm was installed without its configuration: there is no {CONFIG_NAME}.yaml near {here}"
    )


@contextmanager
def composer(config_dir: str | None = None) -> Iterator[None]:
    """Initialise Hydra with `conf/` and a user's own folder, for the functions below.

    Args:
        config_dir: The user's folder of configuration files; None for none.

    Raises:
        ConfigError: if there is no such folder.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    check_working_folder()
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        if not isinstance(config_dir, (str, Path)):
            raise ConfigError([Mistake("config_dir", "must be a path", value=f"{config_dir}")])
        folder = Path(config_dir).resolve()
        if not (str(config_dir).strip() and folder.is_dir()):
            name = str(config_dir) or "''"
            raise ConfigError([Mistake(f"--config-dir {name}", "there is no such folder")])
        # Same position as in `hydra.main`: after our own files, before the schemas, which must stay last.
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    # A notebook or another Hydra application may have initialised Hydra already: its state is restored afterwards.
    version.setbase("1.3")
    watch_environment()
    from mteb_vllm.config.limits import bounded_files

    outer = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = None
    try:
        Hydra.create_main_hydra2("mteb_vllm", search_path)
        with bounded_files():
            yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer


def check_working_folder() -> None:
    """Check that the working directory exists: almost every call of Hydra's and of ours needs it.

    Raises:
        ConfigError: if it has been deleted.
    """
    try:
        Path.cwd()
    except OSError:
        way = "Change to a folder that exists: cd ..."
        raise ConfigError([Mistake("working directory", "has been deleted", way, code="missing")]) from None


def group_options(group: str, overrides: Sequence[str] = ()) -> list[str]:
    """Return the names of a config group's files that may be chosen; call it inside `composer`.

    Args:
        group: The group, as `model` or `hydra/launcher`.
        overrides: Overrides; a `hydra.searchpath` among them is searched as well.
    """
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    found = loader.get_group_options(group, config_name=CONFIG_NAME, overrides=list(overrides))
    return [name for name in found if is_choice(name)]


def is_choice(name: str) -> bool:
    """Return whether a file of a group may be chosen, by its name: `fields` holds the defaults that its files extend."""
    return name != "fields" and not name.startswith("_")


def load_file(path: str) -> dict[str, Any]:
    """Return the content of one file of a group, as `model/e5_small`; call it inside `composer`.

    It is empty if there is no such file, or if it cannot be read: composing it reports the reason.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    loader: Any = GlobalHydra.instance().config_loader()
    try:
        loaded = loader.repository.load_config(path)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError):
        return {}
    content = OmegaConf.to_container(loaded.config) if loaded is not None else {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose one configuration, with Hydra's own settings under `hydra`; call it inside `composer`."""
    from hydra import compose

    return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def quoted(key: str, value: str) -> str:
    """Return advice on quoting a string such that neither the shell nor Hydra changes it."""
    return f"Quote strings for Hydra and for the shell: {suggest(key, unquoted(value))}"


def compose_run(overrides: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """Compose and parse the configuration of one run, without checking whether it can be run.

    Args:
        overrides: The overrides.
        config_dir: The user's folder of configuration files.

    Raises:
        ConfigError: if a key is unknown or a value has a wrong type.
        HydraException: if it cannot be composed.
    """
    from omegaconf import OmegaConf

    with composer(config_dir):
        composed = compose_config(overrides)
        own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        plain: Any = OmegaConf.to_container(own, resolve=True)
    return parse(plain)


def parse(config: Mapping[str, Any]) -> RunConfig:
    """Return a composed configuration (plain containers, without `hydra`) as a `RunConfig`.

    Raises:
        ConfigError: with every unknown key and every value of a wrong type.
    """
    return build(RunConfig, config)


def parse_what_fits(config: Mapping[str, Any]) -> tuple[RunConfig | None, list[Mistake]]:
    """Parse a composed configuration without its invalid parts, so that the rest can be checked as well.

    Returns:
        config: The configuration without the invalid values; None if the rest cannot be parsed either.
        mistakes: The errors in the values left out.
    """
    try:
        return parse(config), []
    except ConfigError as error:
        rest = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
        for mistake in error.mistakes:
            section, _, field_ = mistake.key.partition(".")
            if field_:
                rest[section].pop(field_.partition(".")[0], None)
            elif section in _keys(RunConfig, []):
                rest[section] = {} if section != "experiment" else None
            else:
                del rest[section]
        try:
            return parse(rest), list(error.mistakes)
        except ConfigError:
            return None, list(error.mistakes)


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from plain values, checking every key and type.

    Args:
        cls: A dataclass.
        values: The values of a YAML file.
        where: The dotted path of these values in the configuration, for messages.

    Raises:
        ConfigError: with every unknown key and every value of a wrong type.
    """
    from pydantic import ValidationError

    # pydantic ignores unknown keys of a class that does not forbid them, and pipeline classes need not know about pydantic.
    known = _keys(cls, [])
    prefix = f"{where}." if where else ""
    mistakes = [_no_such_key(f"{prefix}{key}", known) for key in values if key not in known]
    try:
        made: T = _adapter(cast(Any, cls)).validate_python({key: values[key] for key in values if key in known})
    except ValidationError as error:
        mistakes += [_mistake(cls, item, prefix) for item in error.errors()]
    if mistakes:
        raise ConfigError(mistakes)
    return made


def _mistake(cls: Any, item: Any, prefix: str) -> Mistake:
    """Return a validation error of pydantic's as a `Mistake`."""
    from mteb_vllm.util.suggestions import nearest

    # The location also contains the names of validator functions, which are not keys of the configuration.
    path = [str(part) for part in item["loc"] if not str(part).startswith("function-")]
    dotted, value = prefix + ".".join(path), item["input"]
    if item["type"] == "unexpected_keyword_argument":
        return _no_such_key(dotted, _keys(cls, path[:-1]))
    if item["type"] == "missing":
        return Mistake(dotted, "a value is needed", code="missing")
    if item["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        near = tuple(suggest(dotted, choice) for choice in nearest(str(value), choices))
        allowed = f"Allowed: {', '.join(choices)}."
        return Mistake(dotted, "is not a valid value", allowed, near, value=shown(value), code="unknown_choice")
    way, near = "", ()
    if item["type"].startswith("bool_"):
        near = tuple(suggest(dotted, word == "true") for word in nearest(str(value), ("true", "false")))
        way = "Allowed: true, false."
    elif item["type"] == "string_type" and isinstance(value, (int, float)):
        way = quoted(dotted, shown(value))
    return Mistake(dotted, _problem(item), way, near, value=shown(value))


# The types of values by the first words of pydantic's errors, and what its limits mean.
_TYPES = {"bool": bool, "int": int, "float": float, "string": str, "list": list, "dict": dict, "dataclass": dict}
_LIMITS = {
    "greater_than": ("more than {}", "gt"), "greater_than_equal": ("{} or more", "ge"),
    "less_than": ("less than {}", "lt"), "less_than_equal": ("{} or less", "le"),
}  # fmt: skip


def _problem(item: ErrorDetails) -> str:
    """Return the mistake in a value, from a validation error of pydantic's."""
    kind, first = item["type"], item["type"].partition("_")[0]
    if kind in _LIMITS:
        text, name = _LIMITS[kind]
        bound = f"{item['ctx'][name]:,}".removesuffix(".0")
        return f"must be {text.format(bound)}"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "none_required":
        return "is not supported: leave it null"
    if first in _TYPES:
        return wrong_type(_TYPES[first], item["input"])
    return str(item["msg"][0].lower() + item["msg"][1:])


def _no_such_key(dotted: str, known: Sequence[str]) -> Mistake:
    from mteb_vllm.util.suggestions import nearest

    parent, dot, name = dotted.rpartition(".")
    near = tuple(f"{parent}{dot}{key}" for key in nearest(name, known))
    return Mistake(dotted, "there is no such key", f"Known keys: {', '.join(known)}.", near, code="unknown_key")


def _keys(cls: Any, path: Sequence[str]) -> list[str]:
    """Return the field names of the dataclass at `path` below `cls`; empty if there is no dataclass."""
    import typing

    for part in path:
        annotation = typing.get_type_hints(cls).get(part) if is_dataclass(cls) else None
        cls = next((arg for arg in (annotation, *typing.get_args(annotation)) if is_dataclass(arg)), None)
    return [item.name for item in fields(cls)] if is_dataclass(cls) else []


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
