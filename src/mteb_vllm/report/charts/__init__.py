"""The charts of a report: each is defined once, as Vega-Lite, for both the page and the PNG files in its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.report.charts.measured import Curve, latency_throughput, reference_speed, rooflines, throughput_curves
from mteb_vllm.report.charts.scores import first_selected, left_out, quality_speed, roles_of, task_differences
from mteb_vllm.report.charts.style import Json, dark_css, picture, specification
from mteb_vllm.report.comparison import Comparison
from mteb_vllm.results.measurements import ThroughputRecord
from mteb_vllm.util.files import write_atomically

if TYPE_CHECKING:
    import altair as alt

logger = logging.getLogger(__name__)

__all__ = [
    "Json",
    "charts",
    "dark_css",
    "first_selected",
    "left_out",
    "picture",
    "roles_of",
    "specifications",
    "write_charts",
    "write_throughput",
]

NAMES = ("quality_speed", "task_differences", "throughput", "roofline", "reference_speed")


def charts(comparison: Comparison) -> dict[str, alt.LayerChart]:
    """Return the charts for which a comparison has figures, by name.

    `quality_speed` if a point has a mean and a speed and all speeds have the same unit, texts or pairs; `task_differences` if
    the baseline and another point have scores for the same task; `throughput` and `roofline` if a point measured throughput;
    `reference_speed` if a parity point has a speed.
    """
    curves = throughput_curves(comparison)
    selected = first_selected(comparison).point.name
    made = {
        "quality_speed": quality_speed(comparison),
        "task_differences": task_differences(comparison),
        "throughput": latency_throughput(curves, selected) if curves else None,
        "roofline": rooflines(curves, selected) if curves else None,
        "reference_speed": reference_speed(comparison),
    }
    return {name: chart for name, chart in made.items() if chart is not None}


def specifications(comparison: Comparison) -> dict[str, Json]:
    """Return the charts of a comparison as Vega-Lite, by name."""
    return {name: specification(chart) for name, chart in charts(comparison).items()}


def write_charts(drawn: Mapping[str, Json], folder: Path) -> list[Path]:
    """Write each chart that can be drawn to `<name>.png`, and remove the PNG files of an earlier report's other charts.

    Args:
        drawn: The specifications, by name.
        folder: The folder to write to.

    Raises:
        OSError: if the folder cannot be written to.
    """
    for name in NAMES:
        if name not in drawn:
            (folder / f"{name}.png").unlink(missing_ok=True)
    written = []
    for name, one in drawn.items():
        path = folder / f"{name}.png"
        try:
            content = picture(one)
        except ValueError:  # the page shows the chart nevertheless
            logger.exception("%s cannot be drawn", path)
            path.unlink(missing_ok=True)
            continue
        write_atomically(path, content)
        written.append(path)
    return written


def write_throughput(throughput: ThroughputRecord, folder: Path) -> None:
    """Draw one run's throughput into `throughput.png` and `roofline.png`.

    Args:
        throughput: The measurements of the run.
        folder: The folder to write to.

    Raises:
        OSError: if the folder cannot be written to.
    """
    if throughput.steps:
        curves = [Curve("", "", "", throughput, "", {})]
        made = {"throughput": latency_throughput(curves), "roofline": rooflines(curves)}
        write_charts({name: specification(chart) for name, chart in made.items()}, folder)
