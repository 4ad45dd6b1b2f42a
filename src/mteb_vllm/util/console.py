"""The terminal: every console is made here, so that every text is shown literally and is broken only at spaces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.progress
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.measure import measure_renderables
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from mteb_vllm.util.escape import visible
from mteb_vllm.util.wrapping import wrap_lines

# The padding of each column in rich's tables without a box, in characters.
_PADDING = 2


class Console(rich.console.Console):
    """Rich's console without markup, emoji names and highlighting; control characters in strings are made visible.

    Every string, including those in tables, becomes text in `render_str`. A style is an argument or a `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def print(self, *objects: object, **options: Any) -> None:
        """Print as rich does, but a table by itself as `print_table` does."""
        if len(objects) == 1 and isinstance(objects[0], Table) and not options:
            self.print_table(objects[0])
        else:
            super().print(*objects, **options)

    def print_line(self, text: str, style: str | None = None) -> None:
        """Print a text: on a terminal broken at spaces, elsewhere (files, pipes) with its lines as they are.

        Args:
            text: The text; nothing in it is markup.
            style: Its style, as `red`.
        """
        self.print(wrap_lines(text, self.width) if self.is_terminal else text, style=style, soft_wrap=True)

    def print_table(self, table: Table, optional: Sequence[str] = ()) -> list[str]:
        """Print a table without breaking a word.

        Where the longest words of all columns do not fit into the width, optional columns are left out; where they still do
        not fit, each row is printed as a block of lines.

        Args:
            table: A table without a box and without padding at its edges; its columns' widths are set.
            optional: Headers of columns that may be left out, the least important first.

        Returns:
            the headers of the columns that were left out.
        """
        width, left_out = self.width + _PADDING, []
        for header in optional:
            if sum(words for words, _ in self._widths(table)) <= width:
                break
            if any(column.header == header for column in table.columns):
                left_out.append(header)
                table.columns = [column for column in table.columns if column.header != header]
        for at, column in enumerate(table.columns):
            column._index = at  # by which rich finds the columns at the edges, which have less padding
        widths = self._widths(table)
        spare = width - sum(words for words, _ in widths)
        if spare < 0:
            self._print_blocks(table)
            return left_out
        # Columns that need the least are served first, so that short ones are not broken at all.
        order = sorted(range(len(widths)), key=lambda at: widths[at][1] - widths[at][0])
        for done, at in enumerate(order):
            words, lines = widths[at]
            more = min(lines - words, spare // (len(order) - done))
            table.columns[at].width = words + more - _PADDING
            spare -= more
        super().print(_Trimmed(table))
        return left_out

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text, with its control characters made visible."""
        return super().render_str(visible(text), **options)

    def _widths(self, table: Table) -> list[tuple[int, int]]:
        """Return for each column the width of its longest word and of its longest line, padding included."""
        options = self.options.update(max_width=100_000)
        found = []
        for column in table.columns:
            words, lines = measure_renderables(self, options, [column.header, *column.cells])
            found.append(((lines if column.no_wrap else words) + _PADDING, lines + _PADDING))
        return found

    def _print_blocks(self, table: Table) -> None:
        if table.title:
            self.print(table.title, soft_wrap=True)
        for cells in zip(*(column.cells for column in table.columns), strict=True):
            for column, cell in zip(table.columns, cells, strict=True):
                if cell:
                    self.print_line(f"{column.header}: {cell}" if column.header else f"{cell}")
            self.print()


class _Trimmed:
    """Lines rendered by rich, without the blanks at their ends.

    Args:
        renderable: The object to render.
    """

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rendered lines."""
        for line in console.render_lines(self._renderable, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                text, style, control = line.pop()
                yield from (*line, Segment(text.rstrip(), style, control))
            yield Segment.line()


class Column(rich.progress.TextColumn):
    """A column of a progress bar that shows a field's text literally, in one line."""

    def render(self, task: rich.progress.Task) -> Text:
        """Return the field's text in one line."""
        return Text(" ".join(visible(self.text_format.format(task=task)).split()))


class ElapsedColumn(rich.progress.ProgressColumn):
    """A column of a progress bar with the seconds since the task's field `since` (`time.perf_counter`), if that is set."""

    def render(self, task: rich.progress.Task) -> Text:
        """Return the elapsed seconds, as `12 s`."""
        since = task.fields.get("since")
        return Text("" if since is None else f"{time.perf_counter() - since:.0f} s")


class Counted(rich.progress.ProgressColumn):
    """A column of a progress bar that is empty where seconds are shown (`ElapsedColumn`), or no total is known.

    Args:
        column: The column that is shown otherwise.
    """

    def __init__(self, column: rich.progress.ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: rich.progress.Task) -> RenderableType:
        """Return the rendered column, or nothing."""
        counted = task.total and task.fields.get("since") is None
        return self._column.render(task) if counted else Text("")
