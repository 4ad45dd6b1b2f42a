"""The page of a comparison: its content, its safety against hostile text, and its behaviour in a browser."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from comparisons import comparison, equal_points, failure, mixed_points, points, result_points
from mteb_vllm import report
from mteb_vllm.report.comparison import Comparison, Point, TaskScore, compare
from mteb_vllm.report.page import page, page_data
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.util.console import Console
from mteb_vllm.util.escape import visible

EVIL = '</script><img src=x onerror="document.title=1">|\n\u202e\u2028\u05e9\u05dc\u05d5\u05dd 🚀 {{ 7 * 7 }} &lt;'
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


VEGA = (Path(report.__file__).parent / "vega.js").read_text(encoding="utf-8")


def html(of: Comparison, *answer: str) -> str:
    return page(of, answer or ("The answer.",), "Sweep: MiniLM on the demo tasks")


def without_vega(text: str) -> str:
    """The page without Vega's own code, which holds addresses and elements of its own."""
    assert text.count(VEGA) == 1
    return text.replace(VEGA, "")


def data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(found))


def evil_points() -> list[Point]:
    made = points(2, axes={"prompts.query": [EVIL, "q: "], "engine.dtype": ["a"]})
    made[1].failures.append(failure(message=EVIL, log=[EVIL, EVIL]))
    return made


def test_prompts_and_logs_never_become_markup() -> None:
    text = without_vega(page(compare(evil_points()), [EVIL], EVIL))
    assert "<img" not in text and "onerror=" in unescape(text)
    assert text.count("<script") == text.count("</script>") == 3
    assert visible(EVIL) in [value for column in data_of(text)["values"] for value in column]
    assert "49" not in re.sub(r"<style>.*?</style>|<script.*", "", text, flags=re.DOTALL)


def test_loads_nothing_and_allows_nothing_to_be_loaded() -> None:
    text = without_vega(html(comparison(12, failed=2)))
    assert re.findall(r'(?:src|href|url\()="?[^"]*', text) == ['href="data:,']
    names = {
        "https://vega.github.io/schema/vega-lite/v6.4.1.json"
    }  # says which language a chart is in, and is not loaded
    assert set(re.findall(r"https?://[^\s\"']+", text)) == names
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]


def test_shows_every_point_and_figure_without_any_script() -> None:
    of = comparison(12)
    text = html(of, "One paragraph.", "Another.")
    static = unescape(text.split("<script")[0]).replace("<wbr>", "")
    for row in of.rows:
        assert f">{row.point.name}</button>" in static
        assert f">{row.mean:.5f}</td>" in static and f">{row.difference:+.5f}</td>" in static
        assert row.speed is not None and f">{row.speed.texts:,.0f}</td>" in static
        assert all(f">{score:.5f}</td>" in static for score in row.scores.values())
        assert all(f">{value}</td>" in static for value in row.settings)
    assert all(f'<dd dir="auto">{value}</dd>' in static for value in of.constants.values())
    parts = ("One paragraph.", "Another.", 'id="points"', "Identical in all points", 'id="quality_speed"')
    assert sorted(parts, key=static.index) == [*parts], "conclusions, scores, settings, charts"
    assert all(name in static for name in (*of.tasks, *of.columns, "+0.00000", "baseline"))
    assert "Effects of settings" in static and "embedding cache" in static


def test_rows_are_best_first_and_equal_failures_are_grouped() -> None:
    made = points(6, failed=2)
    made[3].failures.append(failure("another\nline", ["last words"]))
    of = compare(made)
    static = unescape(html(of).split("<script")[0])
    order = [int(at) for at in re.findall(r'<tr data-at="(\d+)"', static)]
    assert order == [*sorted(range(4), key=lambda at: -(of.rows[at].mean or 0)), 4, 5], (
        "3 has all scores, and then failed"
    )
    assert order == [int(row.point.name) for row in of.ranked]
    assert static.count('<details class="failure"') == 2
    assert "points 4, 5</summary>" in static and "point 3</summary>" in static
    assert "last words" in static and "another\nline" in static and "What to try: lower engine.gpu" in static


def test_a_failed_task_is_distinguished_from_a_missing_one() -> None:
    made = points(2)
    made[1].tasks[0] = replace(made[1].tasks[0], score=None, failed=True)
    del made[1].tasks[1]
    row = html(compare(made)).split('<tr data-at="1"')[1].split("</tr>")[0]
    assert re.findall(r'class="task">([^<]*)<', row)[:2] == ["failed", ""]


@pytest.mark.parametrize(
    "of", [comparison(1), comparison(3, speeds=False), comparison(3, failed=3), comparison(1, failed=1)]
)
def test_a_page_with_few_or_no_figures(of: Comparison) -> None:
    text = html(of)
    assert len(data_of(text)["rows"]) == len(of.rows)
    assert "nan" not in text.split("<script")[0].lower().replace("finance", "")


def test_many_tasks_are_behind_a_checkbox_and_types_have_means() -> None:
    assert 'id="all-tasks"' not in html(comparison(2, tasks=6)).split("<script")[0]
    static = html(comparison(2, tasks=7)).split("<script")[0]
    assert 'id="all-tasks"' in static and static.count('<th scope="col" class="type">') == 6


def test_the_wall_time_is_explained_where_it_is_shown() -> None:
    for seconds, shown in ((9.0, True), (None, False)):
        text = unescape(html(compare([replace(point, seconds=seconds) for point in points(2)])))
        assert (">wall time (s)</button>" in text) is shown
        assert ("The wall time is that of a point's whole run" in text) is shown


def test_reranking_shows_gain_ceiling_and_shares() -> None:
    of = comparison(3, reranked=True)
    static = html(of).split("<script")[0].replace("<wbr>", "")
    head = re.findall(r'<button type="button">([^<]*)</button></th>', static.split("</thead>")[0])
    assert head[2:5] == ["first stage", "reranked", "gain"] and head[5:8] == of.tasks
    ceilings = ["ceiling", "share of ceiling", "share of possible gain", "pairs/s"]
    assert head[head.index("ceiling") :][:4] == ceilings
    row = of.rows[0]
    assert row.gain is not None and row.mean is not None and row.ceiling is not None
    assert f">{row.gain:+.5f}</td>" in static and f">{row.share:.1%}</td>" in static
    assert f">{row.gain / (row.ceiling - row.first_stage):.1%}</td>" in static
    assert "the share of the possible gain is (reranked" in static


def test_the_share_of_the_ceiling_is_that_of_the_tables() -> None:
    tasks = [
        TaskScore("A", score=0.5, first_stage=0.25, ceiling=1.0),
        TaskScore("B", score=0.3, first_stage=0.2, ceiling=0.3),
    ]
    of = compare([Point("0", Path("0"), tasks=tasks)])
    assert ">75.0%</td>" in html(of) and "| 75.0% |" in comparison_markdown(of), "the mean of 50 % and 100 %"


def test_speeds_in_texts_and_in_pairs_have_their_units() -> None:
    of = compare(mixed_points())
    assert of.unit is None
    static, tables = html(of).split("<script")[0].replace("<wbr>", ""), comparison_markdown(of)
    assert ">texts or pairs/s</button>" in static and "| texts or pairs/s |" in tables
    assert "Texts or pairs/s and tokens/s are the amount that the engine computed" in static
    for row in (of.rows[0], of.rows[4]):
        assert row.speed is not None
        speed = f"{row.speed.texts:,.0f} {row.speed.unit}"
        assert f">{speed}</td>" in static and f"| {speed} |" in tables
    assert {row.speed.unit for row in of.rows if row.speed} == {"texts", "pairs"}


def test_effects_name_figures_that_rest_on_fewer_pairs() -> None:
    made = points(9, axes={"engine.dtype": ["a", "b"], "prompts": ["none", "e5", "q"]})
    made[4].tasks[:] = [replace(task, score=None, failed=True) for task in made[4].tasks]
    of = compare(made)
    cells = re.findall(r'dir="auto">[^<]*</td><td class="figure">([^<]*)</td>', html(of).split('id="h-effects"')[1])
    assert len(cells) == len(of.effects)
    for cell, effect in zip(cells, of.effects, strict=True):
        counts = {what: int(count) for count, what in re.findall(r"(\d+) with (\w+)", cell)}
        assert int(cell.split()[0]) == effect.pairs and ("(" in cell) == (
            (effect.score_pairs, effect.speed_pairs) != (effect.pairs, effect.pairs)
        )
        assert counts.get("scores", effect.pairs) == effect.score_pairs
        assert counts.get("speeds", effect.pairs) == effect.speed_pairs
    assert "3 (2 with scores)" in cells
    unknown = html(comparison(2, speeds=False, axes={"engine.dtype": ["a", "b"]}))
    assert '<td class="figure">1 (none with speeds)</td>' in unknown


@pytest.mark.parametrize(
    ("places", "kept"),
    [
        ((("org/a", ""), ("org/b", ""), ("org/b", "x")), []),
        ((("org/e5", ""), ("org/b", ""), ("org/b", "e5")), []),
        ((("org/e5", "e5"), ("org/b", ""), ("org/b", "x")), ["experiment"]),
    ],
)
def test_settings_that_are_in_the_names_have_no_column(places: tuple[tuple[str, str], ...], kept: list[str]) -> None:
    made = result_points(*places)
    if kept:
        made[0] = replace(made[0], name="org/e5")  # no other of this model: the name leaves the experiment out
    of = compare(made)
    assert "model" in of.columns and set(kept) <= set(of.columns)
    static = html(of).split("<script")[0].replace("<wbr>", "")
    head = re.findall(r'<th scope="col" class="setting"><button type="button">([^<]*)</button>', static)
    assert [name for name in head if name in of.columns] == [name for name in of.columns if name in kept]
    assert comparison_markdown(of).split("| point |")[1].startswith(f" {kept[0]} |" if kept else " mean |")
    assert comparison_csv(of).startswith(f"point,folder,status,{','.join(of.columns)},mean,")
    assert page_data(of, {})["columns"] == of.columns


def test_numbers_stay_whole_on_a_narrow_terminal() -> None:
    of = comparison(6, axes={"prompts.query": [f"Instruct: find what answers, in way {n}" for n in range(6)]})
    console = Console(file=io.StringIO(), width=48)
    print_comparison(console, of)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"{row.mean:.5f}" in text.split("\nBest")[0] for row in of.rows)
    assert all(row.speed is None or f" {row.speed.texts:,.0f}" in text for row in of.rows)


def test_a_point_that_was_killed_in_a_task_is_shown_as_failed() -> None:
    made = points(2)
    made[1].tasks[:] = made[1].tasks[:1]
    made[1].failures.append(replace(failure(), task="StdlibDocsClassification1"))
    text = comparison_markdown(compare(made))
    assert "| failed: out of memory while loading in StdlibDocsClassification1: the process ended" in text
    assert "failed: None" not in text


def test_not_a_number_is_no_figure() -> None:
    of = comparison(2)
    of.rows[0].scores[of.tasks[0]] = float("nan")
    text = without_vega(html(of))
    assert {cell["task"] for cell in data_of(text)["charts"]["task_differences"]["datasets"]["cells"]} == set(
        of.tasks[1:]
    )
    assert "NaN" not in text.split("<script>")[0]


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="NOT TESTED: the page in a browser, without playwright"
    )
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("MTEB_VLLM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("NOT TESTED: the page in a browser, since no Chromium is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


class Opened:
    """A page in a browser, with what it complained about and what it asked for."""

    def __init__(
        self, browser: Any, text: str, folder: Path, width: int = 1280, scheme: str = "light", **more: Any
    ) -> None:
        file = folder / "report.html"
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda asked: self.messages.append(asked.url) if asked.url.startswith("http") else None)
        started = time.monotonic()
        self.page.goto(file.as_uri())
        if more.get("java_script_enabled", True):
            self.page.wait_for_selector("html[data-ready]", state="attached", timeout=30_000)
        self.seconds = time.monotonic() - started

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def column(self, at: int) -> list[str]:
        cells = "(rows, at) => rows.map(row => row.cells[at].textContent)"
        return list(self.page.eval_on_selector_all("#points tbody tr:not([hidden])", cells, at))


OUTSIDE = """() => [...document.querySelectorAll(".plot svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map(text => text.textContent);
})"""

# Charts that do not have the width that there is now, two frames later.
WIDTHS = """async () => {
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
  return [...document.querySelectorAll(".plot svg")].filter(svg => svg.clientWidth
    && Math.abs(svg.width.baseVal.value - svg.parentNode.clientWidth) > 1).map(svg => svg.parentNode.id);
}"""

# Pairs of texts of one chart that lie on each other, halos aside.
OVERLAPS = """() => [...document.querySelectorAll(".plot svg")].flatMap(svg => {
  const texts = [...svg.querySelectorAll("text")].filter(text => text.textContent && !text.closest("[class*=_halo]"))
    .filter(text => text.getAttribute("opacity") !== "0")
    .map(text => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
  return texts.flatMap(([a, one], at) => texts.slice(at + 1).filter(([, other]) => one.left < other.right - 1
    && other.left < one.right - 1 && one.top < other.bottom - 4 && other.top < one.bottom - 4).map(([b]) => [a, b]));
})"""

# The size of a plot without its title, axes and legends: that of the cells around its marks.
PLOT = """cells => {
  const box = document.querySelector(cells).getBoundingClientRect();
  return [box.width, box.height];
}"""

# The contrast of each text with what is behind it, as WCAG 2 has it (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
PALE = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = parts(colour).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
  };
  const shown = [...document.querySelectorAll("body *")].filter(element => element.getClientRects().length
    && !element.closest("script, noscript") && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return shown.map(element => {
    const style = getComputedStyle(element);
    const [a, b] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), parseFloat(style.fontSize), element.outerHTML.slice(0, 90)];
  }).filter(([contrast, size]) => contrast < 4.5 || size < 12);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["twelve", "one", "no speeds", "failed", "reranked", "evil", "many"])
def test_looks_right(browser: Any, tmp_path: Path, name: str, width: int, scheme: str) -> None:
    of = {
        "twelve": lambda: comparison(12, failed=1),
        "one": lambda: comparison(1),
        "no speeds": lambda: comparison(3, speeds=False),
        "failed": lambda: comparison(3, failed=3),
        "reranked": lambda: comparison(9, reranked=True),
        "evil": lambda: compare(evil_points()),
        "many": lambda: comparison(100, tasks=60),
    }[name]()
    with Opened(browser, html(of, EVIL), tmp_path, width, scheme) as opened:
        assert opened.messages == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(OVERLAPS) == []
        assert opened.page.evaluate(PALE) == []
        paper = opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        # Narrower and wider again, as a tablet that is turned.
        opened.page.set_viewport_size({"width": 1680 - width, "height": 900})
        assert opened.page.evaluate(WIDTHS) == []
        assert opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(OVERLAPS) == [] and opened.messages == []


def test_a_chart_gets_a_width_that_was_that_of_its_plot(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, html(comparison(12)), tmp_path) as opened:
        plot = opened.page.evaluate("views.get($('task_differences')).width()")
        assert 400 < plot < opened.page.evaluate("$('task_differences').clientWidth") - 50, (
            "less the names of the tasks"
        )
        opened.page.evaluate("width => { document.querySelector('main').style.width = `${width}px`; }", plot)
        assert opened.page.evaluate("$('task_differences').clientWidth") == plot
        assert opened.page.evaluate(WIDTHS) == [] and opened.page.evaluate(OUTSIDE) == []


def test_prints_all_rows_and_charts_on_white_paper(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, html(comparison(40)), tmp_path, 700, "dark") as opened:
        opened.page.emulate_media(media="print")
        paper = opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        assert [text for contrast, _, text in opened.page.evaluate(PALE) if contrast < 4.5] == []
        assert opened.page.evaluate(OUTSIDE) == []
        assert not any(
            opened.page.locator(name).is_visible() for name in ("#filter", "#quality_speed-controls", "#keys")
        )
        box = opened.page.locator(".scroll").first
        overflow, height = box.evaluate("box => [getComputedStyle(box).overflow, getComputedStyle(box).maxHeight]")
        assert (overflow, height) == ("visible", "none")
        assert box.evaluate("box => box.clientHeight >= box.scrollHeight"), "no row is cut off"
        assert opened.page.locator("#points tbody tr").count() == 40
        pdf = opened.page.pdf()
        assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1


def test_sorts_by_what_figures_are_worth(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, html(comparison(12, failed=1)), tmp_path) as opened:
        names = opened.page.eval_on_selector_all("#points thead th", "all => all.map(th => th.textContent)")
        for at, name in enumerate(names):
            head = opened.page.locator("#points thead button").nth(at)
            head.focus()
            opened.page.keyboard.press("Enter")
            first = opened.page.locator("#points thead th").nth(at).get_attribute("aria-sort")
            once = opened.column(at)
            head.click()
            second = opened.page.locator("#points thead th").nth(at).get_attribute("aria-sort")
            twice = opened.column(at)
            assert {first, second} == {"ascending", "descending"}
            assert opened.page.locator("[aria-sort]").count() == 1
            down, up = (once, twice) if first == "descending" else (twice, once)
            if name in ("texts/s", "tokens/s", "mean score", "difference"):
                figures = [float(cell.replace(",", "")) for cell in down if cell]
                assert len(figures) >= 11 and figures == sorted(figures, reverse=True), name
                assert [cell for cell in up if cell] == [cell for cell in down if cell][::-1], name
                assert all(not cell for cell in down[len(figures) :] + up[len(figures) :]), "missing figures come last"
            if name == "point":
                assert [int(re.match(r"\d+", cell)[0]) for cell in up] == list(range(12))  # type: ignore[index]


def test_filters_by_any_words(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, html(comparison(12)), tmp_path) as opened:
        opened.page.fill("#filter", "E5 float32")
        assert sorted(re.match(r"\d+", cell)[0] for cell in opened.column(0)) == ["3", "4", "5"]  # type: ignore[index]
        assert opened.page.text_content("#count") == "3 of 12 points"


def test_shows_all_tasks_when_asked_with_and_without_scripts(browser: Any, tmp_path: Path) -> None:
    for scripts in (True, False):
        with Opened(browser, html(comparison(3, tasks=9)), tmp_path, java_script_enabled=scripts) as opened:
            task = opened.page.locator("#points td.task").first
            assert not task.is_visible()
            opened.page.check("#all-tasks")
            assert task.is_visible()
            assert (
                opened.page.locator("#quality_speed").is_visible()
                == opened.page.locator("#filter").is_visible()
                == scripts
            )


MARKS = "#quality_speed .points_marks path"


def ringed(opened: Opened, ring: str = "picked_ring") -> list[str]:
    """The points that have a ring in the first chart, once it is drawn."""
    opened.page.evaluate("async () => { for (const _ of [1, 2]) await new Promise(requestAnimationFrame); }")
    names = "marks => marks.map(mark => mark.__data__.datum.point)"
    return list(opened.page.eval_on_selector_all(f"#quality_speed .{ring}_marks path", names))


def test_points_at_points_and_selects_them(browser: Any, tmp_path: Path) -> None:
    of = comparison(12)
    assert of.answer is not None
    with Opened(browser, html(of), tmp_path) as opened:
        tip, plot, chosen = (
            opened.page.locator(name)
            for name in ("#vg-tooltip-element", "#quality_speed", "#task_differences .picked_column_marks path")
        )
        assert f"Point {of.answer.point.name} (recommended)" in opened.page.inner_text("#selected")
        assert ringed(opened) == [of.answer.point.name]
        heights = opened.page.eval_on_selector_all(MARKS, "marks => marks.map(mark => mark.__data__.y)")
        assert max(heights) - min(heights) > 200, "the axis does not begin at zero"

        mark = opened.page.locator(MARKS).nth(3)
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        assert box is not None
        name = mark.evaluate("mark => mark.__data__.datum.point")
        assert name != of.answer.point.name
        opened.page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
        assert ringed(opened, "pointed_ring") == [name]
        assert tip.is_visible() and f"Point {name}" in tip.inner_text() and "engine.dtype" in tip.inner_text()
        opened.page.mouse.click(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
        assert ringed(opened) == [name] and f"Point {name}" in opened.page.inner_text("#selected")
        assert chosen.evaluate("mark => mark.__data__.datum.members") == [name]
        assert opened.page.locator("#points tr[aria-current]").get_attribute("data-at") == name
        opened.page.mouse.move(1, 1)
        assert ringed(opened, "pointed_ring") == [] and not tip.is_visible()

        opened.page.locator('#points tr[data-at="5"] button').click()
        assert ringed(opened) == ["5"] and "Point 5" in opened.page.inner_text("#selected")
        opened.page.mouse.move(1, 1)
        near = opened.page.locator("#quality_speed-controls input, #quality_speed-controls select").last
        near.focus()
        opened.page.keyboard.press("Tab")
        assert plot.evaluate("plot => plot === document.activeElement") and "Point 5" in tip.inner_text()
        opened.page.keyboard.press("ArrowRight")
        found = re.match(r"Point (\d+)", tip.inner_text())
        assert found is not None and found[1] != "5" and ringed(opened, "pointed_ring") == [found[1]]
        opened.page.keyboard.press("Enter")
        assert ringed(opened) == [found[1]] and found[0] in opened.page.inner_text("#selected")
        opened.page.keyboard.press("Escape")
        assert not tip.is_visible() and opened.messages == []


def test_a_cell_of_the_heat_map_says_what_it_is_and_selects_its_point(browser: Any, tmp_path: Path) -> None:
    of = comparison(12)
    with Opened(browser, html(of), tmp_path) as opened:
        cell = opened.page.locator("#task_differences .cells_marks path").nth(10)
        datum = cell.evaluate("mark => mark.__data__.datum")
        cell.hover(force=True)
        tip = opened.page.inner_text("#vg-tooltip-element").replace("\u2212", "-")
        assert f"Point {datum['point']}" in tip and datum["task"] in tip and f"{datum['difference']:+.5f}" in tip
        cell.click(force=True)
        assert ringed(opened) == [datum["point"]] and f"Point {datum['point']}" in opened.page.inner_text("#selected")


def test_colours_by_another_setting_and_shows_what_is_near_the_best(browser: Any, tmp_path: Path) -> None:
    made = points(18)
    made[17].tasks[:] = [type(task)(**(vars(task) | {"score": 0.1})) for task in made[17].tasks]
    with Opened(browser, html(compare(made)), tmp_path) as opened:
        colour, marks = opened.page.get_by_label("Colour by"), opened.page.locator(MARKS)
        assert colour.input_value() == "prompts"
        colour.select_option("engine.dtype")
        ringed(opened)
        # The entries fill the columns of the legend from top to bottom.
        script = (
            "all => all.map(one => [one.getBoundingClientRect(), one.textContent])"
            ".sort(([a], [b]) => a.x - b.x || a.y - b.y).map(([, text]) => text)"
        )
        labels = opened.page.locator("#quality_speed .role-legend-label text").evaluate_all(script)
        assert labels == ["dtype=float32", "dtype=bfloat16", "dtype=float16"] and marks.count() == 18
        assert len(set(marks.evaluate_all("all => all.map(mark => mark.getAttribute('fill'))"))) == 3
        opened.page.get_by_label("only the 17 points within 0.01 of the best").check()
        ringed(opened)
        assert marks.count() == 17


def test_entries_of_the_legend_name_the_setting_and_its_value(browser: Any, tmp_path: Path) -> None:
    many = {"engine.dtype": ["a", "b"], "prompts.query": [f"p{at}" for at in range(12)]}
    with Opened(browser, html(comparison(24, axes=many)), tmp_path) as opened:
        legend = "all => all.map(text => text.textContent)"
        entries = opened.page.eval_on_selector_all("#quality_speed .role-legend-label text", legend)
        assert entries == ["dtype=a", "dtype=b"]
        opened.page.locator("#quality_speed-controls select").select_option("prompts.query")
        entries = opened.page.eval_on_selector_all("#quality_speed .role-legend-label text", legend)
        assert entries[0].startswith("query=p") and re.fullmatch(r"\d+ other values", entries[-1])


def test_effects_without_any_figure_are_left_out() -> None:
    made = points(3, axes={"engine.dtype": ["a", "b", "c"]}, speeds=False)
    made[2].tasks[:] = [replace(task, score=None, failed=True) for task in made[2].tasks]
    of = compare(made)
    assert [effect.value for effect in of.effects] == ["b", "c"] and [one.value for one in of.known_effects] == ["b"]
    shown = re.findall(r'<th scope="row">engine.<wbr>dtype</th><td class="setting" dir="auto">(\w)</td>', html(of))
    assert shown == ["b"]
    assert re.findall(r"^\| engine.dtype \| (\w) \|", comparison_markdown(of), re.MULTILINE) == ["b"]


def test_an_entry_of_the_legend_shows_its_points_alone(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, html(comparison(18)), tmp_path) as opened:

        def clear() -> list[str]:
            """The settings of the points that are not faint."""
            ringed(opened)
            script = (
                "all => all.map(one => one.__data__).filter(one => one.opacity === 1).map(one => one.datum.tip.prompts)"
            )
            return list(opened.page.eval_on_selector_all(MARKS, script))

        assert sorted(clear()) == ["e5"] * 9 + ["none"] * 9
        opened.page.locator("#quality_speed .role-legend-symbol path").nth(1).click(force=True)
        assert clear() == ["e5"] * 9
        opened.page.get_by_label("Colour by").select_option("engine.dtype")
        assert len(clear()) == 18, "a choice ends with the setting that it was made in"


@pytest.mark.parametrize("name", ["long", "many"])
def test_legends_do_not_push_the_plot_away(browser: Any, tmp_path: Path, name: str) -> None:
    values = {"long": ["x" * 300, "y" * 300], "many": [f"value {at}" for at in range(30)]}[name]
    of = compare(points(30, axes={"prompts.query": values, "engine.dtype": [str(at) for at in range(15)]}))
    with Opened(browser, html(of), tmp_path, 400) as opened:
        width, height = opened.page.evaluate(PLOT, "#quality_speed .points_voronoi")
        assert (
            width > 250 and height > 300 and opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        )
        assert opened.page.evaluate(OUTSIDE) == [] and opened.page.evaluate(OVERLAPS) == [] and opened.messages == []


@pytest.mark.parametrize("made", [points(1), equal_points(1), equal_points(4), points(4)])
def test_no_slack_at_all_draws_as_well(browser: Any, tmp_path: Path, made: list[Point]) -> None:
    of = compare(made, epsilon=0)
    with Opened(browser, html(of), tmp_path) as opened:
        assert opened.page.locator(MARKS).count() == len(made)
        assert "NaN" not in opened.page.inner_html("#quality_speed")
        heights = opened.page.eval_on_selector_all(MARKS, "marks => marks.map(mark => mark.__data__.y)")
        assert all(0 < height < 340 for height in heights)
        assert opened.page.evaluate(OUTSIDE) == [] and opened.messages == []


def test_speeds_that_cannot_be_compared_are_not_drawn(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, html(compare(mixed_points())), tmp_path) as opened:
        assert opened.page.locator("#quality_speed").count() == 0
        assert "some points embed texts and others score pairs" in opened.page.inner_text("#not-drawn")
        opened.page.locator("#points thead button", has_text="texts or pairs/s").click()
        opened.page.locator("#points tbody button").nth(5).click()
        assert opened.messages == []


def test_a_thousand_points_of_sixty_tasks_are_there_soon(browser: Any, tmp_path: Path) -> None:
    of = comparison(1000, tasks=60, failed=12)
    started = time.monotonic()
    text = html(of)
    written = time.monotonic() - started
    with Opened(browser, text, tmp_path) as opened:
        done = opened.seconds
        assert opened.page.locator(MARKS).count() == 988
        assert opened.page.locator("#task_differences .cells_marks path").count() == 60 * 60
        assert "12 without a mean" in opened.page.text_content("#quality_speed")
        spent = {}
        for what, script in {
            "sort": "document.querySelector('#points thead th.mean button').click()",
            "select": "body.rows[500].click()",
            "all tasks": "document.querySelector('#all-tasks').click()",
        }.items():
            spent[what] = opened.page.evaluate(
                f"() => {{ const from = performance.now(); {script}; body.offsetHeight; return performance.now() - from; }}"
            )
        assert opened.messages == []
    timings = ", ".join(f"{what} {ms:.0f} ms" for what, ms in spent.items())
    print(
        f"1,000 points x 60 tasks: rendered in {written:.2f} s, {len(text) / 1e6:.1f} MB, ready in {done:.2f} s; {timings}"
    )
    # Bounds that a loaded machine keeps, and work that grows with the square of the points does not.
    assert written < 60 and done < 60 and max(spent.values()) < 30_000
