"""What a result depends on besides its task, as one hash.

A result is reused only if nothing that could have changed it differs: model and revision (or the hash of local weights),
every engine argument and the engine's environment, prompts and templates, the kind of device, and the versions of vLLM,
torch, transformers and mteb. What vLLM resolves from these (dtype, pooling, context length) follows from them; it is
recorded beside the scores.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import uuid
from collections.abc import Callable, Mapping
from types import CodeType

from mteb_vllm.util.plain import Json

# Raised with every change of ours after which the same settings give other embeddings or scores.
METHOD = 3

# Variables of vLLM's that change what is printed or kept where, and no result.
_UNCOUNTED = re.compile(
    r"VLLM_(LOGGING_.*|CONFIGURE_LOGGING|CACHE_ROOT|CONFIG_ROOT|ASSETS_.*|NO_USAGE_STATS|USAGE_.*|DO_NOT_TRACK|HOST_IP|PORT|DIST_IDENT"
    r"|RPC_.*|WORKER_MULTIPROC_METHOD|TRACE_.*|DEBUG_.*|LOG_.*)"
)


def fingerprint(settings: Mapping[str, Json]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the settings' canonical JSON.

    Raises:
        TypeError: if something in the settings is no plain value, since two different objects might then look alike.
    """
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def is_ignored_variable(name: str) -> bool:
    """Whether a variable of vLLM's changes only what is printed, or kept where."""
    return _UNCOUNTED.fullmatch(name) is not None


def callable_identity(function: Callable[..., object]) -> str:
    """What a callable does, as far as that can be known: the hash of its compiled code.

    One that holds anything else (a closure, defaults, an object) is known by itself only: what it computes is never taken
    for another's, nor found again in another process.
    """
    if inspect.isfunction(function) and not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
        digest = hashlib.sha256(repr(_code(function.__code__)).encode()).hexdigest()[:16]
        return f"{function.__module__}:{function.__qualname__}#{digest}"
    return f"{type(function).__name__}#{_STRANGERS.setdefault(id(function), (uuid.uuid4().hex, function))[0]}"


# Kept beside their names, so that no other object comes to have the same id.
_STRANGERS: dict[int, tuple[str, object]] = {}


def _code(code: CodeType) -> tuple[object, ...]:
    constants = tuple(_code(item) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants
