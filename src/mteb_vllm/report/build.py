"""Builds a report: reads and compares runs, shows the comparison, and writes it as Markdown, CSV, a page and charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.config.schema import ReportConfig
from mteb_vllm.errors import ConfigError, Mistake, StorageError
from mteb_vllm.report.answer import conclusion
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.header import title
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.failures import failures_from_unwritten
from mteb_vllm.util import disk
from mteb_vllm.util.files import shown_path, write_atomically
from mteb_vllm.util.garbage import garbage_collection_paused

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console


def build_report(runs: Sequence[str | Path], folder: Path, config: ReportConfig, console: Console) -> Comparison:
    """Compare runs, show the comparison, and write `report.md`, `report.csv`, `report.html` and the charts.

    Args:
        runs: Folders of sweeps, of runs, or of results in mteb's layout.
        folder: The folder of the report.
        config: The baseline, and how close to the best a point counts as good.
        console: Shows the tables and the conclusions.

    Raises:
        ConfigError: if one of `runs` holds no run and no result, or no point has the baseline's name.
        StorageError: if a file could not be written; the others are.
    """
    with garbage_collection_paused():
        return _build(runs, folder, config, console)


def _build(runs: Sequence[str | Path], folder: Path, config: ReportConfig, console: Console) -> Comparison:
    from mteb_vllm.report.charts import specifications, write_charts
    from mteb_vllm.report.page import page

    points = read_runs(runs)
    baseline = None if config.baseline is None else _find_baseline(config.baseline, [point.name for point in points])
    comparison = compare(points, baseline=baseline, epsilon=config.epsilon)
    print_comparison(console, comparison)
    with disk.collect_unwritten() as unwritten:
        with disk.attempt(folder / "report.md"):
            write_atomically(folder / "report.md", comparison_markdown(comparison))
        with disk.attempt(folder / "report.csv"):
            write_atomically(folder / "report.csv", comparison_csv(comparison))
        charts = specifications(comparison)
        with disk.attempt(folder / "report.html"):
            html = page(comparison, conclusion(comparison), title(comparison), charts)
            write_atomically(folder / "report.html", html)
        with disk.attempt(folder / "pictures"):
            write_charts(charts, folder)
    if unwritten:
        raise StorageError("; ".join(failure.message for failure in failures_from_unwritten(unwritten)))
    console.print_line(f"Report: {shown_path(folder / 'report.html')}")
    return comparison


def _find_baseline(wanted: str, names: Sequence[str]) -> str:
    """Return the point that `report.baseline` names, in full or by the end of its name: "3" for ".../10-15-02-112233/3".

    Raises:
        ConfigError: if it is none of the names, and the end of none or of several.
    """
    if wanted in names:
        return wanted
    found = [name for name in names if name.endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0]
    shown = found or names
    listed = ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
    what = f"{len(found)} points have this name" if found else "no point has this name"
    raise ConfigError([Mistake("report.baseline", what, f"Names: {listed}.", value=wanted)])
