"""Divide a machine among the replicas of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from mteb_vllm.engines.arguments import gpus_per_engine
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.engines.memory import within_limit
from mteb_vllm.util.machine import cores, split, visible_gpus

# vLLM's own default of `gpu_memory_utilization`.
_MEMORY = 0.92


class Share(NamedTuple):
    """A replica's share of a machine.

    Attributes:
        spec: The specification of its engine.
        cores: Ids of the cores that it runs on; empty: all.
        turn: Replicas with the same one open at the same time. Those that share a GPU open one after another, because vLLM
            measures the GPU's free memory meanwhile.
    """

    spec: EngineSpec
    cores: Sequence[int] = ()
    turn: int = 0


def shares(spec: EngineSpec) -> list[Share]:
    """Divide this machine among the replicas of an engine: GPUs and their memory, or cores and memory.

    Variables of `spec.env` have precedence.
    """
    count, size, gpus = spec.replicas, gpus_per_engine(spec.args), visible_gpus()
    if not gpus:
        return [share_of_cores(spec, part, count) for part in split(cores(), count)]
    groups = [gpus[at : at + size] for at in range(0, len(gpus) - size + 1, size)] or [gpus]
    if "CUDA_VISIBLE_DEVICES" in spec.env:
        groups = [gpus]
    found = []
    for number in range(count):
        group = number % len(groups)
        sharing = len(range(group, count, len(groups)))
        env = {"CUDA_VISIBLE_DEVICES": ",".join(groups[group])}
        found.append(Share(single(spec, env, sharing), turn=number // len(groups)))
    return found


def share_of_cores(spec: EngineSpec, part: Sequence[int], sharing: int) -> Share:
    """Return the share of a replica on a CPU.

    Args:
        spec: The specification of the engine.
        part: Ids of the replica's cores.
        sharing: How many replicas share the machine's memory.
    """
    size = gpus_per_engine(spec.args)
    bound = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, rank)) for rank in split(part, size))}
    own_cores = () if bound.keys() & spec.env.keys() or len(part) < size else part
    return Share(single(spec, bound if own_cores else {}, sharing), own_cores)


def single(spec: EngineSpec, env: Mapping[str, str], sharing: int) -> EngineSpec:
    """Return the specification of one replica, whose memory is shared by so many."""
    memory = within_limit(float(spec.args.get("gpu_memory_utilization") or _MEMORY)) / sharing
    args = dict(spec.args) if sharing == 1 else {**spec.args, "gpu_memory_utilization": memory}
    return replace(spec, args=args, env={**env, **spec.env}, replicas=1, ray_address=None)
