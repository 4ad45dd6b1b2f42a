"""Types are named in plain English."""

from __future__ import annotations

import pytest

from mteb_vllm.util.type_names import type_name, wrong_type


@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "a whole number"), (True, "true or false"), ("x", "text"), (1.5, "a number"), ([], "a list"), ({}, "a mapping"),
     (None, "nothing (null)"), (b"", "bytes")],
)  # fmt: skip
def test_names_of_types(value: object, name: str) -> None:
    assert type_name(type(value)) == type_name(type(value).__name__) == name


def test_a_fraction_is_not_contrasted_with_a_number() -> None:
    assert wrong_type(int, 1.5) == "must be a whole number"
    assert wrong_type("int", None) == "must be a whole number, not nothing (null)"
