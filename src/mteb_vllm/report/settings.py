"""The settings in which points differ, and those that they share."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from mteb_vllm.report.points import Point

# What a command line says that no score or speed depends on.
_ASIDE = re.compile(r"results\.dir|retry_failed|dry_run|store\.max_bytes|runs|report\..*")

# Facts that tell points apart, the most telling first. All others follow from these, or nothing follows from them.
_TELLING = tuple(
    map(
        re.compile,
        (
            "model", "revision", "source", "experiment", "weights", r"engine\..*", r"shell\..*", "scoring", "prompts",
            "instruction", "instructions", "score_template", "pipeline/first_stage", r"pipeline\.first_stage\.settings",
            r"pipeline\.top_k", "tasks", r"tasks\.splits", r"tasks\.subsets", "pipeline", r"pipeline\.lengths",
            r"pipeline\.reference", "device", "gpus", "cores", r"versions\..*",
        ),
    )
)  # fmt: skip

# What a reader wants to know of that all points share, in this order.
_SHARED = tuple(
    map(
        re.compile,
        (
            "model", "revision", "weights", "source", "experiment", "scoring", r"engine\..*", r"shell\..*", r"resolved\..*",
            r"prompts.*", "instructions?", "score_template", "pipeline/first_stage", r"pipeline\.top_k", r"tasks.*",
            "pipeline", r"pipeline\.lengths", r"pipeline\.reference", "incomplete", "device", "gpus", "cores", "memory",
            r"versions\..*", "platform", "git",
        ),
    )
)  # fmt: skip


def differing_settings(points: Sequence[Point]) -> dict[str, list[str]]:
    """Return in what points differ: key to the value of each point, "" where it has none.

    First their models and what differs on their command lines; then any other fact in which two points that are equal so far
    differ.
    """
    # Nothing is known of a point whose record cannot be read: it differs from none.
    told = [at for at, point in enumerate(points) if point.overrides or point.facts]
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for at in told for key in points[at].overrides):
        values = _said([points[at] for at in told], key)
        if len(set(values)) > 1 and not _ASIDE.fullmatch(key):
            of = dict(zip(told, values, strict=True))
            found[key] = [of.get(at, "") for at in range(len(points))]
    models = [point.facts.get("model", "") for point in points]
    if len({models[at] for at in _asked(points)}) > 1 and not any(re.match(r"model(\.|$)", key) for key in found):
        found = {"model": models, **found}  # whatever else tells them apart, this is what a reader looks for
    alike = _split([_asked(points)], found.values())
    for key in _ordered(points, _TELLING):
        values = [point.facts.get(key, "") for point in points]
        if key not in found and any(len({values[at] for at in group}) > 1 for group in alike):
            found[key] = values
            alike = _split(alike, [values])
    return found


def shared_settings(points: Sequence[Point], differing: Collection[str]) -> dict[str, str]:
    """Return the facts that points share and in which they do not differ, what a reader asks for first standing first."""
    asked = [points[at] for at in _asked(points)]
    found = {}
    for key in _ordered(points, _SHARED):
        values = {point.facts.get(key, "") for point in asked}
        if key.startswith("resolved."):
            # A point whose results were all known has opened nothing.
            values.discard("")
        if key not in differing and len(values) == 1 and values != {""}:
            found[key] = values.pop()
    return found


def _said(points: Sequence[Point], key: str) -> list[str]:
    """Return the value of an override, for each point; of those that do not say it, the fact."""
    if any(key not in point.overrides for point in points) and all(key in point.facts for point in points):
        # The words of some command lines (model=minilm) and the facts of the others are not comparable; facts are.
        return [point.facts[key] for point in points]
    return [point.overrides.get(key, point.facts.get(key, "")) for point in points]


def _asked(points: Sequence[Point]) -> list[int]:
    """Return the places of the points whose facts count: of one that failed before its first task, they may not be known."""
    told = [at for at, point in enumerate(points) if point.told]
    return told or list(range(len(points)))


def _split(groups: Iterable[Sequence[int]], by: Iterable[Sequence[str]]) -> list[list[int]]:
    """Return the groups, split by values; those of one point are left out."""
    keys = list(by)
    found: dict[tuple[object, ...], list[int]] = {}
    for number, group in enumerate(groups):
        for at in group:
            found.setdefault((number, *(values[at] for values in keys)), []).append(at)
    return [group for group in found.values() if len(group) > 1]


def _ordered(points: Sequence[Point], order: Sequence[re.Pattern[str]]) -> list[str]:
    """Return the facts that an order names, in that order."""
    facts = dict.fromkeys(key for point in points for key in point.facts)
    return [key for pattern in order for key in facts if pattern.fullmatch(key)]
