"""Reverse every condition in the code that decides about reuse, one at a time, and list those that no test detects.

    make test-conditions                                         # all of them
    python tests/reverse_conditions.py results.lookup           # those of some modules
    python tests/reverse_conditions.py results.lookup:120       # the one in line 120 of a module

A condition is the test of an `if`, a `while`, a conditional expression or an `assert`, the filter of a comprehension, a
comparison, a negation, and each operand of an `and`, and of an `or` of truth values. `and` and `or` are also swapped. Each
mutant runs in a process forked after mteb and torch have been imported, with the changed module in place of the real one. It
is detected if a test in the module's test files fails; they stop at the first failure.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT.parent / "src"

# Module to the test files that should detect its mutants, the fastest first.
TESTS = {
    "util.fingerprint": ["util/test_fingerprint.py"],
    "util.machine": ["util/test_fingerprint.py"],
    "results.digests": ["results/test_digests.py"],
    "results.lookup": ["results/test_lookup.py", "sweep/test_planning.py"],
    "results.store": ["results/test_store.py", "pipelines/rerank/test_first_stages.py"],
    "pipelines.rerank.candidates": ["pipelines/rerank/test_first_stages.py"],
    "pipelines.rerank.first_stages": ["pipelines/rerank/test_first_stages.py"],
    "inference.embedding_cache.index": ["inference/test_embedding_cache.py"],
    "inference.embedding_cache.segments": ["inference/test_embedding_cache.py"],
    "inference.embedding_cache.cache": ["inference/test_embedding_cache.py"],
    "pipelines.mteb_run": [
        "pipelines/test_evaluate.py",
        "results/test_store.py",
        "tasks/test_loading.py",
        "pipelines/rerank/test_first_stages.py",
    ],
}

# Imported once before forking; none of this package's own modules.
HEAVY = (
    "datasets", "sklearn.linear_model", "scipy.stats", "mteb", "mteb.mocks.mock_tasks", "bm25s", "Stemmer",
    "mteb.models.model_implementations.bm25",
)  # fmt: skip
LIGHT = ("pytest", "numpy", "torch", "safetensors.numpy", "omegaconf", "hydra", "rich.console")
WITHOUT_MTEB = (
    "util.fingerprint",
    "util.machine",
    "results.digests",
    "inference.embedding_cache.index",
    "inference.embedding_cache.segments",
    "inference.embedding_cache.cache",
)

# A mutant counts as detected if it hangs, i.e. takes a minute more than this many times the unchanged tests' duration.
PATIENCE = 5

AT_ONCE = 2


@dataclass
class Mutant:
    """One reversed condition.

    Attributes:
        module: Its module, without the package.
        line: Its line.
        before: The condition.
        after: Its replacement.
        tree: The changed module's syntax tree; None for the unchanged module.
        verdict: "detected" or "survived".
        output: The file with pytest's output.
        seconds: Duration of the tests.
    """

    module: str
    line: int
    before: str
    after: str
    tree: ast.Module | None
    verdict: str = ""
    output: Path = field(default_factory=Path)
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.module.replace('.', '/')}.py:{self.line}: {self.before}  ->  {self.after}"


def path_of(module: str) -> Path:
    return SOURCES / "mteb_vllm" / f"{module.replace('.', '/')}.py"


def mutants(module: str) -> Iterator[Mutant]:
    """Yield a module's mutants without duplicates, in the order of their lines."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    truths = {id(node) for node in truth_values(nodes)}
    seen = {ast.unparse(tree)}
    found = []
    for at, node in enumerate(nodes):
        changed: ast.expr | None = None
        if id(node) in truths or isinstance(node, ast.Compare):
            assert isinstance(node, ast.expr)
            changed = reversed_condition(node)
        elif isinstance(node, ast.BoolOp):
            changed = copy.deepcopy(node)
            changed.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        if changed is None or "TYPE_CHECKING" in ast.unparse(node):
            continue
        other = copy.deepcopy(tree)
        replace(other, list(ast.walk(other))[at], changed)
        ast.fix_missing_locations(other)
        if (text := ast.unparse(other)) not in seen:
            seen.add(text)
            found.append(Mutant(module, node.lineno, ast.unparse(node), ast.unparse(changed), other))
    yield from sorted(found, key=lambda mutant: mutant.line)


def truth_values(nodes: list[ast.AST]) -> Iterator[ast.expr]:
    """Yield the expressions of which only the truth value is used."""
    open_: list[ast.expr] = []
    for node in nodes:
        if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
            open_.append(node.test)
        elif isinstance(node, ast.comprehension):
            open_ += node.ifs
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            open_.append(node)
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            open_ += node.values
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("any", "all"):
            open_ += [one.elt for one in node.args if isinstance(one, (ast.GeneratorExp, ast.ListComp))]
    while open_:
        node = open_.pop()
        yield node
        if isinstance(node, ast.BoolOp):
            open_ += node.values


def reversed_condition(node: ast.expr) -> ast.expr:
    # Work on the syntax tree, where `not` before an assignment expression needs no parentheses.
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return copy.deepcopy(node.operand)
    return ast.copy_location(ast.UnaryOp(ast.Not(), copy.deepcopy(node)), node)


def replace(tree: ast.AST, node: ast.AST, by: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, name, by)
                return
            if isinstance(value, list) and any(one is node for one in value):
                value[[one is node for one in value].index(True)] = by
                return


class InPlaceOf(importlib.abc.MetaPathFinder):
    """Import hook that replaces one module by a mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self._name, self._path = f"mteb_vllm.{mutant.module}", str(path_of(mutant.module))
        code = compile(mutant.tree, self._path, "exec")  # type: ignore[arg-type]

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return code

        self._loader = Loader(self._name, self._path)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self._loader)


class CheapFirst:
    """Pytest plugin that runs the tests without expensive fixtures first, file by file."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(
            key=lambda item: (files.index(item.path), bool({"bm25", "task", "computed"} & set(item.fixturenames)))
        )


def run_tests(mutant: Mutant) -> int:
    """Run the tests of a mutant's module; return pytest's exit status."""
    import pytest

    output = os.open(mutant.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if mutant.tree is not None:
        sys.meta_path.insert(0, InPlaceOf(mutant))
    files = [str(ROOT / name) for name in TESTS[mutant.module]]
    temporary = f"--basetemp={mutant.output.with_suffix('')}"
    # Leave out slow tests with another purpose: those that kill writers or measure memory.
    quick = ["-m", "not slow and not vllm", "-k", "not twenty_killed and not thirty_bytes"]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", temporary, *quick, *files], [CheapFirst()]))


def judge(all_of_them: list[Mutant], folder: Path, usual: dict[str, float]) -> None:
    """Run mutants, several at a time, and set their verdicts.

    Args:
        all_of_them: The mutants.
        folder: The folder for pytest's output.
        usual: Module to the duration of its unchanged tests in seconds.
    """
    waiting, running = list(reversed(all_of_them)), dict[int, tuple[Mutant, float]]()
    for at, mutant in enumerate(all_of_them):
        mutant.output = folder / f"{at}.txt"
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            mutant = waiting.pop()
            child = os.fork()
            if child == 0:
                os.setpgrp()
                status = 3
                try:
                    status = run_tests(mutant)
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            running[child] = mutant, time.monotonic()
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            mutant, since = running.pop(child)
            mutant.seconds = time.monotonic() - since
            mutant.verdict = "survived" if os.waitstatus_to_exitcode(status) == 0 else "detected"
            print("SURVIVED" if mutant.verdict == "survived" else "detected", mutant, flush=True)
            continue
        for child, (mutant, since) in running.items():
            if time.monotonic() - since > PATIENCE * usual.get(mutant.module, math.inf) + 60:
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)


def main(names: list[str]) -> int:
    import tempfile

    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, str(SOURCES))
    import conftest  # noqa: F401 - sets environment variables that are needed before mteb is imported

    wanted: dict[str, set[str]] = {}
    for name in names or TESTS:
        module, _, line = name.partition(":")
        wanted.setdefault(module, set()).add(line)
    for name in (*LIGHT, *(HEAVY if set(wanted) - set(WITHOUT_MTEB) else ())):
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith("mteb_vllm.")]
    with tempfile.TemporaryDirectory(prefix="reversed-") as folder:
        unchanged = [Mutant(module, 0, "nothing is changed", "nothing", None) for module in wanted]
        judge(unchanged, Path(folder), {})
        for one in unchanged:
            if one.verdict != "survived":
                print(one.output.read_text()[-3000:])
                return 2
        found = [one for module, lines in wanted.items() for one in mutants(module) if {"", str(one.line)} & lines]
        judge(found, Path(folder), {one.module: one.seconds for one in unchanged})
    left = [one for one in found if one.verdict == "survived"]
    for module in wanted:
        own = [one for one in found if one.module == module]
        print(f"{module:24} {len(own):4} conditions, {sum(one in left for one in own):3} that no test detected")
    print(f"{len(found)} conditions reversed, {len(found) - len(left)} detected")
    for one in left:
        print(" ", one)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
