"""Draw the charts of docs/measurements from the tables of its pages: `make charts`, or `python docs/charts.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mteb_vllm.report.charts.measured import Curve, latency_throughput
from mteb_vllm.report.charts.style import picture, specification
from mteb_vllm.results.measurements import Latency, Lengths, PhaseTimes, Saturated, Step, ThroughputRecord

PAGES = Path(__file__).resolve().parent / "measurements"
# Each chart: its page, the heading of its table, and the (mean) number of tokens per text.
CHARTS = {
    "cpu-dtypes": ("cpu.md", "dtypes", 64),
    "cpu-unpadding": ("cpu.md", "Unpadded and padded batches", 64),
    "gpu-minilm": ("gpu.md", "MiniLM, 2,048 texts: not limited by the GPU", 128),
    "gpu-qwen3": ("gpu.md", "A decoder with 0.47 billion parameters, 768 texts: limited by the GPU", 128),
}


def read_table(page: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table below a heading: header to cell."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*", section, re.M)
    )
    return [dict(zip(header, row, strict=True)) for row in rows]


def curves(rows: Sequence[dict[str, str]], tokens: int) -> list[Curve]:
    """Return a curve for each row, with its offline throughput and its median latency at each batch size.

    Args:
        rows: The rows of a table.
        tokens: The number of tokens per text; of varied lengths, the mean.
    """
    (column,) = (name for name in rows[0] if name.startswith("p50 at "))
    sizes = [int(size) for size in re.findall(r"\d+", column.partition(" at ")[2])]
    found = []
    for at, row in enumerate(rows):
        kind = row.get("lengths", "fixed")
        lengths = Lengths("fixed", tokens) if kind == "fixed" else Lengths("varied", tokens, "lognormal")
        steps = [
            _step(size, float(p50.replace(",", ""))) for size, p50 in zip(sizes, row[column].split(" / "), strict=True)
        ]
        offline = float(row["requests/s, offline"].replace(",", ""))
        saturated = Saturated(3, [], offline, offline * tokens, 0.0, 0.0, PhaseTimes(0.0, 0.0, 0.0))
        engine = ", ".join(row[key] for key in ("engine", "dtype") if len({one.get(key) for one in rows}) > 1)
        measured = ThroughputRecord("texts", 0, lengths, steps=steps, saturated=saturated)
        found.append(Curve(str(at), "", engine, measured, "", {}))
    return found


def _step(size: int, p50: float) -> Step:
    """Return the step of calls with one batch size, of which the table has the median latency, in ms."""
    rate = 1000 * size / p50
    return Step(size, 0, rate, 0.0, Latency(p50, p50, p50, p50), PhaseTimes(0.0, 0.0, 0.0), 0.0)


def main() -> None:
    """Draw all charts."""
    for name, (page, heading, tokens) in CHARTS.items():
        rows = read_table((PAGES / page).read_text(encoding="utf-8"), heading)
        (PAGES / f"{name}.png").write_bytes(picture(specification(latency_throughput(curves(rows, tokens)))))


if __name__ == "__main__":
    main()
