"""What a configuration may expand to: files of a few lines whose aliases or references multiply are refused, not expanded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from mteb_vllm.errors import Mistake

# Far more than any configuration has: bytes of a file, values in it with its aliases written out, levels, and characters of
# a text with its references written out.
_BYTES, _VALUES, _LEVELS, _CHARACTERS = 5_000_000, 100_000, 100, 1_000_000

_REFERENCE = re.compile(r"(?<!\\)\$\{(\.*)([\w.\[\]]+)\}")


class TooLargeError(yaml.YAMLError):
    """A file is larger than any configuration, or expands to more."""


@contextlib.contextmanager
def bounded_files() -> Iterator[None]:
    """Let OmegaConf refuse YAML that expands without end, with a `TooLargeError`."""
    from omegaconf import _utils

    make = _utils.get_yaml_loader

    def bounded() -> Any:
        class Bounded(make()):  # type: ignore[misc]
            def get_single_node(self) -> Any:
                if Path(self.name).is_file() and Path(self.name).stat().st_size > _BYTES:
                    raise TooLargeError(f"{self.name} has more than {_BYTES:,} bytes")
                node = super().get_single_node()
                _weight(node, self.name, {}, 0)
                return node

            def compose_node(self, parent: Any, index: Any) -> Any:
                self.levels = getattr(self, "levels", 0) + 1
                if self.levels > _LEVELS:
                    raise TooLargeError(f"{self.name} is nested more than {_LEVELS} levels deep")
                node = super().compose_node(parent, index)
                self.levels -= 1
                return node

        return Bounded

    _utils.get_yaml_loader = bounded
    try:
        yield
    finally:
        _utils.get_yaml_loader = make


def _weight(node: Any, file: str, known: dict[int, int], level: int) -> int:
    """Return how many values a node stands for when every alias is written out."""
    if level > _LEVELS:
        raise TooLargeError(f"{file} is nested more than {_LEVELS} levels deep: an alias in it holds itself")
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_weight(one, file, known, level + 1) for one in inner)
    if known[id(node)] > _VALUES:
        raise TooLargeError(f"{file} expands to more than {_VALUES:,} values by its aliases (&, *)")
    return known[id(node)]


def reference_mistakes(config: DictConfig) -> list[Mistake]:
    """Return what is wrong with the references (`${...}`) of a composed configuration: loops, and texts without end."""
    raw: Any = OmegaConf.to_container(config)
    known: dict[tuple[str, ...], int] = {}
    running: list[tuple[str, ...]] = []

    def weight(path: tuple[str, ...]) -> int:
        if path in running:
            raise _EndlessError(path, "refers to itself")
        if path not in known:
            node: Any = raw
            for key in path:
                node = node.get(key) if isinstance(node, dict) else _item(node, key)
            running.append(path)
            known[path] = _of(node, path)
            running.pop()
        if known[path] > _CHARACTERS:
            raise _EndlessError(path, f"expands to more than {_CHARACTERS:,} characters by its references")
        return known[path]

    def _of(node: Any, path: tuple[str, ...]) -> int:
        if isinstance(node, (dict, list)):
            keys = node if isinstance(node, dict) else range(len(node))
            return 1 + sum(weight((*path, str(key))) for key in keys)
        text = str(node)
        found = len(text)
        for dots, name in _REFERENCE.findall(text) if "${" in text else ():
            start = path[: len(path) - len(dots)] if dots else ()
            found += weight((*start, *(part for part in re.split(r"[.\[\]]+", name) if part)))
        return found

    try:
        for key in raw:
            weight((str(key),))
    except _EndlessError as error:
        return [Mistake(".".join(error.path), error.what, code="syntax")]
    except RecursionError:
        return [Mistake("configuration", "is nested too deeply", code="syntax")]
    return []


class _EndlessError(Exception):
    def __init__(self, path: tuple[str, ...], what: str) -> None:
        super().__init__(what)
        self.path, self.what = path, what


def _item(node: Any, key: str) -> Any:
    return node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else None
