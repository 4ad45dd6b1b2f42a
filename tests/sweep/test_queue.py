"""The queue of engine groups: which run side by side, on which devices, and in which order."""

from __future__ import annotations

import os

import pytest
from test_planning import DENSE, RERANK, planned

from mteb_vllm.engines import arguments
from mteb_vllm.engines.memory import LIMIT_VARIABLE, within_limit
from mteb_vllm.engines.ray_cluster import Node
from mteb_vllm.sweep.planning import group_by_engine
from mteb_vllm.sweep.queue import GroupQueue, Place, Slots, core_slots, gpu_slots, independent_slots
from mteb_vllm.util.machine import on_cores

GPU = ["engine=vllm", "tasks=sts12", "prompts=none"]


def queue(slots: Slots, *overrides: str) -> GroupQueue:
    return GroupQueue(group_by_engine(planned(*overrides)), slots)


def take(queue: GroupQueue, *held: int) -> tuple[int, list[int]] | None:
    """Return the number of the next group and its slots."""
    taken = queue.take(held)
    return None if taken is None else (taken[0].number, taken[1])


def test_groups_wait_for_the_first_stages_of_their_points() -> None:
    axes = ["engine.max_num_seqs=32,64", "pipeline.first_stage.engine.max_num_seqs=8,16"]
    groups = group_by_engine(planned(*RERANK, *DENSE, *axes))
    waiting = GroupQueue(groups, independent_slots(9))
    assert waiting.workers == 4
    assert take(waiting) == (1, [0]) and take(waiting) == (2, [1]) and take(waiting) is None
    waiting.done(groups[0])
    assert take(waiting) is None, "groups 3 and 4 also have points whose first stage is in group 2"
    waiting.done(groups[1])
    assert [take(waiting), take(waiting), take(waiting)] == [(3, [2]), (4, [3]), None]
    assert not waiting.wait(0)
    # Where the first stage of each of two models is the other one, the two take turns.
    same = group_by_engine(
        planned(*RERANK, *DENSE, "engine.max_num_seqs=32,64", "pipeline.first_stage.engine.max_num_seqs=64")
    )
    both = GroupQueue(same, independent_slots(2))
    assert take(both) == (1, [0]) and take(both) is None and both.wait(0)


def test_a_group_gets_as_many_gpus_as_its_engine_needs() -> None:
    words = [*GPU, "engine.tensor_parallel_size=1,2,3", "engine.dtype=float16"]
    waiting = queue(gpu_slots(["0", "1", "2", "7"]), *words)
    assert waiting.workers == 3
    assert take(waiting) == (1, [0]) and take(waiting) == (2, [1, 2]) and take(waiting) is None, "one is left"
    assert waiting.place([1, 2]).variables == {"CUDA_VISIBLE_DEVICES": "1,2"}
    assert str(waiting.place([0])) == "on GPU 0" and str(waiting.place([2, 3])) == "on GPU 2, 7"
    waiting.done(group_by_engine(planned(*words))[0])
    assert take(waiting, 0) is None, "the worker of the first still has its slot, but three are needed"
    waiting.release([0])
    assert take(waiting) is None
    waiting.release([1, 2])
    assert take(waiting) == (3, [0, 1, 2])


def test_replicas_on_a_ray_cluster_take_none_of_this_machines_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (Node("id", "node", "10.0.0.1", 8, 0),)
    monkeypatch.setattr(arguments, "find_nodes", lambda address: nodes)
    words = [*GPU, "engine.ray_address=10.0.0.1:6379,null", "engine.dtype=float16"]
    waiting = queue(gpu_slots(["0"]), *words)
    assert take(waiting) == (1, []) and take(waiting) == (2, [0])


@pytest.mark.parametrize("slots", [gpu_slots(["0", "1"]), core_slots([0, 1], 2), independent_slots(2)])
def test_engines_on_one_ray_cluster_take_turns(monkeypatch: pytest.MonkeyPatch, slots: Slots) -> None:
    """Each asks for the whole cluster, and would wait for the other in vain."""
    nodes = (Node("id", "node", "10.0.0.1", 8, 0),)
    monkeypatch.setattr(arguments, "find_nodes", lambda address: nodes)
    groups = group_by_engine(planned(*GPU, "engine.ray_address=10.0.0.1:6379,10.0.0.2:6379", "engine.seed=1,2"))
    clusters = [group.engine.ray_address for group in groups if group.engine is not None]
    waiting = GroupQueue(groups, slots)
    first, second = waiting.take(()), waiting.take(())
    assert first is not None and second is not None and waiting.take(()) is None
    assert {clusters[first[0].number - 1], clusters[second[0].number - 1]} == {"10.0.0.1:6379", "10.0.0.2:6379"}
    waiting.release(first[1])
    waiting.done(first[0])
    third = waiting.take(())
    assert third is not None and clusters[third[0].number - 1] == clusters[first[0].number - 1]


def test_a_worker_keeps_its_gpus_and_gives_back_what_it_does_not_need() -> None:
    waiting = queue(gpu_slots(["0", "1"]), *GPU, "engine.tensor_parallel_size=2,1")
    assert take(waiting) == (1, [0, 1]) and take(waiting) is None
    assert take(waiting, 0, 1) == (2, [0])


def test_replicas_share_gpus_if_there_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "gpu_count", lambda: 4)
    assert take(queue(gpu_slots(["0", "1", "2", "3"]), *GPU, "engine.replicas=3")) == (1, [0, 1, 2])
    assert take(queue(gpu_slots(["0", "1", "2", "3"]), *GPU, "engine.replicas=8")) == (1, [0, 1, 2, 3])
    two = ["engine.tensor_parallel_size=2", "engine.replicas=auto"]
    assert take(queue(gpu_slots(["0", "1", "2", "3"]), *GPU, *two)) == (1, [0, 1, 2, 3])


def test_what_measures_speed_runs_alone_and_on_all_cores() -> None:
    words = ["pipeline=throughput", "engine.max_num_seqs=8,16", "prompts=none"]
    measured = queue(core_slots([0, 1, 2, 3], 2), *words)
    assert take(measured) == (1, [0, 1]) and measured.place([0, 1]) == Place() and take(measured) is None
    on_gpus = queue(gpu_slots(["0", "1"]), *words, "engine=vllm")
    assert take(on_gpus) == (1, [0]) and take(on_gpus) is None, "the other GPU stays idle"
    on_nodes = queue(independent_slots(2), *words)
    assert take(on_nodes) == (1, [0]) and take(on_nodes) == (2, [1]), "jobs have their own cores"


def test_cores_and_memory_are_divided() -> None:
    slots = core_slots([0, 1, 2, 3, 4, 8], 2)
    assert [(str(place), place.memory) for place in slots.places] == [("on cores 0-2", 0.45), ("on cores 3-4, 8", 0.45)]
    assert slots.places[0].variables == {LIMIT_VARIABLE: "0.45"}
    assert core_slots([0, 1], 1) == Slots() and Place().variables == {} and str(Place()) == ""


def test_the_memory_of_an_engine_is_limited_only_where_it_would_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert within_limit(0.92) == 0.92
    monkeypatch.setenv(LIMIT_VARIABLE, "0.45")
    assert (within_limit(0.92), within_limit(0.25)) == (0.45, 0.25)


def test_processes_start_on_chosen_cores() -> None:
    before = os.sched_getaffinity(0)
    with on_cores([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_no_group_is_handed_out_after_a_stop() -> None:
    waiting = queue(independent_slots(1), "engine.max_num_seqs=8,16", "tasks=sts12")
    assert not waiting.sleep(0.01)
    waiting.stop()
    assert waiting.sleep(60) and waiting.stopped and take(waiting) is None and not waiting.wait(0)
