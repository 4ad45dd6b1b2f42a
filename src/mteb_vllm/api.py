"""The command line as one Python call, and what both share: dry runs and reports."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.errors import StorageError
from mteb_vllm.pipelines.factory import is_report
from mteb_vllm.progress import quiet_console, terminal
from mteb_vllm.report.build import build_report
from mteb_vllm.results.record import RunRecord
from mteb_vllm.util import disk

if TYPE_CHECKING:
    from mteb_vllm.preflight.command import Point
    from mteb_vllm.report.comparison import Comparison
    from mteb_vllm.sweep.job import Job
    from mteb_vllm.sweep.planning import PlannedPoint
    from mteb_vllm.util.console import Console

logger = logging.getLogger(__name__)


def run(
    overrides: Sequence[str] = (), *, multirun: bool = False, config_dir: str | None = None, show: bool = True
) -> RunRecord | list[RunRecord] | list[PlannedPoint] | Comparison:
    """Does what the command line does, for notebooks and tests.

    Args:
        overrides: As on the command line: `["model=minilm", "tasks=sts12"]`.
        multirun: Whether commas sweep (`-m`); an experiment may be a sweep without.
        config_dir: A folder of your own configuration files.
        show: Whether progress and tables are shown.

    Returns:
        the run's record; of a sweep the records of all points, in their order; of a dry run (`dry_run=true`), what would be
        done, point by point; of `pipeline=report`, the comparison.

    Raises:
        ConfigError: with every mistake, before anything is loaded.
        MissingPackageError: if vLLM is not installed.
        StorageError: if the folder of the run, of the sweep or of the report cannot be written to.
    """
    from mteb_vllm.config.schema import CONFIG_NAME, composer
    from mteb_vllm.preflight.command import check
    from mteb_vllm.sweep.job import Job

    points = check(overrides, multirun=multirun, config_dir=config_dir)
    swept = points[0].swept

    def start(job: Job) -> None:
        from hydra.core.global_hydra import GlobalHydra

        with composer(config_dir):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            start_job = hydra.multirun if swept else hydra.run
            mode = ["hydra.mode=MULTIRUN"] if swept else []  # as Hydra's own command line says it
            start_job(CONFIG_NAME, job, [*overrides, *mode], with_log_configuration=False)

    done = execute(points, terminal() if show else quiet_console(), start, close_owned=False)
    if not isinstance(done, Job):
        return done
    return done.records if swept else done.records[0]


def execute(
    points: Sequence[Point], console: Console, start: Callable[[Job], object], *, close_owned: bool = True
) -> Job | list[PlannedPoint] | Comparison:
    """Do what a checked command is for: a report, a dry run, or a run or sweep.

    Args:
        points: The points of the command.
        console: Where progress and tables are shown.
        start: Has Hydra call the job for each point.
        close_owned: Whether engines that a caller still owns are closed at the end, too.

    Returns:
        the job that was done; of a dry run, what would be done, point by point; of a report, the comparison.
    """
    from mteb_vllm.engines.base import close_engines
    from mteb_vllm.sweep.job import Job
    from mteb_vllm.sweep.launcher import register
    from mteb_vllm.sweep.planning import plan_points

    if is_report(points[0].config):
        return report(points[0], console)
    planned = plan_points(points)
    if any(point.config.dry_run for point in points):
        return dry_run(planned, console, swept=points[0].swept)
    job = Job(console, planned)
    register()
    try:
        with storage_errors(points):
            start(job)
    finally:
        close_engines(owned=close_owned)
        if points[0].swept:
            job.end_sweep()
    return job


def report(point: Point, console: Console) -> Comparison:
    """Compares what other runs have left; shows and writes it.

    Raises:
        ConfigError: if there is nothing under one of `runs`, or no point has the baseline's name.
        StorageError: if something of it cannot be written.
    """
    config, made = point.config, point.pipeline
    assert made is not None
    now = datetime.datetime.now()
    folder = Path(config.results.dir) / "reports" / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}"
    if (chosen := made.report.dir) is not None:
        folder = Path(chosen)
    return build_report(config.runs or [], folder, config.report, console)


@contextlib.contextmanager
def storage_errors(points: Sequence[Point]) -> Iterator[None]:
    """Let Hydra write its own files; where it cannot, say so by folder and reason.

    Raises:
        StorageError: if a disk is full, or a folder cannot be written to.
    """
    try:
        yield
    except Exception as error:
        if (found := disk.cause(error)) is None:
            raise
        disk.locate(error, points[0].folder or Path(points[0].config.results.dir))
        raise StorageError(f"{found.filename}: {disk.reason(error)}") from error


def dry_run(points: Sequence[PlannedPoint], console: Console, *, swept: bool) -> list[PlannedPoint]:
    """Says what a command would do, point by point; nothing is loaded, opened or written."""
    from mteb_vllm.sweep.planning import add_task_states
    from mteb_vllm.sweep.table import print_plan

    planned = add_task_states(points)
    print_plan(console, planned, swept=swept)
    return planned
