"""Replicas on the nodes of a Ray cluster.

On each node an actor starts the same process as on one machine (`engines.replica_process`), and passes its messages on. So a
node's engine has the environment that it would have here, and it ends with the actor: with the run, or with the node.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import platform
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mteb_vllm._version import __version__
from mteb_vllm.engines import environment
from mteb_vllm.engines.arguments import gpus_per_engine
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.engines.ray_cluster import (
    CHOOSING,
    NO_STATISTICS,
    ClusterError,
    Node,
    Place,
    check_address,
    explain,
    place,
)
from mteb_vllm.engines.replica_process import Command, Event, start_process
from mteb_vllm.engines.shares import Share, share_of_cores, single
from mteb_vllm.errors import EngineStartError, ModelError
from mteb_vllm.models.files import Model, find_model
from mteb_vllm.util.child_process import ChildProcess
from mteb_vllm.util.digest import folder_digest
from mteb_vllm.util.fingerprint import is_ignored_variable
from mteb_vllm.util.machine import cores, device, split, versions

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

# Seconds for all actors to start, which a cluster with other work may delay.
_START_WITHIN = 300.0

# Variables of huggingface_hub and its users that hold on the nodes as they do here.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


class Facts(NamedTuple):
    """The properties of a node that results depend on, and the state of its model.

    Attributes:
        versions: The versions of packages, Python and this package's source.
        device: The kind of device.
        cores: Ids of its cores.
        problem: Why it cannot load the model; None if it can, as far as the files show.
    """

    versions: Mapping[str, str | None]
    device: str
    cores: Sequence[int]
    problem: str | None = None


class Answer(NamedTuple):
    """An answer of an actor: an event and the output of its process.

    Attributes:
        event: A pickled event; None if there is none.
        output: The output since the last answer.
        status: Its exit status; None while it runs.
    """

    event: bytes | None
    output: bytes
    status: int | None = None


class ReplicaHost:
    """The actor of a replica on its node."""

    def __init__(self) -> None:
        self._process: ChildProcess[Command, Event] | None = None
        self._output = -1

    def describe(self, spec: EngineSpec, env: Mapping[str, str]) -> Facts:
        """Return the properties of this node that results depend on.

        Args:
            spec: The engine that the replica will be.
            env: Variables of the process that runs the command, some of which are read when libraries are imported.
        """
        os.environ.update(env)
        return facts(_files_problem(spec))

    def start(self, env: Mapping[str, str], cores: Sequence[int]) -> None:
        """Start the replica's process with these environment variables in addition, on these cores."""
        handle, name = tempfile.mkstemp(prefix="mteb-vllm-replica-", suffix=".log")
        os.close(handle)
        try:
            self._process = start_process(Path(name), _node_variables(os.environ) | dict(env), cores)
            self._output = os.open(name, os.O_RDONLY)
        finally:
            os.unlink(name)  # noqa: PTH108 - both have it open; nothing is left when the actor is killed

    def send(self, command: bytes) -> None:
        """Send a pickled command to the process."""
        assert self._process is not None
        self._process.send_pickled(command)

    def receive(self, seconds: float) -> Answer:
        """Return the process's next event, or none after so many seconds, and its output."""
        assert self._process is not None
        try:
            event = self._process.receive_pickled(seconds)
        except EOFError:
            status = self._process.reap()
            return Answer(None, self._read(), status)
        return Answer(event, self._read())

    def terminate(self) -> None:
        """Let the process close its engine and exit."""
        if self._process is not None:
            self._process.terminate()

    def _read(self) -> bytes:
        found = b""
        while block := os.read(self._output, 1 << 16):
            found += block
        return found


def facts(problem: str | None = None) -> Facts:
    """Return the properties of this machine that results depend on."""
    package = Path(__file__).parents[1]
    source = folder_digest(package, lambda name: name.endswith(".py"))[:12]
    own = {"mteb-vllm": __version__, "source of mteb-vllm": source, "python": platform.python_version()}
    return Facts({**own, **versions()}, device(), cores(), problem)


def _files_problem(spec: EngineSpec) -> str | None:
    """Return why an engine's files on this node cannot be used; None if they are those of the other machine."""
    if (problem := _model_problem(spec.model)) is not None:
        return problem
    if spec.has_changed():
        names = " and ".join(f"{name}={spec.args[name]}" for name in spec.folders)
        return f"the files of {names} are missing, or differ from those of the machine that runs the command"
    return None


def _model_problem(model: Model) -> str | None:
    if model.digest is None:
        try:
            find_model(model.name, model.revision)
        except ModelError as error:
            return str(error)
        return None
    if not Path(model.location).is_dir():
        return f"there is no folder {model.location}: a local model has to be at the same path on all nodes"
    if model.has_changed():
        return f"the files in {model.location} differ from those of the machine that runs the command"
    return None


def _node_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a node's environment without what Ray has set, and without what could change results."""
    threading_variables = environment.threading_variables(environ)
    return {
        key: value
        for key, value in environ.items()
        if key not in threading_variables
        and not key.startswith("RAY_")
        and not (key.startswith("VLLM_") and not is_ignored_variable(key))
    }


def _sent_variables(spec: EngineSpec) -> dict[str, str]:
    """Return the variables of this process and of an engine that its process on a node has to start with."""
    outer = environment.outer_variables()
    return {
        **{key: outer[key] for key in _OFFLINE if key in outer},
        **environment.shell_variables(spec.env),
        **environment.threading_variables(outer),
        **environment.threading_variables(spec.env),
    }


class RemoteProcess:
    """A replica's process on a node, as seen from here; see `replicas.ReplicaProcess`.

    Args:
        actor: Its actor.
        log: The file that its output is appended to.
    """

    pid = None

    def __init__(self, actor: ActorHandle, log: Path) -> None:
        self._actor: Any = actor
        self._log = log
        self._status: int | None = None

    def send(self, message: Command) -> None:
        """Send a command."""
        pickled = pickle.dumps(message)
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # `receive` will report that the actor has ended
            self._actor.send.options(concurrency_group="send").remote(pickled)

    def receive(self, seconds: float) -> Event | None:
        """Return the next event; None if there is none within this many seconds.

        Raises:
            EOFError: if the process has ended; with the reason if its actor has.
        """
        import ray

        try:
            answer: Answer = ray.get(self._actor.receive.options(concurrency_group="receive").remote(seconds))
        except ray.exceptions.RayError as error:  # also of a node that is only unavailable: an event may be lost
            raise EOFError(_reason(error)) from None
        if answer.output:
            with self._log.open("ab") as file:
                file.write(answer.output)
        if answer.status is not None:
            self._status = answer.status
            raise EOFError
        if answer.event is None:
            return None
        event: Event = pickle.loads(answer.event)
        return event

    def terminate(self) -> None:
        """Let it close its engine and exit."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            self._actor.terminate.remote()

    def wait(self, seconds: float = 0.0) -> int:
        """Kill its actor, with which it ends; return its exit status."""
        import ray

        with contextlib.suppress(Exception):  # the connection to the cluster may have ended
            ray.kill(self._actor)
        return -signal.SIGKILL if self._status is None else self._status

    def close(self) -> None:
        """Do nothing: the actor has ended."""


class Cluster:
    """A Ray cluster that this process joins.

    Args:
        address: Its address.

    Raises:
        EngineStartError: if it cannot be joined.
    """

    def __init__(self, address: str) -> None:
        self._actors: list[Any] = []
        try:
            check_address(address)
        except ClusterError as error:
            raise EngineStartError(f"engine.ray_address={address}: {error}") from None
        import ray

        if ray.is_initialized():
            what = "this process has joined a Ray cluster already"
            raise EngineStartError(what, "call ray.shutdown() before an engine with ray_address opens")
        try:
            _join(address)
        except Exception as error:  # the errors of `ray.init` have no common type
            raise EngineStartError(
                f"engine.ray_address={address}: {'. '.join(explain(str(error), address))}"
            ) from error

    def start(self, spec: EngineSpec, log: Path) -> Iterator[tuple[RemoteProcess, EngineSpec, str]]:
        """Start the processes of all replicas; yield each with the specification of its engine and its node's name.

        Args:
            spec: The specification of the engine.
            log: The file that their output is appended to.

        Raises:
            EngineStartError: if there is not room for all, or a node cannot run one, or would give other results.
            ModelError: if a node has no such model, or has other files.
        """
        try:
            places = place(_living_nodes(), spec.replicas, gpus_per_engine(spec.args))
        except ClusterError as error:
            raise EngineStartError(f"engine.ray_address={spec.ray_address}: {error}") from None
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        env = _sent_variables(spec)
        groups = {"send": 1, "receive": 1}  # each on a thread of its own, in order
        host = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups=groups)(ReplicaHost)
        for one in places:
            there = NodeAffinitySchedulingStrategy(one.node.id, soft=False)
            made = host.options(num_cpus=one.cpus, num_gpus=one.gpus, scheduling_strategy=there)
            self._actors.append(made.remote())
        own = facts()
        asked = [actor.describe.remote(spec, env) for actor in self._actors]
        found = [cast("Facts", self._ask(question, one.node)) for one, question in zip(places, asked, strict=True)]
        for one, theirs in zip(places, found, strict=True):
            check(theirs, own, one.node)
        for one, theirs, actor in zip(places, found, self._actors, strict=True):
            share = _share(spec, one, theirs.cores)
            self._ask(actor.start.remote(env, share.cores), one.node)
            yield RemoteProcess(actor, log), share.spec, one.node.name

    def _ask(self, question: ObjectRef, node: Node) -> object:
        """Return the answer of a node's actor.

        Raises:
            EngineStartError: if it has not started or has failed.
        """
        import ray

        try:
            answer: object = ray.get(question, timeout=_START_WITHIN)
        except ray.exceptions.GetTimeoutError:
            what = f"{node.name} did not start a replica within {_START_WITHIN:g} s"
            raise EngineStartError(what, "see with `ray status` whether other work holds its cores or GPUs") from None
        except ray.exceptions.RayError as error:
            if "No module named 'mteb_vllm" in str(error):
                what = f"mteb-vllm is not installed in the Python of Ray on {node.name}"
                raise EngineStartError(what, "install it on all nodes, in the same version") from None
            raise EngineStartError(f"{node.name} cannot run a replica: {_reason(error)}") from None
        return answer

    def leave(self) -> None:
        """Kill what is left of the actors, and leave the cluster."""
        import ray

        for actor in self._actors:
            with contextlib.suppress(Exception):  # it has ended
                ray.kill(actor)
        ray.shutdown()


def check(found: Facts, own: Facts, node: Node) -> None:
    """Check that a node would give the same results as this machine.

    Raises:
        EngineStartError: if its packages or its device differ.
        ModelError: if it does not have the model.
    """
    different = [
        f"{name} {found.versions.get(name) or 'missing'} instead of {version or 'none'}"
        for name, version in own.versions.items()
        if found.versions.get(name) != version
    ]
    if different:
        raise EngineStartError(f"{node.name} has {', '.join(different)}", "install the same versions on all nodes")
    if found.device != own.device:
        what = f"{node.name} has the device {found.device}, and this machine, which the record names, has {own.device}"
        raise EngineStartError(what, "run the command on a node with the same device, and use only such nodes")
    if found.problem is not None:
        raise ModelError(f"on {node.name}: {found.problem}")


def print_nodes(address: str) -> None:
    """Print the living nodes of a cluster as JSON, or an error's message; in a process of its own."""
    try:
        _join(address)
        answer: object = [asdict(node) for node in _living_nodes()]
    except Exception as error:  # the errors of `ray.init` have no common type
        answer = f"{error}" or type(error).__name__
    print(json.dumps(answer), flush=True)
    os._exit(0)  # shutting Ray down may take long, and says nothing more


def _living_nodes() -> list[Node]:
    import ray

    return [
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _join(address: str) -> None:
    """Join a cluster without a trace in this process: its environment, its signal handlers, its terminal, its logging."""
    import ray

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    before = {key: os.environ.get(key) for key in (*CHOOSING, *NO_STATISTICS)}
    for key in CHOOSING:
        os.environ.pop(key, None)
    os.environ.update(NO_STATISTICS)
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        if main:
            signal.signal(signal.SIGTERM, handler)


def _share(spec: EngineSpec, where: Place, found: Sequence[int]) -> Share:
    """Return the share of a replica in its node.

    Args:
        spec: The specification of the engine.
        where: The replica's place.
        found: Ids of the cores of its machine.
    """
    if where.gpus:
        return Share(single(spec, {}, 1))  # Ray has set CUDA_VISIBLE_DEVICES
    return share_of_cores(spec, split(found[: where.machine_cpus], where.parts)[where.part], where.parts)


def _reason(error: Exception) -> str:
    """Return the reason of an actor's end, or the error of its method, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0 if not lines or "Actor" in type(error).__name__ else -1] if lines else type(error).__name__
