"""Escaping of foreign text (names, prompts, exceptions, records) in the program's output; one function per format.

Stored text is not escaped. Text is escaped once, when it is written for a reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Control characters except line feed and tab, bidirectional and invisible characters, and surrogates.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# Spreadsheets interpret a cell that starts with one of these as a formula.
_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")  # noqa: RUF001 - including full-width ones
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
    r"""Return a text with control, bidirectional and invisible characters escaped, as in `\x1b` or `\u202e`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Return a text as `visible` does, with line breaks and tabs escaped as well, as in `\n`."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def csv_cell(value: object) -> object:
    """Return a value for a CSV cell; text that a spreadsheet would take for a formula is prefixed with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(value) and not _is_number(value) else text


class Markdown(str):
    """A string that is already Markdown, in analogy to `markupsafe.Markup` for HTML."""

    __slots__ = ()


def inline(text: str) -> Markdown:
    """Return a text as one line of Markdown that renders literally, without HTML, links, images or table cells."""
    if isinstance(text, Markdown):
        return text
    line = " ".join(visible(text).splitlines())
    return Markdown(_MARKDOWN.sub(lambda found: {"<": "&lt;", "&": "&amp;"}.get(found[0], f"\\{found[0]}"), line))


def code(text: str) -> Markdown:
    """Return a text as a one-line Markdown code span, which is also valid inside a table."""
    line = "⏎".join(visible(text).splitlines())
    if "|" in line:  # in a table, a code span cannot escape it with a backslash
        entities = _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", line)
        return Markdown(f"<code>{entities}</code>")
    fence = _fence(line, 2)
    return Markdown(f"{fence} {line} {fence}")


def fenced(lines: Iterable[str]) -> list[str]:
    """Return lines as a Markdown code block, with a fence longer than any in the lines."""
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
