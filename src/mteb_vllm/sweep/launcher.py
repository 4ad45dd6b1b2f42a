"""`hydra/launcher: engine_grouped`, Hydra's side of a sweep: points come in as overrides and go out as results."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
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

from mteb_vllm.preflight.command import Point
from mteb_vllm.results.record import RunRecord
from mteb_vllm.sweep.job import Job, parse_composed
from mteb_vllm.sweep.planning import PlannedPoint, add_task_states, plan_points
from mteb_vllm.sweep.summary import Summary
from mteb_vllm.sweep.supervisor import Supervisor, SweepPoint
from mteb_vllm.sweep.view import View
from mteb_vllm.util.masking import mask, scrub

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction


class EngineGroupedLauncher(Launcher):
    """Opens each engine of a sweep once, in a child process, and runs all its points on it.

    Args:
        point_timeout: Seconds that a point may take, its engine's start included; None: no limit.
        max_leftover_mb: Memory that may stay behind a closed engine before its process is replaced.
    """

    def __init__(self, point_timeout: float | None = None, max_leftover_mb: float = 2000) -> None:
        super().__init__()
        self._point_timeout, self._max_leftover_mb = point_timeout, max_leftover_mb
        self._summary = Summary()  # of all batches

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's own."""
        assert isinstance(task_function, Job)
        self._context, self._job, self._config = replace(hydra_context), task_function, config
        # The sweeper has the same context: it composes every point before it launches any, and the check has done that.
        hydra_context.config_loader = _CheckedConfigLoader(hydra_context.config_loader, task_function)  # type: ignore[assignment]
        if task_function.points and (composed := task_function.points[0].composed) is not None:
            # Where the configuration refers to a clock, the sweep's folder is named as the points are.
            OmegaConf.copy_cache(composed, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch of points.

        Args:
            job_overrides: For each its overrides.
            initial_job_idx: The number of the first.

        Returns:
            what became of them, in their order; a point that failed says so in its record.

        Raises:
            KeyboardInterrupt: on Ctrl-C and SIGTERM, with the signal's number.
        """
        setup_globals()
        folder = Path(str(self._config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        checked = [
            self._job.point(number, overrides) for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        found = [point for point in checked if point is not None]
        if len(found) < len(checked):
            # Those of a sweeper that chooses its points as it goes.
            found = plan_points(list(map(self._compose_unchecked, job_overrides)), initial_job_idx)
        # A record's overrides are those of the job, without Hydra's own.
        found = [replace(point, overrides=tuple(map(mask, point.launched))) for point in found]
        configs = [self._place(point, folder) for point in found]
        scrub(folder)  # the sweeper has written the configuration there
        planned = add_task_states(found)
        points = [
            SweepPoint(point, config, folder / str(config.hydra.sweep.subdir))
            for point, config in zip(planned, configs, strict=True)
        ]
        self._check(points)
        self._job.folder = folder
        with View(self._job.console, planned) as view:
            supervisor = Supervisor(
                points,
                self._context,
                folder,
                view,
                self._summary,
                point_timeout=self._point_timeout,
                max_leftover_mb=self._max_leftover_mb,
            )
            try:
                with _sigterm_as_interrupt():
                    supervisor.run()
            finally:
                self._job.records += [supervisor.records[number] for number in sorted(supervisor.records)]
        return [supervisor.job_returns[point.planned.number] or self._job_return(point, supervisor.records) for point in points]

    def _compose_unchecked(self, overrides: Sequence[str]) -> Point:
        """Compose a point that no check has seen."""
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in somebody's file
        shown = tuple(mask(text) for text in overrides)
        return Point(shown, parse_composed(config), True, launched=tuple(overrides), composed=config)

    def _place(self, point: PlannedPoint, folder: Path) -> DictConfig:
        """Return Hydra's configuration of a point, with its number and the sweep's folder."""
        config: DictConfig = point.composed
        with read_write(config.hydra), open_dict(config):
            config.hydra.mode = self._config.hydra.mode
            config.hydra.overrides.hydra = self._config.hydra.overrides.hydra
            config.hydra.job.id = config.hydra.job.num = point.number
            # The child's clock is another one.
            config.hydra.sweep.dir = str(folder)
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in somebody's file
        return config

    def _check(self, points: Sequence[SweepPoint]) -> None:
        """Refuses what a child process, or a sweep, cannot have."""
        folders = Counter(point.folder for point in points)
        if twice := [str(folder) for folder, n in folders.items() if n > 1]:
            raise HydraException(f"hydra.sweep.subdir gives several points one folder: {twice[0]}")
        try:
            pickle.dumps(self._context)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            why = f"hydra.callbacks cannot go to another process ({error}): hydra/launcher=basic needs none"
            raise HydraException(why) from None

    def _job_return(self, point: SweepPoint, records: dict[int, RunRecord]) -> JobReturn:
        """What Hydra would have returned, had the point lived to say so."""
        answer = JobReturn()
        config = point.config.copy()
        with open_dict(config):
            answer.hydra_cfg = OmegaConf.masked_copy(config, ["hydra"])
            del config["hydra"]
        answer.cfg, answer.overrides = config, list(point.planned.overrides)
        answer.status = JobStatus.COMPLETED
        answer.return_value = records[point.planned.number]
        self._context.callbacks.on_job_end(config=point.config, job_return=answer)
        return answer


class _CheckedConfigLoader:
    """Hydra's loader of configurations, which hands out the points that the check has composed."""

    def __init__(self, loader: Any, job: Job) -> None:
        self._loader = loader
        self._composed = {point.launched: point.composed for point in job.points if point.composed is not None}

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("_loader"), name)  # a copy in the making has none yet

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return a point's configuration; Hydra composes it if the check has not."""
        config: DictConfig | None = self._composed.get(tuple(sweep_overrides))
        if config is None:
            config = self._loader.load_sweep_config(master_config, sweep_overrides)
        return config


# Hydra makes launchers only of what it finds by a name in this package, which need not be there otherwise.
_PACKAGE, _MODULE = "hydra_plugins", "hydra_plugins.mteb_vllm"
EngineGroupedLauncher.__module__ = _MODULE


def register() -> None:
    """Makes the launcher known to Hydra in this process; other programs of Hydra's do not see it."""
    try:
        package = importlib.import_module(_PACKAGE)
    except ImportError:
        package = sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
        package.__path__ = []
    package.mteb_vllm = sys.modules[_MODULE] = sys.modules[__name__]  # type: ignore[attr-defined]
    Plugins.instance().register(EngineGroupedLauncher)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM end a sweep as Ctrl-C does, where this thread may say so."""

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
