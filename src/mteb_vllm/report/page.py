"""A comparison as one HTML page that needs nothing else: style, script and data are in it, and it asks no network.

What can be read is written here, so that the page says the same without JavaScript; page.js and measured.js, with what is in
drawing.js, draw the plots, and sort, filter and select; start.js says what happens when. There is no plotting library, so
that a page has some 60 KB instead of 4 MB.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mteb_vllm.report.comparison import Comparison, Effect, Row
from mteb_vllm.report.failed import failed_points
from mteb_vllm.report.measured_columns import measured_columns
from mteb_vllm.report.page_measured import measured_data
from mteb_vllm.report.tables import share_text, shown_settings, speed_header, speed_text
from mteb_vllm.report.words import number, signed, times
from mteb_vllm.util.escape import visible

# So many tasks have columns that one can take in at once; more wait behind a checkbox.
FEW_TASKS = 6
# So many constants are shown at once; the rest can be unfolded.
FEW_CONSTANTS = 12
# A prompt can be of any length, and a cell cannot. The page shows the whole of it for the selected point.
CELL = 160


@dataclass(frozen=True)
class Column:
    """A column of the table of points.

    Attributes:
        name: Its header.
        kind: "setting", "figure", "task", or "type" for the mean over the tasks of a type; classes of the page's style.
        cells: What is shown, a cell for each row.
    """

    name: str
    kind: str
    cells: Sequence[str]


def page(comparison: Comparison, answer: Sequence[str], title: str) -> str:
    """The page.

    Args:
        comparison: What to show.
        answer: The answer in words, in paragraphs.
        title: What was compared.
    """
    folder = Path(__file__).parent
    names = ("page.css", "drawing.js", "page.js", "measured.js", "start.js")
    css, *scripts = ((folder / name).read_text(encoding="utf-8") for name in names)
    js = "".join(scripts)
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {
        "breakable": breakable, "clipped": clipped, "number": number, "pairs": pairs, "range": _range,
        "signed": signed, "times": times,
    }  # fmt: skip
    columns = table_columns(comparison)
    rows = sorted(range(len(comparison.rows)), key=lambda at: not comparison.rows[at].point.failed)
    constants = list(comparison.constants.items())
    return environment.get_template("page.html.jinja").render(
        title=title,
        answer=answer,
        comparison=comparison,
        columns=columns,
        per_second=speed_header(comparison),
        rows=[(at, comparison.rows[at], roles(comparison, comparison.rows[at])) for at in rows],
        many_tasks=len(comparison.tasks) > FEW_TASKS,
        constants=constants[:FEW_CONSTANTS],
        more_constants=constants[FEW_CONSTANTS:],
        failures=failed_points(comparison),
        signed=signed,
        times=times,
        css=Markup(css),
        js=Markup(js),
        measured=measured_data(comparison),
        hashes={"css": _hash(css), "js": _hash(js)},
        data=Markup(in_script(page_data(comparison))),
    )


def table_columns(comparison: Comparison) -> list[Column]:
    """The columns of the table of points; those of which nothing is known are left out."""
    rows = comparison.rows
    few = len(comparison.tasks) <= FEW_TASKS

    def column(name: str, kind: str, cells: Iterable[str]) -> Column:
        return Column(name, kind, list(cells))

    columns = [
        column(comparison.columns[at], "setting", (row.settings[at] or "(not set)" for row in rows))
        for at in shown_settings(comparison)
    ]
    figures = [
        column("first stage", "figure", (number(row.first_stage, 5) for row in rows)),
        column(
            "reranked" if comparison.reranked else "mean score", "figure mean", (number(row.mean, 5) for row in rows)
        ),
        column("gain", "figure", (signed(row.gain) for row in rows)),
        column("ceiling", "figure", (number(row.ceiling, 5) for row in rows)),
        column("share of ceiling", "figure", map(share_text, rows)),
        column("difference", "figure", (signed(row.difference) for row in rows) if len(rows) > 1 else ()),
        column(speed_header(comparison), "figure", (speed_text(comparison, row) for row in rows)),
        column("tokens/s", "figure", (number(row.speed.tokens if row.speed else None) for row in rows)),
        *(
            column(one.header, "setting" if one.words else "figure", map(one.cell, rows))
            for one in measured_columns(comparison)
            if one.header
        ),
        column("speed from point", "setting", (row.speed_of_other for row in rows)),
        column("Pareto front", "setting", ("yes" if row.on_front else "" for row in rows) if len(rows) > 1 else ()),
        column("computed", "figure", (number(row.point.total("computed")) for row in rows)),
        column("from the store", "figure", (number(row.point.total("stored") or None) for row in rows)),
        column("engine start, s", "figure", (number(row.point.engine_seconds, 1) for row in rows)),
        column("seconds", "figure", (number(row.point.seconds, 1) for row in rows)),
        column("peak MiB", "figure", (number(row.point.peak_memory_mb) for row in rows)),
    ]
    kinds = dict.fromkeys(comparison.types.values())
    # Where each type has one task, the tasks say it already.
    if len(kinds) < len(comparison.tasks):
        figures += [column(kind, "type", (number(row.by_type.get(kind), 5) for row in rows)) for kind in kinds]
    columns += [one for one in figures if any(one.cells)]
    if len(comparison.tasks) > 1 or not few:
        failed = [{task.name for task in row.point.tasks if task.failed} for row in rows]
        for task in comparison.tasks:
            cells = (
                "failed" if task in lost else number(row.scores.get(task), 5)
                for row, lost in zip(rows, failed, strict=True)
            )
            columns.append(column(task, "task", cells))
    return columns


def roles(comparison: Comparison, row: Row) -> list[str]:
    """What a point is in the comparison, in words."""
    if len(comparison.rows) == 1:
        return ["failed"] if row.point.failed else []
    named = {
        "answer": comparison.answer and comparison.answer.point.name,
        "best": comparison.best and comparison.best.point.name,
        "fastest": comparison.fastest and comparison.fastest.point.name,
        "fastest that passed": comparison.passed and comparison.passed.point.name,
        "baseline": comparison.baseline,
    }
    failed = ["failed"] if row.point.failed else []
    return failed + [role for role, name in named.items() if row.point.name == name]


def page_data(comparison: Comparison) -> dict[str, Any]:
    """What page.js draws from. A setting's values stand in it once, however many points have them."""
    values = [list(dict.fromkeys(row.settings[at] for row in comparison.rows)) for at in range(len(comparison.columns))]
    places = [{value: at for at, value in enumerate(column)} for column in values]
    return {
        "columns": comparison.columns,
        "values": values,
        "tasks": comparison.tasks,
        "shared": len(comparison.shared),
        "epsilon": comparison.epsilon,
        "unit": comparison.unit,
        "rows": [
            {
                "name": row.point.name,
                "settings": [place[value] for place, value in zip(places, row.settings, strict=True)],
                "roles": roles(comparison, row),
                "for": row.point.for_scores,
                "mean": _rounded(row.mean, 6),
                "difference": _rounded(row.difference, 6),
                "speed": row.speed and _rounded(row.speed.texts, 2),
                "of": row.speed and row.speed.of,
                "front": row.on_front,
                "scores": [_rounded(row.scores.get(task), 6) for task in comparison.tasks],
            }
            for row in comparison.rows
        ],
        **measured_data(comparison),
    }


def in_script(data: Any) -> str:
    """JSON that can stand in a script element: all but ASCII is escaped, and nothing in it ends the element."""
    text = json.dumps(_visible(data), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def breakable(name: str) -> Markup:
    """A dotted or a camel-case name that may be broken between its parts."""
    parts = re.split(r"(?<=[._/])(?=.)|(?<=[a-z])(?=[A-Z])", name)
    return Markup("<wbr>").join(escape(visible(part)) for part in parts)


def clipped(text: str) -> str:
    """Return a cell's text, cut where it is too long for a table."""
    return text if len(text) <= CELL else text[:CELL] + " …"


def pairs(effect: Effect) -> str:
    """How many pairs an effect rests on; also of how many the scores or the speeds are known, where not of all."""
    known = (("scores", effect.score_pairs), ("speeds", effect.speed_pairs))
    fewer = [f"{number(count) if count else 'none'} with {what}" for what, count in known if count != effect.pairs]
    return number(effect.pairs) + (f" ({', '.join(fewer)})" if fewer else "")


def _range(values: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    return "" if values is None or values[0] == values[1] else " to ".join(map(shown, values))


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and isfinite(value) else None


def _visible(value: Any) -> Any:
    """A value with all texts in it escaped as `visible` does, but for what is HTML already."""
    if isinstance(value, dict):
        return {key: _visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(item) for item in value]
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> str:
    """Of a script or a style, as a Content-Security-Policy names it: nothing else runs, whatever got into the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
