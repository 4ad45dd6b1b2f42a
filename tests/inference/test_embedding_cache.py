"""The embedding cache: each embedding is computed once, damaged ones are never used, and the size limit is kept."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

import store_writer
from mteb_vllm.errors import NonFiniteError
from mteb_vllm.inference.embedding_cache.cache import EmbeddingCache
from mteb_vllm.inference.embedding_cache.index import Index
from mteb_vllm.inference.embedding_cache.segments import segment_size
from mteb_vllm.inference.encoding import encode_texts
from store_writer import DIM, text, vectors

AMPLE = 10**9


def fill(space: Any, numbers: range) -> None:
    keys = [space.key(text(number)) for number in numbers]
    space.add(keys, vectors(numbers), np.array([number % 3 == 0 for number in numbers]))


def look_up(space: Any, numbers: Any) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the texts that are found, their vectors (-1 for the others), and whether they are marked as truncated."""
    space.refresh()
    out = np.full((len(numbers), space._dim), -1, dtype=np.float32)
    found, cut = space.look_up([space.key(text(number)) for number in numbers], out, range(len(numbers)))
    return [number for number, is_found in zip(numbers, found, strict=True) if is_found], out, cut


def check(space: Any, numbers: Any) -> list[int]:
    """Return the texts that are found, and assert that each has its own vector."""
    found, out, cut = look_up(space, numbers)
    places = {number: at for at, number in enumerate(numbers)}
    rows = [places[number] for number in found]
    expected = np.add.outer(np.array(found, dtype=np.float32), np.arange(space._dim, dtype=np.float32) / space._dim)
    assert (out[rows] == expected).all()
    assert (cut[rows] == (np.array(found, dtype=int) % 3 == 0)).all()
    return found


def disk_usage(root: Path) -> int:
    total = 0
    # A file that is renamed meanwhile may be listed twice; its inode number identifies it.
    seen = set()
    for folder, _, files in os.walk(root):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                stat = Path(folder, file).stat()
                total += stat.st_size if stat.st_ino not in seen else 0
                seen.add(stat.st_ino)
    return total


def test_written_embeddings_are_found_by_this_cache_and_by_the_next_one(tmp_path: Path) -> None:
    space = EmbeddingCache(tmp_path, AMPLE).space("engine", DIM)
    for begin in (0, 100, 200, 230, 231):
        fill(space, range(begin, begin + {200: 30, 230: 1}.get(begin, 100)))
    for one in (space, EmbeddingCache(tmp_path, AMPLE).space("engine", DIM)):
        numbers = random.Random(1).sample(range(-50, 400), 450)
        assert sorted(check(one, numbers)) == list(range(331))
        _, out, _ = look_up(one, [-7, 5])
        assert (out[0] == -1).all() and out[1, 0] == 5
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"] * 5


def test_another_engine_or_another_text_is_another_embedding(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, AMPLE)
    one, other = cache.space("one", 8), cache.space("other", 8)
    assert cache.space("one", 8) is one and one.folder != other.folder
    assert len({one.key("a"), other.key("a"), one.key("query: a"), one.key("a ")}) == 4


def test_embeddings_depend_on_every_setting_of_an_engine() -> None:
    from mteb_vllm.engines.base import Engine

    def engine(dim: int = 8, normalized: Any = True, **settings: Any) -> str:
        spec = SimpleNamespace(settings=lambda: {"args": {"dtype": "float32"}, **settings})
        made = SimpleNamespace(spec=spec, dim=dim, resolved={"normalized": normalized})
        return str(Engine.vectors_fingerprint.fget(made))  # type: ignore[attr-defined]

    others = [
        engine(dim=4),
        engine(normalized=False),
        engine(args={"dtype": "bfloat16"}),
        engine(versions={"vllm": "1"}),
    ]
    assert engine() == engine() and len({engine(), *others}) == 5


def test_every_text_is_computed_once(tmp_path: Path, fake_engine: Any) -> None:
    store = EmbeddingCache(tmp_path, AMPLE)
    long = " ".join(["word"] * 300)  # longer than the context
    texts = ["a", "b", "a", long, long]
    engine = fake_engine()
    first, work = encode_texts(engine, texts, 5, prefix="query: ", cache=store.space("x", engine.dim))
    assert (work.texts, work.computed, work.stored, work.truncated) == (5, 3, 0, 2) and work.tokens > 0
    again = fake_engine()
    known = EmbeddingCache(tmp_path, AMPLE).space("x", engine.dim)
    second, work = encode_texts(again, [*texts, "c"], 6, prefix="query: ", cache=known)
    assert again.given == ["query: c"] and (second[:5] == first).all()
    assert (work.texts, work.computed, work.stored, work.truncated, work.tokens) == (6, 1, 3, 2, 4)
    assert work.store_seconds > 0
    _, work = encode_texts(again, ["a"], 1, cache=known)
    assert work.stored == 0 and again.given == ["query: c", "a"]  # without the prompt it is another text


def test_nan_is_never_written(tmp_path: Path, fake_engine: Any) -> None:
    engine = fake_engine(broken="bad")
    space = EmbeddingCache(tmp_path, AMPLE).space("x", engine.dim)
    with pytest.raises(NonFiniteError):
        encode_texts(engine, ["good", "bad"], 2, cache=space)
    assert len(space) == 0


@pytest.mark.parametrize("damage", ["truncated", "emptied", "longer", "flipped", "another"])
def test_a_damaged_file_is_named_quarantined_and_computed_again(tmp_path: Path, damage: str, fake_engine: Any) -> None:
    engine = fake_engine()
    texts = [f"{at} {at}" for at in range(500)]
    whole, _ = encode_texts(engine, texts, 500, chunk_size=100, cache=EmbeddingCache(tmp_path, AMPLE).space("x", 384))
    path = sorted((tmp_path / "embeddings").glob("x-*/*"))[2]
    content = path.read_bytes()
    opened = EmbeddingCache(tmp_path, AMPLE)
    if damage in ("truncated", "flipped"):
        opened.space("x", 384).refresh()  # the file was intact when it was opened
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "emptied": b"",
            "longer": content + b"0",
            "flipped": content[:-40_000] + bytes([content[-40_000] ^ 1]) + content[-39_999:],
            "another": sorted(path.parent.iterdir())[0].read_bytes()[:1000],
        }[damage]
    )
    again = fake_engine()
    embeddings, work = encode_texts(again, texts, 500, chunk_size=100, cache=opened.space("x", 384))
    assert (embeddings == whole).all()
    assert (work.computed, work.stored) == (100, 400)
    renamed = path.with_name(f"{path.name}.broken")
    assert opened.quarantined == [renamed] and renamed.exists() and not path.exists()
    _, work = encode_texts(again, texts, 500, cache=EmbeddingCache(tmp_path, AMPLE).space("x", 384))
    assert work.stored == 500


@pytest.mark.parametrize(
    "region", ["keys", "truncated", "checksums", "vectors", "digest", "no digest", "shapes", "types"]
)
def test_every_part_of_a_segment_is_verified(tmp_path: Path, region: str) -> None:
    fill(EmbeddingCache(tmp_path, AMPLE).space("engine", DIM), range(100))
    (path,) = (tmp_path / "embeddings").glob("engine-*/*")
    arrays: dict[str, Any] = load(path.read_bytes())
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    if region in arrays:
        changed = arrays[region].copy().view(np.uint8).reshape(-1)
        changed[len(changed) // 2] ^= 1
        arrays[region] = changed.view(arrays[region].dtype).reshape(arrays[region].shape)
    elif region == "digest":
        metadata["digest"] = metadata["digest"][::-1]
    elif region == "shapes":
        arrays["truncated"] = arrays["truncated"].reshape(1, -1)
    elif region == "types":
        arrays["keys"] = arrays["keys"].view(np.int64)
    path.write_bytes(save(arrays, None if region == "no digest" else metadata))
    store = EmbeddingCache(tmp_path, AMPLE)
    found = check(store.space("engine", DIM), range(100))
    assert found == [] and store.quarantined == [path.with_name(f"{path.name}.broken")]


def test_a_segment_of_vectors_of_another_length_is_not_read(tmp_path: Path) -> None:
    fill(EmbeddingCache(tmp_path, AMPLE).space("engine", DIM), range(100))
    store = EmbeddingCache(tmp_path, AMPLE)
    assert check(store.space("engine", DIM // 2), range(100)) == [] and len(store.quarantined) == 1


def test_twenty_killed_writers_leave_nothing_wrong_and_keep_the_limit(tmp_path: Path) -> None:
    # Every other one is killed while one of its files is half-written, as far as that can be observed.
    draw = random.Random(20_261_124)
    max_bytes, found, killed_at_work, gone = 12 * segment_size(store_writer.SEGMENT, DIM), 0, 0, 0
    for number in range(20):
        first = number * 10**6
        command = [sys.executable, store_writer.__file__, str(tmp_path), str(max_bytes), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout is not None and writer.stdout.readline()
                deadline = time.monotonic() + draw.uniform(0, 0.3)
                while time.monotonic() < deadline or (number % 2 and not any(tmp_path.glob("embeddings/*/*.part"))):
                    assert disk_usage(tmp_path) <= max_bytes
            finally:
                writer.send_signal(signal.SIGKILL)
        killed_at_work += any(tmp_path.glob("embeddings/*/*.part"))
        store = EmbeddingCache(tmp_path, max_bytes)
        numbers = [at for n in range(number + 1) for at in range(n * 10**6, n * 10**6 + 40_000, 59)]
        for engine in store_writer.ENGINES:
            found_here = check(store.space(engine, DIM), numbers)
            found += len(found_here)
            gone += number > 0 and not any(at < 40_000 for at in found_here)
            assert not store.quarantined
        assert disk_usage(tmp_path) <= max_bytes
    assert found and gone and killed_at_work, (found, gone, killed_at_work)
    fill(EmbeddingCache(tmp_path, max_bytes).space("one", DIM), range(-10, 0))
    assert not list(tmp_path.glob("embeddings/*/*.part"))


def test_the_least_recently_used_files_are_evicted(tmp_path: Path) -> None:
    size = segment_size(100, DIM)
    before = EmbeddingCache(tmp_path, AMPLE)
    for at, name in enumerate(("old", "older", "own")):
        space = before.space(name, DIM)
        fill(space, range(100))
        (path,) = space.folder.iterdir()
        os.utime(path, (1_000_000 + (at != 1), 1_000_000 + (at != 1)))
    store = EmbeddingCache(tmp_path, 3 * size)
    own = store.space("own", DIM)
    assert len(check(own, range(100))) == 100  # in use now, and so not evicted
    fill(own, range(100, 200))
    assert not list((tmp_path / "embeddings").glob("older-*/*")) and list((tmp_path / "embeddings").glob("old-*/*"))
    fill(own, range(200, 300))
    fill(own, range(300, 400))
    assert own.stopped is not None and "embedding_cache.max_bytes" in own.stopped and own.passed == 100
    assert sorted(check(own, range(400))) == list(range(300))
    assert disk_usage(tmp_path) <= 3 * size
    assert check(before.space("old", DIM), range(100)) == []  # evicted ones are not found, which is no error


def test_a_reader_sees_what_another_writes(tmp_path: Path) -> None:
    reader = EmbeddingCache(tmp_path, AMPLE).space("engine", DIM)
    assert check(reader, range(10)) == []
    fill(EmbeddingCache(tmp_path, AMPLE).space("engine", DIM), range(10))
    assert check(reader, range(10)) == list(range(10))


def test_an_error_of_the_machine_does_not_quarantine_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(EmbeddingCache(tmp_path, AMPLE).space("engine", DIM), range(10))
    store = EmbeddingCache(tmp_path, AMPLE)
    store.space("engine", DIM).refresh()
    monkeypatch.setattr(Path, "open", fails(OSError(24, "Too many open files")))
    assert check(store.space("engine", DIM), range(10)) == [] and not store.quarantined
    monkeypatch.undo()
    assert len(check(EmbeddingCache(tmp_path, AMPLE).space("engine", DIM), range(10))) == 10


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = EmbeddingCache(tmp_path, AMPLE).space("engine", DIM)

    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    fill(space, range(10))
    assert "No space left" in str(space.stopped) and list(space.folder.iterdir()) == []
    monkeypatch.undo()
    usage = SimpleNamespace(total=10**9, used=10**9, free=10**8)
    monkeypatch.setattr("mteb_vllm.inference.embedding_cache.cache.shutil.disk_usage", lambda _: usage)
    other = EmbeddingCache(tmp_path, AMPLE).space("engine", DIM)
    fill(other, range(10))
    assert other.written == 0 and other.stopped is not None, "results need room, too"


def test_a_lowered_limit_is_kept_and_nothing_is_evicted_in_vain(tmp_path: Path) -> None:
    size = segment_size(100, DIM)
    for at in range(4):
        fill(EmbeddingCache(tmp_path, AMPLE).space(f"engine{at}", DIM), range(100))
    fill(EmbeddingCache(tmp_path, 3 * size).space("engine9", DIM), range(1000))  # never fits
    assert 2 * size < disk_usage(tmp_path) <= 3 * size, "only files beyond the limit are evicted"


def fails(error: Exception) -> Any:
    def raising(*_: Any, **__: Any) -> Any:
        raise error

    return raising


def test_a_cache_that_cannot_be_written_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "embeddings").write_text("in the way")
    space = EmbeddingCache(tmp_path, AMPLE).space("engine", DIM)
    fill(space, range(10))
    assert space.stopped is not None and check(space, range(10)) == []


def test_memory_holds_thirty_bytes_a_vector(tmp_path: Path) -> None:
    writer, n = EmbeddingCache(tmp_path, AMPLE).space("engine", 1), 200_000
    for begin in range(0, n, 10_000):
        numbers = range(begin, begin + 10_000)
        keys = [writer.key(text(number)) for number in numbers]
        writer.add(keys, np.zeros((len(keys), 1), dtype=np.float32), np.zeros(len(keys), dtype=np.bool_))
    tracemalloc.start()
    reader = EmbeddingCache(tmp_path, AMPLE).space("engine", 1)
    reader.refresh()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(reader) == n and held < 31 * n and peak < 120 * n, (held / n, peak / n)


def test_many_segments_are_merged_for_searching(tmp_path: Path) -> None:
    index = Index()
    keys = np.random.default_rng(0).integers(2**63, size=(200, 2), dtype=np.uint64)
    for at in range(200):
        index.add(str(at), keys[at : at + 1], [str(at) for at in range(200)])
        sizes = [len(part) for part in index._parts]
        assert all(one >= 2 * other for one, other in itertools.pairwise(sizes))
    assert len(index) == 200 and len(index._parts) < 8
    found = {(int(number), name) for name, at, _ in index.search(keys) for number in at}
    assert found == {(at, str(at)) for at in range(200)}


def test_a_folder_that_only_this_cache_has_written_to_is_not_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looked = EmbeddingCache(tmp_path, AMPLE), []
    files = EmbeddingCache._files
    monkeypatch.setattr(EmbeddingCache, "_files", lambda self, pattern: looked.append(pattern) or files(self, pattern))
    space = store.space("engine", DIM)
    for begin in range(0, 60, 10):
        fill(space, range(begin, begin + 10))
        time.sleep(0.01)  # so that times of change differ
    assert space.written == 60 and len(looked) == 1
    store.max_bytes = 0
    fill(space, range(60, 70))
    store.max_bytes = AMPLE
    assert store._used_bytes() == disk_usage(tmp_path / "embeddings"), "a file that did not fit is not counted"


def test_the_record_has_the_reason_why_embeddings_were_not_written(tmp_path: Path) -> None:
    store = EmbeddingCache(tmp_path, AMPLE)
    fill(store.space("one", DIM), range(10))
    assert store.record().stopped is None
    store.max_bytes = 0
    fill(store.space("other", DIM), range(20))
    record = store.record()
    assert record.stopped is not None and "the cache is full" in record.stopped
    assert (record.written, record.passed) == (10, 20)
