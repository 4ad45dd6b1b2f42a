"""Shared by all charts: colours, fonts, labels, selections of points, and the output as a specification or as PNG."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from mteb_vllm.util.escape import visible

if TYPE_CHECKING:
    import altair as alt

# A part of a specification.
Json: TypeAlias = dict[str, Any]
# The version of Vega-Lite in the page's JavaScript (vega.js).
VEGA_LITE = "6.4"
# Each colour and its counterpart in the dark scheme of the page, whose CSS selects SVG elements by their light colour.
PAPER, INK, QUIET, LINE, BAND = "#ffffff", "#1d1f21", "#5a5f66", "#d9dce0", "#e4efe6"
# Categories also differ in lightness and shape; the last one is for all remaining values.
CATEGORIES = ("#0b5fa5", "#c4500a", "#157a5b", "#9c3587", "#857000", "#4b3fb5", "#1a8499", "#6d7278")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "circle")
# From much worse through no difference to much better; text in INK is legible on each of them.
STEPS = ("#f0a474", "#f7c8a6", "#fce6d6", "#f1f2f3", "#d7e7f6", "#a9cdee", "#79b1e3")
DARK = {
    PAPER: "#16181b", INK: "#e5e7e9", QUIET: "#a2a8af", LINE: "#363a40", BAND: "#1d3024",
    "#0b5fa5": "#62aef0", "#c4500a": "#f28f4f", "#157a5b": "#48c79d", "#9c3587": "#e28ad0", "#857000": "#d6bf45",
    "#4b3fb5": "#a79df5", "#1a8499": "#5cc9de", "#6d7278": "#9aa0a7",
    "#f0a474": "#8a4413", "#f7c8a6": "#643618", "#fce6d6": "#42291a", "#f1f2f3": "#26292d", "#d7e7f6": "#1b3147",
    "#a9cdee": "#1c4468", "#79b1e3": "#1d588c",
}  # fmt: skip
# Size of a chart in pixels. The page sets the width to that of its window; PNG files have twice as many pixels.
WIDTH, HEIGHT = 820, 340
# Widths of the plot in pixels for which labels are placed: on a phone, and in a PNG file.
_INNER = {"narrow": 280, "wide": 720}
_LONGEST_LABEL = 60
# The tooltip of a mark, also in the surrounding Voronoi cell by which Vega-Lite finds the nearest mark.
TIP = "datum.datum ? datum.datum.tip : datum.tip"
_SPOTS = ((11, 0), (-11, 0), (0, -14), (0, 15), (11, -14), (11, 14), (-11, -14), (-11, 14))
# Farther from its mark, a label could belong to another one.
_FAR_SPOTS = ((11, -28), (11, 28))


def narrow(small: object, large: object) -> alt.ExprRef:
    """Return an expression with the value `small` if the page sets the parameter `narrow`, as on a phone, else `large`."""
    import altair as alt

    return alt.ExprRef(f"narrow ? {json.dumps(small)} : {json.dumps(large)}")


def chart(
    layers: Sequence[alt.Chart],
    data: dict[str, list[Json]],
    title: str,
    notes: Iterable[str] = (),
    *,
    height: float = HEIGHT,
    params: Sequence[alt.Parameter] = (),
) -> alt.LayerChart:
    """Combine layers into a chart that is as wide as its container and has its legends at the bottom.

    Args:
        layers: The layers, from back to front.
        data: The rows of each named data set; layers without data of their own use the first.
        title: The title of the vertical axis.
        notes: Sentences on how to read the chart and on what it leaves out.
        height: The height of the plot without title, axes and legends, in pixels.
        params: Parameters other than the layers' own selections.
    """
    import altair as alt

    note = " ".join(notes)
    lines = [[title, *textwrap.wrap(note, characters)] for characters in (50, 115)]
    layered = alt.layer(*layers, data=alt.NamedData(next(iter(data))))
    made: alt.LayerChart = (
        layered.add_params(alt.param(name="narrow", value=False), *params)
        .properties(
            width=WIDTH,
            height=height,
            title=alt.TitleParams(narrow(*lines), anchor="start", frame="bounds", offset=12),
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
            background=PAPER,
            padding={"left": 0, "top": 4, "right": 8, "bottom": 4},
        )
        .configure(
            font="system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif",
            aria=False,
            axis={
                "domainColor": QUIET, "gridColor": LINE, "labelColor": QUIET, "labelFontSize": 12, "labelPadding": 6,
                "tickColor": QUIET, "titleColor": QUIET, "titleFontSize": 12, "titleFontWeight": "normal",
            },
            axisY={"domain": False, "ticks": False, "title": None},
            axisX={
                "grid": False, "titleAnchor": "end", "labelFlush": True, "labelOverlap": "greedy", "tickCount": narrow(4, 8),
            },
            legend={
                "columns": narrow(1, 2), "direction": "vertical", "labelColor": INK, "labelFontSize": 12, "orient": "bottom",
                "labelLimit": narrow(300, 360), "symbolBaseFillColor": INK, "symbolBaseStrokeColor": INK, "symbolSize": 70,
                "symbolStrokeWidth": 1.5, "title": None, "offset": 8,
            },
            text={"color": INK, "fontSize": 12},
            title={"color": QUIET, "fontSize": 12, "fontWeight": "normal", "lineHeight": 17},
            view={"stroke": None},
        )
    )  # fmt: skip
    # Set as an attribute, since Altair would check each row of an argument against the schema.
    made.datasets = data
    return made


def selections(picked: str, *, nearest: bool = True) -> tuple[alt.Parameter, alt.Parameter]:
    """Return two selections: the point that was clicked last, and the point under the pointer.

    Args:
        picked: The name of the point that is selected initially.
        nearest: Whether to select the mark that is nearest to the pointer, however far away it is.
    """
    import altair as alt

    def selection(name: str, on: str, **more: Any) -> alt.Parameter:
        return alt.selection_point(
            name=name, fields=["point"], on=on, nearest=nearest, empty=False, toggle=False, **more
        )

    return (
        selection("picked", "click", clear=False, value=[{"point": visible(picked)}]),
        selection("pointed", "pointerover", clear="pointerout"),
    )


def rings(picked: alt.Parameter, pointed: alt.Parameter, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Return layers that draw a ring around the selected point, and a dashed one around the point under the pointer."""
    import altair as alt

    return [
        alt.Chart(name=f"{param.name}_ring")
        .mark_point(size=280, filled=False, stroke=INK, strokeWidth=1.5, strokeDash=dash, tooltip=None)
        .encode(x, y)
        .transform_filter(param)
        for param, dash in ((picked, [1, 0]), (pointed, [2, 2]))
    ]


def texts(name: str, field: str, x: alt.X, y: alt.Y, *, bold: bool = False) -> list[alt.Chart]:
    """Return layers that label points with a field, at the offsets from `placed`, surrounded by a halo."""
    import altair as alt

    spot = "(narrow ? datum.narrow : datum.wide)"

    def layer(look: Json) -> alt.Chart:
        made: alt.Chart = (
            alt.Chart(name=f"{name}_halo" if look else name)
            .mark_text(
                text=alt.ExprRef(f"datum.{field}"), fontWeight="bold" if bold else "normal", baseline="middle", tooltip=None,
                dx=alt.ExprRef(f"{spot}[0]"), dy=alt.ExprRef(f"{spot}[1]"), align=alt.ExprRef(f"{spot}[2]"), **look,
            )
            .encode(x, y)
            .transform_filter(spot)
        )  # fmt: skip
        return made

    return [layer({"stroke": PAPER, "strokeWidth": 3.5, "strokeJoin": "round"}), layer({})]


def placed(
    labels: Sequence[tuple[float, float, str]], *, always: bool = False, lines: Sequence[tuple[float, float]] = ()
) -> list[Json]:
    """Return the positions of labels: for `narrow` and `wide` the offset in pixels and the alignment; None if none is free.

    Args:
        labels: The position of each mark from the left and from the bottom, as fractions of the plot, and its label, ""
            if it has none; the most important first.
        always: Whether a label without a free position may cover marks, but no other labels.
        lines: Positions on lines, which a label covers only if it has no other position.
    """
    found: list[Json] = [{} for _ in labels]
    for size, width in _INNER.items():
        marks = [(x * width - 5, x * width + 5, -y * HEIGHT, 10) for x, y, _ in labels]
        drawn = [(x * width - 2, x * width + 2, -y * HEIGHT, 4) for x, y in lines]
        written: list[tuple[float, float, float, float]] = []
        for (x, y, text), spots in zip(labels, found, strict=True):
            long = 7 * len(text) + 2
            near = [one for one in drawn if abs(one[0] - x * width) < long + 20 and abs(one[2] + y * HEIGHT) < 45]
            free = []
            for dx, dy in (*_SPOTS, *_FAR_SPOTS) if always else _SPOTS:
                left = x * width + dx - (long if dx < 0 else long / 2 if dx == 0 else 0)
                box = (left, left + long, -y * HEIGHT + dy, 13)
                if text and left >= 0 and left + long <= width and -HEIGHT <= box[2] <= -6 and _clear(box, written):
                    offset = [dx, dy, "right" if dx < 0 else "center" if dx == 0 else "left"]
                    free.append(((not _clear(box, marks), not _clear(box, near)), box, offset))
            (covers, _), box, spot = min(free, key=lambda one: one[0], default=((True, True), (0, 0, 0, 0), None))
            spots[size] = spot if always or not covers else None
            if spots[size]:
                written.append(box)
    return found


def _clear(box: tuple[float, float, float, float], others: Iterable[tuple[float, float, float, float]]) -> bool:
    """Return whether a box (left, right, middle, height) overlaps no other."""
    left, right, middle, height = box
    return all(left > b or right < a or abs(middle - at) > (height + high) / 2 for a, b, at, high in others)


def labels_of(values: Iterable[str]) -> dict[str, str]:
    """Return a short label of one line for each value; different values have different labels."""
    found: dict[str, str] = {}
    used: set[str] = set()
    for value in dict.fromkeys(values):
        label = first = short(value)
        number = 1
        while label in used:
            number += 1
            label = f"{first} ({number})"
        used.add(label)
        found[value] = label
    return found


def short(text: str, limit: int = _LONGEST_LABEL) -> str:
    """Return a text as one line that fits into a legend or a tooltip."""
    line = " ".join(visible(text).split())
    return (line if len(line) <= limit else line[: limit - 1] + "…") or "(not set)"


def axis_values(low: float, high: float, log: bool) -> Json:
    """Return the ticks of a logarithmic axis, as an argument of `alt.Axis`; none for a linear axis."""
    found = log_ticks(low, high) if log else []
    return {"values": found} if len(found) > 1 else {}


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from `low` to `high`; only the powers if these would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(one * 10.0**power, 12) for power in powers for one in (1, 2, 5)]
    found = [value for value in found if low <= value <= high]
    alone = [value for value in found if math.isclose(math.log10(value) % 1, 0, abs_tol=1e-9)]
    return alone if len(found) > 12 else found


def nice(value: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that is not below a value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= value * 0.999)


def specification(of: alt.LayerChart) -> Json:
    """Return a chart as Vega-Lite, for the page and for `picture`."""
    found = cast(Json, _shown(of.to_dict(validate=False)))
    # One legend below the other: an option of Vega-Lite that Altair does not have.
    found["config"]["legend"]["layout"] = {"bottom": {"direction": "vertical", "anchor": "start", "margin": 6}}
    return found


def picture(of: Json) -> bytes:
    """Return a specification as PNG. No file and no address is read.

    Emoji and other characters beyond U+FFFF become U+FFFD: Vega shortens long labels between the two halves of such a
    character, and the renderer then fails.
    """
    import vl_convert

    text = re.sub("[\U00010000-\U0010ffff]", "\ufffd", json.dumps(of, ensure_ascii=False))
    return bytes(vl_convert.vegalite_to_png(text, vl_version=VEGA_LITE, scale=2, allowed_base_urls=[]))


def dark_css() -> str:
    """Return the CSS rules that replace each colour of a chart by its dark counterpart."""
    return "".join(
        f'.plot [{paint}="{light}"] {{ {paint}: {dark}; }}\n'
        for light, dark in DARK.items()
        for paint in ("fill", "stroke")
    )


def _shown(value: object) -> object:
    """Return JSON with control characters in texts escaped, and None in place of numbers that are not finite."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key): _shown(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
