"""Counts what is composed, made and planned, in this process and in the children of its sweeps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OWN = "from mteb_vllm.sweep.child import main"
_FILE = "COUNTED_BY_A_TEST"


def install(setattr_: Callable[[Any, str, Any], None] = setattr, file: Path | None = None) -> None:
    """Count from now on; `setattr_` may be a monkeypatch's, which undoes it.

    Args:
        setattr_: Replaces a function.
        file: Where what is counted goes; None: where the process that started this one has it.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    from mteb_vllm import plan
    from mteb_vllm.config import schema
    from mteb_vllm.pipelines import factory

    log = file if file is not None else Path(os.environ[_FILE])

    def counted(function: Any, name: Callable[..., str]) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            with log.open("a") as opened:
                opened.write(f"{name(*args)}\n")
            return function(*args, **kwargs)

        return called

    setattr_(
        ConfigLoaderImpl, "load_configuration", counted(ConfigLoaderImpl.load_configuration, lambda *_: "composed")
    )
    setattr_(plan, "_plan_model", counted(plan._plan_model, lambda *_: "planned"))
    build = counted(schema.build, lambda cls, *_: cls.__name__)
    setattr_(schema, "build", build)
    setattr_(factory, "build", build)


def start(monkeypatch: Any, file: Path) -> None:
    """Count in this process and in the children that it starts."""
    from mteb_vllm.sweep import process

    assert _OWN in process.START
    monkeypatch.setenv(_FILE, str(file))
    monkeypatch.setattr(process, "START", process.START.replace(_OWN, f"import counted; counted.install()\n{_OWN}"))
    install(monkeypatch.setattr, file)


def read(file: Path) -> Counter[str]:
    """Return how often each was done."""
    return Counter(file.read_text().split())
