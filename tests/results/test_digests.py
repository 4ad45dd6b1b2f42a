"""Digests of stored files: changed, moved and swapped files are detected."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm.results.digests import DamagedError, has_digest, read_note, read_verified, write_digest, write_note
from mteb_vllm.results.locks import clear, staging
from mteb_vllm.util.files import clear_path, quarantine

PLACE = Path("results/org__model/abc/experiments/settings_1/Task.json")


def put(root: Path, path: Path, content: bytes) -> Path:
    """Write a file with its digest, as the store does."""
    with staging(root) as scratch:
        write_digest(root, path, content, scratch)
    path.write_bytes(content)
    return path


def refused(root: Path, path: Path) -> bool:
    try:
        read_verified(root, path)
    except DamagedError:
        return True
    return False


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    content = json.dumps({"main_score": 0.21}).encode()
    path = put(tmp_path, tmp_path / PLACE, content)
    assert read_verified(tmp_path, path) == content and has_digest(path)
    for at in range(8 * len(content)):
        path.write_bytes(bytes(byte ^ (1 << at % 8 if where == at // 8 else 0) for where, byte in enumerate(content)))
        assert refused(tmp_path, path)
    path.write_bytes(content)
    beside = path.with_name("Task.json.sha256")
    for harm in (b"", b"\xff\xfe", beside.read_bytes()[:-2], b"0" * 64):
        beside.write_bytes(harm)
        assert refused(tmp_path, path)
    beside.unlink()
    assert refused(tmp_path, path) and not has_digest(path)
    beside.mkdir()
    assert refused(tmp_path, path)
    assert read_verified(tmp_path, put(tmp_path, path, content)) == content, "obstacles are quarantined"
    with pytest.raises(FileNotFoundError):
        read_verified(tmp_path, path.with_name("Other.json"))


@pytest.mark.parametrize("part", range(len(PLACE.parts)))
def test_a_file_copied_over_another_is_rejected_even_with_its_digest(part: int, tmp_path: Path) -> None:
    path = put(tmp_path, tmp_path / PLACE, b"{}")
    names = list(PLACE.parts)
    names[part] = f"other{Path(names[part]).suffix}"
    other = tmp_path.joinpath(*names)
    other.parent.mkdir(parents=True, exist_ok=True)
    for one in (path, path.with_name("Task.json.sha256")):
        (other.parent / one.name.replace("Task.json", other.name)).write_bytes(one.read_bytes())
    assert refused(tmp_path, other) and not refused(tmp_path, path)


def test_a_store_can_be_moved(tmp_path: Path) -> None:
    put(tmp_path / "one", tmp_path / "one" / PLACE, b"{}")
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_verified(tmp_path / "two", tmp_path / "two" / PLACE) == b"{}"


def test_a_writer_killed_between_digest_and_file_does_no_damage(tmp_path: Path) -> None:
    path = put(tmp_path, tmp_path / PLACE, b"first")
    write_digest(tmp_path, path, b"second", tmp_path)  # killed before the file itself is replaced
    assert read_verified(tmp_path, path) == b"first"
    path.write_bytes(b"second")
    assert read_verified(tmp_path, path) == b"second"
    put(tmp_path, path, b"third")
    path.write_bytes(b"first")
    assert refused(tmp_path, path), "only the immediately preceding content stays valid"
    path.write_bytes(b"changed")
    write_digest(tmp_path, path, b"new", tmp_path)
    assert refused(tmp_path, path), "a new digest does not make a damaged file valid"


def test_permanent_read_errors_mean_damage_and_transient_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, tmp_path / PLACE, b"{}")

    def reading_fails(code: int) -> None:
        def fail(_: Path) -> Any:
            raise OSError(code, "no")

        monkeypatch.setattr("mteb_vllm.results.digests.read_file", fail)

    for code in (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM):
        reading_fails(code)
        assert refused(tmp_path, path)
    for code in (errno.EMFILE, errno.EIO):
        reading_fails(code)
        with pytest.raises(OSError) as error:
            read_verified(tmp_path, path)
        assert error.value.errno == code
    monkeypatch.undo()
    path.unlink()
    path.symlink_to(path)
    assert refused(tmp_path, path)
    path.unlink()
    os.mkfifo(path)
    assert refused(tmp_path, path), "reading it would block forever"


def test_a_note_is_read_back_or_treated_as_missing(tmp_path: Path) -> None:
    value = {"kind": "task", "figures": [1, 0.1, None, "é"]}
    path = tmp_path / "settings" / "same" / "abc.json"
    assert read_note(tmp_path, path) is None
    write_note(tmp_path, path, value)
    assert read_note(tmp_path, path) == value
    content = path.read_bytes()
    for at in range(0, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert read_note(tmp_path, path) in (None, value)
    for harm in (b"", b"[]", b"5", b'"x"', b"null", b"{}", b'{"note": 1}', b"[" * 200_000, b"{" * 10, content[:30]):
        path.write_bytes(harm)
        assert read_note(tmp_path, path) is None
    path.with_name("other.json").write_bytes(content)
    assert read_note(tmp_path, path.with_name("other.json")) is None, "it belongs to another path"
    path.unlink()
    path.mkdir()
    (path / "x").touch()
    assert read_note(tmp_path, path) is None
    write_note(tmp_path, path, value)
    assert read_note(tmp_path, path) == value and path.with_name("abc.json.broken").is_dir()


def test_a_killed_writer_leaves_no_partial_digest_next_to_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results" / "m" / "T.json"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staging(tmp_path) as scratch:
        monkeypatch.setattr(Path, "replace", killed)
        write_digest(tmp_path, path, b"content", scratch)
    monkeypatch.undo()
    assert not list(path.parent.glob("*"))
    with staging(tmp_path) as scratch:
        write_digest(tmp_path, path, b"content", scratch)
        path.write_bytes(b"content")
    assert read_verified(tmp_path, path) == b"content" and sorted(one.name for one in path.parent.iterdir()) == [
        "T.json", "T.json.sha256"
    ]  # fmt: skip


def test_temporary_files_of_notes_are_removed_only_once_abandoned(tmp_path: Path) -> None:
    left = [tmp_path / folder / ".abc.json.x1.tmp" for folder in ("settings/same", "settings/measured/a", "failures")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
        (path.parent / "abc.json").touch()
    clear(tmp_path)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    clear(tmp_path)
    assert not any(path.exists() for path in left)
    assert all((path.parent / "abc.json").exists() for path in left)


def test_a_note_that_cannot_be_written_is_only_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mteb_vllm.results.digests.write_atomically", full)
    write_note(tmp_path, tmp_path / "failures" / "abc.json", {})
    assert "No space left" in caplog.text and "abc.json" in caplog.text


def test_obstacles_are_quarantined_only_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "settings").write_text("a file")
    path = root / "settings" / "same" / "abc.json"
    clear_path(path, root)
    assert path.parent.is_dir() and (root / "settings.broken").read_text() == "a file"
    path.mkdir()
    clear_path(path, root)
    clear_path(path, root)
    assert not path.exists() and [one.name for one in path.parent.iterdir()] == ["abc.json.broken"]
    path.write_text("fine")
    clear_path(path, root)
    assert path.read_text() == "fine"
    # Links are kept, and so is everything outside the root.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = root / "link"
    link.symlink_to(elsewhere)
    clear_path(link, root)
    (root / "to_file").symlink_to(path)
    with pytest.raises(OSError):
        clear_path(root / "to_file" / "x", root)
    assert link.is_symlink() and (root / "to_file").is_symlink()
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(OSError):
        clear_path(tmp_path / "file" / "settings" / "x", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "somebody's"


def test_quarantining_never_replaces_an_earlier_quarantined_file(tmp_path: Path) -> None:
    names = []
    for content in ("one", "two", "three"):
        (tmp_path / "x.json").write_text(content)
        names.append(quarantine(tmp_path / "x.json").name)
    assert names == ["x.json.broken", "x.json.broken-2", "x.json.broken-3"]
    assert [(tmp_path / name).read_text() for name in names] == ["one", "two", "three"]
    with pytest.raises(FileNotFoundError):
        quarantine(tmp_path / "x.json")
