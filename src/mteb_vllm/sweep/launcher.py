"""The Hydra launchers `engine_grouped` and `slurm`, which receive a sweep's points as overrides and return their results."""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
import logging
import pickle
import signal
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mteb_vllm.config.schema import LauncherConfig, SlurmConfig, build
from mteb_vllm.errors import ConfigError, JobError, Mistake, MtebVllmError
from mteb_vllm.preflight.checks import check_config
from mteb_vllm.preflight.command import Point
from mteb_vllm.preflight.devices import chosen_gpus
from mteb_vllm.preflight.hydra import SLURM_LAUNCHER
from mteb_vllm.results.failures import failure_from_exception
from mteb_vllm.results.record import RunRecord
from mteb_vllm.results.search import Search, objective_value
from mteb_vllm.sweep.job import Job, parse_composed
from mteb_vllm.sweep.nodes import KnownNodes, examine_node
from mteb_vllm.sweep.outcomes import SweepPoint
from mteb_vllm.sweep.planning import PlannedPoint, add_task_states, group_by_engine, plan_again, plan_points
from mteb_vllm.sweep.process import ThisMachine
from mteb_vllm.sweep.queue import Slots, core_slots, gpu_slots, independent_slots
from mteb_vllm.sweep.slurm import Cluster, ClusterHost, remove_messages
from mteb_vllm.sweep.summary import Summary
from mteb_vllm.sweep.supervisor import Supervisor
from mteb_vllm.sweep.view import View
from mteb_vllm.sweep.worker import Host
from mteb_vllm.util.machine import assume_device, cores, device
from mteb_vllm.util.masking import mask, scrub

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction


# Loggers of a search. Optuna's has been configured by the sweeper, which is made before its launcher.
_SEARCH_LOGGERS = ("optuna", "hydra_plugins.hydra_optuna_sweeper")

# The points with the states of their tasks, what they share, and where they run.
_Setting = tuple[list[PlannedPoint], Slots, Host]


class _Launcher(Launcher):
    """A launcher that opens each engine of a sweep once, in a child process, and runs all of its points on it.

    Attributes:
        point_timeout: Time limit for a point in seconds, including opening its engine; None for no limit.
        max_leftover_mb: Memory in MB that a closed engine may leave allocated before its process is replaced.
    """

    point_timeout: float | None = None
    max_leftover_mb = LauncherConfig.max_leftover_mb

    def __init__(self) -> None:
        super().__init__()
        self._summary = Summary()  # of all batches
        self._planned: dict[int | None, PlannedPoint] = {}  # all points so far

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up the launcher, as Hydra requires."""
        assert isinstance(task_function, Job)
        self._context, self._job, self._config = replace(hydra_context), task_function, config
        if task_function.search is not None:
            task_function.compare_best = self._compare_best
            for name in _SEARCH_LOGGERS:  # the view and the report show what they would print
                logging.getLogger(name).setLevel(logging.CRITICAL)
        # The sweeper, which shares this context, would compose every point again although the check has done so.
        hydra_context.config_loader = _CheckedLoader(hydra_context.config_loader, task_function)  # type: ignore[assignment]
        if task_function.points and (composed := task_function.points[0].composed) is not None:
            # Resolve the current time to the same value in the sweep's folder and in the points.
            OmegaConf.copy_cache(composed, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of points.

        Args:
            job_overrides: The overrides of each point.
            initial_job_idx: The number of the first point.

        Returns:
            one `JobReturn` per point, in order; failures are in the points' records.

        Raises:
            KeyboardInterrupt: on Ctrl-C, and on SIGTERM with the signal's number.
        """
        setup_globals()
        folder = Path(str(self._config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        self._job.folder = folder
        if self._job.search is not None:
            return self._launch_trials(self._job.search, job_overrides, initial_job_idx)
        checked = [
            self._job.point(number, overrides) for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        found = [point for point in checked if point is not None]
        if len(found) < len(checked):
            # Generated by a sweeper that chooses points while it runs.
            found = plan_points(list(map(self._compose_unchecked, job_overrides)), initial_job_idx)
        return self._run(found)

    def _run(self, found: Sequence[PlannedPoint]) -> list[JobReturn]:
        """Run planned points, add their records to the job, and return one `JobReturn` per point, both in order."""
        folder = self._job.folder
        assert folder is not None
        # A record holds the job's overrides, without Hydra's own.
        found = [replace(point, overrides=tuple(map(mask, point.launched))) for point in found]
        self._planned |= {point.number: point for point in found}
        configs = [self._place(point, folder) for point in found]
        scrub(folder)  # the sweeper has written its copy of the configuration there
        with _sigterm_as_interrupt(), self._prepare(found, folder) as (planned, slots, host):
            points = [
                SweepPoint(point, config, folder / str(config.hydra.sweep.subdir))
                for point, config in zip(planned, configs, strict=True)
            ]
            self._check(points)
            with View(self._job.console, planned) as view:
                supervisor = Supervisor(
                    points,
                    self._context,
                    folder,
                    view,
                    self._summary,
                    slots,
                    host,
                    point_timeout=self.point_timeout,
                    max_leftover_mb=self.max_leftover_mb,
                )
                try:
                    supervisor.run()
                finally:
                    records = supervisor.outcomes.records
                    self._job.records += [records[number] for number in sorted(records)]
        return [
            supervisor.outcomes.job_returns[point.planned.number] or self._job_return(point, records)
            for point in points
        ]

    @abstractmethod
    def _prepare(self, points: list[PlannedPoint], folder: Path) -> contextlib.AbstractContextManager[_Setting]:
        """Return the points with the states of their tasks, what they share, and where they run.

        Args:
            points: The points.
            folder: The sweep's folder.
        """

    def _launch_trials(
        self, search: Search, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run a batch of points that a search has chosen, and with the first batch the default.

        Returns:
            one `JobReturn` per chosen point, in order.

        Raises:
            MtebVllmError: if scores are to be compared with the default's, and it failed.
        """
        default = self._job.points if search.default is None else []
        # The default is point 0, of which the sweeper does not know.
        trials = self._plan_trials(job_overrides, initial_job_idx + 1, search.searched)
        before = len(self._job.records)
        try:
            returns = self._run([*default, *trials])[len(default) :]
        finally:  # also of those that ended before Ctrl-C
            values = []
            for record in self._job.records[before:]:
                if record.point == 0:
                    search.default = record
                else:
                    values.append(search.add(record))
        if search.tolerance is not None and search.default is not None and search.default.status != "ok":
            message = "The search ends: its default, point 0, failed, so no score can be compared with it."
            raise MtebVllmError(message)
        for answer, value in zip(returns, values, strict=True):
            answer.return_value = value
        return returns

    def _plan_trials(
        self, job_overrides: Sequence[Sequence[str]], first: int, searched: Collection[str]
    ) -> list[PlannedPoint]:
        """Plan points that a search has chosen; one whose combination of values has mistakes fails.

        Args:
            job_overrides: The overrides of each point.
            first: The number of the first point.
            searched: The searched keys.
        """
        found = []
        for number, overrides in enumerate(job_overrides, first):
            try:
                point = self._compose_unchecked(overrides)
                _, mistakes = check_config(point.config)
                if mistakes:
                    raise ConfigError(mistakes)
                (planned,) = plan_points([point], number)
            except (MtebVllmError, HydraException, OmegaConfBaseException) as error:
                # Its record can only hold the configuration of the default.
                default, launched = self._job.points[0], tuple(overrides)
                composed, failure = copy.deepcopy(default.composed), failure_from_exception(error)
                planned = PlannedPoint(number, launched, {}, default.config, launched, composed, failure=failure)
            values = dict(text.split("=", 1) for text in planned.launched)
            found.append(replace(planned, differs={key: mask(values[key]) for key in searched}))
        return found

    def _compare_best(self) -> None:
        """Measure the default and the best point of a search again, in turn, if the objective is a speed.

        The best was chosen by a single measurement, whose error is likely to be in its favour.
        """
        search = self._job.search
        assert search is not None
        best, default = search.best, search.default
        if best is None or default is None or best.objective is None or best.objective.name == "mean":
            return
        if (objective_value(best) or 0.0) <= (objective_value(default) or 0.0):
            return
        for default_first in (True, False):
            order = [default, best] if default_first else [best, default]
            next_number = len(self._job.records)
            again = [self._planned[record.point] for record in order]
            self._run(
                [
                    replace(point, number=number, composed=copy.deepcopy(point.composed))
                    for number, point in enumerate(again, next_number)
                ]
            )
            one, other = self._job.records[next_number:]
            search.pairs.append((one, other) if default_first else (other, one))

    def _compose_unchecked(self, overrides: Sequence[str]) -> Point:
        """Compose a point that has not been checked."""
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in a user's file
        shown = tuple(mask(text) for text in overrides)
        search_path = self._job.points[0].search_path
        parsed = parse_composed(config)
        return Point(shown, parsed, True, launched=tuple(overrides), composed=config, search_path=search_path)

    def _place(self, point: PlannedPoint, folder: Path) -> DictConfig:
        """Return Hydra's configuration of a point, with its number and the sweep's folder set."""
        config: DictConfig = point.composed
        with read_write(config.hydra), open_dict(config):
            config.hydra.mode = self._config.hydra.mode
            config.hydra.overrides.hydra = self._config.hydra.overrides.hydra
            config.hydra.job.id = config.hydra.job.num = point.number
            # Resolve the folder here, because the child would resolve the current time differently.
            config.hydra.sweep.dir = str(folder)
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in a user's file
        return config

    def _check(self, points: Sequence[SweepPoint]) -> None:
        """Raise if points share a folder, or Hydra's context cannot be pickled for a child process."""
        folders = Counter(point.folder for point in points)
        if twice := [str(folder) for folder, n in folders.items() if n > 1]:
            way = "include the point's number, ${hydra.job.num}"
            raise HydraException(f"hydra.sweep.subdir gives several points the same folder, {twice[0]}: {way}")
        try:
            pickle.dumps(self._context)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            message = f"hydra.callbacks cannot be sent to another process ({error}): use hydra/launcher=basic"
            raise HydraException(message) from None

    def _job_return(self, point: SweepPoint, records: dict[int, RunRecord]) -> JobReturn:
        """Return the `JobReturn` of a point whose process ended before Hydra could make it."""
        answer = JobReturn()
        config = point.config.copy()
        with open_dict(config):
            answer.hydra_cfg = OmegaConf.masked_copy(config, ["hydra"])
            del config["hydra"]
        answer.cfg, answer.overrides = config, list(point.planned.overrides)
        answer.status = JobStatus.COMPLETED
        record = records[point.planned.number]
        answer.return_value = record if record.objective is None else objective_value(record)
        self._context.callbacks.on_job_end(config=point.config, job_return=answer)
        return answer


class EngineGroupedLauncher(_Launcher):
    """The launcher `engine_grouped`, which runs a sweep on this machine.

    Args:
        settings: Those of `LauncherConfig`.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self._settings = build(LauncherConfig, _plain(settings), "hydra.launcher")
        self.point_timeout, self.max_leftover_mb = self._settings.point_timeout, self._settings.max_leftover_mb

    @contextlib.contextmanager
    def _prepare(self, points: list[PlannedPoint], folder: Path) -> Iterator[_Setting]:
        gpus = chosen_gpus(self._settings)
        slots = gpu_slots(gpus) if gpus else core_slots(cores(), self._settings.workers or 1)
        yield add_task_states(points), slots, ThisMachine(folder)


class SlurmLauncher(_Launcher):
    """The launcher `slurm`, which runs each engine of a sweep as a job of SLURM.

    Args:
        settings: Those of `SlurmConfig`.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self._settings = build(SlurmConfig, _plain(settings), "hydra.launcher")
        self.point_timeout = self._settings.point_timeout
        self._cluster = Cluster(self._settings)
        self._numbers: Iterator[int] | None = None
        self._device: str | None = None  # once a node has been tested

    @contextlib.contextmanager
    def _prepare(self, points: list[PlannedPoint], folder: Path) -> Iterator[_Setting]:
        settings = self._settings
        jobs_folder = folder / "jobs"
        if self._numbers is None:
            # An earlier sweep may have used the same folder, and the messages of its jobs must not be read again.
            self._numbers = itertools.count(1 + max(map(_number, jobs_folder.glob("*")), default=-1))
        test_folder: Path | None = None
        known = KnownNodes(Path(points[0].config.results.dir))
        # Results depend on the kind of device, so whether a point is computed already depends on that of the nodes.
        device = self._device or known.device(settings)
        planned = _planned_for(device, points) if device is not None else None
        if self._device is None and (planned is None or any(point.pending_tasks for point in planned)):
            test_folder = jobs_folder / f"test_{next(self._numbers)}"
            self._device = self._examine(points, test_folder)
            known.remember(settings, self._device)
            if self._device != device:
                device, planned = self._device, None
        if planned is None:
            planned = _planned_for(device, points)
        with assume_device(device):
            jobs = settings.max_jobs or max(1, len(group_by_engine(planned)))
            try:
                yield planned, independent_slots(jobs), ClusterHost(self._cluster, folder, self._numbers)
            finally:
                if test_folder is not None:
                    remove_messages(test_folder)

    def _examine(self, points: Sequence[PlannedPoint], folder: Path) -> str:
        """Return the kind of device of the nodes, from a job which also tests the locks there.

        Args:
            points: The points of the sweep.
            folder: A folder for the job.

        Raises:
            ConfigError: if SLURM refuses the job, or file locks do not work between its node and this machine.
        """
        roots = list(dict.fromkeys(Path(point.config.results.dir) for point in points))
        try:
            node = examine_node(self._cluster, folder, roots, self._job.console.print_line)
        except JobError as error:
            raise ConfigError([Mistake("hydra.launcher", str(error))]) from error
        if node.lock_problem is not None:
            what = f"file locks do not work between this machine and {node.name}: {node.lock_problem}"
            way = "Choose a folder on a file system that all nodes share, and that supports locking across nodes."
            raise ConfigError([Mistake("results.dir", what, way, value=f"{points[0].config.results.dir}")])
        return node.device


def _planned_for(device: str | None, points: Sequence[PlannedPoint]) -> list[PlannedPoint]:
    """Return the points, planned for a kind of device, with the states of their tasks."""
    with assume_device(device):
        return add_task_states(plan_again(points))


def _number(job: Path) -> int:
    """Return the number of a job by its folder; -1 if it is not the folder of one."""
    number = job.name.removeprefix("test_")
    return int(number) if number.isascii() and number.isdigit() else -1


def known_device(points: Sequence[Point]) -> str | None:
    """Return the kind of device that a checked command is planned for; None: that of this machine, as far as is known."""
    settings = _slurm_settings(points)
    return KnownNodes(Path(points[0].config.results.dir)).device(settings) if settings is not None else None


def unknown_device_note(points: Sequence[Point]) -> str:
    """Return a note if a checked command submits jobs to nodes whose kind of device is not known yet; "" otherwise."""
    if _slurm_settings(points) is None or known_device(points) is not None:
        return ""
    return (
        "No sweep has used such nodes yet, so their device is unknown, and this dry run assumes that of this machine "
        f"({device()}). If theirs differs, so do the fingerprints and the states."
    )


def _slurm_settings(points: Sequence[Point]) -> SlurmConfig | None:
    """Return the settings of the jobs that a checked command submits to SLURM; None if it submits none."""
    composed = points[0].composed
    if composed is None or composed.hydra.launcher.get("_target_") != SLURM_LAUNCHER:
        return None
    settings = {str(key): value for key, value in composed.hydra.launcher.items() if key != "_target_"}
    return build(SlurmConfig, _plain(settings), "hydra.launcher")


def _plain(settings: Mapping[str, object]) -> Mapping[str, object]:
    """Return a launcher's settings, which Hydra passes as OmegaConf's containers, as plain values."""
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(settings)), resolve=True)
    return {str(key): value for key, value in plain.items()}


class _CheckedLoader:
    """Hydra's configuration loader, except that it returns the points that the check has already composed."""

    def __init__(self, loader: Any, job: Job) -> None:
        self._loader = loader
        self._composed = {point.launched: point.composed for point in job.points if point.composed is not None}

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("_loader"), name)  # while being copied, this has no loader yet

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return a point's configuration, composing it only if the check has not."""
        config: DictConfig | None = self._composed.get(tuple(sweep_overrides))
        if config is None:
            config = self._loader.load_sweep_config(master_config, sweep_overrides)
        return config


# Hydra instantiates launchers only from this package, which need not exist otherwise.
_PACKAGE, _MODULE = "hydra_plugins", "hydra_plugins.mteb_vllm"
EngineGroupedLauncher.__module__ = SlurmLauncher.__module__ = _MODULE


def register() -> None:
    """Register the launchers with Hydra in this process, without affecting other programs that use Hydra."""
    try:
        package = importlib.import_module(_PACKAGE)
    except ImportError:
        package = sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
        package.__path__ = []
    package.mteb_vllm = sys.modules[_MODULE] = sys.modules[__name__]  # type: ignore[attr-defined]
    for launcher in (EngineGroupedLauncher, SlurmLauncher):
        Plugins.instance().register(launcher)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, if this is the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
