"""The environment that engines work in: their variables for as long as they are open, and the shell's before and after.

Variables of the threading runtime (`OMP_WAIT_POLICY`, ...) are read once, when torch is loaded: they have to be set before
anything imports it, and stay what they were then for as long as the process lives.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from mteb_vllm.util.fingerprint import uncounted_variable
from mteb_vllm.util.masking import is_secret_name

# OpenMP's (libgomp's, libiomp5's) and the libraries' that torch computes with.
_THREADING = re.compile(r"(OMP|GOMP|KMP|MKL|OPENBLAS)_\w+")

# While a run works or engines are open: what the variables that they, or vLLM, may have set were before.
_before: dict[str, str | None] | None = None

# The variables of the threading runtime as torch has found them; None while it is not known to be loaded.
_found_by_torch: dict[str, str] | None = None


def threading(values: Mapping[str, str]) -> dict[str, str]:
    """Return those of some variables that the threading runtime reads."""
    return {key: value for key, value in sorted(values.items()) if _THREADING.fullmatch(key)}


def prepare(values: Mapping[str, str]) -> None:
    """Set an engine's variables of the threading runtime, before anything imports torch; where it is loaded, do nothing."""
    if "torch" not in sys.modules:
        enter(threading(values))


def enter(values: Mapping[str, str]) -> None:
    """Set the variables of an engine that opens, and keep what they were."""
    global _before
    _look_for_torch()
    if _before is None:
        _before = {key: value for key, value in os.environ.items() if _vllms(key)}
    for key in values:
        # A variable of vLLM's that was not there in the beginning has been set since, by vLLM.
        _before.setdefault(key, None if _vllms(key) else os.environ.get(key))
    os.environ.update(values)


def leave() -> None:
    """Restore the environment: one engine's, and what vLLM itself has set for it, must not be the next one's."""
    global _before
    if _before is None:
        return
    _look_for_torch()
    before, _before = _before, None
    for key in [*before, *(key for key in os.environ if _vllms(key))]:
        value = before.get(key)
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def in_effect() -> dict[str, str]:
    """Return the variables of the threading runtime that torch works by in this process; empty while it is not loaded."""
    _look_for_torch()
    return dict(_found_by_torch or {})


def outer() -> dict[str, str]:
    """Return the environment as it is without runs and the engines that are open."""
    if _before is None:
        return dict(os.environ)
    others = {key: value for key, value in os.environ.items() if key not in _before and not _vllms(key)}
    return others | {key: value for key, value in _before.items() if value is not None}


def shell(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of vLLM's from the shell, beside those of `engine.env`: they change results all the same."""
    return {
        key: value
        for key, value in sorted(outer().items())
        if _vllms(key) and key not in chosen and not (uncounted_variable(key) or is_secret_name(key))
    }


def _look_for_torch() -> None:
    # Before every change of ours: until then the variables are those that torch has found.
    global _found_by_torch
    if _found_by_torch is None and "torch" in sys.modules:
        _found_by_torch = threading(os.environ)


def _vllms(key: str) -> bool:
    # That one is the run's (`util.quiet`), from before its engines open until they are closed.
    return key.startswith("VLLM_") and key != "VLLM_CONFIGURE_LOGGING"
