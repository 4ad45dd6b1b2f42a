"""The parts of report.md below its table and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.failed import failed_points
from mteb_vllm.report.one_run import failure_lines
from mteb_vllm.report.words import markdown, number, settings_text, signed, times
from mteb_vllm.util.escape import inline

# More tasks and points than these nobody reads in Markdown.
_MOST_DIFFERENCES = (60, 12)
_EFFECTS = ("setting", "value", "instead of", "pairs", "score", "from", "to", "speed", "from", "to")


def effects_section(comparison: Comparison) -> list[str]:
    """What each setting changes."""
    rows = []
    for effect in comparison.effects:
        scores = (effect.score, *(effect.score_range or (None, None)))
        speeds = (effect.speed, *(effect.speed_range or (None, None)))
        numbers = [*map(signed, scores), *map(times, speeds)]
        rows.append([effect.column, effect.value, effect.against, str(effect.pairs), *numbers])
    return ["", "## Effects", "", *markdown(_EFFECTS, rows)] if rows else []


def differences_section(comparison: Comparison, ranked: Sequence[Row]) -> list[str]:
    """Task by task against the baseline: the tasks as rows, the best points as columns."""
    most_tasks, most_points = _MOST_DIFFERENCES
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    others = [row for row in ranked if row is not baseline and row.point.tasks]
    if not others or len(comparison.tasks) > most_tasks:
        return []
    shown = sorted(others, key=lambda row: row.point.failed)[:most_points]
    header = ["task", f"{comparison.baseline} (the baseline)", *(row.point.name for row in shown)]
    lines = []
    for name in comparison.tasks:
        against = baseline.scores[name]
        own = [row.scores[name] for row in shown]
        differences = [one - against if one is not None and against is not None else None for one in own]
        lines.append([name, number(against, 5), *map(signed, differences)])
    legend = [f"- {inline(f'{row.point.name}: {settings_text(comparison.columns, row.settings)}')}" for row in shown]
    left_out = [f"Of {len(others):,} points the best {most_points}; all scores are in report.csv.", ""]
    return ["", "## Differences to the baseline, by task", "", *(left_out if len(shown) < len(others) else []),
            *(legend if comparison.columns else []), "", *markdown(header, lines)]  # fmt: skip


def failures_section(comparison: Comparison) -> list[str]:
    """What went wrong, with logs."""
    lines: list[str] = []
    for one in failed_points(comparison):
        tasks = f" ({', '.join(one.tasks)})" if one.tasks else ""
        title = inline(f"{', '.join(one.points)}{tasks}")
        lines += [
            "",
            *([] if lines else ["## Failures", ""]),
            f"### {title}",
            "",
            *failure_lines(replace(one.failure, task=None)),
        ]
    return lines
