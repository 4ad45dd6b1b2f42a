"""The answer that throughput and parity points give, in words."""

from __future__ import annotations

from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.measured import Throughput
from mteb_vllm.report.words import MOST_NAMES, called, count, named, names, rate, signed, times


def throughput_lines(comparison: Comparison) -> list[str]:
    """The fastest point, those that are as fast, the shortest latency, and what stands in the way of comparing them."""
    rows = [row for row in comparison.rows if row.point.throughput is not None]
    if not rows:
        return []
    lines = []
    fastest = comparison.fastest
    if fastest is None:
        units = {row.point.throughput.unit for row in rows if row.point.throughput}
        lines.append(
            "Some points embed texts and others score pairs: their speeds are not comparable, so that none is the fastest."
            if len(units) > 1
            else "No point came to the run with everything at once, so that none is the fastest."
        )
    else:
        said = fastest.point.throughput
        assert said is not None and said.requests is not None
        lines.append(f"{_fastest(comparison, fastest, said, len(rows))}{_roof(said)}")
        if alike := [row.point.name for row in rows if row is not fastest and _as_fast(row.point.throughput, said)]:
            lines.append(f"Within the spread of the repeats as fast: {names(alike)}.")
    lines += _latency(comparison, rows)
    lengths = dict.fromkeys(row.point.throughput.lengths for row in rows if row.point.throughput)
    if len(lengths) > 1:
        lines.append(
            f"The points read texts of different lengths ({'; '.join(lengths)}): requests/s depend on that too."
        )
    return lines


def parity_lines(comparison: Comparison) -> list[str]:
    """How many points passed, the fastest of them, and what those that did not are off by."""
    found = [(row, row.point.parity) for row in comparison.rows if row.point.parity is not None]
    if not found:
        return []
    failed = [(row, said) for row, said in found if not said.passed]
    references = "; ".join(dict.fromkeys(said.reference for _, said in found))
    of = count(len(found), "point")
    lines = [f"Parity: {len(found) - len(failed):,} of {of} passed. The reference: {references}."]
    if (passed := comparison.passed) is not None and passed.parity_speed is not None and len(found) > 1:
        speed = passed.parity_speed
        where = "" if speed.of == passed.point.name else f", measured in {called(speed.of)}"
        lines.append(f"Fastest that passed: {named(comparison, passed)}, {speed.tokens:,.0f} tokens/s{where}.")
    for row, said in failed[:MOST_NAMES]:
        words = [] if said.difference is None else [f"{signed(said.difference)} in {said.task}"]
        words += [] if said.cosine is None else [f"lowest cosine {said.cosine:.5f}"]
        hint = f" {said.hint[:1].upper()}{said.hint[1:]}." if said.hint else ""
        off = f": at worst {', '.join(words)}" if words else f": {said.reason}" if said.reason else ""
        lines.append(f"Not passed: {named(comparison, row)}{off}.{hint}")
    if len(failed) > MOST_NAMES:
        lines.append(f"{len(failed) - MOST_NAMES:,} others did not pass either.")
    return lines


def _fastest(comparison: Comparison, row: Row, said: Throughput, points: int) -> str:
    speed = f"{rate(said.requests)} requests/s" + ("" if said.tokens is None else f", {said.tokens:,.0f} tokens/s")
    if points == 1:
        return f"Throughput of {called(row.point.name)}: {speed} with everything at once."
    against = ""
    if row.point.name == comparison.baseline:
        against = " It is the baseline."
    elif row.ratio is not None:
        against = f" Against the baseline, {called(comparison.baseline)}: {times(row.ratio)}."
    return f"Fastest: {named(comparison, row)}, {speed} with everything at once.{against}"


def _roof(said: Throughput) -> str:
    if said.share is None or said.roof is None:
        return ""
    return f" That is {said.share:.1%} of the {said.roof:,.0f} tokens/s at the machine's roof."


def _as_fast(said: Throughput | None, fastest: Throughput) -> bool:
    if said is None or said.requests is None or fastest.requests is None:
        return False
    return said.requests >= fastest.requests * (1 - max(said.spread or 0.0, fastest.spread or 0.0))


def _latency(comparison: Comparison, rows: list[Row]) -> list[str]:
    latencies = [
        (p50, row) for row in rows if row.point.throughput and (p50 := row.point.throughput.p50(1)) is not None
    ]
    if not latencies:
        return []
    p50, row = min(latencies, key=lambda one: one[0])
    whose = f": {named(comparison, row)}" if len(latencies) > 1 else ""
    return (
        [f"Shortest latency of one request alone{whose}, median {p50:,.1f} ms."]
        if whose
        else [f"Latency of one request alone: median {p50:,.1f} ms."]
    )
