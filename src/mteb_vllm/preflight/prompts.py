"""Check prompts and instruction templates, independently of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mteb_vllm.catalogue import MtebCatalogue, known_prompt_key
from mteb_vllm.config.schema import InstructionConfig, quoted
from mteb_vllm.errors import Mistake
from mteb_vllm.models.prompts import check_template
from mteb_vllm.util.shell import as_typed, hydra_value, shown
from mteb_vllm.util.suggestions import nearest
from mteb_vllm.util.type_names import wrong_type


def prompt_mistakes(where: str, values: Mapping[str, object], mteb: MtebCatalogue) -> list[Mistake]:
    """Return the mistakes in a dict of prompts: keys by which mteb looks up nothing, and values that are not strings."""
    mistakes = []
    for key, value in values.items():
        path = f"{where}.{key}"
        if key == "from_model" and not where.endswith("model.prompts"):
            if not isinstance(value, bool):
                mistakes.append(Mistake(f"{where}.{key}", "must be true or false", value=shown(value)))
        elif not known_prompt_key(str(key), mteb):
            what = (
                "there is no task, task type or side of this name; examples: STS12, STS, query, document, STS12-query"
            )
            near = tuple(
                as_typed(f"{where}.{name}", path, new=name not in values) for name in _near_prompt_keys(str(key), mteb)
            )
            mistakes.append(Mistake(f"{where}.{key}", what, nearest=near, code="unknown_key"))
        elif value is not None and not isinstance(value, str):
            what = wrong_type(str, value)
            mistakes.append(
                Mistake(
                    f"{where}.{key}",
                    what,
                    quoted(path, value if isinstance(value, str) else hydra_value(value)),
                    value=shown(value),
                )
            )
    return mistakes


def _near_prompt_keys(key: str, mteb: MtebCatalogue) -> tuple[str, ...]:
    names = [*mteb.prompt_types, *mteb.task_types, *mteb.tasks]
    bare, dash, side = key.rpartition("-")
    if dash and side in mteb.prompt_types:
        return tuple(f"{name}-{side}" for name in nearest(bare, names))
    if dash and bare in names:
        return tuple(f"{bare}-{near}" for near in nearest(side, mteb.prompt_types) or mteb.prompt_types)
    return nearest(key, names)


def template_mistakes(where: str, instruction: InstructionConfig | None) -> list[Mistake]:
    """Return the mistake in an instruction template, if there is one."""
    if instruction is None or instruction.template is None:
        return []
    mistake = check_template(instruction.template)
    return [replace(mistake, key=f"{where}.template", value=instruction.template)] if mistake else []
