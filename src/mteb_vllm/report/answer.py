"""The answer that a comparison gives, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mteb_vllm.report.answer_measured import parity_lines, throughput_lines
from mteb_vllm.report.comparison import Comparison, Effect, Row
from mteb_vllm.report.words import called, count, named, names, signed

# More effects of one setting than this nobody reads.
_MOST_EFFECTS = 12


def answer(comparison: Comparison) -> list[str]:
    """The best point, the fastest that is as good, and what each setting changes: one sentence or a few a line."""
    return [*conclusion(comparison), *_effects(comparison)]


def conclusion(comparison: Comparison) -> list[str]:
    """The best point and the fastest that is as good, and what stands in the way of knowing them; then speed and parity."""
    scores = [*_means(comparison), *_points(comparison)] if comparison.scored else []
    return [*_failed(comparison), *scores, *throughput_lines(comparison), *parity_lines(comparison)]


def _failed(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    failed = [row.point.name for row in rows if row.point.failed]
    if not failed:
        return []
    of = "The point" if len(rows) == 1 else f"{len(failed)} of {count(len(rows), 'point')}"
    return [f"{of} failed, in part or as a whole: {names(failed)}."]


def _means(comparison: Comparison) -> list[str]:
    """What stands in the way of an answer."""
    rows, lines = [row for row in comparison.rows if row.point.for_scores], []
    if partial := [row.point.name for row in rows if "incomplete" in row.point.facts]:
        lines.append(
            f"The results of {names(partial)} hold only some of the splits and subsets that count for a task: such a score "
            "is the mean over those that are there."
        )
    without = [row.point.name for row in rows if row.mean is None]
    if not comparison.shared:
        lines.append("There is no task that all points have, so that there are no means and no best point.")
    elif len(without) == len(rows):
        lines.append("No point has all scores, so that there are no means and no best point.")
        nowhere = [name for name in comparison.shared if all(row.scores[name] is None for row in rows)]
        if nowhere:
            lines.append(f"No point has a score for {names(nowhere)}.")
    elif without:
        lines.append(f"{count(len(without), 'point')} without all scores cannot be the best: {names(without)}.")
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
    lines = [
        f"Best: {named(comparison, best)}, mean {best.mean:.5f} {over}{_at(best)}.{_against(best, baseline, 'baseline')}"
    ]
    if fast is None or fast.speed is None or fast.mean is None:
        return [*lines, _why_no_speed(comparison)]
    good = sum(row.good for row in comparison.rows)
    within = f"within {comparison.epsilon:g} of it ({good:,} of {len(comparison.rows):,} are)"
    if fast is best:
        lines.append(f"It is also the fastest {within}.")
    else:
        differences = _against(fast, best, "best") + ("" if best is baseline else _against(fast, baseline, "baseline"))
        lines.append(f"Fastest {within}: {named(comparison, fast)}, mean {fast.mean:.5f}{_at(fast)}.{differences}")
    if fast.speed.of != fast.point.name:
        where = f"measured in {called(fast.speed.of)}, on the same engine"
        lines.append(f"The speed of {called(fast.point.name)} was {where}: it computed too little itself.")
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
    """A sentence on how a point differs from another."""
    if row is other:
        return f" It is the {part}."
    words = [signed(row.mean - other.mean)] if row.mean is not None and other.mean is not None else []
    if row.speed is not None and other.speed is not None and row.speed.unit == other.speed.unit:
        same = row.speed.of == other.speed.of
        words.append(
            "as fast, on the same engine" if same else f"{row.speed.texts / other.speed.texts:.2f} times as fast"
        )
    return f" Against the {part}, {called(other.point.name)}: {', '.join(words)}." if words else ""


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
    """Those that change most, score and speed counting alike."""
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


def _at(row: Row) -> str:
    return f", {row.speed.texts:,.0f} {row.speed.unit}/s" if row.speed is not None else ""
