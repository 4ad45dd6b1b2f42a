"""Recomputes the report of a sweep from the files of its points, with code of its own.

    python tests/recompute.py SWEEP             # a sweep's folder, whose results lie in the root above it

Scores come from the result files in mteb's layout, found by the fingerprint in each point's record; times and counts come
from the records. Compared are every figure of report.csv, every cell of the table in report.html, and the order of the rows.
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
from statistics import fmean, median
from typing import Any


def check(sweep: Path) -> int:
    """Check a report; return the number of figures that were compared.

    Raises:
        AssertionError: naming a figure that differs from the files.
    """
    root = next(folder for folder in sweep.parents if (folder / "results").is_dir())
    runs = [json.loads(path.read_text()) for path in sweep.glob("*/run.json")]
    runs.sort(key=lambda run: run["point"])
    with (sweep / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    check_order(rows, list(table(sweep / "report.html")))
    rows.sort(key=lambda row: int(row["point"]))
    assert [row["point"] for row in rows] == [str(run["point"]) for run in runs]
    expected = [expect(root, run) for run in runs]
    shared = in_all(runs)
    kinds = defaultdict(list)
    for run in runs:
        for task in run["tasks"]:
            if task["name"] in shared and task["name"] not in kinds[task["type"]]:
                kinds[task["type"]].append(task["name"])
    speeds = measured(runs, shared)
    baseline = over(expected[0], shared)
    any_cached = any(map(is_cached, runs))
    cells = table(sweep / "report.html")
    count = 0
    for at, (row, one, run) in enumerate(zip(rows, expected, runs, strict=True)):
        mean = over(one, shared)
        figures = {name: one["scores"].get(name) for name in one["scores"]}
        figures |= {"mean": mean, "difference": None if None in (mean, baseline) else mean - baseline}
        figures |= {f"mean {kind}": over(one, names) for kind, names in kinds.items() if len(kinds) > 1}
        figures |= dict(zip(("texts_per_second", "tokens_per_second", "measured_on"), speeds[at][:3], strict=True))
        assert row["measured_in"] == speeds[at][3], (row["point"], row["measured_in"], speeds[at])
        figures |= reranking(run, shared)
        figures |= {key: one[key] for key in TECHNICAL}
        figures |= of_throughput(run, runs) | of_parity(run, runs, speeds[at])
        check_words(row, run, timed_on(run, runs))
        for name, value in figures.items():
            if name not in row and name in OPTIONAL:
                continue
            found = float(row[name]) if row[name] else None
            assert same(found, value), (row["point"], name, found, value)
            count += 1
        shown = cells[row["point"]]
        for column, (name, form) in SHOWN.items():
            if column in shown:
                if column == "tokens/s" and not any(row["tokens_per_second"] for row in rows) and not any_cached:
                    name = "saturated_tokens_per_second"
                value = figures.get(name)
                missing = "cached" if one["cached"] and column in MEASURED else ""
                assert shown[column] == (missing if value is None else form(value)), (
                    row["point"],
                    column,
                    shown[column],
                )
                count += 1
        for name, value in one["scores"].items():
            if name in shown:
                assert shown[name] == ("failed" if value is None else f"{value:.5f}"), (row["point"], name, shown[name])
                count += 1
        failures = sum(task["failure"] is not None for task in run["tasks"]) + (run["failure"] is not None)
        assert bool(row["failures"]) == bool(failures) == (row["status"] == "failed")
    check_effects(sweep, rows)
    return count


# The status of a result that was read from the results store.
CACHED = "cached"

TECHNICAL = ("computed", "stored", "cached_results", "engine_start_seconds", "wall_time_seconds", "peak_memory_mb")

# The columns of the page that say "cached" where all results of a point were.
MEASURED = ("texts/s", "pairs/s", "tokens/s", "engine start (s)", "peak memory (MiB)")

# The columns of the page: the figure, and its format.
SHOWN: dict[str, tuple[str, Any]] = {
    "mean score": ("mean", "{:.5f}".format),
    "difference": ("difference", lambda value: f"{round(value, 5) + 0.0:+.5f}"),
    "texts/s": ("texts_per_second", "{:,.0f}".format),
    "tokens/s": ("tokens_per_second", "{:,.0f}".format),
    "computed": ("computed", "{:,}".format),
    "engine start (s)": ("engine_start_seconds", "{:,.1f}".format),
    "wall time (s)": ("wall_time_seconds", "{:,.1f}".format),
    "peak memory (MiB)": ("peak_memory_mb", "{:,.0f}".format),
    "pairs/s": ("texts_per_second", "{:,.0f}".format),
    "first stage": ("first_stage", "{:.5f}".format),
    "reranked": ("mean", "{:.5f}".format),
    "gain": ("gain", lambda value: f"{round(value, 5) + 0.0:+.5f}"),
    "ceiling": ("ceiling", "{:.5f}".format),
    "share of ceiling": ("share", "{:.1%}".format),
    "share of possible gain": ("gain_share", "{:.1%}".format),
    "requests/s": ("saturated_requests_per_second", lambda value: f"{value:,.{1 if value < 100 else 0}f}"),
    "offline tokens/s": ("saturated_tokens_per_second", "{:,.0f}".format),
    "to baseline": ("speed_ratio", "x{:.2f}".format),
    "p50 at batch 1 (ms)": ("p50_ms_at_batch_1", "{:,.1f}".format),
    "MFU": ("mfu", lambda value: f"{value:.1%}" + " (invalid)" * (value > 1)),
    "spread": ("saturated_spread", "{:.1%}".format),
    "device memory (MiB)": ("device_memory_mb", "{:,.0f}".format),
    "worst difference": ("worst_score_difference", lambda value: f"{round(value, 5) + 0.0:+.5f}"),
    "lowest cosine": ("worst_cosine", "{:.6f}".format),
}

# Figures that only some reports have.
THROUGHPUT = (
    "saturated_requests_per_second", "saturated_tokens_per_second", "speed_ratio", "p50_ms_at_batch_1", "mfu",
    "roofline_tokens_per_second", "saturated_spread", "device_memory_mb",
)  # fmt: skip
PARITY = ("worst_score_difference", "worst_cosine", "parity_tokens_per_second")
RERANKING = ("first_stage", "gain", "ceiling", "share", "gain_share")
OPTIONAL = (*RERANKING, *THROUGHPUT, *PARITY)

# After these failures, a run's record may lack the tasks that it had not begun.
ENDED = ("killed", "timeout", "crash", "segmentation_fault", "engine_start", "engine_died",
         "out_of_memory_loading", "out_of_memory_encoding")  # fmt: skip


def in_all(runs: list[dict[str, Any]]) -> list[str]:
    """The tasks of all points, without those that ended early, whose records may lack some."""
    some = [run for run in runs if run["tasks"]]
    complete = [run for run in some if not ended_early(run)] or some
    names = dict.fromkeys(task["name"] for run in runs for task in run["tasks"])
    return [name for name in names if all(any(task["name"] == name for task in run["tasks"]) for run in complete)]


def ended_early(run: dict[str, Any]) -> bool:
    failures = [one for one in (run["failure"], *(task["failure"] for task in run["tasks"])) if one]
    names = [task["name"] for task in run["tasks"]]
    of_run = [one for one in failures if one.get("task") is None]
    return bool(of_run) or any(one["kind"] in ENDED and one["task"] not in names for one in failures)


def reranking(run: dict[str, Any], shared: list[str]) -> dict[str, float | None]:
    """The means over the shared tasks of first stage, gain, ceiling and its share, and the share of the possible gain."""
    tasks = [task for task in run["tasks"] if task["name"] in shared]

    def over_tasks(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(shared) else None

    keys = ("first_stage", "main_score", "ceiling")
    first, score, ceiling = (over_tasks([task.get(key) for task in tasks]) for key in keys)
    known = [task for task in tasks if task["main_score"] is not None and task.get("ceiling")]
    room = ceiling - first if first is not None and ceiling is not None else 0.0
    return {
        "first_stage": first,
        "ceiling": ceiling,
        "gain": score - first if score is not None and first is not None else None,
        "share": over_tasks([task["main_score"] / task["ceiling"] for task in known]),
        "gain_share": (score - first) / room if score is not None and first is not None and room > 1e-9 else None,
    }


def is_cached(run: dict[str, Any]) -> bool:
    """Whether all results of a run that has some were cached."""
    done = {task["status"] for task in run["tasks"] if task["status"] != "failed"}
    return not run.get("throughput") and done == {CACHED}


def idle(run: dict[str, Any]) -> bool:
    """Whether a run with tasks computed none of them."""
    return bool(run["tasks"]) and not run.get("throughput") and {task["status"] for task in run["tasks"]} == {CACHED}


def check_order(rows: list[dict[str, str]], page: list[str]) -> None:
    """Check that CSV and page have the same order: of points with means, the best first; then those without."""
    assert [row["point"] for row in rows] == page
    means = [float(row["mean"]) for row in rows if row["mean"] and not row.get("parity")]
    assert means == sorted(means, reverse=True), means
    scored = [bool(row["mean"]) for row in rows if not row.get("parity") and not row.get(THROUGHPUT[0])]
    assert scored == sorted(scored, reverse=True), "points without a mean come last"


def expect(root: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The figures of one point."""
    scores = {}
    for task in run["tasks"]:
        files = list(root.glob(f"results/*/*/experiments/settings_{run['fingerprint']}/{task['name']}.json"))
        if task["status"] == "failed":
            scores[task["name"]] = None
            continue
        if run.get("parity"):
            scores[task["name"]] = task["main_score"]
            continue
        (file,) = files
        entries = [one for split in json.loads(file.read_text())["scores"].values() for one in split]
        scores[task["name"]] = fmean(entry["main_score"] for entry in entries)
    engine = run["engine"]
    memory = (run["throughput"] or {}).get("memory_mb") or run["peak_memory_mb"] or {}
    return {
        "scores": scores,
        "computed": total(run, "computed"),
        "stored": total(run, "stored"),
        "cached": is_cached(run),
        "cached_results": sum(task["status"] == CACHED for task in run["tasks"]),
        "engine_start_seconds": engine["seconds"] if engine and engine.get("opened") else None,
        "wall_time_seconds": run["seconds"],
        "peak_memory_mb": None
        if idle(run)
        else sum(memory.get(key, 0) for key in ("process", "engine_processes")) or None,
    }


def of_throughput(run: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """The measurements of a throughput run, from its steps and repeats."""
    measured = run.get("throughput")
    if not measured:
        return dict.fromkeys(THROUGHPUT)
    requests, tokens = saturated(run)
    alike = len(runs) > 1 and (runs[0].get("throughput") or {}).get("unit") == measured["unit"]
    rate = saturated(runs[0])[0] if alike else None
    roofline = (
        measured["roofline"].get("flops_per_second")
        and measured["roofline"]["flops_per_second"] / measured["roofline"]["flops_per_token"]
    )
    alone = [step["latency_ms"]["p50"] for step in measured["steps"] if step["batch_size"] == 1]
    return {
        "saturated_requests_per_second": requests,
        "saturated_tokens_per_second": tokens,
        "speed_ratio": requests / rate if rate else None,
        "p50_ms_at_batch_1": alone[0] if alone else None,
        "mfu": tokens / roofline if roofline else None,
        "roofline_tokens_per_second": roofline,
        "saturated_spread": measured["saturated"]["spread"],
        "device_memory_mb": measured["memory_mb"]["device"],
    }


def saturated(run: dict[str, Any]) -> tuple[float, float]:
    """Requests and tokens per second of offline throughput."""
    measured = run["throughput"]
    rate = measured["requests"] / median(measured["saturated"]["seconds"])
    assert math.isclose(rate, measured["saturated"]["requests_per_second"], rel_tol=0.01), (run["point"], rate)
    return measured["saturated"]["requests_per_second"], measured["saturated"]["tokens_per_second"]


def of_parity(run: dict[str, Any], runs: list[dict[str, Any]], own: tuple[Any, ...]) -> dict[str, float | None]:
    """The deviations of a parity run from its reference, and the speed of its engine."""
    verdict = run.get("parity")
    if not verdict:
        return dict.fromkeys(PARITY)
    splits = [split for task in verdict["tasks"] for split in task["splits"]]
    cosines = [task["cosine"]["min"] for task in verdict["tasks"] if task["cosine"]]
    differences = sorted((split["engine"] - split["reference"] for split in splits), key=abs)
    timed = timed_on(run, runs)
    return {
        "worst_score_difference": differences[-1] if differences else None,
        "worst_cosine": min(cosines, default=None),
        "parity_tokens_per_second": saturated(timed)[1] if timed else own[1],
    }


def timed_on(run: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first throughput run with a run's engine."""
    engine = (run["engine"] or {}).get("fingerprint")
    timed = [one for one in runs if one.get("throughput") and one["engine"]["fingerprint"] == engine]
    return timed[0] if timed else None


def check_words(row: dict[str, str], run: dict[str, Any], timed: dict[str, Any] | None) -> None:
    """Check the words of parity: the verdict, the point that measured its speed, and the hint."""
    verdict = run.get("parity") or {}
    if verdict:
        assert row["parity"] == str(verdict["passed"]), (run["point"], row["parity"])
        assert row["parity_tokens_measured_in"] == (str(timed["point"]) if timed else row["measured_in"])
        says = verdict["hints"][0]["says"] if verdict["hints"] else ""
        assert row["hint"].endswith(says) and bool(row["hint"]) == bool(says), (run["point"], row["hint"])


def total(run: dict[str, Any], figure: str) -> int | None:
    """What a run computed or found in the embedding cache; 0 for cached results."""
    known = []
    for task in run["tasks"]:
        if task["status"] == CACHED:
            known.append(0)
        elif task.get(figure) is not None:
            known.append(task[figure])
    return sum(known) if known else None


def figures(task: dict[str, Any]) -> dict[str, Any]:
    if task["status"] == CACHED:
        return {}
    return {**task, "seconds": task["seconds"].get("encode")}


NOTHING = (None, None, None, "")


def measured(runs: list[dict[str, Any]], shared: list[str]) -> list[tuple[float | None, float | None, int | None, str]]:
    """Texts and tokens per second, the number of texts, and the point that measured them.

    A point's own speed is over the shared tasks, of each of which it must have computed half of the texts; else it is that of
    the first point with the same engine, unless all its results were cached or it has none. Without shared tasks it is over
    the point's tasks, and that of a point with the same ones.
    """
    own = []
    for run in runs:
        tasks = {task["name"]: figures(task) for task in run["tasks"]}
        names = shared or list(tasks)
        work = [tasks[name] for name in names if name in tasks and enough(tasks[name])]
        speed = NOTHING
        if names and len(work) == len(names):
            texts, tokens, seconds = (sum(one[key] or 0 for one in work) for key in ("computed", "tokens", "seconds"))
            speed = (texts / seconds, tokens / seconds, texts, str(run["point"]))
        own.append(speed)
    engines = [
        json.dumps([run["settings"].get("engine"), [] if shared else sorted(task["name"] for task in run["tasks"])])
        for run in runs
    ]
    found = []
    for run, engine, one in zip(runs, engines, own, strict=True):
        if "throughput" in run["config"]["pipeline"].get("_target_", ""):
            found.append(NOTHING)  # its texts are no task's
            continue
        scored = run.get("parity") or any(task.get("main_score") is not None for task in run["tasks"])
        if is_cached(run) or not scored:
            found.append(NOTHING)
            continue
        others = [other for key, other in zip(engines, own, strict=True) if key == engine and other != NOTHING]
        found.append(one if one != NOTHING else (others or [NOTHING])[0])
    return found


def enough(figures: dict[str, Any]) -> bool:
    computed, stored, seconds = (figures.get(key) or 0 for key in ("computed", "stored", "seconds"))
    return computed > 0 and seconds > 0 and computed >= stored


def over(one: dict[str, Any], names: list[str]) -> float | None:
    values = [one["scores"].get(name) for name in names]
    return fmean(values) if values and None not in values else None


def same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)


def table(page: Path) -> dict[str, dict[str, str]]:
    """The cells of the page's table of points, in its order: point to header to text."""
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
    """Recompute the effects of settings in report.md by comparing every two points."""
    lines = (sweep / "report.md").read_text().splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith("## Effects")), None)
    names = list(rows[0])
    columns = names[3 : names.index("first_stage" if "first_stage" in names else "mean")]
    if begin is None:
        assert not columns or len(rows) == 1
        return
    begin = next(at for at in range(begin, len(lines)) if lines[at].startswith("|"))
    header = [name.casefold() for name in cells_of(lines[begin])]
    places = {name: header.index(name) for name in ("setting", "value", "instead of", "pairs", "score", "speed")}
    assert header[places["score"] + 1 :][:2] == header[places["speed"] + 1 :][:2] == ["from", "to"], header
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        texts = cells_of(line)
        column, value, against, pairs = (texts[places[name]] for name in ("setting", "value", "instead of", "pairs"))
        found = [
            (one, other)
            for one in rows
            for other in rows
            if cell(one[column]) == value and cell(other[column]) == against
            and all(one[name] == other[name] for name in columns if name != column)
        ]  # fmt: skip
        assert len(found) == int(pairs.split()[0]), line
        scores = [float(one["mean"]) - float(other["mean"]) for one, other in found if one["mean"] and other["mean"]]
        ratios = [
            float(one["texts_per_second"]) / float(other["texts_per_second"])
            for one, other in found
            if all(row["measured_in"] == row["point"] for row in (one, other)) and one["unit"] == other["unit"]
        ]
        ratios += [
            float(one[THROUGHPUT[0]]) / float(other[THROUGHPUT[0]])
            for one, other in found
            if one.get(THROUGHPUT[0]) and other.get(THROUGHPUT[0]) and one["requests_are"] == other["requests_are"]
        ]
        # "2 (1 with scores, none with speeds)": only counts below that of all pairs are shown.
        for count, what in re.findall(r"(\d+|none) with (scores|speeds)", pairs):
            known = len(scores if what == "scores" else ratios)
            assert count == (str(known) if known else "none"), (line, what, known)
        spread = [fmean(scores), min(scores), max(scores)] if scores else []
        expected = [f"{round(value, 5) + 0.0:+.5f}" for value in spread]
        check_spread(texts[places["score"] :][:3], expected, line)
        spread = [math.exp(fmean(map(math.log, ratios))), min(ratios), max(ratios)] if ratios else []
        expected = [f"x{value:.2f}" for value in spread]
        # Equal within the repeats, or in both directions: then there is no ratio.
        repeated = [row["saturated_spread"] for pair in found for row in pair if row.get("saturated_spread")]
        noise = max(map(float, repeated), default=0.0)
        equal = bool(spread) and (spread[1] <= 1 <= spread[2] or min(spread[1], 1 / spread[2]) >= 1 - noise)
        if equal or expected[:1] == ["x1.00"]:
            assert texts[places["speed"]] == "no measurable difference", line
            texts[places["speed"]] = expected[0]
        check_spread(texts[places["speed"] :][:3], expected, line)


def check_spread(shown: list[str], expected: list[str], line: str) -> None:
    """Check a figure and its range, which may be missing for a single pair."""
    found = [text for text in shown if text]
    alone = len(set(expected)) == 1
    assert found == expected or (alone and found == expected[:1]), (line, expected)


def cells_of(line: str) -> list[str]:
    return [cell(text) for text in re.split(r"(?<!\\)\|", line)[1:-1]]


def cell(text: str) -> str:
    return text.strip("` ").replace("\\|", "|")


if __name__ == "__main__":
    print(f"{check(Path(sys.argv[1]).absolute())} figures are those of the files")
