"""The command line: its flags, its exit statuses, and the jobs that it passes to Hydra."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from mteb_vllm import __version__, cli
from mteb_vllm.config.schema import RunConfig, parse
from mteb_vllm.errors import CatalogueError, EngineError
from mteb_vllm.preflight.command import check
from mteb_vllm.sweep import launcher
from mteb_vllm.sweep.job import Job


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Return a function that runs the command line in this process: its exit status, output, and jobs."""
    jobs: list[tuple[list[str], RunConfig, str]] = []
    swept: list[int] = []

    def run_job(self: Any, cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        hydra = HydraConfig.get()
        jobs.append((list(hydra.overrides.task), parse(plain), hydra.runtime.output_dir))
        self.records.append(SimpleNamespace(status="failed" if plain["experiment"] == "failing" else "ok"))

    monkeypatch.setattr(Job, "__call__", run_job)
    monkeypatch.setattr(Job, "end_sweep", lambda self: swept.append(len(self.records)))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> SimpleNamespace:
        jobs.clear()
        swept.clear()
        monkeypatch.setattr(sys, "argv", ["mteb-vllm", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(status=ended.value.code, out=out, err=err, jobs=list(jobs), swept=list(swept))

    return command


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    # So that it takes 0.1 s on an idle machine.
    loaded = tmp_path / "modules.json"
    script = (
        "import atexit, json, pathlib, runpy, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(loaded)!r}).write_text(json.dumps(list(sys.modules))))\n"
        "runpy.run_module('mteb_vllm', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mteb-vllm model=e5_small tasks=sts12 engine.dtype=float16" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80, "it fits into a terminal"
    assert "prompts: auto, bge_en, e5, none\n" in done.stdout
    for group in ("model", "engine", "instruction", "tasks", "pipeline", "experiment"):
        assert f"\n{group}: " in done.stdout
    heavy = {
        "hydra",
        "omegaconf",
        "pydantic",
        "mteb",
        "torch",
        "vllm",
        "numpy",
        "rich",
        "transformers",
        "datasets",
        "huggingface_hub",
    }
    assert not heavy & set(json.loads(loaded.read_text()))
    assert not (tmp_path / "outputs").exists()


def test_flags_that_only_print(run: Any) -> None:
    assert run("--version").out == f"mteb-vllm {__version__}\n"
    done = run("--cfg", "job", "model=e5_small", "engine.dtype=float16")
    assert done.status == 0 and OmegaConf.create(done.out).model.name == "intfloat/e5-small-v2"
    assert OmegaConf.create(done.out).engine.dtype == "float16"
    assert "| main     | file://" in run("--info", "searchpath").out
    assert "multirun" in run("--hydra-help").out
    assert run("--cfg", "job", "--package", "tasks").out == run("--package", "tasks", "-c", "job").out != ""
    assert not Path("outputs").exists()


def test_flags_may_follow_overrides(run: Any) -> None:
    done = run("model=e5_small", "--cfg", "job", "prompts=none", "--package", "model")
    assert (done.status, "passage: " in done.out) == (0, True)
    done = run("engine.seed=1,2", "-m", "tasks=sts12", "hydra/launcher=basic")
    assert [job[0] for job in done.jobs] == [["engine.seed=1", "tasks=sts12"], ["engine.seed=2", "tasks=sts12"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "job", "engine.dtpye=1"], "Did you mean engine.dtype?"),
        (["--cfg", "job", "model=nope"], "there is no file nope.yaml in model/"),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["--shell-completion"], "Expecting one subcommand"),
        (["--config-dir", "/nowhere"], "--config-dir /nowhere: there is no such folder"),
        (["--cfg", "job", "--config-dir", "/nowhere"], "--config-dir /nowhere: there is no such folder"),
        (["--config-name", "mine"], "--config-dir DIR experiment=NAME"),
        (["--config-path", "mine"], "pass it with --config-dir"),
        (["--experimental-rerun", "x.pickle"], "it computes only what is missing"),
        (["engine.dtype=flaot32"], "Did you mean engine.dtype=float32?"),
        (["model"], "model: is not of the form key=value"),
        (["evaluate"], "form key=value\n    Did you mean pipeline=evaluate?\n    See: mteb-vllm --help\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_have_status_2_and_no_traceback(run: Any, words: list[str], message: str) -> None:
    done = run(*words)
    assert (done.status, done.out, done.jobs) == (2, "", [])
    assert message in done.err and "Traceback" not in done.err
    assert done.err.startswith("1 error in the configuration:\n  - ")


def test_errors_that_only_hydra_finds_have_no_traceback_either(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise ConfigCompositionException("a plug-in\ndoes not like it")

    monkeypatch.setattr(launcher, "register", refuse)
    done = run()
    assert (done.status, done.out) == (2, "")
    assert done.err == "1 error in the configuration:\n  - command line: a plug-in does not like it\n"


def test_other_expected_errors_have_no_traceback_either(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Any:
        def failing(*_: Any, **__: Any) -> Any:
            raise error

        return failing

    monkeypatch.setattr(cli, "_main", fail(CatalogueError("vllm could not be imported and inspected")))
    assert (run().status, run().err) == (2, "vllm could not be imported and inspected\n")
    monkeypatch.setattr(cli, "_main", fail(EngineError("vLLM died")))
    assert (run().status, run().err) == (1, "vLLM died\n")
    monkeypatch.setattr(cli, "_main", fail(KeyboardInterrupt()))
    assert run().status == 130
    # A bug does have one.
    monkeypatch.setattr(cli, "_main", fail(ZeroDivisionError("a bug")))
    monkeypatch.setattr(sys, "argv", ["mteb-vllm"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_run_gets_the_configuration_that_was_checked(run: Any, tmp_path: Path) -> None:
    overrides = ["tasks=sts12", 'prompts.query="a, b"', "+prompts.STS=x", "hydra.run.dir=here", "engine.dtype=float16"]
    done = run(*overrides)
    ((task, config, output_dir),) = done.jobs
    assert (done.status, done.swept) == (0, [])
    assert task == [word for word in overrides if not word.startswith("hydra")]
    assert config == check(overrides)[0].config
    assert output_dir == str(tmp_path / "here")


@pytest.mark.parametrize(
    "words",
    [
        [
            "-m",
            "engine.dtype=float16,bfloat16",
            "tasks=scifact",
            "prompts=none,e5",
            "prompts.query='a, b','q: ',null",
        ],
        ["-m", "tasks.names=[STS12,STS13],[STS14]", "engine.max_num_seqs=range(1,4,2)", "+engine.block_size=16"],
        ["hydra.mode=MULTIRUN", "engine.seed=2,1", "engine.seed=3,4", "results.dir=${oc.env:HOME}/x"],
        ["experiment=demo_dtypes"],
        ["experiment=demo_dtypes", "engine.dtype=float16", "engine.seed=1,2"],
    ],
    ids=" ".join,
)
def test_a_sweep_gets_the_configurations_that_were_checked(run: Any, words: list[str], tmp_path: Path) -> None:
    done = run(*words, f"hydra.sweep.dir={tmp_path}/sweep", "hydra/launcher=basic")
    points = check([word for word in words if word != "-m"], multirun="-m" in words)
    assert done.status == 0, done.err
    assert [config for _, config, _ in done.jobs] == [point.config for point in points]
    assert [folder for *_, folder in done.jobs] == [f"{tmp_path}/sweep/{at}" for at in range(len(points))]
    assert done.swept == [len(points)] and len(points) > 1


def test_own_files_in_addition_to_the_shipped_ones(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /tasks: sts12\nexperiment: failing\nprompts:\n  STS: x\n"
    (tmp_path / "mine" / "experiment" / "failing.yaml").write_text(text)
    done = run("--config-dir", "mine", "experiment=failing")
    ((_, config, _),) = done.jobs
    assert (config.experiment, config.tasks.names, config.prompts["STS"]) == ("failing", ["STS12"], "x")
    assert done.status == 1  # one record was not ok
    assert "failing" in run("--config-dir", "mine", "--help").out


def test_errors_on_a_terminal_break_at_spaces(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mteb_vllm", "model=nope", "engine.dtype=flaot32"]
    reader, writer = pty.openpty()
    with os.fdopen(writer, "wb") as err:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=err, cwd=tmp_path, env=os.environ | {"COLUMNS": "60"}, check=False
        )
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the terminal has no writer any more
        while chunk := os.read(reader, 4096):
            shown += chunk
    os.close(reader)
    lines = shown.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"") and lines[0] == "2 errors in the configuration:"
    assert max(map(len, lines)) <= 60 and len(lines) > 8
    piped = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False).stderr
    assert " ".join(" ".join(lines).split()) == " ".join(piped.split())


def test_the_console_script_is_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mteb-vllm")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.stdout == f"mteb-vllm {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry-run"], "--dry-run: there is no such flag\n    Did you mean dry_run=true?"),
        (["--model=e5_small"], "Did you mean model=e5_small?"),
        (["--engine.dtype", "float32"], "Did you mean engine.dtype=...?"),
        (["--dtype", "float32"], "--dtype: there is no such flag"),
        (["--nope"], "--nope: there is no such flag\n    Flags: --help, -m"),
    ],
)
def test_a_flag_that_there_is_not(run: Any, words: list[str], message: str) -> None:
    done = run(*words)
    assert (done.status, done.out) == (2, "") and message in done.err


def test_a_configuration_that_cannot_be_printed_gets_the_same_messages(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "twice.yaml").write_text("# @package _global_\nruns: a\nruns: b\n")
    for words, message in (
        (["engine.dtpye=x"], "Did you mean engine.dtype?"),
        (["--config-dir", "mine", "experiment=twice"], "twice.yaml: line 3: the key runs is set twice"),
        (["=x"], "has no key in front of the equals sign"),
    ):
        done = run("--cfg", "job", *words)
        assert (done.status, done.out) == (2, "") and message in done.err
    assert run("--cfg", "job", "tasks=mteb").status == 0, "other mistakes do not matter"
