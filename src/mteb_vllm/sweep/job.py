"""The function that Hydra calls for a point, and the end of a sweep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.errors import MtebVllmError
from mteb_vllm.progress import MakeProgress, Progress
from mteb_vllm.report.build import build_report
from mteb_vllm.report.one_run import print_run
from mteb_vllm.results.record import RunRecord
from mteb_vllm.runner import PrefetchedFirstStage, run_config
from mteb_vllm.sweep.planning import PlannedPoint
from mteb_vllm.util.masking import find_secrets, mask, protect, register_fields, scrub, watch_environment
from mteb_vllm.util.shell import command, override

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """What Hydra calls for each point; the records gather in it.

    Attributes:
        console: Where it is shown what goes on.
        points: The command's points, planned, in their order.
        records: What became of them, in their order.
        folder: The sweep's folder; None where each point's parent is.
        reported: Whether the sweep's report could be made.
        progress: Makes what shows the progress of a point.
        prefetched: What is known of the first stage of a point where that ran ahead.
    """

    console: Console
    points: Sequence[PlannedPoint] = ()
    records: list[RunRecord] = field(default_factory=list)
    folder: Path | None = None
    reported: bool = True
    progress: MakeProgress = Progress
    prefetched: PrefetchedFirstStage | None = None

    def __call__(self, cfg: Any) -> RunRecord:
        """Run the point that Hydra composed."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        register_fields(HydraConfig.instance().cfg)
        # Hydra has just written the configuration there.
        scrub(Path(hydra.runtime.output_dir))
        written: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # a `\${` stays as it was written
        overrides = [mask(str(text)) for text in written]
        point = int(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else None
        if point is not None:
            self.console.print_line(f"\nPoint {point}: {' '.join(overrides)}")
        # Hydra composes a single run for itself, and a point where another launcher runs it. What runs is what was checked:
        # a reference to a clock, say, may have another value in each composition.
        planned = self.points[0] if point is None else self.point(point, written)
        record = run_config(
            planned.config if planned is not None else parse_composed(cfg),
            planned.plan if planned is not None else None,
            Path(hydra.runtime.output_dir),
            overrides,
            point=point,
            console=self.console,
            progress=self.progress,
            prefetched=self.prefetched,
        )
        self.records.append(record)
        return record

    def point(self, number: int, overrides: Sequence[str]) -> PlannedPoint | None:
        """Return a point of the sweep; None for one that only a sweeper of another kind has made, which was not checked.

        Args:
            number: Its number.
            overrides: What makes it, as Hydra hands it to a launcher.
        """
        launched = tuple(map(str, overrides))
        return next((one for one in self.points if (one.number, one.launched) == (number, launched)), None)

    @property
    def failed(self) -> bool:
        """Whether something went wrong with a point or the report."""
        return not self.reported or any(record.status != "ok" for record in self.records)

    def end_sweep(self) -> None:
        """Make the report of a sweep, beside the points' folders, and say what is not done."""
        records = sorted(self.records, key=lambda record: record.point or 0)
        done = {record.point for record in records}
        missing = [str(at) for at in range(len(self.points)) if at not in done]
        if records:
            folder = self.folder or Path(records[0].output_dir).parent
            scrub(folder)  # the sweeper has written the configuration there
            how = self.points[0].config.report
            written = [record for record in records if Path(record.output_dir, "run.json").exists()]
            for record in records:
                if record not in written:
                    self.console.print_line(f"\nPoint {record.point}, which has left no record:")
                    print_run(self.console, record)
            try:
                if written:
                    build_report([record.output_dir for record in written], folder, how, self.console)
            except Exception as error:  # the points are done, whatever becomes of their report
                logger.exception("the report failed")
                self.reported = False
                message = str(error) if isinstance(error, MtebVllmError) else f"{type(error).__name__}: {error}"
                text = f"The report could not be made: {message}. To try again: {_report_command(folder)}"
                self.console.print_line(text, style="red")
            self.console.print_line(f"Sweep: {folder}")
        if missing:
            text = f"Not done: {len(missing)} of {len(self.points)} points ({', '.join(missing)})."
            self.console.print_line(f"{text} The same command goes on from there.")


def _report_command(folder: Path) -> str:
    return command("pipeline=report", *(override(key, str(folder)) for key in ("runs", "pipeline.dir")))


def parse_composed(cfg: Any) -> Any:
    """Hydra's configuration of a point as a `RunConfig`."""
    from omegaconf import OmegaConf

    from mteb_vllm.config.schema import parse

    watch_environment()
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    protect(plain, find_secrets(own))
    return parse({str(key): value for key, value in plain.items()})
