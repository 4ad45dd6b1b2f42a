"""Detection of secrets in a configuration, and their masking in everything that a run writes.

A secret is a value whose field or environment variable has a name that ends in the word TOKEN, SECRET, PASSWORD or API_KEY.
It is passed to the engine and nowhere else. It is not part of the fingerprint, so it is allowed only in the settings of an
engine, where no result depends on it.

There are two mechanisms. From composition on, a secret in the configuration is a `Secret`, which is dropped or masked
wherever settings become plain values. Its value is also registered, so that it is masked in text from other sources: logs,
exceptions, Hydra's files.
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

# In these fields, a token is a text token, e.g. `classifier_from_token` or `pad_token`.
_MODEL_FIELDS = ("hf_overrides", "pooler_config")

# A shorter value may occur inside other words, and is masked only as a whole word.
_SUBSTRING_LENGTH = 8
# An even shorter value is not masked in texts, only in its own field.
_MIN_LENGTH = 4


class Secret(str):
    """A value that is masked in everything that is printed or written; `str` operations give the value itself."""

    def __repr__(self) -> str:
        return repr(MASK)


def registered() -> tuple[str, ...]:
    """Return all registered values, to be masked by another process as well."""
    return tuple(_values)


_values: set[str] = set()
_pattern: re.Pattern[str] | None = None
# Number of reads of secret environment variables, used to detect that a value came from one.
_reads = 0


def is_secret_name(name: str) -> bool:
    """Whether a field or environment variable of this name holds a secret."""
    return _NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) is not None


def is_secret_field(path: tuple[str, ...]) -> bool:
    """Whether a field of an engine's settings holds a secret.

    Args:
        path: Its keys, e.g. `("hf_token",)` or `("env", "MY_API_KEY")`.
    """
    of_texts = path[0] in _MODEL_FIELDS and re.search("token$", path[-1], re.IGNORECASE) is not None
    return is_secret_name(path[-1]) and not of_texts


def register(value: object) -> None:
    """Register a value to be masked in all text from now on."""
    global _pattern
    text = str(value)
    if isinstance(value, bool) or len(text) < _MIN_LENGTH or text in _values:
        return
    _values.add(text)
    forms = {form for one in _values for form in _written(one)}
    words = sorted(forms, key=len, reverse=True)
    _pattern = re.compile("|".join(_expression(word) for word in words if len(word) >= _MIN_LENGTH))


def _written(value: str) -> tuple[str, ...]:
    """Return the forms in which a value appears in plain text, JSON, YAML and HTML."""
    quoted = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], value.replace("'", "''")
    return value, value.strip(), html.escape(value), *quoted


def _expression(value: str) -> str:
    escaped = re.escape(value)
    return escaped if len(value) >= _SUBSTRING_LENGTH else rf"(?<!\w){escaped}(?!\w)"


def forget() -> None:
    """Forget all registered values; for tests."""
    global _pattern
    _values.clear()
    _pattern = None


def mask(text: str) -> str:
    """Return a text with every registered secret masked."""
    return text if _pattern is None else _pattern.sub(MASK, text)


def mask_values(values: Mapping[str, object]) -> dict[str, object]:
    """Return plain values (dicts, lists, strings) with every secret masked."""
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
    """Return an engine's settings without secrets, on which no result depends."""
    return {key: _without_secrets(item) for key, item in values.items() if not isinstance(item, Secret)}


def _without_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value if not isinstance(item, Secret)]
    return value


def with_secrets(values: Mapping[str, object], path: tuple[str, ...] = ()) -> dict[str, object]:
    """Return an engine's settings with the values of secret fields as `Secret`s, and register them.

    Args:
        values: The settings.
        path: The keys that lead to them, e.g. `("env",)`.
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
    """Make OmegaConf's `oc.env` register the values of variables whose name is that of a secret."""
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
    """Register secrets that are spelled out in overrides, so that no message about them shows them."""
    for text in overrides:
        key, _, value = text.partition("=")
        if is_secret_field(in_engine(tuple(key.lstrip("+~").split("."))) or (key,)) and "${" not in value:
            register(value.strip().strip("'\""))


def register_fields(config: object) -> None:
    """Register secrets that are spelled out in a composed configuration, whether or not it can be resolved."""
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
    """Return the paths of secrets in a composed, resolvable configuration, and register their values."""
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
    """Return the keys below `engine` in a path; empty if the path does not contain `engine`."""
    words = tuple(map(str, path))
    if "engine" not in words[:-1]:
        return ()
    inner = words[words.index("engine") + 1 :]
    # Items of a list have no names, so the name of the list applies.
    named = tuple(word for word in inner if not word.isdecimal())
    return named or inner


def protect(values: object, secrets: set[tuple[str | int, ...]]) -> None:
    """Replace the values at the paths returned by `find_secrets` by `Secret`s, in place."""
    for path in secrets:
        *parents, last = path
        node: Any = values
        for key in parents:
            node = node[key]
        if not isinstance(node[last], bool):
            node[last] = Secret(str(node[last]))


def scrub(folder: Path) -> None:
    """Mask secrets in files that other code has written into a run's folder: logs and Hydra's copies of the configuration."""
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
        # Write in place, because another process may be appending to an open log.
        with file.open("r+b") as opened:
            opened.write(clean.encode("utf-8", errors="surrogateescape"))
            opened.truncate()


class MaskingFormatter(logging.Formatter):
    """The formatter of a run's log, named in `conf/hydra/job_logging/file.yaml`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted line, including its traceback, with secrets masked."""
        return mask(super().format(record))
