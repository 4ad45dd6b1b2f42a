"""Read a model's sentence-transformers files, and derive the settings with which vLLM computes the same.

vLLM reads a part of these files itself and silently ignores the rest. So all of them are read here, in the formats before
and since sentence-transformers 5.4, and each setting is either applied (pooling, normalisation, dimensions, context length,
activation) or rejected with an error that names it. There are no heavy imports.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from mteb_vllm.errors import ModelError
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.setting_names import SettingNames
from mteb_vllm.util.wrapping import cut

Locate = Callable[[str], Path | None]
_Json = TypeVar("_Json", dict[str, Any], list[Any])

# Keys of `config_sentence_transformers.json` (BaseModel._get_model_config and its overrides, in version 6.2).
SETTINGS = (
    "model_type", "__version__", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "requirements",
    "activation_fn", "keep_in_fp32_modules",
)  # fmt: skip

# File names of the Transformer module's configuration; the first non-empty one is used (Transformer.load_config).
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# Pooling modes before 5.4 and since, in the order in which several are concatenated (pooling.py).
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(_OLD_MODES.values())
_VLLM_POOLING = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
POOLING_WORDS = {"CLS": "CLS", "MEAN": "mean", "LAST": "last-token"}

# The only types of Dense that vLLM loads (_DENSE_MODULE_TYPES), and the activations that it supports (get_act_fn).
_DENSE_TYPES = ("sentence_transformers.models.Dense", "sentence_transformers.base.modules.dense.Dense")
_DENSE_ACTIVATIONS = (
    "torch.nn.modules.linear.Identity",
    *(f"torch.nn.modules.activation.{name}" for name in ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")),
)
_DENSE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# Modules whose folders are empty, or hold nothing that changes an embedding.
_WITHOUT_FOLDER = ("Normalize", "Dropout")

# Arguments of transformers that change no embedding, except for the dtype, which `engine.dtype` sets.
_HARMLESS_ARGUMENTS = (
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "device_map",
    "padding_side",
    "add_pooling_layer",
    "use_fast",
)


_Activation = Literal["sigmoid", "none"]


@dataclass(frozen=True)
class ModuleFile:
    """One entry of `modules.json`.

    Attributes:
        kind: The name of its class, such as `Pooling`.
        type: The import path of its class, as written.
        path: Its folder inside the model's folder; "" for the model's folder itself.
        config: Its configuration; empty if there is none.
        file: The file with the configuration, for messages.
    """

    kind: str
    type: str
    path: str
    config: Mapping[str, Any]
    file: str


@dataclass(frozen=True)
class SentenceTransformersFiles:
    """A model's sentence-transformers files, and the tokenizer settings that sentence-transformers uses.

    Attributes:
        settings: The content of `config_sentence_transformers.json`; empty without that file, or without a `modules.json`,
            as sentence-transformers then does not read it.
        modules: The entries of `modules.json` in order; None if there is no such file.
        tokenizer: The content of `tokenizer_config.json`.
        unread_context: Without a `modules.json`, the `max_seq_length` that vLLM uses and sentence-transformers ignores.
        chat_template: Whether the tokenizer has a chat template.
        unread_settings: Whether `config_sentence_transformers.json` is ignored for lack of a `modules.json`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[ModuleFile, ...] | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    unread_context: int | None = None
    chat_template: bool = False
    unread_settings: bool = False

    @property
    def tokenizer_in_root(self) -> bool:
        """Whether the tokenizer's files are in the model's own folder."""
        return self.modules is None or any(one.kind == "Transformer" and not one.path for one in self.modules)

    @property
    def default_pair_prompt(self) -> str:
        """The prompt that sentence-transformers adds to a pair's first text; empty if there is none."""
        if not self.is_cross_encoder:
            return ""
        return (self.settings.get("prompts") or {}).get(self.settings.get("default_prompt_name")) or ""

    @property
    def is_cross_encoder(self) -> bool:
        """Whether the model was saved as a cross-encoder; otherwise sentence-transformers ignores its modules for scoring."""
        return self.modules is not None and self.settings.get("model_type") == "CrossEncoder"

    @property
    def pools_prompts(self) -> bool:
        """Whether a prompt's tokens are pooled like the text's."""
        return all(one.config.get("include_prompt", True) for one in self.modules or ())


@dataclass(frozen=True)
class Applied:
    """The settings with which vLLM follows a model's files.

    Attributes:
        pooling: vLLM's name of the pooling; None if the files do not set it.
        normalized: Whether embeddings are normalised to length 1; None if the files do not set it.
        truncate_dim: How many leading dimensions are kept, after normalisation; None keeps all.
        context: Tokens after which sentence-transformers truncates a text; None if the files do not say.
        vllm_reads_context: Whether vLLM reads that context length from the files itself.
        activation: The activation of a pair's logit; None if vLLM applies that of the files by itself.
        source: The origin of these settings, for messages.
        refused: Messages about settings of the files that vLLM does not support.
        activation_refused: The message about an activation other than the sigmoid and the identity; None without one.
        notes: Notes for the user.
    """

    pooling: str | None = None
    normalized: bool | None = None
    truncate_dim: int | None = None
    context: int | None = None
    vllm_reads_context: bool = False
    activation: _Activation | None = None
    source: str = ""
    refused: tuple[str, ...] = ()
    activation_refused: str | None = None
    notes: tuple[str, ...] = ()

    def settings(self) -> JsonObject:
        """Return the settings that change results, as plain values."""
        return {
            "pooling": self.pooling,
            "normalized": self.normalized,
            "truncate_dim": self.truncate_dim,
            "context": self.context,
            "activation": self.activation,
        }

    def __str__(self) -> str:
        if self.pooling is None:
            return ""
        words = [f"{POOLING_WORDS.get(self.pooling, self.pooling)} pooling"]
        words.append("normalised" if self.normalized else "not normalised")
        words += [f"the first {self.truncate_dim} dimensions"] if self.truncate_dim else []
        return f"{', '.join(words)} (from {self.source})"


def read_files(locate: Locate) -> SentenceTransformersFiles:
    """Read a model's sentence-transformers files.

    Args:
        locate: Returns the path of one of the model's files; None if the model does not have it.

    Raises:
        ModelError: if a file cannot be read, has values of a wrong type, or names a file that is missing.
    """
    tokenizer = _read(locate, "tokenizer_config.json", dict) or {}
    entries = _read(locate, "modules.json", list)
    template = bool(tokenizer.get("chat_template")) or locate("chat_template.jinja") is not None
    if entries is None:
        unread = _transformer_config(locate, "")[0].get("max_seq_length")
        return SentenceTransformersFiles(
            {}, None, tokenizer, unread if isinstance(unread, int) else None, template, bool(_read_settings(locate))
        )
    settings = _read_settings(locate)
    modules = tuple(_read_module(locate, entry) for entry in entries)
    return SentenceTransformersFiles(settings, modules, tokenizer, None, template)


def read_json(path: Path, kind: type[_Json]) -> _Json:
    """Return the content of a JSON file.

    Raises:
        ModelError: if it cannot be read, or is not of the type `kind`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ModelError(f"{path} contains {_shorten(content)}, not {wanted}")
    return content


def apply_files(
    files: SentenceTransformersFiles,
    config: Mapping[str, object],
    args: Mapping[str, object],
    convert: Literal["embed", "classify"],
    names: SettingNames = SettingNames.CONFIGURATION,
) -> Applied:
    """Derive vLLM's settings from a model's files, and find those that vLLM does not support.

    Args:
        files: The model's files.
        config: The content of its `config.json`.
        args: vLLM's arguments; their pooling (`pooler_config`) wins over the files.
        convert: Whether texts are embedded or pairs are scored.
        names: How messages name settings.
    """
    overrides = args.get("hf_overrides")
    config = {**config, **(overrides if isinstance(overrides, Mapping) else {})}
    if convert == "embed":
        return _apply_to_encoder(files, config, args, names)
    return _apply_to_cross_encoder(files, config, names)


def _apply_to_encoder(
    files: SentenceTransformersFiles, config: Mapping[str, object], args: Mapping[str, object], names: SettingNames
) -> Applied:
    runs, pooler = _remedy(names), names.name_of("engine.pooler_config")
    given = {
        key: _pooler_field(args, key) for key in ("seq_pooling_type", "pooling_type", "use_activation", "dimensions")
    }
    pooling = given["seq_pooling_type"] or given["pooling_type"]
    normalized = given["use_activation"]
    refused: list[str] = []
    notes: list[str] = []
    unknown = sorted(set(files.settings) - set(SETTINGS))
    if unknown:
        notes.append(f"config_sentence_transformers.json: unknown keys: {', '.join(unknown)}")
    kind = files.settings.get("model_type")
    if kind not in (None, "SentenceTransformer"):
        refused.append(f"config_sentence_transformers.json: model_type={kind}: is not a SentenceTransformer")
    # Arguments that set both replace all modules after the transformer.
    decided = pooling is not None and normalized is not None
    own: str | None = _default_pooling(config)
    own_normalized, source = False, "the defaults of sentence-transformers, since there is no modules.json"
    if files.modules is not None:
        own, own_normalized, found = _check_modules(files.modules, pooling is not None, decided, runs)
        refused, source = [*refused, *found], "modules.json"
    elif files.chat_template and not decided:
        refused.append(
            "its tokenizer has a chat template, and there is no modules.json: sentence-transformers would put each text "
            f"into a message ({runs}). To embed the texts unchanged: "
            f"{names.assign('engine.pooler_config', {'seq_pooling_type': 'LAST', 'use_activation': False})}"
        )
    if pooling is not None or normalized is not None:
        source = pooler if decided else f"{pooler}, {source}"
        if (pooling or own, own_normalized if normalized is None else normalized) != (own, own_normalized):
            notes.append(f"{pooler} differs from the model's files")
    if files.unread_settings:
        notes.append(
            "config_sentence_transformers.json (prompts and other settings) is ignored without a modules.json, as in "
            "sentence-transformers"
        )
    truncate = files.settings.get("truncate_dim") if given["dimensions"] is None else None
    context, reads, more = _find_context(files, config)
    return Applied(
        pooling=pooling or own,
        normalized=own_normalized if normalized is None else bool(normalized),
        truncate_dim=truncate,
        context=context,
        vllm_reads_context=reads,
        source=source,
        refused=(*refused, *_check_transformer_module(files, "feature-extraction", "token_embeddings", runs)),
        notes=(*notes, *more),
    )


def _apply_to_cross_encoder(
    files: SentenceTransformersFiles, config: Mapping[str, object], names: SettingNames
) -> Applied:
    runs = _remedy(names)
    refused: list[str] = []
    # A language model that scores by the logits of answer tokens, set by the recipe or the user.
    answers = bool(config.get("classifier_from_token") or config.get("is_original_qwen3_reranker"))
    # sentence-transformers reads modules for scoring only if the model was saved as a cross-encoder.
    if files.modules is not None and files.is_cross_encoder and not answers:
        first, *rest = files.modules or (None,)
        if first is None or first.kind != "Transformer":
            refused.append("modules.json: its first module is not a Transformer, and vLLM supports nothing else")
        refused += [f"modules.json: {one.type}: vLLM does not run it after a cross-encoder ({runs})" for one in rest]
        refused += _check_transformer_module(files, "sequence-classification", "scores", runs)
    activation, problem = _find_activation(files, config, names)
    context, reads, notes = _find_context(files, config)
    return Applied(
        context=context,
        vllm_reads_context=reads,
        activation=activation,
        refused=tuple(refused),
        activation_refused=problem,
        notes=tuple(notes),
    )


def _remedy(names: SettingNames) -> str:
    return f"to run it, use {names.assign('engine', 'sentence_transformers')}"


def _check_modules(
    modules: Sequence[ModuleFile], pooling_given: bool, decided: bool, runs: str
) -> tuple[str | None, bool, list[str]]:
    """Return vLLM's name of the pooling, whether normalisation follows, and messages about unsupported modules."""
    refused: list[str] = []
    if not modules or modules[0].kind != "Transformer":
        first = modules[0].type if modules else "nothing"
        return None, False, [f"modules.json: its first module is {first}: vLLM runs only a Transformer"]
    pooling, normalized = None, False
    for one in modules[1:]:
        if one.kind == "Dropout":
            continue  # has no effect in inference
        if not one.type.startswith("sentence_transformers."):
            refused.append(f"modules.json: {one.type}: is the model's own code, which vLLM does not run ({runs})")
        elif one.kind == "Pooling" and pooling is None and not normalized:
            pooling, problems = _check_pooling_module(one, runs)
            refused += [] if pooling_given else problems
            pooling = pooling or "MEAN"
        elif one.kind == "Normalize" and pooling is not None:
            normalized = True
            refused += _unsupported_keys(one, _IN_PLACE, runs)
        elif one.kind == "Dense" and pooling is not None and not normalized:
            refused += _check_dense_module(one, runs)
        else:
            refused.append(f"modules.json: {one.type}: vLLM does not run it in this position ({runs})")
    if pooling is None:
        refused.append("modules.json: has no Pooling module")
    return pooling, normalized, [] if decided else refused


def _check_pooling_module(module: ModuleFile, runs: str) -> tuple[str | None, list[str]]:
    config, at = module.config, module.file
    keys = ("embedding_dimension", "word_embedding_dimension", "pooling_mode", *_OLD_MODES, "include_prompt")
    problems = _unsupported_keys(module, dict.fromkeys(keys), runs)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_MODES.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if not config.get("include_prompt", True):
        problems.append(f"{at}: include_prompt=false: vLLM always pools a prompt's tokens, too ({runs})")
    if len(modes) != 1:
        problems.append(f"{at}: pooling modes {' and '.join(modes)} together: vLLM supports only one ({runs})")
        return None, problems
    if modes[0] not in _VLLM_POOLING:
        problems.append(f"{at}: pooling mode {modes[0]}: vLLM supports {', '.join(_VLLM_POOLING)} ({runs})")
    return _VLLM_POOLING.get(modes[0]), problems


def _check_dense_module(module: ModuleFile, runs: str) -> list[str]:
    config, at = module.config, module.file
    problems = _unsupported_keys(
        module,
        {
            "in_features": None, "out_features": None, "bias": None, "activation_function": None,
            **_IN_PLACE, "use_residual": False,
        },
        runs,
    )  # fmt: skip
    if module.type not in _DENSE_TYPES:
        problems.append(f"modules.json: {module.type}: vLLM does not load it by this name ({runs})")
    # Without one, sentence-transformers uses Tanh, and vLLM none.
    if config.get("activation_function") not in _DENSE_ACTIVATIONS:
        name = config.get("activation_function", "missing, which means Tanh")
        problems.append(f"{at}: activation_function: {name}: vLLM would skip the module ({runs})")
    return problems


def _check_transformer_module(files: SentenceTransformersFiles, task: str, output: str, runs: str) -> list[str]:
    """Return messages about settings of the Transformer module that vLLM does not support."""
    module = next((one for one in files.modules or () if one.kind == "Transformer"), None)
    if module is None:
        return []
    if not module.type.startswith("sentence_transformers."):
        return [f"modules.json: {module.type}: is the model's own code, which vLLM does not run ({runs})"]
    if module.path:
        return [
            f"modules.json: the Transformer is in the folder {module.path}, but vLLM loads the model's own folder ({runs})"
        ]
    text = {
        "method": "forward",
        "method_output_name": "last_hidden_state" if output == "token_embeddings" else "logits",
    }
    expected: dict[str, object] = {
        "max_seq_length": None, "unpad_inputs": None, "backend": "torch", "transformer_task": task,
        "module_output_name": output, "modality_config": {"text": text}, "do_lower_case": False, "processing_kwargs": {},
        "query_length": _NULL, "document_length": _NULL, "query_expansion": _NULL, "tokenizer_name_or_path": _NULL,
    }  # fmt: skip
    kinds = ("model", "processor", "tokenizer", "config")
    arguments = [f"{kind}_{word}" for kind in kinds for word in ("kwargs", "args")]
    problems = _unsupported_keys(module, {**expected, **dict.fromkeys(arguments)}, runs)
    for key in arguments:
        for name in sorted(set(module.config.get(key) or {}) - set(_HARMLESS_ARGUMENTS)):
            problems.append(f"{module.file}: {key}.{name}: vLLM does not read it ({runs})")
    if "max_seq_length" in module.config and module.config["max_seq_length"] is None:
        problems.append(f"{module.file}: max_seq_length=null: vLLM cannot read it ({runs})")
    return problems


# Stands for null among expected values, where None allows any value.
_NULL = object()
_IN_PLACE = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def _unsupported_keys(module: ModuleFile, expected: Mapping[str, object], runs: str) -> list[str]:
    """Return messages about unexpected keys and values of a module; an expected value of None allows any."""
    problems = []
    for key, value in module.config.items():
        if key not in expected:
            problems.append(f"{module.file}: {key}={_shorten(value)}: vLLM does not read this key ({runs})")
        elif (right := expected[key]) is not None and value != (None if right is _NULL else right):
            if not value and not right:
                continue
            problems.append(f"{module.file}: {key}={_shorten(value)}: vLLM does not support this value ({runs})")
    return problems


def _default_pooling(config: Mapping[str, object]) -> str:
    """Return sentence-transformers' pooling for a model without modules (SentenceTransformer._load_default_modules)."""
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    causal = first.endswith("ForCausalLM") and config.get("is_causal", True)
    return "LAST" if causal else "MEAN"


def _find_context(files: SentenceTransformersFiles, config: Mapping[str, object]) -> tuple[int | None, bool, list[str]]:
    """Return the context length of sentence-transformers in tokens, whether vLLM reads it itself, and notes."""
    module = next((one for one in files.modules or () if one.kind == "Transformer"), None)
    if module is not None and isinstance(module.config.get("max_seq_length"), int):
        return module.config["max_seq_length"], True, []
    limits = [files.tokenizer.get("model_max_length"), config.get("max_position_embeddings")]
    # A tokenizer without a limit has 1e30.
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < 1e9]
    context = min(known) if known else None
    if files.unread_context is not None and context is not None and files.unread_context < context:
        note = (
            f"Texts are truncated to {files.unread_context} tokens (max_seq_length); sentence-transformers ignores that "
            f"without a modules.json, and truncates to {context}."
        )
        return files.unread_context, True, [note]
    return context, False, []


def _find_activation(
    files: SentenceTransformersFiles, config: Mapping[str, object], names: SettingNames
) -> tuple[_Activation | None, str | None]:
    """Return the activation of CrossEncoder if vLLM would apply another, and a message if it is unsupported."""
    saved = config.get("sentence_transformers")
    named = files.settings.get("activation_fn") if files.is_cross_encoder else None
    where = "config.json" if named is None else "config_sentence_transformers.json"
    named = named or (saved.get("activation_fn") if isinstance(saved, Mapping) else None)
    named = named or config.get("sbert_ce_default_activation_function")
    if named is None:
        # vLLM looks at problem_type first (get_act_fn), and returns the raw logit for a regression.
        return ("sigmoid" if config.get("problem_type") == "regression" else None), None
    kinds: dict[str, _Activation] = {"Sigmoid": "sigmoid", "Identity": "none"}
    name = str(named).rpartition(".")[2]
    if not str(named).startswith("torch.nn.modules.") or name not in kinds:
        return None, (
            f"{where}: activation_fn={named}: vLLM supports only the sigmoid and the identity ({_remedy(names)}, or choose "
            f"one: {names.assign('score_template.activation', 'sigmoid')})"
        )
    return kinds[name], None


def _pooler_field(args: Mapping[str, object], key: str) -> Any:
    """Return a field of `pooler_config`, which may be a dict or vLLM's own class."""
    pooler = args.get("pooler_config")
    return pooler.get(key) if isinstance(pooler, Mapping) else getattr(pooler, key, None)


def _read_settings(locate: Locate) -> dict[str, Any]:
    file = "config_sentence_transformers.json"
    settings = _read(locate, file, dict) or {}
    prompts = settings.get("prompts")
    if prompts is not None and not (
        isinstance(prompts, dict) and all(isinstance(text, (str, type(None))) for text in prompts.values())
    ):
        raise ModelError(f"{file}: prompts={_shorten(prompts)}: must be an object whose values are strings")
    default = settings.get("default_prompt_name")
    if default is not None and default not in (prompts or {}):
        raise ModelError(f"{file}: default_prompt_name={_shorten(default)}: is not one of its prompts")
    dim = settings.get("truncate_dim")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
        raise ModelError(f"{file}: truncate_dim={_shorten(dim)}: must be 1 or more")
    return settings


def _read_module(locate: Locate, entry: object) -> ModuleFile:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or not isinstance(entry.get("path"), str):
        raise ModelError(f"modules.json: {_shorten(entry)}: a module needs a type and a path")
    kind, path = entry["type"].rpartition(".")[2], entry["path"]
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ModelError(f"modules.json: path={_shorten(path)}: is outside the model's folder")
    if kind == "Transformer":
        config, file = _transformer_config(locate, path)
        length = config.get("max_seq_length")
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise ModelError(f"{file}: max_seq_length={_shorten(length)}: must be 1 or more")
        for key, value in config.items():
            if key.endswith(("_args", "_kwargs")) and not isinstance(value, (dict, type(None))):
                raise ModelError(f"{file}: {key}={_shorten(value)}: must be an object")
        return ModuleFile(kind, entry["type"], path, config, file)
    file = f"{path}/config.json" if path else "config.json"
    needed = kind in ("Pooling", "Dense")
    config = (_read(locate, file, dict) or {}) if needed or kind in _WITHOUT_FOLDER else {}
    if needed and locate(file) is None:
        raise ModelError(f"modules.json names {file}, which is missing")
    if kind == "Dense" and not any(locate(f"{path}/{weights}") for weights in _DENSE_WEIGHTS):
        raise ModelError(f"modules.json names {path}, which has no weights ({' or '.join(_DENSE_WEIGHTS)})")
    if kind == "Pooling":
        _validate_pooling(file, config)
    return ModuleFile(kind, entry["type"], path, config, file)


def _validate_pooling(file: str, config: Mapping[str, object]) -> None:
    modes = config.get("pooling_mode", [])
    for mode in [modes] if isinstance(modes, str) or not isinstance(modes, list) else modes:
        if mode not in POOLING_MODES:
            raise ModelError(f"{file}: pooling_mode={_shorten(mode)}: must be one of {', '.join(POOLING_MODES)}")
    for key in (*_OLD_MODES, "include_prompt"):
        if not isinstance(config.get(key, False), bool):
            raise ModelError(f"{file}: {key}={_shorten(config[key])}: must be true or false")


def _transformer_config(locate: Locate, folder: str) -> tuple[dict[str, Any], str]:
    for name in _TRANSFORMER_CONFIGS:
        file = f"{folder}/{name}" if folder else name
        if config := _read(locate, file, dict):
            return config, file
    return {}, _TRANSFORMER_CONFIGS[0]


def _read(locate: Locate, file: str, kind: type[_Json]) -> _Json | None:
    path = locate(file)
    return None if path is None else read_json(path, kind)


def _shorten(value: object) -> str:
    return cut(json.dumps(value, ensure_ascii=False, default=str), 80)
