"""The environment that an engine works in: its own variables for as long as it is open, and the shell's before and after."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mteb_vllm.fingerprint import uncounted_variable
from mteb_vllm.masking import is_secret_name

# While engines are open: what the variables that they, or vLLM, may have set were before.
_before: dict[str, str | None] | None = None


def enter(values: Mapping[str, str]) -> None:
    """Sets the variables of the first engine that opens, and keeps what they were."""
    global _before
    _before = {key: os.environ.get(key) for key in values}
    _before |= {key: value for key, value in os.environ.items() if _vllms(key)}
    os.environ.update(values)


def leave() -> None:
    """Restores the environment: one engine's, and what vLLM itself has set for it, must not be the next one's."""
    global _before
    before, _before = _before or {}, None
    for key in [*before, *(key for key in os.environ if _vllms(key))]:
        value = before.get(key)
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def outer() -> dict[str, str]:
    """The environment as it is without the engines that are open."""
    if _before is None:
        return dict(os.environ)
    others = {key: value for key, value in os.environ.items() if key not in _before and not _vllms(key)}
    return others | {key: value for key, value in _before.items() if value is not None}


def shell(chosen: Mapping[str, str]) -> dict[str, str]:
    """Variables of vLLM's from the shell, beside those of `engine.env`: they change results all the same."""
    return {
        key: value
        for key, value in sorted(outer().items())
        if _vllms(key) and key not in chosen and not (uncounted_variable(key) or is_secret_name(key))
    }


def _vllms(key: str) -> bool:
    return key.startswith("VLLM_")
