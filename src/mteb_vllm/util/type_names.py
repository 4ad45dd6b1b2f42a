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


def require(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """Check the type of an argument of a Python function that a user calls.

    Args:
        name: The argument.
        value: Its value; None is allowed.
        kind: The allowed type, or types, of which the first is named in the message.

    Raises:
        TypeError: if the value is of another type.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: {wrong_type(kind[0] if isinstance(kind, tuple) else kind, value)}")


def wrong_type(wanted: type | str, value: object) -> str:
    """Return the problem of a value that is not of the wanted type: "must be a whole number, not text"."""
    expected, found = type_name(wanted), type_name(type(value))
    # A fraction is a number too: the contrast would confuse.
    return (
        f"must be {expected}" if isinstance(value, float) or found == expected else f"must be {expected}, not {found}"
    )
