"""The tables of the page in a browser: the first column stays in sight, and a table that scrolls shows it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from PIL import Image
from test_page import Opened, browser  # noqa: F401

from comparisons import comparison, points
from mteb_vllm.report.comparison import compare
from mteb_vllm.report.page import page

PLACES = """() => {
  const box = document.querySelector("#points").parentElement;
  const cell = document.querySelector("#points tbody th").getBoundingClientRect();
  const [most, left] = [box.scrollWidth - box.clientWidth, box.getBoundingClientRect().left];
  return {scroll: box.scrollLeft, most, cell: cell.left, box: left};
}"""


def brightness(opened: Opened, column: int) -> float:
    """The median brightness of a column of pixels of the table's box."""
    shot = Image.open(io.BytesIO(opened.page.locator("#points").locator("..").screenshot())).convert("L")
    x = column % shot.width
    return median(shot.crop((x, 0, x + 1, shot.height)).tobytes())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_column_is_sticky_and_a_shadow_shows_that_a_table_scrolls(
    browser: Any,  # noqa: F811
    tmp_path: Path,
    scheme: str,
) -> None:
    with Opened(browser, page(comparison(6, tasks=6), ["Best."], "x"), tmp_path, 700, scheme) as opened:
        start = opened.page.evaluate(PLACES)
        assert start["most"] > 100 and start["scroll"] == 0, "the table is wider than its box"
        paper = brightness(opened, 1)
        assert abs(brightness(opened, -2) - paper) > 20, "a shadow at the right edge"
        opened.page.locator("#points").locator("..").evaluate("box => { box.scrollLeft = box.scrollWidth }")
        end = opened.page.evaluate(PLACES)
        assert end["scroll"] == end["most"] and end["cell"] == start["cell"] == start["box"], "the first column stays"
        assert abs(brightness(opened, -2) - paper) <= 2, "no shadow at the end"
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth") and opened.messages == []


@pytest.mark.parametrize("width", [1280, 400])
def test_long_names_stay_in_their_cells(browser: Any, tmp_path: Path, width: int) -> None:  # noqa: F811
    long = [letter * 245 for letter in "ab"]
    axes = {"prompts.query": [value * 245 for value in "cd"]}
    made = [replace(one, name=name) for one, name in zip(points(2, axes=axes), long, strict=True)]
    with Opened(browser, page(compare(made), ["Best."], "x"), tmp_path, width) as opened:
        wide = (
            "() => [...document.querySelectorAll('th, td')].filter(one => one.scrollWidth > one.clientWidth + 1).length"
        )
        assert opened.page.evaluate(wide) == 0
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth") and opened.messages == []
        titles = "[...document.querySelectorAll('#points tbody th button')].map(one => one.title)"
        assert sorted(opened.page.evaluate(titles)) == long, "the whole name"
