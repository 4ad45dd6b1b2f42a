"""What a run is made of: the schema as dataclasses, and composition from `conf/`.

Hydra composes, then `parse` turns the result into a `RunConfig`; past that point no `DictConfig` travels. Keys of
`engine` and `prompts` are open here: what they may be is known by the installed vLLM and mteb, and `preflight` asks those.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from mteb_vllm.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

CONFIG_NAME = "config"

# Which classes a configuration may name. Anything else in a `_target_` is a mistake, never an import.
TARGETS = ("mteb_vllm.pipelines.",)

Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
T = TypeVar("T")


class _Strict:
    # Unknown keys are mistakes everywhere.
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class InstructionConfig(_Strict):
    """The instruction template that a text is read through.

    Attributes:
        from_model: Whether the model's recipe fills in what is null here.
        template: A text with `{instruction}`, or the import path of a callable `(instruction, prompt_type) -> str`.
            Null: no instructions.
        apply_to_documents: Whether documents carry an instruction too. Null: yes.
    """

    from_model: bool = False
    template: str | None = None
    apply_to_documents: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Strict):
    """One model's whole recipe; see `conf/model/`."""

    name: str | None = None
    revision: str | None = None
    path: str | None = None
    package: str | None = None
    kind: Literal["encoder", "cross_encoder"] = "encoder"
    prompts: dict[str, str | None] | None = None
    instruction: InstructionConfig | None = None
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TasksConfig(_Strict):
    """Which MTEB tasks, splits and subsets; see `conf/tasks/`."""

    names: Names | None = None
    benchmark: str | None = None
    types: Names | None = None
    languages: Names | None = None
    splits: Names | None = None
    subsets: Names | None = None


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(_Strict):
    """Where results live, and when they are used again."""

    dir: str = "outputs"
    reuse: Literal["exact", "none"] = "exact"


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Strict):
    """One run, whole and typed."""

    model: ModelConfig
    engine: dict[str, Any]
    prompts: dict[str, Any]
    instruction: InstructionConfig
    tasks: TasksConfig
    pipeline: dict[str, Any]
    results: ResultsConfig
    experiment: str | None = None


def conf_dir() -> Path:
    """The folder of the shipped configuration: inside an installed wheel, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "conf", here.parents[1] / "conf"):
        if (candidate / f"{CONFIG_NAME}.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"mteb-vllm is installed without its configuration: no {CONFIG_NAME}.yaml near {here}")


@contextmanager
def composer(config_dir: str | None = None) -> Iterator[None]:
    """Opens Hydra on `conf/` and, where given, on a user's folder of overlays, for the functions below.

    Raises:
        ConfigError: if there is no such folder.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError([Mistake(f"--config-dir {config_dir}", "there is no such folder")])
        search_path.append("command-line", f"file://{folder}")
    # A notebook or another Hydra application may have a Hydra open: it is put back afterwards.
    version.setbase("1.3")
    outer = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = None
    try:
        Hydra.create_main_hydra2("mteb_vllm", search_path)
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer


def group_options(group: str) -> list[str]:
    """The files of a config group, seen from inside `composer`."""
    from hydra.core.global_hydra import GlobalHydra

    return list(GlobalHydra.instance().config_loader().get_group_options(group))


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Composes one point, seen from inside `composer`, with Hydra's own settings under `hydra`."""
    from hydra import compose

    return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Reads overrides as Hydra does.

    Raises:
        ConfigError: naming every one that Hydra's grammar does not admit.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed, mistakes = OverridesParser.create(), [], []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            mistakes.append(
                Mistake(text, f"Hydra cannot read this override ({reason})", "Quote it: 'key=\"a value\"'.")
            )
    if mistakes:
        raise ConfigError(mistakes)
    return parsed


def parse(config: Mapping[str, Any]) -> RunConfig:
    """Turns a composed configuration (plain containers, without `hydra`) into a `RunConfig`.

    Raises:
        ConfigError: with every unknown key and every value of a wrong type.
    """
    return build(RunConfig, config)


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Makes a dataclass of plain values, checking every key and type.

    Args:
        cls: A dataclass.
        values: What a YAML file said.
        where: The dotted path of these values in the configuration, for messages.

    Raises:
        ConfigError: with every unknown key and every value of a wrong type.
    """
    from mteb_vllm.catalogue import nearest

    try:
        made: T = _adapter(cast(Any, cls)).validate_python(dict(values))
        return made
    except ValidationError as error:
        mistakes = []
        for item in error.errors():
            # Members of a union stand in the location as well; they are no keys of the user's.
            path = [str(part) for part in item["loc"] if not str(part).startswith(("function-", "list[", "dict["))]
            dotted = ".".join([*([where] if where else []), *path])
            if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                siblings = _keys(cls, path[:-1])
                near = tuple(".".join([*dotted.split(".")[:-1], key]) for key in nearest(path[-1], siblings))
                mistakes.append(Mistake(dotted, "there is no such key", _known(siblings), near))
            elif item["type"] in ("missing", "missing_argument"):
                mistakes.append(Mistake(dotted, "a value is needed"))
            else:
                mistakes.append(Mistake(f"{dotted}={item['input']}", item["msg"][0].lower() + item["msg"][1:]))
        raise ConfigError(mistakes) from None


def _known(keys: Sequence[str]) -> str:
    return f"Known keys: {', '.join(keys)}." if keys else ""


def _keys(cls: Any, path: Sequence[str]) -> list[str]:
    """The field names of the dataclass that stands at `path` below `cls`."""
    import typing

    for part in path:
        annotation = typing.get_type_hints(cls).get(part) if is_dataclass(cls) else None
        cls = next((arg for arg in (annotation, *typing.get_args(annotation)) if is_dataclass(arg)), None)
    return [item.name for item in fields(cls)] if is_dataclass(cls) else []


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
