"""Segments: files of vectors in the safetensors format, created by rename and never changed.

    keys        uint64, shape (n, 2)    the hash of engine and text
    vectors     float32, shape (n, dim)
    truncated   uint8, shape (n,)       whether the text was longer than the context
    checksums   uint32, shape (n,)      CRC-32 of each vector
    digest      (in the header)         SHA-256 of the other arrays and of the vectors' length

A killed writer leaves no readable file, and readers need no lock. Vectors are read, not memory-mapped: if a file shrinks
meanwhile, that is a short read and does not crash the process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

# The suffixes of a segment's file, and of one that is being written.
SUFFIX, PART = ".safetensors", ".part"

# The arrays other than the vectors.
_SMALL = ("keys", "truncated", "checksums")

# The most bytes that are read at a time.
_PIECE = 2**22

# The most bytes that a file takes in addition to its arrays.
_HEADER = 4096


class BrokenError(Exception):
    """A segment's file is damaged."""


@dataclass(frozen=True)
class Segment:
    """An open segment, with everything but its keys and vectors in memory.

    Attributes:
        path: The file.
        truncated: bool array, shape (n,): whether the text of a vector was truncated.
        checksums: uint32 array, shape (n,): the CRC-32 of each vector.
        dim: The length of a vector.
        begin: The offset of the vectors in the file, in bytes.
    """

    path: Path
    truncated: Flags
    checksums: npt.NDArray[np.uint32]
    dim: int
    begin: int

    def read(self, rows: Numbers, out: Vectors, targets: Numbers) -> None:
        """Read vectors, and verify them.

        Args:
            rows: The rows to read.
            out: float32 array, shape (any, dim), to copy the vectors into.
            targets: The row of `out` for each vector.

        Raises:
            FileNotFoundError: if the file is gone.
            BrokenError: if the file is shorter than it was, or a vector does not match its checksum.
            OSError: if it cannot be read.
        """
        order = np.argsort(rows, kind="stable")
        rows, targets = rows[order], targets[order]
        piece = max(1, _PIECE // (4 * self.dim))
        with self.path.open("rb", buffering=0) as file:
            for begin in range(0, len(rows), piece):
                part = slice(begin, begin + piece)
                out[targets[part]] = self._read_part(file.fileno(), rows[part])

    def _read_part(self, descriptor: int, rows: Numbers) -> Vectors:
        size = self.dim * 4
        view = memoryview(bytearray(len(rows) * size))
        # Consecutive rows take one read.
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        offsets = (self.begin + rows * size).tolist()
        for first, end in itertools.pairwise(edges):
            wanted = view[first * size : end * size]
            if os.preadv(descriptor, [wanted], offsets[first]) != len(wanted):
                raise BrokenError("it is shorter than it was")
        for at, checksum in enumerate(self.checksums[rows].tolist()):
            if zlib.crc32(view[at * size : (at + 1) * size]) != checksum:
                raise BrokenError(f"vector {rows[at]} does not match its checksum")
        return np.frombuffer(view, dtype=np.float32).reshape(-1, self.dim)


def write_segment(path: Path, keys: Sequence[bytes], vectors: Vectors, truncated: Flags) -> None:
    """Write a segment; the caller renames it once it is complete.

    Args:
        path: The file.
        keys: 16 bytes each.
        vectors: float32 array, shape (len(keys), dim).
        truncated: bool array, shape (len(keys),).

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors.numpy import save

    raw, size = np.ascontiguousarray(vectors).reshape(-1).view(np.uint8).data, 4 * vectors.shape[1]
    sums = [zlib.crc32(raw[at : at + size]) for at in range(0, len(raw), size)]
    arrays: dict[str, npt.NDArray[Any]] = {
        "keys": pack_keys(keys),
        "vectors": vectors,
        "truncated": truncated.astype(np.uint8),
        "checksums": np.array(sums, dtype=np.uint32),
    }
    path.write_bytes(save(arrays, {"digest": _digest(arrays, vectors.shape[1])}))


def open_segment(path: Path, dim: int) -> tuple[Keys, Segment]:
    """Open a segment, and verify everything but the vectors, which `Segment.read` verifies.

    Args:
        path: The file.
        dim: The expected length of its vectors.

    Returns:
        keys: uint64 array, shape (n, 2); and the segment.

    Raises:
        FileNotFoundError: if the file is gone.
        BrokenError: if it is damaged, or its vectors have another length.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in _SMALL}
            digest = (file.metadata() or {}).get("digest")
        if digest != _digest(arrays, dim):
            raise BrokenError(f"it does not match its digest, or its vectors do not have length {dim}")
        keys: Keys = arrays["keys"]
        return keys, Segment(path, arrays["truncated"] != 0, arrays["checksums"], dim, _vectors_begin(path))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(str(error)) from error


def _digest(arrays: Mapping[str, npt.NDArray[np.generic]], dim: int) -> str:
    """Return the hash of the arrays other than the vectors, and of the vectors' length."""
    found = hashlib.sha256(repr([dim, *((arrays[name].shape, arrays[name].dtype.str) for name in _SMALL)]).encode())
    for name in _SMALL:
        found.update(arrays[name].data)
    return found.hexdigest()


def segment_size(n: int, dim: int) -> int:
    """Return the largest size in bytes of a segment of `n` vectors."""
    return n * (16 + 4 * dim + 1 + 4) + _HEADER


def pack_keys(keys: Sequence[bytes]) -> Keys:
    """Convert keys of 16 bytes to a uint64 array, shape (n, 2)."""
    return np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)


def _vectors_begin(path: Path) -> int:
    """Return the offset of the vectors: after 8 bytes with the header's length comes the header, JSON with their offset.

    https://github.com/huggingface/safetensors#format
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    begin: int = 8 + length + header["vectors"]["data_offsets"][0]
    return begin
