"""Fit text into a width: break lines at spaces, or cut a text."""

from __future__ import annotations

import re
import textwrap

_COMMAND = re.compile(r"\s*mteb-vllm ")
# A word of a shell, with the quotes in it.
_WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"]|['\"])+")


def wrap_lines(text: str, width: int) -> str:
    """Return the text with its lines broken at spaces; words that are longer than a line stay whole.

    Continuation lines are indented as far as the text behind the line's own indentation or bullet, else by two spaces. A line
    that is a command gets backslashes, so that it can still be pasted into a shell.

    Args:
        text: The text, one or more lines.
        width: The width of a line in characters.
    """
    return "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    start = re.match(r"\s*(?:[-*] )?", line)
    indent = " " * (len(start[0]) if start and start[0] else 2)
    if _COMMAND.match(line):
        return _wrapped_command(line, width, indent)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )


def _wrapped_command(line: str, width: int, indent: str) -> str:
    first, *rest = _WORD.findall(line)
    lines = [line[: len(line) - len(line.lstrip())] + first]
    for word in rest:
        if len(lines[-1]) + len(word) + 3 > width:
            lines.append(f"{indent}    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def cut(text: str, limit: int) -> str:
    """Return a text cut to at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
