"""Parse and apply single overrides as Hydra does; where Hydra would stop, return an error with a suggestion instead."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from mteb_vllm.catalogue import known_prompt_key, mteb_catalogue, vllm_catalogue
from mteb_vllm.config.schema import group_options, quoted
from mteb_vllm.errors import Code, Mistake
from mteb_vllm.util.shell import suggest, unquoted
from mteb_vllm.util.suggestions import nearest
from mteb_vllm.util.type_names import type_name

# The exceptions that Hydra raises for malformed files.
NOT_COMPOSED = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError)

# Keys of texts in which white space is significant.
_TEXTS = (
    "prompts.", "instruction.", "score_template.", "model.prompts.", "model.instruction.", "model.score_template."
)  # fmt: skip

# Dicts with open keys: only vLLM or mteb can tell which keys are valid.
_OPEN = ("engine.", "prompts.", "model.engine.", "model.prompts.")

_LITERAL = "A literal ${ is written \\${ (also in a YAML file)."

# The keys of our files that have no default (`???`), and their values.
_REQUIRED = {
    "pipeline.reference.runs": "the folder of a run, or of results in mteb's layout",
    "pipeline.first_stage.path": "a predictions file or a folder of them (outputs/predictions/...)",
}

# A first stage has its own model, engine and prompts under this prefix.
_MOUNTED = "pipeline.first_stage."


def parse_overrides(overrides: Sequence[str]) -> tuple[list[Override], list[Mistake]]:
    """Parse overrides with Hydra's grammar; call it inside `composer`.

    Returns:
        overrides: Those that can be parsed.
        mistakes: One for each that cannot.
    """
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed: list[Override] = []
    mistakes = []
    for text in overrides:
        if not text.partition("=")[0].strip("+~ ") and "=" in text:
            what = "has no key in front of the equals sign"
            mistakes.append(Mistake("configuration", what, "Write: key=value", written=text, code="syntax"))
            continue
        try:
            parsed += parser.parse_overrides([text])
        except (HydraException, RecursionError) as error:
            key, equals, value = text.partition("=")
            syntax_error = functools.partial(Mistake, key.strip("+~ ") or "configuration", written=text, code="syntax")
            if not equals:
                if text.strip():
                    way, near = "See: mteb-vllm --help", _choices_of(text.strip())
                    mistakes.append(syntax_error("is not of the form key=value", way, near))
                else:
                    mistakes.append(syntax_error("an argument is empty", written=text or "''"))
            elif re.fullmatch(r"[+~]{0,2}[\w./@-]+", key) is None:
                mistakes.append(syntax_error(f"Hydra cannot parse the key {key!r}"))
            else:
                what, meant = _unreadable(value, parser, str(error))
                near = (shlex.quote(f"{key}={meant}"),) if meant and _parses(parser, f"{key}={meant}") else ()
                # A text may have a single bracket or quote, so it can also be meant as it is.
                way = "" if (near or what.startswith(_FAILED)) and not _is_text(key) else quoted(key, value)
                mistakes.append(syntax_error(what or "Hydra cannot parse this value", way, near))
    return parsed, mistakes


def _choices_of(name: str) -> tuple[str, ...]:
    """Return the choices of the files with a name, or with the most similar one, as overrides; empty if there are none."""
    groups = [group for group in GlobalHydra.instance().config_loader().list_groups("") if group != "hydra"]
    choices = [(group, option) for group in groups for option in group_options(group)]
    meant = nearest(name, dict.fromkeys(option for _, option in choices), 1)[:1]
    return tuple(suggest(group, option) for group, option in choices if option in meant)


_FAILED = "Hydra cannot evaluate"


def _unreadable(value: str, parser: OverridesParser, error: str) -> tuple[str, str]:
    """Return why Hydra cannot parse a value, and the value that was probably meant; both may be ""."""
    what, meant = _unclosed(value)
    if what:
        return what, meant
    if value.startswith("~"):
        return "a shell does not replace ~ behind an equals sign", str(Path(value).expanduser())
    if re.search(r"(^|,)\s*(,|$)", value):
        return "a value in front of or behind a comma is missing", ",".join(filter(str.strip, value.split(",")))
    called = re.fullmatch(r"([A-Za-z_]\w*)(\(.*\))", value)
    if called is None:
        return "", ""
    known = parser.functions.functions
    if called[1] not in known:
        return f"Hydra has no function {called[1]}", "".join([*nearest(called[1], known, 1)[:1], called[2]])
    if called[1] in ("int", "float", "bool"):
        return f"{_FAILED} {value}: {called[2][1:-1]} is not {type_name(called[1])}", ""
    if wrong := re.search(r"mismatch type argument (\w+): (\w+) is incompatible with (?:Union\[.*, )?(\w+)", error):
        return f"{_FAILED} {value}: {wrong[1]} must be {type_name(wrong[3])}, not {type_name(wrong[2])}", ""
    reason = re.search(r"while evaluating .*?: (.*)", error)
    return f"{_FAILED} {value}{f': {reason[1]}' if reason is not None else ''}", ""


def _parses(parser: OverridesParser, text: str) -> bool:
    try:
        parser.parse_overrides([text])
    except (HydraException, RecursionError):
        return False
    return True


def _is_text(key: str) -> bool:
    return key.lstrip("+").removeprefix(_MOUNTED).startswith(_TEXTS)


_CLOSING = {"[": "]", "{": "}", "(": ")"}


def _unclosed(value: str) -> tuple[str, str]:
    """Return which bracket or quote of a value is not closed, or not opened, and the corrected value; both may be ""."""
    stack: list[str] = []
    quote, start, before, escaped = "", 0, "", False
    for at, letter in enumerate(value):
        if escaped or letter == "\\":
            escaped = not escaped
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (not before or before in "[{(:,"):  # elsewhere it is an apostrophe
            quote, start = letter, at
        elif letter in _CLOSING:
            stack.append(letter)
        elif letter in _CLOSING.values():
            opening = next(one for one, other in _CLOSING.items() if other == letter)
            if not stack:
                return f"the bracket {letter} is not opened", f"{opening}{value}"
            if stack[-1] != opening:
                right = _CLOSING[stack[-1]]
                return f"the bracket {stack[-1]} is closed by {letter}", f"{value[:at]}{right}{value[at + 1 :]}"
            stack.pop()
        before = letter if not letter.isspace() else before
    brackets = "".join(_CLOSING[one] for one in reversed(stack))
    if quote:
        # A bracket at the end is more likely the end of the list than of the text.
        inner = value.removesuffix(brackets) if brackets else value
        mark = quote if '"' in inner else '"'  # which need not be escaped for a shell
        return f"the quote {quote} is not closed", f"{inner[:start]}{mark}{inner[start + 1 :]}{mark}{brackets}"
    return (f"the bracket {stack[-1]} is not closed", f"{value}{brackets}") if stack else ("", "")


def choice_mistake(override: Override, options: Sequence[str]) -> Mistake | None:
    """Return the error in the choice of a group's file; None if there is none.

    Args:
        override: A choice, as `model=e5_small`.
        options: The names of the group's files.
    """
    key, written, value = override.key_or_group, str(override.input_line), override.value()
    names = value if isinstance(value, list) else [value]
    if override.is_delete() and value is None:
        return None
    if not all(isinstance(name, str) for name in names):
        way = f"To remove a group: ~{override.get_key_element()}"
        return Mistake(key, "a choice must be the name of a file", way, written=written)
    unknown = next((name for name in names if name not in options), None)
    if unknown is None:
        return None
    if not unknown:
        way = f"Files: {', '.join(options)}."
        return Mistake(key, "the name of a file is missing", way, written=written, code="missing")
    return Mistake(
        key,
        f"there is no file {unknown}.yaml in {key}/",
        f"Files: {', '.join(options)}. Put your own files into a folder and pass it with --config-dir.",
        tuple(suggest(override.get_key_element(), option) for option in nearest(str(unknown), options)),
        written=written,
        code="unknown_choice",
    )


def apply(override: Override, config: DictConfig) -> list[Mistake]:
    """Set a field in `config` as Hydra does; return the errors at which Hydra would stop."""
    key, value, written = override.key_or_group, override.value(), str(override.input_line)
    if override.package is not None:
        near = _near_keys(key, config)
        return [Mistake(key, f"there is no group {key}", nearest=near, written=written, code="unknown_key")]
    try:
        # Some of Hydra's own values, such as the job's number, exist only once a point runs: not an error of the user.
        resolvable = not override.is_hydra_override()
        current = OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=resolvable)
        if override.is_delete():
            return _delete(override, current, config)
        empty = value is None and override.is_hydra_override()  # other groups of fields can be reset with null
        if isinstance(current, Mapping) and (isinstance(value, (str, int, float)) or empty):
            choice = f"{key.replace('.', '/')}={override.get_value_string()}"
            chosen = "." in key and group_options(key.replace(".", "/"))
            way = f"To choose a file, use a slash: {shlex.quote(choice)}" if chosen else "Write it as {key: value}."
            return [Mistake(key, f"{key} is a group of fields, not a single field", way, written=written)]
        if override.is_add() and current is not None and not isinstance(value, (dict, list)):
            way = f"To change it, drop the plus: {shlex.quote(written.lstrip('+'))}"
            return [Mistake(key, f"is already set to {current}", way, written=written)]
        mistakes = []
        if not (override.is_add() or override.is_force_add()):
            missing = list(_missing_keys(key, value, config))
            mistakes = [
                found for path in missing if (found := _missing_key_mistake(path, override, config)) is not None
            ]
            local = [path.removeprefix(_MOUNTED) for path in missing]
            if any(not path.startswith(_OPEN) or (path.count(".") > 1 and mistakes) for path in local):
                return mistakes  # further errors would only follow from these
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError) as error:
        return [_refused_mistake(error, override)]
    return mistakes or _stripped_space_mistakes(override)


def _refused_mistake(error: Exception, override: Override) -> Mistake:
    """Return the mistake of an override that OmegaConf refuses."""
    key, written = override.key_or_group, str(override.input_line)
    if key == "hydra.sweeper.params":
        way = "On the command line, give the keys themselves several values: engine.seed=1,2"
        return Mistake(key, "can only be set in a file", way, written=written)
    if not isinstance(error, OmegaConfBaseException):
        return Mistake(key, describe_error(error), written=written)
    return replace(reference_mistake(error, [override]), key=key, written=written)


def _stripped_space_mistakes(override: Override) -> list[Mistake]:
    """Return an error if Hydra strips the white space around a prompt or a template."""
    value, written = override.value(), str(override.input_line)
    if not (override.key_or_group.removeprefix(_MOUNTED).startswith(_TEXTS) and isinstance(value, str)):
        return []
    name, equals, _ = written.partition("=")
    typed = override.get_value_string()
    if not equals or typed == typed.strip() or value != typed.strip():
        return []
    way = quoted(name, typed)
    return [Mistake(override.key_or_group, "Hydra strips the white space around this string", way, written=written)]


def _delete(override: Override, current: Any, config: DictConfig) -> list[Mistake]:
    key, value, written = override.key_or_group, override.value(), str(override.input_line)
    if current is None:
        what, near = "is not set, so there is nothing to delete", _near_keys(key, config)
        near = tuple(other for other in near if other != key)
        return [Mistake(key, what, nearest=near, written=written, code="unknown_key")]
    if value is not None and value != current:
        way = f"To delete it: {shlex.quote(f'~{key}')}"
        return [Mistake(key, f"is {current}, so this deletes nothing", way, written=written)]
    parent, _, name = key.rpartition(".")
    with open_dict(config):
        del (OmegaConf.select(config, parent) if parent else config)[name]
    return []


def describe_error(error: Exception) -> str:
    """Return the message of an error of Hydra's or OmegaConf's in one line, without Hydra's internal search path and keys."""
    text = str(error) or str(error.__cause__ or type(error).__name__)
    lines = (line.strip() for line in text.split("Config search path:")[0].splitlines())
    internal = ("full_key:", "object_type=", "reference_type=")
    return _in_plain_words(" ".join(line for line in lines if line and not line.startswith(internal)))


def _in_plain_words(text: str) -> str:
    """Return an error of OmegaConf's about a value's type with the types in plain English; other texts unchanged."""
    if re.match(r"[Ff]ield '[^']*' is not Optional", text):
        return "must not be null"
    if (found := re.match(r"Value '.*' of type '(\w+)' could not be converted to (Integer|Float)", text)) is not None:
        return f"must be {type_name('int' if found[2] == 'Integer' else 'float')}, not {type_name(found[1])}"
    if re.match(r"Value '.*' is not a valid bool", text):
        return f"must be {type_name(bool)}"
    if (found := re.match(r"Cannot assign (\w+) to (Dict|List)", text)) is not None:
        return f"must be {type_name(found[2].lower())}, not {type_name(found[1])}"
    return text


def reference_mistake(error: OmegaConfBaseException, overrides: Sequence[Override]) -> Mistake:
    """Return the error of a required value that is missing (`???`), or of a reference (`${...}`) that cannot be resolved.

    The latter comes with how to write a literal `${`.

    Args:
        error: The error that OmegaConf raised.
        overrides: The overrides of fields on the command line.
    """
    key, text = error.full_key or "configuration", str(error)
    if isinstance(error, MissingMandatoryValue):
        to = f" to {_REQUIRED[key]}" if key in _REQUIRED else ""
        return Mistake(key, "is required", f"Set it{to}: {key}=...", code="missing")
    override = next((item for item in reversed(overrides) if item.key_or_group == key), None)
    value = override.value() if override is not None else None
    written = "" if override is None else str(override.input_line)
    if missing := re.search(r"Environment variable '([^']*)' not found", text):
        name = missing[1]
        default = f"${{oc.env:{name},default}}"
        example = default
        if written:
            field, _, text = written.replace(f"${{oc.env:{name}}}", default).partition("=")
            example = shlex.quote(f"{field}={unquoted(text)}")
        way = f"Set it (export {name}=...), or give a default: {example}"
        return Mistake(key, f"the environment variable {name} is not set", way, written=written, code="missing")
    what, way = describe_error(error), ""
    if unknown := re.match(r"Unsupported interpolation type (\S+)", text):
        resolvers = nearest(unknown[1], BaseContainer._resolvers)
        near = tuple(f"${{{name}:...}}" for name in resolvers)
        return Mistake(key, f"there is no resolver {unknown[1]}", _LITERAL, near, written=written, code="syntax")
    if "missing BRACE_CLOSE" in text:
        what = "a reference (${...}) has no closing brace"
    if isinstance(value, str) and "${" in value:
        way = f"A literal ${{ is written \\${{: {suggest(written.partition('=')[0], value)}"
    elif "nterpolation" in text or "grammar" in text.lower() or "BRACE_CLOSE" in text:
        way = _LITERAL
    return Mistake(key, what, way, written=written, code="syntax")


def _missing_keys(key: str, value: Any, config: DictConfig) -> Iterator[str]:
    """Yield the keys that an override would have to add: its own, or those inside a dict that it sets."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, ListConfig):
        if not (name.isdecimal() and int(name) < len(node)):
            yield key
    elif not isinstance(node, Mapping) or name not in list(node):  # `name in node` is false for a value of ???
        yield key
    elif isinstance(value, dict) and isinstance(node[name], Mapping):
        for inner, item in value.items():
            yield from _missing_keys(f"{key}.{inner}", item, config)


def _missing_key_mistake(key: str, override: Override, config: DictConfig) -> Mistake | None:
    """Return the error of a key that the configuration does not have; None where preflight has a better message."""
    written = str(override.input_line)
    group, _, rest = key.removeprefix(_MOUNTED).partition(".")
    field, _, inner = rest.partition(".")
    vllm = vllm_catalogue()
    what = ""
    if key.removeprefix(_MOUNTED).startswith("engine.env."):
        if vllm is None or not inner.startswith("VLLM_") or inner in vllm.env:
            what = "this environment variable is not set yet"
    elif group == "engine":
        if vllm is None or field in vllm.args:
            what = f"{key} is not set yet" if inner else "this engine argument is not listed in conf/engine/"
    elif group == "prompts":
        if known_prompt_key(rest, mteb_catalogue()):
            what = "this prompt key is not set yet"
    elif key.removeprefix(_MOUNTED).startswith(_OPEN):
        what = f"{key} is not set yet"
    else:
        near = _near_keys(key, config)
        place = written if override.key_or_group == key else f"{written}: {key}"
        way = "" if near else "To print all keys: mteb-vllm --cfg job"
        return Mistake(key, "there is no such key", way, near, written=place, code="unknown_key")
    way = f"Add it with a plus: {shlex.quote(f'+{written}')}"
    return Mistake(key, what, way, written=written, code="unknown_key") if what else None


def _near_keys(key: str, config: DictConfig) -> tuple[str, ...]:
    """Return the keys probably meant: similar names at the first unknown part of the path, else the same name elsewhere."""
    parts = key.split(".")
    node: Any = config
    for at, part in enumerate(parts):
        if not isinstance(node, Mapping):
            return ()
        if part not in node:
            near = nearest(part, [str(item) for item in node if item != "hydra"])
            if near:
                return tuple(".".join([*parts[:at], name, *parts[at + 1 :]]) for name in near)
            break
        node = OmegaConf.select(config, ".".join(parts[: at + 1]))
    groups = {
        str(group): fields for group, fields in config.items() if isinstance(fields, Mapping) and group != "hydra"
    }
    return tuple(f"{group}.{parts[-1]}" for group, fields in groups.items() if parts[-1] in fields)


def differing_overrides(runs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return for each run of a sweep the overrides in which the runs differ.

    Args:
        runs: The overrides of each run.

    Returns:
        key to value, for each run.
    """
    parsed = [dict(_key_value(text) for text in overrides) for overrides in runs]
    keys = dict.fromkeys(key for one in parsed for key in one)
    varying = [key for key in keys if len({one.get(key, "") for one in parsed}) > 1]
    return [{key: one.get(key, "") for key in varying} for one in parsed]


def _key_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def override_text(override: Override) -> str:
    """Return an override as the user wrote it."""
    return str(override.input_line)


def override_mistake(override: Override, what: str, way: str = "", *, code: Code = "conflict") -> Mistake:
    """Return a mistake about an override, which is shown as the user wrote it."""
    return Mistake(override.key_or_group, what, way, written=override_text(override), code=code)
