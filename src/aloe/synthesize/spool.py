"""Rows on their way to disk: a step that writes hundreds of thousands of texts holds one block of them in memory.

Accepted rows of each try are spooled in the order of their questions and merged at the end, so the finished file has
that order whatever the try a row was accepted in.
"""

from __future__ import annotations

import heapq
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from aloe.rows import JSON_COLUMNS, write_parquet
from aloe.schema import mark_rows

GROUP = 20_000  # rows of a Parquet row group: what is held in memory at once


class TableWriter:
    """Writes dicts as Parquet, a row group at a time, in the format of `aloe.rows.write_parquet`.

    Args:
        path: the file to make.
        columns: name -> type; `json` columns hold nested values as JSON text. Missing values are null.
        group: rows held before a row group is written.
    """

    TYPES: Mapping[str, pa.DataType] = {
        "text": pa.string(), "json": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(),
    }  # fmt: skip

    def __init__(self, path: Path, columns: Mapping[str, str], group: int = GROUP) -> None:
        self._path, self._columns, self._group = path, columns, group
        self._nested = [n for n, kind in columns.items() if kind == "json"]
        self._schema = pa.schema([(name, self.TYPES[kind]) for name, kind in columns.items()])
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Mapping[str, Any]] = []
        self.count = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= self._group:
            self._flush()

    def _flush(self) -> None:
        data = {name: [self._cell(row, name) for row in self._rows] for name in self._columns}
        schema = self._schema.with_metadata({JSON_COLUMNS: json.dumps(self._nested).encode(), **mark_rows()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        self._writer.write_table(pa.table(data, schema=schema))
        self._rows = []

    def _cell(self, row: Mapping[str, Any], name: str) -> Any:
        return json.dumps(row[name], ensure_ascii=False, sort_keys=True) if name in self._nested else row.get(name)

    def close(self) -> None:
        """Write what is left; a table without rows has its columns all the same."""
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        elif not self._path.exists():
            write_parquet(self._path, [], columns=list(self._columns))


DIALOGUE_COLUMNS = {"id": "text", "source": "text", "licence": "text", "meta": "json", "messages": "json"}


class AcceptedRows:
    """Accepted rows, spooled by try under `folder` (made here, removed by `close`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, IO[str]] = {}
        folder.mkdir(parents=True)

    def add(self, number: int, index: int, row: Mapping[str, Any]) -> None:
        """Keep a row of try `number`; `index` is its question's place, rising within a try."""
        if number not in self._files:
            self._files[number] = open(self._folder / f"{number}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self._files[number].write(json.dumps([index, row], ensure_ascii=False) + "\n")

    def merged(self) -> Iterator[dict[str, Any]]:
        """All rows in the order of their questions."""
        for handle in self._files.values():
            handle.close()
        tries = [_read(self._folder / f"{number}.jsonl") for number in sorted(self._files)]
        for _, row in heapq.merge(*tries, key=lambda pair: pair[0]):
            yield row

    def close(self) -> None:
        """Remove the spool."""
        for handle in self._files.values():
            handle.close()
        shutil.rmtree(self._folder)


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as handle:
        for line in handle:
            index, row = json.loads(line)
            yield index, row


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive blocks of `size` that cover `count` items."""
    for start in range(0, count, size):
        yield start, min(count, start + size)


def licence_table(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """{source: {licence: rows}} of rows counted by (source, licence), sorted: what a dataset card shows."""
    table: dict[str, dict[str, int]] = {}
    for (source, licence), rows in sorted(counts.items()):
        table.setdefault(source, {})[licence] = rows
    return table


def write_stats(path: Path, values: Mapping[str, Any]) -> None:
    """Write figures as JSON."""
    text = json.dumps(values, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
