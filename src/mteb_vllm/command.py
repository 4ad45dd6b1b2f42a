"""From a command line to the points that it means, with every mistake found on the way.

Hydra's own composition stops at the first bad key. So overrides are read with Hydra's parser, sweeps expanded, each point
composed leniently, and what is wrong is collected; Hydra runs only what has passed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mteb_vllm.catalogue import mteb_catalogue, nearest, vllm_catalogue
from mteb_vllm.config import RunConfig, compose_config, composer, group_options, parse, parse_overrides
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.preflight import check_config, known_prompt_key

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Point:
    """One point of a sweep, or a single run, that has passed.

    Attributes:
        overrides: The command-line overrides that make it, sweeps expanded.
        config: What they compose to.
    """

    overrides: tuple[str, ...]
    config: RunConfig


def check(overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None) -> list[Point]:
    """Checks a whole command.

    Args:
        overrides: As on the command line.
        multirun: Whether commas sweep.
        config_dir: A user's folder of configuration files.

    Returns:
        the points, in the order in which Hydra runs them.

    Raises:
        ConfigError: with every mistake of every point, each once.
        MissingPackageError: if vLLM is not installed.
    """
    mistakes: list[Mistake] = []
    points = []
    with composer(config_dir):
        parsed = parse_overrides(overrides)
        sweeping = [override for override in parsed if override.is_sweep_override()]
        if sweeping and not multirun:
            for override in sweeping:
                mistakes.append(
                    Mistake(
                        str(override.input_line),
                        "several values, but no sweep",
                        "To sweep over them, add -m; for a list: key=[a,b].",
                    )
                )
            raise ConfigError(mistakes)
        composition = _Composition()
        for texts in _expand(parsed):
            config, found = composition.point(parse_overrides(texts))
            if config is not None:
                config_mistakes = check_config(config)
                found += config_mistakes
                points.append(Point(tuple(texts), config))
            mistakes += found
    if mistakes:
        raise ConfigError(mistakes)
    return points


class _Composition:
    """Composes points, each set of group choices once."""

    def __init__(self) -> None:
        self.bases: dict[tuple[str, ...], DictConfig] = {}

    def point(self, overrides: Sequence[Override]) -> tuple[RunConfig | None, list[Mistake]]:
        from hydra.errors import HydraException
        from omegaconf import OmegaConf, open_dict
        from omegaconf.errors import OmegaConfBaseException

        mistakes: list[Mistake] = []
        groups, values = [], []
        for override in overrides:
            kind = _group_mistake(override)
            if kind is None:
                values.append(override)
            elif isinstance(kind, Mistake):
                mistakes.append(kind)
            else:
                groups.append(str(override.input_line))
        try:
            base = self.bases.get(tuple(groups))
            if base is None:
                base = self.bases[tuple(groups)] = compose_config(groups)
            config = base.copy()
            for override in values:
                mistakes += _apply(override, config)
            with open_dict(config):
                del config["hydra"]
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            return None, [*mistakes, Mistake("configuration", " ".join(str(error).split()))]
        assert isinstance(plain, dict)
        try:
            return parse({str(key): value for key, value in plain.items()}), mistakes
        except ConfigError as error:
            return None, [*mistakes, *error.mistakes]


def _expand(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Every point's overrides, the last axis fastest, as Hydra's BasicSweeper has it."""
    axes = []
    for override in overrides:
        if override.is_sweep_override():
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([str(override.input_line)])
    for combination in itertools.product(*axes):
        yield list(combination)


def _group_mistake(override: Override) -> Mistake | bool | None:
    """True for a choice of a group's file that exists, a mistake for one that does not, None for a field."""
    key = override.key_or_group
    try:
        options = group_options(key) if "." not in key else []
    except Exception:  # Hydra raises what its storage does
        options = []
    if not options:
        return None
    value = override.value()
    chosen = value if isinstance(value, list) else [value]
    if override.is_delete() or all(item is None or str(item) in options for item in chosen):
        return True
    word = next(str(item) for item in chosen if str(item) not in options)
    return Mistake(
        str(override.input_line),
        f"there is no file {word}.yaml in {key}/",
        f"Files: {', '.join(options)}. Your own go into a folder given with --config-dir.",
        tuple(f"{key}={option}" for option in nearest(word, options)),
    )


def _apply(override: Override, config: DictConfig) -> list[Mistake]:
    """Sets a field even where Hydra would not, and says what Hydra would have said."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, written = override.key_or_group, str(override.input_line)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    exists = isinstance(node, Mapping) and name in node
    try:
        if override.is_delete():
            if not exists:
                return [Mistake(written, "there is nothing to delete", nearest=_near_keys(key, node, config))]
            from omegaconf import open_dict

            with open_dict(config):
                del node[name]
            return []
        if exists and key == "model.name" and _pinned(config) and override.value() != node[name]:
            return [
                Mistake(
                    written,
                    f"this recipe is {node[name]}'s, with a revision, path or prompts that are not another model's",
                    f"For another model: model=custom {written}",
                )
            ]
        OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        return [Mistake(written, " ".join(str(error).split()))]
    if exists or override.is_add() or override.is_force_add():
        return []
    if parent == "engine":
        vllm = vllm_catalogue()
        if vllm is not None and name not in vllm.args:
            return []  # preflight names it, with the right names beside it
        return [
            Mistake(written, "this engine argument has no name in conf/engine/ yet", f"Add it with a plus: +{written}")
        ]
    if parent == "prompts":
        if not known_prompt_key(name, mteb_catalogue()):
            return []  # likewise
        return [
            Mistake(written, "declared are query and document; others are added", f"Add it with a plus: +{written}")
        ]
    if parent == "engine.env":
        return [Mistake(written, "a new variable is added with a plus", f"+{written}")]
    near_keys = _near_keys(key, node, config)
    return [
        Mistake(written, "there is no such key", "" if near_keys else "mteb-vllm --cfg job prints all keys.", near_keys)
    ]


def _near_keys(key: str, node: Any, config: DictConfig) -> tuple[str, ...]:
    parent, _, name = key.rpartition(".")
    if isinstance(node, Mapping):
        return tuple(f"{parent}.{item}" if parent else item for item in nearest(name, [str(item) for item in node]))
    root, _, rest = key.partition(".")
    return tuple(f"{item}.{rest}" for item in nearest(root, [str(item) for item in config]))


def _pinned(config: DictConfig) -> bool:
    model = config.get("model") or {}
    return any(model.get(field) is not None for field in ("revision", "path", "package"))
