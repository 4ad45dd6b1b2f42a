"""Configurations run only the code of Hydra, its plugins and this package, and cannot expand without end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from mteb_vllm import cli
from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight.command import check, register_secrets

NINE = range(1, 9)
BOMB = "x1: &x1 [a,a,a,a,a,a,a,a,a]\n" + "".join(f"x{i + 1}: &x{i + 1} [{','.join([f'*x{i}'] * 9)}]\n" for i in NINE)
MERGES = "x1: &x1 {a: 1}\n" + "".join(f"x{i + 1}: &x{i + 1} {{<<: [{','.join([f'*x{i}'] * 9)}]}}\n" for i in NINE)
DOUBLING = "prompts:\n  STS0: xxxxxxxxxx\n" + "".join(
    f"  STS{i + 1}: '${{prompts.STS{i}}}${{prompts.STS{i}}}'\n" for i in range(40)
)


def message(*overrides: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check(overrides, config_dir=str(folder) if folder else None)
    return str(caught.value)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a file that exists once the module `evil` has been imported."""
    path = tmp_path / "was-run"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(
        f"import pathlib\npathlib.Path({str(path)!r}).touch()\ndef mark(*args, **options): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        ["+hydra.callbacks.x._target_=evil.mark"],
        [
            "+hydra.callbacks.x={_target_: hydra.experimental.callbacks.LogJobReturnCallback, y: [{_target_: evil.mark}]}"
        ],
        ["+hydra.callbacks.x=text"],
        ["hydra.launcher._target_=evil.mark"],
        ["hydra.launcher._target_=evil.EngineGroupedLauncher"],
        ["hydra.launcher._target_=hydra._internal.core_plugins.basic_sweeper.BasicSweeper"],
        ["hydra/launcher=basic", "+hydra.launcher.x._target_=evil.mark"],
        ["hydra.sweeper._target_=evil.mark"],
        ["+hydra.sweeper.x='${engine.hf_overrides}'", "+engine.hf_overrides={_target_: evil.mark}"],
        ["+hydra.job_logging.handlers.file={()}: evil.mark}".replace("{()}", "{'()'")],
        ["hydra.job_logging.handlers.file.class=evil.mark"],
        ["hydra.job_logging.handlers.file.class=logging.os.system"],
        ["hydra.job_logging.formatters.simple.class=logging.handlers.os.system"],
        ["+hydra.job_logging.handlers.file.stream=ext://evil.mark"],
        ["hydra.searchpath=[pkg://evil]"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_only_hydra_plugins_and_logging_handlers_are_instantiated(marker: Path, overrides: list[str]) -> None:
    text = message(*overrides)
    assert text.startswith("1 error") and not marker.exists()


def test_targets_in_files_are_refused_for_all_points_together(marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    head = "# @package _global_\n"
    (folder / "one.yaml").write_text(head + "hydra:\n  callbacks:\n    x:\n      _target_: evil.mark\n")
    (folder / "two.yaml").write_text(
        head + "hydra:\n  job_logging:\n    handlers:\n      file:\n        (): evil.mark\n"
    )
    with pytest.raises(ConfigError) as caught:
        check(["experiment=one,two"], multirun=True, config_dir=str(tmp_path / "mine"))
    assert [mistake.where for mistake in caught.value.mistakes] == [
        "hydra.callbacks.x._target_=evil.mark",
        "hydra.job_logging.handlers.file.()=evil.mark",
    ]
    (folder / "tag.yaml").write_text(head + "prompts:\n  query: !!python/object/apply:evil.mark []\n")
    assert "could not determine a constructor" in message("experiment=tag", folder=tmp_path / "mine")
    assert not marker.exists()


def test_the_classes_that_hydra_ships_are_allowed() -> None:
    for overrides in (
        ["hydra/job_logging=default"],
        ["hydra/launcher=basic"],
        ["+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback"],
    ):
        assert len(check(overrides)) == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (BOMB, "mine.yaml expands to more than 100,000 values through its aliases"),
        (MERGES, "mine.yaml expands to more than 100,000 values through its aliases"),
        ("a: &a [*a]\n", "one of its aliases contains itself"),
        ("a: " + "[" * 3000 + "]" * 3000, "mine.yaml is nested more than 100 levels deep"),
        (f"# {'x' * 5_000_000}\na: 1\n", "mine.yaml has more than 5,000,000 bytes"),
        (DOUBLING, "expands to more than 1,000,000 characters through its references"),
        ("prompts:\n  query: ${prompts.document}\n  document: ${.query}\n", "prompts.query: refers to itself"),
        ("prompts: ${prompts}\n", "prompts: refers to itself"),
    ],
    ids=["aliases", "merges", "own alias", "levels", "bytes", "doubling", "loop", "own group"],
)
def test_endless_expansion_is_refused_at_once(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)
    check([])  # reads the catalogues
    started = time.process_time()
    assert what in message("experiment=mine", folder=tmp_path)
    assert time.process_time() - started < 5
    if "yaml" in what:
        with pytest.raises(ConfigError):
            register_secrets(["experiment=mine"], config_dir=str(tmp_path))


def test_references_on_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "refers to itself" in message("prompts.query='${prompts.document}'", "prompts.document='${prompts.query}'")
    (point,) = check([r"prompts.query='\${prompts.query} '", "tasks=demo_retrieval", "+prompts.STS='${model.name}'"])
    assert point.config.prompts["STS"] == "sentence-transformers/all-MiniLM-L6-v2", "a reference that resolves"
    assert point.config.prompts["query"] == "${prompts.query} ", "an escaped reference is text"
    monkeypatch.setattr(sys, "argv", ["mteb-vllm", "--cfg", "job", "hydra.searchpath=[pkg://evil]"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "runs its code" in capsys.readouterr().err
