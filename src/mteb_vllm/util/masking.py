"""Secrets: which values of a configuration are some, and how they are kept out of everything that a run writes.

A secret is a value whose field, or the environment variable that it is read from, has a name that ends in TOKEN, SECRET,
PASSWORD or API_KEY as a whole word. It reaches the engine, and nothing else: it is in no fingerprint, so it may stand only
where no result depends on it, in the settings of an engine.

Two means work together. A value known to be secret is a `Secret` from the composition of the configuration on, which is
dropped or masked wherever settings become plain values. And each is registered, so that it is masked in texts that others
make: logs, exceptions, files of Hydra's.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig

MASK = "***"

_NAME = re.compile(r"(?:^|[^a-z0-9])(?:token|secret|password|api_?key)$")

# In these, a token is one of a text: `classifier_from_token`, `pad_token`.
_OF_MODELS = ("hf_overrides", "pooler_config")

# A shorter value may be a part of any word, and is masked in texts only where it is a word by itself, ...
_PLAIN_LENGTH = 8
# ... and an even shorter one only where it is known to be the secret.
_LEAST_LENGTH = 4


class Secret(str):
    """A value that is masked in everything that is printed or written; `str` operations give the value itself."""

    def __repr__(self) -> str:
        return repr(MASK)


def registered() -> tuple[str, ...]:
    """Return every registered value, for a process that shall mask the same."""
    return tuple(_values)


_values: set[str] = set()
_pattern: re.Pattern[str] | None = None
# Counts the reads of secret variables, to tell which value came from one.
_reads = 0


def is_secret_name(name: str) -> bool:
    """Return whether a field or variable of this name holds a secret."""
    return _NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) is not None


def is_secret_field(path: tuple[str, ...]) -> bool:
    """Return whether a field of an engine's settings holds a secret.

    Args:
        path: Its keys, as `("hf_token",)` or `("env", "MY_API_KEY")`.
    """
    of_texts = path[0] in _OF_MODELS and re.search("token$", path[-1], re.IGNORECASE) is not None
    return is_secret_name(path[-1]) and not of_texts


def register(value: object) -> None:
    """Mask a value from now on in every text."""
    global _pattern
    text = str(value)
    if isinstance(value, bool) or len(text) < _LEAST_LENGTH or text in _values:
        return
    _values.add(text)
    forms = {form for one in _values for form in _written(one)}
    words = sorted(forms, key=len, reverse=True)
    _pattern = re.compile("|".join(_expression(word) for word in words if len(word) >= _LEAST_LENGTH))


def _written(value: str) -> tuple[str, ...]:
    """Return the forms that a value has in JSON, YAML and HTML."""
    quoted = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], value.replace("'", "''")
    return value, value.strip(), html.escape(value), *quoted


def _expression(value: str) -> str:
    escaped = re.escape(value)
    return escaped if len(value) >= _PLAIN_LENGTH else rf"(?<!\w){escaped}(?!\w)"


def forget() -> None:
    """Forget all registered values, as tests need it."""
    global _pattern
    _values.clear()
    _pattern = None


def mask(text: str) -> str:
    """Return a text with every registered secret masked."""
    return text if _pattern is None else _pattern.sub(MASK, text)


def mask_values(values: Mapping[str, object]) -> dict[str, object]:
    """Return plain values (dicts, lists, texts) with every secret masked."""
    return {key: _masked(value) for key, value in values.items()}


def _masked(value: object) -> object:
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, Mapping):
        return mask_values(value)
    if isinstance(value, (list, tuple)):
        return [_masked(item) for item in value]
    return mask(value) if isinstance(value, str) else value


def without_secrets(values: Mapping[str, object]) -> dict[str, object]:
    """Return an engine's settings without the secrets in them, which no result depends on."""
    return {key: _without_secrets(item) for key, item in values.items() if not isinstance(item, Secret)}


def _without_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value if not isinstance(item, Secret)]
    return value


def with_secrets(values: Mapping[str, object], path: tuple[str, ...] = ()) -> dict[str, object]:
    """Return an engine's settings in which the values of secret fields are `Secret`s, and register those.

    Args:
        values: The settings.
        path: The keys that lead to them, as `("env",)`.
    """
    found: dict[str, object] = {}
    for key, value in values.items():
        at = (*path, str(key))
        if isinstance(value, Mapping):
            found[key] = with_secrets(value, at)
        elif isinstance(value, (str, int)) and not isinstance(value, bool) and is_secret_field(at):
            register(value)
            found[key] = Secret(value)
        else:
            found[key] = value
    return found


def watch_environment() -> None:
    """Let OmegaConf's `oc.env` register what it reads from variables with a secret's name."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def env(key: str, *default: str | None) -> str | None:
        global _reads
        value = oc.env(key, *default)
        if value is not None and is_secret_name(key):
            register(value)
            _reads += 1
        return value

    OmegaConf.register_new_resolver("oc.env", env, replace=True)


def register_written(overrides: Sequence[str]) -> None:
    """Register the secrets that are written out in overrides, before anything is said of them."""
    for text in overrides:
        key, _, value = text.partition("=")
        if is_secret_field(in_engine(tuple(key.lstrip("+~").split("."))) or (key,)) and "${" not in value:
            register(value.strip().strip("'\""))


def register_fields(config: object) -> None:
    """Register the secrets that are written out in a composed configuration, whether or not it resolves."""
    from omegaconf import OmegaConf

    def walk(node: object, path: tuple[str, ...]) -> None:
        if isinstance(node, (dict, list)):
            for key, item in node.items() if isinstance(node, dict) else enumerate(node):
                walk(item, (*path, str(key)))
        elif node is not None and "${" not in str(node):
            of_job = path[:3] == ("hydra", "job", "env_set") and is_secret_name(path[-1])
            if of_job or _is_secret_leaf(path):
                register(node)

    walk(OmegaConf.to_container(config), ())


def find_secrets(config: DictConfig) -> set[tuple[str | int, ...]]:
    """Return where secrets stand in a composed configuration that resolves, and register them."""
    return set(_found(config, ()))


def _found(node: DictConfig | ListConfig, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    from omegaconf import DictConfig, ListConfig

    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        before, at = _reads, (*path, key)
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            yield from _found(value, at)
        elif value is not None and (_reads > before or _is_secret_leaf(at)):
            register(value)
            yield at


def _is_secret_leaf(path: tuple[str | int, ...]) -> bool:
    inner = in_engine(path)
    return bool(inner) and is_secret_field(inner)


def in_engine(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the keys below the `engine` that a path leads through; none where it leads through no engine."""
    words = tuple(map(str, path))
    if "engine" not in words[:-1]:
        return ()
    inner = words[words.index("engine") + 1 :]
    # A list has no names: its own counts.
    named = tuple(word for word in inner if not word.isdecimal())
    return named or inner


def protect(values: object, secrets: set[tuple[str | int, ...]]) -> None:
    """Make `Secret`s of those of the plain values that stand at the paths of `find_secrets`, in place."""
    for path in secrets:
        *parents, last = path
        node: Any = values
        for key in parents:
            node = node[key]
        if not isinstance(node[last], bool):
            node[last] = Secret(str(node[last]))


def scrub(folder: Path) -> None:
    """Mask secrets in what others have written into a run's folder: logs, and Hydra's copies of the configuration."""
    if _pattern is None:
        return
    for file in [*folder.glob("*"), *folder.glob(".hydra/*")]:
        if file.is_file() and not file.is_symlink():
            with contextlib.suppress(OSError, UnicodeError):
                _scrub_file(file)


def _scrub_file(file: Path) -> None:
    content = file.read_bytes().decode("utf-8", errors="surrogateescape")
    clean = mask(content)
    if clean != content:
        # In place: whoever has a log open goes on writing to its end.
        with file.open("r+b") as opened:
            opened.write(clean.encode("utf-8", errors="surrogateescape"))
            opened.truncate()


class MaskingFormatter(logging.Formatter):
    """The formatter of a run's log, named in `conf/hydra/job_logging/file.yaml`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, its traceback included, without secrets."""
        return mask(super().format(record))
