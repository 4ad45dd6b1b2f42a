"""`pipeline=throughput`: latency of one call at each batch size, offline throughput, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.config.schema import Count, NotNegativeInt, Seconds, Spread
from mteb_vllm.engines.arguments import gpus_per_engine
from mteb_vllm.engines.memory import device_memory_mb, peak_memory
from mteb_vllm.errors import MeasureError, Mistake
from mteb_vllm.pipelines.base import Pipeline, RunContext
from mteb_vllm.results.measurements import Lengths, Memory, Roofline, ThroughputRecord
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.tasks.estimates import Estimate
from mteb_vllm.util.machine import gpu_count
from mteb_vllm.util.phase import Phase

if TYPE_CHECKING:
    from mteb_vllm.engines.base import Engine
    from mteb_vllm.pipelines.throughput.requests import Workload


@dataclass(frozen=True, kw_only=True)
class Throughput(Pipeline):
    """Measurement of an engine's speed; no task is scored, and no embedding is cached.

    Attributes:
        batch_sizes: The numbers of requests (texts or pairs) per call.
        lengths: "fixed": every text has exactly `tokens` tokens; "varied": random lengths with that mean; "tasks": a sample
            of the chosen tasks' texts.
        tokens: Tokens per text or pair, including prompt and special tokens.
        distribution: The distribution of varied lengths.
        spread: For a lognormal distribution: the standard deviation of the logarithm of the lengths.
        side: The side whose prompt is prefixed, unless the texts are those of tasks.
        requests: The number of distinct requests; the offline measurement passes all of them in one call.
        steps: The minimum number of timed calls per batch size.
        seconds: The minimum time spent on each batch size, up to 500 calls.
        repeats: The number of offline measurements.
        seed: The random seed of texts and lengths.
    """

    cached: ClassVar[bool] = False
    scores_tasks: ClassVar[bool] = False
    # Imports, settings and memory of an earlier engine in the same process would affect the measurements.
    own_process: ClassVar[bool] = True

    batch_sizes: list[Count]
    lengths: Literal["fixed", "varied", "tasks"] = "fixed"
    tokens: Count = 128
    distribution: Literal["lognormal", "uniform"] = "lognormal"
    spread: Spread = 0.75
    side: Literal["query", "document"] = "document"
    requests: Count = 512
    steps: Count = 5
    seconds: Seconds = 3.0
    repeats: Count = 3
    seed: NotNegativeInt = 0

    @property
    def min_requests(self) -> int:
        """The minimum number of texts or pairs run in total, repeated ones included."""
        sizes = [size for size in set(self.batch_sizes) if size <= self.requests]
        return sum(sizes) * (self.steps + 1) + self.requests * self.repeats

    @property
    def workload(self) -> Workload:
        """The description of the texts or pairs that the engine is timed on."""
        from mteb_vllm.pipelines.throughput.requests import Workload

        return Workload(self.requests, self.lengths, self.tokens, self.distribution, self.spread, self.side, self.seed)

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """All kinds."""
        return ("encoder", "cross_encoder")

    @property
    def needs_tasks(self) -> bool:
        """Whether the texts come from tasks."""
        return self.lengths == "tasks"

    def prompted_tasks(self, parts: Sequence[TaskInfo]) -> Sequence[TaskInfo]:
        """Return the tasks; if the texts do not come from tasks, the placeholder task that prompts are chosen for."""
        return parts if self.needs_tasks else [self.workload.task]

    def check(self, max_tokens: int | None) -> list[Mistake]:
        """Return the errors for batch sizes and lengths that are too large."""
        found = []
        way = "Increase pipeline.requests or use smaller batch sizes."
        if not any(size <= self.requests for size in self.batch_sizes):
            what = f"all exceed the number of requests, {self.requests:,}"
            found.append(Mistake("pipeline.batch_sizes", what, way, value=f"{self.batch_sizes}"))
        elif too_many := [size for size in self.batch_sizes if size > self.requests]:
            what = f"these exceed the number of requests, {self.requests:,}"
            found.append(Mistake("pipeline.batch_sizes", what, way, value=f"{too_many}"))
        if not self.needs_tasks and max_tokens is not None and self.tokens > max_tokens:
            what = f"exceeds the context length of {max_tokens} tokens (engine.max_model_len)"
            found.append(Mistake("pipeline.tokens", what, value=f"{self.tokens}"))
        return found

    def settings(self, kind: str, tasks: Sequence[str]) -> dict[str, Any]:
        """Return all fields, and the tasks whose texts are used."""
        return {"throughput": {**asdict(self), **({"tasks": list(tasks)} if self.needs_tasks else {})}}

    def estimate_all(self, kind: str) -> Estimate | None:
        """Return the minimum work of the engine; None if the texts come from tasks."""
        if self.needs_tasks:
            return None
        unit: Literal["texts", "pairs"] = "pairs" if kind == "cross_encoder" else "texts"
        return Estimate(self.min_requests, self.min_requests * self.tokens, unit)

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Time a model's engine; yields no outcomes.

        `context.throughput` is filled during the measurement.

        Raises:
            DataError: if a task's data cannot be loaded.
            EngineError: if the engine does not open, or fails later.
            MeasureError: if texts of the required lengths cannot be made, or the tasks have no suitable texts.
        """
        assert context.prompts is not None
        model, prompts, template = context.model, context.prompts, context.template
        notify = functools.partial(context.progress.note, Phase.MEASURING)
        from mteb_vllm.pipelines.throughput.measure import measure
        from mteb_vllm.pipelines.throughput.requests import make_requests, sample_requests

        notify("Sampling texts" if self.lengths == "tasks" else "Generating texts")
        try:
            if self.lengths == "tasks":
                # Before the engine opens, so that errors in the data are found first.
                requests = sample_requests(context.tasks, self.workload, prompts, template)
                engine = model.engine
                requests = requests.with_tokens(engine.tokenizer)
            else:
                engine = model.engine
                requests = make_requests(engine, self.workload, prompts, template)
        except ValueError as error:
            raise MeasureError(f"pipeline.lengths={self.lengths}: {error}") from error
        sizes = sorted({size for size in self.batch_sizes if size <= len(requests)})
        if not sizes:
            raise MeasureError(
                f"all batch sizes exceed the number of {requests.unit}, {len(requests):,}: set pipeline.batch_sizes=[1]"
            )
        rates = [_rate(engine)]  # measured before and after, since other work on the machine may slow down one of them
        chosen = Lengths(
            self.lengths,
            None if self.lengths == "tasks" else self.tokens,
            self.distribution if self.lengths == "varied" else None,
        )
        # Set now, so that an interrupted run keeps the measurements so far.
        context.throughput = figures = ThroughputRecord(requests.unit, len(requests), chosen)
        lengths = measure(
            engine,
            requests,
            figures,
            batch_sizes=sizes,
            steps=self.steps,
            seconds=self.seconds,
            repeats=self.repeats,
            notify=notify,
        )
        figures.memory_mb = Memory(**peak_memory(engine.processes), device=device_memory_mb())
        chosen.mean, chosen.min, chosen.max = sum(lengths) / len(lengths), min(lengths), max(lengths)
        notify("Measuring the roofline")
        rates.append(_rate(engine))
        assert figures.saturated is not None
        computed = figures.saturated.tokens_per_second * (1 - figures.saturated.cached_share)
        figures.roofline = _roofline(engine, lengths, rates, computed)
        yield from ()


def _rate(engine: Engine) -> float | str:
    """Return the arithmetic rate of an engine's devices in FLOP/s, or why it could not be measured."""
    from mteb_vllm.pipelines.throughput.roofline import machine_rate

    # Replicas may share a GPU; on a CPU, the rate is that of all cores, whatever the number of processes.
    size = gpus_per_engine(engine.spec.args) if gpu_count() else 1
    groups = min(engine.spec.replicas, max(1, gpu_count() // size))
    if engine.spec.ray_address is not None:
        if not gpu_count():
            return "the replicas ran on cores of several machines"
        groups = engine.spec.replicas  # no two on a GPU
    try:
        return machine_rate(engine.dtype, _device(engine)) * size * groups
    except (ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
        return str(error)


def _device(engine: Engine) -> str | None:
    """Return the device type of a sentence-transformers engine; None for vLLM, which uses the default device."""
    return str(engine.resolved.get("device") or "").partition(":")[0] or None


def _roofline(engine: Engine, lengths: Sequence[int], rates: Sequence[float | str], reached: float) -> Roofline:
    """Return the roofline of an engine's devices and the MFU.

    Args:
        engine: An open engine.
        lengths: The number of tokens of each request.
        rates: The measured rates in FLOP/s, or why there are none.
        reached: The computed tokens per second.
    """
    from mteb_vllm.pipelines.throughput.roofline import device_name, model_flops

    spec = engine.spec
    measured = [rate for rate in rates if not isinstance(rate, str)]
    if not measured:
        return Roofline(unknown=str(rates[0]))
    known = {"num_labels", *spec.model.config}
    overrides = {key: value for key, value in (spec.args.get("hf_overrides") or {}).items() if key in known}
    try:
        operations = model_flops(
            spec.model.location,
            lengths,
            convert=spec.convert,
            revision=spec.model.hub_revision,
            trust_remote_code=spec.args.get("trust_remote_code") is True,
            overrides=overrides,
        )
    except ValueError as error:
        return Roofline(unknown=str(error))
    rate, per_token = max(measured), operations / sum(lengths)
    return Roofline(
        dtype=engine.dtype,
        device=device_name(_device(engine)),
        flops_per_second=rate,
        flops_per_token=per_token,
        tokens_per_second=rate / per_token,
        mfu=reached * per_token / rate,
    )
