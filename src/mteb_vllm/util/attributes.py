"""Replace attributes of an object for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replace_attributes(thing: object, **attributes: object) -> Iterator[None]:
    """Replace attributes of an object inside the block."""
    before = {name: vars(thing)[name] for name in attributes if name in vars(thing)}
    try:
        for name, value in attributes.items():
            setattr(thing, name, value)
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(thing, name, before[name])
            else:
                delattr(thing, name)
