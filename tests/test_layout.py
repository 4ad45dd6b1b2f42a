"""The package's layout: imports point downwards and have no cycles, and modules named in strings exist."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mteb_vllm
from mteb_vllm import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mteb_vllm"

# Modules named in strings, which import-linter cannot see: file to names, with the reason.
IN_STRINGS = {
    "__init__.py": {"mteb_vllm."},  # the public names, imported on first use
    "catalogue.py": {"mteb_vllm.tasks.describe", "mteb_vllm.engines.describe"},  # run as separate processes
    "config/schema.py": {"mteb_vllm.pipelines."},  # allowed prefix of a `_target_`
    "engines/base.py": {"mteb_vllm.engines."},  # the module of a backend
    "engines/ray_cluster.py": {"mteb_vllm.engines.ray_replica"},  # asks a cluster, as a separate process
    "engines/replica_process.py": {"mteb_vllm.engines.replica_process"},  # the process of a replica
    "models/score_templates.py": {"mteb_vllm.models.score_templates"},  # templates are rendered in a separate process
    "report/run_records.py": {"mteb_vllm.pipelines."},  # the prefix of a `_target_`
    "sweep/process.py": {"mteb_vllm.sweep.child"},  # the process that runs points
}

# The number of `Any` in annotations of parameters and return values in the whole package. It must not increase.
MOST_ANYS = 180


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the project's contracts on a copy of the package."""
    env = os.environ | {"PYTHONPATH": str(root / "src"), "NO_COLOR": "1"}
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", root / "pyproject.toml"]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layout")
    shutil.copytree(PACKAGE, root / "src" / "mteb_vllm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def test_the_contracts_are_kept(copied: Path) -> None:
    done = lint(copied)
    assert done.returncode == 0 and "2 kept, 0 broken" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("results/record.py", "def late() -> None:\n    import mteb_vllm.report.page", "Imports point downwards"),
        ("util/files.py", "from mteb_vllm.errors import ConfigError", "Imports point downwards"),
        ("report/formatting.py", "from mteb_vllm.report.page import write_page", "import each other in a circle"),
    ],
    ids=["upwards in a function", "upwards", "circle"],
)
def test_a_forbidden_import_breaks_the_contracts(copied: Path, file: str, line: str, broken: str) -> None:
    path = copied / "src" / "mteb_vllm" / file
    before = path.read_text()
    path.write_text(f"{before}\n\n{line}\n")
    try:
        done = lint(copied)
    finally:
        path.write_text(before)
    assert done.returncode == 1 and re.search(rf"{broken} BROKEN", done.stdout), done.stdout


def test_modules_named_in_strings_exist() -> None:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                named = re.findall(r"(?<![\w.])mteb_vllm\.(?:[a-z_]+(?:\.[a-z_]+)*\.?)?", node.value)
                names = {name for name in named if name not in ("mteb_vllm.log",)}
                if names:
                    found.setdefault(path.relative_to(PACKAGE).as_posix(), set()).update(names)
    assert found == IN_STRINGS
    for names in found.values():
        for name in names:
            assert importlib.util.find_spec(name.rstrip(".")) is not None, name


def anys(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count `Any` in a signature."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    annotations = [*(one.annotation for one in arguments if one is not None), function.returns]
    nodes = [node for one in annotations if one is not None for node in ast.walk(one)]
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)


def test_signatures_contain_no_more_any_than_before() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}": anys(node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and anys(node)
    }
    assert sum(found.values()) <= MOST_ANYS, found


def test_every_error_is_in_the_tree_and_public() -> None:
    named = {"MtebVllmError", *re.findall(r"── (\w+)", errors.__doc__ or "")}
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    public = {name for name in mteb_vllm.__all__ if name.endswith("Error")}
    assert named == defined == public
    assert all(getattr(mteb_vllm, name) is getattr(errors, name) for name in public)
