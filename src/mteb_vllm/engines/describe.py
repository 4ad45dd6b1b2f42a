"""Describe the arguments of the installed vLLM as JSON; run as a child process of `mteb_vllm.catalogue`."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from mteb_vllm.catalogue import to_json
from mteb_vllm.util.garbage import garbage_collection_paused
from mteb_vllm.util.plain import JsonObject

if TYPE_CHECKING:
    from vllm.model_executor.models.registry import _ModelRegistry

_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", tuple: "list", set: "list", dict: "dict"}
_ENCODER_ONLY = re.compile(r"""attn_type\(["']encoder_only["']\)|seq_pooling_type=["']CLS["']""")


def describe() -> JsonObject:
    """Return the fields of a `VllmCatalogue` except for the version."""
    from vllm import ModelRegistry, config, envs
    from vllm.engine import arg_utils

    hints = _resolve_hints(arg_utils.EngineArgs)
    args = [field for field in fields(arg_utils.EngineArgs) if not field.name.startswith("_")]
    # EngineArgs has no bounds, but the configuration classes built from it do, in fields of the same names.
    filled = (config.ModelConfig, config.CacheConfig, config.ParallelConfig, config.SchedulerConfig, config.LoadConfig)
    limits = {field.name: _read_limits(field) for one in filled for field in fields(cast(Any, one))}
    return {
        "args": {
            field.name: _read_arg(field, hints[field.name]) | {"limits": limits.get(field.name, {})} for field in args
        },
        "architectures": sorted(ModelRegistry.get_supported_archs()),
        "encoder_only": _read_encoder_only(ModelRegistry),
        "env": list(envs.environment_variables),
    }


def _resolve_hints(cls: type) -> dict[str, object]:
    # vLLM imports some names for type checkers only; these become Any.
    module = vars(sys.modules[cls.__module__])
    return get_type_hints(cls, localns=defaultdict(lambda: Any, vars(builtins) | module), include_extras=False)


def _read_encoder_only(registry: _ModelRegistry) -> list[str]:
    """Find encoder-only architectures by the decorators in the source, since importing all classes takes minutes.

    vLLM's `ModelConfig.attn_type` treats a model whose default pooling is CLS as one without causal attention.
    """
    classes: dict[str, ast.ClassDef] = {}
    for module in {model.module_name for model in registry.models.values()}:
        file = _source_file(module)
        if file is not None and _ENCODER_ONLY.search(source := file.read_text(encoding="utf-8")):
            classes |= {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}

    def is_encoder_only(name: str) -> bool:
        node = classes.get(name)
        return node is not None and (
            any(_ENCODER_ONLY.search(ast.unparse(one)) for one in node.decorator_list)
            or any(is_encoder_only(base.id) for base in node.bases if isinstance(base, ast.Name))
        )

    return sorted(name for name, model in registry.models.items() if is_encoder_only(model.class_name))


def _source_file(module: str) -> Path | None:
    """Return a module's source file; unlike `find_spec`, without importing the packages that it is in."""
    package, *parts = module.split(".")
    if (spec := find_spec(package)) is None:
        return None
    if not parts:
        return Path(spec.origin) if spec.origin is not None else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *parts)
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _read_limits(field: Field[object]) -> dict[str, float]:
    """Return the bounds of a number from pydantic's `Field`."""
    found: dict[str, float] = {}
    for item in getattr(field.default, "metadata", ()):
        found |= {
            name: bound
            for name in ("ge", "gt", "le", "lt")
            if isinstance(bound := getattr(item, name, None), (int, float))
        }
    return found


def _read_arg(field: Field[object], hint: object) -> JsonObject:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    literals = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    origins = {get_origin(member) or member for member in members} - {type(None)}
    # YAML cannot hold classes or functions.
    kinds = {_KINDS.get(origin, "any") for origin in (origins - {Literal, type, Callable}) | {*map(type, literals)}}
    inner = (
        next((one for one in origins if isinstance(one, type) and is_dataclass(one)), None)
        if len(origins) == 1
        else None
    )
    return {
        "name": field.name,
        "type": re.sub(r"<\w+ '(.*)'>", r"\1", re.sub(r"\b([A-Za-z_]\w*\.)+", "", str(hint))),
        "choices": list(map(str, literals)) if origins == {Literal} else None,
        "kind": "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else "any",
        "limits": _read_limits(field),
        "fields": None if inner is None else _read_fields(inner),
    }


def _read_fields(cls: type) -> JsonObject:
    hints = _resolve_hints(cls)
    return {field.name: _read_arg(field, hints[field.name]) for field in fields(cls) if field.init}


if __name__ == "__main__":
    with garbage_collection_paused():
        text = to_json(describe())
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
