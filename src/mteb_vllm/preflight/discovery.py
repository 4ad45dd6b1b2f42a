"""Point from a file that a group does not have to the field that was meant: a task, a benchmark, or a model by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mteb_vllm.catalogue import MtebCatalogue
from mteb_vllm.errors import Mistake
from mteb_vllm.util.shell import suggest, unquoted
from mteb_vllm.util.suggestions import nearest


def with_fields(
    mistake: Mistake,
    written: str,
    options: Sequence[str],
    load: Callable[[str], Mapping[str, object]],
    mteb: MtebCatalogue,
) -> Mistake:
    """Return the mistake, with the probably intended override if the wrong choice names a task or a model.

    Args:
        mistake: An unknown choice of a file, or a choice that Hydra cannot read.
        written: The whole override, as `tasks=msmarco`.
        options: The files of the group.
        load: Returns the content of a file, as of `model/minilm`.
        mteb: The installed mteb's tasks, benchmarks and models.
    """
    key, _, raw = written.partition("=")
    if not raw:
        return mistake
    value, (group, _, package) = unquoted(raw), key.lstrip("+").partition("@")
    if group == "tasks" and not package:
        return _with_tasks(mistake, value, mteb)
    if group == "model":
        return _with_model(mistake, value, package or "model", key, options, load, mteb)
    return mistake


def _with_tasks(mistake: Mistake, value: str, mteb: MtebCatalogue) -> Mistake:
    names = [unquoted(name.strip()) for name in value.strip("[]").split(",")]
    by_name = {name.lower(): name for name in mteb.tasks}
    found = [by_name[name.lower()] for name in names if name.lower() in by_name]
    near: tuple[str, ...] = ()
    if len(found) == len(names):
        near = (suggest("tasks.names", found),)
    elif benchmarks := _nearest_benchmarks(value, mteb):
        near = tuple(suggest("tasks.benchmark", name) for name in benchmarks)
    elif not mistake.nearest:
        near = tuple(suggest("tasks.names", [name]) for name in nearest(value, mteb.tasks))
    if not near:
        return mistake
    way = "tasks=... selects a file. To select tasks by name, set tasks.names; to select a benchmark, tasks.benchmark."
    # That of a choice that Hydra cannot read is no file.
    others = mistake.nearest if mistake.code != "syntax" else ()
    return replace(mistake, nearest=(*near, *others), allowed=way)


def _nearest_benchmarks(value: str, mteb: MtebCatalogue) -> tuple[str, ...]:
    # Short names of benchmarks resemble names of files; those of the form "MTEB(eng, v2)" do not.
    same = tuple(name for name in mteb.benchmarks if name.lower() == value.lower())
    return same or (nearest(value, mteb.benchmarks) if "(" in value else ())


def _with_model(
    mistake: Mistake,
    value: str,
    place: str,
    key: str,
    options: Sequence[str],
    load: Callable[[str], Mapping[str, object]],
    mteb: MtebCatalogue,
) -> Mistake:
    other = suggest(key, "custom")
    if Path(value).is_dir() and "/" in value:
        path = suggest(f"{place}.path", value)
        way = f"model=... selects a recipe file. For a model in a local folder, set {place}.path."
        return replace(mistake, nearest=(f"{other} {path}",), allowed=way)
    if recipes := [name for name in options if str(load(f"model/{name}").get("name")).lower() == value.lower()]:
        return replace(mistake, nearest=tuple(suggest(key, name) for name in recipes))
    plain = value.replace("_", "-")
    if "/" in plain:
        exact = [name for name in mteb.models if name.lower() == value.lower()]
        names = exact or [value, *nearest(value, mteb.models)]
    else:
        by_bare: dict[str, list[str]] = {}
        for name in mteb.models:
            by_bare.setdefault(name.rpartition("/")[2].lower(), []).append(name)
        names = [name for bare in nearest(plain, by_bare) for name in by_bare[bare]]
    near = tuple(f"{other} {suggest(f'{place}.name', name)}" for name in names)
    way = f"Any other model: {other} {place}.name=org/name. {mistake.allowed}".rstrip()
    return replace(mistake, nearest=(*mistake.nearest, *near), allowed=way)
