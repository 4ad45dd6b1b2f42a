"""The Python equivalent of the command line, and the code that both share: dry runs and reports."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mteb_vllm.errors import ConfigError, Mistake, StorageError
from mteb_vllm.pipelines.factory import is_report
from mteb_vllm.progress import quiet_console, terminal
from mteb_vllm.report.build import build_report
from mteb_vllm.report.formatting import count
from mteb_vllm.results.record import RunRecord
from mteb_vllm.util import disk
from mteb_vllm.util.type_names import wrong_type

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
    """Run the command line from Python, e.g. in a notebook or a test.

    Args:
        overrides: As on the command line: `["model=minilm", "tasks=sts12"]`.
        multirun: Whether comma-separated values define a sweep (`-m`). An experiment may define one without this.
        config_dir: A folder of your own configuration files.
        show: Whether to show progress and tables.

    Returns:
        the record of a run; of a sweep, the records of all points (a point is one combination of the sweep's values), in
        order; of a dry run (`dry_run=true`), the planned points; of `pipeline=report`, the comparison.

    Raises:
        ConfigError: if the configuration has errors; it lists all of them, and nothing has been loaded.
        MissingPackageError: if vLLM is not installed.
        StorageError: if the folder of the run, sweep or report is not writable.
    """
    from mteb_vllm.config.schema import CONFIG_NAME, composer
    from mteb_vllm.preflight.command import check
    from mteb_vllm.sweep.job import Job

    since = time.time()
    overrides = _listed(overrides)
    points = check(overrides, multirun=multirun, config_dir=config_dir)
    swept = points[0].swept

    def start(job: Job) -> None:
        from hydra.core.global_hydra import GlobalHydra

        with composer(config_dir):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            start_job = hydra.multirun if swept else hydra.run
            mode = ["hydra.mode=MULTIRUN"] if swept else []  # as Hydra's own command line does
            start_job(CONFIG_NAME, job, [*overrides, *mode], with_log_configuration=False)

    done = execute(points, terminal() if show else quiet_console(), start, since=since, close_owned=False)
    if not isinstance(done, Job):
        return done
    return done.records if swept else done.records[0]


def _listed(overrides: object) -> list[str]:
    """Return overrides as a list.

    Raises:
        ConfigError: if they are no overrides.
    """
    way = 'Write a list of texts: ["model=minilm", "tasks=sts12"]'
    if isinstance(overrides, (str, bytes, Mapping)) or not isinstance(overrides, Iterable):
        raise ConfigError([Mistake("overrides", wrong_type(list, overrides), way)])
    listed = list(overrides)  # an iterator would be empty at the second use
    if wrong := [one for one in listed if not isinstance(one, str)]:
        raise ConfigError([Mistake("overrides", f"each {wrong_type(str, one)}", way, value=f"{one}") for one in wrong])
    return listed


def execute(
    points: Sequence[Point], console: Console, start: Callable[[Job], object], *, since: float, close_owned: bool = True
) -> Job | list[PlannedPoint] | Comparison:
    """Execute a checked command: a report, a dry run, a run or a sweep.

    Args:
        points: The points of the command.
        console: Where progress and tables are shown.
        start: Makes Hydra call the job for each point.
        since: When the command started, by `time.time`.
        close_owned: Whether to also close engines that a caller still owns.

    Returns:
        the finished job; of a dry run, the planned points; of a report, the comparison.
    """
    from mteb_vllm.engines.base import close_engines
    from mteb_vllm.results.search import Search
    from mteb_vllm.sweep.job import Job
    from mteb_vllm.sweep.launcher import known_device, register, unknown_device_note
    from mteb_vllm.sweep.planning import plan_points
    from mteb_vllm.util.machine import assume_device

    if is_report(points[0].config):
        return report(points[0], console)
    if any(point.config.dry_run for point in points):
        with assume_device(known_device(points)):
            planned = dry_run(plan_points(points), console, points[0])
        if note := unknown_device_note(points):
            console.print_line(f"Note: {note}", style="yellow")
        return planned
    planned = plan_points(points)
    searched, tolerance = points[0].searched, points[0].config.report.score_tolerance
    job = Job(console, planned, search=Search(searched, tolerance) if searched else None, since=since)
    register()
    try:
        with storage_errors(points):
            start(job)
            if job.compare_best is not None:
                job.compare_best()
    finally:
        close_engines(owned=close_owned)
        if points[0].swept:
            job.end_sweep()
    return job


def report(point: Point, console: Console) -> Comparison:
    """Compare existing runs, and show and write the report.

    Raises:
        ConfigError: if one of `runs` contains no results, or no point has the baseline's name.
        StorageError: if the report cannot be written.
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
    """Convert disk errors, e.g. from Hydra's own files, into errors that name the folder and the reason.

    Raises:
        StorageError: if a disk is full, or a folder is not writable.
    """
    try:
        yield
    except Exception as error:
        if (found := disk.cause(error)) is None:
            raise
        disk.locate(error, points[0].folder or Path(points[0].config.results.dir))
        raise StorageError(f"{found.filename}: {disk.reason(error)}") from error


def dry_run(points: Sequence[PlannedPoint], console: Console, first: Point) -> list[PlannedPoint]:
    """Print what a command would do, point by point, without loading, opening or writing anything.

    Args:
        points: The planned points.
        console: Where it is printed.
        first: The first of the points that were checked.
    """
    from mteb_vllm.sweep.planning import add_task_states
    from mteb_vllm.sweep.table import print_plan

    planned = add_task_states(points)
    print_plan(console, planned, swept=first.swept)
    if first.searched and first.composed is not None:
        n_trials = first.composed.hydra.sweeper.n_trials
        console.print_line(
            f"The table shows only point 0, the default. The search then chooses {count(n_trials, 'more point')}, varying "
            f"{', '.join(first.searched)}."
        )
    return planned
