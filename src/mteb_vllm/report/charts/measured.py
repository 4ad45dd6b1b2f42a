"""Charts of measurements: latency against throughput, tokens/s against the roofline, and differences from a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mteb_vllm.report.charts.scores import first_selected, heading, setting_labels, settings_of
from mteb_vllm.report.charts.style import (
    BAND,
    CATEGORIES,
    INK,
    SHAPES,
    TIP,
    Json,
    axis_values,
    chart,
    labels_of,
    placed,
    rings,
    selections,
    short,
    texts,
)
from mteb_vllm.report.comparison import Comparison
from mteb_vllm.report.formatting import BUSY_MACHINE, distinct_names, mfu, number, point_name, rate, settings_text
from mteb_vllm.results.measurements import Roofline, ThroughputRecord

if TYPE_CHECKING:
    import altair as alt

# Smaller differences are drawn at this value: a logarithmic axis has no zero, and scores are published with five digits.
LEAST_DIFFERENCE = 1e-6
_BETTER = "Lower right is better."


@dataclass(frozen=True)
class Curve:
    """One point's throughput, and how a chart describes it.

    Attributes:
        point: The point's name.
        name: The settings that distinguish it from the other points; "" if there are no others.
        engine: The settings that distinguish its engine from the other engines; "" if there are no others.
        throughput: Its measurements.
        title: The first line of its tooltips.
        settings: The remaining lines of its tooltips.
    """

    point: str
    name: str
    engine: str
    throughput: ThroughputRecord
    title: str
    settings: dict[str, str]

    @property
    def lengths(self) -> str:
        """The lengths of its requests, which are marked if they are pairs."""
        return f"{'pairs, ' if self.throughput.unit == 'pairs' else ''}{short(str(self.throughput.lengths))}"


def throughput_curves(comparison: Comparison) -> list[Curve]:
    """Return the throughput of all points that measured it, best first."""
    found = [(row, measured) for row in comparison.ranked if (measured := row.point.throughput) and measured.steps]
    rows = [row for row, _ in found]
    # A point whose engine is unknown counts as having its own.
    engines = [row.point.engine or f"point {row.point.name}" for row in rows]
    values = [dict(zip(comparison.columns, row.settings, strict=True)) for row in rows]
    # An engine setting has one value per engine; other settings, such as the lengths, may have several.
    own = [
        column
        for column in comparison.columns
        if len({(engine, of[column]) for engine, of in zip(engines, values, strict=True)}) == len(set(engines))
        and len({of[column] for of in values}) > 1
    ]
    ends = [column.rpartition(".")[2] for column in own]
    keys = ends if len(set(ends)) == len(ends) else own
    names = {
        engine: settings_text(keys, [of[column] for column in own]) or point_name(row.point.name)
        for engine, of, row in reversed(list(zip(engines, values, rows, strict=True)))
    }
    labels = setting_labels(comparison)
    return [
        Curve(
            row.point.name, name, names[engine] if len(names) > 1 else "", measured, heading(comparison, row),
            settings_of(comparison, labels, row),
        )
        for (row, measured), name, engine in zip(found, distinct_names(comparison, rows), engines, strict=True)
    ]  # fmt: skip


def latency_throughput(curves: Sequence[Curve], selected: str = "") -> alt.LayerChart:
    """Draw the latency of a call against throughput, one curve per point: colour by engine, shape by lengths.

    Args:
        curves: One or more.
        selected: The name of the point that is selected initially.
    """
    import altair as alt

    kinds, colour = _engines(curves)
    lengths = list(dict.fromkeys(curve.lengths for curve in curves))
    data: list[Json] = []
    saturated: list[Json] = []
    for curve, kind in zip(curves, kinds, strict=True):
        common = {"point": curve.point, "engine": kind, "lengths": curve.lengths}
        unit = curve.throughput.unit
        for step in curve.throughput.steps:
            latency = step.latency_ms
            tip = {
                "title": curve.title or "One call", "batch size": str(step.batch_size),
                f"{unit}/s": rate(step.requests_per_second), "p50": f"{latency.p50:.3g} ms", "p90": f"{latency.p90:.3g} ms",
                "lengths": curve.lengths, **curve.settings,
            }  # fmt: skip
            data.append(
                {
                    **common, "size": str(step.batch_size), "batch": step.batch_size, "rate": step.requests_per_second,
                    "p50": latency.p50, "p90": latency.p90, "tip": tip,
                }
            )  # fmt: skip
        if requests := curve.throughput.requests_per_second:
            tip = {"title": curve.title or "Offline (saturated) throughput", f"{unit}/s, saturated": rate(requests)}
            saturated.append({**common, "rate": requests, "tip": {**tip, "lengths": curve.lengths, **curve.settings}})
    rates = [one["rate"] for one in (*data, *saturated)]
    latencies = [one[key] for one in data for key in ("p50", "p90")]
    log = max(rates) > 10 * min(rates)
    left, right = (min(rates) / 1.2, max(rates) * 1.2) if log else (0.0, max(rates) * 1.06)
    span = max(latencies) / min(latencies)
    # The bottom of the plot is reserved for the marks of saturated throughput.
    low, high = min(latencies) / max(span**0.14, 1.3), max(latencies) * max(span**0.08, 1.2)
    _place_sizes(curves, data, (left, right, log), (low, high))

    units = list(dict.fromkeys(curve.throughput.unit for curve in curves))
    x = alt.X(
        "rate:Q", title=f"{' or '.join(units)}/s →",
        scale=alt.Scale(type="log" if log else "linear", domain=[left, right], nice=False),
        axis=alt.Axis(format=",.6~r", **axis_values(left, right, log)),
    )  # fmt: skip
    y = alt.Y(
        "p50:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(format=",.6~r", **axis_values(low, high, True)),
    )  # fmt: skip
    picked, pointed = selections(selected)
    legend = alt.selection_point(name="legend", fields=["engine"], bind="legend")
    engines = len(set(kinds)) > 1
    faint: Any = alt.condition(legend, alt.value(1), alt.value(0.12)) if engines else alt.value(1)
    thick: Any = alt.condition(picked, alt.value(3), alt.value(1.5)) if len(curves) > 1 else alt.value(1.5)
    shape: Any = (
        alt.Shape("lengths:N", scale=alt.Scale(domain=lengths, range=SHAPES[: len(lengths)]))
        if 1 < len(lengths) <= len(SHAPES)
        else alt.value("circle")
    )
    # Of a legend that layers share, Vega-Lite binds the selection to the first layer.
    layers = [
        alt.Chart(name="spreads")
        .mark_rule(strokeWidth=1, tooltip=None)
        .encode(x, y, y2="p90:Q", color=colour, opacity=faint)
        .add_params(*([legend] if engines else [])),
        alt.Chart(name="curves")
        .mark_line(tooltip=None)
        .encode(x, y, color=colour, detail="point:N", order=alt.Order("batch:Q"), strokeWidth=thick, opacity=faint),
        alt.Chart(alt.NamedData("saturated"), name="saturated")
        .mark_rule(strokeWidth=3, tooltip=alt.ExprRef(TIP))
        .encode(
            x, y=alt.value("height"), y2=alt.value(alt.ExprRef("height - 16")), color=colour, opacity=faint,
        ),
        alt.Chart(name="steps")
        .mark_point(filled=True, size=50, tooltip=alt.ExprRef(TIP))
        .encode(x, y, color=colour, shape=shape, opacity=faint)
        .add_params(picked, pointed),
        *rings(picked, pointed, x, y)[1:],
        *texts("sizes", "size", x, y),
    ]  # fmt: skip
    notes = [
        "Number: batch size.",
        "Vertical line: up to p90." if any(one["p90"] > one["p50"] for one in data) else "",
        "At the bottom: offline (saturated) throughput." if saturated else "",
        f"More than {len(SHAPES)} different lengths: the shapes do not show them."
        if len(lengths) > len(SHAPES)
        else "",
        "Thick: selected." if selected and len(curves) > 1 else "",
        _BETTER,
    ]
    return chart(layers, {"steps": data, "saturated": saturated}, "↑ median latency of a call, ms", filter(None, notes))


def rooflines(curves: Sequence[Curve], selected: str = "") -> alt.LayerChart:
    """Draw each point's tokens/s as a bar, and its roofline as an outline around the bar.

    Args:
        curves: One or more.
        selected: The name of the point that is selected initially.
    """
    import altair as alt

    kinds, colour = _engines(curves, legend=False)
    data: list[Json] = []
    for curve, kind in zip(curves, kinds, strict=True):
        tokens, roofline = curve.throughput.tokens_per_second, curve.throughput.roofline or Roofline()
        share = "roofline unknown" if roofline.mfu is None else f"MFU {mfu(roofline.mfu)}"
        words = "not measured" if tokens is None else f"{number(tokens)} tokens/s, {share}"
        tip = {"title": curve.title or "Throughput", "tokens/s": number(tokens) or "not measured"}
        tip |= {"roofline, tokens/s": number(roofline.tokens_per_second) or "unknown"}
        tip |= {} if roofline.mfu is None else {"MFU": mfu(roofline.mfu)}
        data.append(
            {
                "point": curve.point, "engine": kind,
                "name": short(curve.name, 90) if len(curves) > 1 else "", "words": words, "tokens": tokens or 0.0,
                "roofline": roofline.tokens_per_second, "room": 7 * len(words) + 12, "tip": {**tip, **curve.settings},
            }
        )  # fmt: skip
    highest = max([one[key] or 0.0 for one in data for key in ("tokens", "roofline")]) or 1.0
    scale = alt.Scale(domain=[0, highest], nice=False)
    y = alt.Y("point:N", sort=None, axis=None, scale=alt.Scale(domain=[curve.point for curve in curves], padding=0))
    picked, pointed = selections(selected, nearest=False)
    width: Any = alt.condition(picked, alt.value(2.5), alt.value(0)) if len(curves) > 1 else alt.value(0)
    text: Json = {"baseline": "middle", "dy": -10, "tooltip": None}
    layers = [
        alt.Chart(name="bars")
        .mark_bar(height=14, yOffset=9, tooltip=alt.ExprRef(TIP))
        .encode(alt.X("tokens:Q", scale=scale, axis=None), y, color=colour)
        .add_params(picked, pointed),
        alt.Chart(name="rooflines")
        .mark_bar(height=14, yOffset=9, filled=False, stroke=INK, strokeWidth=1.25, tooltip=None)
        .encode(alt.X("roofline:Q", scale=scale, axis=None), y)
        .transform_filter("isValid(datum.roofline)"),
        alt.Chart(name="picked_bar")
        .mark_bar(height=20, yOffset=9, filled=False, stroke=INK, strokeDash=[2, 2], tooltip=None)
        .encode(x=alt.value("width"), x2=alt.value(0), y=y, strokeWidth=width),
        alt.Chart(name="names")
        .mark_text(**text, align="left", limit=alt.ExprRef("max(40, width - datum.room)"))
        .encode(y=y, x=alt.value(0), text="name:N"),
        alt.Chart(name="figures")
        .mark_text(**text, align=alt.ExprRef("datum.name ? 'right' : 'left'"))
        .encode(y=y, x=alt.value(alt.ExprRef("datum.name ? width : 0")), text="words:N"),
    ]
    invalid = any(((curve.throughput.roofline or Roofline()).mfu or 0.0) > 1 for curve in curves)
    notes = [
        "Outlined: the roofline, the maximum that the machine's FLOP/s allow.",
        f"Invalid: an MFU above 100% is {BUSY_MACHINE}." if invalid else "",
        "Dotted: selected." if selected and len(curves) > 1 else "",
    ]
    return chart(layers, {"points": data}, "offline (saturated) tokens/s →", filter(None, notes), height=44 * len(data))


def reference_speed(comparison: Comparison) -> alt.LayerChart | None:
    """Draw each parity point's worst difference from the reference against tokens/s; None if no point has both."""
    import altair as alt

    rows = [row for row in comparison.ranked if row.point.parity is not None]
    found = [
        (row, row.point.parity, row.parity_speed, abs(difference))
        for row in rows
        if row.point.parity is not None
        and (difference := row.point.parity.worst.difference) is not None
        and row.parity_speed is not None
    ]
    if not found:
        return None
    limits = {row.point.parity.tolerances.score for row in rows if row.point.parity is not None}
    tolerance = limits.pop() if len(limits) == 1 else None
    labels = setting_labels(comparison)
    names = distinct_names(comparison, [row for row, *_ in found])
    data: list[Json] = [
        {
            "point": row.point.name,
            "label": short(name, 36),
            "tokens": speed.tokens,
            "difference": max(off, LEAST_DIFFERENCE),
            "verdict": "passed" if parity.passed else "not passed",
            "own": speed.of == row.point.name,
            "tip": {
                "title": heading(comparison, row),
                "worst |score difference|": f"{off:.3g}",
                "tokens/s": number(speed.tokens)
                + ("" if speed.of == row.point.name else f", measured in {point_name(short(speed.of))}"),
                **settings_of(comparison, labels, row),
            },
        }
        for (row, parity, speed, off), name in zip(found, names, strict=True)
    ]
    low, high = LEAST_DIFFERENCE / 6, 4 * max([tolerance or 0.0, *(one["difference"] for one in data)])
    speeds = [one["tokens"] for one in data]
    log = max(speeds) > 10 * min(speeds) > 0
    left, right = (min(speeds) / 1.2, max(speeds) * 1.2) if log else (0.0, max(speeds) * 1.12)
    places = [(_share(one["tokens"], left, right, log), _share(one["difference"], low, high, True)) for one in data]
    for one, spots in zip(data, placed([(*p, one["label"]) for p, one in zip(places, data, strict=True)]), strict=True):
        one.update(spots)
    x = alt.X(
        "tokens:Q", title="tokens/s →", scale=alt.Scale(type="log" if log else "linear", domain=[left, right], nice=False),
        axis=alt.Axis(format=",.6~r", **axis_values(left, right, log)),
    )  # fmt: skip
    powers = [10.0**power for power in range(-6, math.floor(math.log10(high)) + 1)]
    y = alt.Y(
        "difference:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(format=",.6~r", values=powers),
    )  # fmt: skip
    picked, pointed = selections(first_selected(comparison).point.name)
    legend = alt.selection_point(name="legend", fields=["verdict"], bind="legend")
    verdicts = [verdict for verdict in ("passed", "not passed") if any(one["verdict"] == verdict for one in data)]
    kinds = [0 if verdict == "passed" else 1 for verdict in verdicts]
    scale = alt.Scale(domain=verdicts, range=[CATEGORIES[kind] for kind in kinds])
    points = (
        alt.Chart(name="points")
        .mark_point(filled=True, size=75, strokeWidth=1.5, tooltip=alt.ExprRef(TIP))
        .encode(
            x, y, fill=alt.Fill("verdict:N", scale=scale), stroke=alt.Stroke("verdict:N", scale=scale),
            shape=alt.Shape("verdict:N", scale=alt.Scale(domain=verdicts, range=[SHAPES[kind] for kind in kinds])),
            fillOpacity=alt.condition("datum.own", alt.value(1), alt.value(0)),
            opacity=alt.condition(legend, alt.value(1), alt.value(0.12)),
        )
        .add_params(picked, pointed, legend)
    )  # fmt: skip
    band = (
        alt.Chart(alt.InlineData(values=[{"low": low, "tolerance": tolerance}]))
        .mark_rect(color=BAND, tooltip=None)
        .encode(y=alt.Y("low:Q"), y2="tolerance:Q")
    )
    missing = len(rows) - len(data)
    notes = [
        f"Green: within the tolerance of {tolerance:g}." if tolerance else "",
        "" if all(one["own"] for one in data) else "Hollow: speed of a throughput point on the same engine.",
        "Differences below 0.000001 are drawn at 0.000001." if any(off < LEAST_DIFFERENCE for *_, off in found) else "",
        f"Not in the plot: {missing:,} without a difference or a speed." if missing else "",
        _BETTER,
    ]
    several = rings(picked, pointed, x, y) if len(comparison.rows) > 1 else []
    layers = [*([band] if tolerance else []), points, *several, *texts("labels", "label", x, y)]
    return chart(layers, {"points": data}, "↑ worst |score difference| from the reference", filter(None, notes))


def _engines(curves: Sequence[Curve], *, legend: bool = True) -> tuple[list[str], alt.Color | alt.ColorValue]:
    """Return the label of each curve's engine, and the colour encoding of the labels.

    If there are more engines than colours, the fastest ones have their own colours, and the others share the last.
    """
    import altair as alt

    fastest: dict[str, float] = {}
    for curve in curves:
        fastest[curve.engine] = max(fastest.get(curve.engine, 0.0), curve.throughput.tokens_per_second or 0.0)
    if len(fastest) == 1:
        return [""] * len(curves), alt.ColorValue(CATEGORIES[0])
    own = sorted(fastest, key=lambda engine: fastest[engine], reverse=True)
    own = own[: len(CATEGORIES) - (len(own) > len(CATEGORIES))]
    labels = labels_of(engine for engine in fastest if engine in own)
    domain = list(labels.values())
    other = f"{len(fastest) - len(own)} other engines"
    domain += [other] if len(fastest) > len(own) else []
    colour = alt.Color("engine:N", scale=alt.Scale(domain=domain, range=CATEGORIES[: len(domain)]))
    return [labels.get(curve.engine, other) for curve in curves], colour if legend else colour.legend(None)


def _place_sizes(
    curves: Sequence[Curve], data: list[Json], across: tuple[float, float, bool], up: tuple[float, float]
) -> None:
    """Place the labels of the steps, their batch sizes, away from the curves; the ends of curves have priority."""
    left, right, log = across
    places = [(_share(one["rate"], left, right, log), _share(one["p50"], *up, True)) for one in data]
    ends = [(x, _share(one["p90"], *up, True)) for (x, _), one in zip(places, data, strict=True)]
    same = [(a, b) for a, b in pairwise(range(len(data))) if data[a]["point"] == data[b]["point"]]
    lines = [(places[a], places[b]) for a, b in same] + list(zip(places, ends, strict=True))
    lengths = [len(curve.throughput.steps) for curve in curves]
    inner = [0 < at < steps - 1 for steps in lengths for at in range(steps)]
    order = sorted(range(len(data)), key=lambda at: inner[at])
    spots = placed([(*places[at], data[at]["size"]) for at in order], lines=list(_between(lines)))
    for at, spot in zip(order, spots, strict=True):
        data[at].update(spot)


def _between(lines: Iterable[tuple[tuple[float, float], tuple[float, float]]]) -> Iterator[tuple[float, float]]:
    """Yield positions on lines, at most a hundredth of the plot apart."""
    for (x0, y0), (x1, y1) in lines:
        steps = math.ceil(100 * max(abs(x1 - x0), abs(y1 - y0))) or 1
        yield from ((x0 + (x1 - x0) * at / steps, y0 + (y1 - y0) * at / steps) for at in range(steps + 1))


def _share(value: float, low: float, high: float, log: bool) -> float:
    """Return the position of a value between two others, as a fraction of the distance."""
    scale = math.log if log else float
    return (scale(value) - scale(low)) / (scale(high) - scale(low))
