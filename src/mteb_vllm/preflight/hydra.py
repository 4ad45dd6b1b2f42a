"""Restrict what Hydra's own settings can instantiate to its plugins and to Python's log handlers.

Hydra instantiates any `_target_` below `hydra.callbacks`, and those nested in the settings of launchers and sweepers;
Python's `logging.config` imports the targets of `()`, `class` and `ext://`. Otherwise any YAML file could run any code.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mteb_vllm.errors import Mistake
from mteb_vllm.util.masking import MaskingFormatter, mask
from mteb_vllm.util.quiet import LogFile

# Registered with Hydra when a sweep starts: the launcher for this machine, and the one for SLURM.
LOCAL_LAUNCHER = "hydra_plugins.mteb_vllm.EngineGroupedLauncher"
SLURM_LAUNCHER = "hydra_plugins.mteb_vllm.SlurmLauncher"

# The sweeper of `hydra/sweeper=optuna`.
SEARCH_SWEEPER = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
MISSING_SEARCH = Mistake(
    "hydra/sweeper", "needs the package hydra-optuna-sweeper", "Install it: pip install 'mteb-vllm[search]'",
    value="optuna", code="not_installed",
)  # fmt: skip

_FORMATTERS = (f"{MaskingFormatter.__module__}.{MaskingFormatter.__name__}", "colorlog.ColoredFormatter")
_HANDLERS = (f"{LogFile.__module__}.{LogFile.__name__}",)

_WAY = "Allowed: those of Hydra and of its installed plugins (packages in hydra_plugins)."


def hydra_mistakes(hydra: DictConfig) -> list[Mistake]:
    """Return a mistake for each class in Hydra's settings that is not allowed; none is instantiated."""
    mistakes = []
    installed = Plugins.instance().class_name_to_class
    for part, kind in (("launcher", Launcher), ("sweeper", Sweeper)):
        target = _value(hydra[part], "_target_")
        if target not in (LOCAL_LAUNCHER, SLURM_LAUNCHER) and not issubclass(installed.get(str(target), object), kind):
            mistakes.append(
                Mistake(
                    f"hydra.{part}._target_", f"is not an installed {part}", _WAY, value=f"{target}", code="refused"
                )
            )
    callbacks = hydra.get("callbacks")
    for name in callbacks or ():
        node = _value(callbacks, name)
        target = _value(node, "_target_") if isinstance(node, DictConfig) else None
        if not _is_callback(target):
            mistakes.append(
                Mistake(
                    f"hydra.callbacks.{name}._target_",
                    "is not an installed callback",
                    _WAY,
                    value=f"{target}",
                    code="refused",
                )
            )
    known: set[str] | None = None
    for part in ("launcher", "sweeper", "callbacks"):
        for path, target in _targets(hydra.get(part), f"hydra.{part}"):
            depth = 3 if part == "callbacks" else 2
            if len(path.split(".")) > depth:
                known = _plugin_targets() if known is None else known
                if target not in known:
                    mistakes.append(
                        Mistake(
                            f"{path}._target_",
                            "is not a target that an installed plugin declares",
                            _WAY,
                            value=f"{target}",
                            code="refused",
                        )
                    )
    for part in ("job_logging", "hydra_logging"):
        mistakes += _logging_mistakes(hydra.get(part), f"hydra.{part}", ())
    return mistakes


def missing_search_mistakes(overrides: Sequence[Override]) -> list[Mistake]:
    """Return a mistake if an override chooses the sweeper `optuna`, but its package is not installed."""
    chosen = any(override.key_or_group == "hydra/sweeper" and override.value() == "optuna" for override in overrides)
    return [MISSING_SEARCH] if chosen and SEARCH_SWEEPER not in Plugins.instance().class_name_to_class else []


def secret_name_mistakes(hydra: DictConfig) -> list[Mistake]:
    """Return a mistake for each setting by which a secret would become part of a folder's name."""
    names = {"hydra.run.dir": (hydra.run, "dir"), "hydra.sweep.dir": (hydra.sweep, "dir")}
    names |= {"hydra.sweep.subdir": (hydra.sweep, "subdir"), "hydra.job.name": (hydra.job, "name")}
    mistakes = []
    for key, (node, field) in names.items():
        written: Any = OmegaConf.to_container(node, resolve=False)
        raw = str(written[field])
        if "override_dirname" in raw or mask(raw) != raw or mask(str(_value(node, field))) != str(_value(node, field)):
            mistakes.append(
                Mistake(
                    key, "would contain a secret", "Use the point's number: ${hydra.job.num}", value=raw, code="refused"
                )
            )
    return mistakes


def has_outside_references(hydra: DictConfig) -> bool:
    """Return whether settings that name code refer to keys outside of `hydra`, whose values may differ between points."""
    made = OmegaConf.masked_copy(hydra, ["launcher", "sweeper", "callbacks", "job_logging", "hydra_logging"])
    return re.search(r"\$\{(?!hydra[.:])", str(OmegaConf.to_container(made))) is not None


def search_path_mistakes(overrides: Sequence[str]) -> list[Mistake]:
    """Return a mistake for each override that makes Hydra import a package to search it for files."""
    way = "Name a folder instead: hydra.searchpath=[file:///folder], or --config-dir."
    return [
        Mistake(
            "hydra.searchpath",
            "Hydra would import this package, which runs its code",
            way,
            written=text,
            code="refused",
        )
        for text in overrides
        if text.lstrip("+~").startswith("hydra.searchpath") and "pkg://" in text
    ]


def _is_callback(target: Any) -> bool:
    """Return whether a target is a callback class of Hydra or of one of its plugins."""
    module, _, name = str(target).rpartition(".")
    if module != "hydra.experimental.callbacks" and not module.startswith("hydra_plugins."):
        return False
    try:
        # Hydra has already imported all of its plugins.
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, Callback)


def _plugin_targets() -> set[str]:
    """Return the targets in the configurations that Hydra's plugins have registered, such as the samplers of Optuna."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, ConfigNode):
            yield from (target for _, target in _targets(node.node, ""))
        elif isinstance(node, dict):
            for inner in node.values():
                yield from walk(inner)

    return set(walk(ConfigStore.instance().repo.get("hydra", {})))


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the target of every node with a `_target_`, from this node downwards."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in node:
            value = _value(node, key)
            if key == "_target_":
                yield path, str(value)
            else:
                yield from _targets(value, f"{path}.{key!s}")
    elif isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        for at in range(len(node)):
            yield from _targets(_value(node, at), f"{path}.{at}")


def _logging_mistakes(node: Any, path: str, keys: tuple[str, ...]) -> Iterator[Mistake]:
    """Yield a mistake for everything that a `logging` configuration would import, except its own and Python's handlers."""
    if isinstance(node, (DictConfig, ListConfig)) and not node._is_none() and not node._is_missing():
        for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
            value, at = _value(node, key), f"{path}.{key}"
            if key in ("()", "class") and not _is_logging_class(value, formatter="formatters" in keys):
                yield Mistake(at, "is not a handler or formatter of Python's logging", value=f"{value}", code="refused")
            yield from _logging_mistakes(value, at, (*keys, str(key)))
    elif isinstance(node, str) and node.startswith("ext://") and node not in ("ext://sys.stdout", "ext://sys.stderr"):
        what = "is not allowed, since it would be imported"
        yield Mistake(path, what, "Allowed: ext://sys.stdout, ext://sys.stderr.", value=node, code="refused")


def _is_logging_class(name: Any, *, formatter: bool) -> bool:
    if name is None or name in (_FORMATTERS if formatter else _HANDLERS):
        return True
    if re.fullmatch(r"logging\.(handlers\.)?\w+", str(name)) is None:
        return False
    module, _, attribute = str(name).rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None)
    return isinstance(found, type) and issubclass(found, logging.Formatter if formatter else logging.Handler)


def _value(node: Any, key: Any) -> Any:
    """Return a value, resolved if that is possible before a job runs."""
    try:
        return node[key]
    except OmegaConfBaseException:
        return str(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[index]
