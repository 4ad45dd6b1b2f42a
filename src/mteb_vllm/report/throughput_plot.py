"""Latency against throughput, and tokens/s against the roofline, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.report.comparison import Comparison
from mteb_vllm.report.formatting import distinct_names
from mteb_vllm.report.plotting import DPI, INK, LINE, QUIET, STYLES, canvas, plain, write
from mteb_vllm.results.measurements import Roofline, ThroughputRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "throughput.png"
# As many as there are colours.
MOST_CURVES = 7
# So much of a curve's name fits over its bar; the legend has more.
_LONGEST_NAME = 36


@dataclass(frozen=True)
class Curve:
    """One point's throughput, drawn.

    Attributes:
        name: What tells it from the others; "" where it is alone.
        row: Where the point stands in the comparison.
        throughput: What it measured.
    """

    name: str
    row: int
    throughput: ThroughputRecord


def throughput_curves(comparison: Comparison) -> tuple[list[Curve], int]:
    """Return the curves to draw, those of the fastest points and the baseline in the points' order, and how many are left."""
    found = [(at, row, said) for at, row in enumerate(comparison.rows) if (said := row.point.throughput) and said.steps]
    order = sorted(
        found, key=lambda one: (one[1].point.name != comparison.baseline, -(one[2].requests_per_second or 0.0))
    )
    kept = sorted(order[:MOST_CURVES], key=lambda one: one[0])
    names = distinct_names(comparison, [row for _, row, _ in kept])
    curves = [Curve(name, at, said) for (at, _, said), name in zip(kept, names, strict=True)]
    return curves, len(found) - len(curves)


def write_throughput(throughput: ThroughputRecord, folder: Path) -> None:
    """Draw one run's throughput into `throughput.png`.

    Args:
        throughput: What the run measured.
        folder: Where the picture goes.

    Raises:
        OSError: if the folder cannot be written to.
    """
    if throughput.steps:
        write(folder / NAME, throughput_figure([Curve("", 0, throughput)]))


def throughput_figure(curves: Sequence[Curve], left_out: int = 0) -> Figure:
    """Draw latency of a step against throughput, a curve for each; beside it their tokens/s and rooflines.

    Args:
        curves: One or more, as many as there are colours.
        left_out: How many others there are.
    """
    from matplotlib.lines import Line2D

    figure, (latency, rooflines) = canvas(11, 5 + 0.2 * (len(curves) // 2), 1.8, 1)
    _draw_latency(latency, curves)
    _draw_rooflines(rooflines, curves)
    handles = [Line2D([], [], color=STYLES[at][0], marker=STYLES[at][1], markersize=5) for at in range(len(curves))]
    legend = [(handle, plain(curve.name)) for handle, curve in zip(handles, curves, strict=True) if curve.name]
    if any(curve.throughput.requests_per_second for curve in curves):
        mark = Line2D([], [], linestyle="", marker="|", color=QUIET, markersize=11, markeredgewidth=2.5)
        legend.append((mark, "at the bottom: everything at once (saturated)"))
    legend.append((Line2D([], [], linestyle="", marker="$1$", color=QUIET), "number at a point: its batch size"))
    whisker = Line2D([], [], linestyle="", marker="|", color=QUIET, markersize=11, markeredgewidth=1)
    legend.append((whisker, "upwards from a point: to p90"))
    figure.legend(
        [handle for handle, _ in legend], [name for _, name in legend], loc="outside lower left", ncols=2, frameon=False,
        fontsize=9, title=f"not in the plot: {left_out:,} slower points" if left_out else None, title_fontsize=9,
        alignment="left",
    )  # fmt: skip
    figure.draw_without_rendering()  # where things are is known only now
    _label_sizes(latency, curves)
    return figure


def _draw_latency(axes: Axes, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.grid(axis="y", color=LINE)
    axes.set_yscale("log")
    rates, latencies = [], []
    for curve, (colour, marker) in zip(curves, STYLES, strict=False):
        said = curve.throughput
        x, p50 = [step.requests_per_second for step in said.steps], [step.latency_ms.p50 for step in said.steps]
        p90 = [step.latency_ms.p90 for step in said.steps]
        axes.vlines(x, p50, p90, color=colour, linewidth=1, alpha=0.7, zorder=2)
        axes.plot(x, p50, color=colour, marker=marker, markersize=5, linewidth=1.4, zorder=3)
        if said.requests_per_second:
            places = axes.get_xaxis_transform()
            axes.plot(
                [said.requests_per_second] * 2, [0, 0.05], color=colour, linewidth=2.5, transform=places, zorder=3
            )
        rates += [*x, *([said.requests_per_second] if said.requests_per_second else [])]
        latencies += [*p50, *p90]
    _scale(axes, rates)
    # The lowest part is for the marks of what came at once.
    span = max(latencies) / min(latencies)
    axes.set_ylim(min(latencies) / max(span**0.14, 1.3), max(latencies) * max(span**0.08, 1.2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("median latency of a step, ms", loc="left", color=QUIET, size=10)
    axes.text(1, 0.075, "lower right is better ↘", transform=axes.transAxes, ha="right", color=QUIET, size=9)
    unit = "pairs" if all(curve.throughput.unit == "pairs" for curve in curves) else "texts"
    mixed = len({curve.throughput.unit for curve in curves}) > 1
    axes.set_xlabel(f"requests/s ({'texts or pairs' if mixed else unit})", color=QUIET)


def _scale(axes: Axes, rates: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    slow, fast = min(rates), max(rates)
    if fast > 10 * slow:
        axes.set_xscale("log")
        axes.set_xlim(slow / 1.2, fast * 1.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, fast * 1.06)
    axes.xaxis.set_major_formatter("{x:,.0f}" if fast >= 10 else "{x:,.3g}")


def _label_sizes(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write batch sizes beside points, where no other label is; the ends of curves first."""
    from matplotlib.patheffects import withStroke

    steps = [step for curve in curves for step in curve.throughput.steps]
    places = axes.transData.transform([(step.requests_per_second, step.latency_ms.p50) for step in steps]) * 72 / DPI
    taken = [(float(x), float(y), 5) for x, y in places]
    points = [
        (0 < at < len(curve.throughput.steps) - 1, colour, step)
        for curve, (colour, _) in zip(curves, STYLES, strict=False)
        for at, step in enumerate(curve.throughput.steps)
    ]
    for _, colour, step in sorted(points, key=lambda one: one[0]):
        x, y = axes.transData.transform((step.requests_per_second, step.latency_ms.p50)) * 72 / DPI
        text = str(step.batch_size)
        width, aside = 4 + 5 * len(text), 5 + 3 * len(text)
        free = (
            (dx, dy)
            for dx, dy in ((aside, -7), (-aside, 7), (0, -11), (0, 12))
            if all(abs(x + dx - left) > (width + other) / 2 or abs(y + dy - low) > 9 for left, low, other in taken)
        )
        if (spot := next(free, None)) is None:
            continue
        taken.append((x + spot[0], y + spot[1], width))
        axes.annotate(
            text, (step.requests_per_second, step.latency_ms.p50), spot, textcoords="offset points", ha="center", va="center",
            color=colour, size=8, zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _draw_rooflines(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw a bar of tokens/s for each, in the outline of its roofline."""
    axes.set_title("tokens/s, everything at once, and the roofline", loc="left", color=QUIET, size=10)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color=LINE)
    axes.locator_params(axis="x", nbins=4)
    for at, (curve, (colour, _)) in enumerate(zip(curves, STYLES, strict=False)):
        said, height = curve.throughput, len(curves) - at
        tokens = said.tokens_per_second or 0.0
        axes.barh(height, tokens, 0.34, color=colour, zorder=2)
        roofline = said.roofline or Roofline()
        if roofline.tokens_per_second is not None:
            axes.barh(height, roofline.tokens_per_second, 0.34, fill=False, edgecolor=INK, linewidth=1.2, zorder=3)
        share = "the roofline is not known" if roofline.mfu is None else f"{roofline.mfu:.1%} MFU"
        name = _short(curve.name)
        words = f"{plain(name)}\n" if name else ""
        axes.text(0, height + 0.2, f"{words}{tokens:,.0f}, {share}", color=INK, size=9, va="bottom")
    axes.set_ylim(min(0.5, len(curves) - 2.5), len(curves) + 0.8)
    axes.set_xlim(0)


def _short(name: str) -> str:
    """Return a point's name that fits above a bar: of a long one only the values, whose keys the legend has."""
    if len(name) > _LONGEST_NAME:
        name = ", ".join(part.partition("=")[2] or part for part in name.split(", "))
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
