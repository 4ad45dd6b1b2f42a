"""The measurements of one throughput run, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from mteb_vllm.report.formatting import BUSY_MACHINE, count, markdown, number
from mteb_vllm.results.measurements import Memory, Roofline, ThroughputRecord
from mteb_vllm.results.record import RunRecord
from mteb_vllm.util.console import Console
from mteb_vllm.util.escape import inline

STEP_COLUMNS = (
    "batch size", "requests/s", "tokens/s", "p50 ms", "p90 ms", "p99 ms", "tokenise ms", "engine ms", "collect ms", "spread"
)  # fmt: skip
_PHASES = ("tokenise", "engine", "collect")


def print_throughput(console: Console, record: RunRecord) -> None:
    """Show the measurements of a throughput run."""
    assert record.throughput is not None
    table = Table(title=_title(record.throughput), title_justify="left", box=None, pad_edge=False)
    for column in STEP_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in step_rows(record.throughput):
        table.add_row(*row)
    console.print_table(table, optional=("spread", "collect ms", "tokenise ms", "engine ms", "p90 ms"))
    for line in throughput_lines(record):
        console.print_line(line)


def throughput_markdown(record: RunRecord) -> list[str]:
    """Return the measurements of a throughput run for `report.md`, with a link to the chart in the same folder."""
    assert record.throughput is not None
    return [
        f"## {inline(_title(record.throughput))}",
        "",
        *markdown(STEP_COLUMNS, step_rows(record.throughput)),
        "",
        *(f"- {inline(line)}" for line in throughput_lines(record)),
        "",
        "![Latency against throughput](throughput.png) ![Tokens/s against the roofline](roofline.png)",
    ]


def step_rows(throughput: ThroughputRecord) -> list[tuple[str, ...]]:
    """Return one row per batch size: rates, latencies of a call, and the mean times of its phases."""
    return [
        (
            str(step.batch_size),
            number(step.requests_per_second, 1),
            number(step.tokens_per_second),
            *(_ms(getattr(step.latency_ms, name)) for name in ("p50", "p90", "p99")),
            *(_ms(getattr(step.phases_ms, name)) for name in _PHASES),
            f"{step.spread:.1%}",
        )
        for step in throughput.steps
    ]


def throughput_lines(record: RunRecord) -> list[str]:
    """Return offline throughput, roofline, memory and engine start, one line each."""
    throughput = record.throughput
    assert throughput is not None
    return [
        *_saturated(throughput), *_roofline(throughput.roofline), *_memory(throughput.memory_mb), *_start(record, throughput)
    ]  # fmt: skip


def _title(throughput: ThroughputRecord) -> str:
    return f"Speed by batch size ({throughput.unit}: {throughput.lengths})"


def _saturated(throughput: ThroughputRecord) -> Iterable[str]:
    if (saturated := throughput.saturated) is None:
        return
    parts = ", ".join(f"{name} {getattr(saturated.phases_s, name):.2f} s" for name in _PHASES)
    seconds = ", ".join(f"{one:.2f}" for one in saturated.seconds)
    yield (
        f"Offline (saturated), {count(throughput.requests, 'request')} in one call: "
        f"{number(saturated.requests_per_second, 1)} requests/s, "
        f"{number(saturated.tokens_per_second)} tokens/s, the median of {count(saturated.repeats, 'repeat')} "
        f"({seconds} s; spread {saturated.spread:.1%}; {parts})."
    )
    if saturated.by_replica:
        yield f"Offline, by replica: {', '.join(number(rate, 1) for rate in saturated.by_replica)} requests/s."
    if saturated.cached_share:
        yield f"Offline, {saturated.cached_share:.1%} of the tokens came from the prefix cache."


def _roofline(roofline: Roofline | None) -> Iterable[str]:
    if roofline is None:
        return
    if roofline.flops_per_second is None or roofline.flops_per_token is None:
        yield f"Roofline: unknown ({roofline.unknown})."
        return
    yield (
        f"Roofline: {_scaled(roofline.flops_per_second)}FLOP/s in {roofline.dtype} on {roofline.device}, measured on a large "
        f"matrix multiplication; {_scaled(roofline.flops_per_token)}FLOP per token: {number(roofline.tokens_per_second)} "
        f"tokens/s, of which the engine reaches {roofline.mfu:.1%} (MFU)."
    )
    if roofline.mfu is not None and roofline.mfu > 1:
        yield f"Invalid: an MFU of {roofline.mfu:.1%} is {BUSY_MACHINE}."


def _memory(memory: Memory | None) -> Iterable[str]:
    if memory is None:
        return
    held = {
        "the process": memory.process, "its engine's processes": memory.engine_processes, "the device": memory.device
    }  # fmt: skip
    if parts := [f"{name} {number(value)} MiB" for name, value in held.items() if value]:
        yield f"Peak memory: {', '.join(parts)}."


def _start(record: RunRecord, throughput: ThroughputRecord) -> Iterable[str]:
    if (engine := record.engine) is not None:
        reused = "" if engine.opened else " (in an earlier run, which left it open)"
        yield f"Engine start: {engine.seconds:.1f} s{reused}; warm-up: {throughput.warm_up_seconds:.1f} s."


def _scaled(value: float) -> str:
    """Return a number with three digits and an SI prefix: 1.07e6 is "1.07 M"."""
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {prefix}"
    return f"{value:.3g} "


def _ms(value: float | None) -> str:
    # Tokenising one text takes 0.1 ms.
    return "" if value is None else number(value, 2 if value < 10 else 1)
