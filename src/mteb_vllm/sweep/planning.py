"""What a sweep's points come down to before anything is loaded, and in which order they run.

Points that need the same engine follow each other; a dense first stage runs ahead of the rerankers that read it, so that
each engine opens once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mteb_vllm import tasks
from mteb_vllm.architectures import position_limit
from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.config import RunConfig
from mteb_vllm.engine import EngineSpec
from mteb_vllm.errors import FirstStageError, MtebVllmError
from mteb_vllm.estimates import Estimate, estimate, estimate_pairs
from mteb_vllm.failures import Failure, before, of_exception, remembered
from mteb_vllm.fingerprint import fingerprint
from mteb_vllm.first_stages import EncoderStage
from mteb_vllm.pipelines.rerank import Rerank
from mteb_vllm.plan import Plan, plan
from mteb_vllm.report import differing
from mteb_vllm.stored import Stale, look, result_path

State = Literal["to run", "done", "stale", "failed before"]


@dataclass(frozen=True)
class TaskState:
    """What is known of one task under a point's settings.

    Attributes:
        name: The task.
        state: "done" is not computed again; "failed before" only with `retry_failed`; the other two are.
        why: Why it is stale, or failed; or what of it is there.
        work: What the engine will be given for it; None where it is done or nobody knows.
    """

    name: str
    state: State
    why: str = ""
    work: Estimate | None = None


@dataclass(frozen=True)
class PlannedPoint:
    """One point of a sweep, or a single run, as far as it is known before anything is loaded.

    Attributes:
        number: Its number in the sweep.
        overrides: What makes it.
        differs: Those of them in which the points differ: key to value.
        config: Its configuration.
        plan: What that comes down to; None where it cannot be planned.
        failure: Why it cannot be planned.
        tasks: What is known of its tasks.
        group: The number of the engine that it shares with others, from 1; None where it needs none.
    """

    number: int
    overrides: tuple[str, ...]
    differs: dict[str, str]
    config: RunConfig
    plan: Plan | None = None
    failure: Failure | None = None
    tasks: list[TaskState] = field(default_factory=list)
    group: int | None = None

    @property
    def fingerprint(self) -> str:
        """The hash of its settings; empty where it cannot be planned."""
        return fingerprint(self.plan.settings) if self.plan is not None else ""

    @property
    def to_do(self) -> list[TaskState]:
        """Its tasks that will be computed."""
        settled = ("done",) if self.config.retry_failed else ("done", "failed before")
        return [task for task in self.tasks if task.state not in settled]

    @property
    def state(self) -> State:
        """The state of the point: of its tasks, the one that a user wants to know first."""
        states = {task.state for task in self.tasks}
        order: tuple[State, ...] = ("failed before", "stale", "to run", "done")
        return next((state for state in order if state in states), "failed before")

    @property
    def work(self) -> Estimate | None:
        """What the engine will be given, as far as that is known."""
        known = [task.work for task in self.to_do if task.work is not None]
        return functools.reduce(lambda one, other: one + other, known) if known else None

    @property
    def engines(self) -> tuple[EngineSpec, ...]:
        """The engines that it needs, in the order in which it needs them; none where all is known."""
        if self.plan is None or not self.to_do:
            return ()
        stage = self.plan.stage
        return (*([stage.spec] if isinstance(stage, EncoderStage) else []), self.plan.spec)


@dataclass(frozen=True)
class Step:
    """What is done at a time: a point, or only its first stage."""

    point: PlannedPoint
    first_stage_only: bool = False


@dataclass(frozen=True)
class Group:
    """Steps that share an engine.

    Attributes:
        number: From 1; 0 where the steps need no engine.
        engine: The engine that it opens; None where none is needed.
        steps: In the order in which they run.
    """

    number: int
    engine: EngineSpec | None
    steps: list[Step]


def plan_points(points: Sequence[tuple[Sequence[str], RunConfig]], first: int = 0) -> list[PlannedPoint]:
    """Plans checked points, in their order.

    Args:
        points: For each its overrides, and what they compose to.
        first: The number of the first.
    """
    differences = differing([overrides for overrides, _ in points])
    stale = functools.cache(Stale)
    planned = []
    for number, ((overrides, config), differs) in enumerate(zip(points, differences, strict=True), first):
        point = functools.partial(PlannedPoint, number, tuple(overrides), differs, config)
        try:
            made = plan(config)
        except MtebVllmError as error:
            planned.append(point(failure=of_exception(error)))
            continue
        planned.append(point(plan=made, tasks=_states(config, made, stale(Path(config.results.dir)))))
    return _numbered(planned)


def grouped(points: Sequence[PlannedPoint]) -> list[Group]:
    """The order in which points run: those that need no engine, then engine by engine.

    Points that cannot be planned are in no group.
    """
    free: list[Step] = []
    ahead: dict[str, list[Step]] = {}
    by_engine: dict[str, list[Step]] = {}
    specs: dict[str, EngineSpec] = {}
    for point in points:
        if point.plan is None:
            continue
        if not point.engines:
            free.append(Step(point))
            continue
        own, stage = point.engines[-1], point.plan.stage
        key = own.fingerprint
        if isinstance(stage, EncoderStage):
            key = stage.spec.fingerprint
            # Two engines that stay open together are one; and where nothing is reused, a first stage is not found again.
            if stage.beside or point.config.results.reuse == "none":
                key = f"{key}+{own.fingerprint}"
            else:
                specs[key] = stage.spec
                ahead.setdefault(key, []).append(Step(point, first_stage_only=True))
                key = own.fingerprint
        specs[key] = own
        by_engine.setdefault(key, []).append(Step(point))
    # A group of first stages comes before what reads them, even where it has points of its own.
    order = [*ahead, *(key for key in by_engine if key not in ahead)]
    groups = [Group(0, None, free)] if free else []
    for number, key in enumerate(order, 1):
        groups.append(Group(number, specs[key], [*ahead.get(key, []), *by_engine.get(key, [])]))
    return groups


def _numbered(points: list[PlannedPoint]) -> list[PlannedPoint]:
    """Notes the number of its engine on each point."""
    import dataclasses

    numbers = {
        step.point.number: group.number
        for group in grouped(points)
        for step in group.steps
        if group.engine is not None and not step.first_stage_only
    }
    return [dataclasses.replace(point, group=numbers.get(point.number)) for point in points]


def _states(config: RunConfig, made: Plan, stale: Stale) -> list[TaskState]:
    root = Path(config.results.dir)
    earlier = remembered(root, fingerprint(made.settings))
    return [_state(config, made, task, stale, before(earlier, task.name)) for task in made.tasks]


def _state(config: RunConfig, made: Plan, task: TaskInfo, stale: Stale, failure: Failure | None) -> TaskState:
    work = _work(config, made, task)
    try:
        settings = made.settings_for(task)
    except FirstStageError as error:
        return TaskState(task.name, "to run", str(error), work)
    path = result_path(Path(config.results.dir), settings, task.name, fingerprint(settings))
    found = look(path, task, config.tasks.splits)
    if found == "whole" and config.results.reuse == "exact":
        return TaskState(task.name, "done")
    if failure is not None:
        return TaskState(task.name, "failed before", str(failure), work)
    if found == "other data":
        return TaskState(task.name, "stale", "the data's revision", work)
    why = {"part": "some of it is there", "unreadable": f"{path} cannot be read", "whole": "results.reuse=none"}
    if found == "nothing" and (differs := stale.why(settings, task)):
        return TaskState(task.name, "stale", differs, work)
    return TaskState(task.name, "to run", why.get(found, ""), work)


def _work(config: RunConfig, made: Plan, task: TaskInfo) -> Estimate | None:
    limit = made.spec.args.get("max_model_len") or position_limit(made.spec.model.config)
    limit = limit if isinstance(limit, int) else None
    parts = tasks.parts([task], mteb_catalogue())
    if isinstance(made.pipeline, Rerank):
        top_k = made.pipeline.top_k
        found = [estimate_pairs(part, config.tasks.splits, top_k=top_k, max_tokens=limit) for part in parts]
    else:
        found = [estimate(part, config.tasks.splits, max_tokens=limit) for part in parts]
    return _sum(found)


def _sum(estimates: Iterable[Estimate | None]) -> Estimate | None:
    known = [one for one in estimates if one is not None]
    return functools.reduce(lambda one, other: one + other, known) if known else None
