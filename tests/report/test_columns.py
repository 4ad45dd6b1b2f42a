"""The columns of a comparison: one list, from which every table takes its own."""

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


def test_each_table_has_its_columns_in_the_order_of_the_list(compared: Comparison) -> None:
    columns = table_columns(compared)
    assert next(csv.reader(io.StringIO(comparison_csv(compared)))) == [column.key for column in columns if column.key]
    shown = [column.header for column in columns if column.text and any(map(column.cell, compared.rows))]
    table = next(line for line in comparison_markdown(compared).splitlines() if line.startswith("| point |"))
    assert [cell.strip() for cell in table.split("|")[1:-1]] == shown


def test_no_two_columns_are_called_the_same(compared: Comparison) -> None:
    columns = table_columns(compared)
    for names in (
        [column.key for column in columns if column.key],
        [column.header for column in columns if column.text],
        [column.page_header or column.header for column in columns if column.page],
    ):
        assert len(set(names)) == len(names), names


def test_what_a_narrow_terminal_leaves_out_is_in_the_csv(compared: Comparison) -> None:
    # The tokens/s of a throughput point on the same engine are in it under the name of the parity point's own.
    for column in table_columns(compared):
        assert column.key or not column.left_out or column.header == "throughput on this engine, tokens/s", (
            column.header
        )
