"""Reports one run: its prompts, scores and failures, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.models.prompts import Prefix, Prompts, applying_keys, instruction_keys
from mteb_vllm.models.score_templates import ScoreTemplate
from mteb_vllm.models.sentence_transformers_files import POOLING_WORDS
from mteb_vllm.report.formatting import CACHED_CELL, count, markdown, number, percent, signed
from mteb_vllm.report.header import run_circumstances, run_title
from mteb_vllm.report.parity import parity_markdown, print_parity
from mteb_vllm.report.points import CACHED, gain_share
from mteb_vllm.report.throughput import print_throughput, throughput_markdown
from mteb_vllm.results.failures import Failure
from mteb_vllm.results.measurements import EngineRecord
from mteb_vllm.results.objective import describe_objective
from mteb_vllm.results.record import FirstStageRecord, RunRecord, TaskOutcome, mean
from mteb_vllm.util.console import Console
from mteb_vllm.util.disk import attempt
from mteb_vllm.util.escape import code, fenced, inline
from mteb_vllm.util.files import shown_path, write_atomically
from mteb_vllm.util.sentences import sentence
from mteb_vllm.util.shell import command

TASK_COLUMNS = ("task", "metric", "main score", "texts/s", "tokens/s", "seconds", "")
RERANK_COLUMNS = (
    "task", "metric", "first stage", "reranked", "gain", "ceiling", "share of ceiling", "share of possible gain", "pairs/s",
    "tokens/s", "seconds", "",
)  # fmt: skip

# The phases until a run's first score. Shorter ones are not shown, in seconds.
_PHASES = {
    "start": "starting", "import": "importing mteb", "first_stage": "for the first stage", "reference": "for the reference",
    "engine": "opening the engine", "load": "loading data", "encode": "encoding", "store": "in the embedding cache",
    "score": "scoring", "other": "other work",
}  # fmt: skip
_SHORTEST = 0.1

# The columns that a narrow terminal leaves out, in this order.
_LEFT_OUT = ("tokens/s", "share of ceiling", "seconds", "pairs/s", "texts/s")


def prompt_rows(prompts: Prompts, tasks: Iterable[TaskInfo]) -> list[tuple[str, str, str, str]]:
    """Return the prompt of each task and side: (task, side, key, a rendered example)."""
    rows: list[tuple[str, str, str, str]] = []
    for task in tasks:
        for side in task.sides:
            prefix = prompts.prefix(task, side or None)
            rows.append((task.name, side or "texts", prefix.key or "no prompt", f"{prefix.text}<{side or 'text'}>"))
    return rows


def unused_keys(prompts: Prompts, tasks: Iterable[TaskInfo], template: ScoreTemplate | None = None) -> list[str]:
    """Return the prompt keys that no task uses; for a cross-encoder, those that are no instruction."""
    used = applying_keys(prompts.values, tasks) if template is None else instruction_keys(prompts.values, tasks)
    if template is not None and not template.takes_instruction:
        used = set()
    return [key for key in prompts.values if key not in used]


def prompts_record(
    prompts: Prompts, tasks: Iterable[TaskInfo], template: ScoreTemplate | None = None
) -> dict[str, Any]:
    """Return the prompts and templates in effect and their sources, in the form of `RunRecord.prompts`."""
    record = {**prompts.settings(), **prompts.sources(), "unused": unused_keys(prompts, tasks, template)}
    if template is not None:
        record["score_template"] = {**template.settings(), "takes_instruction": template.takes_instruction}
    return record


def describe_prompts(record: Mapping[str, Any]) -> str:
    """Return the result of `prompts_record` in one line: the prompts and the template in effect."""
    own = f"{record['source']}, else the tasks' own" if record["prompts"] else "the tasks' own"
    if (score := record.get("score_template")) is not None:
        how = "the score template" if score["template"] is not None else "the model's own"
        return f"Pair format: {how}; instructions: {own}" if score["takes_instruction"] else f"Pair format: {how}"
    if record["template"] is None:
        return f"Prompts: {record['source']}"
    documents = "" if record["apply_to_documents"] else ", not for documents"
    return f"Instructions: {own}; template: {record['template']!r} ({record['template_source']}){documents}"


def print_pairs(console: Console, template: ScoreTemplate, prompts: Prompts, tasks: Sequence[TaskInfo]) -> None:
    """Show the score template and the instructions of a reranker's pairs before a run."""
    rows = []
    for task in tasks:
        instruction = prompts.instruction(task, "query") if template.takes_instruction else Prefix()
        example = template.render("<query>", "<document>", instruction.text)
        rows.append((task.name, instruction.key or "none", example))
    _print_texts(console, prompts_record(prompts, tasks, template), ("task", "instruction"), rows)


def print_prompts(console: Console, prompts: Prompts, tasks: Sequence[TaskInfo]) -> None:
    """Show the prompts of the texts before a run."""
    _print_texts(console, prompts_record(prompts, tasks), ("task", "side", "key"), prompt_rows(prompts, tasks))


def _print_texts(
    console: Console, record: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print the prompts in effect, and one row per rendered text, which is the last cell."""
    console.print_line(describe_prompts(record), style="italic")
    table = Table(box=None, pad_edge=False)
    for column in (*columns, "input text"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row[:-1], repr(row[-1])[1:-1])
    console.print(table)
    if unused := record["unused"]:
        console.print_line(f"Prompt keys that no task uses: {', '.join(unused)}")


def print_run(console: Console, record: RunRecord) -> None:
    """Show the scores or the measurements of one run, its warnings and failures."""
    console.print()
    if record.throughput is not None:
        print_throughput(console, record)
    if record.tasks or record.throughput is None:
        _print_tasks(console, *task_table(record))
    if record.parity is not None:
        print_parity(console, record.parity)
    if record.objective is not None:
        console.print_line(f"Objective: {describe_objective(record)}")
    for warning in record.warnings:
        console.print_line(f"Note: {warning}", style="yellow")
    for failure in record.failures:
        print_failure(console, failure)


def _print_tasks(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the table of tasks; on a narrow terminal without its technical columns."""
    last = len(columns) - 1
    table = Table(box=None, pad_edge=False)
    shown = [at for at, column in enumerate(columns) if column or any(row[at] for row in rows)]
    for at in shown:
        table.add_column(columns[at], justify="right" if 2 <= at < last else "left")
    for row in rows:
        table.add_row(*(row[at] for at in shown))
    left_out = console.print_table(table, optional=_LEFT_OUT)
    if left_out:
        console.print_line(f"Only in report.md: the columns {', '.join(left_out)}")


def print_failure(console: Console, failure: Failure) -> None:
    """Show a failure and its remedy; its log is in the record."""
    # A file that could not be written is no failure of the computation.
    text = (
        f"Not written: {failure.message}" if failure.kind == "disk" and failure.task is None else f"Failed: {failure}"
    )
    console.print_line(text, style="red")
    if failure.advice:
        console.print_line(f"  What to try: {sentence(failure.advice)}")


def failure_lines(failure: Failure) -> list[str]:
    """Return a failure as lines of Markdown."""
    lines = [f"**Failed:** {inline(str(failure))}"]
    if failure.advice:
        lines += ["", f"What to try: {inline(sentence(failure.advice))}"]
    if failure.log:
        lines += ["", *fenced(failure.log)]
    return lines


def task_table(record: RunRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return a header, and one row per task, failures first; last, the mean of several scores and the totals."""
    reranked = record.first_stage is not None or any(task.candidates for task in record.tasks)
    rows = []
    for task in sorted(record.tasks, key=lambda task: task.status != "failed"):
        seconds = number(task.total_seconds, 1) if task.status == "computed" else ""
        stored = f"{task.stored:,} from the embedding cache" if task.stored else ""
        state = {"computed": stored, "failed": f"failed: {task.reason or 'not run'}"}.get(task.status, "")
        cached = task.status == CACHED
        speed = (CACHED_CELL if cached else number(task.texts_per_second), number(task.tokens_per_second))
        scores = _rerank_scores([task]) if reranked else (number(task.main_score, 5),)
        rows.append((task.name, task.metric, *scores, *speed, seconds, state))
    scored = [task for task in record.tasks if task.main_score is not None]
    if len(scored) > 1:
        computed = sum(task.computed or 0 for task in record.tasks)
        tokens = sum(task.tokens or 0 for task in record.tasks)
        encode = sum(task.seconds.get("encode", 0.0) for task in record.tasks)
        speed = (number(computed / encode), number(tokens / encode)) if encode else ("", "")
        total = sum(task.total_seconds for task in record.tasks)
        of = (
            "mean score"
            if len(scored) == len(record.tasks)
            else f"mean score of {len(scored)} of {len(record.tasks)} tasks"
        )
        scores = _rerank_scores(scored) if reranked else (number(mean(task.main_score for task in scored), 5),)
        rows.append((f"{of} / total", "", *scores, *speed, number(total, 1) if total else "", ""))
    unit = "texts/s" if any(task.computed and task.unit == "texts" for task in record.tasks) else "pairs/s"
    return (tuple(unit if name == "pairs/s" else name for name in RERANK_COLUMNS) if reranked else TASK_COLUMNS), rows


def _rerank_scores(tasks: Sequence[TaskOutcome]) -> tuple[str, ...]:
    """Return first stage, reranked, gain, ceiling, and the shares of the ceiling and of the possible gain: means over tasks.

    The share of the possible gain is that of the means, since a task with little room would dominate a mean of shares.
    """
    first, reranked, gain, ceiling, share = (
        mean(getattr(task, name) for task in tasks)
        for name in ("first_stage", "main_score", "gain", "ceiling", "share")
    )
    own = "own candidates" if tasks and all(task.candidates == "own" for task in tasks) else ""
    shares = ["" if value is None else percent(value) for value in (share, gain_share(first, reranked, ceiling))]
    return number(first, 5) or own, number(reranked, 5), signed(gain), number(ceiling, 5), *shares


def write_run(record: RunRecord, folder: Path) -> None:
    """Write `report.md`, and the charts of a throughput run; files that cannot be written are noted."""
    with attempt(folder / "report.md"):
        write_atomically(folder / "report.md", run_markdown(record))
    if record.throughput is not None:
        from mteb_vllm.report.charts import write_throughput

        with attempt(folder / "throughput.png"):
            write_throughput(record.throughput, folder)


def run_markdown(record: RunRecord) -> str:
    """Return the report of one run in Markdown."""
    model = record.settings.get("engine", {})
    lines = [
        f"# {inline(run_title(record))}",
        "",
        f"- status: {record.status}",
        *(f"- {label}: {inline(text)}" for label, text in run_circumstances(record)),
        f"- fingerprint: `{record.fingerprint}`",
        f"- revision: {code(str(model.get('revision')))}",
        *_first_stage_lines(record),
        *([f"- objective: {inline(describe_objective(record))}"] if record.objective is not None else []),
        f"- command: {code(command(*record.search_path, *record.overrides))}",
        "",
        *(throughput_markdown(record) if record.throughput is not None else []),
        *(markdown(*task_table(record)) if record.tasks or record.throughput is None else []),
        *(["", *parity_markdown(record.parity)] if record.parity is not None else []),
    ]
    for failure in record.failures:
        lines += ["", *failure_lines(failure)]
    lines += [f"\n> {inline(warning)}" for warning in record.warnings]
    rows = [
        (task.name, side, prompt.get("key") or "no prompt", code(prompt.get("example") or ""))
        for task in record.tasks
        for side, prompt in task.prompts.items()
    ]
    if rows:
        summary = [inline(describe_prompts(record.prompts)), ""] if record.prompts else []
        lines += [
            "",
            "## Input texts",
            "",
            *summary,
            *markdown(("task", "side", "prompt key", "first text"), rows),
        ]
    if record.engine is not None:
        values = [(key, str(value)) for key, value in record.engine.resolved.items()]
        lines += ["", "## Engine", "", *markdown(("argument", "value"), values)]
    return "\n".join(lines) + "\n"


def _first_stage_lines(record: RunRecord) -> list[str]:
    stage = record.first_stage
    if stage is None:
        return []
    model = f" ({inline(stage.model)})" if stage.model else ""
    return [f"- first stage: {stage.kind}{model}, top_k {record.config['pipeline']['top_k']}"]


def first_stage_truncation_notes(stage: FirstStageRecord) -> Iterator[str]:
    """Return the number of a dense first stage's texts that were truncated."""
    if stage.work is not None and (truncated := stage.work.truncated):
        share = f"{truncated:,} of {stage.work.texts:,} texts ({truncated / stage.work.texts:.1%})"
        lost = "exceeds its context length and was" if truncated == 1 else "exceed its context length and were"
        yield f"First stage: {share} {lost} truncated."


def truncation_notes(task: TaskOutcome, engine: EngineRecord | None) -> Iterator[str]:
    """Return the numbers of a task's texts or pairs that were empty or truncated, in this run or when it was computed."""
    work = task.measured if task.status == "cached" else task.to_measured(engine)
    if work is None or not work.texts or work.max_model_len is None or work.subsets != task.subsets:
        return
    of = f"of {work.texts:,} {work.unit}"
    if work.blank:
        given = "got the zero vector" if work.unit == "texts" else "got the score 0"
        have = "has" if work.blank == 1 else "have"
        yield f"{task.name}: {work.blank:,} {of} ({work.blank / work.texts:.1%}) {have} no tokens (empty), and {given}."
    limit = f"the context length of {work.max_model_len} tokens"
    if work.truncated:
        share = f"{work.truncated:,} {of} ({work.truncated / work.texts:.1%})"
        one = work.truncated == 1
        lost = f"{'was' if one else 'were'} truncated"
        if work.unit != "texts":
            lost = f"lost the end of {'its' if one else 'their'} document"
        yield f"{task.name}: {share} {'exceeds' if one else 'exceed'} {limit} and {lost}."
    if work.truncated_queries:
        share = f"{work.truncated_queries:,} {of} ({work.truncated_queries / work.texts:.1%})"
        yield f"{task.name}: in {share}, the query alone exceeds {limit} and was truncated."


def ineffective_variable_notes(record: RunRecord) -> Iterator[str]:
    """Return the variables of `engine.env` without effect, since torch was loaded before they were set."""
    stage = record.first_stage.engine if record.first_stage is not None else None
    reference = record.parity.reference.engine if record.parity is not None else None
    for engine in filter(None, (record.engine, stage, reference)):
        for key, value in engine.late.items():
            found = engine.threading.get(key, "not set")
            yield (
                f"{key}={value} has no effect on {engine.backend}: torch was loaded in this process before it was "
                f"set (its value at that time: {found}). The speed may differ in a separate process."
            )


def _in_effect(resolved: Mapping[str, Any]) -> str:
    """Return the settings of the open engine: pooling, normalisation, dimensions, context and special tokens."""
    words = []
    if resolved.get("pooling"):
        pooling = str(resolved["pooling"])
        words.append(f"{POOLING_WORDS.get(pooling, pooling)} pooling")
        words.append("normalised" if resolved.get("normalized") is not False else "not normalised")
    if resolved.get("dimensions"):
        words.append(f"{resolved['dimensions']} dimensions")
    words.append(f"at most {resolved['max_model_len']} tokens")
    if (special := resolved.get("special_tokens")) is not None:
        before, after = special
        words.append(f"special tokens: {' '.join([*before, '<text>', *after])}")
    return ", ".join(words)


def print_summary(console: Console, record: RunRecord) -> None:
    """Show the number of cached results, the use of the embedding cache, and the paths of results and record."""
    cached = sum(task.status == CACHED for task in record.tasks)
    if cached:
        total = len(record.tasks)
        some = f"{cached} of {count(total, 'result')} {'was' if cached == 1 else 'were'}"
        text = some if cached < total else "All results were" if total > 1 else "The result was"
        console.print_line(f"{text} cached; to recompute: results.reuse=none")
    kept = record.embedding_cache
    if kept is not None and (kept.read or kept.written or kept.passed):
        text = f"Embedding cache ({kept.folder}): {kept.read:,} read, {kept.written:,} added"
        if kept.passed:
            text += f", {kept.passed:,} not added: {kept.stopped}"
        console.print_line(text)
    if (phases := record.first_score) and record.point is None:
        parts = ", ".join(
            f"{seconds:.1f} s {_PHASES[name]}" for name, seconds in phases.items() if seconds >= _SHORTEST
        )
        console.print_line(f"First score after {sum(phases.values()):.1f} s: {parts}")
    if record.engine is not None:
        console.print_line(f"Effective settings: {_in_effect(record.engine.resolved)}")
    # Throughput and parity runs store no results.
    measured = record.throughput is not None or record.parity is not None
    kept_in = "" if measured else f", results in {record.config['results']['dir']}/results"
    console.print_line(f"Fingerprint {record.fingerprint}{kept_in}")
    if (file := Path(record.output_dir, "run.json")).exists():
        console.print_line(f"Record: {shown_path(file)}")
