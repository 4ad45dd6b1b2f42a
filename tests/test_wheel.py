"""The wheel carries the configuration, and composes from it where no checkout is near."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("build")


def python(*words: str | Path, **options: Any) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def test_holds_every_file_of_the_configuration_and_the_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [path for path in (ROOT / "conf").rglob("*.yaml") if path.relative_to(ROOT / "conf").parts[0] != "local"]
    assert {f"mteb_vllm/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in shipped} <= names
    assert {"mteb_vllm/conf/config.yaml", "mteb_vllm/py.typed", "mteb_vllm/cli.py"} <= names
    page = ("page.html.jinja", "page.css", "page.js", "vega.js", "vega.LICENSES")
    assert {f"mteb_vllm/report/{name}" for name in page} <= names
    assert {name.partition("/")[0] for name in names if not name.partition("/")[0].endswith(".dist-info")} == {
        "mteb_vllm"
    }


def test_composes_with_ones_own_files_far_from_any_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "tasks").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /tasks: mine\n  - override /prompts: e5\n"
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(text)
    (tmp_path / "mine" / "tasks" / "mine.yaml").write_text("names: [STS13]\n")
    script = (
        "import json, mteb_vllm\n"
        "from mteb_vllm.preflight.command import check\n"
        "from mteb_vllm.config.schema import conf_dir\n"
        "shipped, = check(['tasks=sts12', 'engine.dtype=float16'])\n"
        "mine, = check(['experiment=mine'], config_dir='mine')\n"
        "print(json.dumps([mteb_vllm.__file__, str(conf_dir()), shipped.config.tasks.names, shipped.config.engine['dtype'],\n"
        "                  mine.config.tasks.names, mine.config.prompts['query']]))\n"
    )
    env = os.environ | {"PYTHONPATH": str(installed)}
    printed = json.loads(python("-c", script, cwd=tmp_path, env=env))
    assert printed == [
        str(installed / "mteb_vllm" / "__init__.py"),
        str(installed / "mteb_vllm" / "conf"),
        ["STS12"],
        "float16",
        ["STS13"],
        "query: ",
    ]
    words = ["-m", "mteb_vllm", "--config-dir", "mine", "experiment=mine", "--cfg", "job", "--package", "tasks"]
    assert "- STS13" in python(*words, cwd=tmp_path, env=env)
