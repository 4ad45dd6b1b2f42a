"""Quoting of overrides so that the shell and Hydra's parser both preserve their values.

Used for every override and command that the program suggests.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

# Text that Hydra reads literally without quotes, unless it is a number, boolean or null.
_BARE = re.compile(r"[A-Za-z_/.][\w/.+%@-]*", re.ASCII)
_NOT_TEXT = re.compile(r"(true|false|null|nan|inf|\.?\d.*|\.)", re.IGNORECASE)


# Each key set by the command that is being checked, with the plus in front of it or "".
_TYPED: ContextVar[Mapping[str, str]] = ContextVar("typed", default=MappingProxyType({}))


@contextmanager
def keep_prefixes(typed: Mapping[str, str]) -> Iterator[None]:
    """Make the suggestions inside the block keep the `+` prefixes of the overrides that they replace.

    Args:
        typed: Each key that the command line sets, with the plus in front of it or "".
    """
    token = _TYPED.set(typed)
    try:
        yield
    finally:
        _TYPED.reset(token)


def as_typed(key: str, instead_of: str | None = None, *, new: bool = False) -> str:
    """Return a key with the `+` prefix that it needs on the command line, if any.

    Args:
        key: The suggested key.
        instead_of: The key that it replaces; None for `key` itself.
        new: Whether no file declares `key`.
    """
    typed, place = _TYPED.get(), instead_of or key
    found = next((name for name in typed if place == name or place.startswith(f"{name}.")), None)
    return key if found is None else (typed[found] or ("+" if new else "")) + key


def command(*words: str) -> str:
    """Return a shell command that runs `mteb-vllm` with these unquoted arguments."""
    return shlex.join(["mteb-vllm", *words])


def suggest(key: str, value: object) -> str:
    """Return an override for a shell: `suggest("prompts.query", "it's: ")` can be pasted into bash.

    Args:
        key: The key, which gets the `+` prefix that the command line has in front of it.
        value: The value, in plain containers.
    """
    return shlex.quote(override(as_typed(key), value))


def override(key: str, value: object) -> str:
    """Return an override as Hydra's parser reads it: an element of `sys.argv`."""
    return f"{key}={hydra_value(value)}"


def hydra_value(value: object) -> str:
    """Return a value in Hydra's grammar, escaped so that Hydra parses it back unchanged, including `${` and backslashes.

    Args:
        value: A string, number, boolean, None, list or dict.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(str(key))}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if not isinstance(value, str):
        return repr(value)
    if _BARE.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
        return value
    return _quoted(value)


def shown(value: object) -> str:
    """Return a value as it is shown in a message: text as it is, anything else as it would be typed."""
    return value if isinstance(value, str) else hydra_value(value)


def _quoted(text: str) -> str:
    # OmegaConf interprets `${` as a reference, and backslashes in front of it as escapes.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # Hydra halves the backslashes in front of a quote, including the closing one.
    return '"' + re.sub(r'(\\*)("|$(?![\s\S]))', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def _key(text: str) -> str:
    # Hydra does not allow quotes around the keys of a dict.
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", text)


def unquoted(text: str) -> str:
    """Return a text without the pair of quotes around it, if there is one."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
