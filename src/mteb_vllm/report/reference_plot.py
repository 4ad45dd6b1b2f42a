"""How far parity points are from their reference, against speed, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mteb_vllm.report.comparison import Comparison
from mteb_vllm.report.formatting import distinct_names
from mteb_vllm.report.plotting import BAND, INK, LINE, QUIET, STYLES, canvas, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Less than this is drawn as this: there is no zero on a logarithmic axis, and main scores are published with five digits.
LEAST_DIFFERENCE = 1e-6
_MOST_NAMES = 12


def places(comparison: Comparison) -> list[tuple[int, float, float]]:
    """Return of each parity point that has both: row, tokens/s, and the worst absolute difference to the reference."""
    return [
        (at, row.parity_speed.tokens, abs(difference))
        for at, row in enumerate(comparison.rows)
        if row.point.parity is not None
        and (difference := row.point.parity.worst.difference) is not None
        and row.parity_speed is not None
    ]


def tolerance(comparison: Comparison) -> float | None:
    """Return the tolerance of main scores, where all parity points have the same."""
    found = {row.point.parity.tolerances.score for row in comparison.rows if row.point.parity is not None}
    return found.pop() if len(found) == 1 else None


def reference_speed(comparison: Comparison) -> Figure | None:
    """Draw the worst difference to the reference against tokens/s; None if no point has both."""
    drawn = places(comparison)
    if not drawn:
        return None
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, (axes,) = canvas(8.5, 5.5)
    axes.grid(axis="y", color=LINE)
    axes.set_yscale("log")
    differences = [max(off, LEAST_DIFFERENCE) for _, _, off in drawn]
    speeds = [tokens for _, tokens, _ in drawn]
    limit = tolerance(comparison)
    high = max([*differences, *([limit] if limit else [])])
    axes.set_ylim(LEAST_DIFFERENCE / 6, high * 4)
    axes.set_xlim(0, max(speeds) * 1.12)
    legend: list[tuple[Line2D | Patch, str]] = []
    if limit:
        axes.axhspan(LEAST_DIFFERENCE / 6, limit, color=BAND, zorder=0)
        legend.append((Patch(color=BAND), f"within the tolerance of {limit:g}"))
    rows = [comparison.rows[at] for at, _, _ in drawn]
    names = distinct_names(comparison, rows) if len(rows) <= _MOST_NAMES else []
    verdicts, owns = [], []
    for row, tokens, off in zip(rows, speeds, differences, strict=True):
        verdicts.append(row.point.parity is not None and row.point.parity.passed)
        owns.append(row.parity_speed is not None and row.parity_speed.of == row.point.name)
        colour, marker = STYLES[0 if verdicts[-1] else 1]
        axes.scatter(
            tokens, off, s=38, marker=marker, edgecolors=colour, facecolors=colour if owns[-1] else "white", linewidths=1.3,
            zorder=3,
        )  # fmt: skip
    for name, tokens, off in zip(names, speeds, differences, strict=False):
        right = tokens > 0.6 * max(speeds)
        axes.annotate(
            plain(name), (tokens, off), (-7 if right else 7, 8), textcoords="offset points",
            ha="right" if right else "left", color=INK, size=9,
        )  # fmt: skip
    for passed in sorted(set(verdicts), reverse=True):
        colour, marker = STYLES[0 if passed else 1]
        legend.append((Line2D([], [], linestyle="", color=colour, marker=marker), "passed" if passed else "not passed"))
    if not all(owns):
        hollow = Line2D([], [], linestyle="", color=STYLES[-1][0], marker="o", markerfacecolor="white")
        legend.append((hollow, "hollow: speed of a throughput point on the same engine"))
    if min(off for _, _, off in drawn) < LEAST_DIFFERENCE:
        legend.append((Line2D([], [], linestyle=""), f"what is less than {LEAST_DIFFERENCE:.6f} is drawn there"))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("tokens/s", color=QUIET)
    axes.set_title("worst |score difference| to the reference", loc="left", color=QUIET, size=10)
    axes.text(1, 0.02, "lower right is better ↘", transform=axes.transAxes, ha="right", color=QUIET, size=9)
    left_out = sum(row.point.parity is not None for row in comparison.rows) - len(drawn)
    figure.legend(
        [handle for handle, _ in legend], [name for _, name in legend], loc="outside lower left", ncols=2, frameon=False,
        fontsize=9, title=f"not in the plot: {left_out:,} without a difference or a speed" if left_out else None,
        title_fontsize=9, alignment="left",
    )  # fmt: skip
    return figure
