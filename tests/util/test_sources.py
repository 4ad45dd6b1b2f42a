"""Definitions of modules are found from their source, without executing it."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from mteb_vllm.errors import ModelError, TemplateError
from mteb_vllm.models.files import package_folder
from mteb_vllm.models.prompts import ImportedTemplate, Prompts, load_template
from mteb_vllm.util.sources import find_callable_source, find_module, import_current

BOMB = "raise SystemExit('imported')\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__", "/").replace("/init", "/__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_definitions_of_all_forms_are_found(here: Path) -> None:
    write(here, s_plain=BOMB + "def mine(instruction, prompt_type):\n    return instruction\n")
    found = find_callable_source("s_plain:mine")
    assert (found.module, found.name, found.file) == ("s_plain", "mine", here / "s_plain.py")
    assert found.arguments is not None and [one.arg for one in found.arguments.args] == ["instruction", "prompt_type"]
    write(
        here, s_lambda=BOMB + "if 1:\n    try:\n        mine = lambda a: a\n    except OSError:\n        mine = None\n"
    )
    assert isinstance(find_callable_source("s_lambda.mine").node, ast.Constant), "the last one"
    write(here, s_tuple=BOMB + "mine, other = 1, 2\n", s_made=BOMB + "mine = partial(print)\n")
    assert find_callable_source("s_tuple:mine").node is None
    assert isinstance(find_callable_source("s_made:mine").node, ast.Call)
    write(here, s_star=BOMB + "from os import *\n", s_lazy=BOMB + "def __getattr__(name): ...\n")
    for unsure in ("s_star:mine", "s_lazy:mine"):
        assert find_callable_source(unsure).node is None
    assert find_callable_source("math:sqrt").file is None, "no Python source"


def test_a_reexported_name_is_followed_to_its_definition(here: Path) -> None:
    write(here, pkg__init="from .inner.deep import real as mine\n" + BOMB, pkg__inner__deep="from ..base import real\n")
    write(here, pkg__base=BOMB + "def real(a, b): ...\n")
    found = find_callable_source("pkg:mine")
    assert (found.module, found.name, found.file) == ("pkg.base", "real", here / "pkg" / "base.py")
    write(here, ring_a="from ring_b import mine\n", ring_b="from ring_a import mine\n")
    with pytest.raises(ValueError, match="or circularly"):
        find_callable_source("ring_a:mine")
    assert not {"pkg", "ring_a", "ring_b"} & set(sys.modules)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "there is no module no_such_module"),
        ("s_empty.nothing:f", "there is no module s_empty.nothing"),
        ("s_empty:f", "does not define 'f'"),
        ("s_bad:f", "cannot be read as Python"),
        ("s_parent.child", "is a module, not a callable"),
    ],
)
def test_missing_modules_and_names(here: Path, path: str, message: str) -> None:
    write(here, s_empty="", s_bad="def f(:\n", s_parent__init=BOMB, s_parent__child="")
    with pytest.raises(ValueError, match=message):
        find_callable_source(path)


def test_a_package_with_weights_is_found_without_importing_its_parents(here: Path) -> None:
    write(here, w_parent__init=BOMB, w_parent__weights__init=BOMB)
    (here / "w_parent" / "weights" / "model").mkdir()
    (here / "w_space" / "bare" / "model").mkdir(parents=True)
    assert package_folder("w_parent.weights/model") == here / "w_parent" / "weights" / "model"
    assert package_folder("w_space.bare/model") == here / "w_space" / "bare" / "model", "without __init__.py"
    with pytest.raises(ModelError):
        package_folder("w_parent.none/model")
    assert find_module("w_parent.weights") is not None and "w_parent" not in sys.modules


def test_a_callable_template_is_imported_when_called_and_identified_by_its_source(here: Path) -> None:
    texts = {}
    for at, body in enumerate(("'1 ' + instruction", "'2 ' + instruction", "'1 ' + instruction")):
        write(here, t_mine=f"PREFIX = 'x'\ndef mine(instruction, prompt_type):\n    return {body}{' ' * at}\n")
        template = load_template("t_mine:mine")
        assert isinstance(template, ImportedTemplate) and ("t_mine" in sys.modules) == (at > 0)
        texts[Prompts(template=template).settings()["template"]] = template("do", None)
    assert list(texts.values()) == ["1 do", "2 do", "1 do"], "an edited module is reloaded"
    # The identifier covers the whole module, since the function may use any of it.
    write(here, t_mine="PREFIX = 'y'\ndef mine(instruction, prompt_type):\n    return '1 ' + instruction\n")
    assert Prompts(template=load_template("t_mine:mine")).settings()["template"] not in texts


@pytest.mark.parametrize("path", ["json.JSONDecoder", "rich.console.Console", "mteb_vllm.models.prompts.Prompts"])
def test_installed_modules_are_never_reloaded(path: str) -> None:
    module, _, name = path.rpartition(".")
    before = getattr(importlib.import_module(module), name)
    assert import_current(module, name, find_callable_source(path)) is before


def test_a_template_that_cannot_be_imported_raises_when_called(here: Path) -> None:
    write(here, t_bomb="1 / 0\ndef mine(a, b): ...\n", t_none="def mine(a, b): ...\nmine, x = 1, 2\n")
    for path, message in (("t_bomb:mine", "ZeroDivisionError"), ("t_none:mine", "is not callable, but of type int")):
        template = load_template(path)
        assert callable(template)
        with pytest.raises(TemplateError, match=message):
            template("do", None)
