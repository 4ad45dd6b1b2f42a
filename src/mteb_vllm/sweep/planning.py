"""What a sweep's points come down to before anything is loaded, and in which order they run.

Points that need the same engine follow each other; a dense first stage runs ahead of the rerankers that read it, so that
each engine opens once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from mteb_vllm.plan import Plan, plan
from mteb_vllm.results.failures import Failure, before, of_exception, remembered
from mteb_vllm.results.lookup import Stale, intact, look, predictions_path, result_path, same_result
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.tasks.estimates import Estimate, estimate
from mteb_vllm.tasks.selection import brings_candidates
from mteb_vllm.util.fingerprint import fingerprint

if TYPE_CHECKING:
    from mteb_vllm.preflight.command import Point

State = Literal["to run", "done", "stale", "failed before"]


@dataclass(frozen=True)
class TaskState:
    """What is known of one task under a point's settings.

    Attributes:
        name: The task.
        state: "done" is not computed again; "failed before" only with `retry_failed`; the other two are.
        why: Why it is stale, or failed; or what of it is there.
        work: What engines will be given for it, pairs apart from texts; empty where it is done or nobody knows.
        first_stage: Whether a dense first stage has to retrieve for it.
        same_as: The number of an earlier point that computes the same; None where there is none.
    """

    name: str
    state: State
    why: str = ""
    work: tuple[Estimate, ...] = ()
    first_stage: bool = False
    same_as: int | None = None


@dataclass(frozen=True)
class PlannedPoint:
    """One point of a sweep, or a single run, as far as it is known before anything is loaded.

    Attributes:
        number: Its number in the sweep.
        overrides: What makes it.
        differs: Those of them in which the points differ: key to value.
        config: Its configuration.
        launched: What makes it, as Hydra hands it to a launcher; empty of a single run.
        composed: Hydra's configuration of it, which its check has composed; None of a single run.
        plan: What that comes down to; None where it cannot be planned.
        failure: Why it cannot be planned.
        tasks: What is known of its tasks.
        group: The number of the engine that it shares with others, from 1; None where it needs none.
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
    def work(self) -> tuple[Estimate, ...]:
        """What engines will be given, as far as that is known, pairs apart from texts."""
        return _added(one for task in self.to_do for one in task.work)

    @property
    def tokens(self) -> int:
        """The tokens in that."""
        return sum(one.tokens for one in self.work)

    @property
    def ahead(self) -> FirstStage | None:
        """The dense first stage that has to retrieve; None where there is none, or all of it is known."""
        stage = self.plan.stage if self.plan is not None else None
        if stage is None or stage.spec is None or not any(task.first_stage for task in self.to_do):
            return None
        return stage


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


def plan_points(points: Sequence[Point], first: int = 0) -> list[PlannedPoint]:
    """Plan checked points, in their order, each once; what is known of their tasks, `look_up` adds.

    Args:
        points: The points.
        first: The number of the first.
    """
    differences = differing_overrides([point.overrides for point in points])
    planned = []
    for number, (checked, differs) in enumerate(zip(points, differences, strict=True), first):
        point = PlannedPoint(number, checked.overrides, differs, checked.config, checked.launched, checked.composed)
        try:
            planned.append(replace(point, plan=plan(checked.config, checked.pipeline)))
        except MtebVllmError as error:
            planned.append(replace(point, failure=of_exception(error)))
    return planned


def look_up(points: Sequence[PlannedPoint]) -> list[PlannedPoint]:
    """Find out what is known of the tasks of planned points now, and which engines they share."""
    stale, earlier = functools.cache(Stale), _Earlier()
    found = []
    for point in points:
        config, made = point.config, point.plan
        if made is None:
            found.append(point)
            continue
        states = _states(config, made, stale(Path(config.results.dir)))
        if config.results.reuse == "exact" and made.pipeline.cached:
            both = zip(made.tasks, states, strict=True)
            states = [earlier.told(point.number, made, task, state) for task, state in both]
        found.append(replace(point, tasks=states))
    return _numbered(found)


class _Earlier:
    """Finds tasks that an earlier point of the same sweep reads in the same way: they are computed once."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def told(self, number: int, made: Plan, task: TaskInfo, state: TaskState) -> TaskState:
        """The state of a point's task, with what an earlier point will have done for it."""
        input_fingerprint = made.input_fingerprint(task)
        if input_fingerprint is None or state.state in ("done", "failed before"):
            return state
        first = self._first.setdefault(input_fingerprint, number)
        return state if first == number else replace(state, why=f"as point {first}", work=(), same_as=first)


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
        if not point.to_do:
            free.append(Step(point))
            continue
        own, stage = point.plan.spec, point.ahead.spec if point.ahead is not None else None
        key = own.fingerprint
        # Where nothing is reused, a first stage that ran before would not be found again.
        if stage is not None and point.config.results.reuse == "none":
            key = f"{stage.fingerprint}+{key}"
        elif stage is not None:
            specs[stage.fingerprint] = stage
            ahead.setdefault(stage.fingerprint, []).append(Step(point, first_stage_only=True))
        specs[key] = own
        by_engine.setdefault(key, []).append(Step(point))
    # A group of first stages comes before what reads them, even where it has points of its own. Engines that can share a
    # process follow each other.
    order = [*_by_process(ahead, specs), *_by_process((key for key in by_engine if key not in ahead), specs)]
    groups = [Group(0, None, free)] if free else []
    for number, key in enumerate(order, 1):
        groups.append(Group(number, specs[key], [*ahead.get(key, []), *by_engine.get(key, [])]))
    return groups


def _by_process(keys: Iterable[str], specs: Mapping[str, EngineSpec]) -> list[str]:
    """Return engines in their order, but those of one kind of process together."""
    found: dict[object, list[str]] = {}
    for key in keys:
        found.setdefault(specs[key].process, []).append(key)
    return [key for together in found.values() for key in together]


def _numbered(points: list[PlannedPoint]) -> list[PlannedPoint]:
    """Notes the number of its engine on each point."""
    numbers = {
        step.point.number: group.number
        for group in grouped(points)
        for step in group.steps
        if group.engine is not None and not step.first_stage_only
    }
    return [replace(point, group=numbers.get(point.number)) for point in points]


def _states(config: RunConfig, made: Plan, stale: Stale) -> list[TaskState]:
    root = Path(config.results.dir)
    earlier = remembered(root, fingerprint(made.settings))
    if not made.pipeline.scores_tasks:
        # One thing to do, and nothing that could be known of it.
        failure, work = before(earlier, ""), made.pipeline.estimate_all(config.model.kind)
        state: State = "to run" if failure is None else "failed before"
        return [TaskState(made.pipeline.name, state, str(failure or ""), (work,) if work is not None else ())]
    return [_state(config, made, task, stale, before(earlier, task.name)) for task in made.tasks]


def _state(config: RunConfig, made: Plan, task: TaskInfo, stale: Stale, failure: Failure | None) -> TaskState:
    root = Path(config.results.dir)
    first_stage = _retrieves(config, made, task)
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
    found = look(root, path, task, config.tasks.splits)
    input_fingerprint = made.input_fingerprint(task)
    if (
        found != "whole"
        and input_fingerprint is not None
        and (other := same_result(root, input_fingerprint)) is not None
    ):
        found = "whole" if look(root, other, task, config.tasks.splits) == "whole" else found
    if found == "whole" and config.results.reuse == "exact":
        return TaskState(task.name, "done")
    if failure is not None:
        return state("failed before", str(failure))
    if found == "other data":
        return state("stale", "the data's revision")
    why = {"part": "some of it is there", "unreadable": f"{path} cannot be read", "whole": "results.reuse=none"}
    if found == "nothing" and (differs := stale.why(settings, task)):
        return state("stale", differs)
    return state("to run", why.get(found, ""))


def _retrieves(config: RunConfig, made: Plan, task: TaskInfo) -> bool:
    """Whether a dense first stage has to retrieve for a task."""
    stage = made.stage
    if stage is None or stage.spec is None or brings_candidates(task.type):
        return False
    root = Path(config.results.dir)
    known = [
        intact(root, predictions_path(root, settings, part.name, fingerprint(settings)))
        for part in tasks.parts([task], mteb_catalogue())
        for settings in [stage.settings(part.name)]
    ]
    return config.results.reuse == "none" or not all(known)


def _work(config: RunConfig, made: Plan, task: TaskInfo, first_stage: bool) -> tuple[Estimate, ...]:
    """What engines will be given for a task; nothing where of any part nobody knows."""
    splits, parts = config.tasks.splits, tasks.parts([task], mteb_catalogue())
    kind, limit = config.model.kind, _context(made.spec)
    found = [made.pipeline.estimate(part, splits, kind, limit) for part in parts]
    if first_stage and made.stage is not None and made.stage.spec is not None:
        found += [estimate(part, splits, max_tokens=_context(made.stage.spec)) for part in parts]
    return _added(one for one in found if one is not None) if None not in found else ()


def _context(spec: EngineSpec) -> int | None:
    limit = context_limit(spec.args) or position_limit(spec.model.config)
    return limit if isinstance(limit, int) else None


def _added(estimates: Iterable[Estimate]) -> tuple[Estimate, ...]:
    """One sum for each unit."""
    by_unit: dict[str, Estimate] = {}
    for one in estimates:
        by_unit[one.unit] = by_unit[one.unit] + one if one.unit in by_unit else one
    return tuple(by_unit.values())
