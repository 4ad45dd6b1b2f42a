"""Compose the points of a command leniently, and collect the mistakes in them.

Hydra's own composition stops at the first bad key.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.config.limits import reference_mistakes
from mteb_vllm.config.overrides import (
    NOT_COMPOSED,
    apply,
    choice_mistake,
    override_mistake,
    override_text,
    parse_overrides,
    reference_mistake,
)
from mteb_vllm.config.schema import (
    LauncherConfig,
    RunConfig,
    SearchConfig,
    SlurmConfig,
    build,
    compose_config,
    conf_dir,
    group_options,
    load_file,
    parse_what_fits,
)
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.preflight.discovery import with_fields
from mteb_vllm.preflight.files import (
    OVERLAYS,
    OwnFile,
    encoding_mistakes,
    explain_key,
    file_mistake,
    head_mistake,
    own_file,
    with_ending,
)
from mteb_vllm.preflight.hydra import (
    LOCAL_LAUNCHER,
    MISSING_SEARCH,
    SEARCH_SWEEPER,
    SLURM_LAUNCHER,
    has_outside_references,
    hydra_mistakes,
    secret_name_mistakes,
)
from mteb_vllm.util.masking import find_secrets, in_engine, protect, register_fields
from mteb_vllm.util.shell import hydra_value, suggest
from mteb_vllm.util.suggestions import nearest
from mteb_vllm.util.wrapping import cut

_Settings = TypeVar("_Settings")

# The settings of each launcher that opens an engine once for all points that share it.
_LAUNCHERS: dict[str, type[LauncherConfig | SlurmConfig]] = {
    LOCAL_LAUNCHER: LauncherConfig,
    SLURM_LAUNCHER: SlurmConfig,
}


class Composition:
    """Composes points; each combination of group choices is composed only once.

    Attributes:
        sweeps: Whether the configuration itself requests a sweep.
        searches: Whether its sweeper is a search, which chooses the points while it runs.
        grouped: Whether its launcher is `engine_grouped` or `slurm`.
        sampler: The class of a search's sampler.
        axes: The configuration's own axes (`hydra.sweeper.params`).
        mistakes: The mistakes in Hydra's own settings.
        launcher: The settings of that launcher; None with another one, or if they have mistakes.
    """

    def __init__(self, overrides: Sequence[Override]) -> None:
        self.sweeps = self.searches = self.grouped = False
        self.sampler = ""
        self.axes: list[Override] = []
        self.mistakes: list[Mistake] = []
        self.launcher: LauncherConfig | SlurmConfig | None = None
        # Valid overrides of Hydra's own settings; first those of the search path, which decides which files are found.
        self._fixed = [override_text(override) for override in overrides if override.key_or_group == "hydra.searchpath"]
        self._fixed_paths = tuple(self._fixed)
        self._options = functools.cache(lambda group: group_options(group, self._fixed))
        self._file = functools.cache(load_file)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._checked_bases: dict[int, list[Mistake]] = {}  # by the id of a base
        self._clock = OmegaConf.create()  # holds the values of `${now:...}`
        self._own: dict[OwnFile, None] = {}  # the user's files that were chosen, in their order
        self._typed = {override.key_or_group: override for override in overrides}
        self._alternatives: Callable[[tuple[str, ...], str], tuple[str, ...]] = functools.cache(
            self._compose_alternative
        )
        choices, values, _ = self._split([override for override in overrides if not override.is_sweep_override()])
        try:
            config = self._base(choices).copy()
        except (*NOT_COMPOSED, ConfigError):
            return  # `point` reports the reason
        try:
            self._read_settings(config, values)
        except OmegaConfBaseException as error:  # such as a reference to an environment variable that is not set
            self.mistakes.append(reference_mistake(error, values))

    def _read_settings(self, config: DictConfig, values: Sequence[Override]) -> None:
        """Read Hydra's own settings from a composed configuration."""
        OmegaConf.set_readonly(config.hydra, False)
        self.searches = str(config.hydra.sweeper.get("_target_")) == SEARCH_SWEEPER
        for override in values:
            if override.is_hydra_override():
                found = apply(override, config)
                self.mistakes += found
                self._fixed += [] if found else [override_text(override)]
        if (settings := _LAUNCHERS.get(str(config.hydra.launcher.get("_target_")))) is not None:
            self.grouped = True
            self.launcher, found = _parse_settings(settings, config.hydra.launcher, "hydra.launcher")
            self.mistakes += found
        self.mistakes += _job_mistakes(config.hydra.job)
        if self.searches:
            self.mistakes += _sweeper_mistakes(config.hydra.sweeper)
            self.sampler = str((config.hydra.sweeper.get("sampler") or {}).get("_target_"))
        self.sweeps = config.hydra.mode == RunMode.MULTIRUN
        params = config.hydra.sweeper.get("params") or {}
        params = params if isinstance(params, Mapping) else {}  # `SearchConfig` reports it
        self.axes, unread = parse_overrides([f"{key}={value}" for key, value in params.items()])
        self.mistakes += unread

    def explain(self, mistakes: Sequence[Mistake]) -> list[Mistake]:
        """Return the mistakes, with what was probably meant by those whose reason is elsewhere than their key."""
        return [self._explain(mistake) for mistake in dict.fromkeys(mistakes)]

    def _explain(self, mistake: Mistake) -> Mistake:
        override = self._typed.get(mistake.key)
        if override is not None and override.value() == "" and mistake.value == "" and not mistake.nearest:
            return replace(mistake, what="is empty", code="missing")
        if override is not None and override.is_delete():
            return mistake
        if mistake.code == "unknown_key" and mistake.key.startswith(("pipeline.", "engine.", "hydra.")):
            mistake = self._with_owner(mistake, override)
        if mistake.code == "unknown_key" and override is not None and "." not in mistake.key and not override.package:
            mistake = self._with_group(mistake, override)
        return mistake if override is not None or mistake.written else explain_key(mistake, list(self._own))

    def _with_owner(self, mistake: Mistake, override: Override | None) -> Mistake:
        """Return the mistake of an unknown key with the files that have this key, or else with similar keys of theirs."""
        parent, _, name = mistake.key.rpartition(".")
        parts = mistake.key.split(".")
        groups = ["/".join(parts[:end]) for end in range(1, len(parts))]
        groups = [group for group in groups if group != "hydra" and self._options(group)]
        if not groups or (groups == ["engine"] and mistake.nearest):
            return mistake
        single: list[list[tuple[str, ...]]] = [
            [(f"{group}={option}",) for option in self._options(group)] for group in groups
        ]
        pairs = [one + other for one in single[0] for other in single[1]] if len(single) > 1 else []
        similar: dict[tuple[str, ...], tuple[str, ...]] = {}
        for words_of_level in (*single, pairs):
            owners = []
            for words in words_of_level:
                keys = self._alternatives(words, parent)
                if name in keys:
                    owners.append(words)
                elif alike := nearest(name, keys, 1):
                    similar[words] = alike
            shipped = [words for words in owners if all(_is_shipped(word) for word in words)]
            if owners := shipped or owners:
                text = "" if override is None else override_text(override).lstrip("+")
                what = f"this key belongs to {' or '.join(' '.join(words) for words in owners)}"
                near = tuple(" ".join([*words, *([shlex.quote(text)] if text else [])]) for words in owners)
                return replace(mistake, what=what, nearest=near, allowed="")
        if mistake.nearest or override is None or parts[0] == "engine":
            return mistake
        value = override_text(override).partition("=")[2]
        meant = [
            " ".join([*words, shlex.quote(f"{parent}.{key}={value}")])
            for words, found in similar.items()
            if all(_is_shipped(word) for word in words)
            for key in found
        ]
        return replace(mistake, nearest=tuple(meant[:3]), allowed="" if meant else mistake.allowed)

    def _compose_alternative(self, words: tuple[str, ...], parent: str) -> tuple[str, ...]:
        """Return the keys of a section that the configuration has with these choices."""
        try:
            node = OmegaConf.select(compose_config([*self._fixed_paths, *words]), parent)
        except NOT_COMPOSED:
            return ()
        return tuple(map(str, node)) if isinstance(node, DictConfig) else ()

    def _with_group(self, mistake: Mistake, override: Override) -> Mistake:
        """Return the mistake of an unknown key without a dot with the groups that have a file of this name."""
        if mistake.key == "local":
            way = (
                "Settings of this machine: put them into local/default.yaml in a folder of yours, and add --config-dir."
            )
            mistake = replace(mistake, what="there is no folder local/", allowed=way)
        if mistake.nearest:
            return mistake
        value = override.value()
        groups = [path.name for path in sorted(conf_dir().iterdir()) if path.is_dir() and path.name != "hydra"]
        near = [f"{group}={value}" for group in groups if value in self._options(group)]
        near = near or [f"{group}={value}" for group in nearest(mistake.key, groups)]
        way = "" if near and mistake.key != "local" else mistake.allowed
        return replace(mistake, nearest=tuple(map(shlex.quote, near)), allowed=way)

    def _own_files(self, choices: Sequence[Override], chosen: Mapping[str, object] | None = None) -> list[OwnFile]:
        """Return the user's own files among the chosen ones.

        Args:
            choices: The choices on the command line.
            chosen: The file of each group in a composed configuration; None if it could not be composed.
        """
        if chosen is None:
            chosen = {"local": "default"} | {choice.key_or_group: choice.value() for choice in choices}
        names = [
            (group.partition("@")[0], name)
            for group, value in chosen.items()
            for name in (value if isinstance(value, list) else [value])
        ]
        return [file for group, name in names if (file := own_file(group, name)) is not None]

    def with_fields(self, mistakes: Sequence[Mistake]) -> list[Mistake]:
        """Return the mistakes, those of choices that Hydra cannot read with the fields that were probably meant."""
        return [
            with_fields(mistake, mistake.written, self._options(mistake.key), self._file, mteb_catalogue())
            if mistake.key in ("tasks", "model") and mistake.written
            else mistake
            for mistake in mistakes
        ]

    def point(self, overrides: Sequence[Override]) -> tuple[DictConfig | None, RunConfig | None, list[Mistake]]:
        """Return the composed configuration of a point, untyped and typed (None where it fails), and its mistakes."""
        choices, values, mistakes = self._split(overrides)
        try:
            base = self._base(choices)
        except ConfigError as error:
            return None, None, [*mistakes, *error.mistakes]
        except NOT_COMPOSED as error:
            return None, None, [*mistakes, *_composition_mistakes(error, choices, self._own_files(choices))]
        files = base.hydra.runtime.choices
        self._own |= dict.fromkeys(self._own_files(choices, files))
        if wrong := [one for file in self._own if (one := head_mistake(file)) is not None]:
            return None, None, [*mistakes, *wrong]
        config = OmegaConf.masked_copy(base, [str(key) for key in base if key != "hydra"])
        # All points of a command share the time of `${now:...}`, as those of a sweep of Hydra's do.
        OmegaConf.copy_cache(self._clock, config)
        OmegaConf.set_struct(config, True)
        for override in values:
            if not override.is_hydra_override():
                mistakes += apply(override, config)
        if files.get("experiment") is not None or self._options("local"):
            by_hand = [override.key_or_group for override in values]
            mistakes += [mistake for choice in choices for mistake in self._overlay_mistakes(choice, by_hand, config)]
        for at in ("model", "pipeline.first_stage.model"):
            mistakes += self._name_mistakes(files.get("model" if at == "model" else f"model@{at}"), config, at)
        if endless := reference_mistakes(config):
            return None, None, [*mistakes, *endless]
        mistakes += self._hydra_mistakes(base, config)
        try:
            plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            return None, None, [*mistakes, reference_mistake(error, values)]
        OmegaConf.copy_cache(config, self._clock)
        secrets = find_secrets(config)
        protect(plain, secrets)
        if secrets:
            mistakes += secret_name_mistakes(base.hydra)
        for path in sorted(secrets, key=str):
            if not in_engine(path):
                what = "must not contain a secret: results depend on it, and secrets are not part of fingerprints"
                way = "Secrets are only allowed in engine arguments and engine.env."
                mistakes.append(Mistake(".".join(map(str, path)), what, way, code="refused"))
        for overlay in OVERLAYS:
            if isinstance(plain.get(overlay), dict):
                what = "the first line of its file must be: # @package _global_"
                mistakes.append(Mistake(overlay, what, value=f"{files.get(overlay)}"))
                del plain[overlay]
        made, found = parse_what_fits(plain)
        return config, made, [*mistakes, *found]

    def launched(self, overrides: Sequence[Override], config: DictConfig) -> tuple[tuple[str, ...], DictConfig]:
        """Return a point's overrides and configuration as Hydra passes them to a launcher and a job.

        `test_a_sweeps_points_are_those_that_hydra_would_compose` compares both with Hydra's own.

        Args:
            overrides: The overrides of the point.
            config: The composed configuration without Hydra's own settings.
        """
        own = [override for override in overrides if not override.is_hydra_override()]
        texts = tuple(map(_launcher_text, own))
        whole = config.copy()
        with open_dict(whole):
            whole.hydra = self._base(self._split(overrides)[0]).hydra
        OmegaConf.set_readonly(whole.hydra, False)
        job = whole.hydra.job
        whole.hydra.overrides.task = list(texts)
        job.override_dirname = get_overrides_dirname(
            [replace(override, input_line=text) for override, text in zip(own, texts, strict=True)],
            **{name: job.config.override_dirname[name] for name in ("exclude_keys", "item_sep", "kv_sep")},
        )
        OmegaConf.copy_cache(config, whole)
        return texts, whole

    def folder(self, overrides: Sequence[Override], swept: bool) -> Path | None:
        """Return Hydra's folder of a run or sweep; None if only Hydra can determine it, when a point runs."""
        choices, values, _ = self._split(overrides)
        whole = self._base(choices).copy()
        OmegaConf.copy_cache(self._clock, whole)
        try:
            for override in values:
                if not override.is_hydra_override():
                    apply(override, whole)
            return Path(str(whole.hydra.sweep.dir if swept else whole.hydra.run.dir))
        except OmegaConfBaseException:
            return None

    def _split(self, overrides: Sequence[Override]) -> tuple[list[Override], list[Override], list[Mistake]]:
        """Split overrides into choices of existing files, values of fields, and mistakes: choices of missing files."""
        choices, values, mistakes = [], [], []
        for override in overrides:
            key = override.key_or_group
            options = self._options(key) if "." not in key else []
            if not options or isinstance(override.value(), dict):
                values.append(override)
            elif (mistake := choice_mistake(override, options)) is not None:
                mistake = with_fields(mistake, override_text(override), options, self._file, mteb_catalogue())
                mistakes.append(with_ending(mistake, key, override.value()))
            else:
                choices.append(override)
        return choices, [override for override in values if override.key_or_group != "hydra.searchpath"], mistakes

    def _base(self, choices: Sequence[Override]) -> DictConfig:
        texts = (*self._fixed, *map(override_text, choices))
        if texts not in self._bases:
            self._bases[texts] = compose_config(texts)
            register_fields(self._bases[texts])
            if endless := reference_mistakes(self._bases[texts]):
                raise ConfigError(endless)
            # For ${hydra:...} in a user's file.
            HydraConfig.instance().set_config(self._bases[texts])
        return self._bases[texts]

    def _hydra_mistakes(self, base: DictConfig, config: DictConfig) -> list[Mistake]:
        if has_outside_references(base.hydra):
            whole = OmegaConf.merge({}, OmegaConf.masked_copy(base, ["hydra"]), config)
            return hydra_mistakes(whole.hydra)
        if id(base) not in self._checked_bases:
            self._checked_bases[id(base)] = hydra_mistakes(base.hydra)
        return self._checked_bases[id(base)]

    def _overlay_mistakes(self, choice: Override, by_hand: Sequence[str], config: DictConfig) -> Iterator[Mistake]:
        """Yield a mistake for each value with which an overlay overrides a file that was chosen on the command line."""
        group, name = choice.key_or_group, choice.value()
        if (
            choice.package
            or group not in ("prompts", "instruction", "score_template", "tasks")
            or not isinstance(name, str)
            or choice.is_delete()
        ):
            return
        chosen, now = self._file(f"{group}/{name}"), OmegaConf.to_container(config[group])
        assert isinstance(now, dict)
        if group == "prompts":
            chosen = {**dict.fromkeys(map(str, now)), **chosen}  # keys that the file lacks must be unset
        for path, value in _leaves(chosen):
            full = ".".join([group, *path])
            found: Any = now
            there = True
            for key in path:
                there = isinstance(found, Mapping) and key in found
                found = found[key] if there else None
            if found != value and not any(f"{full}.".startswith(f"{key}.") for key in by_hand):
                way = f"To use the file's value: {suggest(full if there else f'+{full}', value)}"
                what = f"the experiment (or local/) overrides its {full} with {cut(hydra_value(found), _LONGEST)}"
                yield override_mistake(choice, what, way)

    def _name_mistakes(self, recipe: Any, config: DictConfig, at: str) -> Iterator[Mistake]:
        """Yield a mistake if a pinned recipe is used under the name of another model."""
        chosen = self._file(f"model/{recipe}") if isinstance(recipe, str) else {}
        pinned = any(chosen.get(field) is not None for field in ("revision", "path", "package"))
        try:
            name = OmegaConf.select(config, f"{at}.name")
        except OmegaConfBaseException:
            return  # reported when the whole configuration is resolved
        readable = isinstance(name, (str, NoneType))
        if readable and pinned and chosen.get("name") not in (None, name):
            what = (
                f"the recipe {recipe} is for {chosen['name']}: its revision, path and prompts do not fit another model"
            )
            choice = "model=custom" if at == "model" else f"model@{at}=custom"
            yield Mistake(
                f"{at}.name",
                what,
                f"For another model: {choice} {suggest(f'{at}.name', name)}",
                value=f"{name}",
                code="conflict",
            )


def _composition_mistakes(error: Exception, choices: Sequence[Override], files: Sequence[OwnFile]) -> list[Mistake]:
    """Return the mistakes for which Hydra could not compose a configuration.

    Args:
        error: Hydra's error.
        choices: The chosen files.
        files: Those that are the user's own.
    """
    staged = [choice for choice in choices if choice.key_or_group == "pipeline/first_stage"]
    if staged and "No match in the defaults list" in str(error):
        return [
            override_mistake(staged[0], "only a pipeline with two stages has a first stage", "Add: pipeline=rerank")
        ]
    mounted = [choice for choice in choices if (choice.package or "").startswith("pipeline.first_stage.")]
    if mounted and "Could not override" in str(error):
        way = "In a sweep over first stages, put it into your own file: pipeline/first_stage/NAME.yaml"
        return [override_mistake(mounted[0], "only pipeline/first_stage=dense has this key", way)]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file == "hydra/sweeper/optuna":
        return [MISSING_SEARCH]
    undecoded = list(encoding_mistakes()) if isinstance(error, UnicodeDecodeError) else []
    return undecoded or [file_mistake(error, files)]


def _sweeper_mistakes(sweeper: DictConfig) -> list[Mistake]:
    """Return the mistakes in the settings of the sweeper `optuna`."""
    _, mistakes = _parse_settings(SearchConfig, sweeper, "hydra.sweeper")
    direction = getattr(sweeper.direction, "name", sweeper.direction)
    if direction != "maximize":
        way = "Add: hydra.sweeper.direction=maximize"
        mistakes.append(Mistake("hydra.sweeper.direction", "objectives are maximised", way, value=f"{direction}"))
    return mistakes


def _parse_settings(cls: type[_Settings], node: DictConfig, where: str) -> tuple[_Settings | None, list[Mistake]]:
    """Return Hydra's own settings of a launcher or sweeper, None if they have mistakes, and the mistakes."""
    try:
        values: Any = OmegaConf.to_container(node, resolve=True)
        return build(cls, {key: value for key, value in values.items() if key != "_target_"}, where), []
    except ConfigError as error:
        return None, list(error.mistakes)
    except OmegaConfBaseException as error:
        return None, [replace(reference_mistake(error, ()), key=where)]


def _job_mistakes(job: DictConfig) -> Iterator[Mistake]:
    if job.chdir:
        what = "is not supported: results.dir and the folders of models and data are relative to the working directory"
        yield Mistake("hydra.job.chdir", what, value="true")
    for name in job.env_set:
        if str(name).startswith("VLLM_"):
            what = "is a vLLM variable, which must be set in engine.env"
            yield Mistake(f"hydra.job.env_set.{name}", what, f"Set it with: +engine.env.{name}=...")


# The longest value that a message shows in full, in characters.
_LONGEST = 80


def _is_shipped(choice: str) -> bool:
    group, _, name = choice.partition("=")
    return (conf_dir() / group / f"{name}.yaml").is_file() or group.startswith("hydra/sweeper")


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (((key, *path), leaf) for path, leaf in _leaves(value))
        elif key != "defaults" and value != {}:
            yield (key,), value


def _launcher_text(override: Override) -> str:
    """Return a point's override as BasicSweeper passes it to a launcher."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"
