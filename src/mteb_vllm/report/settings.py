"""The settings in which points differ, and those that they share."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from mteb_vllm.report.points import Point
from mteb_vllm.report.run_records import INDEPENDENT, short_text

# Overrides that change neither scores nor speeds.
_IRRELEVANT = re.compile(r"results\.dir|retry_failed|dry_run|embedding_cache\.max_bytes|runs|report\..*")

# Settings that choose tasks: points with the same tasks do not differ in them.
_TASKS = re.compile(r"tasks(\.(names|benchmark|types))?")

# Facts that distinguish points, the most important first. All others follow from these, or change nothing.
_DISTINGUISHING = tuple(
    map(
        re.compile,
        (
            "model", "revision", "source", "experiment", "weights", r"engine\..*", r"shell\..*", "scoring", "prompts",
            "instruction", "instructions", "score_template", "pipeline/first_stage", r"pipeline\.first_stage\.settings",
            r"pipeline\.top_k", "tasks", r"tasks\.(languages|splits|subsets)", "pipeline", r"pipeline\.lengths",
            r"pipeline\.reference", "device", "gpus", "cores", r"versions\..*",
        ),
    )
)  # fmt: skip

# Facts that no command line sets and that scores depend on. A difference in these is always shown: points that also differ in
# a setting do not differ for that reason alone.
_CIRCUMSTANCES = tuple(map(re.compile, ("device", rf"versions\.(?!({'|'.join(INDEPENDENT)})$).*")))

# The order of shared facts: model, tasks and machine first, then other settings, and environment variables last.
_SHARED = tuple(
    map(
        re.compile,
        (
            "model", "revision", r"tasks.*", "pipeline", "device", "gpus", "cores", "memory", r"versions\..*", "incomplete",
            "weights", "source", "experiment", "scoring", r"prompts.*", "instructions?", "score_template",
            "pipeline/first_stage", r"pipeline\.(top_k|lengths|reference)", r"engine\.(?!env\.).*", r"resolved\..*",
            "platform", "git", r"engine\.env\..*", r"shell\..*",
        ),
    )
)  # fmt: skip


def differing_settings(points: Sequence[Point]) -> dict[str, list[str]]:
    """Return the settings in which points differ: key to the value of each point, "" where it has none.

    The model comes first, then the differing settings of the command lines, then the circumstances (device and versions) in
    which runs differ, then any other fact in which two points differ that are equal so far. A key of a model's recipe that
    follows from the model has no separate column.
    """
    # An unreadable record has no settings, and so differs from none.
    readable = [at for at, point in enumerate(points) if point.overrides or point.facts]
    found: dict[str, list[str]] = {}
    tasks = _tasks(points)
    keys = ("tasks" if _TASKS.fullmatch(key) else key for at in readable for key in points[at].overrides)
    for key in dict.fromkeys(keys):
        some = [points[at] for at in readable]
        values = [tasks[at] for at in readable] if key == "tasks" else _override_values(some, key)
        if len(set(values)) > 1 and not _IRRELEVANT.fullmatch(key):
            of = dict(zip(readable, values, strict=True))
            found[key] = [of.get(at, "") for at in range(len(points))]
    found = _with_one_model(points, found)
    for key in _differing_circumstances(points):
        found.setdefault(key, [point.facts.get(key, "") for point in points])
    alike = _split([_with_results(points)], found.values())
    for key in _ordered(points, _DISTINGUISHING):
        values = tasks if key == "tasks" else [point.facts.get(key, "") for point in points]
        if key not in found and any(len({values[at] for at in group}) > 1 for group in alike):
            found[key] = values
            alike = _split(alike, [values])
    return found


def shared_settings(points: Sequence[Point], differing: Collection[str]) -> dict[str, str]:
    """Return the facts that all points share: model, tasks, device and versions first, environment variables last."""
    counted = [points[at] for at in _with_results(points)]
    found = {}
    for key in _ordered(points, _SHARED):
        values = set(_tasks(counted) if key == "tasks" else [point.facts.get(key, "") for point in counted])
        if key.startswith("resolved."):
            # A value that was set explicitly is not repeated among those that the engine has chosen.
            argument = f"engine.{key.removeprefix('resolved.')}"
            values = {point.facts.get(key) or point.facts.get(argument, "") for point in counted}
            # A run whose results were all cached opened no engine; of other people's results, nothing is known.
            if all(point.source == "run" for point in counted):
                values.discard("")
        if key not in differing and len(values) == 1 and values != {""}:
            found[key] = values.pop()
    return found


def _differing_circumstances(points: Sequence[Point]) -> Iterator[str]:
    """Yield the circumstances in which runs differ; those that follow from others are left out."""
    runs = [at for at in _with_results(points) if points[at].source == "run"]
    alike = [runs]
    for key in _ordered(points, _CIRCUMSTANCES):
        values = [point.facts.get(key, "") for point in points]
        # Engines of different backends depend on different packages.
        if any(len({values[at] for at in group} - {""}) > 1 for group in alike):
            yield key
            alike = _split(alike, [values])


def _with_one_model(points: Sequence[Point], found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the differing overrides with a single column for the model, which comes first.

    Command lines name a model by its recipe (`model=e5_base`) or by its name (`model.name=...`), and folders of results by
    its name alone. So the column shows the names, unless recipes of the same model differ.
    """
    models = [point.facts.get("model", "") for point in points]
    counted = _with_results(points)
    if len({models[at] for at in counted}) < 2:
        return found
    recipes: dict[str, set[str]] = {}
    for at in counted:
        recipes.setdefault(models[at], set()).update(filter(None, [points[at].overrides.get("model")]))
    typed = found.pop("model", [])
    if not any(len(names) > 1 for names in recipes.values()):
        typed = [model or (typed[at] if typed else "") for at, model in enumerate(models)]
    same = _split([counted], [typed])
    rest = {
        key: values
        for key, values in found.items()
        if not key.startswith("model.") or any(len({values[at] for at in group}) > 1 for group in same)
    }
    return {"model": typed, **rest}


def _override_values(points: Sequence[Point], key: str) -> list[str]:
    """Return the value of an override for each point; for a point without it, the fact."""
    if any(key not in point.overrides for point in points) and all(key in point.facts for point in points):
        # The words of some command lines (model=minilm) and the facts of others are not comparable; facts are.
        return [point.facts[key] for point in points]
    return [point.overrides.get(key, point.facts.get(key, "")) for point in points]


def _tasks(points: Sequence[Point]) -> list[str]:
    """Return the tasks of each point, as a reader would name them: points with the same tasks have the same text.

    That is the shortest selection of these tasks, such as a benchmark, by which no other tasks were selected; else a list of
    their names. A point that failed as a whole may lack some of its tasks, so only its selection counts.
    """
    sets = [frozenset(task.name for task in point.tasks) for point in points]
    whole = [bool(names) and not point.cut_short for point, names in zip(points, sets, strict=True)]
    selections = [_selection(point) for point in points]
    of_selection: dict[str, set[frozenset[str]]] = {}
    for at, selection in enumerate(selections):
        if whole[at] and selection:
            of_selection.setdefault(selection, set()).add(sets[at])
    texts: dict[frozenset[str], str] = {}
    for selection, some in of_selection.items():
        for names in some if len(some) == 1 else ():
            texts[names] = min(texts.get(names, selection), selection, key=len)
    found = []
    for at, selection in enumerate(selections):
        ways = of_selection.get(selection, set())
        names = sets[at] if whole[at] or not ways else next(iter(ways)) if len(ways) == 1 else frozenset()
        listed = short_text(", ".join(sorted(names)))
        found.append(texts.get(names) or (listed if whole[at] else selection or listed))
    return found


def _selection(point: Point) -> str:
    """Return how a point's tasks were selected: the file in `conf/tasks/` that was typed, a benchmark, or a list of names."""
    typed = point.overrides.get("tasks", "")
    changed = any(key != "tasks" and _TASKS.fullmatch(key) for key in point.overrides)
    return typed if typed and not changed and not typed.startswith("[") else point.facts.get("tasks", "")


def _with_results(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points with results, or of all if none has any: other records may lack settings."""
    found = [at for at, point in enumerate(points) if point.has_results]
    return found or list(range(len(points)))


def _split(groups: Iterable[Sequence[int]], by: Iterable[Sequence[str]]) -> list[list[int]]:
    """Return the groups split by values, without groups of one point."""
    keys = list(by)
    found: dict[tuple[object, ...], list[int]] = {}
    for number, group in enumerate(groups):
        for at in group:
            found.setdefault((number, *(values[at] for values in keys)), []).append(at)
    return [group for group in found.values() if len(group) > 1]


def _ordered(points: Sequence[Point], order: Sequence[re.Pattern[str]]) -> list[str]:
    """Return the facts that match an order's patterns, in that order."""
    facts = dict.fromkeys(key for point in points for key in point.facts)
    return [key for pattern in order for key in facts if pattern.fullmatch(key)]
