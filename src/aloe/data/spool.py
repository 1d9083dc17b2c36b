"""Rows on disk between the stages of curation: an Arrow file, memory-mapped, read in order or by number.

Two million rows as Python objects take over ten gigabytes; here they take disk, and a stage sees one batch at a time.
A stage that only drops rows writes no new file: a `View` is a spool and the numbers of the rows still in.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aloe.records import KINDS, Row

T = TypeVar("T")
BATCH = 2048  # rows decoded at a time
SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),  # place of the input in the list of sources
        ("origin", pa.string()),  # name of the input
        ("kind", pa.string()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("row", pa.large_string()),  # the whole record as JSON
    ]
)


@dataclass(frozen=True)
class Item:
    """A row on its way: `origin` is the name of the source it came in by, `rank` that source's place in the list."""

    record: Row
    origin: str
    rank: int


def encoded(items: Iterable[Item]) -> pa.RecordBatch:
    """Rows as a spool holds them."""
    rows = []
    for item in items:
        r = item.record
        text = json.dumps(vars(r), ensure_ascii=False, separators=(",", ":"))
        rows.append((item.rank, item.origin, r.kind, r.id, r.source, text))
    columns = zip(*rows, strict=True) if rows else ([] for _ in SCHEMA)
    arrays = [pa.array(list(values), type=f.type) for values, f in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


class SpoolWriter:
    """Writes items to a spool file; `close` (or leaving the `with`) finishes it."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)
        self._items: list[Item] = []
        self._waiting: list[pa.RecordBatch] = []  # less than `BATCH` rows together

    def put(self, item: Item) -> None:
        """Append one row."""
        self._items.append(item)
        self.count += 1
        if len(self._items) == BATCH:
            self._settle()

    def put_encoded(self, batch: pa.RecordBatch) -> None:
        """Append rows that `encoded` has made."""
        self._settle()
        self.count += batch.num_rows
        if batch.num_rows:
            self._add(batch)

    def _settle(self) -> None:
        if self._items:
            self._add(encoded(self._items))
            self._items = []

    def _add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        if sum(b.num_rows for b in self._waiting) < BATCH:
            return
        # Every batch of the file holds `BATCH` rows, so that a row's number tells where it lies.
        (whole,) = pa.Table.from_batches(self._waiting).combine_chunks().to_batches()
        full = whole.num_rows - whole.num_rows % BATCH
        for start in range(0, full, BATCH):
            self._writer.write_batch(whole.slice(start, BATCH))
        self._waiting = [whole.slice(full)] if full < whole.num_rows else []

    def close(self) -> None:
        """Write what is held and end the file."""
        self._settle()
        if self._waiting:
            (rest,) = pa.Table.from_batches(self._waiting).combine_chunks().to_batches()
            self._writer.write_batch(rest)
        self._writer.close()
        self._file.close()

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Spool:
    """A finished spool file. Every batch holds `BATCH` rows but the last, so a row's number gives its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        count = self._reader.num_record_batches
        last = self._reader.get_batch(count - 1).num_rows if count else 0
        self._size = max(count - 1, 0) * BATCH + last
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._size

    def _batch(self, number: int) -> Any:
        if self._held[0] != number:
            self._held = (number, self._reader.get_batch(number))
        return self._held[1]

    def items(self, numbers: npt.NDArray[np.int64]) -> list[Item]:
        """The rows of these numbers, in their order."""
        found: list[Item] = []
        cuts = np.flatnonzero(np.diff(numbers // BATCH)) + 1  # rows of one batch are taken out of it together
        for part in np.split(numbers, cuts) if len(numbers) else ():
            batch = self._batch(int(part[0]) // BATCH)
            if (np.diff(part) == 1).all():  # one behind the other: no copy
                batch = batch.slice(int(part[0]) % BATCH, len(part))
            else:
                batch = batch.take(pa.array(part % BATCH))
            ranks, origins, kinds, rows = (batch.column(k).to_pylist() for k in (0, 1, 2, 5))
            found += [
                Item(KINDS[kind](**json.loads(row)), origin, rank)
                for rank, origin, kind, row in zip(ranks, origins, kinds, rows, strict=True)
            ]
        return found

    def id_of(self, number: int) -> str:
        """The id of a row, without decoding the row."""
        found: str = self._batch(number // BATCH).column(3)[number % BATCH].as_py()
        return found

    def column(self, name: str) -> pa.ChunkedArray:
        """A short column (`id`, `source`, `origin`, `rank`, `kind`) of all rows."""
        place = SCHEMA.get_field_index(name)
        parts = [self._reader.get_batch(i).column(place) for i in range(self._reader.num_record_batches)]
        return pa.chunked_array(parts, type=SCHEMA.field(place).type)

    def forget(self) -> None:
        """Let the pages read so far go: they are in the file, and need not count as this process's memory."""
        self._held = (-1, None)
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


class View(Sequence[Item]):
    """Some rows of a spool, in a given order: what a stage takes in. Iterating decodes a batch at a time."""

    def __init__(self, spool: Spool, numbers: npt.NDArray[np.int64] | None = None) -> None:
        self.spool = spool
        self.numbers = np.arange(len(spool), dtype=np.int64) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return self.spool.items(self.numbers[place])
        return self.spool.items(self.numbers[[place]])[0]

    def id_of(self, place: int) -> str:
        """The id of the row at a place."""
        return self.spool.id_of(int(self.numbers[place]))

    def __iter__(self) -> Iterator[Item]:
        for batch in self.batches():
            yield from batch

    def batches(self, size: int = BATCH) -> Iterator[list[Item]]:
        """Lists of up to `size` rows, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]
            if start // size % 16 == 15:
                self.spool.forget()
        self.spool.forget()

    def only(self, places: Iterable[int] | npt.NDArray[Any]) -> View:
        """The rows at these places of this view."""
        chosen = places if isinstance(places, np.ndarray) else np.fromiter(places, dtype=np.int64)
        return View(self.spool, self.numbers[chosen])

    def column(self, name: str) -> list[Any]:
        """A short column of these rows."""
        found: list[Any] = self.spool.column(name).take(pa.array(self.numbers)).to_pylist()
        return found


class Mapped(Sequence[T], Generic[T]):
    """A view seen through a function of an item, applied anew at each look: nothing is kept."""

    def __init__(self, view: View, function: Callable[[Item], T]) -> None:
        self._view, self._function = view, function

    def __len__(self) -> int:
        return len(self._view)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._function(i) for i in self._view[place]]
        return self._function(self._view[place])

    def __iter__(self) -> Iterator[T]:
        return map(self._function, self._view)
