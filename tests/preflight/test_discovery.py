"""A choice or a name that is wrong here, but right elsewhere, leads to the field that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.preflight.command import check
from mteb_vllm.util.suggestions import nearest_argument


def only(override: str) -> Mistake:
    """Return the one mistake of a command."""
    with pytest.raises(ConfigError) as caught:
        check([override])
    (mistake,) = caught.value.mistakes
    return mistake


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("tasks=msmarco", ("'tasks.names=[MSMARCO]'",)),
        ("tasks=STS12", ("'tasks.names=[STS12]'", "tasks=sts12")),
        ("tasks=[STS12,sts13]", ("'tasks.names=[STS12,STS13]'", "tasks=sts12")),
        ("tasks=SciFactt", ("tasks=scifact",)),
        ("tasks=ArguAnna", ("'tasks.names=[ArguAna]'",)),
        ("tasks=MTEB(eng, v2)", ("'tasks.benchmark=\"MTEB(eng, v2)\"'",)),
        ('tasks="MTEB(eng, v3)"', ("'tasks.benchmark=\"MTEB(eng, v1)\"'", "'tasks.benchmark=\"MTEB(eng, v2)\"'")),
        ("tasks=sts21", ("tasks=sts12",)),
        ("tasks=qqqqqqqq", ()),
    ],
)
def test_a_task_or_benchmark_in_place_of_a_file(override: str, nearest: tuple[str, ...]) -> None:
    mistake = only(override)
    assert mistake.nearest[: len(nearest) or None] == nearest
    if nearest and nearest[0].startswith("'"):
        assert "To select tasks by name, set tasks.names" in mistake.allowed


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model=e5_base", "model=custom model.name=intfloat/e5-base"),
        ("model=intfloat/e5-base", "model=custom model.name=intfloat/e5-base"),
        ("model=intfloat/e5-small-v2", "model=e5_small"),
        ("model=org/name", "model=custom model.name=org/name"),
        ("model=intfloat/e5-basee", "model=custom model.name=intfloat/e5-basee"),
        ("model@pipeline.first_stage.model=BAAI/bge-m3",
         "model@pipeline.first_stage.model=custom pipeline.first_stage.model.name=BAAI/bge-m3"),
    ],
)  # fmt: skip
def test_a_models_name_in_place_of_a_file(override: str, nearest: str) -> None:
    overrides = [override]
    if "@" in override:
        overrides += ["pipeline=rerank", "pipeline/first_stage=dense", "model=ms_marco_minilm", "tasks=demo_retrieval"]
    with pytest.raises(ConfigError) as caught:
        check(overrides)
    mistake = next(one for one in caught.value.mistakes if one.written == override)
    assert mistake.nearest[0] == nearest
    assert "Files: bge_reranker" in mistake.allowed


def test_a_misspelt_models_name_comes_with_the_registrys_nearest() -> None:
    near = only("model=intfloat/e5-basee").nearest
    assert "model=custom model.name=intfloat/e5-base" in near


def test_a_models_folder_in_place_of_a_file(tmp_path: Path) -> None:
    mistake = only(f"model={tmp_path}")
    assert mistake.nearest == (f"model=custom model.path={tmp_path}",)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("engine.max_len=512", "engine.max_model_len"),
        ("engine.max_length=512", "engine.max_model_len"),
        ("engine.max_seq_length=512", "engine.max_model_len"),
        ("engine.batch_size=32", "engine.max_num_seqs"),
        ("engine.tp=2", "engine.tensor_parallel_size"),
        ("engine.torch_dtype=float16", "engine.dtype"),
        ("engine.gpu_memory=0.5", "engine.gpu_memory_utilization"),
    ],
)
def test_an_engine_argument_by_the_name_that_it_has_elsewhere(override: str, nearest: str) -> None:
    assert only(override).nearest[0].lstrip("+") == nearest


def test_an_argument_of_vllm_by_its_name_in_sentence_transformers() -> None:
    with pytest.raises(ConfigError) as caught:
        check(["engine=sentence_transformers", "engine.max_seq_length=512"])
    assert caught.value.mistakes[0].nearest[0].lstrip("+") == "engine.max_model_len"


def test_arguments_of_the_same_meaning_come_before_similar_names() -> None:
    choices = ["max_model_len", "max_loras", "dtype", "max_num_seqs"]
    assert nearest_argument("max-len", choices) == ("max_model_len",)
    assert nearest_argument("max-num-seqs", choices) == ("max_num_seqs",)
    assert nearest_argument("dtpye", choices) == ("dtype",)
    assert nearest_argument("dtype", ["torch_dtype"]) == ("torch_dtype",)
    assert nearest_argument("nothing_like_it", choices) == ()
