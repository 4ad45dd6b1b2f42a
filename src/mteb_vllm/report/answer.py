"""The answer that a comparison gives, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mteb_vllm.report.comparison import Comparison, Effect, Row
from mteb_vllm.report.formatting import (
    MOST_NAMES,
    count,
    describe_point,
    join_names,
    number,
    point_name,
    rate,
    signed,
    times,
)
from mteb_vllm.results.measurements import Roofline, ThroughputRecord

# More effects of one setting than this nobody reads.
_MOST_EFFECTS = 12


def answer(comparison: Comparison) -> list[str]:
    """Return the best point, the fastest that is as good, and what each setting changes: a sentence or a few a line."""
    return [*conclusion(comparison), *_effects(comparison)]


def conclusion(comparison: Comparison) -> list[str]:
    """Return the best point, the fastest that is as good, what stands in the way of knowing them, and speed and parity."""
    scores = [*_means(comparison), *_points(comparison)] if comparison.scored else []
    return [*_failed(comparison), *scores, *_throughput(comparison), *_parity(comparison)]


def _failed(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    failed = [row.point.name for row in rows if row.point.failed]
    if not failed:
        return []
    of = "The point" if len(rows) == 1 else f"{len(failed)} of {count(len(rows), 'point')}"
    return [f"{of} failed, in part or as a whole: {join_names(failed)}."]


def _means(comparison: Comparison) -> list[str]:
    """Return what stands in the way of an answer."""
    rows, lines = [row for row in comparison.rows if row.point.for_scores], []
    if partial := [row.point.name for row in rows if "incomplete" in row.point.facts]:
        lines.append(
            f"The results of {join_names(partial)} hold only some of the splits and subsets that count for a task: such a "
            "score is the mean over those that are there."
        )
    without = [row.point.name for row in rows if row.mean is None]
    if not comparison.shared:
        lines.append("There is no task that all points have, so that there are no means and no best point.")
    elif len(without) == len(rows):
        lines.append("No point has all scores, so that there are no means and no best point.")
        nowhere = [name for name in comparison.shared if all(row.scores[name] is None for row in rows)]
        if nowhere:
            lines.append(f"No point has a score for {join_names(nowhere)}.")
    elif without:
        lines.append(f"{count(len(without), 'point')} without all scores cannot be the best: {join_names(without)}.")
    if left_out := len(comparison.tasks) - len(comparison.shared):
        lines.append(f"{count(left_out, 'task')} that not all points have are in no mean.")
    return lines


def _points(comparison: Comparison) -> list[str]:
    best, fast = comparison.best, comparison.answer
    if best is None or best.mean is None:
        return []
    over = f"over {count(len(comparison.shared), 'task')}"
    if len(comparison.rows) == 1:
        return [f"One point: mean {best.mean:.5f} {over}{_at(best)}. There is nothing to compare it with."]
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    against = _against(best, baseline, "baseline")
    lines = [f"Best: {describe_point(comparison, best)}, mean {best.mean:.5f} {over}{_at(best)}.{against}"]
    if fast is None or fast.speed is None or fast.mean is None:
        return [*lines, _why_no_speed(comparison)]
    good = sum(row.good for row in comparison.rows)
    within = f"within {comparison.epsilon:g} of it ({good:,} of {len(comparison.rows):,} are)"
    if fast is best:
        lines.append(f"It is also the fastest {within}.")
    else:
        differences = _against(fast, best, "best") + ("" if best is baseline else _against(fast, baseline, "baseline"))
        lines.append(
            f"Fastest {within}: {describe_point(comparison, fast)}, mean {fast.mean:.5f}{_at(fast)}.{differences}"
        )
    if fast.speed.of != fast.point.name:
        where = f"measured in {point_name(fast.speed.of)}, on the same engine"
        lines.append(f"The speed of {point_name(fast.point.name)} was {where}: it computed too little itself.")
    if silent := sum(row.speed is None for row in comparison.rows if row.good):
        lines.append(f"The speed of {count(silent, 'point')} within {comparison.epsilon:g} of the best is not known.")
    return lines


def _why_no_speed(comparison: Comparison) -> str:
    if comparison.unit is None:
        return "Some points embed texts and others score pairs: their speeds are not comparable, so that none is the fastest."
    unknown = all(row.speed is None for row in comparison.rows)
    known = "No speeds are known" if unknown else "Of the points as good as this, no speeds are known"
    why = "results that were there already, are of others, or are of some of the tasks only, do not tell"
    return f"{known}: {why}."


def _against(row: Row, other: Row, part: str) -> str:
    """Return a sentence on how a point differs from another."""
    if row is other:
        return f" It is the {part}."
    words = [signed(row.mean - other.mean)] if row.mean is not None and other.mean is not None else []
    if row.speed is not None and other.speed is not None and row.speed.unit == other.speed.unit:
        same = row.speed.of == other.speed.of
        words.append(
            "as fast, on the same engine" if same else f"{row.speed.texts / other.speed.texts:.2f} times as fast"
        )
    return f" Against the {part}, {point_name(other.point.name)}: {', '.join(words)}." if words else ""


def _at(row: Row) -> str:
    return f", {row.speed.texts:,.0f} {row.speed.unit}/s" if row.speed is not None else ""


def _throughput(comparison: Comparison) -> list[str]:
    """Return the fastest point, those as fast, the shortest latency, and what stands in the way of comparing them."""
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
        assert said is not None and said.requests_per_second is not None
        lines.append(f"{_fastest_throughput(comparison, fastest, said, len(rows))}{_roofline(said.roofline)}")
        if alike := [row.point.name for row in rows if row is not fastest and _as_fast(row.point.throughput, said)]:
            lines.append(f"Within the spread of the repeats as fast: {join_names(alike)}.")
    lines += _latency(comparison, rows)
    lengths = dict.fromkeys(str(row.point.throughput.lengths) for row in rows if row.point.throughput)
    if len(lengths) > 1:
        lines.append(
            f"The points read texts of different lengths ({'; '.join(lengths)}): requests/s depend on that too."
        )
    return lines


def _parity(comparison: Comparison) -> list[str]:
    """Return how many points passed, the fastest of them, and how far off those are that did not."""
    found = [(row, row.point.parity) for row in comparison.rows if row.point.parity is not None]
    if not found:
        return []
    failed = [(row, said) for row, said in found if not said.passed]
    references = "; ".join(dict.fromkeys(said.reference.says for _, said in found))
    of = count(len(found), "point")
    lines = [f"Parity: {len(found) - len(failed):,} of {of} passed. The reference: {references}."]
    if (passed := comparison.passed) is not None and passed.parity_speed is not None and len(found) > 1:
        speed = passed.parity_speed
        where = "" if speed.of == passed.point.name else f", measured in {point_name(speed.of)}"
        lines.append(f"Fastest that passed: {describe_point(comparison, passed)}, {speed.tokens:,.0f} tokens/s{where}.")
    for row, said in failed[:MOST_NAMES]:
        difference, task = said.worst
        words = [] if difference is None else [f"{signed(difference)} in {task}"]
        words += [] if said.lowest_cosine is None else [f"lowest cosine {said.lowest_cosine:.5f}"]
        hint = "".join(f" {str(hint)[:1].upper()}{str(hint)[1:]}." for hint in said.hints[:1])
        reason = next(said.reasons, "")
        off = f": at worst {', '.join(words)}" if words else f": {reason}" if reason else ""
        lines.append(f"Not passed: {describe_point(comparison, row)}{off}.{hint}")
    if len(failed) > MOST_NAMES:
        lines.append(f"{len(failed) - MOST_NAMES:,} others did not pass either.")
    return lines


def _fastest_throughput(comparison: Comparison, row: Row, said: ThroughputRecord, points: int) -> str:
    speed = f"{rate(said.requests_per_second)} requests/s, {number(said.tokens_per_second)} tokens/s"
    if points == 1:
        return f"Throughput of {point_name(row.point.name)}: {speed} with everything at once."
    against = ""
    if row.point.name == comparison.baseline:
        against = " It is the baseline."
    elif row.ratio is not None:
        against = f" Against the baseline, {point_name(comparison.baseline)}: {times(row.ratio)}."
    return f"Fastest: {describe_point(comparison, row)}, {speed} with everything at once.{against}"


def _roofline(roofline: Roofline | None) -> str:
    if roofline is None or roofline.mfu is None or roofline.tokens_per_second is None:
        return ""
    return f" That is {roofline.mfu:.1%} of the {roofline.tokens_per_second:,.0f} tokens/s at the machine's roofline."


def _as_fast(said: ThroughputRecord | None, fastest: ThroughputRecord) -> bool:
    if said is None or said.requests_per_second is None or fastest.requests_per_second is None:
        return False
    return said.requests_per_second >= fastest.requests_per_second * (
        1 - max(said.spread or 0.0, fastest.spread or 0.0)
    )


def _latency(comparison: Comparison, rows: list[Row]) -> list[str]:
    latencies = [
        (p50, row) for row in rows if row.point.throughput and (p50 := row.point.throughput.p50(1)) is not None
    ]
    if not latencies:
        return []
    p50, row = min(latencies, key=lambda one: one[0])
    whose = f": {describe_point(comparison, row)}" if len(latencies) > 1 else ""
    return (
        [f"Shortest latency of one request alone{whose}, median {p50:,.1f} ms."]
        if whose
        else [f"Latency of one request alone: median {p50:,.1f} ms."]
    )


def _effects(comparison: Comparison) -> list[str]:
    if len(comparison.rows) < 2:
        return []
    if not comparison.columns:
        return ["The points do not differ in any setting."]
    lines = []
    for column in comparison.columns:
        told = [
            effect
            for effect in comparison.effects
            if effect.column == column and (effect.score, effect.speed) != (None, None)
        ]
        if not told:
            what = "scores" if any(row.mean is not None for row in comparison.rows) else "figures"
            lines.append(f"{column}: its effect cannot be told, since no two points with {what} differ in it alone.")
        most = _most_different(told)
        lines += map(_effect, most)
        if left_out := len(told) - len(most):
            lines.append(f"{column}: {count(left_out, 'other value')} changed less.")
    return lines


def _most_different(effects: Sequence[Effect]) -> list[Effect]:
    """Return the effects that change most, score and speed counting alike."""
    scores = [abs(effect.score or 0.0) for effect in effects]
    speeds = [abs(math.log(effect.speed or 1.0)) for effect in effects]
    largest = max(scores, default=0.0) or 1.0, max(speeds, default=0.0) or 1.0
    sizes = [score / largest[0] + speed / largest[1] for score, speed in zip(scores, speeds, strict=True)]
    order = sorted(range(len(effects)), key=lambda at: sizes[at], reverse=True)[:_MOST_EFFECTS]
    return [effects[at] for at in sorted(order)]


def _effect(effect: Effect) -> str:
    figures = []
    if effect.score is not None and effect.score_range is not None:
        low, high = map(signed, effect.score_range)
        figures.append((f"score {signed(effect.score)}", f"{low} to {high}", effect.score_pairs))
    if effect.speed is not None and effect.speed_range is not None:
        low, high = (f"{value:.2f}" for value in effect.speed_range)
        figures.append((f"speed x{effect.speed:.2f}", f"{low} to {high}", effect.speed_pairs))
    counts = {pairs for _, _, pairs in figures}
    words = []
    for at, (figure, spread, pairs) in enumerate(figures):
        # A count that all figures rest on is said once.
        said = f", {count(pairs, 'pair')}" if len(counts) > 1 or at == len(figures) - 1 else ""
        words.append(f"{figure}{f' ({spread})' if pairs > 1 else ''}{said}")
    value, against = (one or "(not set)" for one in (effect.value, effect.against))
    return f"{effect.column}={value} instead of {against}: {('; ' if len(counts) > 1 else ', ').join(words)}."
