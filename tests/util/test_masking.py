"""Secrets reach the engine, but nothing that is written, printed or hashed."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import cli
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.errors import ConfigError, EngineStartError, Mistake
from mteb_vllm.models.files import Model
from mteb_vllm.plan import make_plan
from mteb_vllm.preflight.command import check
from mteb_vllm.results.failures import failure_from_exception
from mteb_vllm.results.record import RunRecord
from mteb_vllm.runner import finish, started_record
from mteb_vllm.sweep import job
from mteb_vllm.util import masking
from mteb_vllm.util.masking import Secret, is_secret_field, is_secret_name, mask, register
from mteb_vllm.util.streams import lenient

TOKEN, KEY, PASSWORD = "hf_QbRx'0815", "key-QbRx-4711", 'pass "QbRx" 42'


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("HARMLESS", "QbRx-harmless")
    masking.forget()
    yield
    masking.forget()


def test_names_of_secrets_are_whole_words() -> None:
    for name in ("hf_token", "HF_TOKEN", "token", "MY_API_KEY", "apiKey", "clientSecret", "DB_PASSWORD", "a.b-secret"):
        assert is_secret_name(name), name
    for name in (
        "tokenizer",
        "max_num_batched_tokens",
        "tokens",
        "HF_TOKEN_PATH",
        "KEY",
        "monkey",
        "bypassword",
        "secretary",
    ):
        assert not is_secret_name(name), name
    assert is_secret_field(("hf_token",)) and is_secret_field(("env", "HF_TOKEN"))
    # A text token.
    assert not is_secret_field(("hf_overrides", "pad_token")) and is_secret_field(("hf_overrides", "api_key"))


ENGINE = [
    "+engine.hf_token=${oc.env:HF_TOKEN}",
    f"+engine.env.MY_API_KEY={KEY}",
    "+engine.env.URL='db:${oc.env:DB_PASSWORD}'",
]


def test_engines_get_secrets_and_fingerprints_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    plain, (point,) = check([])[0].config, check([*ENGINE, "+engine.env.B=${oc.env:HARMLESS}"])
    made = make_plan(point.config)
    args, env = made.spec.args, made.spec.env
    assert (args["hf_token"], env["MY_API_KEY"], env["URL"]) == (TOKEN, KEY, f"db:{PASSWORD}")
    assert f"Bearer {args['hf_token']}" == f"Bearer {TOKEN}" and pickle.loads(pickle.dumps(args["hf_token"])) == TOKEN
    assert repr(args).count("***") == 1 and TOKEN not in repr(args)
    settings = made.settings["engine"]
    assert "hf_token" not in settings["args"] and set(settings["env"]) == {*make_plan(plain).spec.env, "B"}
    assert settings["env"]["B"] == "QbRx-harmless", "other variables are included with their values"
    assert "VLLM_API_KEY" not in settings["shell"]
    (secretless,) = check(["+engine.env.B=QbRx-harmless"])
    assert make_plan(secretless.config).settings == made.settings


def test_a_secret_in_a_setting_that_results_depend_on_is_an_error() -> None:
    for text in ("+prompts.STS=${oc.env:HF_TOKEN}", "model.name='org/${oc.env:DB_PASSWORD}'"):
        with pytest.raises(ConfigError, match="must not contain a secret") as caught:
            check([text])
        assert "QbRx" not in str(caught.value)


def test_no_folder_is_named_after_a_secret() -> None:
    named = [
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.run.dir=x/{KEY}",
        "hydra.job.name=${oc.env:HF_TOKEN}",
    ]
    for text in named:
        with pytest.raises(ConfigError, match="would contain a secret") as caught:
            check([*ENGINE, text])
        assert "QbRx" not in str(caught.value)
    assert check(named[:1]), "without a secret any name is fine"


def test_error_messages_do_not_show_a_secret() -> None:
    for words in (["+engine.hf_token='a b'c"], [f"engine.hf_token={KEY}"], [*ENGINE, f"+engine.max_modl_len={KEY}"]):
        with pytest.raises(ConfigError) as caught:
            check(words)
        assert "QbRx" not in str(caught.value)


def test_secrets_in_arguments_of_wrappers_are_found_by_name() -> None:
    spec = EngineSpec(
        Model("a/b", "1", "a/b", None, {}), "embed", {"hf_token": TOKEN, "hf_overrides": {"pad_token": "x"}}
    )
    assert isinstance(spec.args["hf_token"], Secret)
    assert spec.settings()["args"] == {"hf_overrides": {"pad_token": "x"}}


def test_every_form_of_a_value_is_masked_and_short_ones_only_as_words() -> None:
    register(PASSWORD)
    texts = [PASSWORD, json.dumps(PASSWORD), f"x='{PASSWORD}'", "pass &quot;QbRx&quot; 42"]
    assert all("QbRx" not in mask(text) for text in texts)
    register("abcd")
    register("x")
    assert mask("abcd abcde x_abcd (abcd) x") == "*** abcde x_abcd (***) x"
    stream = io.StringIO()
    print("a", PASSWORD, file=lenient(stream))
    assert stream.getvalue() == "a ***\n"
    assert "QbRx" not in str(Mistake(f"engine.x={PASSWORD}", "wrong", PASSWORD))
    assert "QbRx" not in str(failure_from_exception(EngineStartError(f"vLLM: {PASSWORD}")))


def leaks(*places: Path) -> list[str]:
    files = [file for place in places for file in [place, *place.rglob("*")] if file.is_file()]
    assert files
    return [str(file) for file in files if b"QbRx" in file.read_bytes().replace(b"QbRx-harmless", b"")]


def test_files_of_a_command_contain_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything except the engine is real: Hydra's folder, log, record, report, terminal."""

    def run_config(config: Any, planned: Any, output_dir: Path, command: Any, **_: Any) -> RunRecord:
        record = started_record(config, output_dir, command, None)
        token = config.engine["hf_token"]
        logging.getLogger("vllm").warning("args: %s, %s", {"hf_token": str(token)}, token)
        (output_dir / "mteb_vllm.log").open("a").write(f"from a library: {token}\n")
        try:
            raise EngineStartError(f"refused: {token}")
        except EngineStartError as error:
            logging.getLogger("vllm").exception("failed")
            record.failure = failure_from_exception(error)
        print("out", token)
        print("err", token, file=sys.stderr)
        finish(record, 0.0)
        return record

    monkeypatch.setattr(job, "run_config", run_config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        f"# @package _global_\nengine:\n  env:\n    A_SECRET: {KEY}\n"
    )
    words = [*ENGINE[1:], f'+engine.hf_token="{TOKEN}"', "experiment=own", "results.dir=out", "--config-dir", "mine"]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["mteb-vllm", *words])
        patched.setattr(sys, "stdout", sys.stdout)  # restored afterwards
        patched.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        patched.setattr(sys, "argv", ["mteb-vllm", "--cfg", "job", "--resolve", *words])
        with pytest.raises(SystemExit):
            cli.main()
    shown = "".join(capsys.readouterr())
    assert "out ***" in shown and "err ***" in shown and "hf_token: ***" in shown and "QbRx" not in shown
    assert leaks(tmp_path / "out") == []
    names = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file() and b"***" in file.read_bytes()}
    assert {"run.json", "mteb_vllm.log", "config.yaml", "overrides.yaml", "hydra.yaml"} <= names


@pytest.mark.vllm
@pytest.mark.slow
def test_files_of_runs_and_sweeps_with_a_real_engine_contain_no_secret(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "mteb_vllm", "tasks.names=[StdlibDocsClassification]", f"results.dir={tmp_path}/out"]
    literal = [f"+engine.env.MY_API_KEY={KEY}", f'+engine.hf_token="{TOKEN}"']
    commands = {
        "run": ([*run, *ENGINE], 0),
        "failed": ([*run, *literal, f"+engine.hf_overrides={{architectures: [{KEY}]}}"], 1),
        "sweep": ([*run, "-m", *literal, "engine.dtype=float32,bfloat16"], 0),
        "refused": ([*run, "-m", *literal, f"+engine.max_modl_len={KEY}"], 2),
    }
    for name, (command, status) in commands.items():
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=dict(os.environ), check=False)
        (tmp_path / f"{name}.out").write_bytes(done.stdout + done.stderr)
        assert (done.returncode, b"Traceback" in done.stderr) == (status, False), name
    assert leaks(tmp_path) == []
