"""How an override is written, so that a shell and Hydra's parser both leave its value as it is.

Every override and command that the program suggests is written here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

# A text that Hydra reads as itself without quotes, and not as a number, a switch or null.
_BARE = re.compile(r"[A-Za-z_/.][\w/.+%@-]*", re.ASCII)
_OTHERWISE = re.compile(r"(true|false|null|nan|inf|\.?\d.*|\.)", re.IGNORECASE)


# Of the command that is being checked: each key that it sets, with the plus in front of it or "".
_TYPED: ContextVar[Mapping[str, str]] = ContextVar("typed", default=MappingProxyType({}))


@contextmanager
def keep_prefixes(typed: Mapping[str, str]) -> Iterator[None]:
    """Make suggestions fit a command line, inside the block: they keep the plus of what they replace.

    Args:
        typed: Each key that the command line sets, with the plus in front of it or "".
    """
    token = _TYPED.set(typed)
    try:
        yield
    finally:
        _TYPED.reset(token)


def as_typed(key: str, instead_of: str | None = None, *, new: bool = False) -> str:
    """Return a key with the plus that it needs; one that a file sets needs none.

    Args:
        key: The key that is suggested.
        instead_of: The key in whose place it is suggested; None: `key` itself.
        new: Whether no file declares `key`.
    """
    typed, place = _TYPED.get(), instead_of or key
    found = next((name for name in typed if place == name or place.startswith(f"{name}.")), None)
    return key if found is None else (typed[found] or ("+" if new else "")) + key


def command(*words: str) -> str:
    """Return a command line of `mteb-vllm` for a shell; `words` are its arguments, as a program gets them."""
    return shlex.join(["mteb-vllm", *words])


def suggest(key: str, value: object) -> str:
    """Return an override for a shell: `suggest("prompts.query", "it's: ")` can be pasted into bash.

    Args:
        key: The key; it gets the plus that the command line has in front of it.
        value: The value, in plain containers.
    """
    return shlex.quote(override(as_typed(key), value))


def override(key: str, value: object) -> str:
    """Return an override as Hydra's parser reads it: an element of `sys.argv`."""
    return f"{key}={hydra_value(value)}"


def hydra_value(value: object) -> str:
    """Return a value in Hydra's grammar, which reads it back as it is, `${` and a backslash before an n included.

    Args:
        value: A text, number, switch, None, list or dict.
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
    if _BARE.fullmatch(value) and not _OTHERWISE.fullmatch(value):
        return value
    return _quoted(value)


def _quoted(text: str) -> str:
    # OmegaConf takes `${` for a reference; backslashes in front of it are its escapes.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # Hydra halves the backslashes in front of a quote, the closing one included.
    return '"' + re.sub(r'(\\*)("|$(?![\s\S]))', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def _key(text: str) -> str:
    # A key of a dict cannot be quoted.
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", text)


def unquoted(text: str) -> str:
    """Return what somebody wrote for a text's value without the pair of quotes around it, where there is one."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
