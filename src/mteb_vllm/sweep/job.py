"""The function that Hydra calls for a point, and the end of a sweep."""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.errors import MtebVllmError
from mteb_vllm.progress import MakeProgress, Progress, terminal
from mteb_vllm.report.build import build_report
from mteb_vllm.report.one_run import print_run
from mteb_vllm.report.search import print_search
from mteb_vllm.results.record import CommandLine, RunRecord, read_record
from mteb_vllm.results.search import Search, objective_value
from mteb_vllm.runner import PrefetchedFirstStage, run_config
from mteb_vllm.sweep.planning import PlannedPoint
from mteb_vllm.util.files import shown_path, write_atomically
from mteb_vllm.util.masking import (
    find_secrets,
    mask,
    protect,
    register,
    register_fields,
    registered,
    scrub,
    watch_environment,
)
from mteb_vllm.util.sentences import sentence
from mteb_vllm.util.shell import command, override

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """The function that Hydra calls for each point; it collects the records.

    Attributes:
        console: Where progress and results are shown.
        points: The command's planned points, in order.
        records: The records of the finished points, in order.
        folder: The sweep's folder; None for the parent of the points' folders.
        reported: Whether the sweep's report was written.
        progress: Makes the progress display of a point.
        prefetched: The outcome of the point's first stage, if it has been run already.
        search: The search, whose default is the only one of `points`; None in a sweep or a single run.
        compare_best: Measures the best point of a search against the default; set by the launcher, if it can do that.
        since: When the command started, by `time.time`.
        returned: Where copies in other processes note the folders of their points; None as long as there is no copy.
    """

    console: Console
    points: Sequence[PlannedPoint] = ()
    records: list[RunRecord] = field(default_factory=list)
    folder: Path | None = None
    reported: bool = True
    progress: MakeProgress = Progress
    prefetched: PrefetchedFirstStage | None = None
    search: Search | None = None
    compare_best: Callable[[], None] | None = None
    since: float | None = None
    returned: Path | None = None

    def __reduce__(self) -> tuple[Callable[..., Job], tuple[object, ...]]:
        """Return how to make a copy in another process, where the launcher of a plugin runs points."""
        if self.returned is None:
            self.returned = Path(self.points[0].config.results.dir).absolute() / f".returned-{uuid.uuid4().hex[:12]}"
            self.returned.mkdir(parents=True)
        # A plan may hold objects of the user's that cannot be pickled; the copy makes its own.
        points = [replace(point, plan=None, composed=None) for point in self.points]
        return _copy, (points, self.returned, registered())

    def __call__(self, cfg: Any) -> RunRecord | float | None:
        """Run the point that Hydra composed, and return its record, or the value of its objective if it has one."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        register_fields(HydraConfig.instance().cfg)
        # Hydra has just written its copies of the configuration there.
        scrub(Path(hydra.runtime.output_dir))
        written: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # keeps `\${` as it was typed
        overrides = [mask(str(text)) for text in written]
        point = int(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else None
        if point is not None:
            self.console.print_line(f"\nPoint {point}: {' '.join(overrides)}")
        # Hydra composes a single run again, and another launcher may compose a point again. Run the configuration that was
        # checked, because values such as the current time may differ in each composition.
        planned = self.points[0] if point is None else self.point(point, written)
        record = run_config(
            planned.config if planned is not None else parse_composed(cfg),
            planned.plan if planned is not None else None,
            Path(hydra.runtime.output_dir),
            CommandLine(overrides, self.points[0].search_path),
            point=point,
            console=self.console,
            progress=self.progress,
            prefetched=self.prefetched,
            since=self.since if point is None else None,
        )
        self.records.append(record)
        if self.returned is not None and point is not None:
            write_atomically(self.returned / str(point), str(Path(record.output_dir).absolute()))
        if self.search is not None:
            return self.search.add(record)
        return record if record.objective is None else objective_value(record)

    def point(self, number: int, overrides: Sequence[str]) -> PlannedPoint | None:
        """Return a checked point; None for one that was not checked, because another sweeper has generated it.

        Args:
            number: Its number.
            overrides: Its overrides, as Hydra passes them to a launcher.
        """
        launched = tuple(map(str, overrides))
        return next((one for one in self.points if (one.number, one.launched) == (number, launched)), None)

    def _add_returned(self) -> None:
        """Add the records of points that copies in other processes have run."""
        if self.returned is None:
            return
        done = {record.point for record in self.records}
        for note in self.returned.iterdir():
            if note.name.isdigit() and int(note.name) not in done:
                with contextlib.suppress(OSError, ValueError):  # listed as not done
                    record = read_record(Path(note.read_text(encoding="utf-8"), "run.json"))
                    self.records.append(record)
                    if self.search is not None:
                        self.search.add(record)
        self.records.sort(key=lambda record: record.point or 0)
        shutil.rmtree(self.returned, ignore_errors=True)

    @property
    def failed(self) -> bool:
        """Whether the report or a point failed; of a search, the report or all of the points that it chose."""
        if self.search is not None:
            return not self.reported or self.search.best is None
        return not self.reported or any(record.status != "ok" for record in self.records)

    def end_sweep(self) -> None:
        """Write the report of a sweep next to the points' folders, and list the points that were not run."""
        self._add_returned()
        records = sorted(self.records, key=lambda record: record.point or 0)
        done = {record.point for record in records}
        missing = [str(at) for at in range(len(self.points)) if at not in done]
        if records:
            folder = shown_path(self.folder or Path(records[0].output_dir).parent)
            scrub(folder)  # the sweeper has written its copy of the configuration there
            how = self.points[0].config.report
            written = [record for record in records if Path(record.output_dir, "run.json").exists()]
            for record in records:
                if record not in written:
                    self.console.print_line(f"\nPoint {record.point}, whose record could not be written:")
                    print_run(self.console, record)
            try:
                if written:
                    build_report([record.output_dir for record in written], folder, how, self.console)
            except Exception as error:  # a failing report does not invalidate the points
                logger.exception("the report failed")
                self.reported = False
                message = str(error) if isinstance(error, MtebVllmError) else f"{type(error).__name__}: {error}"
                text = f"The report could not be written: {sentence(message)} To try again: {_report_command(folder)}"
                self.console.print_line(text, style="red")
            if self.search is not None and self.search.trials:
                default = self.points[0]
                choices = default.composed.hydra.runtime.choices
                print_search(self.console, self.search, choices, default.search_path, folder)
            self.console.print_line(f"Sweep: {folder}")
        if missing:
            text = f"Not done: {len(missing)} of {len(self.points)} points ({', '.join(missing)})."
            self.console.print_line(f"{text} Run the same command again to continue with them.")


def _copy(points: Sequence[PlannedPoint], returned: Path, secrets: Sequence[str]) -> Job:
    for value in secrets:
        register(value)
    return Job(terminal(), points, returned=returned)


def _report_command(folder: Path) -> str:
    return command("pipeline=report", *(override(key, str(folder)) for key in ("runs", "pipeline.dir")))


def parse_composed(cfg: Any) -> Any:
    """Return Hydra's configuration of a point as a `RunConfig`."""
    from omegaconf import OmegaConf

    from mteb_vllm.config.schema import parse

    watch_environment()
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    protect(plain, find_secrets(own))
    return parse({str(key): value for key, value in plain.items()})
