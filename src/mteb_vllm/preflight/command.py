"""Turn a command line into points, each one combination of a sweep's values, and collect all mistakes in them.

Overrides are parsed with Hydra's parser, the axes of a sweep are expanded (`axes`), each point is composed leniently
(`composition`) and checked (`checks`), and all mistakes are collected; Hydra runs only commands without any.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mteb_vllm.catalogue import vllm_catalogue, warm
from mteb_vllm.config.overrides import NOT_COMPOSED, override_text, parse_overrides
from mteb_vllm.config.schema import (
    LauncherConfig,
    RunConfig,
    SlurmConfig,
    compose_config,
    composer,
)
from mteb_vllm.engines.arguments import backend_of, resolve_arguments
from mteb_vllm.engines.ray_cluster import clear_cluster_cache
from mteb_vllm.engines.vllm import INSTALL, import_early
from mteb_vllm.errors import ConfigError, MissingPackageError, Mistake
from mteb_vllm.models.files import clear_model_cache
from mteb_vllm.pipelines.factory import PipelineParts, is_report
from mteb_vllm.preflight.axes import one_by_one, read_axes
from mteb_vllm.preflight.checks import check_config, folder_mistakes
from mteb_vllm.preflight.composition import Composition
from mteb_vllm.preflight.devices import device_mistakes, engine_size_mistakes
from mteb_vllm.preflight.files import shadowed_files
from mteb_vllm.preflight.hydra import missing_search_mistakes, search_path_mistakes
from mteb_vllm.preflight.packages import package_mistakes, slurm_mistakes
from mteb_vllm.util.masking import mask, register_fields, register_written
from mteb_vllm.util.shell import keep_prefixes, suggest


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
        search_path: The arguments of the command that add folders of configuration files: `--config-dir`, `hydra.searchpath`.
    """

    overrides: tuple[str, ...]
    config: RunConfig
    swept: bool
    pipeline: PipelineParts | None = None
    launched: tuple[str, ...] = field(default=(), repr=False)
    composed: DictConfig | None = field(default=None, repr=False, compare=False)
    folder: Path | None = None
    searched: tuple[str, ...] = ()
    search_path: tuple[str, ...] = ()


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
    _clear_caches()
    register_written(overrides)
    points = []
    with composer(config_dir):
        parsed, mistakes = parse_overrides(overrides)
        unread = {mistake.section for mistake in mistakes}
        # Composing would import the package of a search path, and not know the settings of a missing sweeper.
        if fatal := [*search_path_mistakes(overrides), *missing_search_mistakes(parsed)]:
            raise ConfigError([*mistakes, *fatal])
        composition = Composition(parsed)
        swept = multirun or composition.sweeps
        warm(lambda: None if swept else _import_engine(composition, parsed))
        mistakes = composition.with_fields(mistakes)
        # An override on the command line replaces the configuration's own axis of the same key.
        search = composition.searches and swept
        sampler = composition.sampler if search else None
        axes, unreadable = read_axes([*composition.axes, *parsed] if swept else parsed, swept, sampler)
        launcher, unlaunched = _launcher(composition, swept)
        mistakes += [*shadowed_files(config_dir), *composition.mistakes, *unreadable, *unlaunched]
        folders = () if config_dir is None else ("--config-dir", str(config_dir))
        searchpath = (mask(override_text(one)) for one in parsed if one.key_or_group == "hydra.searchpath")
        search_path = (*folders, *searchpath)
        typed = {override.key_or_group: _prefix(override) for override in parsed}
        combinations = one_by_one(axes) if search else itertools.product(*(axis.values for axis in axes))
        for overrides_of_point in combinations:
            composed, config, found = composition.point(overrides_of_point)
            if config is not None:
                found += _target_mistakes(config, typed)
                with keep_prefixes(typed):
                    broken = unread | {mistake.section for mistake in found}
                    made, of_point = check_config(config, broken=broken)
                found += of_point or _size_mistakes(launcher, config, made)
                shown = tuple(mask(override_text(one)) for one in overrides_of_point)
                point = Point(shown, config, swept, made, search_path=search_path)
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


def _import_engine(composition: Composition, overrides: Sequence[Override]) -> None:
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
    except NOT_COMPOSED:
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


def _search_mistakes(point: Point, composition: Composition) -> Iterator[Mistake]:
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


def _launcher(composition: Composition, swept: bool) -> tuple[LauncherConfig | None, list[Mistake]]:
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


def _prefix(override: Override) -> str:
    return "++" if override.is_force_add() else "+" if override.is_add() else ""
