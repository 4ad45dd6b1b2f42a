"""Measure an engine: latency of one call at each batch size, offline throughput, and model FLOPs utilisation."""

from __future__ import annotations

import functools
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.config.schema import Count, NotNegativeInt, Seconds, Spread
from mteb_vllm.engines.memory import device_memory_mb, peak_memory
from mteb_vllm.errors import MeasureError, Mistake
from mteb_vllm.pipelines.base import Pipeline, RunContext
from mteb_vllm.results.measurements import Lengths, Memory, Roofline, ThroughputRecord
from mteb_vllm.results.record import TaskOutcome
from mteb_vllm.tasks.estimates import Estimate
from mteb_vllm.util.phase import Phase

if TYPE_CHECKING:
    from mteb_vllm.engines.base import Engine
    from mteb_vllm.pipelines.throughput.requests import Workload


@dataclass(frozen=True, kw_only=True)
class Throughput(Pipeline):
    """Times an engine, and nothing else: no task is scored, no embedding is read or kept.

    Attributes:
        batch_sizes: Requests in one call, each to be timed.
        lengths: "fixed": every text has exactly `tokens` tokens; "varied": drawn, with that mean; "tasks": a sample of the
            chosen tasks' own texts.
        tokens: Tokens of a text or pair as the engine reads it, prompt and special tokens included.
        distribution: Of varied lengths.
        spread: Of a lognormal distribution: the standard deviation of the lengths' logarithms.
        side: Whose prompt stands in front of the texts, where they are not tasks' own.
        requests: Texts or pairs that are asked for at once in the end; and so many different ones there are.
        steps: How often each batch size is timed at least.
        seconds: For how long each batch size is timed about, if that is more.
        repeats: How often everything at once is timed.
        seed: Of the texts.
    """

    cached: ClassVar[bool] = False
    scores_tasks: ClassVar[bool] = False
    # What one engine has imported, set and left behind must not be in the figures of the next one.
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
    def least_asked(self) -> int:
        """How many texts or pairs an engine is asked for at least, the same ones as often as they are."""
        sizes = [size for size in set(self.batch_sizes) if size <= self.requests]
        return sum(sizes) * (self.steps + 1) + self.requests * self.repeats

    @property
    def workload(self) -> Workload:
        """The texts or pairs that the engine is timed on."""
        from mteb_vllm.pipelines.throughput.requests import Workload

        return Workload(self.requests, self.lengths, self.tokens, self.distribution, self.spread, self.side, self.seed)

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """Every kind."""
        return ("encoder", "cross_encoder")

    @property
    def needs_tasks(self) -> bool:
        """Whether the texts are those of tasks."""
        return self.lengths == "tasks"

    def prompted(self, parts: Sequence[TaskInfo]) -> Sequence[TaskInfo]:
        """Return the tasks; where the texts are not theirs, the task by which prompts are chosen."""
        return parts if self.needs_tasks else [self.workload.task]

    def check(self, max_tokens: int | None) -> list[Mistake]:
        """Return which batch sizes and lengths cannot be had."""
        found = []
        way = "More of them: pipeline.requests=..."
        if not any(size <= self.requests for size in self.batch_sizes):
            what = f"none is within the {self.requests:,} different requests"
            found.append(Mistake("pipeline.batch_sizes", what, way, value=f"{self.batch_sizes}"))
        elif too_many := [size for size in self.batch_sizes if size > self.requests]:
            what = f"there are {self.requests:,} different requests"
            found.append(Mistake("pipeline.batch_sizes", what, way, value=f"{too_many}"))
        if not self.needs_tasks and max_tokens is not None and self.tokens > max_tokens:
            what = f"the context is {max_tokens} tokens (engine.max_model_len)"
            found.append(Mistake("pipeline.tokens", what, value=f"{self.tokens}"))
        return found

    def settings(self, kind: str, tasks: Sequence[str]) -> dict[str, Any]:
        """Return all fields, and the tasks whose texts are taken."""
        return {"throughput": {**asdict(self), **({"tasks": list(tasks)} if self.needs_tasks else {})}}

    def estimate_all(self, kind: str) -> Estimate | None:
        """Return what the engine is given at least; None where the lengths are those of tasks' texts."""
        if self.needs_tasks:
            return None
        unit: Literal["texts", "pairs"] = "pairs" if kind == "cross_encoder" else "texts"
        return Estimate(self.least_asked, self.least_asked * self.tokens, unit)

    def run(self, context: RunContext) -> Iterator[TaskOutcome]:
        """Time a model's engine; yields nothing.

        `context.throughput` is filled as it goes.

        Raises:
            DataError: if a task's data cannot be loaded.
            EngineError: if the engine does not open, dies, or fails at work.
            MeasureError: if there is no room for texts of such lengths, or no such task.
        """
        assert context.prompts is not None
        model, prompts, template = context.model, context.prompts, context.template
        tell = functools.partial(context.progress.note, Phase.MEASURING)
        from mteb_vllm.pipelines.throughput.measure import measure
        from mteb_vllm.pipelines.throughput.requests import made_requests, requests_of_tasks

        tell("making texts")
        try:
            if self.lengths == "tasks":
                # Before an engine opens: what is wrong with the data need not wait for it.
                requests = requests_of_tasks(context.tasks, self.workload, prompts, template)
                engine = model.engine
                requests = requests.with_tokens(engine.tokenizer)
            else:
                engine = model.engine
                requests = made_requests(engine, self.workload, prompts, template)
        except ValueError as error:
            raise MeasureError(f"pipeline.lengths={self.lengths}: {error}") from error
        sizes = sorted({size for size in self.batch_sizes if size <= len(requests)})
        if not sizes:
            raise MeasureError(f"no batch size fits into {len(requests):,} {requests.unit}: pipeline.batch_sizes=[1]")
        rates = [_rate(engine)]  # before and after, as other work on the machine slows the one or the other
        chosen = Lengths(
            self.lengths,
            None if self.lengths == "tasks" else self.tokens,
            self.distribution if self.lengths == "varied" else None,
        )
        # A run that is cut short keeps what there is.
        context.throughput = figures = ThroughputRecord(requests.unit, len(requests), chosen)
        lengths = measure(
            engine,
            requests,
            figures,
            batch_sizes=sizes,
            steps=self.steps,
            seconds=self.seconds,
            repeats=self.repeats,
            tell=tell,
        )
        figures.memory_mb = Memory(**peak_memory(engine.processes), device=device_memory_mb())
        chosen.mean, chosen.min, chosen.max = sum(lengths) / len(lengths), min(lengths), max(lengths)
        tell("measuring the roofline")
        rates.append(_rate(engine))
        assert figures.saturated is not None
        computed = figures.saturated.tokens_per_second * (1 - figures.saturated.cached_share)
        figures.roofline = _roofline(engine, lengths, rates, computed)
        yield from ()


def _rate(engine: Engine) -> float | str:
    """The arithmetic rate of the devices that an engine has, or why it could not be measured."""
    from mteb_vllm.pipelines.throughput.roofline import machine_rate

    used = [engine.spec.args.get(f"{way}_parallel_size") or 1 for way in ("tensor", "pipeline")]
    try:
        return machine_rate(engine.dtype, _device(engine)) * math.prod(used)
    except (ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
        return str(error)


def _device(engine: Engine) -> str | None:
    """What sentence-transformers computes on; None where that is what vLLM would take."""
    return str(engine.resolved.get("device") or "").partition(":")[0] or None


def _roofline(engine: Engine, lengths: Sequence[int], rates: Sequence[float | str], reached: float) -> Roofline:
    """The tokens a second that this machine could compute at most, and the share of it that was computed."""
    from mteb_vllm.pipelines.throughput.roofline import device_name, model_flops

    spec = engine.spec
    measured = [rate for rate in rates if not isinstance(rate, str)]
    if not measured:
        return Roofline(unknown=str(rates[0]))
    overrides = {key: value for key, value in (spec.args.get("hf_overrides") or {}).items() if key == "num_labels"}
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
