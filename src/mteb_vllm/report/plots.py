"""A comparison as pictures, with the same marks as on the page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.plotting import BAND, DPI, INK, LINE, QUIET, STYLES, canvas, plain, write
from mteb_vllm.report.reference_plot import reference_speed
from mteb_vllm.report.throughput_plot import throughput_curves, throughput_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points, from which on marks are small.
MANY = 200


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw all pictures for which a comparison has figures.

    Args:
        comparison: What to draw.
        folder: Where the files go.

    Returns:
        The files: `quality_speed.png` where a point has a mean and a speed and all count the same, texts or pairs;
        `task_differences.png` where the baseline and another point have scores in a task; `throughput.png` where a point
        measured throughput; `reference_speed.png` where a parity point has a speed. A file of a report before that is not
        drawn now is removed.

    Raises:
        OSError: if the folder cannot be written to.
    """
    curves, left_out = throughput_curves(comparison)
    drawn = {
        "quality_speed.png": quality_speed(comparison),
        "task_differences.png": task_differences(comparison),
        "throughput.png": throughput_figure(curves, left_out) if curves else None,
        "reference_speed.png": reference_speed(comparison),
    }
    for name, figure in drawn.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
    return [write(folder / name, figure) for name, figure in drawn.items() if figure is not None]


def quality_speed(comparison: Comparison) -> Figure | None:
    """Draw mean scores against speeds; None if no point has both, or some count texts and others pairs.

    Points that were not run for their scores are not in it.
    """
    rows = [row for row in comparison.rows if row.point.for_scores]
    places = [(row, row.speed.texts, row.mean) for row in rows if row.speed and row.mean is not None]
    if not places or comparison.unit is None:
        return None
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, (axes,) = canvas(8.5, 5.5)
    axes.grid(axis="y", color=LINE)
    _scale(axes, comparison, [speed for _, speed, _ in places], [mean for _, _, mean in places])
    best = max(mean for _, _, mean in places)
    if len(comparison.rows) > 1:
        axes.axhspan(best - comparison.epsilon, best, color=BAND, zorder=0)
    front = sorted(((speed, mean) for row, speed, mean in places if row.on_front), key=lambda one: (one[0], -one[1]))
    if len(front) > 1:
        # Up to a point's speed its score can be had: the step goes down behind it, not before.
        axes.step(
            [speed for speed, _ in front], [mean for _, mean in front], "-", where="pre", color=INK, lw=1, zorder=1
        )
    kinds, names = _kinds(comparison, [row for row, _, _ in places])
    small = len(places) > MANY
    drawn: dict[tuple[int, bool], list[tuple[float, float]]] = {}
    for (row, speed, mean), kind in zip(places, kinds, strict=True):
        drawn.setdefault((kind, row.speed is not None and row.speed.of == row.point.name), []).append((speed, mean))
    for (kind, own), some in sorted(drawn.items()):
        colour, marker = STYLES[kind]
        axes.scatter(
            [speed for speed, _ in some], [mean for _, mean in some], s=12 if small else 34, marker=marker,
            edgecolors=colour, facecolors=colour if own else "white", linewidths=1.1, alpha=0.75 if small else 1, zorder=2,
        )  # fmt: skip
    legend: list[tuple[Line2D | Patch, str]] = [
        (Line2D([], [], linestyle="", color=STYLES[kind][0], marker=STYLES[kind][1]), name)
        for kind, name in names.items()
    ]
    if any(not own for _, own in drawn):
        hollow = Line2D([], [], linestyle="", color=STYLES[-1][0], marker="o", markerfacecolor="white")
        legend.append((hollow, "hollow: speed measured in another point"))
    if len(front) > 1:
        legend.append((Line2D([], [], color=INK, linewidth=1), "Pareto front"))
    if len(comparison.rows) > 1:
        legend.append((Patch(color=BAND), f"within {comparison.epsilon:.5f} of the best"))
    _name_points(axes, comparison)
    left_out = len(rows) - len(places)
    figure.legend(
        [handle for handle, _ in legend], [name for _, name in legend], loc="outside lower left", ncols=2, frameon=False,
        fontsize=9, title=f"not in the plot: {left_out:,} without a mean or a speed" if left_out else None, title_fontsize=9,
        alignment="left",
    )  # fmt: skip
    return figure


def task_differences(comparison: Comparison) -> Figure | None:
    """Draw how far all points and the answer are from the baseline in each task; None if there is nothing to compare."""
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    spreads = []
    for task in comparison.tasks:
        base = baseline.scores.get(task)
        scores = [score for row in comparison.rows if (score := row.scores.get(task)) is not None]
        if base is not None and len(scores) > 1:
            spreads.append((task, base, [score - base for score in scores]))
    if not spreads:
        return None
    # Where points differ most stands first; the axis counts from below.
    spreads.sort(key=lambda one: max(one[2]) - min(one[2]))
    figure, (axes,) = canvas(8.5, 1.3 + 0.24 * len(spreads))
    axes.grid(axis="x", color=LINE)
    axes.axvline(0, color=QUIET, linewidth=1, zorder=1)
    heights = range(len(spreads))
    low, high = ([edge(values) for _, _, values in spreads] for edge in (min, max))
    axes.hlines(heights, low, high, color="#b4b8bd", linewidth=3.5, zorder=2, label="lowest to highest of all points")
    medians = [median(values) for _, _, values in spreads]
    axes.scatter(medians, heights, marker="|", s=70, color=INK, linewidths=1.4, zorder=3, label="their median")
    if (shown := comparison.answer or comparison.best) is not None:
        own = {at: shown.scores.get(task) for at, (task, _, _) in enumerate(spreads)}
        places = [(score - spreads[at][1], at) for at, score in own.items() if score is not None]
        axes.scatter(
            [x for x, _ in places], [y for _, y in places], s=34, color=STYLES[0][0], zorder=4,
            label=plain(f"point {shown.point.name}"),
        )  # fmt: skip
    axes.set_yticks(heights, [plain(task) for task, _, _ in spreads], color=INK, size=9)
    axes.set_ylim(-0.7, len(spreads) - 0.3)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+.4g}" if abs(x) > 1e-12 else "0")
    title = plain(f"score difference against point {baseline.point.name}")
    axes.set_title(title, loc="left", color=QUIET, size=10)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def _scale(axes: Axes, comparison: Comparison, speeds: list[float], means: list[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    # At least so much is in the plot that what is only noise looks small.
    alone = len(means) == 1
    slow, fast = min(*speeds, 0.7 * max(speeds)), max(speeds) * (1.3 if alone else 1)
    least = max(3 * comparison.epsilon, 0.0001)
    low, high = min(*means, max(means) - least), max(means) + (least if alone else 0)
    room = 0.05 * (fast - slow)
    axes.set_xlim(slow - room, fast + room)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.12 * (high - low))
    if fast > 10 * slow:
        axes.set_xscale("log")
        axes.set_xlim(slow / 1.15, fast * 1.15)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"{comparison.unit}/s", color=QUIET)
    over = len(comparison.shared)
    axes.set_title(f"mean score over {over} tasks" if over > 1 else "score", loc="left", color=QUIET, size=10)


def _kinds(comparison: Comparison, rows: list[Row]) -> tuple[list[int], dict[int, str]]:
    """Return the style of each row, by the setting with the fewest values, and what the styles stand for."""
    columns = range(len(comparison.columns))
    values_of = {at: dict.fromkeys(row.settings[at] for row in comparison.rows) for at in columns}
    at = min(columns, key=lambda at: len(values_of[at]), default=None)
    if at is None:
        return [0] * len(rows), {}
    counts = Counter(row.settings[at] for row in rows)
    own = [value for value, _ in counts.most_common(len(STYLES) - (len(counts) > len(STYLES)))]
    order = {value: kind for kind, value in enumerate(value for value in values_of[at] if value in own)}
    names = {kind: plain(f"{comparison.columns[at]}={value}") for value, kind in order.items()}
    if len(counts) > len(own):
        names[len(STYLES) - 1] = f"{len(counts) - len(own)} other values"
    return [order.get(row.settings[at], len(STYLES) - 1) for row in rows], names


def _name_points(axes: Axes, comparison: Comparison) -> None:
    from matplotlib.patheffects import withStroke

    named: dict[str, tuple[Row, list[str]]] = {}
    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    for role, row in (("answer", comparison.answer), ("best", comparison.best), ("baseline", baseline)):
        if row is not None and row.speed and row.mean is not None and row.point.for_scores and len(comparison.rows) > 1:
            named.setdefault(row.point.name, (row, []))[1].append(role)
    taken: list[tuple[float, float]] = []
    for row, roles in named.values():
        place = (row.speed.texts if row.speed else 0, row.mean or 0)
        x, y = axes.transData.transform(place) * 72 / DPI
        right = axes.transAxes.inverted().transform(axes.transData.transform(place))[0] > 0.6
        # The first height at which no other name is near.
        free = (
            up for up in (9, -9, -22, 22) if all(abs(y + up - other) > 11 or abs(x - at) > 110 for at, other in taken)
        )
        up = next(free, 9)
        taken.append((x, y + up))
        axes.scatter(*place, s=95, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)
        axes.annotate(
            ", ".join(roles), place, (-8 if right else 8, up), textcoords="offset points", color=INK, zorder=5,
            ha="right" if right else "left", va="center", size=10, weight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
