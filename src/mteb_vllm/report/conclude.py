"""What a user is told of a run when it has ended: what was cut, what was known, and where things are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.results.record import RunRecord, TaskOutcome

if TYPE_CHECKING:
    from mteb_vllm.util.console import Console


def cut_by_first_stage(said: Mapping[str, Any]) -> Iterator[str]:
    """What of a dense first stage's texts was too long; `said` is what the record says of it."""
    if truncated := said.get("truncated"):
        share = f"{truncated:,} of {said['texts']:,} texts ({truncated / said['texts']:.1%})"
        yield f"First stage: {share} are longer than its context and were cut."


def cut_texts(task: TaskOutcome, record: RunRecord) -> Iterator[str]:
    """What of a task's texts or pairs was empty or too long."""
    if not task.texts:
        return
    context = record.engine["resolved"]["max_model_len"]
    of = f"of {task.texts:,} {task.unit}"
    if task.blank:
        given = "embedded as the zero vector" if task.unit == "texts" else "given the score 0"
        yield f"{task.name}: {task.blank:,} {of} ({task.blank / task.texts:.1%}) have no token (empty), and were {given}."
    if task.truncated:
        share = f"{task.truncated:,} {of} ({task.truncated / task.texts:.1%})"
        lost = "and were cut" if task.unit == "texts" else "and lost the end of their document"
        yield f"{task.name}: {share} are longer than the context of {context} tokens {lost}."
    if task.truncated_queries:
        share = f"{task.truncated_queries:,} {of} ({task.truncated_queries / task.texts:.1%})"
        yield f"{task.name}: the query of {share} is too long for the context of {context} tokens by itself, and was cut."


def late_variables(record: RunRecord) -> Iterator[str]:
    """Return which variables of `engine.env` torch has not found, since it was loaded before they were set."""
    reference = record.parity.get("reference") or {}
    for engine in (record.engine, record.first_stage.get("engine") or {}, reference.get("engine") or {}):
        for key, value in (engine.get("late") or {}).items():
            found = engine["threading"].get(key, "nothing")
            yield (
                f"{key}={value} is not in effect for {engine['backend']}: torch was loaded in this process before it was "
                f"set, and has found {found}. In a process of its own its speed may be another."
            )


def _in_effect(resolved: Mapping[str, Any]) -> str:
    """What the engine was opened with in the end: pooling, normalisation, dimensions, context and special tokens."""
    words = []
    if resolved.get("pooling"):
        words.append(f"{resolved['pooling']} pooling")
        words.append("normalised" if resolved.get("normalized") is not False else "not normalised")
    if resolved.get("dimensions"):
        words.append(f"{resolved['dimensions']} dimensions")
    words.append(f"at most {resolved['max_model_len']} tokens")
    if (special := resolved.get("special_tokens")) is not None:
        before, behind = special
        words.append(f"special tokens: {' '.join([*before, '<text>', *behind])}")
    return ", ".join(words)


def conclude(console: Console, record: RunRecord) -> None:
    """Shows what was known already, what became of the embeddings, and where it all is."""
    reused = sum(task.status == "reused" for task in record.tasks)
    if reused:
        text = f"{reused} of {len(record.tasks)} results were known already; to compute them again: results.reuse=none"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if (kept := record.store) and (kept["read"] or kept["written"] or kept["passed"]):
        text = f"Embeddings: {kept['read']:,} read from {kept['folder']}, {kept['written']:,} kept in it"
        if kept["passed"]:
            text += f", {kept['passed']:,} not kept: {kept['stopped'] or 'they are computed faster than kept'}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if resolved := record.engine.get("resolved"):
        console.print(f"In effect: {_in_effect(resolved)}", markup=False, highlight=False, soft_wrap=True)
    # Of what is timed or compared no results are kept.
    kept_in = "" if record.throughput or record.parity else f", results in {record.config['results']['dir']}/results"
    console.print(f"Settings {record.fingerprint}{kept_in}", markup=False, soft_wrap=True)
    if Path(record.output_dir, "run.json").exists():
        console.print(f"Record:  {record.output_dir}/run.json", markup=False, soft_wrap=True)
