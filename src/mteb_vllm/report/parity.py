"""The verdict of a parity run, on the terminal and in Markdown."""

from __future__ import annotations

from rich.table import Table

from mteb_vllm.report.formatting import count, markdown, number
from mteb_vllm.results.parity import DifferingText, ParityRecord, SplitVerdict, TaskVerdict
from mteb_vllm.util.console import Console
from mteb_vllm.util.escape import inline
from mteb_vllm.util.sentences import sentence

COLUMNS = (
    "task", "split", "metric", "reference", "engine", "difference", "lowest cosine", "top-k overlap", "Kendall tau", "verdict"
)  # fmt: skip
PAIR_COLUMNS = (*COLUMNS[:6], "largest score difference", *COLUMNS[7:])


def print_parity(console: Console, parity: ParityRecord) -> None:
    """Show a verdict, its reasons, and hints at causes."""
    columns, rows = parity_table(parity)
    table = Table(box=None, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if 3 <= at < len(columns) - 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    for line in [*_reasons(parity), *_worst(parity)]:
        console.print_line(line)
    for line in _hints(parity):
        console.print_line(line, style="yellow")
    style = "green" if parity.passed else "red"
    console.print_line(headline(parity), style=style)


def parity_markdown(parity: ParityRecord) -> list[str]:
    """Return a verdict, its reasons, and hints at causes, as lines of Markdown."""
    lines = ["## Parity", "", inline(headline(parity)), "", *markdown(*parity_table(parity))]
    for title, some in (
        ("Reasons", _reasons(parity)), ("Texts with the lowest similarity", _worst(parity)), ("Hints", _hints(parity))
    ):  # fmt: skip
        if some:
            lines += ["", f"### {title}", "", *(f"- {inline(' '.join(line.split()))}" for line in some)]
    return lines


def headline(parity: ParityRecord) -> str:
    """Return the verdict in one sentence."""
    failed = [task.task for task in parity.tasks if not task.passed]
    against = f"parity with {parity.reference.says}"
    if parity.passed:
        return f"Passed: {against}, tolerance {parity.tolerances.score:g}."
    return f"Failed: no {against} on {len(failed)} of {count(len(parity.tasks), 'task')}."


def parity_table(parity: ParityRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return a header, and one row per task, split and subset."""
    rows: list[tuple[str, ...]] = []
    for task in parity.tasks:
        none = SplitVerdict("", "default", "", None, None, None, passed=False)
        for at, split in enumerate(task.splits or [none]):
            where = split.split if split.subset == "default" else f"{split.split}, {split.subset}"
            passed = task.passed if at == 0 else split.passed
            rows.append(
                (
                    task.task,
                    where,
                    split.metric,
                    number(split.reference, 5),
                    number(split.engine, 5),
                    "" if split.difference is None else f"{split.difference:+.5f}",
                    *(_texts(task) if at == 0 else ("", "", "")),
                    "passed" if passed else "failed",
                )
            )
    header = PAIR_COLUMNS if any(task.pair_scores is not None for task in parity.tasks) else COLUMNS
    # Only retrieval has rankings, and stored scores have no texts.
    kept = [at for at in range(len(header)) if not 6 <= at <= 8 or any(row[at] for row in rows)]
    return tuple(header[at] for at in kept), [tuple(row[at] for at in kept) for row in rows]


def _texts(task: TaskVerdict) -> tuple[str, str, str]:
    cosine, pairs, ranking = task.cosine, task.pair_scores, task.ranking
    worst = f"{cosine.min:.6f}" if cosine is not None else f"{pairs.max:.2g}" if pairs is not None else ""
    if ranking is None:
        return worst, "", ""
    return worst, f"{ranking.overlap:.2%} (k={ranking.k})", number(ranking.kendall, 4)


def _reasons(parity: ParityRecord) -> list[str]:
    return list(parity.reasons)


def _worst(parity: ParityRecord) -> list[str]:
    return [
        f'{task.task}: cosine similarity {text.cosine:.5f}{_side(text)}: "{" ".join(text.text.split())}"'
        for task in parity.tasks
        if not task.passed
        for text in task.worst
    ]


def _side(text: DifferingText) -> str:
    return "" if text.side == "texts" else f", {text.side}"


def _hints(parity: ParityRecord) -> list[str]:
    notes = [f"No cause found: {sentence(note)}" for note in parity.notes]
    return [*(f"Hint ({hint.cause}): {hint.says}" for hint in parity.hints), *notes]
