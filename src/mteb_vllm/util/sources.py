"""Analysis of Python modules from their source, without executing them."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from sysconfig import get_path
from types import ModuleType

# Number of re-exporting modules to follow before giving up.
_REEXPORTS = 10


@dataclass(frozen=True)
class CallableSource:
    """Where a name is defined.

    Attributes:
        module: The module that defines it, as opposed to one that re-exports it.
        name: Its name in that module.
        file: The module's source; None for a built-in or extension module.
        node: The function or class definition, or the expression assigned to the name. None if the source does not show it,
            e.g. with `from m import *`.
        digest: SHA-256 of the source, in hexadecimal digits; None without a source.
    """

    module: str
    name: str
    file: Path | None = None
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr | None = field(default=None, compare=False)
    digest: str | None = None

    @property
    def arguments(self) -> ast.arguments | None:
        """The arguments of a function or lambda; None if unknown."""
        return self.node.args if isinstance(self.node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) else None

    @property
    def is_no_callable(self) -> bool:
        """Whether the name is certainly bound to something that is not callable."""
        return isinstance(self.node, (ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.BinOp))


def find_module(name: str) -> ModuleSpec | None:
    """Return the spec of a module, or None if there is no such module.

    In contrast to `importlib.util.find_spec`, this does not import the parents of a dotted name.
    """
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    path = top
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = f"{path}.{part}"
        folders = list(spec.submodule_search_locations)
        try:
            spec = PathFinder.find_spec(path, folders)
        except KeyError:  # a namespace package, for which PathFinder looks up the parent in sys.modules
            spec = ModuleSpec(path, None, is_package=True)
            spec.submodule_search_locations = [str(at) for folder in folders if (at := Path(folder, part)).is_dir()]
    return spec


def find_callable_source(path: str) -> CallableSource:
    """Return where a callable is defined, given its import path: `package.module:name` or `package.module.name`.

    Raises:
        ValueError: if there is no such module, its source cannot be parsed, or it does not define the name.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    for _ in range(_REEXPORTS):
        spec = find_module(module)
        if spec is None:
            raise ValueError(f"there is no module {module}")
        if spec.origin is None or not spec.origin.endswith(".py"):
            return CallableSource(module, name)
        file = Path(spec.origin)
        try:
            content = file.read_bytes()
            tree = ast.parse(content, str(file))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{file} cannot be read as Python: {error}") from None
        found = list(_bindings(tree.body, name))
        source = CallableSource(module, name, file, None, hashlib.sha256(content).hexdigest())
        if not found:
            if find_module(f"{module}.{name}") is not None:
                raise ValueError(f"{module}.{name} is a module, not a callable")
            if any(True for name in ("*", "__getattr__") for _ in _bindings(tree.body, name)):
                return source
            raise ValueError(f"{file} does not define {name!r}")
        node = found[-1]
        if not isinstance(node, ast.ImportFrom):
            known = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)
            return CallableSource(module, name, file, node if isinstance(node, known) else None, source.digest)
        origin = _absolute(node, module, is_package=file.name == "__init__.py")
        name = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        module = origin
    raise ValueError(f"{path} is re-exported by more than {_REEXPORTS} modules, or circularly")


# Module to the digest of the source from which it was imported.
_IMPORTED: dict[str, str] = {}


def import_current(module: str, name: str, source: CallableSource) -> object:
    """Import a name from a user's module, reloading the module if it was edited since it was imported.

    Modules of this package, of the standard library and of installed packages are not: reloading one would replace its
    classes, and objects made before would no longer be instances of them.

    Args:
        module: The module from which to import it.
        name: Its name in that module.
        source: Where it is defined.

    Raises:
        Exception: whatever the module raises, or AttributeError if it has no such name.
    """
    if source.digest is not None and _IMPORTED.get(source.module) != source.digest:
        for one in dict.fromkeys((source.module, module)):
            if one in sys.modules and not _is_installed(sys.modules[one]):
                importlib.reload(sys.modules[one])
    found: object = getattr(importlib.import_module(module), name)
    if source.digest is not None:
        _IMPORTED[source.module] = source.digest
    return found


def _is_installed(module: ModuleType) -> bool:
    """Return whether a module belongs to this package, to the standard library or to an installed package."""
    places = {
        Path(path).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := get_path(name))
    }
    file = Path(module.__file__).resolve() if module.__file__ else None
    return (
        module.__name__.partition(".")[0] == __package__.partition(".")[0]
        or file is None
        or bool(places & {*file.parents})
    )


def _bindings(body: Sequence[ast.stmt], name: str) -> Iterator[ast.AST]:
    """Yield the nodes that bind a name at a module's top level, including in `if`, `try` and `with`, in order."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                yield node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if any((alias.asname or alias.name.partition(".")[0]) == name for alias in node.names):
                yield node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None and any(isinstance(one, ast.Name) and one.id == name for one in targets):
                yield node.value
            elif any(isinstance(one, ast.Name) and one.id == name for target in targets for one in ast.walk(target)):
                yield node
        else:
            for field in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(node, field, ()):
                    yield from _bindings(inner.body if isinstance(inner, ast.ExceptHandler) else [inner], name)


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the full name of the module from which a `from` statement imports."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])
