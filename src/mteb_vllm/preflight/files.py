"""Explain what is wrong with a user's own configuration files: name the file, the line, and the remedy.

Hydra and PyYAML name neither the remedy nor, for many mistakes, the file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf

from mteb_vllm.config.overrides import NOT_COMPOSED, describe_error
from mteb_vllm.config.schema import conf_dir, group_options
from mteb_vllm.errors import Mistake
from mteb_vllm.util.suggestions import nearest

# The groups whose files set keys of all groups, so that they have to begin with this line.
OVERLAYS = ("experiment", "local")
HEAD = "# @package _global_"


@dataclass(frozen=True)
class OwnFile:
    """A file of the user's.

    Attributes:
        path: Its path.
        group: Its group, as `tasks` or `pipeline/first_stage`.
    """

    path: Path
    group: str

    @functools.cached_property
    def package(self) -> str:
        """Where Hydra puts its keys: a dotted key, "" at the top."""
        loader: Any = GlobalHydra.instance().config_loader()
        try:
            found = loader.repository.load_config(f"{self.group}/{self.path.stem}")
        except NOT_COMPOSED:
            return self.group.replace("/", ".")
        written = (found.header.get("package") if found is not None else None) or "_group_"
        return {"_global_": "", "_group_": self.group.replace("/", ".")}.get(written, written)

    @functools.cached_property
    def lines(self) -> dict[str, int]:
        """The line of each key, by its dotted path in the configuration."""
        try:
            node = yaml.compose(self.path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return {}
        return dict(_lines(node, self.package))


def _lines(node: yaml.Node | None, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{path}.{key.value}" if path else str(key.value)
            yield dotted, key.start_mark.line + 1
            if dotted.count(".") < 10:  # an alias may contain itself
                yield from _lines(value, dotted)


def own_file(group: str, name: object) -> OwnFile | None:
    """Return a group's file if it is the user's own; call it inside `composer`."""
    return next(
        (OwnFile(path, group) for folder in _folders() if (path := folder / group / f"{name}.yaml").is_file()), None
    )


def _folders() -> list[Path]:
    """Return the user's own folders of configuration files."""
    places = [item.path for item in GlobalHydra.instance().config_loader().get_search_path().get_path()]
    folders = [Path(place.removeprefix("file://")) for place in places if place and place.startswith("file://")]
    return [folder for folder in folders if folder.resolve() != conf_dir().resolve()]


def head_mistake(file: OwnFile) -> Mistake | None:
    """Return the mistake of an experiment or of `local/default.yaml` whose first line does not make its keys global."""
    if file.group not in OVERLAYS or not file.package:
        return None
    what = f"the first line must be: {HEAD}"
    try:
        text = file.path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    first = next(iter(text.splitlines()), "").strip()
    if text.startswith("\ufeff"):
        return Mistake(str(file.path), "begins with a byte order mark, so Hydra does not read its first line",
                       f"Save it as UTF-8 without a byte order mark; {what}", code="syntax")  # fmt: skip
    found = next((line for line in text.splitlines() if re.match(r"\s*#.*\bpackage\b", line)), None)
    way = "" if found is None else f"It is: {first}" if found.strip() == first else f"This line comes too late: {found}"
    return Mistake(str(file.path), what, way, code="syntax")


def with_ending(mistake: Mistake, group: str, name: object) -> Mistake:
    """Return the mistake of a file that there is not, with the remedy if it only has another ending than `.yaml`."""
    other = next((path for folder in _folders() if (path := folder / group / f"{name}.yml").is_file()), None)
    if other is None:
        return mistake
    return replace(mistake, nearest=(), allowed=f"Rename {other} to {name}.yaml: Hydra reads no other files.")


def explain_key(mistake: Mistake, files: Sequence[OwnFile]) -> Mistake:
    """Return the mistake of an unknown key with the file and the line that set it, and the remedy if all are misplaced.

    Args:
        mistake: The mistake of a key that does not exist, which is not on the command line.
        files: The user's files that were chosen.
    """
    inside = f"{mistake.key}."
    file = next((file for file in files if mistake.key in file.lines or f"{file.package}.".startswith(inside)), None)
    group = file.group.replace("/", ".") if file is not None else ""
    if file is None or mistake.key == group:
        return mistake
    line = file.lines.get(mistake.key, 1)
    last = file.group.rpartition("/")[2]
    if file.group not in OVERLAYS and mistake.key == f"{group}.{last}":
        what = f"line {line}: the keys of a file in {file.group}/ belong to {group} by themselves"
        way = f"Remove the line '{last}:', and the indentation below it."
        return Mistake(str(file.path), what, way, code="unknown_key")
    if file.group not in OVERLAYS and file.package != group:
        name = file.package or "_global_"
        why = f"the line '# @package {name}' moves the keys of this file out of {group}"
        what = f"line {line}: there is no key {mistake.key}: {why}"
        return Mistake(str(file.path), what, "Remove that line.", code="unknown_key")
    return replace(mistake, allowed=f"{mistake.allowed} (in {file.path}, line {line})".lstrip())


def file_mistake(error: Exception, files: Sequence[OwnFile]) -> Mistake:
    """Return the mistake of a file because of which a configuration cannot be composed; call it inside `composer`.

    Args:
        error: The error of Hydra, OmegaConf or PyYAML.
        files: The user's files that were chosen.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return _yaml_mistake(error)
    if isinstance(error, yaml.reader.ReaderError):
        way = "Save it as UTF-8 text."
        what = (
            f"contains the character 0x{int(error.character):02x}" if isinstance(error.character, int) else error.reason
        )
        return Mistake(
            str(error.name), f"{what} at position {error.position}, which YAML does not allow", way, code="syntax"
        )
    text = describe_error(error)
    inside = re.match(r"In '([\w/.-]+)': (.*)", text)
    if inside is not None:
        group, _, name = inside[1].rpartition("/")
        place, text = own_file(group, name), inside[2]
    elif (named := re.search(r"in '([^']+)', defaults must be a list", text)) is not None:
        group, _, name = named[1].rpartition("/")
        place = own_file(group, name)
    else:
        place = None
    place = place or _culprit(error, files)
    what, way, near = _remedy(error, text, place)
    return Mistake("configuration" if place is None else str(place.path), what, way, near, code="syntax")


def _culprit(error: Exception, files: Sequence[OwnFile]) -> OwnFile | None:
    """Return the file that causes an error which does not name it: the only one, or the one that fails by itself."""
    for file in files:
        try:
            OmegaConf.to_container(OmegaConf.load(file.path))
        except NOT_COMPOSED:
            return file
    if len(files) == 1 and not isinstance(error, HydraException):
        return files[0]
    with_defaults = [file for file in files if f"{file.package}.defaults".lstrip(".") in file.lines]
    from_defaults = isinstance(error, HydraException)
    return with_defaults[0] if from_defaults and len(with_defaults) == 1 else None


def _remedy(error: Exception, text: str, file: OwnFile | None) -> tuple[str, str, tuple[str, ...]]:
    """Return the mistake in the file in which composition failed, a remedy, and the probably intended names."""
    if (found := _defaults_remedy(error, text, file.group if file is not None else "")) is not None:
        return found
    if "Cannot merge DictConfig with ListConfig" in text or "primary config" in text:
        return "must be a mapping of keys to values, not a list", "Write: key: value", ()
    if "Incompatible key type" in text:
        return "contains a key that is not text", "Quote the keys null, true, false, yes, no, on, off and ~.", ()
    if "BRACE_CLOSE" in text:
        return "a reference (${...}) has no closing brace", "A literal ${ is written \\${.", ()
    return text.replace("ValidationError raised while composing config: ", ""), "", ()


def _defaults_remedy(error: Exception, text: str, group: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Return the same for a mistake in the defaults list of a group's file; None if the mistake is elsewhere."""
    if (twice := re.search(r"Multiple values for ([^\s]+)\. To override", text)) is not None:
        return f"its defaults list chooses {twice[1]}, which is already chosen", f"Write: {_entry(twice[1])}", ()
    if (unmatched := re.search(r"Could not override '([^'@]+)(?:@[^']*)?'", text)) is not None:
        name = unmatched[1].removeprefix(f"{group}/")
        if name in _groups():
            return f"the group {name} in its defaults list needs a slash in front", f"Write: {_entry(name)}", ()
        near = tuple(_entry(other) for other in nearest(name, _groups()))
        return f"its defaults list overrides {name}, which is not chosen or does not exist", "", near
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        parent, _, name = str(error.missing_cfg_file).rpartition("/")
        short = parent.removeprefix(f"{group}/")
        if group in OVERLAYS and short != parent and short in _groups():
            way = f"Write: {_entry(short, name)}"
            return f"the group {short} in its defaults list needs 'override' and a slash in front", way, ()
        options = group_options(parent) if parent else []
        way = f"Files: {', '.join(options)}." if options else ""
        return f"there is no file {name}.yaml in {parent or 'the configuration'}/", way, nearest(name, options)
    if "defaults must be a list" in text:
        return "its defaults are not a list", f"Begin each entry with a dash: {_entry('tasks', 'sts12')}", ()
    return None


def _entry(group: str, name: str = "NAME") -> str:
    return f"- override /{group}: {name}"


def _groups() -> list[str]:
    """Return the shipped groups, as `tasks` or `pipeline/first_stage`."""
    shipped = conf_dir()
    return sorted({file.parent.relative_to(shipped).as_posix() for file in shipped.rglob("*.yaml")} - {"."})


def _yaml_mistake(error: yaml.MarkedYAMLError) -> Mistake:
    mark, problem, context = error.problem_mark, error.problem or "", error.context or ""
    assert mark is not None
    opened = error.context_mark.line + 1 if error.context_mark is not None else mark.line + 1
    line, what, way = mark.line + 1, problem, ""
    if (key := re.match(r"found duplicate key (.*)", problem)) is not None:
        what, way = f"the key {key[1]} is set twice", "Keep one of them."
    elif "'\\t'" in problem:
        what, way = "a tab, which YAML does not allow for indentation", "Indent with spaces."
    elif (letter := re.match(r"found character '(.)' that cannot start", problem)) is not None:
        what, way = f"a text must not begin with {letter[1]}", 'Quote it: key: "text"'
    elif (alias := re.match(r"found undefined alias '(.*)'", problem)) is not None:
        what, way = f"there is no anchor &{alias[1]} for *{alias[1]}", 'If it is text, quote it: key: "*text"'
    elif problem.startswith("mapping values are not allowed"):
        what = "a second colon in this line, or a wrong indentation"
        way = 'Quote a text that contains a colon and a space: key: "text: "'
    elif context.startswith("while parsing a flow") and problem.startswith("expected ',' or"):
        line, bracket = opened, "[" if "sequence" in context else "{"
        what = f"the bracket {bracket} is not closed, or a comma is missing behind it"
    elif context.startswith("while parsing a block"):
        what, way = "the indentation does not fit that of the lines above", "Indent keys of the same level alike."
    elif "quoted scalar" in context:
        line, what = opened, "the quote is not closed"
    elif "another document" in problem or problem.startswith("but found another"):
        what, way = "a second document begins (---)", "Keep one document per file."
    return Mistake(str(mark.name), f"line {line}: {what}", way, code="syntax")


def shadowed_files(config_dir: str | None) -> list[Mistake]:
    """Return a mistake for each of the user's files that is hidden by a shipped one: Hydra finds that first."""
    if config_dir is None:
        return []
    shipped = conf_dir()
    mistakes = []
    for file in sorted(shipped.rglob("*.yaml")):
        twin = Path(config_dir, file.relative_to(shipped))
        if twin.is_file() and twin.read_bytes() != file.read_bytes():
            what = "this file is never read, because a shipped file has the same name"
            mistakes.append(Mistake(str(twin), what, "Rename it."))
    return mistakes


def encoding_mistakes() -> Iterator[Mistake]:
    """Yield a mistake for each configuration file that is not UTF-8, which Hydra does not name; call inside `composer`."""
    for folder in _folders():
        for file in sorted(folder.rglob("*.yaml")):
            try:
                content = file.read_bytes()
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                line = content.count(b"\n", 0, error.start) + 1
                what = f"is not UTF-8 (the byte 0x{content[error.start]:02x} in line {line})"
                yield Mistake(str(file), what, "Convert it to UTF-8, with an editor or iconv.")
            except OSError:
                continue
