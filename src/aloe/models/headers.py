"""Headers of weight files, read with suspicion: sizes are checked before anything is allocated for them.

A safetensors file is an 8-byte header length, a JSON header {name: {dtype, shape, data_offsets}} and the raw data
(https://github.com/huggingface/safetensors). A GGUF file is a magic, a version, two counts, typed values by name,
tensors by name, and their data (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Both come from strangers:
a length of 2^60, an array of 2^60 numbers, a tensor beyond the file's end or over another one must end here, not in a
loader that believes them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from aloe.errors import AloeError
from aloe.rows import json_fault

MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
MAX_DIMENSIONS = 8
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "C64": 64,
}  # fmt: skip
FIX = "finish the download or copy; check the file's size and digest"


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file: its dtype and shape; `begin` and `end` count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def safetensors_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file by name, checked against the file's length and each other.

    Raises:
        AloeError: no regular file, a header longer than it or not JSON, a tensor of a malformed shape, one that
            doesn't fill its place, lies outside the file's data or over another one.
    """
    try:
        if not file.is_file():
            raise ValueError("no regular file" if file.exists() else "no such file")
        size = file.stat().st_size
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("the header is longer than the file")
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length:,} bytes; at most {MAX_HEADER:,} are read")
            header = json.loads(handle.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is no map of tensors")
        found = {n: _entry(n, e, 8 + length, size) for n, e in header.items() if n != "__metadata__"}
        _check_apart(found)
    except (ValueError, RecursionError) as cause:
        told = json_fault(cause) if isinstance(cause, json.JSONDecodeError | RecursionError) else cause
        raise AloeError(f"not a whole safetensors file ({told})", where=str(file), fix=FIX) from None
    except OSError as cause:
        raise AloeError(f"can't be read ({cause.strerror or cause})", where=str(file), fix=FIX) from None
    return found


def _entry(name: str, entry: Any, start: int, size: int) -> Entry:
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name[:80]!r} is no map")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name[:80]!r} has dtype {str(dtype)[:20]}")
    if not _whole(shape, MAX_DIMENSIONS):
        raise ValueError(f"tensor {name[:80]!r} has no shape")
    if not _whole(offsets, 2) or len(offsets) != 2:
        raise ValueError(f"tensor {name[:80]!r} has no place in the file")
    begin, end = start + offsets[0], start + offsets[1]
    if not start <= begin <= end <= size:
        raise ValueError(f"tensor {name[:80]!r} lies outside the file's data")
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"tensor {name[:80]!r} doesn't fill its place in the file")
    return Entry(dtype, tuple(shape), begin, end)


def _whole(values: Any, most: int) -> bool:
    """Whether this is a short list of sizes."""
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(n) is int and 0 <= n < 1 << 48 for n in values)  # a product of eight stays below 2^384
    )


def _check_apart(entries: Mapping[str, Entry]) -> None:
    """Tensors over one another would make of a small file a large model."""
    placed = sorted((e.begin, e.end, name) for name, e in entries.items() if e.end > e.begin)
    for (_, end, first), (begin, _, second) in pairwise(placed):
        if begin < end:
            raise ValueError(f"tensors {first[:80]!r} and {second[:80]!r} share bytes")


# -- GGUF -----------------------------------------------------------------------------------------------------------

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by type
_STRING, _ARRAY = 8, 9
MAX_NAME = 65_535  # bytes, as the format says
MAX_TENSORS, MAX_VALUES = 1 << 20, 1 << 16
MAX_STRINGS = 1 << 22  # of one array: vocabularies have hundreds of thousands
ALIGNMENT = "general.alignment"


class _Reader:
    """A cursor over a GGUF file that never goes past its end."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self.handle, self.size, self.at = handle, size, 0

    def take(self, count: int) -> bytes:
        self.room(count)
        data = self.handle.read(count)
        if len(data) < count:
            raise ValueError("the file ends in its header")
        self.at += count
        return data

    def skip(self, count: int) -> None:
        self.room(count)
        self.handle.seek(count, 1)
        self.at += count

    def room(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError(f"{count:,} bytes are stated at byte {self.at:,}, and the file has {self.size:,}")

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def name(self) -> str:
        length = self.u64()
        if length > MAX_NAME:
            raise ValueError(f"a name of {length:,} bytes")
        return self.take(length).decode("utf-8")


def check_gguf(file: Path) -> None:
    """Refuse a GGUF file that states more than it holds, before a loader allocates or loops by what it states.

    Raises:
        AloeError: another format or byte order, counts, strings, arrays or tensors beyond the file, or repeated names.
    """
    try:
        if not file.is_file():
            raise ValueError("no regular file" if file.exists() else "no such file")
        size = file.stat().st_size
        with open(file, "rb") as handle:
            _check_gguf(_Reader(handle, size))
    except (ValueError, struct.error) as cause:
        raise AloeError(f"not a whole GGUF file ({cause})", where=str(file), fix=FIX) from None
    except OSError as cause:
        raise AloeError(f"can't be read ({cause.strerror or cause})", where=str(file), fix=FIX) from None


def _check_gguf(reader: _Reader) -> None:
    if reader.take(4) != b"GGUF":
        raise ValueError("it doesn't begin with GGUF")
    version = reader.u32()
    if version not in (2, 3):
        raise ValueError(f"version {version}; read are 2 and 3, little-endian")
    tensors, values = reader.u64(), reader.u64()
    if tensors > MAX_TENSORS or values > MAX_VALUES:
        raise ValueError(f"{tensors:,} tensors and {values:,} values are stated")
    alignment, seen = 32, set[str]()
    for _ in range(values):
        name = reader.name()
        if name in seen:
            raise ValueError(f"the value {name[:80]!r} stands twice")
        seen.add(name)
        kind = reader.u32()
        if name == ALIGNMENT and kind == 4:
            alignment = reader.u32()
            if alignment < 8 or alignment % 8 or alignment > 1 << 20:
                raise ValueError(f"an alignment of {alignment} bytes")
        else:
            _skip_value(reader, kind)
    _check_places(reader, [_tensor_info(reader) for _ in range(tensors)], alignment)


def _skip_value(reader: _Reader, kind: int) -> None:
    if kind == _STRING:
        reader.skip(reader.u64())
    elif kind == _ARRAY:
        inner, count = reader.u32(), reader.u64()
        if inner == _STRING:
            if count > MAX_STRINGS:
                raise ValueError(f"an array of {count:,} strings")
            for _ in range(count):
                reader.skip(reader.u64())
        elif inner in _SIZES:
            reader.skip(count * _SIZES[inner])
        else:
            raise ValueError(f"an array of values of type {inner}")
    elif kind in _SIZES:
        reader.skip(_SIZES[kind])
    else:
        raise ValueError(f"a value of type {kind}")


def _tensor_info(reader: _Reader) -> tuple[str, int, int]:
    """(name, bytes, offset in the data) of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name, dimensions = reader.name(), reader.u32()
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name[:80]!r} has {dimensions} dimensions")
    shape = [reader.u64() for _ in range(dimensions)]
    kind, offset = reader.u32(), reader.u64()
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]  # a ValueError for a type that isn't one
    entries = math.prod(shape)
    if entries % block or (shape and shape[0] % block):
        raise ValueError(f"tensor {name[:80]!r} is cut inside a block")
    return name, entries // block * size, offset


def _check_places(reader: _Reader, tensors: list[tuple[str, int, int]], alignment: int) -> None:
    if len({name for name, _, _ in tensors}) < len(tensors):
        raise ValueError("two tensors have one name")
    start = -(-reader.at // alignment) * alignment
    before, last = 0, ""
    for offset, size, name in sorted((offset, size, name) for name, size, offset in tensors):
        if offset % alignment or start + offset + size > reader.size:
            raise ValueError(f"tensor {name[:80]!r} lies outside the file's data")
        if offset < before:
            raise ValueError(f"tensors {last[:80]!r} and {name[:80]!r} share bytes")
        before, last = offset + size, name
