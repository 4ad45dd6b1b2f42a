"""Execution of one run, from a checked configuration to its record."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.config.schema import RunConfig
from mteb_vllm.engines import environment
from mteb_vllm.engines.base import engine_processes
from mteb_vllm.engines.memory import peak_memory, reset_peak_memory
from mteb_vllm.errors import FirstStageError, MtebVllmError
from mteb_vllm.inference.embedding_cache.cache import EmbeddingCache
from mteb_vllm.pipelines.base import RunContext
from mteb_vllm.plan import Plan, current_plan, failed_before
from mteb_vllm.progress import MakeProgress, Progress, quiet_console
from mteb_vllm.report import one_run
from mteb_vllm.report.one_run import (
    first_stage_truncation_notes,
    ineffective_variable_notes,
    print_summary,
    truncation_notes,
)
from mteb_vllm.results.failures import (
    Failure,
    add_log,
    earlier_failure,
    failure_from_exception,
    failures_from_unwritten,
    last_lines,
    load_failures,
    save_failures,
)
from mteb_vllm.results.lookup import save_settings
from mteb_vllm.results.measurements import EngineRecord, Memory
from mteb_vllm.results.objective import set_objective
from mteb_vllm.results.record import CommandLine, FirstStageRecord, Objective, RunRecord, TaskOutcome, write_record
from mteb_vllm.run_header import print_run_header, prompts_in_effect
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.util import disk
from mteb_vllm.util.escape import visible
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.garbage import garbage_collection_paused
from mteb_vllm.util.masking import scrub
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.quiet import output_into, quiet_libraries
from mteb_vllm.util.sentences import sentence

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console

logger = logging.getLogger(__name__)

# The name of a run's log file, as set in `conf/hydra/job_logging/file.yaml`.
LOG = "mteb_vllm.log"


@dataclass(frozen=True)
class PrefetchedFirstStage:
    """The outcome of a first stage that was run before the rest of its point.

    Attributes:
        record: Its record.
        failures: Its failures by task; the run itself will encounter them again.
    """

    record: FirstStageRecord
    failures: list[Failure]


_NO_COMMAND = CommandLine()


def run_config(
    config: RunConfig,
    planned: Plan | None,
    output_dir: Path,
    command: CommandLine = _NO_COMMAND,
    *,
    point: int | None = None,
    console: Console | None = None,
    progress: MakeProgress = Progress,
    prefetched: PrefetchedFirstStage | None = None,
    since: float | None = None,
) -> RunRecord:
    """Run one configuration and write its record.

    Args:
        config: A checked configuration.
        planned: Its plan; if None, it is made here, and a failure to do so is recorded.
        output_dir: The folder for `run.json`, `scores.csv` and `report.md`.
        command: The command line that the configuration was composed from, for the record.
        point: Its number in a sweep.
        console: Where progress is shown; None shows nothing.
        progress: Called with a console and the number of tasks to make the progress display.
        prefetched: The result of `prefetch_first_stage`, if the first stage has been run already.
        since: When the command started, by `time.time`, if this run is all that it does.

    Returns:
        the record, which also holds failures and write errors; they are not raised.
    """
    start = {"start": max(time.time() - since, 0.0)} if since is not None else {}
    with disk.collect_unwritten():
        return _run_config(
            config,
            planned,
            output_dir,
            command,
            point=point,
            console=console,
            progress=progress,
            prefetched=prefetched,
            start=start,
        )


def _run_config(
    config: RunConfig,
    planned: Plan | None,
    output_dir: Path,
    command: CommandLine,
    *,
    point: int | None,
    console: Console | None,
    progress: MakeProgress,
    prefetched: PrefetchedFirstStage | None,
    start: dict[str, float],
) -> RunRecord:
    started = time.perf_counter()
    reset_peak_memory(engine_processes())
    console = console or quiet_console()
    record = started_record(config, output_dir, command, point)
    try:
        planned = current_plan(config, planned)
        record.settings = planned.settings
        record.fingerprint = fingerprint(record.settings)
        record.prompts = prompts_in_effect(planned)
        print_run_header(console, planned, record)
        for spec in reversed(planned.engines):
            environment.set_threading_variables(spec.env)
        _run(config, planned, record, console, progress, prefetched, started)
        if record.first_score:
            record.first_score = start | record.first_score
    except MtebVllmError as error:
        logger.exception("the run failed")
        record.failure = failure_from_exception(error)
    except Exception as error:
        logger.exception("the run failed")
        record.failure = failure_from_exception(error)
        if record.failure.kind != "disk":
            # A bug in this package or a library: print the full traceback, but let a sweep go on.
            print(visible(traceback.format_exc()), file=sys.stderr)
    except BaseException as error:
        record.failure = failure_from_exception(error)
        record.peak_memory_mb = Memory(**peak_memory(engine_processes()))
        finish(record, started)  # Ctrl-C: keep the results so far
        raise
    if record.failure is not None:
        record.failure = add_log(record.failure, last_lines(output_dir / LOG))
    record.peak_memory_mb = Memory(**peak_memory(engine_processes()))
    record.warnings += ineffective_variable_notes(record)
    finish(record, started)
    one_run.print_run(console, record)
    print_summary(console, record)
    return record


def prefetch_first_stage(
    config: RunConfig,
    planned: Plan | None,
    output_dir: Path,
    *,
    console: Console,
    progress: MakeProgress = Progress,
) -> PrefetchedFirstStage:
    """Run only the dense first stage of a reranking run, so that a sweep opens the first stage's engine just once.

    Args:
        config: A checked configuration.
        planned: Its plan; if None, it is made here.
        output_dir: The point's folder, which contains its log.
        console: Where progress is shown.
        progress: Called with a console and the number of tasks to make the progress display.

    Raises:
        ModelError: if a model cannot be found or loaded.
    """
    planned = current_plan(config, planned)
    environment.set_threading_variables(planned.engines[-1].env)
    log = output_dir / LOG
    skipped = {} if config.retry_failed else failed_before(config, planned)
    with _session(config, planned, log, console, progress, skipped) as work:
        errors = planned.pipeline.retrieve(work.context)
        failures = [add_log(failure_from_exception(error, task), last_lines(log)) for task, error in errors.items()]
    return PrefetchedFirstStage(_first_stage_record(planned), failures)


def started_record(config: RunConfig, output_dir: Path, command: CommandLine, point: int | None) -> RunRecord:
    """Return the record of a run that has just started."""
    name = config.report.objective
    return RunRecord(
        objective=Objective(name) if name is not None else None,
        search_path=list(command.search_path),
        overrides=list(command.overrides),
        point=point,
        config=asdict(config),
        started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        output_dir=str(output_dir),
    )


def finish(record: RunRecord, started: float) -> None:
    """Write a run's record and report, and store its failures; write errors are added to the record.

    Args:
        record: The record.
        started: When the run started, by `time.perf_counter`.
    """
    folder, root = Path(record.output_dir), Path(record.config["results"]["dir"])
    with disk.collect_unwritten() as unwritten:
        record.unwritten = failures_from_unwritten(unwritten)
        if record.failures or record.deviates:
            record.status = "failed"
        record.seconds = time.perf_counter() - started
        set_objective(record)
        write_record(record, folder)
        one_run.write_run(record, folder)
        scrub(folder)
        if record.fingerprint:
            settled = [task.name for task in record.tasks if task.status != "failed"]
            settled += [""] if record.throughput is not None and record.failure is None else []
            save_failures(root, record.fingerprint, record.config["tasks"], record.failures, settled)
        if unwritten:
            record.unwritten, record.status = failures_from_unwritten(unwritten), "failed"


@dataclass(frozen=True)
class _Session:
    """The context of a run's pipeline, its embedding cache, and how long it took to import mteb, in seconds."""

    context: RunContext
    embeddings: EmbeddingCache | None
    import_seconds: float


@contextlib.contextmanager
def _session(
    config: RunConfig,
    planned: Plan,
    log: Path,
    console: Console,
    make_progress: MakeProgress,
    skip: Collection[str] = (),
) -> Iterator[_Session]:
    names = [task.name for task in planned.tasks if task.name not in skip]
    with quiet_libraries(), output_into(log, console), make_progress(console, len(names)) as progress:
        progress.note(Phase.IMPORTING, "Importing mteb")
        started = time.perf_counter()
        with garbage_collection_paused():
            from mteb_vllm.results.locks import clear
            from mteb_vllm.results.store import ResultsStore
            from mteb_vllm.wrappers.encoder import EmbeddingWrapper

        store = ResultsStore(config.results.dir)
        clear(store.root)
        loaded = tasks.load(config.tasks, names)
        import_seconds = time.perf_counter() - started
        context = RunContext(
            model=planned.wrapper(),
            tasks=loaded,
            store=store,
            progress=progress,
            reuse=config.results.reuse == "exact",
            prompts=planned.prompts,
            template=planned.template,
            input_fingerprints={task.name: planned.input_fingerprint(task) for task in planned.tasks},
            stage=planned.stage,
            reference=planned.reference.wrapper() if planned.reference is not None else None,
        )
        embeddings = _embedding_cache(config)
        stage = planned.stage.encoder if planned.stage is not None else None
        for model in filter(None, (context.model, context.reference, stage)):
            # Timings and comparisons need embeddings that the engine computes in this run.
            if isinstance(model, EmbeddingWrapper) and (planned.pipeline.cached or model is not context.model):
                model.embedding_cache = embeddings
            model.progress = progress.encoded
            model.opening = functools.partial(progress.opening, model.spec)
        yield _Session(context, embeddings, import_seconds)


def _embedding_cache(config: RunConfig) -> EmbeddingCache | None:
    """Return the embedding cache; None if it is disabled or everything is to be recomputed."""
    use = config.embedding_cache.use
    if use == "never" or (use == "auto" and config.results.reuse == "none"):
        return None
    return EmbeddingCache(Path(config.embedding_cache.dir or config.results.dir), config.embedding_cache.max_bytes)


def _run(
    config: RunConfig,
    planned: Plan,
    record: RunRecord,
    console: Console,
    progress: MakeProgress,
    prefetched: PrefetchedFirstStage | None,
    started: float,
) -> None:
    """Run the pipeline and fill the record."""
    log, root, pipeline = Path(record.output_dir) / LOG, Path(config.results.dir), planned.pipeline
    skipped: dict[str, Failure] = {}
    if not config.retry_failed and pipeline.scores_tasks:
        skipped = failed_before(config, planned)
    elif (
        not config.retry_failed
        and (earlier := earlier_failure(load_failures(root, record.fingerprint, record.config["tasks"]), ""))
        is not None
    ):
        record.failure = earlier
        record.warnings.append("This point failed before and was not tried again (retry_failed=false).")
        return
    names = [task.name for task in planned.tasks]
    with _session(config, planned, log, console, progress, skipped) as work:
        context = work.context
        for task in planned.tasks if pipeline.cached else ():
            with contextlib.suppress(FirstStageError):  # the task itself will report it
                save_settings(root, planned.settings_for(task))
        try:
            for outcome in pipeline.run(context):
                if outcome.failure is not None:
                    lines = [*_engine_lines(context.model, log), *last_lines(log)]
                    outcome.failure = add_log(outcome.failure, lines)
                record.tasks.append(outcome)
                if outcome.status == "computed" and not record.first_score:
                    engine = context.model.engine_record()
                    record.first_score = _first_score(
                        outcome, engine, work.import_seconds, context.seconds_before, time.perf_counter() - started
                    )
        finally:
            record.throughput, record.parity = context.throughput, context.parity
            record.engine = context.model.engine_record()
            record.warnings += _engine_warnings(record.engine)
        record.warnings += [
            f"A stored file was damaged. It was quarantined as {path}, and its content was computed again."
            for path in [
                *context.store.quarantined,
                *(work.embeddings.quarantined if work.embeddings is not None else []),
            ]
        ]
        if work.embeddings is not None and pipeline.scores_tasks:
            record.embedding_cache = work.embeddings.record()
        if planned.stage is not None:
            record.first_stage = _first_stage_record(planned)
            if prefetched is not None and prefetched.record.work is not None and prefetched.record.work.texts:
                record.first_stage = prefetched.record
            record.warnings += first_stage_truncation_notes(record.first_stage)
            record.warnings += _engine_warnings(record.first_stage.engine)
    for task in planned.tasks:
        if (failure := skipped.get(task.name)) is not None:
            record.tasks.append(TaskOutcome(task.name, task.type, "failed", task.main_score, failure=failure))
            record.warnings.append(f"{task.name} failed before and was not tried again (retry_failed=false).")
    record.tasks.sort(key=lambda outcome: names.index(outcome.name))
    for outcome in record.tasks:
        record.warnings += [*outcome.warnings, *truncation_notes(outcome, record.engine)]


def _first_score(
    outcome: TaskOutcome,
    engine: EngineRecord | None,
    import_seconds: float,
    seconds_before: Mapping[str, float],
    total: float,
) -> dict[str, float]:
    """Return the seconds until a run's first score, by phase; see `RunRecord.first_score`."""
    opening = engine.seconds if engine is not None and engine.opened else 0.0
    phases = {"import": import_seconds, **seconds_before, "engine": opening, **outcome.seconds}
    return phases | {"other": max(total - sum(phases.values()), 0.0)}


def _engine_warnings(engine: EngineRecord | None) -> list[str]:
    """Return the warnings that vLLM gave while it opened, why it could not be given token ids, and lost replicas."""
    if engine is None:
        return []
    slow = engine.text_reason if engine.backend == "vllm" else None
    note = [f"vLLM tokenised the texts itself, one at a time: {sentence(slow)}"] if slow is not None else []
    if engine.replicas_lost:
        note.append(
            f"{engine.replicas_lost} of {engine.replicas} replicas of the engine died, and the others did their work. The "
            "cause is in the log."
        )
    return [*(f"vLLM: {text}" for text in engine.warnings), *note]


def _engine_lines(model: Any, log: Path) -> list[str]:
    """Return the last log lines of an engine that was opened by another run, whose log it still writes to."""
    engine = model.last_engine
    apart = engine is not None and engine.log is not None and engine.log != log.absolute()
    return last_lines(engine.log) if apart else []


def _first_stage_record(planned: Plan) -> FirstStageRecord:
    stage = planned.stage
    assert stage is not None
    if (encoder := stage.encoder) is None:
        depends: dict[str, Any] = {}
        for part in planned.parts:
            if not tasks.brings_candidates(part.type):
                with contextlib.suppress(FirstStageError):  # its task has reported it
                    depends[part.name] = stage.settings(part.name)
        return FirstStageRecord(stage.name, depends, dict(vars(stage)))
    return FirstStageRecord(
        stage.name,
        encoder.settings(),
        engine=encoder.engine_record(),
        prompts={f"{task}: {side or 'texts'}": prompt for (task, side), prompt in encoder.applied.items()},
        work=replace(encoder.work),
    )
