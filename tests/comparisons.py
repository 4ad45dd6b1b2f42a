"""Comparisons of any number of invented points, for tests of pages and charts."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

from mteb_vllm.report.comparison import Comparison, Point, TaskScore, compare
from mteb_vllm.results.failures import Failure

TYPES = ("Retrieval", "Classification", "Clustering", "STS", "PairClassification", "Reranking")
AXES = {
    "prompts.query": [f"Instruct: find what answers, in way {n}\nQuery: " for n in range(60)],
    "engine.dtype": ["float32", "bfloat16", "float16"],
    "prompts": ["none", "e5"],
    "engine.max_num_seqs": ["32", "128", "512"],
}
LOG = [
    "INFO 11-24 17:40:18 [cpu_worker.py:94] auto thread-binding list (id, physical core): [(0, 0), (1, 1)]",
    "ERROR 11-24 17:40:20 [core.py:842] EngineCore failed to start.",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "68719476736 bytes. Error code 12 (Cannot allocate memory)",
]


def failure(message: str = "the process ended (SIGKILL) while encoding", log: list[str] | None = None) -> Failure:
    advice = "lower engine.gpu_memory_utilization or engine.max_model_len, or take a smaller dtype"
    return Failure("out_of_memory_loading", message, None, LOG if log is None else log, advice)


def points(
    n: int,
    tasks: int = 3,
    *,
    failed: int = 0,
    reranked: bool = False,
    speeds: bool = True,
    axes: dict[str, list[str]] = AXES,
) -> list[Point]:
    """Return `n` points with `tasks` tasks each; the last `failed` ones failed."""
    chance = random.Random(7)
    names = [f"Stdlib{'Docs' * (at % 4)}{TYPES[at % 6]}{at}" for at in range(tasks)]
    base = {name: chance.uniform(0.3, 0.8) for name in names}
    made = []
    for at, values in enumerate(itertools.islice(itertools.product(*axes.values()), n)):
        shift, pace = (0.0, 180.0) if at == 0 else (chance.gauss(-0.002, 0.002), chance.lognormvariate(5.3, 0.35))
        lost = at >= n - failed
        scores = {name: base[name] + shift + chance.gauss(0, 0.001) for name in names}
        scored = [_task(name, score, pace, at, reranked, speeds) for name, score in scores.items()]
        made.append(
            Point(
                name=str(at),
                folder=Path(f"outputs/sweeps/{at}"),
                overrides=dict(zip(axes, values, strict=True)),
                facts={"model": "sentence-transformers/all-MiniLM-L6-v2", "revision": "local-b5c9b60c7a7a", "device": "cpu"}
                | {f"engine.field_{number}": str(number) for number in range(20)},
                engine=values[0],
                tasks=[] if lost else scored,
                seconds=31.5 + at,
                peak_memory_mb=1431.0 + at,
                failures=[failure()] if lost else [],
            )
        )  # fmt: skip
    return made


def mixed_points() -> list[Point]:
    """Return four points that embed texts and four that score pairs, with the same tasks."""
    pairs = points(8, reranked=True)[4:]
    return points(4) + [replace(point, engine=f"pairs {point.engine}") for point in pairs]


def equal_points(n: int) -> list[Point]:
    """Return points with identical scores."""
    made = points(n)
    return [
        replace(
            point, tasks=[replace(task, score=of.score) for task, of in zip(point.tasks, made[0].tasks, strict=True)]
        )
        for point in made
    ]


def result_points(*places: tuple[str, str]) -> list[Point]:
    """Return points of results in mteb's layout, one for each model and experiment."""
    made = []
    for point, (model, experiment) in zip(points(len(places), speeds=False), places, strict=True):
        facts = {"model": model, "revision": "b5c9b60c7a7a", "source": "results"}
        facts |= {"experiment": experiment} if experiment else {}
        name = f"{model}/{experiment}" if experiment else model
        made.append(replace(point, name=name, source="results", overrides={}, facts=facts, engine=""))
    return made


def comparison(n: int, tasks: int = 3, **more: object) -> Comparison:
    return compare(points(n, tasks, **more))  # type: ignore[arg-type]


def _task(name: str, score: float, pace: float, at: int, reranked: bool, speeds: bool) -> TaskScore:
    # Every seventh point has almost all of its embeddings in the cache.
    computed = 40 if at % 7 == 6 else 2000
    return TaskScore(
        name,
        type=name.strip("0123456789").removeprefix("Stdlib").replace("Docs", ""),
        score=score,
        first_stage=score - 0.02 - 0.001 * (at % 3) if reranked else None,
        ceiling=0.92 if reranked else None,
        unit="pairs" if reranked else "texts",
        computed=computed if speeds else None,
        stored=2000 - computed if speeds else None,
        tokens=computed * 38 if speeds else None,
        seconds=computed / pace if speeds else None,
    )
