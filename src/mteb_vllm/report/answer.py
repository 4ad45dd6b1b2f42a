"""The conclusions of a comparison, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mteb_vllm.report.comparison import Comparison, Effect, Row, same_speed
from mteb_vllm.report.formatting import (
    BUSY_MACHINE,
    MOST_NAMES,
    NO_SPEED_DIFFERENCE,
    count,
    describe_point,
    join_names,
    number,
    point_name,
    rate,
    signed,
    times,
)
from mteb_vllm.report.points import NO_SCORE, NOT_A_NUMBER
from mteb_vllm.results.measurements import Roofline, ThroughputRecord
from mteb_vllm.util.sentences import sentence

# The most effects of one setting that are listed.
_MOST_EFFECTS = 12

_MISSING = {
    NOT_A_NUMBER: "A main score that is not a number (NaN, infinite or null) is no score",
    NO_SCORE: "A result with none of the splits and subsets that count for its task has no score",
}

_MIXED_UNITS = (
    "Some points embed texts and others score pairs: their speeds are not comparable, so none is the fastest."
)


def answer(comparison: Comparison) -> list[str]:
    """Return the conclusion and the effect of each setting: one or a few sentences per line."""
    return [*conclusion(comparison), *_effects(comparison)]


def conclusion(comparison: Comparison) -> list[str]:
    """Return failures, the best point, the fastest that is as good, the results of throughput and parity runs, and notes."""
    scores = [*_means(comparison), *_points(comparison)] if comparison.scored else []
    return [*_failed(comparison), *scores, *_throughput(comparison), *_parity(comparison), *_notes(comparison)]


def _failed(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    failed = [point_name(row.point.name) for row in rows if row.point.failed]
    if not failed:
        return []
    of = "The point" if len(rows) == 1 else f"{len(failed)} of {count(len(rows), 'point')}"
    return [f"{of} failed, entirely or on some tasks: {join_names(failed)}."]


def _notes(comparison: Comparison) -> list[str]:
    """Return which scores are missing although their tasks did not fail, and the warnings about files."""
    lines = []
    for why, meaning in _MISSING.items():
        some = [
            f"{task} of {point_name(row.point.name)}"
            for row in comparison.rows
            for task, reason in row.without.items()
            if reason == why
        ]
        lines += [f"{meaning}, so it counts in no mean and no ranking: {join_names(some)}."] if some else []
    warnings = list(dict.fromkeys(warning for row in comparison.rows for warning in row.point.warnings))
    lines += [f"Warning: {warning}" for warning in warnings[:MOST_NAMES]]
    if (more := len(warnings) - MOST_NAMES) > 0:
        lines.append(f"{count(more, 'more warning')} in report.csv.")
    return lines


def _means(comparison: Comparison) -> list[str]:
    """Return why there are no means, or which points and tasks they leave out."""
    rows, lines = [row for row in comparison.rows if row.point.for_scores], []
    if partial := [point_name(row.point.name) for row in rows if "incomplete" in row.point.facts]:
        lines.append(
            f"The results of {join_names(partial)} lack some splits or subsets of their tasks; the scores are means over "
            "those that are present."
        )
    without = [point_name(row.point.name) for row in rows if row.mean is None]
    if not comparison.tasks:
        lines.append("No point has scores.")
    elif not comparison.shared:
        common = "task evaluated on the same splits and subsets" if comparison.unequal else "task"
        lines.append(f"The points have no {common} in common, so there are no means and no best point.")
    elif len(without) == len(rows):
        lines.append("No point has all scores, so there are no means and no best point.")
        nowhere = [name for name in comparison.shared if all(row.scores[name] is None for row in rows)]
        if nowhere:
            lines.append(f"No point has a score for {join_names(nowhere)}.")
    elif without:
        lines.append(f"{count(len(without), 'point')} with missing scores cannot be the best: {join_names(without)}.")
    if len(without) < len(rows) and (left_out := len(comparison.comparable) - len(comparison.shared)):
        lines.append(f"Means leave out {count(left_out, 'task')} that some points lack.")
    if unequal := comparison.unequal:
        of = "its scores are" if len(unequal) == 1 else "their scores are"
        lines.append(
            f"Not compared: {join_names(unequal)}, since {of} of different splits or subsets in different points."
        )
    if len(without) < len(rows) and point_name(comparison.baseline) in without:
        lines.append(
            f"The baseline ({point_name(comparison.baseline)}) has no mean, so differences from it are unknown."
        )
    return lines


def _points(comparison: Comparison) -> list[str]:
    best, fast = comparison.best, comparison.answer
    if best is None or best.mean is None:
        return []
    over = f"over {count(len(comparison.shared), 'task')}"
    if len(comparison.rows) == 1:
        return [f"One point: mean {best.mean:.5f} {over}{_at(best)}."]
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    against = _against(best, baseline, "baseline")
    lines = [f"Best: {describe_point(comparison, best)}, mean {best.mean:.5f} {over}{_at(best)}.{against}"]
    if fast is None or fast.speed is None or fast.mean is None:
        return [*lines, _why_no_speed(comparison)]
    good = sum(row.good for row in comparison.rows)
    within = f"of the {count(good, 'point')} within {comparison.epsilon:g} of the best mean"
    if good == 1:
        lines.append(f"No other point is within {comparison.epsilon:g} of the best mean.")
    elif fast is best:
        lines.append(f"It is also the fastest {within}.")
    else:
        differences = _against(fast, best, "best") + ("" if best is baseline else _against(fast, baseline, "baseline"))
        lines.append(
            f"Fastest {within}: {describe_point(comparison, fast)}, mean {fast.mean:.5f}{_at(fast)}.{differences}"
        )
    if fast.speed.of != fast.point.name:
        who, where = point_name(fast.point.name), f"measured in {point_name(fast.speed.of)}, on the same engine"
        lines.append(f"The speed of {who} was {where}, since {who} itself computed too few texts.")
    if unknown := sum(row.speed is None for row in comparison.rows if row.good):
        lines.append(f"The speed of {count(unknown, 'point')} within {comparison.epsilon:g} of the best is unknown.")
    return lines


def _why_no_speed(comparison: Comparison) -> str:
    if comparison.unit is None:
        return _MIXED_UNITS
    unknown = all(row.speed is None for row in comparison.rows)
    which = "No speed was measured"
    if not unknown:
        which += f" for the points within {comparison.epsilon:g} of the best"
    return (
        f"{which}: there is none for cached results, results in mteb's layout, and results for only some of the tasks."
    )


def _against(row: Row, other: Row, part: str) -> str:
    """Return a sentence on the differences of a point to another."""
    if row is other:
        return f" It is the {part}."
    words = [f"score {signed(row.mean - other.mean)}"] if row.mean is not None and other.mean is not None else []
    if row.speed is not None and other.speed is not None and row.speed.unit == other.speed.unit:
        same = row.speed.of == other.speed.of
        words.append("same speed (same engine)" if same else f"speed {times(row.speed.texts / other.speed.texts)}")
    return f" Relative to the {part} ({point_name(other.point.name)}): {', '.join(words)}." if words else ""


def _at(row: Row) -> str:
    return f", {row.speed.texts:,.0f} {row.speed.unit}/s" if row.speed is not None else ""


def _throughput(comparison: Comparison) -> list[str]:
    """Return the fastest point, those equally fast, the lowest latency, and which figures are incomparable or invalid."""
    rows = [row for row in comparison.ranked if row.point.throughput is not None]
    if not rows:
        return []
    lines = []
    fastest = comparison.fastest
    if fastest is None:
        units = {row.point.throughput.unit for row in rows if row.point.throughput}
        lines.append(
            _MIXED_UNITS
            if len(units) > 1
            else "No point measured its offline (saturated) throughput, so none is the fastest."
        )
    else:
        record = fastest.point.throughput
        assert record is not None and record.requests_per_second is not None
        lines.append(f"{_fastest_throughput(comparison, fastest, record, len(rows))}{_roofline(record.roofline)}")
        if alike := [point_name(row.point.name) for row in rows if row is not fastest and same_speed(row, fastest)]:
            lines.append(f"Equally fast, within the spread of the repeats: {join_names(alike)}.")
    lines += [*_latency(comparison, rows), *_invalid_mfu(rows)]
    lengths = dict.fromkeys(str(row.point.throughput.lengths) for row in rows if row.point.throughput)
    if len(lengths) > 1:
        lines.append(
            f"The points have texts of different lengths ({'; '.join(lengths)}), which also affects requests/s."
        )
    return lines


def _parity(comparison: Comparison) -> list[str]:
    """Return how many points passed, the fastest of them, and the deviations of those that did not."""
    found = [(row, row.point.parity) for row in comparison.ranked if row.point.parity is not None]
    if not found:
        return []
    failed = [(row, verdict) for row, verdict in found if not verdict.passed]
    references = "; ".join(dict.fromkeys(verdict.reference.says for _, verdict in found))
    of = count(len(found), "point")
    lines = [f"Parity: {len(found) - len(failed):,} of {of} passed. The reference: {references}."]
    if (passed := comparison.passed) is not None and passed.parity_speed is not None and len(found) > 1:
        speed = passed.parity_speed
        where = "" if speed.of == passed.point.name else f", measured in {point_name(speed.of)}"
        lines.append(f"Fastest that passed: {describe_point(comparison, passed)}, {speed.tokens:,.0f} tokens/s{where}.")
    for row, verdict in failed[:MOST_NAMES]:
        difference, task = verdict.worst
        words = [] if difference is None else [f"{signed(difference)} in {task}"]
        words += [] if verdict.lowest_cosine is None else [f"lowest cosine similarity {verdict.lowest_cosine:.5f}"]
        hint = "".join(f" {str(hint)[:1].upper()}{sentence(str(hint)[1:])}" for hint in verdict.hints[:1])
        reason = next(verdict.reasons, "")
        off = f": at worst {', '.join(words)}" if words else f": {reason}" if reason else ""
        lines.append(f"{sentence(f'Not passed: {describe_point(comparison, row)}{off}')}{hint}")
    if len(failed) > MOST_NAMES:
        lines.append(f"{len(failed) - MOST_NAMES:,} other points did not pass.")
    return lines


def _fastest_throughput(comparison: Comparison, row: Row, record: ThroughputRecord, points: int) -> str:
    speed = f"{rate(record.requests_per_second)} requests/s, {number(record.tokens_per_second)} tokens/s"
    if points == 1:
        return f"Offline throughput of {point_name(row.point.name)}: {speed}."
    against = ""
    if row.point.name == comparison.baseline:
        against = " It is the baseline."
    elif row.ratio is not None:
        baseline = next(one for one in comparison.rows if one.point.name == comparison.baseline)
        ratio = NO_SPEED_DIFFERENCE if same_speed(row, baseline) else f"speed {times(row.ratio)}"
        against = f" Relative to the baseline ({point_name(comparison.baseline)}): {ratio}."
    return f"Highest offline throughput: {describe_point(comparison, row)}, {speed}.{against}"


def _roofline(roofline: Roofline | None) -> str:
    if roofline is None or roofline.mfu is None or roofline.tokens_per_second is None:
        return ""
    if roofline.mfu > 1:
        return ""  # `_invalid_mfu` says so
    return f" That is {roofline.mfu:.1%} of the {roofline.tokens_per_second:,.0f} tokens/s at the machine's roofline."


def _invalid_mfu(rows: list[Row]) -> list[str]:
    """Return which points measured an MFU above 100 %, and why that cannot be right."""
    found = {
        row.point.name: roofline.mfu
        for row in rows
        if row.point.throughput and (roofline := row.point.throughput.roofline) and (roofline.mfu or 0.0) > 1
    }
    if not found:
        return []
    highest = max(value for value in found.values() if value is not None)
    which = join_names([point_name(name) for name in found])
    return [f"Invalid: an MFU of {highest:.1%} ({which}) is {BUSY_MACHINE}."]


def _latency(comparison: Comparison, rows: list[Row]) -> list[str]:
    latencies = [
        (p50, row) for row in rows if row.point.throughput and (p50 := row.point.throughput.p50(1)) is not None
    ]
    if not latencies:
        return []
    p50, row = min(latencies, key=lambda one: one[0])
    whose = f": {describe_point(comparison, row)}" if len(latencies) > 1 else ""
    return (
        [f"Lowest latency of a single request{whose}, median {p50:,.1f} ms."]
        if whose
        else [f"Latency of a single request: median {p50:,.1f} ms."]
    )


def _effects(comparison: Comparison) -> list[str]:
    if len(comparison.rows) < 2:
        return []
    if not comparison.columns:
        return ["The points do not differ in any setting."]
    lines = []
    for column in comparison.columns:
        measured = [effect for effect in comparison.known_effects if effect.column == column]
        if not measured:
            what = "scores" if any(row.mean is not None for row in comparison.rows) else "measurements"
            why = f"no two points with {what} differ only in this setting"
            lines.append(f"{column}: no effect can be determined, since {why}.")
        most = _most_different(measured)
        lines += map(_effect, most)
        if left_out := len(measured) - len(most):
            lines.append(f"{column}: {count(left_out, 'other value')} had smaller effects.")
    return lines


def _most_different(effects: Sequence[Effect]) -> list[Effect]:
    """Return the largest effects, score and speed counting alike."""
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
        speed = f"speed x{effect.speed:.2f}" if effect.speed_differs else f"{NO_SPEED_DIFFERENCE} in speed"
        figures.append((speed, f"{low} to {high}", effect.speed_pairs))
    counts = {pairs for _, _, pairs in figures}
    words = []
    for at, (figure, spread, pairs) in enumerate(figures):
        # A count that holds for all figures is given once.
        rests_on = f", {count(pairs, 'pair')}" if len(counts) > 1 or at == len(figures) - 1 else ""
        words.append(f"{figure}{f' ({spread})' if pairs > 1 else ''}{rests_on}")
    value, against = (one or "(not set)" for one in (effect.value, effect.against))
    return f"{effect.column}={value} instead of {against}: {('; ' if len(counts) > 1 else ', ').join(words)}."
