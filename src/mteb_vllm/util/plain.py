"""Plain values, which JSON, YAML and fingerprints can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"


def json_value(value: object) -> object:
    """Return a value converted so that JSON in UTF-8 can represent it.

    NaN and infinite floats become None, lone surrogates (undecodable bytes of file names) are escaped, keys become strings,
    and tuples become lists. Values of other types are left to the JSON encoder.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {str(json_value(str(key))): json_value(item) for key, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, (list, tuple)) else value
