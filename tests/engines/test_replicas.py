"""Replicas on real vLLM: the results of one engine, and what happens when replicas or their parent are killed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
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
from mteb_vllm.engines import arguments
from mteb_vllm.engines import shares as machine_shares
from mteb_vllm.engines.arguments import replicas_problem, resolve_arguments
from mteb_vllm.engines.base import EngineSpec, TokensRefusedError, close_engines, is_open, open_engine
from mteb_vllm.engines.replica_process import _portable
from mteb_vllm.engines.replicas import ReplicatedEngine
from mteb_vllm.engines.shares import shares
from mteb_vllm.errors import ConfigError, EngineError, EngineStartError
from mteb_vllm.inference.encoding import encode_texts, run_texts
from mteb_vllm.inference.scoring import score_pairs
from mteb_vllm.models.files import find_model
from mteb_vllm.pipelines.throughput.measure import measure
from mteb_vllm.pipelines.throughput.requests import Requests
from mteb_vllm.preflight.command import check
from mteb_vllm.results.failures import failure_from_exception
from mteb_vllm.results.measurements import Lengths, ThroughputRecord
from mteb_vllm.util.machine import cores

needs_two_cores = pytest.mark.skipif(len(cores()) < 2, reason="NOT TESTED: two replicas need two cores")

TEXTS = [
    "", "a", "naïve CAFÉ", "word " * 600,
    *(f"return item number {at} of a list " + "and so on " * (at % 60) for at in range(1200)),
]  # fmt: skip
QUERIES = [f"how to sort {at // 8} lists" for at in range(400)]
DOCUMENTS = [f"use sorted on item {at} " + "a list of words " * (at % 40) for at in range(400)]


def spec_of(folder: Path, count: int, convert: Any = "embed") -> EngineSpec:
    values = {"preset": "vllm_cpu", "replicas": count}
    return EngineSpec(find_model(f"org/{folder.name}", None, str(folder)), convert, *resolve_arguments(values, {}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    root = tmp_path_factory.mktemp("models")
    yield {"embed": tiny_models.tiny_encoder(root / "tiny"), "classify": rerankers.small("bert", root, 128)}
    close_engines()


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, Any]:
    """The embeddings and the scores of single engines."""
    vectors, work = encode_texts(open_engine(spec_of(folders["embed"], 1)), TEXTS, len(TEXTS))
    scores, pair_work = score_pairs(open_engine(spec_of(folders["classify"], 1, "classify")), QUERIES, DOCUMENTS)
    close_engines()
    return {"embed": (vectors, work), "classify": (scores, pair_work)}


@pytest.fixture
def two(folders: dict[str, Path], alone: dict[str, Any]) -> ReplicatedEngine:
    """Two replicas that embed; tests share them until one of them breaks them."""
    engine = open_engine(spec_of(folders["embed"], 2))
    assert isinstance(engine, ReplicatedEngine)
    if engine.replicas_lost:
        engine.close()
        engine = open_engine(spec_of(folders["embed"], 2))
        assert isinstance(engine, ReplicatedEngine)
    return engine


def pids(engine: ReplicatedEngine) -> list[int]:
    assert engine.llm is not None
    return [replica.process.pid for replica in engine.llm.all]


def replica_processes(parent: psutil.Process) -> list[psutil.Process]:
    """Return the processes of all replicas of a process."""
    found = []
    for one in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one] if "replica_process" in " ".join(one.cmdline()) else []
    return found


@contextlib.contextmanager
def killing(count: int) -> Iterator[list[int]]:
    """Kill so many replicas after the first results of each call inside the block; yield a list of those that were killed."""
    distribute, killed = ReplicatedEngine._distribute, list[int]()

    def distributed(self: ReplicatedEngine, *args: Any) -> Any:
        for at, done in enumerate(distribute(self, *args)):
            if at == 3 and not killed:
                killed.extend(pids(self)[:count])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            yield done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicatedEngine, "_distribute", distributed)
        yield killed


def is_gone(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


@needs_two_cores
@pytest.mark.vllm
def test_embeddings_are_those_of_one_engine(two: ReplicatedEngine, alone: dict[str, Any]) -> None:
    expected, work = alone["embed"]
    seen: list[tuple[int, int]] = []
    found, two_work = encode_texts(two, TEXTS, len(TEXTS), progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(found, expected)
    assert two.takes_text is None and two.replicas_lost == 0
    assert (two_work.tokens, two_work.truncated, two_work.blank) == (work.tokens, work.truncated, work.blank)
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    times = [psutil.Process(pid).cpu_times().user for pid in pids(two)]
    assert [len(psutil.Process(pid).cpu_affinity()) for pid in pids(two)] == [len(cores()) // 2] * 2
    encode_texts(two, [f"{text} again" for text in TEXTS], len(TEXTS))
    after = [psutil.Process(pid).cpu_times().user for pid in pids(two)]
    assert all(later > before for later, before in zip(after, times, strict=True)), "both compute"


@needs_two_cores
@pytest.mark.vllm
def test_engines_that_get_text_return_the_same(two: ReplicatedEngine, alone: dict[str, Any]) -> None:
    two.feed, two.takes_text = None, "to compare"
    try:
        found, work = encode_texts(two, TEXTS, len(TEXTS))
    finally:
        two.takes_text = None
    np.testing.assert_array_equal(found, alone["embed"][0])
    assert work.tokens == alone["embed"][1].tokens


@needs_two_cores
@pytest.mark.vllm
def test_phases_add_up(two: ReplicatedEngine) -> None:
    with two.time_phases() as phases:
        started = time.perf_counter()
        assert len(run_texts(two, TEXTS[1:])) == len(TEXTS) - 1
        seconds = time.perf_counter() - started
    assert phases.tokenise + phases.engine + phases.collect == pytest.approx(seconds, rel=0.05)
    assert phases.tokenise > 0 and phases.engine > phases.collect


@needs_two_cores
@pytest.mark.vllm
def test_throughput_is_that_of_all_and_of_each_replica(two: ReplicatedEngine) -> None:
    requests, figures = Requests(TEXTS[4:]), ThroughputRecord("texts", len(TEXTS) - 4, Lengths("tasks"))
    how: dict[str, Any] = {"steps": 1, "seconds": 0.0, "repeats": 1, "notify": lambda _: None}
    measure(two, requests, figures, batch_sizes=[1, 8], **how)
    assert figures.saturated is not None
    rates = figures.saturated.by_replica
    assert len(rates) == 2 and min(rates) > 0
    assert sum(rates) == pytest.approx(figures.saturated.requests_per_second)


@needs_two_cores
@pytest.mark.vllm
def test_inputs_may_depend_on_earlier_results(two: ReplicatedEngine) -> None:
    """None lets the engines compute those that they have."""
    found: list[int] = []

    def tokens() -> Iterator[list[int] | None]:
        for at in range(3):
            yield [101, 2000 + at, 102]
            while len(found) <= at:
                yield None

    blocks = []
    for positions, block in two.embed_tokens(tokens()):
        found += positions
        blocks.append(block)
    assert found == [0, 1, 2]
    together = dict(zip(*next(two.embed_tokens([[101, 2000 + at, 102] for at in range(3)])), strict=True))
    np.testing.assert_allclose(np.concatenate(blocks), [together[at] for at in range(3)], atol=1e-6)


@needs_two_cores
@pytest.mark.vllm
def test_an_error_of_a_call_has_its_type_and_leaves_the_engines_open(two: ReplicatedEngine) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'texts'"):
        two._call("tokenize")
    assert two.llm is not None and two.replicas_lost == 0 and len(two.tokenize(["a cat"])) == 1


def test_results_and_fingerprint_do_not_depend_on_replicas(folders: dict[str, Path]) -> None:
    one, other = (spec_of(folders["embed"], count) for count in (1, 2))
    assert one.fingerprint == other.fingerprint and one.settings() == other.settings()
    assert one.identity == one.fingerprint != other.identity


@needs_two_cores
@pytest.mark.vllm
def test_an_open_engine_is_known_by_its_replicas(two: ReplicatedEngine) -> None:
    assert is_open(two.spec) and not is_open(replace(two.spec, replicas=1))
    assert open_engine(two.spec) is two


@needs_two_cores
@pytest.mark.vllm
def test_a_replica_that_is_killed_loses_nothing_and_the_last_one_closes_the_engine(
    two: ReplicatedEngine, alone: dict[str, Any]
) -> None:
    victim, last = pids(two)
    with killing(1) as killed:
        found, _ = encode_texts(two, TEXTS, len(TEXTS))
    assert killed == [victim] and is_gone(victim) and two.replicas_lost == 1
    np.testing.assert_array_equal(found, alone["embed"][0])
    again, _ = encode_texts(two, TEXTS, len(TEXTS))
    np.testing.assert_array_equal(again, found)
    os.kill(last, signal.SIGKILL)  # while it is idle
    with pytest.raises(EngineError, match=r"all replicas \(2\) died, the last one with SIGKILL") as caught:
        encode_texts(two, TEXTS, len(TEXTS))
    assert failure_from_exception(caught.value, "STS12").kind == "engine_died"
    assert two.llm is None and not is_open(two.spec) and is_gone(last)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineStartError("it does not open", "lower it"), EngineStartError),
        (TokensRefusedError("no tokens"), TokensRefusedError),
        (MemoryError("no memory"), MemoryError),
        (json.JSONDecodeError("broken", "{", 1), ValueError),
        (subprocess.TimeoutExpired("vllm", 1.0), RuntimeError),
        (ValueError(threading.Lock()), ValueError),
    ],
)
def test_errors_of_a_replica_keep_their_type_and_message(error: Exception, kind: type[Exception]) -> None:
    found = pickle.loads(pickle.dumps(_portable(error)))
    assert type(found) is kind and str(error) in str(found)
    assert getattr(found, "advises", None) == getattr(error, "advises", None)


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.slow
def test_an_error_of_an_engine_is_raised_and_closes_all(two: ReplicatedEngine) -> None:
    processes = pids(two)
    with pytest.raises(EngineError, match=r"vLLM's engine failed: ") as caught:
        list(two.embed_tokens([[1] * (two.max_model_len + 1)]))
    assert not isinstance(caught.value, EngineStartError)
    assert two.llm is None and all(map(is_gone, processes))


@needs_two_cores
@pytest.mark.vllm
def test_scores_are_those_of_one_engine(folders: dict[str, Path], alone: dict[str, Any]) -> None:
    expected, work = alone["classify"]
    with VllmCrossEncoderWrapper("org/bert", path=str(folders["classify"]), replicas=2) as model:
        engine = model.engine
        found, two_work = score_pairs(engine, QUERIES, DOCUMENTS)
        # The pairs of a step, and so their order of summation, differ.
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert engine.takes_text is None and np.std(found) > 0
        assert (two_work.tokens, two_work.truncated) == (work.tokens, work.truncated)
        engine.feed, engine.takes_text = None, "to compare"
        np.testing.assert_allclose(score_pairs(engine, QUERIES, DOCUMENTS)[0], expected, atol=1e-6)
        record = model.engine_record()
        assert record is not None and (record.replicas, record.replicas_lost) == (2, 0)
        processes = [process.pid for process in engine.processes]
    assert all(map(is_gone, processes))


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.slow
def test_replicas_that_do_not_open_are_all_closed(folders: dict[str, Path]) -> None:
    with pytest.raises(EngineStartError, match=r"vLLM failed to start with org/tiny: .* max_model_len"):
        VllmEncoderWrapper("org/tiny", path=str(folders["embed"]), replicas=2, max_model_len=100_000)
    assert not replica_processes(psutil.Process())


@needs_two_cores
@pytest.mark.vllm
def test_a_replica_that_is_killed_while_it_opens_fails_the_start(folders: dict[str, Path]) -> None:
    close_engines()

    def kill() -> None:
        while len(found := replica_processes(psutil.Process())) < 2:
            time.sleep(0.05)
        found[1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EngineStartError, match=r"replica \d ended \(SIGKILL\) while its engine opened") as caught:
        open_engine(spec_of(folders["embed"], 2))
    killer.join()
    assert failure_from_exception(caught.value).kind == "engine_start"
    assert not replica_processes(psutil.Process())


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("opening", signal.SIGKILL),
        pytest.param("open", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("open", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_when_the_parent_ends(
    folders: dict[str, Path], when: str, number: signal.Signals, tmp_path: Path
) -> None:
    code = f"""
        import sys, time
        from pathlib import Path
        sys.path[:] = {sys.path!r}
        import test_replicas

        test_replicas.open_engine(test_replicas.spec_of(Path({str(folders["embed"])!r}), 2))
        Path({str(tmp_path / "open")!r}).touch()
        time.sleep(600)
    """
    path = [str(Path(__file__).parent), *sys.path]
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    found = started_replicas(parent, lambda: when == "opening" or (tmp_path / "open").exists())
    parent.send_signal(number)
    parent.wait()
    assert all(is_gone(process.pid) for process in found)


def started_replicas(parent: subprocess.Popen[bytes], reached: Callable[[], bool]) -> list[psutil.Process]:
    """Wait until a process has two replicas and something is reached; return their processes."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and parent.poll() is None:
        found = replica_processes(psutil.Process(parent.pid))
        if len(found) == 2 and reached():
            return found
        time.sleep(0.2)
    parent.kill()
    raise AssertionError("the replicas did not start")


def test_replicas_write_to_a_log_that_is_appended_to(tmp_path: Path) -> None:
    code = "from mteb_vllm.engines.replicas import run_log; print(run_log())"
    found = []
    for mode in ("w", "a"):
        with (tmp_path / mode).open(mode) as file:
            found.append(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file, check=True))
    assert [os.fsdecode(done.stdout).strip() for done in found] == ["None", str(tmp_path / "a")]


def test_threads_of_replicas_end_with_their_engine() -> None:
    close_engines()
    assert not [one for one in threading.enumerate() if one.name.startswith("mteb-vllm replica")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "engine.replicas=0: must be a number of engines, 1 or more, or auto"),
        ("-1", "engine.replicas=-1: must be a number of engines, 1 or more, or auto"),
        ("many", "engine.replicas=many: must be a number of engines, 1 or more, or auto"),
        ("1.5", "engine.replicas=1.5: must be a number of engines, 1 or more, or auto"),
        ("true", "engine.replicas=true: must be a number of engines, 1 or more, or auto"),
        ("1000", f"engine.replicas=1000: each replica needs a core, and there are fewer\n    Cores: {len(cores())}."),
    ],
)
def test_bad_numbers_of_replicas(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "gpu_count", lambda: 0)
    with pytest.raises(ConfigError) as caught:
        check(["model=minilm", "tasks=demo_retrieval", f"engine.replicas={value}"])
    (mistake,) = caught.value.mistakes
    assert str(mistake) == message
    with pytest.raises(ValueError, match=r"replicas="):
        VllmEncoderWrapper("org/none", replicas=value if value in ("many", "true") else float(value))  # type: ignore[arg-type]


def test_sentence_transformers_has_no_replicas() -> None:
    base = ["model=minilm", "tasks=demo_retrieval", "engine=sentence_transformers"]
    for value in ("1", "auto"):
        check([*base, f"engine.replicas={value}"])
    with pytest.raises(ConfigError, match=r"engine\.replicas=2: sentence-transformers has no replicas"):
        check([*base, "engine.replicas=2"])


def test_auto_is_one_replica_for_each_group_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"preset": "vllm", "replicas": "auto"}
    monkeypatch.setattr(arguments, "gpu_count", lambda: 0)
    assert resolve_arguments(values, {})[4] == 1
    monkeypatch.setattr(arguments, "gpu_count", lambda: 8)
    assert resolve_arguments(values, {})[4] == 8
    assert resolve_arguments({**values, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {})[4] == 2
    assert replicas_problem(100, "vllm") is None, "replicas may share a GPU"
    assert resolve_arguments({}, {})[4] == resolve_arguments({"replicas": 1}, {})[4] == 1
    assert "replicas" not in resolve_arguments(values, {})[0]


def test_cores_and_memory_are_divided(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_shares, "visible_gpus", list)
    monkeypatch.setattr(machine_shares, "cores", lambda: [1, 2, 5, 6, 7])
    spec = replace(spec_of(folders["embed"], 1), replicas=2)
    one, other = shares(spec)
    assert (one.cores, other.cores) == ([1, 2], [5, 6, 7]) and one.turn == other.turn
    assert one.spec.env["VLLM_CPU_OMP_THREADS_BIND"] == "1,2" and one.spec.replicas == 1
    assert one.spec.args["gpu_memory_utilization"] == spec.args["gpu_memory_utilization"] / 2
    split = shares(replace(spec, args={**spec.args, "tensor_parallel_size": 2}))
    assert [share.spec.env["VLLM_CPU_OMP_THREADS_BIND"] for share in split] == ["1|2", "5|6,7"]
    own = shares(replace(spec, env={**spec.env, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}))
    assert all(share.spec.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and not share.cores for share in own)


def test_gpus_and_their_memory_are_divided(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_shares, "visible_gpus", lambda: ["0", "1", "2", "7"])
    spec = spec_of(folders["embed"], 1)
    spec = replace(spec, args={"max_num_seqs": 8})

    def divided(count: int, **args: int) -> list[tuple[str, float | None, int]]:
        return [
            (share.spec.env["CUDA_VISIBLE_DEVICES"], share.spec.args.get("gpu_memory_utilization"), share.turn)
            for share in shares(replace(spec, replicas=count, args={**spec.args, **args}))
        ]

    assert divided(2) == [("0", None, 0), ("1", None, 0)]
    assert divided(2, tensor_parallel_size=2) == [("0,1", None, 0), ("2,7", None, 0)]
    assert divided(5) == [("0", 0.46, 0), ("1", None, 0), ("2", None, 0), ("7", None, 0), ("0", 0.46, 1)]
    own = shares(replace(spec, replicas=2, env={"CUDA_VISIBLE_DEVICES": "3"}))
    assert [share.spec.env["CUDA_VISIBLE_DEVICES"] for share in own] == ["3", "3"]
    assert [share.spec.args["gpu_memory_utilization"] for share in own] == [0.46, 0.46]


@pytest.fixture(scope="module")
def base(folders: dict[str, Path]) -> list[str]:
    """Overrides of a run of a demo task."""
    return [f"model.path={folders['embed']}", "tasks.names=[StdlibDocsClassification]", "engine.max_model_len=32"]


@pytest.fixture(scope="module")
def single(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record of a run with one engine."""
    return run([*base, f"results.dir={tmp_path_factory.mktemp('single')}"], show=False)


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.slow
def test_a_run_that_loses_a_replica_has_the_scores_of_one_engine(base: list[str], single: Any, tmp_path: Path) -> None:
    close_engines()
    with killing(1) as killed:
        record: Any = run([*base, f"results.dir={tmp_path}", "engine.replicas=2"], show=False)
    assert len(killed) == 1 and record.status == "ok"
    assert record.scores == single.scores and record.fingerprint == single.fingerprint
    assert (record.engine.replicas, record.engine.replicas_lost) == (2, 1)
    assert [text for text in record.warnings if text.startswith("1 of 2 replicas of the engine died")]
    assert record.peak_memory_mb.engine_processes > 0
    cached: Any = run([*base, f"results.dir={single.config['results']['dir']}", "engine.replicas=2"], show=False)
    assert cached.tasks[0].status == "cached" and cached.engine is None


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.slow
def test_a_run_whose_replicas_all_die_fails_and_the_same_command_completes_it(
    base: list[str], single: Any, tmp_path: Path
) -> None:
    close_engines()
    command = [*base, f"results.dir={tmp_path}", "engine.replicas=2"]
    with killing(2) as killed:
        record: Any = run(command, show=False)
    (failure,) = record.failures
    assert len(killed) == 2 and record.status == "failed" and failure.kind == "engine_died"
    assert "all replicas (2) died, the last one with SIGKILL" in failure.message
    again: Any = run(command, show=False)
    assert again.status == "ok" and again.tasks[0].status == "computed"
    assert again.scores == single.scores and (again.engine.replicas, again.engine.replicas_lost) == (2, 0)


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.slow
def test_both_stages_of_reranking_use_replicas(folders: dict[str, Path], tmp_path: Path) -> None:
    rerank = [
        "pipeline=rerank", "tasks=demo_retrieval", "model=custom", "model.kind=cross_encoder", "pipeline.top_k=3",
        f"model.path={folders['classify']}", "model.name=test/bert", "pipeline/first_stage=dense",
        f"pipeline.first_stage.model.path={folders['embed']}",
    ]  # fmt: skip
    records: list[Any] = [
        run(
            [*rerank, f"engine.replicas={count}", f"pipeline.first_stage.engine.replicas={count}",
             f"results.dir={tmp_path / str(count)}"],
            show=False,
        )
        for count in (2, 1)
    ]  # fmt: skip
    assert [record.status for record in records] == ["ok", "ok"]
    assert [(one.engine.replicas, one.first_stage.engine.replicas) for one in records] == [(2, 2), (1, 1)]
    two, one = (record.tasks[0] for record in records)
    assert (two.main_score, two.first_stage, two.ceiling) == (one.main_score, one.first_stage, one.ceiling)
    assert records[0].fingerprint == records[1].fingerprint


@needs_two_cores
@pytest.mark.vllm
@pytest.mark.slow
def test_a_sweep_that_is_terminated_leaves_no_replica(base: list[str], tmp_path: Path) -> None:
    command = [*base, f"results.dir={tmp_path}", "engine.replicas=2", "prompts=none,e5"]
    parent = subprocess.Popen([sys.executable, "-m", "mteb_vllm", "-m", *command], stdout=subprocess.DEVNULL)
    found = started_replicas(parent, lambda: True)
    time.sleep(5)
    parent.terminate()
    assert parent.wait(120) == 128 + signal.SIGTERM
    assert all(is_gone(process.pid) for process in found)
