"""What all pictures of a report are drawn on and with."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.util.escape import visible
from mteb_vllm.util.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, LINE, BAND = "#1d1f21", "#5a5f66", "#d9dce0", "#e4efe6"
# As in page.css and page.js; the last is for the values that are left.
STYLES = (
    ("#0b5fa5", "o"), ("#c4500a", "s"), ("#157a5b", "^"), ("#9c3587", "D"), ("#857000", "v"), ("#4b3fb5", "P"),
    ("#1a8499", "h"), ("#6d7278", "o"),
)  # fmt: skip
DPI = 160


def canvas(width: float, height: float, *widths: float) -> tuple[Figure, list[Axes]]:
    """Return a figure, in inches, with one plot or several side by side, of these relative widths."""
    # Imported late: it takes half a second. No pyplot: it keeps figures, and may ask for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    plots = list(figure.subplots(1, len(widths) or 1, squeeze=False, width_ratios=widths or None)[0])
    for axes in plots:
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(QUIET)
        axes.tick_params(which="both", colors=QUIET, labelsize=9, length=0)
    return figure, plots


def plain(words: str) -> str:
    """Return any words as matplotlib takes them: one short line, no formulas, and not hidden for a leading underscore."""
    line = " ".join(visible(words).split())
    line = line if len(line) <= 60 else line[:59] + "…"
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def write(path: Path, figure: Figure) -> Path:
    """Write a figure as PNG; a file that is there is replaced as a whole."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a prompt may be in any script
        figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())
    return path
