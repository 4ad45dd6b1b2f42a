"""The fingerprint: one hash of everything that a result depends on, except its task.

A result is reused only if nothing that could have changed it differs: model and revision (or the hash of local weights),
every engine argument and the engine's environment, prompts and templates, the kind of device, and the versions of vLLM,
torch, transformers and mteb. The values that vLLM resolves from these (dtype, pooling, context length) are not part of the
hash; they are recorded with the scores.
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

# Raised with every change to this package after which the same settings give different embeddings or scores.
METHOD = 3

# vLLM's environment variables that affect only output or file locations, and no result.
_IGNORED = re.compile(
    r"VLLM_(LOGGING_.*|CONFIGURE_LOGGING|CACHE_ROOT|CONFIG_ROOT|ASSETS_.*|NO_USAGE_STATS|USAGE_.*|DO_NOT_TRACK|HOST_IP|PORT|DIST_IDENT"
    r"|RPC_.*|WORKER_MULTIPROC_METHOD|TRACE_.*|DEBUG_.*|LOG_.*)"
)


def fingerprint(settings: Mapping[str, Json]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the settings' canonical JSON.

    Raises:
        TypeError: if the settings contain anything but plain values, whose text might be the same for different objects.
    """
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def is_ignored_variable(name: str) -> bool:
    """Whether an environment variable of vLLM's affects only output or file locations."""
    return _IGNORED.fullmatch(name) is not None


def callable_identity(function: Callable[..., object]) -> str:
    """Return an identifier of a callable's behaviour: for a plain function, a hash of its compiled code.

    A callable with a closure, defaults or other state gets a random identifier, which is unique to this object and process,
    so its results are never reused.
    """
    if inspect.isfunction(function) and not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
        digest = hashlib.sha256(repr(_code(function.__code__)).encode()).hexdigest()[:16]
        return f"{function.__module__}:{function.__qualname__}#{digest}"
    return f"{type(function).__name__}#{_RANDOM_IDS.setdefault(id(function), (uuid.uuid4().hex, function))[0]}"


# Callables are kept alive together with their identifiers, so that no other object gets the same id.
_RANDOM_IDS: dict[int, tuple[str, object]] = {}


def _code(code: CodeType) -> tuple[object, ...]:
    constants = tuple(_code(item) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants
