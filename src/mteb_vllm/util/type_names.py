"""Names of types for messages: those of a YAML file's values in plain English, not in Python's words."""

from __future__ import annotations

_NAMES = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list",
    "tuple": "a list", "set": "a list", "dict": "a mapping", "NoneType": "nothing (null)",
}  # fmt: skip


def type_name(kind: type | str) -> str:
    """Return the name of a type, or of the type that Python calls so: "a whole number" for `int` and for "int"."""
    name = kind if isinstance(kind, str) else kind.__name__
    return _NAMES.get(name, name)


def wrong_type(wanted: type | str, value: object) -> str:
    """Return the problem of a value that is not of the wanted type: "must be a whole number, not text"."""
    expected, found = type_name(wanted), type_name(type(value))
    # A fraction is a number too: the contrast would confuse.
    return (
        f"must be {expected}" if isinstance(value, float) or found == expected else f"must be {expected}, not {found}"
    )
