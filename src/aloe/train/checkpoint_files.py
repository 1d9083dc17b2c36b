"""The files of a checkpoint: tensors streamed into safetensors files, an index over all ranks' files, exact reading.

A safetensors file begins with a header that names every tensor's place, so the format wants all sizes before the first
byte. Here room for the header is kept free (the format allows it to end in spaces) and filled in when a file is full:
one tensor at a time is in memory, whatever the size of the model.

The index has for each tensor the pieces that ranks wrote of it (intervals of rows, dimension 0), so that any later
number of ranks can read any interval.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aloe.digests import canonical_json, digest_json
from aloe.errors import AloeError

FILE_BYTES = 1 << 30  # of tensors in a file; files are verified in parallel, so there should be several
HEADER_BYTES = 1 << 17  # room for a file's header: some 900 tensors
SPARE_BYTES = 64 << 20  # stay free on the disk, for the run's own metrics and logs
WRITE_BYTES = 1 << 24
INDEX, STATE = "index.json", "state.json"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH = {name: dtype for dtype, name in DTYPES.items()}

Read = Callable[[str, int, int | None], torch.Tensor]  # (name, first row, end row or None) -> CPU tensor


class Damaged(Exception):
    """A checkpoint that isn't what was written; says which file and how."""


@dataclass(frozen=True)
class Shard:
    """A rank's rows of one tensor of the training state.

    Raises:
        ValueError: the rows don't lie in the whole tensor, or the dtype has no safetensors name.
    """

    name: str  # "param/<parameter name>", "exp_avg/<parameter name>", "exp_avg_sq/<parameter name>"
    tensor: torch.Tensor  # this rank's rows of it, on any device
    shape: tuple[int, ...]  # of the whole tensor
    offset: int  # first row of `tensor` along dimension 0

    def __post_init__(self) -> None:
        mine = tuple(self.tensor.shape)
        inside = self.offset >= 0 and self.offset + rows_of(mine) <= rows_of(self.shape)
        if len(mine) != len(self.shape) or mine[1:] != tuple(self.shape[1:]) or not inside:
            raise ValueError(f"{self.name}: rows of shape {mine} from {self.offset} of a tensor {tuple(self.shape)}")
        if self.tensor.dtype not in DTYPES:
            raise ValueError(f"{self.name}: {self.tensor.dtype} can't be stored")


class Piece(NamedTuple):
    """Rows `first` to `first + rows` of a tensor, at byte `offset` of `file`."""

    first: int
    rows: int
    file: str
    offset: int


def rows_of(shape: tuple[int, ...] | list[int]) -> int:
    """Rows along dimension 0; a scalar counts as one."""
    return shape[0] if shape else 1


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


# -- writing --------------------------------------------------------------------------------------------------------


class _TensorFile:
    """One safetensors file under construction. Unbuffered: what was written is the kernel's, a full disk shows here."""

    def __init__(self, path: Path, hashing: ThreadPoolExecutor) -> None:
        self.path, self._hashing = path, hashing
        self._digest = hashlib.blake2b(digest_size=16)
        self._entries: dict[str, Any] = {}
        self._header = 2
        self._at = 0
        self._handle = open(path, "xb", buffering=0)  # noqa: SIM115 - `finish` or `close` ends it
        self._handle.seek(8 + HEADER_BYTES)

    def add(self, shard: Shard) -> Piece | None:
        """Write the shard's rows; None if this file is full and a new one must be begun."""
        rows = shard.tensor.shape[0] if shard.shape else 1
        size = shard.tensor.numel() * shard.tensor.element_size()
        key = shard.name if rows == rows_of(shard.shape) else f"{shard.name}@{shard.offset}"
        shape = list(shard.tensor.shape)
        place = [self._at, self._at + size]
        entry = {"dtype": DTYPES[shard.tensor.dtype], "shape": shape, "data_offsets": place}
        length = len(json.dumps({key: entry}))
        full = self._at + size > FILE_BYTES or self._header + length > HEADER_BYTES or key in self._entries
        if full and self._entries:
            return None
        free = shutil.disk_usage(self.path.parent).free
        if free < size + SPARE_BYTES:
            raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free, {size / 1e9:.2f} GB needed for {shard.name}")
        data = _bytes_of(shard.tensor.detach().cpu().contiguous())
        hashed = self._hashing.submit(self._digest.update, data)  # beside the write: both let other threads run
        try:
            _write_all(self._handle, data)
        finally:
            hashed.result()
        self._entries[key] = entry
        self._header += length
        self._at += size
        return Piece(shard.offset, rows, self.path.name, 8 + HEADER_BYTES + place[0])

    def finish(self) -> dict[str, Any]:
        """Write the header, bring all to disk; size and digest (see `digest_of`)."""
        header = json.dumps(self._entries).encode()
        start = struct.pack("<Q", HEADER_BYTES) + header.ljust(HEADER_BYTES)
        self._handle.seek(0)
        _write_all(self._handle, memoryview(start))
        self._digest.update(start)
        os.fsync(self._handle.fileno())
        self._handle.close()
        return {"bytes": len(start) + self._at, "digest": self._digest.hexdigest(), "start": len(start)}

    def close(self) -> None:
        self._handle.close()


def _write_all(handle: Any, data: memoryview) -> None:
    while data:
        data = data[handle.write(data[:WRITE_BYTES]) :]


def write_part(folder: Path, rank: int, shards: Iterable[Shard]) -> None:
    """Stream this rank's shards into its files in `folder`, each fsynced, then the rank's part of the index.

    Raises:
        OSError: the disk is full or broken. The rest of `shards` was gone through then, since making a shard may be a
            collective operation in which the other ranks wait for this one.
    """
    remaining = iter(shards)
    try:
        text = json.dumps(_write_files(folder, rank, remaining))
        aside = folder / f"{_part(rank)}.new"
        write_file(aside, text.encode())
        os.replace(aside, folder / _part(rank))  # it says that this rank is done, so it is there whole or not at all
    except OSError:
        for _ in remaining:
            pass
        raise


def _part(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _write_files(folder: Path, rank: int, shards: Iterable[Shard]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    current: _TensorFile | None = None
    with ThreadPoolExecutor(1) as hashing:
        try:
            for shard in shards:
                piece = current.add(shard) if current else None
                if piece is None:
                    if current:
                        files[current.path.name] = current.finish()
                    current = _TensorFile(folder / f"rank-{rank:05d}-{len(files):05d}.safetensors", hashing)
                    piece = current.add(shard)
                tensor = {"dtype": DTYPES[shard.tensor.dtype], "shape": list(shard.shape), "pieces": []}
                tensors.setdefault(shard.name, tensor)["pieces"].append(piece)
            if current:
                files[current.path.name] = current.finish()
        finally:
            if current:
                current.close()
    return {"files": files, "tensors": tensors}


def merge_parts(folder: Path, world: int) -> dict[str, Any]:
    """Files and tensors of all ranks in one index; the ranks' parts are removed.

    Raises:
        Damaged: a rank has left no part, ranks disagree over a tensor, or rows of one were written by none.
    """
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    missing = [r for r in range(world) if not (folder / _part(r)).exists()]
    if missing:
        ranks = ", ".join(map(str, missing))
        raise Damaged(f"rank {ranks} of {world} couldn't write its part, or writes to another machine's disk")
    for rank in range(world):
        part = json.loads((folder / _part(rank)).read_text())
        files |= part["files"]
        for name, tensor in part["tensors"].items():
            known = tensors.setdefault(name, {**tensor, "pieces": []})
            if (known["dtype"], known["shape"]) != (tensor["dtype"], tensor["shape"]):
                raise Damaged(f"ranks disagree over {name}: {known['shape']} and {tensor['shape']}")
            known["pieces"] += tensor["pieces"]
    for name, tensor in tensors.items():
        covered = _covered([Piece(*p) for p in tensor["pieces"]], 0)
        if covered < rows_of(tensor["shape"]):
            raise Damaged(f"no rank wrote row {covered} of {name}, which has {rows_of(tensor['shape'])}")
    for rank in range(world):
        os.unlink(folder / _part(rank))
    return {"files": files, "tensors": tensors}


def _covered(pieces: Iterable[Piece], first: int) -> int:
    """End of the unbroken run of rows from `first`; pieces may overlap, as replicas do."""
    end = first
    for piece in sorted(pieces):
        if piece.first <= end:
            end = max(end, piece.first + piece.rows)
    return end


def write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write and fsync a small file; its size and digest."""
    with open(path, "xb", buffering=0) as handle:
        _write_all(handle, memoryview(data))
        os.fsync(handle.fileno())
    return {"bytes": len(data), "digest": hashlib.blake2b(data, digest_size=16).hexdigest(), "start": 0}


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """The index with a digest of its own, as one canonical text: any changed byte shows."""
    write_file(folder / INDEX, canonical_json({"digest": digest_json(index), "index": index}).encode())


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- reading --------------------------------------------------------------------------------------------------------


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint.

    Raises:
        Damaged: it is missing, torn or was changed.
    """
    try:
        text = (folder / INDEX).read_bytes()
        found = json.loads(text)
        index: dict[str, Any] = found["index"]
        if found["digest"] != digest_json(index) or canonical_json(found).encode() != text:
            raise Damaged(f"{INDEX} was changed after it was written")
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise Damaged(f"{INDEX} can't be read: {type(cause).__name__}") from None
    return index


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare every file with its size and digest, several at a time.

    Raises:
        Damaged: the first file that differs, by name.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(lambda name: _problem(folder / name, files[name]), sorted(files)))
    for problem in problems:
        if problem:
            raise Damaged(problem)


def _problem(path: Path, entry: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path.name} has {size} bytes of {entry['bytes']}"
        return "" if digest_of(path, entry["start"]) == entry["digest"] else f"{path.name} has other bytes"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as cause:
        return f"{path.name} can't be read: {cause.strerror}"


def digest_of(path: Path, start: int) -> str:
    """BLAKE2b over the bytes from `start`, then those before it: the order in which they were written."""
    state = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as handle:
        head = handle.read(start)
        while piece := handle.read(1 << 22):
            state.update(piece)
    state.update(head)
    return state.hexdigest()


def reader(folder: Path, tensors: Mapping[str, Mapping[str, Any]]) -> Read:
    """Rows of any tensor, put together from the pieces that the ranks wrote.

    Bytes go from the file straight into the result, so a read costs the memory of what it returns and nothing stays
    open.

    Raises:
        AloeError (from the function returned): no such tensor, rows outside it, or rows that no file holds.
    """

    def read(name: str, first: int, end: int | None = None) -> torch.Tensor:
        if name not in tensors:
            raise AloeError(
                f"the checkpoint holds no {name}",
                where=str(folder),
                fix="it belongs to another model or optimiser: delete the checkpoints to start anew",
            )
        shape, dtype = tuple(tensors[name]["shape"]), TORCH[tensors[name]["dtype"]]
        whole = rows_of(shape)
        stop = whole if end is None else end
        if not 0 <= first <= stop <= whole:
            raise AloeError(f"{name} has rows 0 to {whole}, asked for {first} to {stop}", where=str(folder))
        out = torch.empty((stop - first, *shape[1:]) if shape else (), dtype=dtype)
        buffer = _bytes_of(out)
        row = len(buffer) // max(1, stop - first)
        at = first
        for piece in sorted(Piece(*p) for p in tensors[name]["pieces"]):
            until = min(stop, piece.first + piece.rows)
            if piece.first <= at < until:
                place = buffer[(at - first) * row : (until - first) * row]
                _read_into(folder / piece.file, piece.offset + (at - piece.first) * row, place)
                at = until
        if at < stop:
            raise AloeError(f"row {at} of {name} is in no file", where=str(folder), fix="delete this checkpoint")
        return out

    return read


def _read_into(path: Path, offset: int, place: memoryview) -> None:
    with open(path, "rb", buffering=0) as handle:
        handle.seek(offset)
        while place:
            count = handle.readinto(place[:WRITE_BYTES])
            if not count:
                raise AloeError("the file ends too early", where=str(path), fix="delete this checkpoint")
            place = place[count:]
