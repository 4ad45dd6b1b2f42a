"""Planning of a sweep's points and of the order in which they run, before anything is loaded.

Points with the same engine run one after another, and dense first stages run before the rerankers that use them, so each
engine opens once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mteb_vllm.catalogue import TaskInfo, mteb_catalogue
from mteb_vllm.config.overrides import differing_overrides
from mteb_vllm.config.schema import RunConfig
from mteb_vllm.engines.arguments import context_limit
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.errors import FirstStageError, MtebVllmError
from mteb_vllm.models.architectures import position_limit
from mteb_vllm.pipelines.base import FirstStage
from mteb_vllm.pipelines.factory import PipelineParts
from mteb_vllm.plan import Plan, make_plan
from mteb_vllm.results.failures import Failure, earlier_failure, failure_from_exception, load_failures
from mteb_vllm.results.lookup import (
    StaleResults,
    is_intact,
    predictions_path,
    result_path,
    result_status,
    shared_result,
)
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.tasks.estimates import Estimate, estimate
from mteb_vllm.tasks.selection import brings_candidates
from mteb_vllm.util.fingerprint import fingerprint

if TYPE_CHECKING:
    from mteb_vllm.preflight.command import Point

State = Literal["to run", "done", "stale", "failed before"]


@dataclass(frozen=True)
class TaskState:
    """The state of one task under a point's settings.

    Attributes:
        name: The task.
        state: "to run" and "stale" tasks are computed, "failed before" only with `retry_failed`, "done" never.
        reason: An explanation of the state.
        work: The estimated work, for texts and pairs separately; empty if it is done or its size is unknown.
        first_stage: Whether a dense first stage has to retrieve for it.
        same_as: The number of an earlier point that computes the same result, if any.
    """

    name: str
    state: State
    reason: str = ""
    work: tuple[Estimate, ...] = ()
    first_stage: bool = False
    same_as: int | None = None


@dataclass(frozen=True)
class PlannedPoint:
    """A planned point, i.e. one combination of a sweep's values, or a single run.

    Attributes:
        number: Its number in the sweep.
        overrides: Its overrides.
        differs: Key to value, for the overrides in which the points differ.
        config: Its configuration.
        launched: Its overrides as Hydra passes them to a launcher; empty for a single run.
        composed: Hydra's configuration of it, composed when it was checked; None for a single run.
        plan: Its plan; None if planning failed.
        failure: Why planning failed.
        tasks: The states of its tasks.
        group: The number of its engine group, from 1; None if it needs no engine.
        search_path: The arguments of the command that add folders of configuration files.
    """

    number: int
    overrides: tuple[str, ...]
    differs: dict[str, str]
    config: RunConfig
    launched: tuple[str, ...] = field(default=(), repr=False)
    composed: Any = field(default=None, repr=False, compare=False)
    plan: Plan | None = None
    failure: Failure | None = None
    tasks: list[TaskState] = field(default_factory=list)
    group: int | None = None
    search_path: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The hash of its settings; empty if planning failed."""
        return fingerprint(self.plan.settings) if self.plan is not None else ""

    @property
    def pending_tasks(self) -> list[TaskState]:
        """Its tasks that will be computed."""
        settled = ("done",) if self.config.retry_failed else ("done", "failed before")
        return [task for task in self.tasks if task.state not in settled]

    @property
    def state(self) -> State:
        """The state of the point: the most important of its tasks' states."""
        states = {task.state for task in self.tasks}
        order: tuple[State, ...] = ("failed before", "stale", "to run", "done")
        return next((state for state in order if state in states), "failed before")

    @property
    def work(self) -> tuple[Estimate, ...]:
        """The estimated work, for texts and pairs separately, of the tasks for which it is known."""
        return _sum_by_unit(one for task in self.pending_tasks for one in task.work)

    @property
    def tokens(self) -> int:
        """The estimated number of tokens."""
        return sum(one.tokens for one in self.work)

    @property
    def pending_first_stage(self) -> FirstStage | None:
        """The dense first stage that has to retrieve; None if there is none, or all of its predictions are stored."""
        stage = self.plan.stage if self.plan is not None else None
        if stage is None or stage.spec is None or not any(task.first_stage for task in self.pending_tasks):
            return None
        return stage


@dataclass(frozen=True)
class Step:
    """A unit of work: a point, or only its first stage."""

    point: PlannedPoint
    first_stage_only: bool = False

    @property
    def engines(self) -> list[tuple[EngineSpec, bool]]:
        """The engines that it opens, in order, and whether each is the reference's."""
        point, made = self.point, self.point.plan
        if made is None or not point.pending_tasks:
            return []
        stage = point.pending_first_stage
        first = [(stage.spec, False)] if stage is not None and stage.spec is not None else []
        if self.first_stage_only:
            return first
        prefetched = point.config.results.reuse != "none"
        return [*_references(made), *([] if prefetched else first), (made.spec, False)]


@dataclass(frozen=True)
class Group:
    """Steps that share an engine.

    Attributes:
        number: From 1; 0 if the steps need no engine.
        engine: The engine; None if none is needed.
        steps: The steps, in the order in which they run.
    """

    number: int
    engine: EngineSpec | None
    steps: list[Step]


def plan_points(points: Sequence[Point], first: int = 0) -> list[PlannedPoint]:
    """Plan checked points, in order; the states of their tasks are added by `add_task_states`.

    Args:
        points: The points.
        first: The number of the first.
    """
    differences = differing_overrides([point.overrides for point in points])
    planned = []
    for number, (checked, differs) in enumerate(zip(points, differences, strict=True), first):
        point = PlannedPoint(
            number, checked.overrides, differs, checked.config, checked.launched, checked.composed,
            search_path=checked.search_path,
        )  # fmt: skip
        planned.append(_with_plan(point, checked.pipeline))
    return planned


def plan_again(points: Sequence[PlannedPoint]) -> list[PlannedPoint]:
    """Return the points with new plans, because the kind of device has changed for which they are made."""
    return [_with_plan(replace(point, plan=None)) if point.plan is not None else point for point in points]


def _with_plan(point: PlannedPoint, made: PipelineParts | None = None) -> PlannedPoint:
    try:
        return replace(point, plan=make_plan(point.config, made))
    except MtebVllmError as error:
        return replace(point, failure=failure_from_exception(error))


def add_task_states(points: Sequence[PlannedPoint]) -> list[PlannedPoint]:
    """Return the points with the current states of their tasks and the numbers of their engine groups."""
    stale, earlier = functools.cache(StaleResults), _EarlierPoints()
    found = []
    for point in points:
        config, made = point.config, point.plan
        if made is None:
            found.append(point)
            continue
        states = _states(config, made, stale(Path(config.results.dir)))
        if config.results.reuse == "exact" and made.pipeline.cached:
            both = zip(made.tasks, states, strict=True)
            states = [earlier.mark_shared(point.number, made, task, state) for task, state in both]
        found.append(replace(point, tasks=states))
    return _number_groups(found)


class _EarlierPoints:
    """Finds tasks that have the same input fingerprint as in an earlier point of the sweep, and so are computed once."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def mark_shared(self, number: int, made: Plan, task: TaskInfo, state: TaskState) -> TaskState:
        """Return a task's state, marked if an earlier point computes the same result."""
        input_fingerprint = made.input_fingerprint(task)
        if input_fingerprint is None or state.state in ("done", "failed before"):
            return state
        first = self._first.setdefault(input_fingerprint, number)
        if first == number:
            return state
        reason = f"same result as point {first}, computed only once"
        return replace(state, state="to run", reason=reason, work=(), same_as=first)


def group_by_engine(points: Sequence[PlannedPoint]) -> list[Group]:
    """Return the points in the order in which they run: those that need no engine, then engine by engine.

    Points whose planning failed are left out.
    """
    free: list[Step] = []
    prefetch: dict[str, list[Step]] = {}
    by_engine: dict[str, list[Step]] = {}
    specs: dict[str, EngineSpec] = {}
    for point in points:
        if point.plan is None:
            continue
        if not point.pending_tasks:
            free.append(Step(point))
            continue
        own, stage = point.plan.spec, point.pending_first_stage.spec if point.pending_first_stage is not None else None
        key = own.identity
        # With results.reuse=none, the predictions of a prefetched first stage would not be read.
        if stage is not None and point.config.results.reuse == "none":
            key = f"{stage.identity}+{key}"
        elif stage is not None:
            specs[stage.identity] = stage
            prefetch.setdefault(stage.identity, []).append(Step(point, first_stage_only=True))
        specs[key] = own
        by_engine.setdefault(key, []).append(Step(point))
    # Groups with first stages come before the rerankers that use them, even if they also have their own points. Engines
    # that can share a process are adjacent.
    order = [*_by_process(prefetch, specs), *_by_process((key for key in by_engine if key not in prefetch), specs)]
    groups = [Group(0, None, free)] if free else []
    for number, key in enumerate(order, 1):
        groups.append(Group(number, specs[key], [*prefetch.get(key, []), *by_engine.get(key, [])]))
    return groups


def engines_to_open(points: Sequence[PlannedPoint]) -> list[tuple[EngineSpec, bool]]:
    """Return the engines that points open, in order, and whether each is a reference's; a reference is always opened anew."""
    every = [engine for group in group_by_engine(points) for step in group.steps for engine in step.engines]
    runs = itertools.groupby(every, key=lambda engine: (engine[0].identity, engine[1]))
    return [next(run) for _, run in runs]


def _references(made: Plan) -> list[tuple[EngineSpec, bool]]:
    """Return the engine of a point's reference; none if there is no reference, or its scores are stored."""
    return [(made.reference.spec, True)] if made.reference is not None and made.pipeline.runs_reference else []


def _by_process(keys: Iterable[str], specs: Mapping[str, EngineSpec]) -> list[str]:
    """Return engines in order, but those that can share a process together."""
    found: dict[object, list[str]] = {}
    for key in keys:
        found.setdefault(specs[key].process, []).append(key)
    return [key for together in found.values() for key in together]


def _number_groups(points: list[PlannedPoint]) -> list[PlannedPoint]:
    """Return the points with the numbers of their engine groups."""
    numbers = {
        step.point.number: group.number
        for group in group_by_engine(points)
        for step in group.steps
        if group.engine is not None and not step.first_stage_only
    }
    return [replace(point, group=numbers.get(point.number)) for point in points]


def _states(config: RunConfig, made: Plan, stale: StaleResults) -> list[TaskState]:
    root = Path(config.results.dir)
    earlier = load_failures(root, fingerprint(made.settings), asdict(config.tasks))
    if not made.pipeline.scores_tasks:
        # A single step, whose result is never cached.
        failure, work = earlier_failure(earlier, ""), made.pipeline.estimate_all(config.model.kind)
        state: State = "to run" if failure is None else "failed before"
        return [TaskState(made.pipeline.name, state, str(failure or ""), (work,) if work is not None else ())]
    return [_state(config, made, task, stale, earlier_failure(earlier, task.name)) for task in made.tasks]


def _state(config: RunConfig, made: Plan, task: TaskInfo, stale: StaleResults, failure: Failure | None) -> TaskState:
    root = Path(config.results.dir)
    first_stage = _needs_first_stage(config, made, task)
    state = functools.partial(
        TaskState, task.name, work=_work(config, made, task, first_stage), first_stage=first_stage
    )
    try:
        settings = made.settings_for(task)
    except FirstStageError as error:
        return state("to run", str(error))
    if not made.pipeline.cached:
        return state("to run") if failure is None else state("failed before", str(failure))
    path = result_path(root, settings, task.name, fingerprint(settings))
    found = result_status(root, path, task, config.tasks.splits)
    input_fingerprint = made.input_fingerprint(task)
    if (
        found != "complete"
        and input_fingerprint is not None
        and (other := shared_result(root, input_fingerprint)) is not None
    ):
        found = "complete" if result_status(root, other, task, config.tasks.splits) == "complete" else found
    if found == "complete" and config.results.reuse == "exact":
        return TaskState(task.name, "done")
    if failure is not None:
        return state("failed before", str(failure))
    if found == "other data":
        return state("stale", "the data revision has changed")
    reasons = {"partial": "partly computed", "unreadable": f"{path} cannot be read", "complete": "results.reuse=none"}
    if found == "missing" and (differs := stale.reason(settings, task)):
        return state("stale", differs)
    return state("to run", reasons.get(found, ""))


def _needs_first_stage(config: RunConfig, made: Plan, task: TaskInfo) -> bool:
    """Whether a dense first stage has to retrieve for a task."""
    stage = made.stage
    if stage is None or stage.spec is None or brings_candidates(task.type):
        return False
    root = Path(config.results.dir)
    known = [
        is_intact(root, predictions_path(root, settings, part.name, fingerprint(settings)))
        for part in tasks.parts([task], mteb_catalogue())
        for settings in [stage.settings(part.name)]
    ]
    return config.results.reuse == "none" or not all(known)


def _work(config: RunConfig, made: Plan, task: TaskInfo, first_stage: bool) -> tuple[Estimate, ...]:
    """Return the estimated work for a task; empty if the size of any part is unknown."""
    splits, parts = config.tasks.splits, tasks.parts([task], mteb_catalogue())
    kind, limit = config.model.kind, _context(made.spec)
    found = [made.pipeline.estimate(part, splits, kind, limit) for part in parts]
    if first_stage and made.stage is not None and made.stage.spec is not None:
        found += [estimate(part, splits, max_tokens=_context(made.stage.spec)) for part in parts]
    for spec, _ in _references(made):
        found += [made.pipeline.estimate(part, splits, kind, _context(spec)) for part in parts]
    return _sum_by_unit(one for one in found if one is not None) if None not in found else ()


def _context(spec: EngineSpec) -> int | None:
    limit = context_limit(spec.args) or position_limit(spec.model.config)
    return limit if isinstance(limit, int) else None


def _sum_by_unit(estimates: Iterable[Estimate]) -> tuple[Estimate, ...]:
    """Return the sums of estimates by unit."""
    by_unit: dict[str, Estimate] = {}
    for one in estimates:
        by_unit[one.unit] = by_unit[one.unit] + one if one.unit in by_unit else one
    return tuple(by_unit.values())
