"""The charts of a comparison: what each shows, and that the page and the pictures are made of the same definition."""

from __future__ import annotations

import itertools
import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comparisons import comparison, equal_points, mixed_points, points
from mteb_vllm.report.charts import charts, picture, specifications, write_charts
from mteb_vllm.report.charts.style import DARK, INK, PAPER, STEPS, VEGA_LITE, dark_css, labels_of, placed
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.page import page

BOTH = ["quality_speed", "task_differences"]
VEGA = Path(__file__).parents[2] / "src" / "mteb_vllm" / "report" / "vega.js"


def title_of(chart: dict[str, Any]) -> str:
    """Everything that is written above a chart in a wide window."""
    (wide,) = re.findall(r"^narrow \? \[.*\] : (\[.*\])$", chart["title"]["text"]["expr"])
    return " ".join(json.loads(wide))


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (comparison(12), BOTH),
        (comparison(300, tasks=60, failed=12), BOTH),
        (comparison(9, reranked=True), BOTH),
        (comparison(1), BOTH[:1]),
        (comparison(3, speeds=False), BOTH[1:]),
        (comparison(3, failed=3), []),
        (comparison(2, failed=1), BOTH[:1]),
        (compare(mixed_points()), BOTH[1:]),
        (compare(points(1), epsilon=0), BOTH[:1]),
        (compare(equal_points(4), epsilon=0), BOTH),
    ],
)
def test_draws_what_there_is_to_draw(of: Comparison, names: list[str], tmp_path: Path) -> None:
    for chart in charts(of).values():
        chart.to_dict()  # raises where a part is not Vega-Lite
    folder = tmp_path / "new" / "folder"
    written = write_charts(specifications(of), folder)
    assert [path.stem for path in written] == names
    assert sorted(path.stem for path in tmp_path.rglob("*.*")) == names, "nothing else is left behind"
    for path in written:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.read_bytes().startswith(b"\x89PNG") and width >= 1200 and 200 <= height <= 4000


def test_a_picture_and_the_page_are_made_of_the_same_specification(tmp_path: Path) -> None:
    of = comparison(12, failed=1)
    drawn = specifications(of)
    written = write_charts(drawn, tmp_path)
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page(of, [], "A sweep", drawn), re.DOTALL
    )
    on_page = json.loads(found)["charts"]
    assert list(on_page) == [path.stem for path in written] == BOTH
    for path in written:
        assert path.read_bytes() == picture(on_page[path.stem])


def test_no_picture_of_an_earlier_report_stays(tmp_path: Path) -> None:
    write_charts(specifications(comparison(3)), tmp_path)
    (tmp_path / "mine.png").touch()
    assert [path.stem for path in write_charts(specifications(comparison(3, speeds=False)), tmp_path)] == BOTH[1:]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["mine", *BOTH[1:]]


def test_any_words_can_be_drawn(tmp_path: Path) -> None:
    odd = ["_x", "$\\frac{", "<b>|\n\n", "\u202e\u05e9\u05dc\u05d5\u05dd 🚀 日本", "", "a" * 5000, "7", "8", "9", "10"]
    of = compare(points(10, axes={"prompts.query": odd, "a[b].c'd\"": ["x"]}))
    drawn = specifications(of)
    assert len(write_charts(drawn, tmp_path)) == 2 and "\u202e" not in json.dumps(drawn, ensure_ascii=False)


def test_shortened_emoji_can_be_drawn(tmp_path: Path) -> None:
    """Vega shortens a label between the two halves of a surrogate pair."""
    odd = ["\U0001f50d" * length for length in (20, 21, 40, 41, 60, 61)]
    drawn = specifications(compare(points(6, axes={"prompts.query": odd})))
    assert len(write_charts(drawn, tmp_path)) == 2 and odd[0] in json.dumps(drawn, ensure_ascii=False)


def test_a_chart_that_cannot_be_drawn_costs_only_its_picture(tmp_path: Path) -> None:
    drawn = {**specifications(comparison(3)), "throughput": {"mark": "nonsense"}}
    (tmp_path / "throughput.png").touch()
    assert [path.stem for path in write_charts(drawn, tmp_path)] == BOTH
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(BOTH)


def test_shows_every_point_the_front_and_the_names() -> None:
    of = comparison(12)
    drawn = specifications(of)["quality_speed"]
    rows = drawn["datasets"]["points"]
    assert {(one["point"], one["speed"], one["mean"]) for one in rows} == {
        (row.point.name, row.speed.texts, row.mean) for row in of.rows if row.speed
    }
    assert {one["point"] for one in rows if one["front"]} == {row.point.name for row in of.rows if row.on_front}
    assert {one["role"] for one in rows if "role" in one} == {"best", "recommended", "baseline"}
    assert {one["point"] for one in rows if not one["own"]} == {row.point.name for row in of.rows if row.speed_of_other}
    title = title_of(drawn)
    assert (
        "Pareto front" in title and "within 0.001 of the best" in title and "Hollow: speed measured in another" in title
    )


def test_counts_what_it_cannot_show() -> None:
    title = title_of(specifications(comparison(12, failed=2))["quality_speed"])
    assert "Not in the plot: 2 without a mean (a task failed, is missing or has no score)." in title


def scored(*means: float, without_speed: int = 0) -> Comparison:
    """Compare points with these means; the first `without_speed` of them have no speed."""
    rows = [
        replace(
            one,
            engine=str(at),
            tasks=[
                replace(task, score=mean, **({"computed": None, "seconds": None} if at < without_speed else {}))
                for task in one.tasks
            ],
        )
        for at, (one, mean) in enumerate(zip(equal_points(len(means)), means, strict=True))
    ]
    return compare(rows)


@pytest.mark.parametrize(("without_speed", "green"), [(0, True), (1, False)])
def test_green_means_near_the_best_of_all_points_even_if_that_has_no_known_speed(
    without_speed: int, green: bool
) -> None:
    drawn = specifications(scored(0.8, 0.7, 0.7, without_speed=without_speed))["quality_speed"]
    title = title_of(drawn)
    assert ("Green" in title) == green == any(layer["mark"]["type"] == "rect" for layer in drawn["layer"])
    missing = "Not in the plot: 1 without a known speed. No point within 0.001 of the best has a known speed."
    assert (missing in title) != green


def test_green_ends_at_the_best_where_only_a_point_just_below_it_has_a_speed() -> None:
    drawn = specifications(scored(0.7005, 0.7, without_speed=1))["quality_speed"]
    (band,) = [layer for layer in drawn["layer"] if layer["mark"]["type"] == "rect"]
    assert drawn["datasets"][band["data"]["name"]] == [{"low": pytest.approx(0.6995), "best": pytest.approx(0.7005)}]
    drawn_points = next(layer for layer in drawn["layer"] if layer.get("name") == "points")
    low, high = drawn_points["encoding"]["y"]["scale"]["domain"]
    assert low < 0.6995 and high > 0.7005


@pytest.mark.parametrize(
    ("names", "wide", "small"),
    [(["a", "b", "c"], 0, 0), (["one", "my-model", "org/x", "y"], 0, -90), (["a-long-name-of-a-point"] * 8, -90, -90)],
)
def test_names_of_points_are_vertical_only_where_they_may_not_fit(names: list[str], wide: int, small: int) -> None:
    rows = [
        replace(one, name=f"{name}{at}")
        for at, (one, name) in enumerate(zip(equal_points(len(names)), names, strict=True))
    ]
    axis = next(
        layer for layer in specifications(compare(rows))["task_differences"]["layer"] if layer.get("name") == "cells"
    )["encoding"]["x"]["axis"]
    assert axis["labelAngle"]["expr"] == f"narrow ? {small} : {wide}"
    sides = {0: '"center"', -90: '"left"'}
    assert axis["labelAlign"]["expr"] == f"narrow ? {sides[small]} : {sides[wide]}"


def test_a_setting_with_more_values_than_colours_keeps_one_for_the_others() -> None:
    of = compare(points(20, axes={"prompts.query": [f"p{at}" for at in range(20)]}))
    params = {one["name"]: one for one in specifications(of)["quality_speed"]["params"]}
    assert params["kinds"]["value"]["prompts.query"][-1] == "11 other values", "two of the 20 points have no speed"
    assert len(params["kinds"]["value"]["prompts.query"]) == 8


def test_all_points_but_the_baseline_are_in_the_heat_map_the_best_first() -> None:
    of = comparison(12, tasks=6)
    cells = specifications(of)["task_differences"]["datasets"]["cells"]
    ranked = sorted((row for row in of.rows if row.point.name != of.baseline), key=lambda row: -(row.mean or 0))
    assert list(dict.fromkeys(one["point"] for one in cells)) == [row.point.name for row in ranked]
    base = of.rows[0]
    for one in cells:
        row = next(row for row in of.rows if row.point.name == one["point"])
        own, against = row.scores[one["task"]], base.scores[one["task"]]
        assert own is not None and against is not None
        assert one["difference"] == pytest.approx(own - against, abs=1e-6)
    assert len(cells) == 11 * 6


def test_tasks_in_which_points_differ_most_stand_first() -> None:
    of = comparison(12, tasks=6)

    def spread(task: str) -> float:
        scores = [row.scores[task] or 0 for row in of.rows]
        return max(scores) - min(scores)

    cells = specifications(of)["task_differences"]["datasets"]["cells"]
    assert list(dict.fromkeys(one["task"] for one in cells)) == sorted(of.tasks, key=spread, reverse=True)


def test_many_points_share_columns_and_none_is_left_out() -> None:
    of = comparison(300, tasks=2)
    data = specifications(of)["task_differences"]["datasets"]
    assert len(data["columns"]) == 60 and len(data["cells"]) == 120
    members = [name for column in data["columns"] for name in column["members"]]
    assert sorted(members, key=int) == [str(at) for at in range(1, 300)]
    first = data["columns"][0]["members"]
    task = data["cells"][0]["task"]
    off = [row.scores[task] - of.rows[0].scores[task] for row in of.rows if row.point.name in first]  # type: ignore[operator]
    assert data["cells"][0]["difference"] == pytest.approx(sum(off) / len(off), abs=1e-6)


def test_a_score_that_is_missing_has_no_cell_and_a_task_without_a_baseline_is_named() -> None:
    made = points(3)
    made[0].tasks[0] = replace(made[0].tasks[0], score=None, failed=True)
    made[2].tasks[1] = replace(made[2].tasks[1], score=float("nan"))
    drawn = specifications(compare(made))["task_differences"]
    names = [task.name for task in made[1].tasks]
    assert {(one["point"], one["task"]) for one in drawn["datasets"]["cells"]} == {
        ("1", names[1]), ("1", names[2]), ("2", names[2])
    }  # fmt: skip
    title = title_of(drawn)
    assert "No colour: no score." in title and "Left out: 1 task without a score for the baseline" in title


def test_labels_lie_on_no_other_and_on_no_mark() -> None:
    places = [(0.1, 0.5, "64"), (0.12, 0.5, "32"), (0.9, 0.5, "a longer name"), (0.9, 0.51, "another longer name")]
    for size, width in (("narrow", 280), ("wide", 720)):
        boxes = []
        for (x, y, text), spots in zip(places, placed(places), strict=True):
            if spots[size] is None:
                continue
            dx, dy, align = spots[size]
            long = 7 * len(text)
            left = x * width + dx - {"left": 0, "center": long / 2, "right": long}[align]
            boxes.append((left, left + long, 340 * (1 - y) + dy))
        assert len(boxes) >= 3
        for (a, b, up), (c, d, high) in itertools.combinations(boxes, 2):
            assert b <= c or d <= a or abs(up - high) >= 12


def test_a_label_lies_on_a_line_only_if_there_is_no_other_place() -> None:
    mark, line = (0.5, 0.5, "64"), [(at / 100, 0.5) for at in range(101)]
    (right,), (above,) = placed([mark]), placed([mark], lines=line)
    assert right["wide"] == [11, 0, "left"] and above["wide"] == [0, -14, "center"]
    everywhere = [(x / 100, y / 50) for x in range(101) for y in range(51)]
    assert placed([mark], lines=everywhere) == [right]


def test_the_legend_names_the_setting() -> None:
    drawn = specifications(comparison(6, axes={"engine.dtype": ["a", "b"], "prompts.query": ["q: ", "", "x"]}))
    (points,) = [layer for layer in drawn["quality_speed"]["layer"] if layer.get("name") == "points"]
    labels = {points["encoding"][channel]["legend"]["labelExpr"] for channel in ("fill", "stroke", "shape")}
    assert len(labels) == 1 and "peek(split(colour, '.')) + '='" in labels.pop()


def test_different_values_have_different_labels() -> None:
    assert list(labels_of(["a" * 90, "a" * 80, "", "b\nc"]).values()) == [
        "a" * 59 + "…",
        "a" * 59 + "… (2)",
        "(not set)",
        "b c",
    ]


def _contrast(one: str, other: str) -> float:
    """Contrast as WCAG 2 has it (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_figures_can_be_read_on_every_colour_of_the_heat_map() -> None:
    assert min(_contrast(INK, step) for step in STEPS) >= 4.5
    assert min(_contrast(DARK[INK], DARK[step]) for step in STEPS) >= 4.5


def test_every_colour_of_a_chart_has_a_dark_one() -> None:
    used = set(
        re.findall(
            r'"(#[0-9a-fA-F]{3,8})"', json.dumps([specifications(comparison(12)), specifications(comparison(300))])
        )
    )
    assert (
        PAPER in used and STEPS[0] in used and used <= set(DARK) and all(f'fill="{one}"' in dark_css() for one in used)
    )


def test_the_packages_javascript_is_that_of_the_installed_converter() -> None:
    import altair
    import vl_convert

    text = VEGA.read_text(encoding="utf-8")
    assert f"vl-convert-python {vl_convert.__version__}" in text.split("*/")[0]
    assert f"Vega {vl_convert.get_vega_version()}, Vega-Lite {altair.SCHEMA_VERSION[1:]}" in text.split("*/")[0]
    assert altair.SCHEMA_VERSION.startswith(f"v{VEGA_LITE}.")


@pytest.mark.slow
def test_the_packages_javascript_is_what_the_converter_makes() -> None:
    import vl_convert

    assert vl_convert.javascript_bundle(vl_version=VEGA_LITE) in VEGA.read_text(encoding="utf-8")


def test_the_module_imports_neither_altair_nor_the_converter() -> None:
    script = "import sys, mteb_vllm.report.charts; assert not {'altair', 'vl_convert'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
