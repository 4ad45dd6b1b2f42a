"""Sentences made of texts that may come from elsewhere, such as the messages of libraries."""

from __future__ import annotations


def sentence(text: str) -> str:
    """Return a text with a full stop at its end, unless it already ends with one, or with another end of a sentence."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
