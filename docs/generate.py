"""Write the reference pages that follow from the configuration: `make reference`, or `python docs/generate.py`.

The keys, defaults and descriptions come from the YAML files in `conf/` and their comments, the types and limits from the
dataclasses that a configuration is parsed into. `tests/test_docs.py` fails when a page is stale or a key has no description.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter

from mteb_vllm.config import schema

DOCS = Path(__file__).resolve().parent
MARK = (
    "<!-- Generated from conf/ and the schema by `make reference`. Edit the YAML comments there, not this page. -->\n"
)
# Keys that Hydra or a recipe sets, not a user.
INTERNAL = ("_target_", "from_model", "preset", "defaults", "hydra")
# Up to a comment: anything but quotes and `#`, a quoted text, an apostrophe or `#` inside a word.
_BEFORE_COMMENT = re.compile(r"""(?:[^'"#]|(?<=[\s\[{,])'[^']*'|(?<=[\s\[{,])"(?:[^"\\]|\\.)*"|(?<=\S)['"\#])*""")
_KEY = re.compile(r"^(?P<dash>- )?(?P<key>[\w./@\- ]+?):(?:\s|$)")


@dataclass(frozen=True)
class Described:
    """A YAML file with its comments.

    Attributes:
        values: The content.
        head: The comment at the top.
        comments: Dotted key, or `defaults.` and a group, to its comment.
    """

    values: Mapping[str, Any]
    head: str
    comments: Mapping[str, str]


def read(path: Path) -> Described:
    """Read a YAML file with the comments of its keys: after a key, continued below it, or on separate lines above."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    first = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = [line.removeprefix("#").strip() for line in lines[:first] if not line.startswith("# @")]
    comments: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    column, last = -1, ""
    for line in lines[first:]:
        code = _BEFORE_COMMENT.match(line)[0].rstrip()  # type: ignore[index]
        comment = line[len(code) :].strip().removeprefix("#").strip()
        if not code.strip():
            if comment and line.index("#") == column:
                comments[last] = f"{comments[last]} {comment}"
            elif comment:
                above.append(comment)
            continue
        indent = len(code) - len(code.lstrip())
        found = _KEY.match(code.lstrip())
        if found is None:
            above, column = [], -1
            continue
        while stack and stack[-1][0] >= indent + (1 if found["dash"] else 0):
            stack.pop()
        last = ".".join([*(key for _, key in stack), found["key"].split()[-1]])
        if not found["dash"]:
            stack.append((indent, found["key"]))
        if comment or above:
            comments[last] = " ".join([*above, comment]).strip()
        column = line.rindex("# ") if comment and "# " in line else -1
        above = []
    return Described(yaml.safe_load(text) or {}, " ".join(head).strip(), comments)


def types_of(cls: Any) -> dict[str, str]:
    """Return descriptions of the values that a dataclass's fields may have."""
    described = TypeAdapter(cls).json_schema()
    definitions = described.get("$defs", {})
    return {name: _words(value, definitions) for name, value in described.get("properties", {}).items()}


def _words(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "words" in described:
        return str(described["words"])
    if "$ref" in described:
        return "a mapping"
    if "anyOf" in described:
        parts = [_words(part, definitions) for part in described["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    kind = described.get("type", "")
    if kind == "array":
        items = _words(described.get("items", {}), definitions)
        plural = {"text": "texts", "whole number": "whole numbers", "number": "numbers"}
        word = next((word for word in plural if items == word or items.startswith(f"{word} ")), "")
        return f"list of {plural.get(word, '')}{items.removeprefix(word)}"
    names = {"string": "text", "integer": "whole number", "object": "a mapping", "boolean": "`true`, `false`"}
    limits = [
        f"{sign} {described[key]:,g}" if abs(described[key]) < 1e6 else f"{sign} {int(described[key]):,}"
        for key, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
        if key in described
    ]
    return " ".join([names.get(kind, kind), ", ".join(limits)]).strip()


def markdown(text: str) -> str:
    """Return a comment as text of a table's cell."""
    parts = text.split("`")
    for at in range(0, len(parts), 2):  # those between backticks stay as they are
        parts[at] = re.sub(r"([\\_*\[\]~])", r"\\\1", parts[at]).replace("<", "&lt;")
    return "`".join(parts).replace("|", "\\|")


def code(value: Any) -> str:
    """Return a value as YAML in one line, between backticks."""
    if value == "???":
        return "required"
    if isinstance(value, str) and "\n" in value:
        return f"`{json.dumps(value, ensure_ascii=False)}`"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    mark = "``" if "`" in text else "`"
    return f"{mark}{text}{mark}".replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


class MissingDescriptionError(ValueError):
    """A key has no comment, a file has none at its top, or a field of the schema is in no file."""


@dataclass(frozen=True)
class Key:
    """A key of the configuration, as cells of a table.

    Attributes:
        name: Its dotted path.
        default: Its value in the file.
        allowed: The values that it may have; "" where they are not known here.
        meaning: Its comment.
    """

    name: str
    default: str
    allowed: str
    meaning: str


def keys(file: Described, prefix: str, cls: Any = None, inside: str = "") -> list[Key]:
    """Return the keys of a file.

    Args:
        file: The file.
        prefix: Their parent in the configuration, such as `pipeline`; "" at the top.
        cls: The dataclass that they are parsed into; None where the keys are open.
        inside: The key of the file that they are under; "" for those at the top.

    Raises:
        MissingDescriptionError: if a key has no comment, or a field of the dataclass is not in the file.
    """
    values = file.values.get(inside) or {} if inside else file.values
    allowed = types_of(cls) if cls is not None else {}
    if missing := [name for name in allowed if name not in values and name not in INTERNAL]:
        raise MissingDescriptionError(f"{prefix}: the schema has {', '.join(missing)}, the YAML file does not")
    found = []
    for name, value in values.items():
        comment = file.comments.get(f"{inside}.{name}" if inside else name, "")
        dotted = f"{prefix}.{name}" if prefix else name
        if name in INTERNAL:
            continue
        if isinstance(value, dict) and value:  # the arguments of a reference's engine
            nested = {key: file.comments.get(f"{name}.{key}", f"as `{name}.{key}`") for key in value}
            found += [Key(f"{dotted}.{key}", code(value[key]), "", markdown(text)) for key, text in nested.items()]
        elif not comment:
            raise MissingDescriptionError(f"{dotted} has no comment in its YAML file")
        else:
            found.append(Key(dotted, code(value), allowed.get(name, ""), markdown(comment)))
    return found


def choices(file: Described, parent: str = "") -> list[tuple[str, str, str]]:
    """Return the groups in a file's defaults: how each is chosen, its default, its meaning.

    Args:
        file: The file.
        parent: Where the file is mounted, such as `pipeline.first_stage`; "" at the top.
    """
    found = []
    for entry in file.values.get("defaults", []):
        ((written, chosen),) = entry.items() if isinstance(entry, dict) else [("", "")]
        name = str(written).split(" ")[-1]
        comment = file.comments.get(f"defaults.{name}", "")
        if not comment or "override" in str(written):
            continue
        group, at, package = name.lstrip("/").partition("@")
        if parent:
            group = f"{group}@{parent}.{package}" if at else f"{parent.replace('.', '/')}/{group}"
        found.append((f"`{group}=`", code(chosen), markdown(comment)))
    return found


def keys_table(found: Sequence[Key]) -> str:
    """Return the table of some keys, without the column of allowed values where none are known."""
    if not found:
        return ""
    if any(key.allowed for key in found):
        cells = [(f"`{key.name}`", key.default, key.allowed, key.meaning) for key in found]
        return table(["key", "default", "allowed", "meaning"], cells)
    return table(["key", "default", "meaning"], [(f"`{key.name}`", key.default, key.meaning) for key in found])


def choices_table(found: Sequence[tuple[str, str, str]]) -> str:
    """Return the table of the groups in a file's defaults."""
    return table(["choose with", "default", "meaning"], found) if found else ""


def files_table(folder: Path, group: str) -> str:
    """Return the table of a group's files, by the comments at their tops."""
    found = [(path, read(path)) for path in sorted(folder.glob("*.yaml")) if path.stem != "fields"]
    if missing := [path.name for path, file in found if not file.head]:
        raise MissingDescriptionError(f"no comment at the top of {', '.join(missing)} in {folder}")
    return table(["choice", "meaning"], [(f"`{group}={path.stem}`", markdown(file.head)) for path, file in found])


def values_table(file: Described) -> str:
    """Return the table of a preset's values."""
    found = []
    for key, value in file.values.items():
        if key not in ("preset", "backend"):
            nested = (
                {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
            )
            found += [(f"`{name}`", code(item), markdown(file.comments.get(name, ""))) for name, item in nested.items()]
    return table(["key", "value", "why"], found)


def fields_of(path: Path) -> Any:
    """Return a dataclass with the fields of the class in a file's `_target_` that the file itself has to give values.

    Those that are separate groups, mappings, or come from a file that it extends are left out.
    """
    file = read(path)
    module, _, name = str(file.values["_target_"]).rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    hints = get_type_hints(cls, include_extras=True)
    own = [field.name for field in fields(cls) if field.name not in _elsewhere(path)] if is_dataclass(cls) else []
    return make_dataclass(name, [(key, hints[key]) for key in own]) if own else None


def _elsewhere(path: Path) -> set[str]:
    values = read(path).values
    found = {key for key, value in values.items() if isinstance(value, dict)}
    for entry in values.get("defaults", []):
        name = str(next(iter(entry)) if isinstance(entry, dict) else entry).split(" ")[-1]
        found.add(name.partition("@")[2] or name)
        if isinstance(entry, str) and (extended := path.parent / f"{name}.yaml").exists() and "@" not in name:
            found |= _elsewhere(extended) | set(read(extended).values)
    return found


def configuration(conf: Path) -> str:
    """Return the page of every configuration key."""
    main = read(conf / "config.yaml")
    top = Described(
        {key: value for key, value in main.values.items() if not isinstance(value, dict)}, "", main.comments
    )
    types = types_of(schema.RunConfig)
    classes = get_type_hints(schema.RunConfig)
    out = [
        "# Configuration keys\n",
        MARK,
        "Choose a file with `group=file`, and set a field with `group.field=value`. A key whose default is `null` is unset: "
        "its value then comes from the model's recipe, the engine's preset, or the model's own files. See [the command "
        "line](command-line.md) for quoting and precedence.\n",
        "## Groups\n",
        choices_table(choices(main)),
        "## Top level\n",
        keys_table([replace(key, allowed=types[key.name]) for key in keys(top, "")]),
    ]
    for name in (name for name, value in main.values.items() if isinstance(value, dict) and name not in INTERNAL):
        out += [f"## {name}\n", keys_table(keys(main, name, classes[name], name))]
    for group, cls in (
        ("model", schema.ModelConfig),
        ("engine", None),
        ("prompts", None),
        ("instruction", schema.InstructionConfig),
        ("score_template", schema.ScoreTemplateConfig),
        ("tasks", schema.TasksConfig),
    ):
        folder = conf / group
        path = folder / ("fields.yaml" if (folder / "fields.yaml").exists() else "auto.yaml")
        described = read(path)
        recipes = "The shipped recipes are in [the table of models](models.md).\n"
        out += [f"## {group}\n", recipes if group == "model" else files_table(folder, group)]
        out += [f"{markdown(described.head)}\n"] if described.head and path.stem == "fields" else []
        out += [keys_table(keys(described, group, cls)), _OPEN_PROMPTS if group == "prompts" else ""]
        if group == "engine":
            for name in ("vllm", "vllm_cpu", "sentence_transformers"):
                out += [f"### Values of engine={name}\n", values_table(read(folder / f"{name}.yaml"))]
    out += _pipelines(conf)
    launchers = {name: read(conf / "hydra" / "launcher" / f"{name}.yaml") for name in ("engine_grouped", "slurm")}
    folders = ", ".join(f"`hydra.{kind}.dir` is {code(main.values['hydra'][kind]['dir'])}" for kind in ("run", "sweep"))
    out += [
        "## hydra\n",
        f"{markdown(launchers['engine_grouped'].head)}\n",
        keys_table(keys(launchers["engine_grouped"], "hydra.launcher", schema.LauncherConfig)),
        "### hydra/launcher=slurm\n",
        f"{markdown(launchers['slurm'].head)}\n",
        keys_table(keys(launchers["slurm"], "hydra.launcher", schema.SlurmConfig)),
        f"The folders of runs and sweeps: {folders}.\n",
        "## experiment\n",
        _experiments(conf),
    ]
    return "\n".join(part for part in out if part)


_OPEN_PROMPTS = (
    "A task, a task type, `Task-query` and `TaskType-document` can also be used as keys: `'+prompts.STS12=\"...\"'`. See "
    "[prompts and instructions](../how-to/prompts.md).\n"
)


def _pipelines(conf: Path) -> Iterator[str]:
    yield "## pipeline\n"
    yield files_table(conf / "pipeline", "pipeline")
    yield from _parts(conf / "pipeline", "pipeline", "### pipeline=")
    for group in ("first_stage", "reference"):
        folder = conf / "pipeline" / group
        yield f"### pipeline/{group}\n"
        yield files_table(folder, f"pipeline/{group}")
        yield from _parts(folder, f"pipeline.{group}", f"#### {group}=")


def _parts(folder: Path, parent: str, heading: str) -> Iterator[str]:
    """Yield a section for each file with a `_target_` in a folder: the groups that it mounts, and its keys."""
    for path in sorted(folder.glob("*.yaml")):
        file = read(path)
        chosen, own = choices(file, parent), keys(file, parent, fields_of(path))
        if chosen or own:
            yield f"{heading}{path.stem}\n"
            yield choices_table(chosen)
            yield keys_table(own)


def _experiments(conf: Path) -> str:
    found = []
    for path in sorted((conf / "experiment").glob("*.yaml")):
        command, name, what = read(path).head.partition(f"experiment={path.stem}")
        if not command.startswith("mteb-vllm") or not name:
            raise MissingDescriptionError(f"{path} does not begin with the command that runs it")
        found.append((f"`experiment={path.stem}`", markdown(what.strip())))
    return table(["choice", "meaning"], found)


def models(conf: Path) -> str:
    """Return the table of the shipped model recipes."""
    recipes = {path.stem: read(path) for path in sorted((conf / "model").glob("*.yaml"))}
    out = [
        "# Models\n",
        MARK,
        "Each of these is one file in `conf/model/`: name, pinned revision or package, prompts, instruction template, "
        "score template and engine arguments. For any other model, see [your own model](../how-to/own-model.md).\n",
    ]
    for kind, title in (("encoder", "Embedding models"), ("cross_encoder", "Rerankers")):
        found = [
            (f"`model={stem}`", f"`{file.values['name']}`", _revision(file.values), _inputs(file.values),
             _engine(file.values), markdown(file.head))
            for stem, file in recipes.items()
            if stem not in ("fields", "custom") and file.values.get("kind", "encoder") == kind
        ]  # fmt: skip
        header = ["choice", "model", "revision", "prompts and templates", "engine arguments", "notes"]
        out += [f"## {title}\n", table(header, found)]
    return "\n".join(out)


def _revision(recipe: Mapping[str, Any]) -> str:
    if recipe.get("package"):
        return f"package `{recipe['package'].partition('/')[0]}`"
    return f"`{recipe['revision'][:12]}`" if recipe.get("revision") else "newest"


def _inputs(recipe: Mapping[str, Any]) -> str:
    """Return the prompts and templates of a recipe, in words."""
    parts = [
        f"{key}: {code(recipe['prompts'][key])}"
        for key in ("query", "document")
        if (recipe.get("prompts") or {}).get(key)
    ]
    others = len(set(recipe.get("prompts") or {}) - {"query", "document"})
    parts += [f"and prompts for {others} task types"] if others else []
    if template := (recipe.get("instruction") or {}).get("template"):
        parts.append(f"instruction {code(template)}")
    if file := (recipe.get("score_template") or {}).get("file"):
        parts.append(f"score template `{file}`")
    return "<br>".join(parts)


def _engine(recipe: Mapping[str, Any]) -> str:
    return "<br>".join(f"`{key}`: {code(value)}" for key, value in (recipe.get("engine") or {}).items())


def pages(conf: Path | None = None) -> dict[str, str]:
    """Return the generated pages: path below `docs/` to text.

    Args:
        conf: The folder of the configuration; None: the shipped one.
    """
    conf = conf if conf is not None else schema.conf_dir()
    return {"reference/configuration.md": configuration(conf), "reference/models.md": models(conf)}


def main() -> int:
    """Write the pages."""
    for name, text in pages().items():
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
