"""Plain values: what JSON, YAML and the hash of settings can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"


def json_value(value: object) -> object:
    """Return a value as JSON in UTF-8 can hold it.

    Floats that are NaN or infinite become None, lone surrogates (bytes of a file's name that are no character) are escaped,
    keys become texts, and tuples lists; what JSON does not know otherwise stays for whoever dumps it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {str(json_value(str(key))): json_value(item) for key, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, (list, tuple)) else value
