"""Records of invented throughput and parity runs."""

from __future__ import annotations

from pathlib import Path

from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import (
    EngineRecord,
    Latency,
    Lengths,
    Memory,
    PhaseTimes,
    Roofline,
    Saturated,
    Step,
    ThroughputRecord,
    Unit,
)
from mteb_vllm.results.parity import (
    Hint,
    ParityRecord,
    ReferenceRecord,
    SplitVerdict,
    TaskVerdict,
    Tolerances,
    VectorAgreement,
)
from mteb_vllm.results.record import RunRecord, TaskOutcome, write_record

# Latency of one request in ms, and offline throughput in requests per second, by dtype.
STEP = {"float32": 12.1, "bfloat16": 8.4, "float16": 9.0}
OFFLINE = {"float32": 240.0, "bfloat16": 440.0, "float16": 431.0}
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def throughput(
    dtype: str = "float32", *, unit: Unit = "texts", tokens: int = 128, roofline: bool = True
) -> ThroughputRecord:
    """The measurements of a throughput run."""
    most, alone = OFFLINE[dtype] * 128 / tokens, STEP[dtype] * tokens / 128
    steps = []
    for size in (1, 2, 4, 8, 16, 32, 64):
        p50 = alone + 1000 * (size - 1) / most
        rate = 1000 * size / (p50 * 1.02)
        latency = Latency(mean=p50 * 1.02, p50=p50, p90=p50 * 1.12, p99=p50 * 1.31)
        phases = PhaseTimes(tokenise=0.04 * p50, engine=0.9 * p50, collect=0.08 * p50)
        steps.append(Step(size, 40, rate, rate * tokens, latency, phases, spread=0.03))
    rate = {"float32": 5.0e10, "bfloat16": 1.2e11, "float16": 1.2e11}[dtype]
    known = Roofline(
        dtype=dtype, device="cpu: AMD EPYC", flops_per_second=rate, flops_per_token=1.07e6,
        tokens_per_second=rate / 1.07e6, mfu=most * tokens / (rate / 1.07e6),
    )  # fmt: skip
    return ThroughputRecord(
        unit=unit,
        requests=512,
        lengths=Lengths("fixed", tokens, mean=tokens, min=tokens, max=tokens),
        warm_up_seconds=3.1,
        steps=steps,
        saturated=Saturated(
            repeats=3, seconds=[512 / most * one for one in (1.0, 0.98, 1.03)], requests_per_second=most,
            tokens_per_second=most * tokens, spread=0.05, cached_share=0.0,
            phases_s=PhaseTimes(tokenise=0.1, engine=512 / most - 0.2, collect=0.1),
        ),
        roofline=known if roofline else Roofline(unknown="no matrix product in this dtype on this device"),
        memory_mb=Memory(1200.0, 0.0),
    )  # fmt: skip


def parity(difference: float, *, cosine: float = 0.9999, hint: str = "") -> ParityRecord:
    """The verdict of a parity run over two tasks; it passes within 5e-4."""
    passed = abs(difference) <= 5e-4

    def task(name: str, off: float, lowest: float) -> TaskVerdict:
        fine = abs(off) <= 5e-4
        split = SplitVerdict("test", "default", "cosine_spearman", 0.7237, 0.7237 + off, off, fine)
        vectors = VectorAgreement(5342, lowest, 1.0, 1.0, 1.0, 1.0, (0.99, 1.01))
        return TaskVerdict(name, fine, splits=[split], cosine=vectors)

    return ParityRecord(
        passed,
        ReferenceRecord("engine", "sentence-transformers 6.2.0 in float32", "sentence_transformers", "float32"),
        Tolerances(5e-4, 0.99, 0.01),
        [task("STS12", difference, cosine), task("STS13", difference / 2, (1 + cosine) / 2)],
        [Hint("pooling", hint, 0.99999, 1.0)] if hint else [],
    )


def outcome(name: str, score: float | None, seconds: float) -> TaskOutcome:
    """A task that was computed, or failed if it has no score."""
    failure = None if score is not None else Failure("error", "no such thing", name)
    return TaskOutcome(
        name, "STS", "computed" if failure is None else "failed", "cosine_spearman", score, failure=failure,
        seconds={"encode": seconds}, texts=5000, computed=5000, stored=0, tokens=60_000,
    )  # fmt: skip


def record(
    point: int,
    *overrides: str,
    dtype: str = "float32",
    throughput: ThroughputRecord | None = None,
    parity: ParityRecord | None = None,
    tasks: tuple[TaskOutcome, ...] = (),
    failure: Failure | None = None,
) -> RunRecord:
    """The record of a run."""
    config = {
        "model": {},
        "tasks": {"names": [task.name for task in tasks]},
        "pipeline": {},
        "results": {"dir": "outputs"},
    }
    if pipeline := dict(text.split("=") for text in overrides).get("pipeline"):
        config["pipeline"] = {"_target_": f"mteb_vllm.pipelines.{pipeline}.pipeline.{pipeline.title()}"}
    opened = EngineRecord("vllm", "vllm_cpu", f"engine-{dtype}", opened=1, seconds=2.4, resolved={"dtype": dtype})
    engine = {"model": MODEL, "backend": "vllm", "args": {"dtype": dtype}, "revision": "b5c9b60c7a7a", "device": "cpu"}
    return RunRecord(
        status="failed" if failure is not None or any(task.failure for task in tasks) else "ok",
        fingerprint=f"{dtype}0123456789",
        overrides=[*overrides, f"engine.dtype={dtype}"],
        point=point,
        settings={"engine": engine},
        config=config,
        tasks=list(tasks),
        engine=opened,
        failure=failure,
        seconds=61.0 + point,
        peak_memory_mb=Memory(1200.0 + point, 0.0),
        started="2026-11-26T10:00:00+00:00",
        throughput=throughput,
        parity=parity,
    )  # fmt: skip


def throughput_runs() -> list[RunRecord]:
    """Throughput runs in float32, bfloat16 and float16, and one that failed."""
    runs = [
        record(at, "pipeline=throughput", dtype=dtype, throughput=throughput(dtype, roofline=dtype != "float16"))
        for at, dtype in enumerate(OFFLINE)
    ]
    cause = Failure(
        "engine_start", "Free memory on device is less than desired", None, ["RuntimeError: too little memory"]
    )
    return [*runs, record(3, "pipeline=throughput", dtype="float64", failure=cause)]


def parity_runs() -> list[RunRecord]:
    """Parity runs: float32 passes, bfloat16 just misses the tolerance, and float16 has the wrong pooling."""
    offs = {"float32": (2e-7, 0.9999997, ""), "bfloat16": (-7e-4, 0.99985, ""),
            "float16": (-0.0124, 0.41, "with CLS pooling, the reference matches: the lowest cosine is 0.99999.")}  # fmt: skip
    return [
        record(
            at, "pipeline=parity", dtype=dtype, parity=parity(off, cosine=cosine, hint=hint),
            tasks=(outcome("STS12", 0.7237 + off, 20.0 - 3 * at), outcome("STS13", 0.8 + off / 2, 10.0)),
        )
        for at, (dtype, (off, cosine, hint)) in enumerate(offs.items())
    ]  # fmt: skip


def mixed_runs() -> list[RunRecord]:
    """Two evaluations, one with a failed task, then parity and throughput runs with the same engines."""
    evaluated = [
        record(0, "pipeline=evaluate", tasks=(outcome("STS12", 0.7237, 20.0), outcome("STS13", 0.8, 10.0))),
        record(1, "pipeline=evaluate", dtype="bfloat16", tasks=(outcome("STS12", 0.7234, 11.0), outcome("STS13", None, 0.0))),
    ]  # fmt: skip
    others = [*parity_runs(), *throughput_runs()]
    for at, run in enumerate(others, 2):
        run.point = at
    return [*evaluated, *others]


def write_runs(folder: Path, runs: list[RunRecord]) -> Path:
    """Write runs as a sweep's folder; return it."""
    for run in runs:
        run.output_dir = str(folder / str(run.point))
        write_record(run, folder / str(run.point))
    return folder
