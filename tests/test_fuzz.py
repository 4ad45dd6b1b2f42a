"""Damaged files of finished runs never lead to a wrong score or to a traceback.

The store is made once by real runs of a tiny model on small demo tasks. Then files are damaged at random, one at a time, and
everything that reads them is exercised: a report, a plan, and the same runs again.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from test_loading_runs import STS12, write_result, write_run

from mteb_vllm import catalogue
from mteb_vllm.catalogue import mteb_catalogue, vllm_catalogue
from mteb_vllm.models.files import clear_model_cache
from mteb_vllm.report.answer import conclusion
from mteb_vllm.report.comparison import compare
from mteb_vllm.report.loading import read_runs
from mteb_vllm.report.page import page
from mteb_vllm.report.tables import comparison_csv, comparison_markdown, print_comparison
from mteb_vllm.results.failures import Failure, save_failures
from mteb_vllm.tasks import demo
from mteb_vllm.util.console import Console
from mteb_vllm.util.files import read_with_checksum
from tiny_models import tiny_encoder

SEED = 12
JSON_VALUES: list[Any] = [None, True, 0, 0.99, -1, 10**400, "x", [], {}, [[]], {"x": 1}, float("nan"), "\ud800", "="]

Damage = Callable[[random.Random, Path, list[Path]], None]


def flip_bits(chance: random.Random, path: Path, _: list[Path]) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 5)) if content else 0):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    put(path, bytes(content))


def flip_digit(chance: random.Random, path: Path, _: list[Path]) -> None:
    content = bytearray(path.read_bytes())
    if digits := [at for at, byte in enumerate(content) if byte in b"0123456789"]:
        at = chance.choice(digits)
        content[at] = ord(str((int(chr(content[at])) + chance.randrange(1, 10)) % 10))
    put(path, bytes(content))


def truncate(chance: random.Random, path: Path, _: list[Path]) -> None:
    content = path.read_bytes()
    put(path, content[: chance.randrange(len(content) + 1)])


def empty(chance: random.Random, path: Path, _: list[Path]) -> None:
    put(path, chance.choice([b"", b"{}", b"null", b"[]", b"[" * 100_000, b"\xff\xfe", b"\0" * 100]))


def other_value(chance: random.Random, path: Path, _: list[Path]) -> None:
    """Replace a value in a JSON file by one of any type."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return truncate(chance, path, _)
    at = content
    while isinstance(at, (dict, list)) and at:
        key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], (dict, list)) or not at[key] or chance.random() < 0.2:
            at[key] = chance.choice(JSON_VALUES)
            break
        at = at[key]
    put(path, json.dumps(content, indent=chance.choice((None, 2))).encode())
    return None


def swap(chance: random.Random, path: Path, files: list[Path]) -> None:
    other = chance.choice([file for file in files if file.suffix == path.suffix])
    mine, others = path.read_bytes(), other.read_bytes()
    put(path, others)
    put(other, mine)


def copy_over(chance: random.Random, path: Path, files: list[Path]) -> None:
    put(path, chance.choice(files).read_bytes())


def copy_to_other_name(chance: random.Random, path: Path, files: list[Path]) -> None:
    names = [file.name for file in files if file.suffix == path.suffix]
    put(path.with_name(chance.choice([*names, f"copy{path.suffix}"])), path.read_bytes())


def remove(chance: random.Random, path: Path, _: list[Path]) -> None:
    path.unlink()


def rename(chance: random.Random, path: Path, _: list[Path]) -> None:
    path.rename(path.with_name(chance.choice([f"{path.name}.bak", f"x{path.name}", path.name.upper()])))


def other_kind(chance: random.Random, path: Path, _: list[Path]) -> None:
    path.unlink()
    chance.choice(
        [path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path.name), lambda: path.symlink_to("nowhere")]
    )()


DAMAGES: list[Damage] = [
    flip_bits, flip_bits, flip_digit, flip_digit, truncate, empty, other_value, other_value, swap, copy_over,
    copy_to_other_name, remove, rename, other_kind,
]  # fmt: skip


def put(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink(missing_ok=True)  # it may be a link to the file of the undamaged store
    path.write_bytes(content)


def shown_scores(*paths: Path) -> dict[tuple[str, str], float]:
    """Make all forms of a report except pictures; return its scores by folder and task."""
    comparison = compare(read_runs([path for path in paths if path.exists()]))
    print_comparison(Console(file=io.StringIO(), width=200), comparison)
    assert (
        comparison_markdown(comparison) and comparison_csv(comparison) and page(comparison, conclusion(comparison), "x")
    )
    found = {}
    for row in comparison.rows:
        for name, score in row.scores.items():
            if score is not None:
                found[row.point.folder.as_posix().partition("/out/")[2], name] = score
        assert row.point.tasks or row.point.failures, f"the report does not explain {row.point.folder}"
    return found


def groups(files: list[Path], root: Path) -> list[list[Path]]:
    """Return the files by kind, so that rare kinds are damaged as often as frequent ones."""
    found: dict[tuple[str, ...], list[Path]] = {}
    for file in files:
        parts = file.relative_to(root).parts
        kind = file.name if parts[0] in ("runs", "sweeps") or "meta" in file.name else file.suffix
        found.setdefault((*parts[: 2 if parts[0] == "settings" else 1], kind), []).append(file)
    return list(found.values())


def clone(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, copy_function=os.link, symlinks=True))


def test_damaged_records_and_results_show_no_wrong_score(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "out"
    for number, score in enumerate((0.71, 0.72, 0.73)):
        tasks = [replace(STS12, main_score=score), replace(STS12, name="STS13", main_score=score + 0.1)]
        folder = write_run(
            whole / "sweeps" / "s" / str(number), *tasks, point=number, overrides=[f"engine.dtype={number}"]
        )
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text("x: 1\n")
    truth = shown_scores(whole / "sweeps")
    chance = random.Random(SEED)
    for number in range(25):
        out = clone(whole, tmp_path / str(number) / "out")
        files = sorted(out.rglob("run.json"))
        damage, path = chance.choice(DAMAGES), chance.choice(files)
        damage(chance, path, files)
        found = shown_scores(out / "sweeps")
        assert found.items() <= truth.items(), f"{number}: {damage.__name__} {path}"
    # Results of other programs have no digest: only wrong types and names can be detected.
    for name in ("STS12", "STS13"):
        write_result(tmp_path / "results" / "org__m" / "abc", name, {"test": {"default": 0.7}})
    truth = shown_scores(tmp_path / "results")
    for number in range(25):
        out = clone(tmp_path / "results", tmp_path / f"results{number}")
        files = sorted(out.rglob("*.json"))
        damage = chance.choice([one for one in DAMAGES if one not in (flip_bits, flip_digit, other_value)])
        damage(chance, chance.choice(files), files)
        found = {key: score for key, score in shown_scores(out).items() if score != 0.7}
        assert not found, f"{number}: {damage.__name__}"


@dataclass
class Store:
    """The files of real runs.

    Attributes:
        root: Their folder; `results.dir` is `out` in it.
        configs: The configurations of a run that evaluates and of one that reranks.
        records: The records of these runs.
        truth: All scores that a report of the undamaged files shows.
        made: The content of the catalogues.
    """

    root: Path
    configs: list[Any]
    records: list[Any]
    truth: dict[tuple[str, str], float]
    made: dict[str, bytes]


def run_again(config: Any, out: Path, name: str, point: int | None = None) -> Any:
    from mteb_vllm.runner import run_config

    folder = out / name
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    clear_model_cache()
    here = replace(config, results=replace(config.results, dir=str(out)))
    return run_config(here, None, folder, point=point)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    from mteb_vllm.engines.base import close_engines
    from mteb_vllm.preflight.command import check

    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        made = {}
        for kind, read in (("mteb", mteb_catalogue), ("vllm", vllm_catalogue)):
            read()
            path = catalogue.catalogue_path(kind)
            assert path is not None
            made[kind] = read_with_checksum(path)
        patch.setattr(catalogue, "_make", made.__getitem__)
        docs = demo.docstrings()[::9]
        patch.setattr(demo, "docstrings", lambda: docs)
        for name, value in {"N_PACKAGES": 4, "N_TRAIN": 6, "N_TEST": 6, "N_MODULES": 3, "N_PER_MODULE": 8}.items():
            patch.setattr(demo, name, value)
        patch.setattr(demo.StdlibDocsClustering, "max_documents_per_cluster", 100)
        patch.setenv("MTEB_VLLM_CACHE", str(root / "whole" / "cache"))
        catalogue.mteb_catalogue.cache_clear()
        catalogue.vllm_catalogue.cache_clear()
        model = tiny_encoder(root / "tiny")
        base = [
            "model=custom",
            f"model.path={model}",
            "model.name=org/tiny",
            "engine=sentence_transformers",
            "embedding_cache.use=always",
        ]
        out = root / "whole" / "out"
        base += [f"results.dir={out}", "embedding_cache.use=always"]
        texts = "tasks.names=[StdlibDocsClassification,StdlibDocsClustering]"
        rerank = ["pipeline=rerank", "tasks=demo_retrieval", "pipeline.scoring=cosine", "pipeline.top_k=3"]
        configs = [check([*base, *more])[0].config for more in ([texts], rerank)]
        records = [run_again(config, out, f"runs/day/{at}-run") for at, config in enumerate(configs)]
        assert all(record.status == "ok" for record in records), [record.failures for record in records]
        for number, more in enumerate((["prompts=none"], ["prompts=e5"])):
            run_again(check([*base, texts, *more])[0].config, out, f"sweeps/sweep/{number}", point=number)
        save_failures(
            out, records[0].fingerprint, asdict(configs[0].tasks), [Failure("task", "it failed once", "STS12")], []
        )
        yield Store(root, configs, records, shown_scores(out / "runs", out / "sweeps", out / "results"), made)
        close_engines()
    catalogue.mteb_catalogue.cache_clear()
    catalogue.vllm_catalogue.cache_clear()


def assert_same(record: Any, true: Any, what: str) -> None:
    """Assert that a run has the same scores as before."""
    assert record.failure is None, f"{what}: {record.failure}"
    for task, of in zip(record.tasks, true.tasks, strict=True):
        assert task.failure is None, f"{what}: {task.failure}"
        assert task.main_score == pytest.approx(of.main_score, abs=1e-6), f"{what}: {task.name}"
        for name in ("first_stage", "ceiling"):  # unknown for a cached result, but never wrong
            assert getattr(task, name) in (None, pytest.approx(getattr(of, name), abs=1e-6)), (
                f"{what}: {task.name} {name}"
            )


@pytest.mark.slow
def test_500_damages_show_no_wrong_score(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(int(os.environ.get("MTEB_VLLM_SEED", SEED)))
    problems = []
    for number in range(int(os.environ.get("MTEB_VLLM_DAMAGES", "500"))):
        place = clone(store.root / "whole", tmp_path / str(number))
        out, cache = place / "out", place / "cache"
        every = groups(sorted(path for path in out.rglob("*") if path.is_file() and ".locks" not in path.parts), out)
        files = chance.choice([*every, sorted(cache.iterdir())])
        damage, path = chance.choice(DAMAGES), chance.choice(files)
        damage(chance, path, files)
        monkeypatch.setenv("MTEB_VLLM_CACHE", str(cache))
        if cache in path.parents:
            catalogue.mteb_catalogue.cache_clear()
            catalogue.vllm_catalogue.cache_clear()
        try:
            read_everything(store, out, path)
        except Exception as error:
            problems.append(f"{number}: {damage.__name__} {path.relative_to(place)}: {type(error).__name__}: {error}")
            print(problems[-1], traceback.format_exc(), sep="\n", flush=True)
        shutil.rmtree(place)
    assert not problems, "\n".join(problems)


def read_everything(store: Store, out: Path, path: Path) -> None:
    """Read a store in which one file is damaged: by a report, by a plan, and by the same runs again."""
    from mteb_vllm.preflight.command import Point
    from mteb_vllm.sweep.planning import add_task_states, plan_points

    found = shown_scores(out / "runs", out / "sweeps", out / "results")
    wrong = {key: score for key, score in found.items() if score != store.truth.get(key, score)}
    new = {key for key in found.keys() - store.truth.keys() if found[key] not in store.truth.values()}
    assert not wrong and not new
    clear_model_cache()
    configs = [replace(config, results=replace(config.results, dir=str(out))) for config in store.configs]
    planned = add_task_states(plan_points([Point((), config, False) for config in configs]))
    assert not any(point.failure for point in planned)
    if path.relative_to(out.parent).parts[1] in ("runs", "sweeps"):
        return  # no run reads the record of another
    if "embeddings" in path.parts:  # they are read only without a result
        shutil.rmtree(out / "results")
    for at, (config, true) in enumerate(zip(store.configs, store.records, strict=True)):
        assert_same(run_again(config, out, f"runs/again/{at}"), true, "again")
    again = shown_scores(out / "runs" / "again")
    first = [score for (folder, _), score in store.truth.items() if folder.startswith("runs/")]
    assert sorted(again.values()) == pytest.approx(sorted(first), abs=1e-6)
