"""Size limits of a configuration: small files whose aliases or references expand without bound are refused, not expanded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from mteb_vllm.errors import Mistake

# Far more than any real configuration needs: bytes per file, values per file with aliases expanded, nesting levels, and
# characters per text with references expanded.
_BYTES, _VALUES, _LEVELS, _CHARACTERS = 5_000_000, 100_000, 100, 1_000_000

_REFERENCE = re.compile(r"(?<!\\)\$\{(\.*)([\w.\[\]]+)\}")


class TooLargeError(yaml.YAMLError):
    """A YAML file exceeds the size limits, as it is or with its aliases expanded."""


@contextlib.contextmanager
def bounded_files() -> Iterator[None]:
    """Make OmegaConf raise a `TooLargeError` for YAML that exceeds the limits, for the duration of the context."""
    from omegaconf import _utils

    get_loader = _utils.get_yaml_loader

    def get_bounded_loader() -> Any:
        class Bounded(get_loader()):  # type: ignore[misc]
            def get_single_node(self) -> Any:
                if Path(self.name).is_file() and Path(self.name).stat().st_size > _BYTES:
                    raise TooLargeError(f"{self.name} has more than {_BYTES:,} bytes")
                node = super().get_single_node()
                _count_values(node, self.name, {}, 0)
                return node

            def compose_node(self, parent: Any, index: Any) -> Any:
                self.levels = getattr(self, "levels", 0) + 1
                if self.levels > _LEVELS:
                    raise TooLargeError(f"{self.name} is nested more than {_LEVELS} levels deep")
                node = super().compose_node(parent, index)
                self.levels -= 1
                return node

        return Bounded

    _utils.get_yaml_loader = get_bounded_loader
    try:
        yield
    finally:
        _utils.get_yaml_loader = get_loader


def _count_values(node: Any, file: str, counts: dict[int, int], level: int) -> int:
    """Return the number of values in a node with all aliases expanded; `counts` caches it by the node's id."""
    if level > _LEVELS:
        raise TooLargeError(f"{file} is nested more than {_LEVELS} levels deep: one of its aliases contains itself")
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counts:
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = 1 + sum(_count_values(one, file, counts, level + 1) for one in inner)
    if counts[id(node)] > _VALUES:
        raise TooLargeError(f"{file} expands to more than {_VALUES:,} values through its aliases (&, *)")
    return counts[id(node)]


def reference_mistakes(config: DictConfig) -> list[Mistake]:
    """Return the errors in a composed configuration's references (`${...}`): cycles, and texts that expand too far."""
    raw: Any = OmegaConf.to_container(config)
    sizes: dict[tuple[str, ...], int] = {}
    open_paths: list[tuple[str, ...]] = []

    def size_at(path: tuple[str, ...]) -> int:
        if path in open_paths:
            raise _EndlessError(path, "refers to itself")
        if path not in sizes:
            node: Any = raw
            for key in path:
                node = node.get(key) if isinstance(node, dict) else _item(node, key)
            open_paths.append(path)
            sizes[path] = size_of(node, path)
            open_paths.pop()
        if sizes[path] > _CHARACTERS:
            raise _EndlessError(path, f"expands to more than {_CHARACTERS:,} characters through its references")
        return sizes[path]

    def size_of(node: Any, path: tuple[str, ...]) -> int:
        if isinstance(node, (dict, list)):
            keys = node if isinstance(node, dict) else range(len(node))
            return 1 + sum(size_at((*path, str(key))) for key in keys)
        text = str(node)
        size = len(text)
        for dots, name in _REFERENCE.findall(text) if "${" in text else ():
            start = path[: len(path) - len(dots)] if dots else ()
            size += size_at((*start, *(part for part in re.split(r"[.\[\]]+", name) if part)))
        return size

    try:
        for key in raw:
            size_at((str(key),))
    except _EndlessError as error:
        return [Mistake(".".join(error.path), error.what, code="syntax")]
    except RecursionError:
        return [Mistake("configuration", "is nested too deeply", code="syntax")]
    return []


class _EndlessError(Exception):
    """A reference at `path` contains itself or expands too far; `what` is the message."""

    def __init__(self, path: tuple[str, ...], what: str) -> None:
        super().__init__(what)
        self.path, self.what = path, what


def _item(node: Any, key: str) -> Any:
    return node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else None
