"""Find the nodes of a Ray cluster, and distribute replicas over them.

Nothing here imports Ray into this process: a child process connects to the cluster, because that changes signal handlers and
cannot be limited in time.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mteb_vllm.errors import Code
from mteb_vllm.util.machine import cpu_build
from mteb_vllm.util.sentences import sentence
from mteb_vllm.util.type_names import wrong_type

_ASK = """
import json, sys
sys.path[:], address = json.loads(sys.argv[1])
from mteb_vllm.engines.ray_replica import print_nodes
print_nodes(address)
"""

# Seconds for a connection to the address, and for the cluster to list its nodes, which includes importing Ray.
_CONNECT_WITHIN, _LIST_WITHIN = 5.0, 60.0

# Variables of the shell by which Ray would choose another cluster than the configuration does.
CHOOSING = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR")


NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}


class ClusterError(Exception):
    """A cluster that cannot be used.

    Attributes:
        what: The problem.
        way: A remedy, or the allowed values.
        code: The kind of mistake.
    """

    def __init__(self, what: str, way: str = "", code: Code = "invalid") -> None:
        super().__init__(f"{sentence(what)} {way}" if way else what)
        self.what, self.way, self.code = what, way, code


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Attributes:
        id: Its id in the cluster.
        host: The name of its machine.
        address: Its IP address.
        cpus: The cores that Ray may use on it.
        gpus: The GPUs that Ray may use on it.
    """

    id: str
    host: str
    address: str
    cpus: float
    gpus: float

    @property
    def name(self) -> str:
        """Its name in messages and in the record."""
        return f"{self.host} ({self.address})"


class Place(NamedTuple):
    """Where a replica runs.

    Attributes:
        node: Its node.
        gpus: The GPUs that it gets from Ray; 0 on a CPU.
        cpus: The cores that it reserves.
        part: Its number among the replicas on the same machine, from 0.
        parts: How many these are.
        machine_cpus: The cores that Ray may use on that machine.
    """

    node: Node
    gpus: int
    cpus: int
    part: int = 0
    parts: int = 1
    machine_cpus: int = 1


def place(nodes: Sequence[Node], count: int, size: int) -> list[Place]:
    """Distribute replicas evenly over the nodes of a cluster.

    Args:
        nodes: The nodes.
        count: How many replicas.
        size: GPUs, or groups of cores, of each. All are on one node.

    Raises:
        ClusterError: if there is not room for so many.
    """
    on_gpus, room = _room(nodes, size)
    if count > sum(room):
        kind = "GPUs" if on_gpus else "cores"
        each = f"{size} {kind if size > 1 else kind[:-1]}" + (" of one node" if size > 1 else "")
        way = f"Its nodes: {', '.join(f'{one.name} with {_have(one, on_gpus=on_gpus)}' for one in nodes) or 'none'}."
        raise ClusterError(f"the cluster has room for {sum(room)}, since each needs {each}", way)
    taken = [0] * len(nodes)
    for _ in range(count):
        taken[min((at for at in range(len(nodes)) if taken[at] < room[at]), key=lambda at: taken[at])] += 1
    # Several nodes may run on one machine, whose cores they share.
    machines, used, seen = Counter[str](), Counter[str](), Counter[str]()
    for node, some in zip(nodes, taken, strict=True):
        machines[node.host] += int(node.cpus)
        used[node.host] += some
    found = []
    for node, some in zip(nodes, taken, strict=True):
        for _ in range(some):
            cpus = 0 if on_gpus else max(1, int(node.cpus) // some)
            host = node.host
            found.append(Place(node, size if on_gpus else 0, cpus, seen[host], used[host], machines[host]))
            seen[host] += 1
    return found


def replicas_of(nodes: Sequence[Node], size: int) -> int:
    """Return the number of replicas for `auto`: one for each group of GPUs, or one for each node of a cluster of CPUs."""
    on_gpus, room = _room(nodes, size)
    return sum(room) if on_gpus else sum(map(bool, room))


def _room(nodes: Sequence[Node], size: int) -> tuple[bool, list[int]]:
    """Return whether replicas run on GPUs, and how many each node has room for."""
    on_gpus = not cpu_build() and any(node.gpus >= 1 for node in nodes)
    return on_gpus, [int(node.gpus if on_gpus else node.cpus) // size for node in nodes]


def _have(node: Node, *, on_gpus: bool) -> str:
    amount, kind = (node.gpus, "GPU") if on_gpus else (node.cpus, "core")
    return f"{amount:g} {kind}" + ("" if amount == 1 else "s")


def find_nodes(address: object) -> tuple[Node, ...]:
    """Return the living nodes of a cluster; each cluster is queried once per command.

    Args:
        address: `auto` for the cluster of this machine, or `host:port`.

    Raises:
        ClusterError: if the cluster cannot be used.
    """
    found = _look_up(address)
    if isinstance(found, ClusterError):
        raise ClusterError(found.what, found.way, found.code)
    return found


def clear_cluster_cache() -> None:
    """Forget all clusters: nodes come and go between commands."""
    _look_up.cache_clear()


# Points of a sweep share a cluster; it is queried once, failures included.
@functools.lru_cache(maxsize=16)
def _look_up(address: object) -> tuple[Node, ...] | ClusterError:
    try:
        check_address(address)
        return tuple(_list_nodes(str(address)))
    except ClusterError as error:
        return error


def check_address(address: object) -> None:
    """Check that an address can be one of a cluster: its form, that Ray is installed, that something answers there.

    Raises:
        ClusterError: if not.
    """
    way = "Allowed: auto (the cluster of this machine), host:port, or null."
    if not isinstance(address, str):
        raise ClusterError(wrong_type(str, address), way)
    if address.startswith("ray://"):
        what = "is an address for Ray Client, through which replicas cannot be fed"
        raise ClusterError(what, "Run on a node of the cluster, with its own address: host:port or auto.")
    where = re.fullmatch(r"\[?([^\s/\[\]]+)\]?:(\d{1,5})", address)
    if address != "auto" and where is None:
        raise ClusterError("is not an address of a Ray cluster", way)
    if not _ray_installed():
        raise ClusterError("needs the package ray", "Install it: pip install 'mteb-vllm[ray]'", "not_installed")
    if where is not None:
        try:
            socket.create_connection((where[1], int(where[2])), timeout=_CONNECT_WITHIN).close()
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            what = f"no Ray cluster answers at this address ({reason})"
            raise ClusterError(what, "Start one: ray start --head; its output contains the address.") from None


def _ray_installed() -> bool:
    return any(True for _ in importlib.metadata.distributions(name="ray"))


def _list_nodes(address: str) -> Iterator[Node]:
    command = [sys.executable, "-c", _ASK, json.dumps([list(map(str, sys.path)), address])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=own_variables(os.environ), timeout=_LIST_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"no Ray cluster has answered at this address within {_LIST_WITHIN:g} s"
        raise ClusterError(what, "Check it: ray status") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ClusterError(f"the nodes of the cluster cannot be listed: {lines[-1]}") from None
    if isinstance(answer, str):
        raise ClusterError(*explain(answer, address))
    yield from (Node(**node) for node in answer)


def explain(message: str, address: str) -> tuple[str, str]:
    """Return the meaning of an error of `ray.init`, and a remedy."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "ersion mismatch" in message:
        versions = re.findall(r"(Ray|Python): ?([\w.]+)", message)
        theirs, ours = (", ".join(f"{name} {version}" for name, version in versions[at : at + 2]) for at in (0, 2))
        return f"the cluster runs {theirs}, but this process {ours}", "Install the same versions on all nodes."
    if address == "auto" and "Could not find any running Ray instance" in message:
        return (
            "no Ray cluster is running on this machine",
            "Start one (ray start --head), or name its address: host:port.",
        )
    return f"Ray cannot join this cluster: {lines[0] if lines else message}", "Is this machine a node of it? ray status"


def own_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables without those by which Ray would choose a cluster, and with usage statistics off."""
    return {key: value for key, value in environ.items() if key not in CHOOSING} | NO_STATISTICS
