"""The pictures of a comparison."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from comparisons import comparison, equal_points, mixed_points, points
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.plots import quality_speed, task_differences, write_plots

BOTH = ["quality_speed.png", "task_differences.png"]


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (comparison(12), BOTH),
        (comparison(1000, tasks=60, failed=12), BOTH),
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
@pytest.mark.filterwarnings("error")
def test_draws_what_there_is_to_draw(of: Comparison, names: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    written = write_plots(of, folder)
    assert [path.name for path in written] == names
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == names, "nothing else is left behind"
    for path in written:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.read_bytes().startswith(b"\x89PNG") and width >= 1200 and 200 <= height <= 4000


def test_no_picture_of_a_report_before_stays(tmp_path: Path) -> None:
    write_plots(comparison(3), tmp_path)
    (tmp_path / "mine.png").touch()
    assert [path.name for path in write_plots(comparison(3, speeds=False), tmp_path)] == BOTH[1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png", *BOTH[1:]]


@pytest.mark.filterwarnings("error")
def test_any_words_can_be_drawn(tmp_path: Path) -> None:
    odd = ["_x", "$\\frac{", "<b>|\n\n", "\u202e\u05e9\u05dc\u05d5\u05dd 🚀 日本", "", "a" * 5000, "7", "8", "9", "10"]
    of = compare(points(10, axes={"prompts.query": odd}))
    assert len(write_plots(of, tmp_path)) == 2


def test_shows_every_point_the_front_and_the_names() -> None:
    of = comparison(12)
    figure = quality_speed(of)
    assert figure is not None and of.best is not None and of.answer is not None
    (axes,) = figure.axes
    drawn = {(round(x, 6), round(y, 8)) for marks in axes.collections for x, y in marks.get_offsets()}
    assert drawn >= {(round(row.speed.texts, 6), round(row.mean, 8)) for row in of.rows if row.speed and row.mean}
    assert {text.get_text() for text in axes.texts} == {"best", "answer", "baseline"}
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        "Pareto front" in said
        and "within 0.00100 of the best" in said
        and "hollow: speed measured in another point" in said
    )


def test_counts_what_it_cannot_show() -> None:
    figure = quality_speed(comparison(12, failed=2))
    assert figure is not None
    assert figure.legends[0].get_title().get_text() == "not in the plot: 2 without a mean or a speed"


def test_tasks_in_which_points_differ_most_stand_first() -> None:
    of = comparison(12, tasks=6)
    figure = task_differences(of)
    assert figure is not None

    def spread(task: str) -> float:
        scores = [row.scores[task] or 0 for row in of.rows]
        return max(scores) - min(scores)

    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[::-1] == sorted(of.tasks, key=spread, reverse=True)


def test_the_module_imports_no_matplotlib() -> None:
    script = "import sys, mteb_vllm.report.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
