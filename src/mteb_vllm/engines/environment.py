"""Set an engine's environment variables while it is open, and restore the original ones afterwards.

The threading runtime reads its variables (`OMP_WAIT_POLICY`, ...) once, when torch is loaded. They have to be set before
torch is imported, and later changes have no effect in this process.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from mteb_vllm.util.fingerprint import is_ignored_variable
from mteb_vllm.util.masking import is_secret_name

# OpenMP (libgomp, libiomp5) and the math libraries of torch.
_THREADING = re.compile(r"(OMP|GOMP|KMP|MKL|OPENBLAS)_\w+")

# While a run or an engine has changed variables: the original values of all that it, or vLLM, may have set.
_before: dict[str, str | None] | None = None

# The variables of the threading runtime when torch was loaded; None while torch is not known to be loaded.
_found_by_torch: dict[str, str] | None = None


def threading_variables(values: Mapping[str, str]) -> dict[str, str]:
    """Select the variables that the threading runtime reads."""
    return {key: value for key, value in sorted(values.items()) if _THREADING.fullmatch(key)}


def set_threading_variables(values: Mapping[str, str]) -> None:
    """Set an engine's variables of the threading runtime; does nothing if torch is already loaded."""
    if "torch" not in sys.modules:
        apply_variables(threading_variables(values))


def apply_variables(values: Mapping[str, str]) -> None:
    """Set an engine's variables, and save the original values."""
    global _before
    _note_torch()
    if _before is None:
        _before = {key: value for key, value in os.environ.items() if _is_vllm_variable(key)}
    for key in values:
        # A vLLM variable that was not saved at the start has been set by vLLM since.
        _before.setdefault(key, None if _is_vllm_variable(key) else os.environ.get(key))
    os.environ.update(values)


def restore_variables() -> None:
    """Restore the original environment, so that neither an engine nor vLLM itself affects the next engine."""
    global _before
    if _before is None:
        return
    _note_torch()
    before, _before = _before, None
    for key in [*before, *(key for key in os.environ if _is_vllm_variable(key))]:
        value = before.get(key)
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def effective_threading_variables() -> dict[str, str]:
    """Return the variables of the threading runtime in effect in this process; empty while torch is not loaded."""
    _note_torch()
    return dict(_found_by_torch or {})


def outer_variables() -> dict[str, str]:
    """Return the environment without the changes of runs and open engines."""
    if _before is None:
        return dict(os.environ)
    others = {key: value for key, value in os.environ.items() if key not in _before and not _is_vllm_variable(key)}
    return others | {key: value for key, value in _before.items() if value is not None}


def shell_variables(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the vLLM variables of the shell that can change results, without those that `chosen` (`engine.env`) sets."""
    return {
        key: value
        for key, value in sorted(outer_variables().items())
        if _is_vllm_variable(key) and key not in chosen and not (is_ignored_variable(key) or is_secret_name(key))
    }


def _note_torch() -> None:
    # Called before each change made here: until then the variables are the ones that torch has read.
    global _found_by_torch
    if _found_by_torch is None and "torch" in sys.modules:
        _found_by_torch = threading_variables(os.environ)


def _is_vllm_variable(key: str) -> bool:
    # VLLM_CONFIGURE_LOGGING is set by the run itself (`util.quiet`), from before its engines open until they are closed.
    return key.startswith("VLLM_") and key != "VLLM_CONFIGURE_LOGGING"
