"""The roofline: the machine's measured FLOP/s of large matrix multiplications, and the number of a model's operations."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from mteb_vllm.util.machine import device, processor

# Sizes of the square matrices. The largest exceed all caches, and on a GPU make launch costs negligible.
_FIRST = 256
_LARGEST = {"cpu": 4096, "cuda": 16384}

# Lengths in tokens at which a model's operations are counted; three points determine a parabola.
_PROBES = (4, 8, 16)


def device_name(kind: str | None = None) -> str:
    """Return the name of the device whose rate is measured, as `cpu: AMD EPYC, 2 threads` or `cuda: NVIDIA H200`.

    Args:
        kind: `cpu` or `cuda`; None for the device that vLLM would use.
    """
    if _kind(kind) == "cuda":
        return device()
    import torch

    return f"cpu: {processor()}, {torch.get_num_threads()} threads"


def _kind(kind: str | None) -> str:
    return kind or device().partition(":")[0]


def machine_rate(dtype: str, kind: str | None = None) -> float:
    """Return the arithmetic rate of a device, as measured by `matmul_rate`, in FLOP/s.

    A GPU is measured once, in a separate process, since initialising CUDA in this one would permanently take memory. A CPU
    is measured at every call, since its rate changes with the load of other processes.

    Args:
        dtype: A floating-point dtype of torch, as `bfloat16`.
        kind: `cpu` or `cuda`; None for the device that vLLM would use.

    Raises:
        ValueError: if torch has no such floating-point dtype.
        RuntimeError: if the device does not support the dtype.
    """
    return _measure_in_subprocess(dtype) if _kind(kind) == "cuda" else matmul_rate(dtype, "cpu")


@functools.cache
def _measure_in_subprocess(dtype: str) -> float:
    code = f"import sys; from {__name__} import matmul_rate; print(matmul_rate(sys.argv[1]), flush=True)"
    done = subprocess.run([sys.executable, "-c", code, dtype], capture_output=True, text=True, timeout=120, check=False)
    try:
        return float(done.stdout.split()[-1])
    except (ValueError, IndexError):
        why = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit status {done.returncode}")
        raise RuntimeError(f"the compute rate in {dtype} could not be measured: {why}") from None


def matmul_rate(dtype: str, device: str | None = None, *, seconds: float = 0.5) -> float:
    """Return the FLOP/s of a large square matrix multiplication, measured with torch in this process.

    The product is that of a linear layer, x Wᵀ, since other layouts can be many times slower in half precision. Its size is
    doubled as long as the next one is expected to take at most `seconds`. torch's settings (threads, TF32) and random state
    are not changed. On a CPU without native half precision the rate is that of torch's emulation, which an engine's own
    kernels may exceed.

    Args:
        dtype: A floating-point dtype of torch, as `bfloat16`.
        device: `cpu` or `cuda`; None for the device that vLLM would use. CUDA is initialised in this process, so a process
            that forks engines later must not call this with `cuda`.
        seconds: The maximum time for each size; a quarter of it suffices if the times vary little.

    Returns:
        Floating-point operations per second (2 n³ per product), of the fastest repeat, since a roofline is an upper bound.

    Raises:
        ValueError: if torch has no such floating-point dtype.
        RuntimeError: from torch, if the device does not support the dtype.
    """
    import torch
    from torch.utils.benchmark import Timer, timer

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"{dtype!r} is not a floating-point dtype of torch, such as float32, float16, bfloat16")
    device = _kind(device)
    cuda = device.startswith("cuda")
    generator = torch.Generator(device).manual_seed(0)

    def quickest(n: int) -> float:
        a, b = (torch.randn(n, n, generator=generator, device=device).to(kind) for _ in range(2))
        product = Timer(
            "torch.nn.functional.linear(a, b)",
            globals={"a": a, "b": b},
            # torch's own timer synchronises with the GPU, and would initialise CUDA even if a CPU is measured.
            timer=timer if cuda else time.perf_counter,
            num_threads=torch.get_num_threads(),
        )
        return min(product.adaptive_autorange(min_run_time=seconds / 4, max_run_time=seconds).times)

    # Two operands, their float32 originals and the result must fit into half of the free memory.
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
    """Return a model's floating-point operations for texts of these lengths, without padding.

    They are counted by torch's `FlopCounterMode` (matrix multiplications, two operations per multiply-add; no element-wise
    operations) on transformers' model, built from its configuration on the meta device. No weights are loaded.

    A transformer needs exactly a + b n + c n² operations for n tokens: layers process each token alike (b), attention scores
    and their application to the values are products of n by n matrices (c), and a head processes one token (a). Counts at
    three lengths determine the parabola; a count at the longest length verifies it. Attention is counted in full, including
    positions that are masked in a causal model or lie outside a sliding window.

    Args:
        location: The model's folder, or its name on the Hub.
        lengths: Tokens of each text, including special tokens.
        convert: The model's use: `embed` has no head, `classify` has a classification head.
        revision: The revision on the Hub.
        trust_remote_code: Whether Python code shipped with the model may run.
        overrides: Values that replace those of the model's configuration.

    Returns:
        The operations for all texts together.

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
    except Exception as error:  # a model's own code may raise anything
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"the FLOPs of {location} cannot be counted: {type(error).__name__}: {reason[:200]}"
        ) from error
    constant, linear, square = _parabola(_PROBES, points)
    expected = constant + linear * max(texts) + square * max(texts) ** 2
    if abs(expected - longest) > 1e-6 * longest:
        raise ValueError(
            f"the FLOPs of {location} are not a quadratic function of the number of tokens: "
            f"{longest:.4g} at {max(texts)} tokens, where {expected:.4g} was expected"
        )
    return constant * len(texts) + linear * sum(texts) + square * sum(n * n for n in texts)


def _counter(
    location: str, convert: str, revision: str | None, trust_remote_code: bool, overrides: dict[str, Any]
) -> Callable[[int], int]:
    """Return a function that maps the number of tokens of a text to the model's operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
    config.update(overrides)
    made: Any = AutoModelForSequenceClassification if convert == "classify" else AutoModel
    with torch.device("meta"):
        # The counter cannot see into fused attention on some devices; eager attention consists of plain products.
        model = made.from_config(config, attn_implementation="eager", trust_remote_code=trust_remote_code).eval()

    def count(tokens: int) -> int:
        ids = torch.ones((1, tokens), dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=ids)
        return int(counter.get_total_flops())

    return count


def _parabola(lengths: tuple[int, int, int], values: list[int]) -> tuple[float, float, float]:
    """Return a, b, c of the parabola a + b n + c n² through three points (Newton's divided differences)."""
    (n0, n1, n2), (v0, v1, v2) = lengths, values
    first, second = (v1 - v0) / (n1 - n0), (v2 - v1) / (n2 - n1)
    square = (second - first) / (n2 - n0)
    linear = first - square * (n0 + n1)
    return v0 - linear * n0 - square * n0**2, linear, square
