"""The whole story of one run, from a checked configuration to its record."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm import report, tasks
from mteb_vllm.announce import announce
from mteb_vllm.config import RunConfig
from mteb_vllm.engine import close_engines
from mteb_vllm.errors import FirstStageError, MtebVllmError
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.first_stages import EncoderStage
from mteb_vllm.plan import Plan, plan
from mteb_vllm.results import RunRecord, TaskOutcome, write_record

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)


def run_config(
    config: RunConfig,
    output_dir: Path,
    overrides: Sequence[str] = (),
    *,
    point: int | None = None,
    console: Console | None = None,
) -> RunRecord:
    """Runs one configuration and writes its record.

    Args:
        config: A checked configuration.
        output_dir: Where `run.json`, `scores.csv` and `report.md` go.
        overrides: What made the configuration, for the record.
        point: Its number in a sweep.
        console: Where progress is shown; None shows nothing.

    Returns:
        the record; a failure is in it, not raised.
    """
    started = time.perf_counter()
    console = console or quiet_console()
    record = RunRecord(
        overrides=list(overrides),
        point=point,
        config=asdict(config),
        started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        output_dir=str(output_dir),
    )
    try:
        planned = plan(config)
        record.settings = planned.settings
        record.fingerprint = fingerprint(record.settings)
        unused = report.unused_keys(planned.prompts, planned.parts, planned.template)
        record.prompts = {**planned.prompts.settings(), "source": planned.prompts.source, "unused": unused}
        announce(console, planned, record)
        _evaluate(config, planned, record, console)
    except MtebVllmError as error:
        logger.exception("the run failed")
        record.error = str(error)
    except Exception as error:
        # A bug, of ours or of a library's: it is shown whole, and costs the other points of a sweep nothing.
        logger.exception("the run failed")
        traceback.print_exc()
        record.error = f"{type(error).__name__}: {error}"
    except BaseException as error:
        record.error = type(error).__name__
        _finish(record, output_dir, started)  # Ctrl-C: what is done so far is kept
        raise
    _finish(record, output_dir, started)
    report.print_run(console, record)
    _conclude(console, config, record)
    return record


def run(
    overrides: Sequence[str] = (), *, multirun: bool = False, config_dir: str | None = None, show: bool = True
) -> RunRecord | list[RunRecord]:
    """Does what the command line does, for notebooks and tests.

    Args:
        overrides: As on the command line: `["model=minilm", "tasks=sts12"]`.
        multirun: Whether commas sweep (`-m`); an experiment may be a sweep without.
        config_dir: A folder of your own configuration files.
        show: Whether progress and tables are shown.

    Returns:
        the run's record; of a sweep the records of all points, in their order.

    Raises:
        ConfigError: with every mistake, before anything is loaded.
        MissingPackageError: if vLLM is not installed.
    """
    from mteb_vllm.command import check
    from mteb_vllm.config import CONFIG_NAME, composer

    multirun = check(overrides, multirun=multirun, config_dir=config_dir)[0].swept
    records: list[RunRecord] = []
    console = terminal() if show else quiet_console()
    with composer(config_dir):
        from hydra.core.global_hydra import GlobalHydra

        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        task = job(records, console)
        start = hydra.multirun if multirun else hydra.run
        try:
            start(CONFIG_NAME, task, list(overrides), with_log_configuration=False)
        finally:
            close_engines(owned=False)
            if multirun:
                end_sweep(records, console)
    return records if multirun else records[0]


def job(records: list[RunRecord], console: Console) -> Any:
    """The function that Hydra calls for each point; the records gather in the list."""

    def run_job(cfg: Any) -> RunRecord:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from mteb_vllm.config import parse

        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        hydra = HydraConfig.get()
        overrides = [str(text) for text in hydra.overrides.task]
        point = int(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else None
        if point is not None:
            console.print(f"\nPoint {point}: {' '.join(overrides)}", markup=False, soft_wrap=True)
        config = parse({str(key): value for key, value in plain.items()})
        record = run_config(config, Path(hydra.runtime.output_dir), overrides, point=point, console=console)
        records.append(record)
        return record

    return run_job


def end_sweep(records: Sequence[RunRecord], console: Console) -> None:
    """Shows a sweep's table, and writes it beside the points' folders."""
    if not records:
        return
    from mteb_vllm.files import write_atomically

    report.print_sweep(console, records)
    folder = Path(records[0].output_dir).parent
    write_atomically(folder / "report.md", report.sweep_markdown(records))
    console.print(f"Sweep: {folder}", markup=False, soft_wrap=True)


def terminal() -> Console:
    """Standard output as a place for progress and tables; wide enough for them where it is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, highlight=False)


def quiet_console() -> Console:
    """A place that shows nothing."""
    from rich.console import Console

    return Console(quiet=True)


def _evaluate(config: RunConfig, planned: Plan, record: RunRecord, console: Console) -> None:
    """Opens what is needed and lets the pipeline work; fills the record."""
    from mteb_vllm.progress import Progress

    log = Path(record.output_dir) / "mteb_vllm.log"
    with _quiet_libraries(), _errors_into(log), Progress(console, len(planned.tasks)) as progress:
        progress.note("Importing mteb")
        from mteb_vllm.store import ResultsStore

        chosen = tasks.load(config.tasks, [task.name for task in planned.tasks])
        store = ResultsStore(config.results.dir)
        model = planned.wrapper()
        models = [model]
        options: dict[str, Any] = {"reuse": config.results.reuse == "exact"}
        if planned.stage is not None:
            options["stage"] = planned.stage
            if isinstance(planned.stage, EncoderStage):
                models.append(planned.stage.encoder)
        for one in models:
            one.progress = progress.encoded
            one.on_open = lambda name=one.spec.model.name: progress.note(f"Opening vLLM: {name}")
        for outcome in planned.pipeline.run(model, chosen, store, progress, **options):
            record.tasks.append(outcome)
        record.engine = model.engine_record()
        if planned.stage is not None:
            record.first_stage = _first_stage_record(planned, record)
    if any(task.status == "failed" for task in record.tasks):
        record.status = "failed"
    for task in record.tasks:
        record.warnings += [*task.warnings, *_cut_texts(task, record)]


def _first_stage_record(planned: Plan, record: RunRecord) -> dict[str, Any]:
    stage = planned.stage
    if not isinstance(stage, EncoderStage):
        depends: dict[str, Any] = {}
        for part in planned.parts:
            if stage is not None and not tasks.brings_candidates(part.type):
                with contextlib.suppress(FirstStageError):  # its task has failed, and says why
                    depends[part.name] = stage.settings(part.name)
        return {"kind": type(stage).__name__.lower(), **vars(stage), "settings": depends}
    encoder = stage.encoder
    if (work := encoder.work).truncated:
        share = f"{work.truncated:,} of {work.texts:,} texts ({work.truncated / work.texts:.1%})"
        record.warnings.append(f"First stage: {share} are longer than its context and were cut.")
    return {
        "kind": "dense",
        "settings": encoder.settings(),
        "engine": encoder.engine_record(),
        "prompts": {f"{task}: {side or 'texts'}": said for (task, side), said in encoder.applied.items()},
        **asdict(work),
    }


def _cut_texts(task: TaskOutcome, record: RunRecord) -> Iterator[str]:
    if not task.texts:
        return
    context = record.engine["resolved"]["max_model_len"]
    of = f"of {task.texts:,} {task.unit}"
    if task.truncated:
        share = f"{task.truncated:,} {of} ({task.truncated / task.texts:.1%})"
        lost = "and were cut" if task.unit == "texts" else "and lost the end of their document"
        yield f"{task.name}: {share} are longer than the context of {context} tokens {lost}."
    if task.truncated_queries:
        share = f"{task.truncated_queries:,} {of} ({task.truncated_queries / task.texts:.1%})"
        yield f"{task.name}: the query of {share} is too long for the context of {context} tokens by itself, and was cut."


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Lets other libraries' bars and logs not fight with ours on the terminal."""
    import tqdm  # noqa: F401 - reads its variables once: bars of whoever called us must not be off for good

    # vLLM's log goes where everything else is logged.
    quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "true", "VLLM_CONFIGURE_LOGGING": "0"}
    added = {key: value for key, value in quiet.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _errors_into(log: Path) -> Iterator[None]:
    """Lets what libraries, compiled ones too, write on standard error go into the log, if there is one."""
    if not log.exists():
        yield
        return
    logging.captureWarnings(True)
    sys.stderr.flush()
    before = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        logging.captureWarnings(False)


def _finish(record: RunRecord, output_dir: Path, started: float) -> None:
    from mteb_vllm.files import write_atomically

    if record.error:
        record.status = "failed"
    record.seconds = time.perf_counter() - started
    write_record(record, output_dir)
    write_atomically(output_dir / "report.md", report.run_markdown(record))


def _conclude(console: Console, config: RunConfig, record: RunRecord) -> None:
    reused = sum(task.status == "reused" for task in record.tasks)
    if reused:
        text = f"{reused} of {len(record.tasks)} results were known already; to compute them again: results.reuse=none"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Settings {record.fingerprint}, results in {config.results.dir}/results", markup=False, soft_wrap=True
    )
    console.print(f"Record:  {record.output_dir}/run.json", markup=False, soft_wrap=True)
