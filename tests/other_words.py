"""Replaces every progress text and failure message of a process by random words.

Nothing may be decided from a text of ours: with other words a sweep has to end as it did.
"""

from __future__ import annotations

import random
from typing import Any

_OWN = "from mteb_vllm.sweep.child import main"
_WORDS = ["heron", "lintel", "ochre", "saddle", "tundra", "velvet", "walnut", "yonder"]


def words() -> str:
    return " ".join(random.choices(_WORDS, k=4))


def start(code: str) -> str:
    """Return what a child runs that speaks in other words: `code` is what it would run else."""
    assert _OWN in code
    return code.replace(_OWN, f"import other_words; other_words.install()\n{_OWN}")


def install(setattr_: Any = setattr) -> None:
    """Replace the texts in this process; `setattr_` may be a monkeypatch's, which undoes it."""
    from mteb_vllm import errors
    from mteb_vllm.results import failures
    from mteb_vllm.sweep import messages

    own = failures.Failure.__post_init__

    def failure(self: Any) -> None:
        object.__setattr__(self, "message", words())
        own(self)

    setattr_(failures.Failure, "__post_init__", failure)
    for message in (messages.Activity, messages.TaskProgress):
        setattr_(message, "__init__", _in_other_words(message.__init__))
    setattr_(errors.MtebVllmError, "__str__", lambda self: words())


def install_mistakes(setattr_: Any) -> None:
    """Replace every text of a mistake: what is left is its code and its key."""
    from mteb_vllm.errors import Mistake

    own = Mistake.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        for name in ("what", "allowed", "value", "written"):
            object.__setattr__(self, name, words())
        object.__setattr__(self, "nearest", (words(),))

    setattr_(Mistake, "__init__", init)


def _in_other_words(init: Any) -> Any:
    def called(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        object.__setattr__(self, "text", words())

    return called
