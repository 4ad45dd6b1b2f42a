"""Charts of scores: quality against speed, and the differences from the baseline by task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mteb_vllm.report.charts.style import (
    BAND,
    CATEGORIES,
    INK,
    SHAPES,
    STEPS,
    TIP,
    Json,
    axis_values,
    chart,
    labels_of,
    narrow,
    nice,
    placed,
    rings,
    selections,
    short,
    texts,
)
from mteb_vllm.report.comparison import Comparison, Row
from mteb_vllm.report.formatting import count, number, point_name, score, signed

if TYPE_CHECKING:
    import altair as alt

# From this number of points on, marks are small.
MANY = 200
# Points within this multiple of epsilon of the best are near it.
NEAR = 10
# More columns would be indistinguishable: points of neighbouring ranks then share one.
MOST_COLUMNS = 60
# After the number of values without a colour of their own, in a legend.
_OTHERS = " other values"


def first_selected(comparison: Comparison) -> Row:
    """Return the initially selected point: the recommended one, else the best, the fastest, or the first."""
    named = (comparison.answer, comparison.best, comparison.fastest, comparison.passed)
    return next((row for row in named if row is not None), comparison.rows[0])


def roles_of(comparison: Comparison, row: Row) -> list[str]:
    """Return the roles of a point in the comparison, such as "best"."""
    failed = ["failed"] if row.point.failed else []
    if len(comparison.rows) == 1:
        return failed
    named = {
        "recommended": comparison.answer,
        "best": comparison.best,
        "fastest": comparison.fastest,
        "fastest that passed": comparison.passed,
    }
    roles = [role for role, of in named.items() if of is not None and of.point.name == row.point.name]
    return failed + roles + (["baseline"] if row.point.name == comparison.baseline else [])


def heading(comparison: Comparison, row: Row) -> str:
    """Return the first line of a point's tooltip."""
    roles = roles_of(comparison, row)
    return f"Point {short(row.point.name)}" + (f" ({', '.join(roles)})" if roles else "")


def settings_of(comparison: Comparison, labels: Sequence[dict[str, str]], row: Row) -> dict[str, str]:
    """Return a point's settings for its tooltip: name to label."""
    values = zip(comparison.columns, labels, row.settings, strict=True)
    return {column: of_values[value] for column, of_values, value in values}


def setting_labels(comparison: Comparison) -> list[dict[str, str]]:
    """Return the labels of each setting's values."""
    return [labels_of(row.settings[at] for row in comparison.rows) for at in range(len(comparison.columns))]


def quality_speed(comparison: Comparison) -> alt.LayerChart | None:
    """Draw mean scores against speeds; None if no point has both, or if some speeds are of texts and others of pairs.

    Points that were not run for their scores are left out.
    """
    import altair as alt

    rows = [row for row in comparison.rows if row.point.for_scores]
    drawn = [(row, row.speed, row.mean) for row in rows if row.speed and row.mean is not None]
    if not drawn or comparison.unit is None:
        return None
    several = len(comparison.rows) > 1
    # The best of all points, which has no known speed if it is not drawn.
    best = max(row.mean for row in rows if row.mean is not None)
    close = [one for one in drawn if one[2] >= best - NEAR * comparison.epsilon]
    zoom = 2 <= len(close) < len(drawn)
    every, near = (
        _domains(comparison, [(speed.texts, mean) for _, speed, mean in some], best) for some in (drawn, close or drawn)
    )
    banded = several and any(row.good for row, _, _ in drawn)
    (slow, fast), (low, high) = every
    log = fast > 12 * slow > 0

    def domain(axis: int) -> alt.ExprRef | list[float]:
        ends = list(every[axis])
        return alt.ExprRef(f"near ? {list(near[axis])!r} : {ends!r}") if zoom else ends

    labels = setting_labels(comparison)
    data: list[Json] = [
        {
            "point": row.point.name,
            "speed": speed.texts,
            "mean": mean,
            "own": speed.of == row.point.name,
            "front": row.on_front,
            "tip": {
                "title": heading(comparison, row),
                "mean score": score(mean) + (f" ({signed(row.difference)})" if row.difference is not None else ""),
                f"{comparison.unit}/s": number(speed.texts)
                + ("" if speed.of == row.point.name else f", measured in {point_name(short(speed.of))}"),
                **settings_of(comparison, labels, row),
            },
        }
        for row, speed, mean in drawn
    ]
    scale = math.log if log else float
    named = [
        (one, ", ".join(words))
        for one, (row, _, _) in zip(data, drawn, strict=True)
        if (words := [role for role in roles_of(comparison, row) if role != "failed"])
    ]
    places = [
        ((scale(one["speed"]) - scale(slow)) / (scale(fast) - scale(slow)), (one["mean"] - low) / (high - low))
        for one in data
    ]
    # Points with a label first. If there are many others, a label may cover some of them.
    others = [(*place, "") for place in places] if len(places) <= MANY else []
    labels_first = [(*places[data.index(one)], text) for one, text in named]
    for (one, text), spot in zip(named, placed([*labels_first, *others], always=True), strict=False):
        one.update(role=text, **spot)

    picked, pointed = selections(first_selected(comparison).point.name)
    legend = alt.selection_point(name="legend", fields=["kind"], bind="legend")
    x = alt.X(
        "speed:Q", title=f"{comparison.unit}/s →",
        axis=alt.Axis(format=",.6~r", **axis_values(slow, fast, log)),
        scale=alt.Scale(nice=False, domain=domain(0), **({"type": "log"} if log else {"zero": False})),
    )  # fmt: skip
    y = alt.Y("mean:Q", axis=alt.Axis(tickCount=6), scale=alt.Scale(nice=False, zero=False, domain=domain(1)))
    looks, params = _kinds(comparison, labels, [row for row, _, _ in drawn])
    # A value without a colour of its own gets the last one.
    last = len(CATEGORIES) - 1
    kind = f"indexof(kinds[colour], datum.tip[colour]) < 0 ? kinds[colour][{last}] : datum.tip[colour]"
    points = (
        alt.Chart(name="points")
        .mark_point(filled=True, size=36 if len(data) > MANY else 75, strokeWidth=1.5, tooltip=alt.ExprRef(TIP))
        .encode(
            x, y, fillOpacity=alt.condition("datum.own", alt.value(0.9), alt.value(0)),
            opacity=alt.condition(legend, alt.value(1), alt.value(0.12)), **looks,
        )
        .add_params(picked, pointed, legend)
    )  # fmt: skip
    band = (
        alt.Chart(alt.InlineData(values=[{"low": best - comparison.epsilon, "best": best}]))
        .mark_rect(color=BAND, tooltip=None)
        .encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="best:Q")
    )
    front = (
        alt.Chart(name="front")
        .mark_line(interpolate="step-before", color=INK, strokeWidth=1, tooltip=None)
        .encode(x, y, order=alt.Order("speed:Q"))
        .transform_filter("datum.front")
    )
    layers = [*([band] if banded else []), front, points]
    layers += [*rings(picked, pointed, x, y), *texts("roles", "role", x, y, bold=True)] if several else []
    if zoom:
        within = f"only the {len(close):,} points within {NEAR * comparison.epsilon:g} of the best"
        check = alt.binding_checkbox(name=within)
        params.append(alt.param(name="near", value=False, bind=check))
    notes = [
        f"Green: within {comparison.epsilon:g} of the best." if banded else "",
        "Line: Pareto front, no other point is both better and faster."
        if sum(row.on_front for row in rows) > 1
        else "",
        "Ring: selected." if several else "",
        "" if all(one["own"] for one in data) else "Hollow: speed measured in another point on the same engine.",
        left_out(comparison),
    ]
    over = len(comparison.shared)
    title = f"↑ mean score over {over} tasks" if over > 1 else "↑ score"
    made = chart(layers, {"points": data}, title, filter(None, notes), params=params)
    made = made.transform_calculate(kind=kind if comparison.columns else "''")
    return made.transform_filter(f"!near || datum.mean >= {best - NEAR * comparison.epsilon!r}") if zoom else made


def left_out(comparison: Comparison) -> str:
    """Return a sentence on the points that the chart of quality against speed cannot show; "" if it shows all."""
    rows = [row for row in comparison.rows if row.point.for_scores]
    means = sum(row.mean is None for row in rows)
    speeds = sum(row.mean is not None and row.speed is None for row in rows)
    missing = [f"{means:,} without a mean (a task failed, is missing or has no score)"] if means else []
    missing += [f"{speeds:,} without a known speed"] if speeds else []
    if not missing:
        return ""
    near = means + speeds < len(rows) and not any(row.good and row.speed for row in rows)
    unknown = f" No point within {comparison.epsilon:g} of the best has a known speed." if near else ""
    return f"Not in the plot: {'; '.join(missing)}.{unknown}"


def _domains(
    comparison: Comparison, places: Sequence[tuple[float, float]], best: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of both axes, far enough apart that noise looks small."""
    speeds, means = zip(*places, strict=True)
    alone = len(places) == 1
    slow, fast = min(*speeds, 0.7 * max(speeds)), max(speeds) * (1.3 if alone else 1)
    least = max(3 * comparison.epsilon, 0.0001)
    low, high = min(*means, max(means) - least), max(means) + (least if alone else 0)
    if max(means) >= best - comparison.epsilon:
        high = max(high, best)
    room, around = 0.05 * (fast - slow), high - low
    across = (slow / 1.15, fast * 1.15) if fast > 10 * slow else (max(0.0, slow - room), fast + room)
    return across, (low - 0.08 * around, high + 0.12 * around)


def _kinds(
    comparison: Comparison, labels: Sequence[dict[str, str]], rows: Sequence[Row]
) -> tuple[Json, list[alt.Parameter]]:
    """Return the encodings of a setting by colour and shape, and the parameters that select it; none without settings."""
    import altair as alt

    kinds: dict[str, list[str]] = {}
    for at, column in enumerate(comparison.columns):
        counts = Counter(row.settings[at] for row in rows)
        own = {value for value, _ in counts.most_common(len(CATEGORIES) - (len(counts) > len(CATEGORIES)))}
        kinds[column] = [label for value, label in labels[at].items() if value in own]
        if len(counts) > len(own):
            kinds[column].append(f"{len(counts) - len(own)}{_OTHERS}")
    if not kinds:
        return {"color": alt.value(CATEGORIES[0])}, []
    fewest = min(kinds, key=lambda column: len(labels[comparison.columns.index(column)]))
    domain = alt.ExprRef("kinds[colour]")
    # The picture shows no menu that names the setting, so the entries of the legend do.
    named = "peek(split(colour, '.')) + '=' + datum.label"
    legend = alt.Legend(labelExpr=f"indexof(datum.label, '{_OTHERS}') > 0 ? datum.label : {named}")
    return (
        {
            "fill": alt.Fill("kind:N", scale=alt.Scale(domain=domain, range=CATEGORIES), legend=legend),
            "stroke": alt.Stroke("kind:N", scale=alt.Scale(domain=domain, range=CATEGORIES), legend=legend),
            "shape": alt.Shape("kind:N", scale=alt.Scale(domain=domain, range=SHAPES), legend=legend),
        },
        [
            alt.param(name="kinds", value=kinds),
            alt.param(name="colour", value=fewest, bind=alt.binding_select(options=list(kinds), name="Colour by ")),
        ],
    )


def task_differences(comparison: Comparison) -> alt.LayerChart | None:
    """Draw each point's score differences from the baseline, one row per task; None if there is nothing to compare.

    The columns are the other points, best first. If there are many, points of neighbouring ranks share a column that shows
    their mean.
    """
    import altair as alt

    baseline = next(row for row in comparison.rows if row.point.name == comparison.baseline)
    others = [row for row in comparison.ranked if row is not baseline]
    off = {
        task: {
            row.point.name: value - base
            for row in others
            if (value := row.scores.get(task)) is not None and math.isfinite(value)
        }
        for task in comparison.comparable
        if (base := baseline.scores.get(task)) is not None and math.isfinite(base)
    }
    off = {task: values for task, values in off.items() if values}
    ranked = [row for row in others if any(row.point.name in values for values in off.values())]
    if not ranked:
        return None
    # Tasks in which points differ most come first.
    tasks = sorted(off, key=lambda task: min([0.0, *off[task].values()]) - max([0.0, *off[task].values()]))
    groups = _groups(ranked)
    labels = setting_labels(comparison)
    names = labels_of(name for name, _ in groups)
    columns: list[Json] = [
        {"column": names[name], "members": [row.point.name for row in rows]} for name, rows in groups
    ]
    # The tooltips of a column's cells, without the task and the difference.
    about = {
        names[name]: {"title": heading(comparison, rows[0]), **settings_of(comparison, labels, rows[0])}
        if len(rows) == 1
        else {"title": f"Points ranked {name}", "difference": f"mean of {len(rows)} points"}
        for name, rows in groups
    }
    cells: list[Json] = []
    for name, rows in groups:
        for task in tasks:
            if found := [off[task][row.point.name] for row in rows if row.point.name in off[task]]:
                mean = round(math.fsum(found) / len(found), 6)
                point = rows[0].point.name
                cells.append({"column": names[name], "point": point, "task": short(task), "difference": mean})
    # An outlier would make all other points look alike: the largest tenth of the differences have the last colour.
    sizes = sorted(abs(cell["difference"]) for cell in cells)
    step = nice(max(sizes[math.ceil(0.9 * (len(sizes) - 1))], 3e-5) / 3)
    edges = [round(at * step, 9) for at in (-3, -2, -1, 1, 2, 3)]
    picked, pointed = selections(first_selected(comparison).point.name, nearest=False)
    long = max(len(column["column"]) for column in columns)
    # Labels are vertical where the longest may be wider than its column. Vega-Lite does not align labels by an expression.
    vertical = [8 * long * len(columns) > width for width in (180, 450)]
    x = alt.X(
        "column:N", sort=None, title="points, best first →" if len(columns) > 1 else "point",
        scale=alt.Scale(domain=[column["column"] for column in columns], paddingInner=0.04 if len(columns) < 30 else 0),
        axis=alt.Axis(
            orient="top", domain=False, ticks=False, labelLimit=110, labelFlush=False, labelOverlap="greedy",
            labelSeparation=4, labelAngle=narrow(*(-90 if one else 0 for one in vertical)),
            labelAlign=narrow(*("left" if one else "center" for one in vertical)),
            labelBaseline=narrow(*("middle" if one else "bottom" for one in vertical)),
        ),
    )  # fmt: skip
    y = alt.Y(
        "task:N", sort=None, scale=alt.Scale(domain=[short(task) for task in tasks], paddingInner=0.06),
        axis=alt.Axis(labelColor=INK, labelLimit=narrow(165, 320)),
    )  # fmt: skip
    colour = alt.Fill(
        "difference:Q", scale=alt.Scale(type="threshold", domain=edges, range=STEPS),
        legend=alt.Legend(
            format="+.5~f", gradientLength=narrow(180, 420), gradientThickness=12, labelOverlap="greedy", type="gradient",
            direction="horizontal",
        ),
    )  # fmt: skip
    sign = "format(datum.difference, '+.5f')"
    tip = f"merge({{title: ''}}, {{task: datum.task, 'score difference': {sign}}}, about[datum.column])"
    heat = alt.Chart(name="cells").mark_rect(tooltip=alt.ExprRef(TIP)).encode(x, y, colour).add_params(picked, pointed)
    figures = (
        alt.Chart(name="figures")
        .mark_text(text=alt.ExprRef(f"bandwidth('x') > 54 ? {sign} : ''"), tooltip=None)
        .encode(x, y)
    )
    outline = (
        alt.Chart(alt.NamedData("columns"), name="picked_column")
        .mark_rect(filled=False, stroke=INK, strokeWidth=1.5, tooltip=None)
        .encode(x, y=alt.value(0), y2=alt.value("height"))
        .transform_filter("isValid(picked.point) && indexof(datum.members, picked.point[0]) >= 0")
    )
    without = len(comparison.comparable) - len(tasks)
    title = f"score difference from {point_name(short(baseline.point.name))}, the baseline, by task"
    notes = [
        "Outlined: the selected point.",
        f"{len(ranked):,} points, {len(groups)} columns: each shows the mean of neighbouring ranks."
        if len(groups) < len(ranked)
        else "",
        "No colour: no score." if len(cells) < len(tasks) * len(columns) else "",
        f"Left out: {without} {'tasks' if without > 1 else 'task'} without a score for the baseline or for any other point."
        if without
        else "",
        f"Not compared: {count(len(comparison.unequal), 'task')} with scores of different splits or subsets."
        if comparison.unequal
        else "",
        "Tasks on which the points differ most are listed first." if len(tasks) > 1 else "",
    ]
    data = {"cells": cells, "columns": columns}
    params = [alt.param(name="about", value=about)]
    made = chart([heat, figures, outline], data, title, filter(None, notes), height=24 * len(tasks), params=params)
    return made.transform_calculate(tip=tip)


def _groups(ranked: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the columns of the heat map: the name and the points of each."""
    if len(ranked) <= MOST_COLUMNS:
        return [(row.point.name, [row]) for row in ranked]
    ends = [round(at * len(ranked) / MOST_COLUMNS) for at in range(MOST_COLUMNS + 1)]
    pairs = pairwise(ends)
    return [(f"{start + 1}-{end}" if end > start + 1 else f"{end}", list(ranked[start:end])) for start, end in pairs]
