"""The columns of a comparison: the one list from which every table takes its columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from comparisons import comparison, mixed_points, result_points
from measured_runs import mixed_runs, write_runs
from mteb_vllm.report.columns import table_columns
from mteb_vllm.report.comparison import Comparison, compare
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.tables import comparison_csv, comparison_markdown


@pytest.fixture(params=["scores", "many tasks", "reranked", "texts and pairs", "results", "measured"])
def compared(request: pytest.FixtureRequest, tmp_path: Path) -> Comparison:
    makers = {
        "scores": lambda: comparison(4),
        "many tasks": lambda: comparison(4, tasks=9, failed=1),
        "reranked": lambda: comparison(4, reranked=True),
        "texts and pairs": lambda: compare(mixed_points()),
        "results": lambda: compare(result_points(("a/b", ""), ("a/b", "x"), ("c/d", ""))),
        "measured": lambda: compare(read_runs([write_runs(tmp_path, mixed_runs())])),
    }
    return makers[request.param]()


def test_technical_columns_come_after_the_scores(compared: Comparison) -> None:
    columns = [column for column in table_columns(compared) if column.text or column.page]
    kinds = [column.kind for column in columns]
    settings = [at for at, kind in enumerate(kinds) if kind == "setting"]
    scores = [at for at, kind in enumerate(kinds) if kind in ("mean", "type", "task")]
    keys = ("wall_time_seconds", "engine_start_seconds", "peak_memory_mb")
    technical = [at for at, column in enumerate(columns) if column.key in keys]
    assert max(settings, default=0) < min(scores) and max(scores) < min(technical) == len(columns) - 4
    # They are also the first that a narrow terminal leaves out.
    assert min(columns[at].left_out for at in technical) > max(
        column.left_out for at, column in enumerate(columns) if at not in technical
    )


def test_each_table_has_its_columns_in_the_order_of_the_list(compared: Comparison) -> None:
    columns = table_columns(compared)
    assert next(csv.reader(io.StringIO(comparison_csv(compared)))) == [column.key for column in columns if column.key]
    shown = [column.header for column in columns if column.text and any(map(column.cell, compared.rows))]
    table = next(line for line in comparison_markdown(compared).splitlines() if line.startswith("| point |"))
    assert [cell.strip() for cell in table.split("|")[1:-1]] == shown


def test_no_two_columns_have_the_same_name(compared: Comparison) -> None:
    columns = table_columns(compared)
    for names in (
        [column.key for column in columns if column.key],
        [column.header for column in columns if column.text],
        [column.page_header or column.header for column in columns if column.page],
    ):
        assert len(set(names)) == len(names), names


def test_columns_that_a_narrow_terminal_leaves_out_are_in_the_csv(compared: Comparison) -> None:
    # The tokens/s of a throughput point on the same engine are in it under the name of the parity point's own.
    for column in table_columns(compared):
        assert column.key or not column.left_out or column.header == "throughput on this engine (tokens/s)", (
            column.header
        )
