"""Foreign text appears literally on the terminal, in CSV, in Markdown and on the page."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.progress import Progress
from rich.table import Table
from test_page import without_vega

import mteb_vllm
from comparisons import points
from mteb_vllm.report.answer import conclusion
from mteb_vllm.report.comparison import compare
from mteb_vllm.report.formatting import markdown
from mteb_vllm.report.one_run import print_run, run_markdown
from mteb_vllm.report.page import page
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import EngineRecord
from mteb_vllm.results.record import RunRecord, TaskOutcome, scores_csv
from mteb_vllm.util.console import Column, Console
from mteb_vllm.util.escape import code, csv_cell, fenced, inline, visible

SOURCES = sorted(Path(mteb_vllm.__file__).parent.rglob("*.py"))
HOSTILE = [
    "org/[/foo]", "org/[red]x[/]", "[link=http://evil]x[/link]", ":bomb:", "\x1b]0;PWN\x07\x1b[31mred", "a\rb", "a\u202eb",
    "a\u2028b", "a\u2066b\u200b", "\x9b31m", "\ud800", "a|b", "a\\|b", "a\\", "``` `x` ``", "`", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "<!--", "![x](http://evil/x.png)", "[x](http://evil)",
    "*a* _b_ __c__ ~~d~~", "&lt;b&gt; &#60;", "# head", "- item", "> quote", "=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(A1)",
    "a\nb", "{{ x }}", "$x$", "_x",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 日本 \n\t", "plain ü 日本 \n\t"),
        ("\x1b]0;PWN\x07", r"\x1b]0;PWN\x07"),
        ("a\rb\x9b\x7f", r"a\rb\x9b\x7f"),
        ("\u202e\u2066\u200b\ufeff\U000e0041", r"\u202e\u2066\u200b\ufeff\U000e0041"),
        ("\u0645\u200c\u062e 👩\u200d🔬", "\u0645\u200c\u062e 👩\u200d🔬"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown == visible(shown)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"), ("@x", "'@x"), ("-2+3", "'-2+3"), ("+x", "'+x"), ("\t=1", "'\t=1"), ("\r=1", r"'\r=1"),
        ("\uff1d1", "'\uff1d1"),
        ("-0.5", "-0.5"), ("+1e5", "+1e5"), (-0.5, -0.5), (7, 7), (None, None), ("a=b", "a=b"), ("", ""),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


def tokens(text: str) -> list[Token]:
    """Return all tokens of parsed Markdown, including inline ones."""
    found = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [*found, *(child for token in found for child in token.children or ())]


def texts_of(text: str) -> list[str]:
    """Return the rendered texts of a table's cells."""
    cells = [token for token in tokens(text) if token.type == "inline"]
    shown = []
    for cell in cells:
        parts = (
            child.content for child in cell.children or () if child.type in ("text", "code_inline", "text_special")
        )
        shown.append("".join(parts))
    return shown


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("how", [inline, code])
def test_text_in_a_markdown_table_renders_literally(text: str, how: object) -> None:
    table = "\n".join(markdown(["a", "b"], [[how(text), "end"]]))  # type: ignore[operator]
    wanted = visible(text).replace("\n", " " if how is inline else "⏎")
    assert texts_of(table) == ["a", "b", wanted, "end"]
    html = [token.content for token in tokens(table) if "html" in token.type]
    assert set(html) <= {"<code>", "</code>"}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_in_a_line_of_markdown_renders_literally(text: str) -> None:
    shown = tokens(f"- {inline(text)}")
    assert {token.type for token in shown} <= {
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "text", "text_special", "paragraph_close",
        "list_item_close", "bullet_list_close",
    }  # fmt: skip
    assert texts_of(f"- {inline(text)}") == [visible(text).replace("\n", " ")]
    [block] = [token for token in tokens("\n".join(fenced(["a", text, "b"]))) if token.type == "fence"]
    assert block.content == f"a\n{visible(text)}\nb\n"


def shown_on(console: Console) -> str:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_on_the_terminal_is_printed_literally(text: str) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    console.print(text, style="red")
    assert re.sub(r"\x1b\[\d*m", "", shown_on(console)).rstrip("\n") == visible(text)
    console = Console(file=io.StringIO(), width=200)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    assert shown_on(console).count(visible(text).split("\n")[0]) >= 3
    bar = Progress(Column("{task.description}"), console=Console(file=io.StringIO(), width=200))
    bar.add_task(text)
    bar.console.print(bar.get_renderable())
    assert visible(text).replace("\n", " ").strip() in shown_on(bar.console)  # type: ignore[arg-type]


def test_a_hostile_run_is_shown_and_written() -> None:
    hostile = "".join(text for text in HOSTILE if "\n" not in text)
    failure = Failure("task", hostile, hostile, [hostile, "```"], hostile)
    task = TaskOutcome(
        "=T", "STS", "failed", "@m", failure=failure, prompts={"query": {"key": hostile, "example": hostile}}
    )
    other = TaskOutcome("U", "STS", "computed", "m", -0.5, scores={"=s": {"+u": {"m": -0.5}}})
    record = RunRecord(
        settings={"engine": {"model": hostile, "revision": hostile, "device": hostile, "versions": {"x": hostile}}},
        tasks=[task, other], warnings=[hostile], overrides=[hostile],
        engine=EngineRecord("vllm", hostile, "", 1, 1.0, {hostile: hostile, "max_model_len": 8}),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    print_run(console, record)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown_on(console))
    assert_harmless(run_markdown(record))
    rows = list(csv.reader(io.StringIO(scores_csv(record))))
    assert rows[1:] == [
        ["'=T", "STS", "", "", "'@m", "", "", "failed"],
        ["U", "STS", "'=s", "'+u", "m", "-0.5", "1", "computed"],
    ]


def assert_harmless(text: str) -> None:
    kinds = {token.type for token in tokens(text)}
    html = {token.content for token in tokens(text) if "html" in token.type}
    assert html <= {"<code>", "</code>"} and not kinds & {"link_open", "image"} and visible(text) == text


def test_a_hostile_comparison_is_shown_and_written() -> None:
    made = points(3, failed=1)
    hostile = HOSTILE * 9
    for at, point in enumerate(made):
        name = hostile[at]
        overrides = {key: f"{hostile[at + 5 * n]}{n}" for n, key in enumerate([*HOSTILE, "engine.dtype"])}
        tasks = [replace(task, name=f"{name} {number}" if at else task.name) for number, task in enumerate(point.tasks)]
        failures = [Failure("task", text, text, [text], text) for text in HOSTILE] if point.failures else []
        made[at] = replace(point, name=name, overrides=overrides, tasks=tasks, failures=failures, facts={"model": name})
    comparison = compare(made)
    console = Console(file=io.StringIO(), width=400)
    print_comparison(console, comparison)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown_on(console))
    assert_harmless(comparison_markdown(comparison))
    for row in csv.reader(io.StringIO(comparison_csv(comparison))):
        assert not [cell for cell in row if re.match(r"[=@+\t\r]|-(?!\d+(\.\d+)?(e-\d+)?$)", cell)]
    html = without_vega(page(comparison, conclusion(comparison), HOSTILE[4]))
    assert html.count("<script") == 3 and "<img" not in html and "<!--" not in html
    assert visible(html.replace("\u200b", "")) == html
    data = html.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["rows"][0]["name"] == HOSTILE[0]


def test_all_output_to_terminal_and_csv_is_escaped() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name.name if isinstance(node, ast.Import) else f"{node.module}.{name.name}"
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in node.names
        }
        if path.name != "console.py":
            # rich's Console may be used as a type, imported under TYPE_CHECKING.
            assert not imported & {"rich.markup.escape", "rich.progress.TextColumn", "rich.text.Text", "rich.print"}, (
                path
            )
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            code = ast.unparse(call)
            if name == "Console" and path.name != "console.py":
                assert "mteb_vllm.util.console.Console" in imported, f"{path}: {code}"
            assert "markup=True" not in code and not name.endswith(("from_markup", "from_ansi")), f"{path}: {code}"
            if name.endswith(".writerow"):
                assert "csv_cell" in code or all(
                    isinstance(part, (ast.Constant, ast.List, ast.Load)) for part in ast.walk(call.args[0])
                ), f"{path}: {code}"
            # The log of a sweep's child process is shown line by line, and lines are escaped.
            assert not name.endswith("print_exc") or path.name == "child.py", f"{path}: {code}"
            if name == "print" and "sys.stderr" in code and path.name == "cli.py" and "error" in code:
                assert "visible" in code, f"{path}: {code}"
