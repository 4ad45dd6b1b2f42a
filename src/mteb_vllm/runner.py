"""The whole story of one run, from a checked configuration to its record."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.announce import announce, prompts_in_effect
from mteb_vllm.config.schema import RunConfig
from mteb_vllm.engines import environment
from mteb_vllm.engines.base import working_processes
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
    before,
    last_lines,
    of_exception,
    of_unwritten,
    remember,
    remembered,
    with_log,
)
from mteb_vllm.results.lookup import keep_settings
from mteb_vllm.results.measurements import EngineRecord, Memory
from mteb_vllm.results.record import FirstStageRecord, RunRecord, TaskOutcome, write_record
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.util import disk
from mteb_vllm.util.escape import visible
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.masking import scrub
from mteb_vllm.util.phase import Phase
from mteb_vllm.util.quiet import errors_into, quiet_libraries

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console

logger = logging.getLogger(__name__)

# A run's log in its folder, as `conf/hydra/job_logging/file.yaml` has it.
LOG = "mteb_vllm.log"


@dataclass(frozen=True)
class Ahead:
    """What a first stage that ran ahead has to say.

    Attributes:
        record: The run's record of it.
        failures: What went wrong, task by task; the run itself will meet it again.
    """

    record: FirstStageRecord
    failures: list[Failure]


def run_config(
    config: RunConfig,
    planned: Plan | None,
    output_dir: Path,
    overrides: Sequence[str] = (),
    *,
    point: int | None = None,
    console: Console | None = None,
    progress: MakeProgress = Progress,
    ahead: Ahead | None = None,
) -> RunRecord:
    """Runs one configuration and writes its record.

    Args:
        config: A checked configuration.
        planned: Its plan; None where none could be made, or passed on to this process: it is made here, and if it cannot
            be, the record says why.
        output_dir: Where `run.json`, `scores.csv` and `report.md` go.
        overrides: What made the configuration, for the record.
        point: Its number in a sweep.
        console: Where progress is shown; None shows nothing.
        progress: Makes what shows it, of a console and a number of tasks.
        ahead: What `retrieve_ahead` said, if the first stage ran ahead.

    Returns:
        the record; a failure is in it, not raised, and so is what could not be written.
    """
    with disk.collected():
        return _run_config(
            config, planned, output_dir, overrides, point=point, console=console, progress=progress, ahead=ahead
        )


def _run_config(
    config: RunConfig,
    planned: Plan | None,
    output_dir: Path,
    overrides: Sequence[str],
    *,
    point: int | None,
    console: Console | None,
    progress: MakeProgress,
    ahead: Ahead | None,
) -> RunRecord:
    started = time.perf_counter()
    reset_peak_memory(working_processes())
    console = console or quiet_console()
    record = started_record(config, output_dir, overrides, point)
    try:
        planned = current_plan(config, planned)
        record.settings = planned.settings
        record.fingerprint = fingerprint(record.settings)
        record.prompts = prompts_in_effect(planned)
        announce(console, planned, record)
        for spec in reversed(planned.engines):
            environment.prepare(spec.env)
        _run(config, planned, record, console, progress, ahead)
    except MtebVllmError as error:
        logger.exception("the run failed")
        record.failure = of_exception(error)
    except Exception as error:
        logger.exception("the run failed")
        record.failure = of_exception(error)
        if record.failure.kind != "disk":
            # A bug, of ours or of a library's: it is shown whole, and costs the other points of a sweep nothing.
            print(visible(traceback.format_exc()), file=sys.stderr)
    except BaseException as error:
        record.failure = of_exception(error)
        record.peak_memory_mb = Memory(**peak_memory(working_processes()))
        finish(record, started)  # Ctrl-C: what is done so far is kept
        raise
    if record.failure is not None:
        record.failure = with_log(record.failure, last_lines(output_dir / LOG))
    record.peak_memory_mb = Memory(**peak_memory(working_processes()))
    record.warnings += ineffective_variable_notes(record)
    finish(record, started)
    one_run.print_run(console, record)
    print_summary(console, record)
    return record


def retrieve_ahead(
    config: RunConfig,
    planned: Plan | None,
    output_dir: Path,
    *,
    console: Console,
    progress: MakeProgress = Progress,
) -> Ahead:
    """Does the dense first stage of a run that reranks, so that its engine need not open again among rerankers'.

    Args:
        config: A checked configuration.
        planned: Its plan; None: it is made here.
        output_dir: The point's folder, where its log goes.
        console: Where progress is shown.
        progress: Makes what shows it, of a console and a number of tasks.

    Raises:
        ModelError: if a model cannot be had.
    """
    planned = current_plan(config, planned)
    environment.prepare(planned.engines[-1].env)
    log = output_dir / LOG
    skipped = {} if config.retry_failed else failed_before(config, planned)
    with _working(config, planned, log, console, progress, skipped) as work:
        errors = planned.pipeline.retrieve(work.context)
        failures = [with_log(of_exception(error, task), last_lines(log)) for task, error in errors.items()]
    return Ahead(_first_stage_record(planned), failures)


def started_record(config: RunConfig, output_dir: Path, overrides: Sequence[str], point: int | None) -> RunRecord:
    """The record of a run that has just begun."""
    return RunRecord(
        overrides=list(overrides),
        point=point,
        config=asdict(config),
        started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        output_dir=str(output_dir),
    )


def finish(record: RunRecord, started: float) -> None:
    """Write a run's record and report, and remember what failed; what cannot be written is in the record.

    Args:
        record: The record.
        started: When the run began, by `time.perf_counter`.
    """
    folder, root = Path(record.output_dir), Path(record.config["results"]["dir"])
    with disk.collected() as unwritten:
        record.unwritten = of_unwritten(unwritten)
        if record.failures or record.deviates:
            record.status = "failed"
        record.seconds = time.perf_counter() - started
        write_record(record, folder)
        one_run.write_run(record, folder)
        scrub(folder)
        if record.fingerprint:
            settled = [task.name for task in record.tasks if task.status != "failed"]
            settled += [""] if record.throughput is not None and record.failure is None else []
            remember(root, record.fingerprint, record.failures, settled)
        if unwritten:
            record.unwritten, record.status = of_unwritten(unwritten), "failed"


@dataclass(frozen=True)
class _Work:
    """What a run works with: what its pipeline is given, and the embedding cache."""

    context: RunContext
    embeddings: EmbeddingCache | None


@contextlib.contextmanager
def _working(
    config: RunConfig,
    planned: Plan,
    log: Path,
    console: Console,
    make_progress: MakeProgress,
    skip: Collection[str] = (),
) -> Iterator[_Work]:
    names = [task.name for task in planned.tasks if task.name not in skip]
    with quiet_libraries(), errors_into(log), make_progress(console, len(names)) as progress:
        progress.note(Phase.IMPORTING, "Importing mteb")
        from mteb_vllm.results.locks import clear
        from mteb_vllm.results.store import ResultsStore
        from mteb_vllm.wrappers.encoder import Embedding

        store = ResultsStore(config.results.dir)
        clear(store.root)
        context = RunContext(
            model=planned.wrapper(),
            tasks=tasks.load(config.tasks, names),
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
            # What is timed, or compared with a reference, is what the engine computes now.
            if isinstance(model, Embedding) and (planned.pipeline.cached or model is not context.model):
                model.embedding_cache = embeddings
            model.progress = progress.encoded
            model.opening = functools.partial(progress.opening, model.spec)
        yield _Work(context, embeddings)


def _embedding_cache(config: RunConfig) -> EmbeddingCache | None:
    """Embeddings on disk; none where the user wants none, or wants everything computed again."""
    use = config.embedding_cache.use
    if use == "never" or (use == "auto" and config.results.reuse == "none"):
        return None
    return EmbeddingCache(Path(config.results.dir), config.embedding_cache.max_bytes)


def _run(
    config: RunConfig,
    planned: Plan,
    record: RunRecord,
    console: Console,
    progress: MakeProgress,
    ahead: Ahead | None,
) -> None:
    """Open what is needed and let the pipeline work; fills the record."""
    log, root, pipeline = Path(record.output_dir) / LOG, Path(config.results.dir), planned.pipeline
    skipped: dict[str, Failure] = {}
    if not config.retry_failed and pipeline.scores_tasks:
        skipped = failed_before(config, planned)
    elif not config.retry_failed and (earlier := before(remembered(root, record.fingerprint), "")) is not None:
        record.failure = earlier
        record.warnings.append("This point failed before and was not tried again (retry_failed=false).")
        return
    names = [task.name for task in planned.tasks]
    with _working(config, planned, log, console, progress, skipped) as work:
        context = work.context
        for task in planned.tasks if pipeline.cached else ():
            with contextlib.suppress(FirstStageError):  # that task will fail, and say why
                keep_settings(root, planned.settings_for(task))
        try:
            for outcome in pipeline.run(context):
                if outcome.failure is not None:
                    lines = [*_engine_lines(context.model, log), *last_lines(log)]
                    outcome.failure = with_log(outcome.failure, lines)
                record.tasks.append(outcome)
        finally:
            record.throughput, record.parity = context.throughput, context.parity
            record.engine = context.model.engine_record()
            record.warnings += _engine_warnings(record.engine)
        record.warnings += [
            f"{path} is not what was written there: it was quarantined under this name, and computed again."
            for path in [*context.store.set_aside, *(work.embeddings.set_aside if work.embeddings is not None else [])]
        ]
        if work.embeddings is not None and pipeline.scores_tasks:
            record.embedding_cache = work.embeddings.record()
        if planned.stage is not None:
            record.first_stage = _first_stage_record(planned)
            if ahead is not None and ahead.record.work is not None and ahead.record.work.texts:
                record.first_stage = ahead.record
            record.warnings += first_stage_truncation_notes(record.first_stage)
            record.warnings += _engine_warnings(record.first_stage.engine)
    for task in planned.tasks:
        if (failure := skipped.get(task.name)) is not None:
            record.tasks.append(TaskOutcome(task.name, task.type, "failed", task.main_score, failure=failure))
            record.warnings.append(f"{task.name} failed before and was not tried again (retry_failed=false).")
    record.tasks.sort(key=lambda outcome: names.index(outcome.name))
    for outcome in record.tasks:
        record.warnings += [*outcome.warnings, *truncation_notes(outcome, record)]


def _engine_warnings(engine: EngineRecord | None) -> list[str]:
    """Return what vLLM warned of while it opened."""
    return [f"vLLM: {text}" for text in engine.warnings] if engine is not None else []


def _engine_lines(model: Any, log: Path) -> list[str]:
    """The last lines of what an engine in a process of its own has written, which is in the log of who opened it."""
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
                with contextlib.suppress(FirstStageError):  # its task has failed, and says why
                    depends[part.name] = stage.settings(part.name)
        return FirstStageRecord(stage.name, depends, dict(vars(stage)))
    return FirstStageRecord(
        stage.name,
        encoder.settings(),
        engine=encoder.engine_record(),
        prompts={f"{task}: {side or 'texts'}": said for (task, side), said in encoder.applied.items()},
        work=replace(encoder.work),
    )
