"""Text on a terminal is broken only at spaces, in lines and in tables."""

from __future__ import annotations

import io
import shlex

import pytest
from rich.table import Table

from mteb_vllm.util.console import Console
from mteb_vllm.util.wrapping import wrap_lines

WORDS = "point 12 engine.max_num_batched_tokens=16384: failed: killed in StdlibDocsClassification: the process ended"


def printed(text: str, width: int, *, terminal: bool = True) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    console.print_line(text)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def table(*rows: tuple[str, ...]) -> Table:
    made = Table(box=None, pad_edge=False)
    for header in ("task", "settings", "what happened"):
        made.add_column(header, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def tabulated(made: Table, width: int, *optional: str) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print_table(made, optional)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [20, 50, 80])
def test_lines_on_a_terminal_are_broken_at_spaces(width: int) -> None:
    lines = printed(WORDS, width)
    assert " ".join(line.strip() for line in lines) == WORDS and len(lines) > 1
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_lines_in_pipes_stay_whole() -> None:
    assert printed(WORDS, 20, terminal=False) == [WORDS]


def test_continuation_lines_are_indented_as_their_text() -> None:
    text = "2 errors:\n  - engine.dtype=x: vLLM does not know this value\n    Allowed: auto, half, float16, bfloat16"
    assert wrap_lines(text, 32).splitlines() == [
        "2 errors:",
        "  - engine.dtype=x: vLLM does",
        "    not know this value",
        "    Allowed: auto, half,",
        "    float16, bfloat16",
    ]


def test_a_wrapped_command_can_be_pasted() -> None:
    command = (
        """mteb-vllm model=custom 'prompts.query="search for: "' 'tasks.benchmark="MTEB(eng, v2)"' engine.seed=1"""
    )
    wrapped = wrap_lines(f"    {command}", 50)
    assert max(map(len, wrapped.splitlines())) <= 50 and wrapped.count("\n") > 1
    assert shlex.split(wrapped.replace("\\\n", " ")) == shlex.split(command)


def test_a_wide_table_breaks_no_word() -> None:
    made = table(("StdlibDocsClassification", "0123456789abcdef", "failed: the engine did not open (StartError)"))
    text = tabulated(made, 70)
    assert all(len(line) <= 70 for line in text.splitlines())
    assert {"StdlibDocsClassification", "0123456789abcdef", "(StartError)", "settings"} <= set(text.split())


def test_a_table_that_is_too_wide_loses_its_optional_columns_first() -> None:
    made = table(("StdlibDocsClassification", "0123456789abcdef", "failed: the engine did not open (StartError)"))
    text = tabulated(made, 50, "settings")
    assert "0123456789abcdef" not in text and "settings" not in text
    assert {"StdlibDocsClassification", "(StartError)"} <= set(text.split())
    assert all(len(line) <= 50 for line in text.splitlines())


def test_a_table_whose_words_do_not_fit_is_printed_in_blocks() -> None:
    made = table(("StdlibDocsClassification", "0123456789abcdef", "failed: (StartError)"), ("STS12", "", "passed"))
    assert tabulated(made, 30).splitlines() == [
        "task: StdlibDocsClassification",
        "settings: 0123456789abcdef",
        "what happened: failed: (StartError)",
        "",
        "task: STS12",
        "what happened: passed",
        "",
    ]


def test_in_blocks_a_cell_without_a_header_is_a_line_of_its_own() -> None:
    made = Table(box=None, pad_edge=False)
    for header in ("task", "settings", ""):
        made.add_column(header, overflow="fold")
    made.add_row("StdlibDocsClassification", "0123456789abcdef", "best")
    made.add_row("STS12", "abc", "")
    assert tabulated(made, 30).splitlines() == [
        "task: StdlibDocsClassification", "settings: 0123456789abcdef", "best", "", "task: STS12", "settings: abc", ""
    ]  # fmt: skip


def test_a_table_that_fits_is_printed_as_it_is() -> None:
    lines = tabulated(table(("STS12", "abc", "passed")), 80).splitlines()
    assert [line.rstrip() for line in lines] == [
        "task   settings  what happened",
        "STS12  abc       passed",
    ]


@pytest.mark.parametrize("width", [20, 80])
def test_lines_of_tables_end_without_blanks(width: int) -> None:
    made = table(("STS12", "", "passed"), ("StdlibDocsClassification", "x", ""), ("STS13", "", ""))
    assert [line for line in tabulated(made, width).splitlines() if line != line.rstrip()] == []
