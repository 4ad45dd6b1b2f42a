"""Text of others where it leaves the program: names, prompts, exceptions, records. One function for each target.

What is stored stays as it is; a text is escaped once, where it is written for a reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Control characters but line feed and tab, what turns the direction of writing or is invisible, and halves of characters.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# A spreadsheet takes these for the beginning of a formula.
_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")  # noqa: RUF001 - full-width ones too
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_MARKDOWN = re.compile(
    r"""\\(?=[!-/:-@\[-`{-~]|$)  # a backslash that would escape what follows
    |[`*<\[|~]
    |&(?=\#|\w+;)
    |(?<![^\W_])_|_(?![^\W_])
    |^>|^[-+](?=\s)|^\#{1,6}(?=\s)""",
    re.VERBOSE,
)


def visible(text: str) -> str:
    r"""Return a text in which nothing steers a terminal, turns the direction of writing or is invisible: `\x1b`, `\u202e`."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def csv_cell(value: object) -> object:
    """Return a value for a cell of CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(value) and not _is_number(value) else text


class Markdown(str):
    """A text that is Markdown already, as `markupsafe.Markup` is HTML."""

    __slots__ = ()


def inline(text: str) -> Markdown:
    """Return a text as one line of Markdown that shows it: no HTML, link, image or cell of a table comes of it."""
    if isinstance(text, Markdown):
        return text
    line = " ".join(visible(text).splitlines())
    return Markdown(_MARKDOWN.sub(lambda found: {"<": "&lt;", "&": "&amp;"}.get(found[0], f"\\{found[0]}"), line))


def code(text: str) -> Markdown:
    """Return a text as a code span of Markdown, in one line, that can stand in a table, too."""
    line = "⏎".join(visible(text).splitlines())
    if "|" in line:  # in a code span of a table, no backslash can stand before it
        entities = _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", line)
        return Markdown(f"<code>{entities}</code>")
    fence = _fence(line, 2)
    return Markdown(f"{fence} {line} {fence}")


def fenced(lines: Iterable[str]) -> list[str]:
    """Return lines as a block of code of Markdown that none of them ends."""
    shown = [visible(line) for line in lines]
    fence = _fence("\n".join(shown), 3)
    return [fence, *shown, fence]


def _fence(text: str, least: int) -> str:
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
