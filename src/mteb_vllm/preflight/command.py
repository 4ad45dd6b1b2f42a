"""Turn a command line into points, each one combination of a sweep's values, and collect all mistakes in them.

Hydra's own composition stops at the first bad key. So overrides are parsed with Hydra's parser, sweeps are expanded, each
point is composed leniently, and mistakes are collected; Hydra runs only commands without any.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mteb_vllm.catalogue import mteb_catalogue, vllm_catalogue, warm
from mteb_vllm.config.limits import reference_mistakes
from mteb_vllm.config.overrides import apply, choice_mistake, describe_error, parse_overrides, reference_mistake
from mteb_vllm.config.schema import (
    LauncherConfig,
    RunConfig,
    SearchConfig,
    SlurmConfig,
    build,
    check_working_folder,
    compose_config,
    composer,
    conf_dir,
    group_options,
    load_file,
    parse_what_fits,
)
from mteb_vllm.engines.arguments import backend_of, resolve_arguments
from mteb_vllm.engines.ray_cluster import clear_cluster_cache
from mteb_vllm.engines.vllm import INSTALL, import_early
from mteb_vllm.errors import Code, ConfigError, MissingPackageError, Mistake
from mteb_vllm.models.files import clear_model_cache
from mteb_vllm.pipelines.factory import PipelineParts, is_report
from mteb_vllm.preflight.checks import check_config, folder_mistakes
from mteb_vllm.preflight.devices import device_mistakes, engine_size_mistakes
from mteb_vllm.preflight.discovery import with_fields
from mteb_vllm.preflight.files import (
    OVERLAYS,
    OwnFile,
    encoding_mistakes,
    explain_key,
    file_mistake,
    head_mistake,
    own_file,
    shadowed_files,
    with_ending,
)
from mteb_vllm.preflight.hydra import (
    LOCAL_LAUNCHER,
    MISSING_SEARCH,
    SEARCH_SWEEPER,
    SLURM_LAUNCHER,
    has_outside_references,
    hydra_mistakes,
    missing_search_mistakes,
    search_path_mistakes,
    secret_name_mistakes,
)
from mteb_vllm.preflight.packages import package_mistakes, slurm_mistakes
from mteb_vllm.util.masking import find_secrets, in_engine, mask, protect, register_fields, register_written
from mteb_vllm.util.shell import hydra_value, keep_prefixes, suggest
from mteb_vllm.util.suggestions import nearest

_Settings = TypeVar("_Settings")

# The settings of each launcher that opens an engine once for all points that share it.
_LAUNCHERS: dict[str, type[LauncherConfig | SlurmConfig]] = {
    LOCAL_LAUNCHER: LauncherConfig,
    SLURM_LAUNCHER: SlurmConfig,
}

# The exceptions that Hydra raises for malformed files.
_NOT_COMPOSED = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError)


@dataclass(frozen=True)
class Point:
    """A checked point: one combination of a sweep's values, or a single run.

    Attributes:
        overrides: Its overrides, with one value for each swept key; secrets are masked.
        config: The composed configuration.
        swept: Whether it belongs to a sweep, because of `-m` or of the configuration's own `hydra.mode`.
        pipeline: The pipeline and its parts; None if it has not been made yet.
        launched: The overrides as Hydra passes them to a launcher, secrets included; empty for a single run.
        composed: The whole configuration of a point of a sweep, with Hydra's own settings under `hydra`.
        folder: Hydra's folder of the run or the sweep at the time of the check; None if only Hydra can determine it.
        searched: The keys whose values a search chooses; empty if this is not the default point of a search.
    """

    overrides: tuple[str, ...]
    config: RunConfig
    swept: bool
    pipeline: PipelineParts | None = None
    launched: tuple[str, ...] = field(default=(), repr=False)
    composed: DictConfig | None = field(default=None, repr=False, compare=False)
    folder: Path | None = None
    searched: tuple[str, ...] = ()


def check(overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None) -> list[Point]:
    """Check a whole command.

    Args:
        overrides: The overrides, as on the command line.
        multirun: Whether comma-separated values are a sweep.
        config_dir: The user's folder of configuration files.

    Returns:
        the points, in the order in which Hydra runs them. Of a search, only its default point, without the searched keys;
        each of their values is checked on its own, but the search chooses the combinations while it runs.

    Raises:
        ConfigError: with all mistakes of all points, without duplicates.
        MissingPackageError: if vLLM is not installed.
        CatalogueError: if mteb or vLLM is installed, but cannot be read.
    """
    check_working_folder()
    _clear_caches()
    register_written(overrides)
    points = []
    with composer(config_dir):
        parsed, mistakes = parse_overrides(overrides)
        unread = {mistake.section for mistake in mistakes}
        # Composing would import the package of a search path, and not know the settings of a missing sweeper.
        if fatal := [*search_path_mistakes(overrides), *missing_search_mistakes(parsed)]:
            raise ConfigError([*mistakes, *fatal])
        composition = _Composition(parsed)
        swept = multirun or composition.sweeps
        warm(lambda: None if swept else _import_engine(composition, parsed))
        mistakes = composition.with_fields(mistakes)
        # An override on the command line replaces the configuration's own axis of the same key.
        search = composition.searches and swept
        sampler = composition.sampler if search else None
        axes, unreadable = _axes([*composition.axes, *parsed] if swept else parsed, swept, sampler)
        launcher, unlaunched = _launcher(composition, swept)
        mistakes += [*shadowed_files(config_dir), *composition.mistakes, *unreadable, *unlaunched]
        typed = {override.key_or_group: _prefix(override) for override in parsed}
        combinations = _one_by_one(axes) if search else itertools.product(*(axis.values for axis in axes))
        for overrides_of_point in combinations:
            composed, config, found = composition.point(overrides_of_point)
            if config is not None:
                found += _target_mistakes(config, typed)
                with keep_prefixes(typed):
                    broken = unread | {mistake.section for mistake in found}
                    made, of_point = check_config(config, broken=broken)
                found += of_point or _size_mistakes(launcher, config, made)
                shown = tuple(mask(_text(one)) for one in overrides_of_point)
                point = Point(shown, config, swept, made)
                if swept and composed is not None and not (mistakes or found):
                    launched, whole = composition.launched(overrides_of_point, composed)
                    point = replace(point, launched=launched, composed=whole)
                points.append(point)
            mistakes += found
        if search and points:
            searched = tuple(axis.key for axis in axes if axis.searched)
            points = [replace(points[0], searched=searched)]
            mistakes += [] if unreadable else _search_mistakes(points[0], composition)
        if points and not is_report(points[0].config):
            points[0] = replace(points[0], folder=composition.folder(overrides_of_point, swept))
            mistakes += _hydra_folder_mistakes(points[0])
        mistakes = composition.explain(mistakes)
    mistakes += _report_mistakes(points)
    _require_packages(points, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return points


def _require_packages(points: Sequence[Point], mistakes: list[Mistake]) -> None:
    """Append the mistakes of missing packages.

    Raises:
        MissingPackageError: if vLLM is missing, and there are no other mistakes.
    """
    if not (points and all(is_report(point.config) for point in points)):
        mistakes += package_mistakes()
    if vllm_catalogue() is None and any(_needs_vllm(point.config) for point in points):
        if not mistakes:
            raise MissingPackageError(INSTALL)
        mistakes.append(Mistake("vLLM", "is required for this command", INSTALL, code="not_installed"))


def _import_engine(composition: _Composition, overrides: Sequence[Override]) -> None:
    """Import vLLM ahead of the checks if a run will open one engine, in this process.

    This is only worth it while the catalogues are made, which takes as long: a first run becomes shorter.
    """
    # Nothing has been checked yet; the checks, or the run itself, will report an error.
    with contextlib.suppress(Exception):
        _, config, mistakes = composition.point(overrides)
        if config is None or mistakes or config.dry_run or not _needs_vllm(config):
            return
        stage = config.pipeline.get("first_stage")
        _, variables, _, _, replicas, address = resolve_arguments(config.engine, config.model.engine)
        if replicas == 1 and address is None and not (isinstance(stage, dict) and "engine" in stage):
            import_early(variables)


def _clear_caches() -> None:
    clear_model_cache()
    clear_cluster_cache()


def register_secrets(overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None) -> None:
    """Register the secrets of a configuration that is only printed, so that they are masked.

    Raises:
        ConfigError: if it cannot be composed; other mistakes do not matter.
    """
    register_written(overrides)
    if imported := search_path_mistakes(overrides):
        raise ConfigError(imported)
    try:
        with composer(config_dir):
            register_fields(compose_config(overrides))
    except _NOT_COMPOSED:
        # Hydra refuses to print the configuration of a sweep.
        if not multirun:
            check(overrides, config_dir=config_dir)


def _hydra_folder_mistakes(point: Point) -> list[Mistake]:
    results = Path(point.config.results.dir).absolute()
    if point.folder is None or point.folder.absolute().is_relative_to(results):
        return []  # `check_config` checks that folder
    return folder_mistakes(f"hydra.{'sweep' if point.swept else 'run'}.dir", str(point.folder))


def _target_mistakes(config: RunConfig, typed: Collection[str]) -> Iterator[Mistake]:
    """Yield the mistakes in `allowed_targets`: a file must not be able to allow its own code to be imported."""
    if config.allowed_targets and "allowed_targets" not in typed:
        what = "may only be set on the command line, not in a file"
        yield Mistake("allowed_targets", what, value=f"{config.allowed_targets}", code="refused")
    for prefix in config.allowed_targets or ():
        if re.fullmatch(r"([A-Za-z_]\w*\.)+", prefix) is None:
            what = "must be the name of a package, followed by a dot"
            yield Mistake("allowed_targets", what, suggest("allowed_targets", ["my_package."]), value=f"[{prefix}]")


def _needs_vllm(config: RunConfig) -> bool:
    if is_report(config):
        return False
    stage = config.pipeline.get("first_stage")
    engines = [config.engine, *([stage["engine"]] if isinstance(stage, dict) and "engine" in stage else [])]
    return any(backend_of(engine) != "sentence_transformers" for engine in engines)


def _report_mistakes(points: Sequence[Point]) -> Iterator[Mistake]:
    """Yield the mistakes in the settings of reports, which concern all points together."""
    for point in points:
        name = point.config.report.baseline
        if point.config.report.score_tolerance is not None and not point.searched:
            what = "is only used in a search, whose default point has the scores to compare with"
            yield Mistake("report.score_tolerance", what, "Add: -m hydra/sweeper=optuna", code="conflict")
        if is_report(point.config) and point.swept:
            yield Mistake(
                "pipeline", "cannot be swept", "One report compares any number of runs: runs=[a,b]", value="report"
            )
        elif point.searched and name not in (None, "0"):
            yield Mistake("report.baseline", "a search is compared with its default, point 0", value=f"{name}")
        elif point.swept and name is not None and name not in map(str, range(len(points))):
            yield Mistake("report.baseline", f"the sweep has points 0 to {len(points) - 1}", value=f"{name}")


def _search_mistakes(point: Point, composition: _Composition) -> Iterator[Mistake]:
    """Yield the mistakes in the settings of a search.

    Args:
        point: Its default point.
        composition: Its composition, which has Hydra's own settings.
    """
    config, parts = point.config, point.pipeline
    objective, tolerance = config.report.objective, config.report.score_tolerance
    if not point.searched:
        way = "Give a key several values, on the command line ('engine.max_num_seqs=choice(32,64,128)') or in "
        way += "hydra.sweeper.params."
        yield Mistake("hydra/sweeper", "there is nothing to search: no key has several values", way, value="optuna")
    if objective is None:
        way = "Add: report.objective=mean, or report.objective=texts_per_second"
        yield Mistake("report.objective", "a search needs an objective, which it maximises", way, code="missing")
    if objective == "texts_per_second" and parts is not None and parts.pipeline.scores_tasks:
        if config.results.reuse != "none" and parts.pipeline.cached:
            what = "a search for speed has to compute every point, since a cached result has no speed"
            way = "Add: results.reuse=none"
            yield Mistake("results.reuse", what, way, value=config.results.reuse, code="conflict")
        if config.embedding_cache.use == "always":
            what = "a search for speed has to compute every point, since a cached embedding has no speed"
            yield Mistake("embedding_cache.use", what, "Leave it out.", value="always", code="conflict")
    launcher = composition.launcher
    if objective == "texts_per_second" and isinstance(launcher, LauncherConfig) and (launcher.workers or 1) > 1:
        what = "engines that run side by side slow each other down, so a search for speed runs one at a time"
        yield Mistake("hydra.launcher.workers", what, "Leave it out.", value=f"{launcher.workers}", code="conflict")
    if tolerance is not None and objective == "mean":
        what = "is only for searches for speed; with report.objective=mean, the search already prefers the higher score"
        yield Mistake("report.score_tolerance", what, "Leave it out.", value=f"{tolerance:g}", code="conflict")
    if tolerance is not None and not composition.grouped:
        what = "compares with the default point, which only hydra/launcher=engine_grouped or slurm runs"
        yield Mistake("report.score_tolerance", what, value=f"{tolerance:g}", code="conflict")


class _Composition:
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
        self._fixed = [_text(override) for override in overrides if override.key_or_group == "hydra.searchpath"]
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
        except (*_NOT_COMPOSED, ConfigError):
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
                self._fixed += [] if found else [_text(override)]
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
                text = "" if override is None else _text(override).lstrip("+")
                what = f"this key belongs to {' or '.join(' '.join(words) for words in owners)}"
                near = tuple(" ".join([*words, *([shlex.quote(text)] if text else [])]) for words in owners)
                return replace(mistake, what=what, nearest=near, allowed="")
        if mistake.nearest or override is None or parts[0] == "engine":
            return mistake
        value = _text(override).partition("=")[2]
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
        except _NOT_COMPOSED:
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
        except _NOT_COMPOSED as error:
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
                mistake = with_fields(mistake, _text(override), options, self._file, mteb_catalogue())
                mistakes.append(with_ending(mistake, key, override.value()))
            else:
                choices.append(override)
        return choices, [override for override in values if override.key_or_group != "hydra.searchpath"], mistakes

    def _base(self, choices: Sequence[Override]) -> DictConfig:
        texts = (*self._fixed, *map(_text, choices))
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
                what = f"the experiment (or local/) overrides its {full} with {_shortened(found)}"
                yield _override_mistake(choice, what, way)

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


@dataclass(frozen=True)
class _Axis:
    """A key and its values.

    Attributes:
        key: The key.
        values: One override per value; of a range of a search only the first and the last value.
        searched: Whether a search chooses the value.
    """

    key: str
    values: list[Override]
    searched: bool = False


def _axes(overrides: Sequence[Override], swept: bool, sampler: str | None) -> tuple[list[_Axis], list[Mistake]]:
    """Return the values of each key in the order of Hydra's BasicSweeper: of repeated keys the last one counts.

    Args:
        overrides: The overrides.
        swept: Whether several values of a key are a sweep.
        sampler: The class by which a search chooses values; None if this is not a search.
    """
    axes: dict[str, _Axis] = {}
    mistakes = []
    for at, override in enumerate(overrides):
        key, written = override.get_key_element(), _text(override)
        values, searched = [override], False
        if override.is_sweep_override():
            if not swept:
                start, _, raw = written.partition("=")
                listed, text = shlex.quote(f"{start}=[{raw}]"), suggest(start, raw)
                way = "To sweep over them, add -m."
                if isinstance(sweep := override.value(), ChoiceSweep) and sweep.simple_form:
                    way += f" For a list: {listed}. For a string with a comma: {text}."
                mistakes.append(_override_mistake(override, "has several values, but this is not a sweep", way))
            elif override.is_hydra_override():
                mistakes.append(_override_mistake(override, "Hydra's own settings cannot be swept"))
            try:
                texts = list(override.sweep_string_iterator() if sampler is None else _search_values(override, sampler))
                values, _ = parse_overrides([f"{key}={value}" for value in texts])
            except (HydraException, ValueError) as error:
                mistakes.append(_override_mistake(override, describe_error(error), code="syntax"))
                continue
            if not values:
                mistakes.append(_override_mistake(override, "has no value", code="missing"))
                continue
            searched = sampler is not None
        axes[key if swept else str(at)] = _Axis(key, values, searched)
    return list(axes.values()), mistakes


def _search_values(override: Override, sampler: str) -> Sequence[str]:
    """Return the values of a searched key as text: all that are listed, or the ends of a range or an interval.

    Args:
        override: The override that gives the key several values.
        sampler: The class by which the search chooses values.

    Raises:
        ValueError: if Optuna's sweeper does not support this kind of sweep.
    """
    sweep = override.value()
    if sampler.endswith(".GridSampler") and not isinstance(sweep, ChoiceSweep):
        raise ValueError("a grid search needs a list of values, such as choice(a,b)")
    if isinstance(sweep, IntervalSweep):
        return [str(sweep.start), str(sweep.end)]
    if isinstance(sweep, RangeSweep) and None not in (sweep.start, sweep.stop) and not sweep.shuffle:
        start, stop, step = sweep.start, sweep.stop, sweep.step
        if step <= 0 or stop < start:  # type: ignore[operator]
            raise ValueError("a search needs an ascending range")
        # Unlike Hydra's own sweeps, Optuna includes the end of a range.
        return [str(start), str(start + (stop - start) // step * step)]  # type: ignore[operator]
    if isinstance(sweep, (ChoiceSweep, RangeSweep)):
        return list(override.sweep_string_iterator())
    raise ValueError("a search does not support this kind of sweep; list the values instead: choice(a,b)")


def _one_by_one(axes: Sequence[_Axis]) -> Iterator[tuple[Override, ...]]:
    """Yield the default of a search, without the searched keys, and then with each value of each searched key alone."""
    default = tuple(value for axis in axes if not axis.searched for value in axis.values)
    yield default
    for axis in axes:
        if axis.searched:
            yield from ((*default, value) for value in axis.values)


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
            _override_mistake(staged[0], "only a pipeline with two stages has a first stage", "Add: pipeline=rerank")
        ]
    mounted = [choice for choice in choices if (choice.package or "").startswith("pipeline.first_stage.")]
    if mounted and "Could not override" in str(error):
        way = "In a sweep over first stages, put it into your own file: pipeline/first_stage/NAME.yaml"
        return [_override_mistake(mounted[0], "only pipeline/first_stage=dense has this key", way)]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file == "hydra/sweeper/optuna":
        return [MISSING_SEARCH]
    undecoded = list(encoding_mistakes()) if isinstance(error, UnicodeDecodeError) else []
    return undecoded or [file_mistake(error, files)]


def _launcher(composition: _Composition, swept: bool) -> tuple[LauncherConfig | None, list[Mistake]]:
    """Return the settings of a launcher that divides this machine, and the mistakes of a launcher that cannot run here."""
    launcher = composition.launcher
    if isinstance(launcher, SlurmConfig):
        return None, slurm_mistakes(swept)
    mistakes = device_mistakes(launcher) if launcher is not None and swept else []
    return launcher if swept and not mistakes else None, mistakes


def _size_mistakes(launcher: LauncherConfig | None, config: RunConfig, pipeline: PipelineParts | None) -> list[Mistake]:
    """Return the mistakes in a point's engines that a launcher has no room for; the point has no other mistakes."""
    if launcher is None or pipeline is None or is_report(config):
        return []
    return engine_size_mistakes(launcher, config, pipeline)


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


def _shortened(value: object) -> str:
    text = hydra_value(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _is_shipped(choice: str) -> bool:
    group, _, name = choice.partition("=")
    return (conf_dir() / group / f"{name}.yaml").is_file() or group.startswith("hydra/sweeper")


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (((key, *path), leaf) for path, leaf in _leaves(value))
        elif key != "defaults" and value != {}:
            yield (key,), value


def _prefix(override: Override) -> str:
    return "++" if override.is_force_add() else "+" if override.is_add() else ""


def _override_mistake(override: Override, what: str, way: str = "", *, code: Code = "conflict") -> Mistake:
    """Return a mistake about an override, which is shown as the user wrote it."""
    return Mistake(override.key_or_group, what, way, written=_text(override), code=code)


def _text(override: Override) -> str:
    return str(override.input_line)


def _launcher_text(override: Override) -> str:
    """Return a point's override as BasicSweeper passes it to a launcher."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"
