"""Errors of wrappers that are used from Python name the wrappers' own arguments, and suggest the nearest ones."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

import mteb_vllm
from mteb_vllm import ConfigError, ModelError, TemplateError, VllmCrossEncoderWrapper, VllmEncoderWrapper
from mteb_vllm.engines.vllm_workarounds import explain_start_error
from mteb_vllm.models.architectures import label_count_error
from mteb_vllm.models.prompts import load_template
from mteb_vllm.preflight.command import check
from mteb_vllm.util.setting_names import SettingNames


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 5}, "model=5: must be text, not a whole number"),
        ({"model": "x/y", "revision": 5}, "revision=5: must be text, not a whole number"),
        ({"model": "x/y", "path": []}, "path=[]: must be text, not a list"),
        ({"model": "x/y", "env": "A=1"}, "env='A=1': must be a mapping, not text"),
        ({"model": "x/y", "chunk_size": "x"}, "chunk_size='x': must be a whole number, not text"),
        ({"model": "x/y", "prompt_dict": "x"}, "prompt_dict='x': must be a mapping, not text"),
    ],
)
@pytest.mark.parametrize("wrapper", [VllmEncoderWrapper, VllmCrossEncoderWrapper])
def test_an_argument_of_another_type(wrapper: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        wrapper(**arguments)


def test_a_score_template_of_another_type_and_an_empty_model() -> None:
    with pytest.raises(TypeError, match="score_template=5: must be text, not a whole number"):
        VllmCrossEncoderWrapper("x/y", score_template=5)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no model is specified"):
        VllmEncoderWrapper("")


@pytest.mark.parametrize(
    ("wrapper", "keyword", "nearest"),
    [
        (VllmEncoderWrapper, "max_len", "max_model_len"),
        (VllmEncoderWrapper, "dtpye", "dtype"),
        (VllmEncoderWrapper, "gpu_memory_utilisation", "gpu_memory_utilization"),
        (VllmEncoderWrapper, "promt_dict", "prompt_dict"),
        (VllmEncoderWrapper, "window", "chunk_size"),
        (VllmCrossEncoderWrapper, "score_templates", "score_template"),
        (VllmCrossEncoderWrapper, "max_num_seq", "max_num_seqs"),
    ],
)
def test_a_wrong_keyword_gets_the_nearest_arguments(wrapper: Any, keyword: str, nearest: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^{wrapper.__name__} has no argument '{keyword}'\. Did you mean {nearest}\?$"
    ):
        wrapper("no/such", **{keyword: 1})


def test_every_wrong_keyword_is_named() -> None:
    with pytest.raises(TypeError) as caught:
        VllmEncoderWrapper("no/such", qqqqqq=1, max_model_len=8, max_length=8, runner="pooling")
    first, second, third = str(caught.value).splitlines()
    assert first == "VllmEncoderWrapper has no argument 'qqqqqq'"
    assert second.endswith("'max_length'. Did you mean max_model_len?") and "'runner'" in third


def test_arguments_are_those_of_the_backend() -> None:
    with pytest.raises(TypeError, match="'batch_size'"):
        VllmEncoderWrapper("no/such", batch_size=8)
    with pytest.raises(TypeError, match="'block_size'"):
        VllmEncoderWrapper("no/such", backend="sentence_transformers", batch_size=8, block_size=16)


def test_the_command_line_suggests_the_same() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean \+?engine\.max_model_len\?"):
        check(["+engine.max_len=8"])


def test_a_missing_model_names_arguments() -> None:
    with pytest.raises(ModelError) as caught:
        VllmEncoderWrapper("no/such", "v1")
    assert "`hf download no/such --revision v1`" in str(caught.value)
    assert "path='/folder'" in str(caught.value) and "model.path" not in str(caught.value)


def test_a_missing_revision_names_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise errors.RevisionNotFoundError("404 Client Error", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for wrapper in (VllmEncoderWrapper, VllmCrossEncoderWrapper):
        with pytest.raises(
            ModelError, match=r"^org/name has no revision 'v1': set revision to a commit, branch or tag"
        ):
            wrapper("org/name", "v1")


KEY = re.compile(
    r"\b(?:engine|model|instruction|score_template|pipeline|results|embedding_cache)\.(?!safetensors)[a-z_]+"
)
# Modules whose messages reach users of wrappers.
PLACES = (
    "wrappers/*.py", "inference/*.py", "engines/base.py", "engines/vllm.py", "engines/vllm_workarounds.py",
    "engines/sentence_transformers.py", "models/files.py", "models/sentence_transformers_files.py", "models/prompts.py",
)  # fmt: skip


# `name_of` and `assign` name a setting for either interface; `Mistake` and `suggest` are for the command line alone.
NAMING = {"name_of", "assign", "Mistake", "suggest"}


def named_keys(code: str) -> set[str]:
    """The strings of code with a configuration key, without docstrings and keys that are named for both interfaces."""
    tree, skipped = ast.parse(code), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in NAMING:
            skipped |= {id(part) for part in ast.walk(node)}
        elif isinstance(node, ast.Expr):
            skipped.add(id(node.value))
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {node.value for node in strings if id(node) not in skipped and KEY.search(node.value)}


def test_no_message_of_a_wrapper_has_a_fixed_key() -> None:
    package = Path(mteb_vllm.__file__).parent
    files = [path for place in PLACES for path in package.glob(place)]
    assert len(files) > 10
    assert {path.name: keys for path in files if (keys := named_keys(path.read_text()))} == {}
    assert named_keys("raise Error(f'{x}: lower engine.max_model_len')") == {": lower engine.max_model_len"}
    assert named_keys("raise Error(f'lower {names.name_of(\"engine.max_model_len\")}')") == set()


def test_a_refused_file_names_the_backend_argument(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in types.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    with pytest.raises(ModelError) as caught:
        VllmEncoderWrapper(str(tmp_path))
    assert "to run it, use backend='sentence_transformers'" in str(caught.value) and "engine=" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("CUDA out of memory", "lower gpu_memory_utilization or max_num_batched_tokens, or use a smaller dtype"),
        ("Cannot find any safetensors", "load_format='auto'"),
        ("set trust_remote_code=True", "then add trust_remote_code=True"),
        ("max_num_batched_tokens (8) is smaller than max_model_len (9)", "raise max_num_batched_tokens"),
        ("there must be at least one cacheable group", "leave enable_prefix_caching unset"),
        ("max_model_len (9000) is greater than the derived one", "lower max_model_len"),
    ],
)
def test_advice_on_an_engine_that_does_not_open_names_arguments(error: str, advice: str) -> None:
    def spec(names: SettingNames) -> Any:
        return SimpleNamespace(model=SimpleNamespace(name="org/model"), names=names)

    hint = explain_start_error(spec(SettingNames.KEYWORDS), ValueError(error))[1]
    assert advice in hint and "engine." not in hint
    assert "engine." in explain_start_error(spec(SettingNames.CONFIGURATION), ValueError(error))[1]


def test_a_wrong_number_of_labels_names_the_argument() -> None:
    text = label_count_error(2, SettingNames.KEYWORDS)
    assert "hf_overrides={'classifier_from_token': ['no', 'yes']" in text and "engine." not in text
    assert "engine.hf_overrides={classifier_from_token:[no,yes]" in label_count_error(2)


def test_a_template_that_cannot_be_imported_names_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_template_of_a_test.py").write_text("raise OSError('no')\ndef mine(one, other): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for names in SettingNames:
        name = names.name_of("instruction.template")
        template: Any = load_template("broken_template_of_a_test:mine", names)
        with pytest.raises(TemplateError, match=rf"^{name}=broken_template_of_a_test:mine: cannot be imported"):
            template.load()
