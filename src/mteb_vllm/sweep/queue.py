"""The engine groups of a sweep that wait, and the parts of this machine that they wait for: GPUs, or shares of the cores."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mteb_vllm.engines.arguments import gpus_per_engine
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.engines.memory import LIMIT_VARIABLE
from mteb_vllm.sweep.planning import Group
from mteb_vllm.util.machine import split

# The fraction of the memory that all engines on the cores of one machine may take together.
_MEMORY = 0.9


@dataclass(frozen=True)
class Place:
    """The part of the machine that a child process may use.

    Attributes:
        gpus: The GPUs, as `CUDA_VISIBLE_DEVICES` names them; empty: all.
        cores: The ids of the cores; empty: all.
        memory: The fraction of the memory that an engine on the cores may take.
    """

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    memory: float = 1.0

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables that restrict a process to it."""
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        return gpus | ({LIMIT_VARIABLE: f"{self.memory}"} if self.memory < 1 else {})

    def __str__(self) -> str:
        if self.gpus:
            return f"on GPU {', '.join(self.gpus)}"
        return f"on {'core' if len(self.cores) == 1 else 'cores'} {_ranges(self.cores)}" if self.cores else ""


@dataclass(frozen=True)
class Slots:
    """The slots of a sweep: a group takes one or several.

    Attributes:
        places: The part of the machine that each slot stands for.
        shared: Whether groups that run at the same time disturb each other's measurements.
    """

    places: Sequence[Place] = (Place(),)
    shared: bool = True

    def needed(self, group: Group) -> int:
        """Return how many slots a group takes."""
        if self.places[0].gpus:
            return gpus_of(group, len(self.places))
        # Speeds on a CPU are measured with all cores, as without workers.
        return len(self.places) if self.runs_alone(group) else 1

    def runs_alone(self, group: Group) -> bool:
        """Whether a group measures speeds, so that nothing may run at the same time."""
        return self.shared and any(
            step.point.plan is not None and step.point.plan.pipeline.own_process for step in group.steps
        )

    def place(self, taken: Sequence[int]) -> Place:
        """Return the part of the machine that some slots stand for together."""
        places = [self.places[at] for at in taken]
        if places[0].gpus:
            return Place(tuple(gpu for place in places for gpu in place.gpus))
        return places[0] if len(places) == 1 else Place()


def gpu_slots(gpus: Sequence[str]) -> Slots:
    """Return one slot for each GPU, as `CUDA_VISIBLE_DEVICES` names them."""
    return Slots([Place((gpu,)) for gpu in gpus])


def core_slots(cores: Sequence[int], workers: int) -> Slots:
    """Return slots that divide cores, and memory if the engines could otherwise exhaust it."""
    if workers == 1:
        return Slots()
    return Slots([Place(cores=tuple(part), memory=_MEMORY / workers) for part in split(cores, workers)])


def independent_slots(count: int) -> Slots:
    """Return slots that share nothing, each as large as the group that takes it."""
    return Slots([Place()] * count, shared=False)


class GroupQueue:
    """Hands out groups in order, each as soon as its slots are free; every method may be called from any thread.

    Groups that have steps of the same point, such as its first stage, run one after another, in order. So do groups with
    engines on the same Ray cluster.

    Args:
        groups: The groups, in order.
        slots: The slots.
    """

    def __init__(self, groups: Sequence[Group], slots: Slots) -> None:
        self._waiting, self._running = list(groups), list[Group]()
        self._points = {group.number: {step.point.number for step in group.steps} for group in groups}
        self._slots, self._free = slots, list(range(len(slots.places)))
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def workers(self) -> int:
        """The number of groups that can run at the same time."""
        return min(len(self._slots.places), len(self._waiting))

    @property
    def stopped(self) -> bool:
        """Whether the sweep is to end."""
        return self._stopped

    def sleep(self, seconds: float) -> bool:
        """Wait for so many seconds, or until the sweep is to end; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped, seconds)

    def stop(self) -> None:
        """Hand out no more groups, and make all workers end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def take(self, held: Sequence[int]) -> tuple[Group, list[int]] | None:
        """Return the first group that can run now, with its slots; None if there is none.

        Args:
            held: The slots that the caller still has; those that it gets again are first in the answer, and it must
                `release` the others.
        """
        with self._changed:
            if self._stopped or any(map(self._slots.runs_alone, self._running)):
                return None
            available = [*held, *self._free]
            for at, group in enumerate(self._waiting):
                needed = self._slots.needed(group)
                before = [*self._running, *self._waiting[:at]]
                blocked = any(self._points[group.number] & self._points[other.number] for other in before)
                # By default, an engine on a Ray cluster takes all of it.
                blocked = blocked or any(_clusters(group) & _clusters(other) for other in self._running)
                if blocked or needed > len(available) or (self._running and self._slots.runs_alone(group)):
                    continue
                del self._waiting[at]
                self._running.append(group)
                taken = available[:needed]
                self._free = [slot for slot in self._free if slot not in taken]
                return group, taken
        return None

    def place(self, taken: Sequence[int]) -> Place:
        """Return the part of the machine that some slots stand for together."""
        return self._slots.place(taken)

    def release(self, slots: Sequence[int]) -> None:
        """Give slots back."""
        with self._changed:
            self._free = sorted([*self._free, *slots])
            self._changed.notify_all()

    def done(self, group: Group) -> None:
        """Report that a group has ended."""
        with self._changed:
            self._running.remove(group)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for a change if there are groups that cannot run yet; return whether there are any."""
        with self._changed:
            if self._waiting and not self._stopped:
                self._changed.wait(seconds)
            return bool(self._waiting) and not self._stopped


def _engines(group: Group) -> list[EngineSpec]:
    """Return all engines that a group opens, one after another."""
    found = [group.engine] if group.engine is not None else []
    for step in group.steps:
        made = step.point.plan
        if made is None or step.first_stage_only or group.engine is None:
            continue
        found += [made.spec, *([made.reference.spec] if made.reference is not None else [])]
        # Otherwise its predictions are stored, or another step retrieves them.
        if made.stage is not None and made.stage.spec is not None and step.point.config.results.reuse == "none":
            found.append(made.stage.spec)
    return found


def _clusters(group: Group) -> set[str]:
    """Return the addresses of the Ray clusters on which a group opens engines."""
    return {engine.ray_address for engine in _engines(group) if engine.ray_address is not None}


def gpus_of(group: Group, there_are: int | None = None) -> int:
    """Return the number of this machine's GPUs for the engines of a group, which are open one at a time.

    Args:
        group: The group.
        there_are: The number of GPUs; replicas share them if there are not enough. None: there are enough.
    """

    def needed(engine: EngineSpec) -> int:
        if engine.ray_address is not None:
            return 0
        size = gpus_per_engine(engine.args)
        replicas = engine.replicas if there_are is None else min(engine.replicas, there_are // size)
        return size * max(1, replicas)

    return max(map(needed, _engines(group)), default=1)


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers in the form 0-3, 8."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found)
