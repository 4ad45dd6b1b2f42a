"""Replicas on a Ray cluster: places and errors without Ray; and runs on a real cluster of two nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import rerankers
import tiny_models
from mteb_vllm import VllmCrossEncoderWrapper, VllmEncoderWrapper, run
from mteb_vllm.engines import arguments, ray_cluster
from mteb_vllm.engines.arguments import resolve_arguments
from mteb_vllm.engines.base import EngineSpec, close_engines, open_engine
from mteb_vllm.engines.ray_cluster import (
    ClusterError,
    Node,
    Place,
    explain,
    find_nodes,
    own_variables,
    place,
    replicas_of,
)
from mteb_vllm.engines.ray_replica import ReplicaHost, _node_variables, _sent_variables, _share, check, facts
from mteb_vllm.engines.replicas import ReplicatedEngine
from mteb_vllm.errors import ConfigError, EngineStartError, ModelError
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.files import Model, find_model
from mteb_vllm.preflight import command

try:
    import ray as _ray
except ImportError:
    _ray = None  # type: ignore[assignment]

needs_ray = pytest.mark.skipif(_ray is None, reason="NOT TESTED: a Ray cluster, since ray is not installed")

BASE = ["model=minilm", "tasks=demo_retrieval"]


def node(name: str, cpus: float = 0, gpus: float = 0, host: str | None = None) -> Node:
    return Node(f"id-{name}", host or name, f"10.0.0.{ord(name[0])}", cpus, gpus)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_models.tiny_encoder(tmp_path_factory.mktemp("models") / "tiny")
    close_engines()


def spec_of(folder: Path, address: str | None, count: int = 1) -> EngineSpec:
    values = {"preset": "vllm_cpu", "replicas": count}
    spec = EngineSpec(find_model(f"org/{folder.name}", None, str(folder)), "embed", *resolve_arguments(values, {}))
    return replace(spec, ray_address=address)


def mistakes(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        command.check([*BASE, *overrides])
    return [str(mistake) for mistake in caught.value.mistakes]


def test_replicas_are_spread_over_groups_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "cpu_build", lambda: False)
    nodes = [node("a", 64, 4), node("b", 64, 8), node("head", 16)]
    assert [replicas_of(nodes, size) for size in (1, 2, 3, 4, 8, 16)] == [12, 6, 3, 3, 1, 0]
    assert [(one.node.host, one.gpus, one.cpus) for one in place(nodes, 3, 4)] == [
        ("a", 4, 0),
        ("b", 4, 0),
        ("b", 4, 0),
    ]
    assert [one.node.host for one in place(nodes, 4, 1)] == ["a", "a", "b", "b"]
    with pytest.raises(ClusterError) as caught:
        place(nodes, 13, 1)
    assert str(caught.value) == (
        "the cluster has room for 12, since each needs 1 GPU. Its nodes: a (10.0.0.97) with 4 GPUs, "
        "b (10.0.0.98) with 8 GPUs, head (10.0.0.104) with 0 GPUs."
    )
    with pytest.raises(ClusterError, match="room for 0, since each needs 16 GPUs of one node"):
        place(nodes, 1, 16)


def test_cores_of_a_machine_are_divided_among_its_nodes_and_replicas(folder: Path) -> None:
    nodes = [node("a", 8), node("b", 4, gpus=1), node("c", 1, host="b")]
    assert replicas_of(nodes, 1) == 3, "one for each node, on vLLM's CPU build"
    places = place(nodes, 6, 1)
    assert [(one.node.id[3:], one.cpus, one.part, one.parts, one.machine_cpus) for one in places] == [
        ("a", 2, 0, 3, 8), ("a", 2, 1, 3, 8), ("a", 2, 2, 3, 8), ("b", 2, 0, 3, 5), ("b", 2, 1, 3, 5), ("c", 1, 2, 3, 5),
    ]  # fmt: skip
    own = spec_of(folder, "auto", 6)
    shares = [_share(own, one, [2, 3, 5, 7, 8, 9]) for one in places]
    assert [list(share.cores) for share in shares] == [[2, 3], [5, 7], [8, 9], [2], [3, 5], [7, 8]]
    assert [share.spec.env["VLLM_CPU_OMP_THREADS_BIND"] for share in shares[3:]] == ["2", "3,5", "7,8"]
    assert {(share.spec.replicas, share.spec.ray_address) for share in shares} == {(1, None)}
    assert shares[0].spec.args["gpu_memory_utilization"] == own.args["gpu_memory_utilization"] / 3
    on_gpu = _share(replace(own, args={}), Place(nodes[1], 2, 0), [2, 3])
    assert not on_gpu.cores and "VLLM_CPU_OMP_THREADS_BIND" not in on_gpu.spec.env and not on_gpu.spec.args
    with pytest.raises(
        ClusterError, match=r"room for 13, since each needs 1 core\. Its nodes: a \(10.0.0.97\) with 8 cores"
    ):
        place(nodes, 14, 1)


def test_the_number_of_replicas_follows_from_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "find_nodes", lambda address: (node("a", 8), node("b", 8)))
    values = {"preset": "vllm_cpu", "ray_address": "a:6379"}
    for chosen, count in ((None, 2), ("auto", 2), (1, 1), (5, 5)):
        assert resolve_arguments({**values, "replicas": chosen}, {})[4:] == (count, "a:6379")
    assert "ray_address" not in resolve_arguments(values, {})[0]
    command.check([*BASE, "engine.ray_address=a:6379", "engine.replicas=16"])


def test_more_than_the_cluster_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "cpu_build", lambda: False)
    monkeypatch.setattr(arguments, "find_nodes", lambda address: (node("a", 8, 2), node("b", 8, 2)))
    address = "engine.ray_address=a:6379"
    assert mistakes(address, "engine.replicas=5") == [
        f"{address}: the cluster has room for 4, since each needs 1 GPU\n"
        "    Its nodes: a (10.0.0.97) with 2 GPUs, b (10.0.0.98) with 2 GPUs."
    ]
    assert "room for 0, since each needs 4 GPUs of one node" in mistakes(address, "engine.tensor_parallel_size=4")[0]
    assert "Ray assigns the GPUs" in mistakes(address, "+engine.env.CUDA_VISIBLE_DEVICES=1")[0]
    assert "start their workers themselves" in mistakes(address, "engine.distributed_executor_backend=ray")[0]
    assert "must be a number of engines" in mistakes(address, "engine.replicas=0")[0]
    with pytest.raises(ValueError, match=r"ray_address='a:6379': the cluster has room for 4"):
        VllmEncoderWrapper("org/none", replicas=5, ray_address="a:6379")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ray://a:10001", "is an address for Ray Client, through which replicas cannot be fed"),
        (
            "local",
            "is not an address of a Ray cluster\n    Allowed: auto (the cluster of this machine), host:port, or null.",
        ),
        ("6379", "must be text, not a whole number"),
        ("127.0.0.1:1", "no Ray cluster answers at this address (Connection refused)\n    Start one: ray start --head"),
        ("127.0.0.1:99999", "no Ray cluster answers at this address"),
    ],
)
def test_bad_addresses(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_ray_installed", lambda: True)
    started = time.monotonic()
    (found,) = mistakes(f"engine.ray_address='{value}'" if "/" in value else f"engine.ray_address={value}")
    assert found.startswith(f"engine.ray_address={value}: {message}")
    assert time.monotonic() - started < 15


def test_an_address_of_another_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_ray_installed", lambda: True)
    monkeypatch.setattr(ray_cluster, "_LIST_WITHIN", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = f"127.0.0.1:{service.getsockname()[1]}"
        (found,) = mistakes(f"engine.ray_address={address}")
    assert found.startswith(f"engine.ray_address={address}: no Ray cluster has answered at this address within 0.001 s")


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_ray_installed", lambda: False)
    assert mistakes("engine.ray_address=auto") == [
        "engine.ray_address=auto: needs the package ray\n    Install it: pip install 'mteb-vllm[ray]'"
    ]
    assert (
        "sentence-transformers has no replicas"
        in mistakes("engine=sentence_transformers", "engine.ray_address=auto")[0]
    )
    with pytest.raises(ValueError, match="sentence-transformers has no replicas on a cluster"):
        VllmEncoderWrapper("org/none", backend="sentence_transformers", ray_address="auto")
    first_stage = ["pipeline=rerank", "pipeline.scoring=cosine", "pipeline/first_stage=dense"]
    (found,) = mistakes(*first_stage, "pipeline.first_stage.engine.ray_address=auto")
    assert found.startswith("pipeline.first_stage.engine.ray_address=auto: needs the package ray")


def test_errors_of_ray_are_explained() -> None:
    mismatch = """Version mismatch: The cluster was started with:
    Ray: 2.48.0
    Python: 3.12.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.13
"""
    what, _ = explain(mismatch, "auto")
    assert what == "the cluster runs Ray 2.48.0, Python 3.12.1, but this process Ray 2.60.0, Python 3.11.13"
    assert (
        explain("Could not find any running Ray instance. Please", "auto")[0]
        == "no Ray cluster is running on this machine"
    )
    assert explain("\nfirst\nsecond", "a:1")[0] == "Ray cannot join this cluster: first"


def test_the_shell_chooses_no_cluster_and_no_results() -> None:
    assert own_variables({"RAY_ADDRESS": "a:1", "HOME": "/h"}) == {"HOME": "/h", "RAY_USAGE_STATS_ENABLED": "0"}
    outer = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "RAY_JOB_ID": "1", "VLLM_X": "1", "VLLM_CACHE_ROOT": "/c"}
    assert _node_variables(outer) == {"PATH": "/bin", "VLLM_CACHE_ROOT": "/c"}


def test_what_nodes_get_of_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_USE_DEEP_GEMM", "0")
    monkeypatch.setenv("VLLM_API_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    found = _sent_variables(replace(spec_of(folder, "auto"), env={"KMP_BLOCKTIME": "7"}))
    assert (found["HF_HUB_OFFLINE"], found["VLLM_USE_DEEP_GEMM"], found["KMP_BLOCKTIME"]) == ("1", "0", "7")
    assert "hidden" not in found.values()


def test_nodes_that_would_give_other_results_are_refused() -> None:
    own = facts()
    assert own.versions["mteb-vllm"] and own.versions["source of mteb-vllm"]
    check(own, own, node("a"))
    other = own._replace(versions={**own.versions, "vllm": "0.1 (vllm)", "torch": None})
    with pytest.raises(
        EngineStartError, match=r"^a \(10.0.0.97\) has vllm 0.1 \(vllm\) instead of .*, torch missing instead"
    ):
        check(other, own, node("a"))
    with pytest.raises(EngineStartError, match="has the device cuda: H200, and this machine"):
        check(own._replace(device="cuda: H200"), own, node("a"))
    with pytest.raises(ModelError, match=r"on a \(10.0.0.97\): no such model"):
        check(own._replace(problem="no such model"), own, node("a"))


def test_a_node_without_the_model_or_with_other_weights(folder: Path, tmp_path: Path) -> None:
    def problem(model: Model) -> str:
        return str(ReplicaHost().describe(EngineSpec(model, "embed"), {}).problem)

    model = find_model("org/tiny", None, str(shutil.copytree(folder, tmp_path / "tiny")))
    assert problem(model) == "None"
    (tmp_path / "tiny" / "vocab.txt").write_text("changed")
    assert "differ from those of the machine that runs the command" in problem(model)
    shutil.rmtree(tmp_path / "tiny")
    assert f"there is no folder {tmp_path}/tiny" in problem(model)
    on_hub = replace(model, name="org/none", digest=None, revision="a" * 40)
    assert "is not in the local cache" in problem(on_hub)


def test_a_node_with_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("a b")
    spec = EngineSpec(find_model("org/tiny", None, str(folder)), "embed", {"tokenizer": str(tokenizer)})
    assert ReplicaHost().describe(spec, {}).problem is None
    (tokenizer / "vocab.txt").write_text("a c")
    what = "are missing, or differ from those of the machine that runs the command"
    assert ReplicaHost().describe(spec, {}).problem == f"the files of tokenizer={tokenizer} {what}"


def test_results_do_not_depend_on_the_cluster(folder: Path) -> None:
    here, there = spec_of(folder, None), spec_of(folder, "auto")
    assert here.settings() == there.settings() and here.identity != there.identity
    assert there.replicated and not here.replicated


class Nodes:
    """A cluster of two nodes with one core each on this machine."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self._started: list[subprocess.Popen[bytes]] = []
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
        self._start(*head, "--node-ip-address=127.0.0.1")
        self.add()

    def add(self) -> None:
        """Start the second node; the cluster must have noticed that an earlier one has stopped."""
        self._wait(1)
        self._start(f"--address={self.address}", "--node-ip-address=127.0.0.2")
        self._wait(2)

    def _start(self, *options: str) -> None:
        small = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
        self._started.append(
            subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *small],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "RAY_USAGE_STATS_ENABLED": "0",
                    MARK: MARKED,
                },
            )
        )

    def _wait(self, count: int) -> None:
        deadline, found = time.monotonic() + 300, 0
        while time.monotonic() < deadline and found != count:
            ray_cluster.clear_cluster_cache()
            with contextlib.suppress(ClusterError):
                found = len(find_nodes(self.address))
        ray_cluster.clear_cluster_cache()
        assert found == count

    def stop(self) -> None:
        """Kill the node that was started last, as when its power fails."""
        node = self._started.pop()
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        node.wait()

    def close(self) -> None:
        while self._started:
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    yield found
    close_engines()
    found.close()


@pytest.fixture(scope="module")
def base(folder: Path) -> list[str]:
    return [f"model.path={folder}", "tasks.names=[StdlibDocsClassification]", "engine.max_model_len=32"]


@pytest.fixture(scope="module")
def single(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record of a run with one engine in this process."""
    return run([*base, f"results.dir={tmp_path_factory.mktemp('single')}"], show=False)


# Inherited by all processes of the nodes: other tests may run replicas on this machine at the same time.
MARK, MARKED = "MTEB_VLLM_TESTS_NODES", str(os.getpid())


def replica_processes() -> list[psutil.Process]:
    """Return the processes of replicas on the nodes, of any parent."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "engines.replica_process import main" in " ".join(one.cmdline()) and one.environ().get(MARK) == MARKED:
                found.append(one)
    return found


@contextlib.contextmanager
def after_some_chunks(act: Callable[[], None]) -> Iterator[list[int]]:
    """Call a function once, after the first results of a call inside the block; yield a list that is then not empty."""
    distribute, done = ReplicatedEngine._distribute, list[int]()

    def distributed(self: ReplicatedEngine, *args: Any) -> Any:
        for at, result in enumerate(distribute(self, *args)):
            if at == 3 and not done:
                done.append(at)
                act()
            yield result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicatedEngine, "_distribute", distributed)
        yield done


def none_left(seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not replica_processes():
            return True
        time.sleep(0.5)
    return False


@needs_ray
@pytest.mark.vllm
@pytest.mark.slow
def test_a_run_on_two_nodes_has_the_scores_of_one_engine(
    nodes: Nodes, base: list[str], single: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_engines()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    handler = signal.getsignal(signal.SIGTERM)
    record: Any = run([*base, f"results.dir={tmp_path}", f"engine.ray_address={nodes.address}"], show=False)
    assert record.status == "ok" and record.scores == single.scores and record.fingerprint == single.fingerprint
    assert (record.engine.replicas, record.engine.replicas_lost) == (2, 0)
    assert record.engine.ray_address == nodes.address and len(set(record.engine.nodes)) == 2
    close_engines()
    assert none_left() and signal.getsignal(signal.SIGTERM) == handler and os.environ["RAY_ADDRESS"] == "127.0.0.1:1"


@needs_ray
@pytest.mark.vllm
@pytest.mark.slow
def test_the_work_of_a_node_that_stops_is_done_by_the_other(
    nodes: Nodes, base: list[str], single: Any, tmp_path: Path
) -> None:
    close_engines()
    with after_some_chunks(nodes.stop) as stopped:
        record: Any = run([*base, f"results.dir={tmp_path}", f"engine.ray_address={nodes.address}"], show=False)
    close_engines()
    nodes.add()
    assert stopped and record.status == "ok" and record.scores == single.scores
    assert (record.engine.replicas, record.engine.replicas_lost) == (2, 1)
    assert [text for text in record.warnings if text.startswith("1 of 2 replicas of the engine died")]


@needs_ray
@pytest.mark.vllm
@pytest.mark.slow
def test_replicas_that_all_die_fail_the_run_and_the_same_command_completes_it(
    nodes: Nodes, base: list[str], single: Any, tmp_path: Path
) -> None:
    close_engines()
    killed: list[int] = []

    def kill() -> None:
        for process in replica_processes():
            killed.append(process.pid)
            process.kill()

    override = [*base, f"results.dir={tmp_path}", f"engine.ray_address={nodes.address}", "engine.replicas=2"]
    with after_some_chunks(kill):
        record: Any = run(override, show=False)
    (failure,) = record.failures
    assert len(killed) == 2 and failure.kind == "engine_died"
    assert "all replicas (2) died, the last one with SIGKILL" in failure.message
    again: Any = run(override, show=False)
    assert again.status == "ok" and again.scores == single.scores


@needs_ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_command_ends(
    nodes: Nodes, base: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    close_engines()
    assert none_left()
    code = f"""
        import sys
        sys.path[:] = {sys.path!r}
        from mteb_vllm.cli import main
        main()
    """
    overrides = [*base, f"results.dir={tmp_path}", f"engine.ray_address={nodes.address}"]
    shown = (tmp_path / "shown").open("w+")
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *overrides], stdout=shown, stderr=shown, cwd=tmp_path
    )
    deadline = time.monotonic() + 300
    while len(replica_processes()) < 2 and time.monotonic() < deadline and parent.poll() is None:
        time.sleep(0.2)
    assert len(replica_processes()) == 2, (tmp_path / "shown").read_text()
    time.sleep(5)
    parent.send_signal(number)
    status = parent.wait(120)
    assert none_left()
    assert status == (128 + number if number == signal.SIGINT else -number)
    # Nothing of Ray's own.
    assert not re.search(r"worker\.py|raylet|\(pid=|ReplicaHost", (tmp_path / "shown").read_text())


@needs_ray
@pytest.mark.vllm
@pytest.mark.slow
def test_a_cross_encoder_scores_on_both_nodes(nodes: Nodes, tmp_path: Path) -> None:
    close_engines()
    path = str(rerankers.small("bert", tmp_path, 128))
    queries = [f"how to sort {at // 8} lists" for at in range(400)]
    documents = [f"use sorted on item {at} " + "a list of words " * (at % 40) for at in range(400)]
    with VllmCrossEncoderWrapper("org/bert", path=path) as model:
        expected, work = score_pairs(model.engine, queries, documents)
    with VllmCrossEncoderWrapper("org/bert", path=path, ray_address=nodes.address) as model:
        found, other = score_pairs(model.engine, queries, documents)
        assert len(model.engine.computed_by) == 2 and min(model.engine.computed_by) > 0
    # The pairs of a step, and so their order of summation, differ.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (other.tokens, other.truncated) == (work.tokens, work.truncated)
    assert none_left()


@needs_ray
@pytest.mark.vllm
@pytest.mark.slow
def test_a_node_with_other_weights_is_refused(nodes: Nodes, folder: Path, tmp_path: Path) -> None:
    close_engines()
    spec = spec_of(shutil.copytree(folder, tmp_path / "tiny"), nodes.address, 2)
    (tmp_path / "tiny" / "vocab.txt").write_text("changed")
    with pytest.raises(
        ModelError, match=r"^on .* \(.*\): the files in .*tiny differ from those of the machine that runs"
    ):
        open_engine(spec)
    assert none_left(1)


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_another_version(nodes: Nodes) -> None:
    code = """
        import json, sys, ray
        from ray.experimental.internal_kv import _internal_kv_get as get, _internal_kv_put as put
        ray.init(sys.argv[1], log_to_driver=False)
        key, space = b"CLUSTER_METADATA", b"cluster"
        found = json.loads(get(key, namespace=space))
        found["ray_version"] = sys.argv[2] if len(sys.argv) > 2 else ray.__version__
        put(key, json.dumps(found).encode(), overwrite=True, namespace=space)
    """
    kept = [sys.executable, "-c", textwrap.dedent(code), nodes.address]
    subprocess.run([*kept, "2.0.0"], check=True)
    try:
        (found,) = mistakes(f"engine.ray_address={nodes.address}")
    finally:
        subprocess.run(kept, check=False)
    assert "the cluster runs Ray 2.0.0, Python 3" in found and "Install the same versions on all nodes" in found
