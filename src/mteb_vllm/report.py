"""Tables of what was computed: on the terminal, and as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.failures import Failure
from mteb_vllm.prompts import Prefix, Prompts, applying_keys, instruction_keys
from mteb_vllm.results import RunRecord, TaskOutcome
from mteb_vllm.score_templates import ScoreTemplate

TASK_COLUMNS = ("task", "metric", "main score", "texts/s", "tokens/s", "seconds", "")
RERANK_COLUMNS = (
    "task", "metric", "first stage", "reranked", "gain", "ceiling", "share", "pairs/s", "tokens/s", "seconds", ""
)  # fmt: skip


def prompt_rows(prompts: Prompts, tasks: Iterable[TaskInfo]) -> list[tuple[str, str, str, str]]:
    """What stands in front of the texts, per task and side: (task, side, key, one rendered example)."""
    rows: list[tuple[str, str, str, str]] = []
    for task in tasks:
        for side in task.sides:
            prefix = prompts.prefix(task, side or None)
            rows.append((task.name, side or "texts", prefix.key or "no prompt", f"{prefix.text}<{side or 'text'}>"))
    return rows


def unused_keys(prompts: Prompts, tasks: Iterable[TaskInfo], template: ScoreTemplate | None = None) -> list[str]:
    """The prompt keys that apply to nothing here; of a cross-encoder, those that are no instruction."""
    used = applying_keys(prompts.values, tasks) if template is None else instruction_keys(prompts.values, tasks)
    if template is not None and not template.takes_instruction:
        used = set()
    return [key for key in prompts.values if key not in used]


def print_pairs(console: Console, template: ScoreTemplate, prompts: Prompts, tasks: Sequence[TaskInfo]) -> None:
    """Shows through what a reranker is about to read pairs."""
    how = "a score template" if template.text is not None else "the model's own way"
    table = Table(title=f"Pairs: {how}", title_justify="left", box=None, pad_edge=False)
    for column in ("task", "instruction", "what the model reads"):
        table.add_column(column, overflow="fold")
    for task in tasks:
        instruction = prompts.instruction(task, "query") if template.takes_instruction else Prefix()
        example = template.rendered("<query>", "<document>", instruction.text)
        table.add_row(task.name, instruction.key or "none", escape(repr(example)[1:-1]))
    console.print(table)
    if unused := unused_keys(prompts, tasks, template):
        console.print(f"Prompt keys that apply to nothing here: {', '.join(unused)}", markup=False, soft_wrap=True)


def print_prompts(console: Console, prompts: Prompts, tasks: Sequence[TaskInfo]) -> None:
    """Shows what the model is about to be given."""
    table = Table(title=f"Prompts: {prompts.source}", title_justify="left", box=None, pad_edge=False)
    for column in ("task", "side", "key", "what the model reads"):
        table.add_column(column, overflow="fold")
    for name, side, key, example in prompt_rows(prompts, tasks):
        table.add_row(name, side, key, escape(repr(example)[1:-1]))
    console.print(table)
    unused = unused_keys(prompts, tasks)
    if unused:
        console.print(f"Prompt keys that apply to nothing here: {', '.join(unused)}", markup=False, soft_wrap=True)


def print_run(console: Console, record: RunRecord) -> None:
    """Shows the scores of one run; failures first."""
    columns, rows = task_table(record)
    table = Table(box=None, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if 2 <= at < len(columns) - 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print()
    console.print(table)
    for warning in record.warnings:
        console.print(f"Note: {warning}", markup=False, style="yellow", soft_wrap=True)
    for failure in record.failures:
        print_failure(console, failure)


def print_failure(console: Console, failure: Failure) -> None:
    """Shows a failure and what to try; the log is in the record."""
    console.print(f"Failed: {failure}", markup=False, style="red", soft_wrap=True)
    if failure.advice:
        console.print(f"  What to try: {failure.advice}.", markup=False, soft_wrap=True)


def _failure_lines(failure: Failure) -> list[str]:
    lines = [f"**Failed:** {failure}"]
    if failure.advice:
        lines += ["", f"What to try: {failure.advice}."]
    if failure.log:
        lines += ["", "```", *failure.log, "```"]
    return lines


def task_table(record: RunRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A header, and one row a task; failures first, and the mean last where there are several scores."""
    reranked = bool(record.first_stage) or any(task.candidates for task in record.tasks)
    rows = []
    for task in sorted(record.tasks, key=lambda task: task.status != "failed"):
        seconds = _number(task.total_seconds, 1) if task.status == "computed" else ""
        state = {"computed": "", "reused": "known already", "failed": f"failed: {task.reason}"}[task.status]
        speed = (_number(task.texts_per_second), _number(task.tokens_per_second))
        scores = _rerank_scores([task]) if reranked else (_number(task.main_score, 5),)
        rows.append((task.name, task.metric, *scores, *speed, seconds, state))
    scored = [task for task in record.tasks if task.main_score is not None]
    if len(scored) > 1:
        computed = sum(task.computed or 0 for task in record.tasks)
        tokens = sum(task.tokens or 0 for task in record.tasks)
        encode = sum(task.seconds.get("encode", 0.0) for task in record.tasks)
        speed = (_number(computed / encode), _number(tokens / encode)) if encode else ("", "")
        whole = sum(task.total_seconds for task in record.tasks)
        of = "mean" if len(scored) == len(record.tasks) else f"mean of {len(scored)} of {len(record.tasks)}"
        scores = _rerank_scores(scored) if reranked else (_number(mean(task.main_score for task in scored), 5),)
        rows.append((of, "", *scores, *speed, _number(whole, 1) if whole else "", ""))
    unit = "texts/s" if any(task.computed and task.unit == "texts" for task in record.tasks) else "pairs/s"
    return (tuple(unit if name == "pairs/s" else name for name in RERANK_COLUMNS) if reranked else TASK_COLUMNS), rows


def _rerank_scores(tasks: Sequence[TaskOutcome]) -> tuple[str, ...]:
    """First stage, reranked, gain, ceiling and the share of it that is reached; the means of several tasks."""
    first, reranked, gain, ceiling, share = (
        mean(getattr(task, name) for task in tasks)
        for name in ("first_stage", "main_score", "gain", "ceiling", "share")
    )
    own = "own candidates" if tasks and all(task.candidates == "own" for task in tasks) else ""
    signed = "" if gain is None else f"{gain:+.5f}"
    percent = "" if share is None else f"{share:.1%}"
    return _number(first, 5) or own, _number(reranked, 5), signed, _number(ceiling, 5), percent


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, if all of them are there."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def run_markdown(record: RunRecord) -> str:
    """The report of one run."""
    model = record.settings.get("engine", {})
    lines = [
        f"# {model.get('model', 'run')}",
        "",
        f"- status: {record.status}",
        f"- settings: `{record.fingerprint}`",
        f"- revision: `{model.get('revision')}`",
        *_first_stage_lines(record),
        f"- command: `{shlex.join(['mteb-vllm', *record.overrides])}`",
        f"- started: {record.started}, {record.seconds:.1f} s in all",
        f"- device: {model.get('device')}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in (model.get('versions') or {}).items())}",
        "",
        *_markdown(*task_table(record)),
    ]
    for failure in record.failures:
        lines += ["", *_failure_lines(failure)]
    lines += [f"\n> {warning}" for warning in record.warnings]
    rows = [
        (task.name, side, said.get("key") or "no prompt", f"`` {said.get('example') or ''} ``".replace("\n", "⏎"))
        for task in record.tasks
        for side, said in task.prompts.items()
    ]
    if rows:
        lines += ["", "## What the model read", "", *_markdown(("task", "side", "prompt key", "first text"), rows)]
    if record.engine:
        values = [(key, str(value)) for key, value in (record.engine.get("resolved") or {}).items()]
        lines += ["", "## Engine", "", *_markdown(("argument", "value"), values)]
    return "\n".join(lines) + "\n"


def _first_stage_lines(record: RunRecord) -> list[str]:
    stage = record.first_stage
    if not stage:
        return []
    model = ((stage.get("settings") or {}).get("engine") or {}).get("model") if stage["kind"] == "dense" else None
    return [
        f"- first stage: {stage['kind']}{f' ({model})' if model else ''}, top_k {record.config['pipeline']['top_k']}"
    ]


def differing(runs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each run of a sweep, given by its overrides, those in which the runs differ: key to value."""
    parsed = [dict(_key_value(text) for text in overrides) for overrides in runs]
    keys = dict.fromkeys(key for one in parsed for key in one)
    varying = [key for key in keys if len({one.get(key, "") for one in parsed}) > 1]
    return [{key: one.get(key, "") for key in varying} for one in parsed]


def sweep_table(records: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """A header, and one row a point: what differs, the main score of each task, texts/s, seconds, state; failures first."""
    varying = differing([record.overrides for record in records])
    keys = list(varying[0]) if varying else []
    names = list(dict.fromkeys(task.name for record in records for task in record.tasks))
    reranked = any(task.candidates for record in records for task in record.tasks)
    means = list(RERANK_COLUMNS[2:7]) if reranked else []
    names = names if not reranked or len(names) > 1 else []  # of one task, the columns of reranking say it all
    unit = "pairs/s" if any(task.unit == "pairs" for record in records for task in record.tasks) else "texts/s"
    header = ["point", *keys, *means, *names, unit, "seconds", ""]
    rows = []
    for record, values in zip(records, varying, strict=True):
        computed = sum(task.computed or 0 for task in record.tasks)
        encode = sum(task.seconds.get("encode", 0.0) for task in record.tasks)
        failed = [task.name for task in record.tasks if task.status == "failed"]
        if record.status == "failed":
            whole = record.failure
            kinds = dict.fromkeys(task.failure.kind.replace("_", " ") for task in record.tasks if task.failure)
            state = f"failed: {whole}" if whole else f"failed: {', '.join(failed)} ({', '.join(kinds)})"
        else:
            state = "known already" if all(task.status == "reused" for task in record.tasks) else ""
        scores = [_number(record.scores.get(name), 5) for name in names]
        speed = _number(computed / encode) if encode else ""
        both = _rerank_scores(record.tasks) if reranked else ()
        rows.append(
            [
                str(record.point),
                *(values[key] for key in keys),
                *both,
                *scores,
                speed,
                _number(record.seconds, 1),
                state,
            ]
        )
    return header, sorted(rows, key=lambda row: not row[-1].startswith("failed"))


def print_sweep(console: Console, records: Sequence[RunRecord]) -> None:
    """Shows all points of a sweep."""
    header, rows = sweep_table(records)
    table = Table(title=f"{len(records)} points", title_justify="left", box=None, pad_edge=False)
    for column in header:
        table.add_column(
            column, overflow="fold", justify="left" if "=" in column or column in ("", "point") else "right"
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print()
    console.print(table)


def sweep_markdown(records: Sequence[RunRecord]) -> str:
    """The report of a sweep."""
    header, rows = sweep_table(records)
    return "\n".join([f"# Sweep of {len(records)} points", "", *_markdown(header, rows)]) + "\n"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows)]


def _key_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
