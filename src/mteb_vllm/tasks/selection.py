"""Select tasks by the config group `tasks`.

`select` works on the catalogue and finds errors without importing mteb; `load` returns the same tasks as mteb's objects.
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
    """Return the selected tasks, restricted to the selected splits and subsets, and the errors in the selection."""
    chosen, mistakes = _candidates(config, catalogue)
    mistakes += _unknown("tasks.types", config.types, catalogue.task_types, "there is no such task type")
    if config.languages:
        codes = {code for task in catalogue.tasks.values() for code in task.languages}
        known = codes | {code.split("-")[0] for code in codes}
        mistakes += [_unknown_language(name, known, catalogue) for name in config.languages if name not in known]
    if config.types:
        chosen = [task for task in chosen if task.type in config.types]
    if config.subsets and chosen:
        own = {name for task in chosen for name in task.subsets}
        mistakes += _unknown("tasks.subsets", config.subsets, own, "the chosen tasks have no such subset")
    if config.splits and chosen:
        mistakes += _split_mistakes(config.splits, chosen, catalogue)
    if config.languages or config.subsets:
        chosen = [narrow for task in chosen if (narrow := _restrict(task, config)).subsets]
    return chosen, mistakes


def brings_candidates(task_type: str) -> bool:
    """Whether tasks of a type have their own candidate lists for reranking."""
    return task_type in ("Reranking", "InstructionReranking")


def parts(chosen: Iterable[TaskInfo], catalogue: MtebCatalogue) -> list[TaskInfo]:
    """Return the tasks with each aggregate replaced by its parts."""
    return [
        catalogue.tasks[name] if name != task.name else task
        for task in chosen
        for name in task.aggregate_of or (task.name,)
    ]


def no_tasks_mistake(config: TasksConfig) -> Mistake:
    """Return the error of a selection without unknown names that selects no task."""
    if config.names is not None and not config.names:
        return Mistake("tasks.names", "the list of tasks is empty", value="[]", code="missing")
    if all(value is None for value in (config.names, config.benchmark, config.types, config.languages)):
        way = "Set tasks.names, tasks.benchmark, tasks.types or tasks.languages."
        return Mistake("tasks", "no tasks are selected", way, code="missing")
    where = f"the benchmark {config.benchmark!r}" if config.benchmark and config.names is None else "tasks.names"
    return Mistake("tasks", f"no task in {where} matches the filters", "To filter all of MTEB: tasks=mteb.")


def load(config: TasksConfig, names: Iterable[str]) -> list[AbsTask]:
    """Return mteb's tasks by name, restricted to the selected languages, splits and subsets."""
    import mteb

    from mteb_vllm.tasks import demo

    from_benchmark = {}
    if config.names is None and config.benchmark not in (None, DEMO):
        # A benchmark's tasks have their own splits and subsets.
        from_benchmark = {task.metadata.name: task for task in mteb.get_benchmark(str(config.benchmark)).tasks}
    tasks = []
    for name in names:
        if name in from_benchmark:
            # mteb returns the same objects each time. They are copied, since restricting a task for one point of a sweep must
            # not affect the next, and since evaluations advance their random state.
            task = copy.deepcopy(from_benchmark[name])
        elif name in demo.TASKS:
            task = demo.TASKS[name]()
        else:
            task = mteb.get_task(name)
        if config.languages or config.subsets:
            # mteb's filter starts from all subsets of a task, so those excluded by the benchmark are removed here.
            kept = [subset for subset in task.hf_subsets if not config.subsets or subset in config.subsets]
            task = task.filter_languages(config.languages, hf_subsets=kept)
        if config.splits:
            task = task.filter_eval_splits(config.splits)
        _pin_local_data(task)
        tasks.append(task)
    return tasks


def _pin_local_data(task: AbsTask) -> None:
    """Set the revision of a task whose data are in a local folder to one computed from its files.

    `datasets` prefers a folder of the data set's name in the working directory over the Hub, whatever the revision. Its
    scores must not be mistaken for those of the Hub's data.
    """
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    if not isinstance(task, AbsTaskAggregate):
        _pin(task, data_revision(task.metadata.dataset["path"], task.metadata.revision))
        return
    revisions = {}
    for part in task.metadata.tasks:
        # mteb returns the same parts each time, with the metadata pinned for another point.
        part.__dict__.pop("metadata", None)
        revisions[part.metadata.name] = data_revision(part.metadata.dataset["path"], part.metadata.revision)
        _pin(part, revisions[part.metadata.name])
    _pin(task, aggregate_revision(revisions, task.metadata.revision))


def _pin(task: AbsTask, revision: str) -> None:
    if revision != task.metadata.revision:
        dataset = {**task.metadata.dataset, "revision": revision}
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})


def _candidates(config: TasksConfig, catalogue: MtebCatalogue) -> tuple[list[TaskInfo], list[Mistake]]:
    """Return the tasks before any filter, and the errors in their names."""
    tasks = catalogue.tasks
    if config.names is not None:
        mistakes = _unknown("tasks.names", config.names, tasks, "mteb has no such task")
        chosen = [tasks[name] for name in dict.fromkeys(config.names) if name in tasks]
        mistakes += [
            Mistake(
                "tasks.names",
                f"this task has {others} data; only text tasks are supported",
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
        # Splits and subsets excluded by the benchmark are removed before filtering.
        splits = catalogue.benchmark_splits.get(config.benchmark, {})
        chosen = [
            replace(_with_subsets(tasks[name], taken), splits=splits.get(name, tasks[name].splits))
            for name, taken in catalogue.benchmarks[config.benchmark].items()
        ]
        if others := _other_modalities(chosen):
            what = f"some of its tasks have {others} data; only text tasks are supported"
            return chosen, [
                Mistake("tasks.benchmark", what, "List its text tasks in tasks.names.", value=f"{config.benchmark}")
            ]
        return chosen, []
    if not (config.types or config.languages):
        return [], []
    # The defaults of mteb.get_tasks, without aggregates, whose parts are tasks themselves.
    return [
        task
        for name, task in tasks.items()
        if set(task.modalities) == {"text"}
        and task.is_public
        and not (task.superseded_by or task.is_beta or task.aggregate_of)
        and name not in catalogue.benchmarks[DEMO]
    ], []


def _restrict(task: TaskInfo, config: TasksConfig) -> TaskInfo:
    languages = config.languages
    matching = [
        name
        for name, codes in task.subsets.items()
        if not languages or any(_matches_language(code, languages) for code in codes)
    ]
    return _with_subsets(task, [name for name in matching if not config.subsets or name in config.subsets])


def _with_subsets(task: TaskInfo, names: Collection[str] | None) -> TaskInfo:
    if names is None:
        return task
    return replace(task, subsets={name: codes for name, codes in task.subsets.items() if name in names})


def _matches_language(code: str, languages: Iterable[str]) -> bool:
    return any(code == language or code.split("-")[0] == language for language in languages)


def _split_mistakes(splits: Sequence[str], chosen: Sequence[TaskInfo], catalogue: MtebCatalogue) -> list[Mistake]:
    own = {split for task in chosen for split in task.splits}
    if own.issuperset(splits):
        return []
    # A data set may have splits that its task does not evaluate, such as train: only names that no task has are errors.
    all_splits = {split for task in catalogue.tasks.values() for split in task.splits}
    unknown = [split for split in splits if split not in own | all_splits]
    allowed = f"Splits of the chosen tasks: {', '.join(sorted(own))}."
    return [
        Mistake(
            "tasks.splits", "there is no such split", allowed, nearest(split, own), value=split, code="unknown_choice"
        )
        for split in unknown
    ]


def _other_modalities(tasks: Iterable[TaskInfo]) -> str:
    return ", ".join(sorted({modality for task in tasks for modality in task.modalities} - {"text"}))


def _unknown_language(name: str, known: Collection[str], catalogue: MtebCatalogue) -> Mistake:
    """Return the mistake of a language that no task has, with its code if it is the name of a language."""
    word, dash, script = name.lower().replace("_", "-").partition("-")
    names = {other: code for other, code in catalogue.languages.items() if code in known}
    near: tuple[str, ...] = ()
    if word in names:
        code = f"{names[word]}-{script.title()}"
        near = (code if dash and code in known else names[word],)
    elif len(word) > 3 and not dash:
        near = tuple(dict.fromkeys(names[other] for other in nearest(word, names, 1)))
    near = near or nearest(name, known)
    way = "A language is a code of three letters, such as eng or deu; with its script: eng-Latn."
    return Mistake("tasks.languages", "there is no such language", way, near, value=name, code="unknown_choice")


def _unknown(where: str, names: Iterable[str] | None, known: Iterable[str], what: str) -> list[Mistake]:
    known = list(known)
    return [
        Mistake(where, what, nearest=nearest(name, known), value=name, code="unknown_choice")
        for name in names or ()
        if name not in known
    ]
