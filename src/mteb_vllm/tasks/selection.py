"""From the config group `tasks` to mteb's tasks.

`select` works on the catalogue and finds mistakes before anything is loaded; `load` makes the same tasks with mteb.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mteb_vllm.catalogue import DEMO, MtebCatalogue, TaskInfo
from mteb_vllm.config.schema import TasksConfig
from mteb_vllm.errors import Mistake
from mteb_vllm.util.data_revisions import aggregate_revision, data_revision
from mteb_vllm.util.suggestions import nearest

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


def select(config: TasksConfig, catalogue: MtebCatalogue) -> tuple[list[TaskInfo], list[Mistake]]:
    """The tasks that a configuration names, with the splits and subsets that it leaves them, and what is wrong with it."""
    chosen, mistakes = _candidates(config, catalogue)
    mistakes += _unknown("tasks.types", config.types, catalogue.task_types)
    if config.languages:
        codes = {code for task in catalogue.tasks.values() for code in task.languages}
        mistakes += _unknown("tasks.languages", config.languages, codes | {code.split("-")[0] for code in codes})
    if config.types:
        chosen = [task for task in chosen if task.type in config.types]
    if config.subsets and chosen:
        mistakes += _unknown("tasks.subsets", config.subsets, {name for task in chosen for name in task.subsets})
    if config.splits and chosen:
        mistakes += _split_mistakes(config.splits, chosen, catalogue)
    if config.languages or config.subsets:
        chosen = [narrow for task in chosen if (narrow := _narrowed(task, config)).subsets]
    return chosen, mistakes


def brings_candidates(task_type: str) -> bool:
    """Whether tasks of a type bring candidate lists of their own to rerank."""
    return task_type in ("Reranking", "InstructionReranking")


def parts(chosen: Iterable[TaskInfo], catalogue: MtebCatalogue) -> list[TaskInfo]:
    """The tasks with texts of their own: an aggregate is its parts, whose prompts count."""
    return [
        catalogue.tasks[name] if name != task.name else task
        for task in chosen
        for name in task.aggregate_of or (task.name,)
    ]


def why_none(config: TasksConfig) -> Mistake:
    """Why a configuration without a wrong name in it selects nothing."""
    if config.names is not None and not config.names:
        return Mistake("tasks.names", "no task is named", value="[]", code="missing")
    if all(value is None for value in (config.names, config.benchmark, config.types, config.languages)):
        way = "Set tasks.names, tasks.benchmark, tasks.types or tasks.languages."
        return Mistake("tasks", "nothing says which tasks", way, code="missing")
    where = f"the benchmark {config.benchmark!r}" if config.benchmark and config.names is None else "these"
    return Mistake("tasks", f"no task of {where} fits the filters", "To filter all of MTEB: tasks=mteb.")


def load(config: TasksConfig, names: Iterable[str]) -> list[AbsTask]:
    """Return mteb's tasks by their names, narrowed to the languages, splits and subsets of the configuration."""
    import mteb

    from mteb_vllm.tasks import demo

    from_benchmark = {}
    if config.names is None and config.benchmark not in (None, DEMO):
        # A benchmark's tasks bring their own splits and subsets along.
        from_benchmark = {task.metadata.name: task for task in mteb.get_benchmark(str(config.benchmark)).tasks}
    tasks = []
    for name in names:
        if name in from_benchmark:
            # mteb hands out the same objects each time: another point of a sweep must not find them narrowed.
            # Their random state moves on with every evaluation, too.
            task = copy.deepcopy(from_benchmark[name])
        elif name in demo.TASKS:
            task = demo.TASKS[name]()
        else:
            task = mteb.get_task(name)
        if config.languages or config.subsets:
            # mteb's filter starts from all of a task's subsets: what a benchmark left out stays out.
            kept = [subset for subset in task.hf_subsets if not config.subsets or subset in config.subsets]
            task = task.filter_languages(config.languages, hf_subsets=kept)
        if config.splits:
            task = task.filter_eval_splits(config.splits)
        _pin_local_data(task)
        tasks.append(task)
    return tasks


def _pin_local_data(task: AbsTask) -> None:
    """Give a task whose data lie in a folder of the working directory a revision of its own.

    `datasets` takes such a folder before it asks the Hub, whatever the revision: its scores must not pass for the Hub's.
    """
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    if not isinstance(task, AbsTaskAggregate):
        _pin(task, data_revision(task.metadata.dataset["path"], task.metadata.revision))
        return
    revisions = {}
    for part in task.metadata.tasks:
        # mteb hands out the same parts each time, with what another point has pinned.
        part.__dict__.pop("metadata", None)
        revisions[part.metadata.name] = data_revision(part.metadata.dataset["path"], part.metadata.revision)
        _pin(part, revisions[part.metadata.name])
    _pin(task, aggregate_revision(revisions, task.metadata.revision))


def _pin(task: AbsTask, revision: str) -> None:
    if revision != task.metadata.revision:
        dataset = {**task.metadata.dataset, "revision": revision}
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})


def _candidates(config: TasksConfig, catalogue: MtebCatalogue) -> tuple[list[TaskInfo], list[Mistake]]:
    """The tasks before any filter."""
    tasks = catalogue.tasks
    if config.names is not None:
        mistakes = _unknown("tasks.names", config.names, tasks, "mteb has no such task")
        chosen = [tasks[name] for name in dict.fromkeys(config.names) if name in tasks]
        mistakes += [
            Mistake(
                "tasks.names",
                f"the task holds {others}; only tasks of text can be evaluated here",
                value=task.name,
            )
            for task in chosen
            if (others := _other_modalities([task]))
        ]
        return chosen, mistakes
    if config.benchmark is not None:
        if config.benchmark not in catalogue.benchmarks:
            return [], _unknown(
                "tasks.benchmark", [config.benchmark], catalogue.benchmarks, "there is no such benchmark"
            )
        # What a benchmark left out of a task is not there to be filtered.
        splits = catalogue.benchmark_splits.get(config.benchmark, {})
        chosen = [
            replace(_with_subsets(tasks[name], taken), splits=splits.get(name, tasks[name].splits))
            for name, taken in catalogue.benchmarks[config.benchmark].items()
        ]
        if others := _other_modalities(chosen):
            what = f"some of its tasks hold {others}; only tasks of text can be evaluated here"
            return chosen, [
                Mistake("tasks.benchmark", what, "Name its tasks of text in tasks.names.", value=f"{config.benchmark}")
            ]
        return chosen, []
    if not (config.types or config.languages):
        return [], []
    # As mteb.get_tasks has it, without aggregates, whose parts are tasks themselves.
    return [
        task
        for name, task in tasks.items()
        if set(task.modalities) == {"text"}
        and task.is_public
        and not (task.superseded_by or task.is_beta or task.aggregate_of)
        and name not in catalogue.benchmarks[DEMO]
    ], []


def _narrowed(task: TaskInfo, config: TasksConfig) -> TaskInfo:
    languages = config.languages
    spoken = [
        name for name, codes in task.subsets.items() if not languages or any(_speaks(code, languages) for code in codes)
    ]
    return _with_subsets(task, [name for name in spoken if not config.subsets or name in config.subsets])


def _with_subsets(task: TaskInfo, names: Collection[str] | None) -> TaskInfo:
    if names is None:
        return task
    return replace(task, subsets={name: codes for name, codes in task.subsets.items() if name in names})


def _speaks(code: str, languages: Iterable[str]) -> bool:
    return any(code == language or code.split("-")[0] == language for language in languages)


def _split_mistakes(splits: Sequence[str], chosen: Sequence[TaskInfo], catalogue: MtebCatalogue) -> list[Mistake]:
    own = {split for task in chosen for split in task.splits}
    if own.issuperset(splits):
        return []
    # A data set may hold splits that its task does not evaluate, as train: only what no task has is surely a mistake.
    all_splits = {split for task in catalogue.tasks.values() for split in task.splits}
    unknown = [split for split in splits if split not in own | all_splits]
    allowed = f"The chosen tasks' own: {', '.join(sorted(own))}."
    return [
        Mistake(
            "tasks.splits", "there is no such split", allowed, nearest(split, own), value=split, code="unknown_choice"
        )
        for split in unknown
    ]


def _other_modalities(tasks: Iterable[TaskInfo]) -> str:
    return ", ".join(sorted({modality for task in tasks for modality in task.modalities} - {"text"}))


def _unknown(
    where: str, names: Iterable[str] | None, known: Iterable[str], what: str = "there is no such name"
) -> list[Mistake]:
    known = list(known)
    return [
        Mistake(where, what, nearest=nearest(name, known), value=name, code="unknown_choice")
        for name in names or ()
        if name not in known
    ]
