"""How fast this machine could be at most: its rate on a large matrix product, and what a model has to compute."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from mteb_vllm.util.machine import device, processor

# Sides of the square matrices; a product of the largest is far beyond every cache, on a GPU beyond a launch's cost.
_FIRST = 256
_LARGEST = {"cpu": 4096, "cuda": 16384}

# Lengths at which a model's operations are counted; three points determine a parabola.
_PROBES = (4, 8, 16)


def device_name(kind: str | None = None) -> str:
    """The device whose rate is measured, as `cpu: AMD EPYC, 2 threads` or `cuda: NVIDIA H200`.

    Args:
        kind: `cpu` or `cuda`; None for the one that vLLM would take.
    """
    if _kind(kind) == "cuda":
        return device()
    import torch

    return f"cpu: {processor()}, {torch.get_num_threads()} threads"


def _kind(kind: str | None) -> str:
    return kind or device().partition(":")[0]


def machine_rate(dtype: str, kind: str | None = None) -> float:
    """The arithmetic rate of `matmul_rate` on a device.

    On a GPU it is measured once, in a process of its own: CUDA that has started here would stay, with its memory. A CPU's
    may differ from minute to minute, where others work on it as well, and is measured anew.

    Args:
        dtype: A floating-point type of torch's, as `bfloat16`.
        kind: `cpu` or `cuda`; None for the one that vLLM would take.

    Raises:
        ValueError: if torch has no such floating-point type.
        RuntimeError: if the device cannot compute in it.
    """
    return _in_a_process(dtype) if _kind(kind) == "cuda" else matmul_rate(dtype, "cpu")


@functools.cache
def _in_a_process(dtype: str) -> float:
    code = f"import sys; from {__name__} import matmul_rate; print(matmul_rate(sys.argv[1]), flush=True)"
    done = subprocess.run([sys.executable, "-c", code, dtype], capture_output=True, text=True, timeout=120, check=False)
    try:
        return float(done.stdout.split()[-1])
    except (ValueError, IndexError):
        why = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit status {done.returncode}")
        raise RuntimeError(f"the rate in {dtype} could not be measured: {why}") from None


def matmul_rate(dtype: str, device: str | None = None, *, seconds: float = 0.5) -> float:
    """The arithmetic rate of a large square matrix product, as torch does it in this process now.

    The product is a linear layer's, x Wᵀ, since the other layouts can be many times slower in the half precisions. Its
    size is doubled for as long as the next one should fit into `seconds`. torch's settings (threads, TF32) stay as they
    are, and its random state, too. On a CPU that cannot compute in a half precision, the rate is that of torch's emulation,
    which an engine's own kernels may surpass.

    Args:
        dtype: A floating-point type of torch's, as `bfloat16`.
        device: `cpu` or `cuda`; None for the one that vLLM would take. CUDA is started in this process, which a process
            that forks engines afterwards must not do.
        seconds: How long each size is measured at most; a fourth of that where its times are steady.

    Returns:
        Floating-point operations per second, 2 n³ to a product; the fastest of the repeats, as a roofline is.

    Raises:
        ValueError: if torch has no such floating-point type.
        RuntimeError: torch's own, where the device cannot compute in it.
    """
    import torch
    from torch.utils.benchmark import Timer, timer

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"{dtype!r} is no floating-point type of torch's; such are float32, float16, bfloat16")
    device = _kind(device)
    cuda = device.startswith("cuda")
    generator = torch.Generator(device).manual_seed(0)

    def quickest(n: int) -> float:
        a, b = (torch.randn(n, n, generator=generator, device=device).to(kind) for _ in range(2))
        product = Timer(
            "torch.nn.functional.linear(a, b)",
            globals={"a": a, "b": b},
            # torch's own timer waits for a GPU, and would start CUDA where a CPU is measured.
            timer=timer if cuda else time.perf_counter,
            num_threads=torch.get_num_threads(),
        )
        return min(product.adaptive_autorange(min_run_time=seconds / 4, max_run_time=seconds).times)

    # Two operands, their float32 originals and the result, in half of what is free.
    most = (torch.cuda.mem_get_info(device)[0] / 2 / 20) ** 0.5 if cuda else float("inf")
    with torch.inference_mode():
        n = _FIRST
        while 8 * (took := quickest(n)) <= seconds and 2 * n <= min(most, _LARGEST["cuda" if cuda else "cpu"]):
            n *= 2
    if cuda:
        torch.cuda.empty_cache()
    return 2 * n**3 / took


def model_flops(
    location: str,
    lengths: Iterable[int],
    *,
    convert: Literal["embed", "classify"],
    revision: str | None = None,
    trust_remote_code: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> float:
    """A model's own floating-point operations for texts of these lengths, without padding.

    Counted by torch's `FlopCounterMode` (matrix products, two operations to a multiply-add; not what is done element by
    element) while transformers' model, built from its configuration alone, runs without data. Weights are never loaded.

    A transformer's operations are a + b n + c n² for n tokens, and exactly so: its layers treat each token alike (b), the
    attention scores and their application to the values are products of n by n matrices (c), and a head reads one token
    (a). Counted at three lengths, they are known at all; the longest is counted, too, as a check. Attention counts in full,
    also the half that a causal model masks, and also outside a sliding window.

    Args:
        location: The model's folder, or its name on the Hub.
        lengths: Tokens of each text, special ones included.
        convert: What the model is used for: `embed` runs no language-modelling head, `classify` has a score for a head.
        revision: The revision on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        overrides: Values that replace those of the model's configuration.

    Returns:
        Operations for all texts together.

    Raises:
        ValueError: if they cannot be counted so (an architecture that transformers cannot build or run without data, or
            whose operations are no such parabola), saying why.
    """
    texts = [int(length) for length in lengths]
    if not texts:
        return 0.0
    try:
        count = _counter(location, convert, revision, trust_remote_code, dict(overrides or {}))
        points = [count(n) for n in _PROBES]
        longest = count(max(texts))
    except Exception as error:  # foreign code: what a model's own may raise has no bounds
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"the operations of {location} cannot be counted: {type(error).__name__}: {reason[:200]}"
        ) from error
    constant, linear, square = _parabola(_PROBES, points)
    expected = constant + linear * max(texts) + square * max(texts) ** 2
    if abs(expected - longest) > 1e-6 * longest:
        raise ValueError(
            f"the operations of {location} are no a + b n + c n²: at {max(texts)} tokens {longest:.4g}, not {expected:.4g}"
        )
    return constant * len(texts) + linear * sum(texts) + square * sum(n * n for n in texts)


def _counter(
    location: str, convert: str, revision: str | None, trust_remote_code: bool, overrides: dict[str, Any]
) -> Callable[[int], int]:
    """Return a function from the tokens of one text to the model's operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
    config.update(overrides)
    made: Any = AutoModelForSequenceClassification if convert == "classify" else AutoModel
    with torch.device("meta"):
        # The fused kinds of attention are opaque to the counter on some devices; this one consists of plain products.
        model = made.from_config(config, attn_implementation="eager", trust_remote_code=trust_remote_code).eval()

    def count(tokens: int) -> int:
        ids = torch.ones((1, tokens), dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=ids)
        return int(counter.get_total_flops())

    return count


def _parabola(lengths: tuple[int, int, int], values: list[int]) -> tuple[float, float, float]:
    """a, b, c of a + b n + c n² through three points (Newton's divided differences)."""
    (n0, n1, n2), (v0, v1, v2) = lengths, values
    first, second = (v1 - v0) / (n1 - n0), (v2 - v1) / (n2 - n1)
    square = (second - first) / (n2 - n0)
    linear = first - square * (n0 + n1)
    return v0 - linear * n0 - square * n0**2, linear, square
