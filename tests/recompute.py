"""Recomputes the report of a sweep from what its points have left, by other code than the report's.

    python tests/recompute.py SWEEP             # a sweep's folder, whose results lie in the root above it

Scores come from the result files in mteb's layout, found by the fingerprint in each point's record; times and counts from
the records. What is compared: every figure of report.csv, and every cell of the table in report.html.
"""

from __future__ import annotations

import csv
import html
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any


def check(sweep: Path) -> int:
    """Checks a report; returns how many figures were compared.

    Raises:
        AssertionError: naming a figure that is not what the files say.
    """
    root = next(folder for folder in sweep.parents if (folder / "results").is_dir())
    runs = [json.loads(path.read_text()) for path in sweep.glob("*/run.json")]
    runs.sort(key=lambda run: run["point"])
    with (sweep / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows] == [str(run["point"]) for run in runs]
    expected = [expect(root, run) for run in runs]
    shared = [name for name in expected[0]["scores"] if all(name in one["scores"] for one in expected if one["scores"])]
    kinds = defaultdict(list)
    for run in runs:
        for task in run["tasks"]:
            if task["name"] in shared and task["name"] not in kinds[task["type"]]:
                kinds[task["type"]].append(task["name"])
    speeds = measured(runs)
    baseline = over(expected[0], shared)
    cells = table(sweep / "report.html")
    count = 0
    for at, (row, one, run) in enumerate(zip(rows, expected, runs, strict=True)):
        mean = over(one, shared)
        figures = {name: one["scores"].get(name) for name in one["scores"]}
        figures |= {"mean": mean, "difference": None if None in (mean, baseline) else mean - baseline}
        figures |= {f"mean {kind}": over(one, names) for kind, names in kinds.items() if len(kinds) > 1}
        figures |= dict(zip(("texts_per_second", "tokens_per_second"), speeds[at], strict=True))
        figures |= {
            key: one[key] for key in ("computed", "stored", "engine_start_seconds", "seconds", "peak_memory_mb")
        }
        for name, value in figures.items():
            found = float(row[name]) if row[name] else None
            assert same(found, value), (row["point"], name, found, value)
            count += 1
        shown = cells[row["point"]]
        for column, (name, form) in SHOWN.items():
            if column in shown:
                value = figures[name]
                assert shown[column] == ("" if value is None else form(value)), (row["point"], column, shown[column])
                count += 1
        for name, value in one["scores"].items():
            if name in shown:
                assert shown[name] == ("failed" if value is None else f"{value:.5f}"), (row["point"], name, shown[name])
                count += 1
        failures = sum(task["failure"] is not None for task in run["tasks"]) + (run["failure"] is not None)
        assert bool(row["failures"]) == bool(failures) == (row["status"] == "failed")
    check_effects(sweep, rows)
    return count


# What the page calls a figure, and how it shows it.
SHOWN: dict[str, tuple[str, Any]] = {
    "mean score": ("mean", "{:.5f}".format),
    "difference": ("difference", lambda value: f"{round(value, 5) + 0.0:+.5f}"),
    "texts/s": ("texts_per_second", "{:,.0f}".format),
    "tokens/s": ("tokens_per_second", "{:,.0f}".format),
    "computed": ("computed", "{:,}".format),
    "engine start, s": ("engine_start_seconds", "{:,.1f}".format),
    "seconds": ("seconds", "{:,.1f}".format),
    "peak MiB": ("peak_memory_mb", "{:,.0f}".format),
}


def expect(root: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What the files say of one point."""
    scores = {}
    for task in run["tasks"]:
        files = list(root.glob(f"results/*/*/experiments/settings_{run['fingerprint']}/{task['name']}.json"))
        if task["status"] == "failed":
            scores[task["name"]] = None
            continue
        (file,) = files
        entries = [one for split in json.loads(file.read_text())["scores"].values() for one in split]
        scores[task["name"]] = fmean(entry["main_score"] for entry in entries)
    engine = run["engine"]
    return {
        "scores": scores,
        "computed": total(run, "computed"),
        "stored": total(run, "stored"),
        "engine_start_seconds": engine["seconds"] if engine.get("opened") else None,
        "seconds": run["seconds"],
        "peak_memory_mb": sum(run["peak_memory_mb"].values()) or None,
    }


def total(run: dict[str, Any], figure: str) -> int | None:
    known = [value for task in run["tasks"] if (value := figures(task).get(figure)) is not None]
    return sum(known) if known else None


def figures(task: dict[str, Any]) -> dict[str, Any]:
    if task["status"] == "reused" and task.get("measured"):
        return dict(task["measured"])
    return {**task, "seconds": task["seconds"].get("encode")}


def measured(runs: list[dict[str, Any]]) -> list[tuple[float | None, float | None]]:
    """Texts and tokens a second: a point's own where it computed half of its texts, else its engine's first one."""
    own: list[tuple[float, float] | None] = []
    for run in runs:
        of = [figures(task) for task in run["tasks"] if task["main_score"] is not None]
        worked = [one for one in of if one["computed"] and one["seconds"]]
        computed, stored = (sum(one.get(key) or 0 for one in of) for key in ("computed", "stored"))
        enough = (
            worked
            and 2 * computed >= computed + stored
            and 2 * sum(one["computed"] is not None for one in of) >= len(of)
        )
        seconds = sum(one["seconds"] for one in worked)
        own.append((computed / seconds, sum(one["tokens"] for one in worked) / seconds) if enough else None)
    engines = [json.dumps(run["settings"].get("engine"), sort_keys=True) for run in runs]
    found = []
    for engine, one in zip(engines, own, strict=True):
        others = (other for key, other in zip(engines, own, strict=True) if key == engine and other)
        found.append(one or next(others, (None, None)))
    return found


def over(one: dict[str, Any], names: list[str]) -> float | None:
    values = [one["scores"].get(name) for name in names]
    return fmean(values) if values and None not in values else None


def same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)


def table(page: Path) -> dict[str, dict[str, str]]:
    """The cells of the page's table of points: point to header to text."""
    text = page.read_text()
    header, body = re.search(r"<thead>(.*?)</thead>\s*<tbody>(.*?)</tbody>", text, re.S).groups()  # type: ignore[union-attr]
    names = [plain(cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", header, re.S)]
    found = {}
    for line in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S):
        cells = [plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S)]
        found[cells[0].split()[0]] = dict(zip(names, cells, strict=True))
    return found


def plain(cell: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()


def check_effects(sweep: Path, rows: list[dict[str, str]]) -> None:
    """Recomputes the marginal effects of report.md by comparing every two points."""
    lines = (sweep / "report.md").read_text().splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith("## Effects")), None)
    columns = list(rows[0])[3 : list(rows[0]).index("mean")]
    if begin is None:
        assert not columns or len(rows) == 1
        return
    for line in lines[begin + 4 :]:
        if not line.startswith("|"):
            break
        column, value, against, pairs, *shown = [cell(text) for text in re.split(r"(?<!\\)\|", line)[1:-1]]
        found = [
            (one, other)
            for one in rows
            for other in rows
            if cell(one[column]) == value and cell(other[column]) == against
            and all(one[name] == other[name] for name in columns if name != column)
        ]  # fmt: skip
        assert len(found) == int(pairs), line
        scores = [float(one["mean"]) - float(other["mean"]) for one, other in found if one["mean"] and other["mean"]]
        ratios = [
            float(one["texts_per_second"]) / float(other["texts_per_second"])
            for one, other in found
            if all(row["measured_in"] == row["point"] for row in (one, other))
        ]
        spread = [fmean(scores), min(scores), max(scores)] if scores else []
        expected = [f"{round(value, 5) + 0.0:+.5f}" for value in spread]
        assert [text for text in shown[:3] if text] == expected, (line, expected)
        spread = [math.exp(fmean(map(math.log, ratios))), min(ratios), max(ratios)] if ratios else []
        expected = [f"x{value:.2f}" for value in spread]
        assert [text for text in shown[3:] if text] == expected, (line, expected)


def cell(text: str) -> str:
    return text.strip("` ").replace("\\|", "|")


if __name__ == "__main__":
    print(f"{check(Path(sys.argv[1]).absolute())} figures are what the files say")
