"""From the config group `tasks` to mteb's tasks.

`select` works on the catalogue and finds mistakes before anything is loaded; `load` makes the same tasks with mteb.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mteb_vllm.catalogue import MtebCatalogue, TaskInfo, nearest
from mteb_vllm.config import TasksConfig
from mteb_vllm.errors import Mistake

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

DEMO = "demo"


def select(config: TasksConfig, catalogue: MtebCatalogue) -> tuple[list[TaskInfo], list[Mistake]]:
    """The tasks that a configuration names, and what is wrong with it."""
    mistakes: list[Mistake] = []
    chosen, explicit = _candidates(config, catalogue, mistakes)
    mistakes += _unknown("tasks.types", config.types, catalogue.task_types)
    languages = {code for task in catalogue.tasks.values() for code in task.languages}
    known_languages = languages | {code.split("-")[0] for code in languages}
    mistakes += _unknown("tasks.languages", config.languages, known_languages)
    if config.types:
        chosen = [task for task in chosen if task.type in config.types]
    if config.languages:
        chosen = [task for task in chosen if any(_speaks(code, config.languages) for code in task.languages)]
    if not explicit:
        chosen = [task for task in chosen if set(task.modalities) == {"text"}]
        if not (config.types or config.languages) and config.benchmark is None:
            mistakes.append(
                Mistake(
                    "tasks",
                    "nothing says which tasks",
                    "Set tasks.names, tasks.benchmark, tasks.types or tasks.languages.",
                )
            )
    for task in chosen if explicit else ():
        if set(task.modalities) != {"text"}:
            others = ", ".join(sorted(set(task.modalities) - {"text"}))
            mistakes.append(Mistake(task.name, f"the task holds {others}; only tasks of text can be evaluated here"))
    if config.subsets and chosen:
        mistakes += _unknown(
            "tasks.subsets", config.subsets, dict.fromkeys(name for task in chosen for name in task.subsets)
        )
        chosen = [task for task in chosen if task.aggregate_of or set(config.subsets) & set(task.subsets)]
    if not chosen and not mistakes:
        where = f"the benchmark {config.benchmark!r}" if config.benchmark and not config.names else "these"
        mistakes.append(Mistake("tasks", f"no task of {where} fits the filters", "To filter all of MTEB: tasks=mteb."))
    return chosen, mistakes


def load(config: TasksConfig, names: Iterable[str]) -> list[AbsTask]:
    """mteb's tasks by the names that `select` found, narrowed to the languages, splits and subsets of the configuration."""
    import mteb

    from mteb_vllm import demo

    from_benchmark = {}
    if config.names is None and config.benchmark not in (None, DEMO):
        # A benchmark's tasks bring their own splits and subsets along.
        from_benchmark = {task.metadata.name: task for task in mteb.get_benchmark(str(config.benchmark)).tasks}
    tasks = []
    for name in names:
        if name in from_benchmark:
            task = from_benchmark[name]
        elif name in demo.TASKS:
            task = demo.TASKS[name]()
        else:
            task = mteb.get_task(name)
        if config.languages or config.subsets:
            # A filter starts from all of a task's subsets: what a benchmark left out stays out.
            kept = [subset for subset in config.subsets or task.hf_subsets if subset in task.hf_subsets]
            task = task.filter_languages(config.languages, hf_subsets=kept)
        if config.splits:
            task = task.filter_eval_splits(config.splits)
        tasks.append(task)
    return tasks


def _candidates(config: TasksConfig, catalogue: MtebCatalogue, mistakes: list[Mistake]) -> tuple[list[TaskInfo], bool]:
    """The tasks before any filter, and whether each of them was asked for by name."""
    if config.names is not None:
        mistakes += _unknown("tasks.names", config.names, catalogue.tasks, "mteb has no such task")
        return [catalogue.tasks[name] for name in dict.fromkeys(config.names) if name in catalogue.tasks], True
    if config.benchmark is None:
        return [task for task in catalogue.tasks.values() if not task.superseded_by and not task.aggregate_of], False
    if config.benchmark == DEMO:
        return [task for task in catalogue.tasks.values() if task.dataset_path.startswith("mteb-vllm/")], False
    if config.benchmark not in catalogue.benchmarks:
        mistakes += _unknown(
            "tasks.benchmark", [config.benchmark], [*catalogue.benchmarks, DEMO], "there is no such benchmark"
        )
        return [], False
    return [catalogue.tasks[name] for name in catalogue.benchmarks[config.benchmark] if name in catalogue.tasks], False


def _unknown(
    where: str, names: Iterable[str] | None, known: Iterable[str], what: str = "there is no such name"
) -> list[Mistake]:
    known = list(known)
    return [Mistake(f"{where}={name}", what, nearest=nearest(name, known)) for name in names or () if name not in known]


def _speaks(code: str, languages: Iterable[str]) -> bool:
    return any(code == language or code.split("-")[0] == language for language in languages)
