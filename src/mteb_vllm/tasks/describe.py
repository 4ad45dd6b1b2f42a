"""Write the catalogue of the installed mteb and the demo tasks; run as a child process by `mteb_vllm.catalogue`."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mteb_vllm.catalogue import DEMO, SAMPLING, to_json
from mteb_vllm.util.garbage import garbage_collection_paused

if TYPE_CHECKING:
    from mteb import Benchmark
    from mteb.abstasks import AbsTask


def describe() -> dict[str, object]:
    """Return the fields of a `MtebCatalogue`."""
    import mteb
    from mteb.abstasks.task_metadata import TaskType
    from mteb.types import PromptType

    from mteb_vllm.tasks.demo import TASKS, statistics

    own = {name: {"statistics": statistics(task)} for name, task in TASKS.items()}
    known = mteb.get_tasks(exclude_superseded=False, exclude_private=False, exclude_beta=False)
    tasks: list[AbsTask | type[AbsTask]] = [*known, *TASKS.values()]
    return {
        "task_types": get_args(TaskType),
        "prompt_types": list(PromptType),
        "tasks": {task.metadata.name: to_json(_read_task(task) | own.get(task.metadata.name, {})) for task in tasks},
        "benchmarks": {DEMO: dict.fromkeys(TASKS)}
        | {
            name: {task.metadata.name: _subsets_taken(task) for task in benchmark.tasks}
            for benchmark in mteb.get_benchmarks()
            for name in (benchmark.name, *(benchmark.aliases or ()))
        },
        "benchmark_splits": {
            name: splits
            for benchmark in mteb.get_benchmarks()
            if (splits := _splits_taken(benchmark))
            for name in (benchmark.name, *(benchmark.aliases or ()))
        },
        "languages": _language_names(),
        "models": {meta.name: (meta.loader_kwargs or {}).get("model_prompts") for meta in mteb.get_model_metas()},
    }


def _language_names() -> dict[str, str]:
    from mteb.languages import ISO_TO_LANGUAGE

    names = {str(name).lower(): code for code, name in ISO_TO_LANGUAGE.items()}
    # mteb reads this file too, but has no public name for its content.
    two_letters = files("mteb.languages").joinpath("iso_639_1_to_3.json")
    return names | (json.loads(two_letters.read_text(encoding="utf-8")) if two_letters.is_file() else {})


def _splits_taken(benchmark: Benchmark) -> dict[str, list[str]]:
    return {
        task.metadata.name: list(task.eval_splits)
        for task in benchmark.tasks
        if list(task.eval_splits) != list(task.metadata.eval_splits)
    }


def _read_task(task: AbsTask | type[AbsTask]) -> dict[str, object]:
    from mteb.abstasks import AbsTaskRetrieval

    meta = task.metadata
    kind = task if isinstance(task, type) else type(task)
    # STS and pair classification have sides where the task is asymmetric, none otherwise.
    inputs = [getattr(task, f"input{at}_prompt_type", None) for at in (1, 2)]
    # Not issubclass, which for an abstract class goes through all its subclasses: hundreds, for each task.
    retrieval = AbsTaskRetrieval in kind.__mro__
    sides = ("query", "document") if retrieval else [side.value if side else "" for side in inputs]
    same = {"name", "type", "modalities", "prompt", "main_score", "superseded_by", "is_public", "is_beta"}
    return meta.model_dump(include=same) | {
        "subsets": (subsets := meta.hf_subsets_to_langscripts),
        "languages": list(dict.fromkeys(code for codes in subsets.values() for code in codes)),
        "splits": meta.eval_splits,
        "dataset_path": meta.dataset["path"],
        "dataset_revision": meta.dataset["revision"],
        "sides": list(dict.fromkeys(sides)),
        "aggregate_of": [part.metadata.name for part in getattr(meta, "tasks", ())],
        "sampling": _read_sampling(task),
    }


def _read_sampling(task: AbsTask | type[AbsTask]) -> dict[str, object]:
    found = {name: getattr(task, name) for name in SAMPLING if hasattr(task, name)}
    fraction = "max_fraction_of_documents_to_embed"
    # Two tasks set this to None only after loading their data.
    names = getattr(getattr(task.dataset_transform, "__code__", None), "co_names", ())
    return found | {fraction: None} if fraction in names else found


def _subsets_taken(task: AbsTask) -> list[str] | None:
    taken = list(task.hf_subsets)
    return None if set(taken) == set(task.metadata.hf_subsets) else taken


if __name__ == "__main__":
    with garbage_collection_paused():
        text = to_json(describe())
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
