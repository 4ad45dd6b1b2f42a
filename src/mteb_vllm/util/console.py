"""The terminal: the only place where one is made, so that every text that is shown is shown as it is."""

from __future__ import annotations

from typing import Any

import rich.console
import rich.progress
from rich.text import Text

from mteb_vllm.util.escape import visible


class Console(rich.console.Console):
    """Rich's console without markup, emoji names and highlighting, on which nothing in a string steers the terminal.

    Strings become text in `render_str` alone, those of tables, too. A style is an argument or a `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def print_line(self, text: str, style: str | None = None) -> None:
        """Print a text without breaking its lines: it is copied, and searched in logs.

        Args:
            text: The text; nothing in it is markup.
            style: Its style, as `red`.
        """
        self.print(text, style=style, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text, with what would steer the terminal made visible."""
        return super().render_str(visible(text), **options)


class Column(rich.progress.TextColumn):
    """A column of a progress bar that shows a field's text as it is, in one line."""

    def render(self, task: rich.progress.Task) -> Text:
        """Return the field's text in one line."""
        return Text(" ".join(visible(self.text_format.format(task=task)).split()))
