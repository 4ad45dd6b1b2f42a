"""A comparison as one self-contained HTML page: style, scripts and data are in it, and it needs no network.

All text is rendered here, so that the page is complete without JavaScript; page.js draws the charts with Vega (vega.js), and
sorts, filters and selects.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mteb_vllm.report.charts import Json, dark_css, first_selected, left_out, roles_of, specifications
from mteb_vllm.report.columns import Column, hides_tasks, speed_unit, table_columns
from mteb_vllm.report.comparison import Comparison, Effect, Row
from mteb_vllm.report.formatting import count, number, rate, shorten, signed, speed_effect, times
from mteb_vllm.report.header import circumstances, command_heading, recommended_command, scope
from mteb_vllm.report.tables import failed_points
from mteb_vllm.results.measurements import ThroughputRecord
from mteb_vllm.util.escape import visible
from mteb_vllm.util.sentences import sentence

# The number of shared settings that are shown; the others can be unfolded.
_FEW_CONSTANTS = 12
_LONGEST_NAME = 80
# Longer values, such as prompts, are cut in the table; the selected point's are shown in full.
_LONGEST_CELL = 160
# The classes in page.css of some kinds of columns.
_CLASSES = {"words": "setting", "mean": "figure mean"}


@dataclass(frozen=True)
class _PageColumn:
    """A column of the table of points.

    Attributes:
        name: Its header.
        kind: Its classes in page.css.
        cells: The text of a cell for each row of the comparison.
    """

    name: str
    kind: str
    cells: Sequence[str]


def page(comparison: Comparison, answer: Sequence[str], title: str, charts: Mapping[str, Json] | None = None) -> str:
    """Return the page.

    Args:
        comparison: The comparison.
        answer: The conclusions, in paragraphs.
        title: The title.
        charts: The specifications of its charts; made here if None.
    """
    folder = Path(__file__).parent
    css, js, vega = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "vega.js"))
    css += f"@media screen and (prefers-color-scheme: dark) {{\n{dark_css()}}}\n"
    charts = specifications(comparison) if charts is None else charts
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {
        "breakable": _breakable, "clipped": _clipped, "count": count, "number": number, "pairs": _pairs, "range": _range,
        "sentence": sentence, "shorten": shorten, "signed": signed, "speed_effect": speed_effect, "times": times,
        "whole": _whole,
    }  # fmt: skip
    index = {row.point.name: at for at, row in enumerate(comparison.rows)}
    constants = list(comparison.constants.items())
    return environment.get_template("page.html.jinja").render(
        title=title,
        answer=answer,
        comparison=comparison,
        scope=scope(comparison),
        circumstances=circumstances(comparison),
        command=recommended_command(comparison),
        command_heading=command_heading(comparison),
        columns=_columns(comparison),
        per_second=speed_unit(comparison),
        rows=[(index[row.point.name], row, roles_of(comparison, row)) for row in comparison.ranked],
        hides_tasks=hides_tasks(comparison),
        constants=constants[:_FEW_CONSTANTS],
        more_constants=constants[_FEW_CONSTANTS:],
        failures=failed_points(comparison),
        most_in_name=_LONGEST_NAME,
        signed=signed,
        times=times,
        css=Markup(css),
        js=Markup(js),
        vega=Markup(vega),
        charts=charts,
        not_drawn=_not_drawn(comparison),
        measured={"curves": "throughput" in charts, "parity": "reference_speed" in charts},
        hashes={"css": _hash(css), "js": _hash(js), "vega": _hash(vega)},
        data=Markup(_in_script(page_data(comparison, charts))),
    )


def _columns(comparison: Comparison) -> list[_PageColumn]:
    """Return the columns of the table of points, without empty ones."""
    columns = [column for column in table_columns(comparison) if column.page]
    found = [
        _PageColumn(
            column.page_header or column.header,
            _CLASSES.get(column.kind, column.kind),
            [_cell(column, row) for row in comparison.rows],
        )
        for column in columns
    ]
    return [column for column in found if column.kind == "task" or any(column.cells)]


def _cell(column: Column, row: Row) -> str:
    """Return the text of a column's cell in a row; for a missing setting or a failed task, a remark."""
    text = column.cell(row)
    if text == "" and column.kind == "setting" and column.key:
        return "(not set)"
    if text == "" and column.kind == "task":
        return "failed" if any(task.failed and task.name == column.name for task in row.point.tasks) else ""
    return text


def page_data(comparison: Comparison, charts: Mapping[str, Json]) -> Json:
    """Return the data of page.js. Each value of a setting is in it once, however many points have it."""
    values = [list(dict.fromkeys(row.settings[at] for row in comparison.rows)) for at in range(len(comparison.columns))]
    places = [{value: at for at, value in enumerate(column)} for column in values]
    first = first_selected(comparison)
    return {
        "columns": comparison.columns,
        "values": values,
        "baseline": comparison.baseline,
        "selected": next(at for at, row in enumerate(comparison.rows) if row is first),
        "rows": [
            {
                "name": row.point.name,
                "settings": [place[value] for place, value in zip(places, row.settings, strict=True)],
                "roles": roles_of(comparison, row),
                "mean": _rounded(row.mean, 6),
                "difference": _rounded(row.difference, 6),
                "speed": _offline(row.point.throughput),
            }
            for row in comparison.rows
        ],
        "charts": charts,
    }


def _offline(throughput: ThroughputRecord | None) -> str:
    """Return the offline throughput of a point; "" if it was not measured."""
    requests = throughput.requests_per_second if throughput is not None else None
    return "" if requests is None else f"{rate(requests)} requests/s"


def _not_drawn(comparison: Comparison) -> str:
    """Return why there is no chart of quality against speed, where there is none."""
    if comparison.unit is None:
        return "Not drawn: some points embed texts and others score pairs, and such speeds cannot be compared."
    return left_out(comparison).replace("Not in the plot", "No point has both a mean and a speed")


def _in_script(data: Any) -> str:
    """Return JSON for a script element: ASCII only, and nothing in it ends the element."""
    text = json.dumps(_visible(data), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _breakable(name: str) -> Markup:
    """Return a dotted or camel-case name with line-break opportunities between its parts."""
    parts = re.split(r"(?<=[._/])(?=.)|(?<=[a-z])(?=[A-Z])", name)
    return Markup("<wbr>").join(escape(visible(part)) for part in parts)


def _clipped(text: str) -> str:
    """Return a cell's text, cut if it is too long for a table."""
    return text if len(text) <= _LONGEST_CELL else text[:_LONGEST_CELL] + " …"


def _whole(text: str, limit: int = _LONGEST_CELL) -> Markup:
    """Return the attribute that shows the whole of a text that is cut at a limit; "" for shorter ones."""
    return Markup(' title="{}"').format(visible(text)) if len(text) > limit else Markup("")


def _pairs(effect: Effect) -> str:
    """Return the number of pairs of an effect, and how many of them have scores or speeds where not all have."""
    known = (("scores", effect.score_pairs), ("speeds", effect.speed_pairs))
    fewer = [f"{number(count) if count else 'none'} with {what}" for what, count in known if count != effect.pairs]
    return number(effect.pairs) + (f" ({', '.join(fewer)})" if fewer else "")


def _range(values: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    return "" if values is None or values[0] == values[1] else " to ".join(map(shown, values))


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and isfinite(value) else None


def _visible(value: Any) -> Any:
    """Return a value with all texts in it escaped by `visible`, except for those that are HTML already."""
    if isinstance(value, dict):
        return {key: _visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(item) for item in value]
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> str:
    """Return the hash of a script or style for the Content-Security-Policy, by which no other script runs in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
