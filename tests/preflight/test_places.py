"""Values that become part of a path stay inside the results folder, or are refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight.command import check
from mteb_vllm.results.lookup import predictions_path, result_path
from mteb_vllm.util.files import name_problem


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    return f"model.path={tmp_path / 'weights'}"


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("model.revision=../../..", "is not the name of a commit, branch or tag: is not a valid folder name"),
        ("model.revision=/tmp/elsewhere", "is not the name of a commit, branch or tag: is not a valid folder name"),
        ("model.revision=feature/x", "model.revision=feature/x: contains a path separator"),
        ('model.revision="a\tb"', "contains an unprintable character"),
        (f"model.name=org/{'x' * 300}", "is too long for a folder name: 305 bytes (the limit is 255)"),
        (f"model.name='org/{'é' * 127}'", "is too long for a folder name: 259 bytes"),
        ("model.name='org/a\x07b'", "contains an unprintable character"),
    ],
    ids=["parents", "absolute", "folder", "tab", "long", "bytes", "bell"],
)
def test_a_model_name_or_revision_that_cannot_be_a_folder(model: str, override: str, what: str) -> None:
    assert what in message(
        "model=custom", model, *(["model.name=org/tiny"] if "revision" in override else []), override
    )


def test_an_impossible_name_of_a_hub_model_is_refused_without_a_traceback(model: str) -> None:
    for name in ("'~nosuchuser/model'", "org/" + "x" * 300, "x" * 5000):
        assert "model.name=" in message("model=custom", f"model.name={name}")
    assert "there is no folder" in message("model=custom", "model.path='~nosuchuser/model'")
    assert "there is no folder" in message("model=custom", f"model.path={'x' * 300}")


def test_the_model_of_a_first_stage_is_checked_too(model: str) -> None:
    stage = ["pipeline=rerank", "pipeline/first_stage=dense", "model=ms_marco_minilm", "tasks=demo_retrieval"]
    at = "pipeline.first_stage.model"
    text = message(*stage, f"model@{at}=custom", model.replace("model.path", f"{at}.path"), f"{at}.revision=../x")
    assert f"{at}.revision=../x: is not the name of a commit, branch or tag" in text


@pytest.mark.parametrize(
    ("folder", "what"),
    [
        ("''", "is empty"),
        ("'  '", "is empty"),
        ('"a\nb"', "contains an unprintable character"),
        ("x" * 300, "a folder name may have at most 255 bytes"),
        ("/".join(["x" * 100] * 40), "is too long: the paths of results would exceed"),
    ],
    ids=["empty", "blank", "line", "name", "path"],
)
def test_an_impossible_results_folder(model: str, folder: str, what: str) -> None:
    assert what in message("model=custom", model, "model.name=org/tiny", f"results.dir={folder}")
    assert what in message("pipeline=report", "runs=.", f"pipeline.dir={folder}")


def test_results_never_leave_their_folder(tmp_path: Path) -> None:
    engine = {"model": "org/name", "revision": "local-1"}
    inside = result_path(tmp_path, {"engine": engine}, "STS12", "0" * 16)
    assert inside.is_relative_to(tmp_path / "results") and len(inside.relative_to(tmp_path).parts) == 6
    for wrong in ({"revision": ".."}, {"revision": "/tmp"}, {"revision": "a/../.."}, {"model": "org/" + "x" * 300}):
        with pytest.raises(ValueError):
            result_path(tmp_path, {"engine": engine | wrong}, "STS12", "0" * 16)
    for task in ("../STS12", "/STS12", "STS12/../../x", "STS\n12"):
        with pytest.raises(ValueError):
            predictions_path(tmp_path, {"engine": engine}, task, "0" * 16)
    assert name_problem("Größe-1.0_x") is None
