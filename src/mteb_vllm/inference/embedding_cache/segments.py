"""A segment: a file of vectors that appears by rename and never changes, in the safetensors format.

    keys        uint64, shape (n, 2)    the hash of engine and text
    vectors     float32, shape (n, dim)
    truncated   uint8, shape (n,)       whether the text was longer than the context
    checksums   uint32, shape (n,)      CRC-32 of each vector
    digest      (in the header)         SHA-256 of all but the vectors, and of their length

A killed writer leaves nothing that could be read, and readers need no lock. Vectors are read, not mapped: a file that
shrinks meanwhile is a short read, and not the end of the process.
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

# What a segment is called, and what one that is being written.
SUFFIX, PART = ".safetensors", ".part"

# The arrays beside the vectors.
_SMALL = ("keys", "truncated", "checksums")

# How many bytes are read at a time, at most.
_PIECE = 2**22

# What a file takes beside its arrays, at most.
_HEADER = 4096


class BrokenError(Exception):
    """A segment is not what was written."""


@dataclass(frozen=True)
class Segment:
    """A segment, and what of it is held in memory.

    Attributes:
        path: The file.
        truncated: For each vector, whether its text was cut.
        checksums: For each vector, its CRC-32.
        dim: The length of a vector.
        begin: Where the vectors begin in the file, in bytes.
    """

    path: Path
    truncated: Flags
    checksums: npt.NDArray[np.uint32]
    dim: int
    begin: int

    def read(self, rows: Numbers, out: Vectors, targets: Numbers) -> None:
        """Reads vectors, and checks them.

        Args:
            rows: Which ones.
            out: float32 array, shape (any, dim), that they go into.
            targets: For each its row of `out`.

        Raises:
            FileNotFoundError: if the file is gone.
            BrokenError: if it is shorter than it was, or a vector does not fit its checksum.
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
        # Rows that follow each other are one read.
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        offsets = (self.begin + rows * size).tolist()
        for first, end in itertools.pairwise(edges):
            wanted = view[first * size : end * size]
            if os.preadv(descriptor, [wanted], offsets[first]) != len(wanted):
                raise BrokenError("it is shorter than it was")
        for at, checksum in enumerate(self.checksums[rows].tolist()):
            if zlib.crc32(view[at * size : (at + 1) * size]) != checksum:
                raise BrokenError(f"vector {rows[at]} does not fit its checksum")
        return np.frombuffer(view, dtype=np.float32).reshape(-1, self.dim)


def write_segment(path: Path, keys: Sequence[bytes], vectors: Vectors, truncated: Flags) -> None:
    """Writes a segment in place; whoever calls moves it to where it is read.

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
    """Open a segment, and verify all that is read of it but the vectors, which `Segment.read` verifies.

    Args:
        path: The file.
        dim: The length that its vectors shall have.

    Returns:
        keys: uint64 array, shape (n, 2); and the segment.

    Raises:
        FileNotFoundError: if the file is gone.
        BrokenError: if it is not whole, or no segment of such vectors.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in _SMALL}
            digest = (file.metadata() or {}).get("digest")
        if digest != _digest(arrays, dim):
            raise BrokenError(f"it does not match its digest, or does not hold vectors of {dim}")
        keys: Keys = arrays["keys"]
        return keys, Segment(path, arrays["truncated"] != 0, arrays["checksums"], dim, _vectors_begin(path))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(str(error)) from error


def _digest(arrays: Mapping[str, npt.NDArray[np.generic]], dim: int) -> str:
    """Return the hash of the arrays beside the vectors, and of the vectors' length."""
    found = hashlib.sha256(repr([dim, *((arrays[name].shape, arrays[name].dtype.str) for name in _SMALL)]).encode())
    for name in _SMALL:
        found.update(arrays[name].data)
    return found.hexdigest()


def segment_size(n: int, dim: int) -> int:
    """What a segment of `n` vectors takes, in bytes, at most."""
    return n * (16 + 4 * dim + 1 + 4) + _HEADER


def pack_keys(keys: Sequence[bytes]) -> Keys:
    """Keys of 16 bytes as uint64 array, shape (n, 2)."""
    return np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)


def _vectors_begin(path: Path) -> int:
    """Where the vectors begin: 8 bytes hold the header's length, then comes the header, JSON with their offset.

    https://github.com/huggingface/safetensors#format
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    begin: int = 8 + length + header["vectors"]["data_offsets"][0]
    return begin
