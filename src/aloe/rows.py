"""Rows in and out: Parquet (zstd) and JSON Lines, gzip or plain. Nested values travel as JSON text in Parquet columns
named in the schema metadata, so `datasets` and duckdb open the files and nothing is lost on the way back."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from aloe.errors import AloeError
from aloe.records import Row

R = TypeVar("R", bound=Row)
JSON_COLUMNS = b"aloe.json_columns"


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON Lines file (`.gz` too). A broken line is an error naming it."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as cause:
                raise AloeError(
                    f"not valid JSON ({cause.msg} at column {cause.colno})",
                    where=f"{path}:{number}",
                    fix="repair or delete that line; a JSON Lines file holds one object a line",
                ) from None
            if not isinstance(value, dict):
                raise AloeError(
                    f"expected an object, found {type(value).__name__}",
                    where=f"{path}:{number}",
                    fix="write each row as {...} on its own line",
                )
            yield number, value


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write objects as JSON Lines; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write dicts as Parquet. Dicts and lists become JSON text; `columns` fixes the columns of an empty table."""
    names = list(rows[0]) if rows else list(columns or [])
    nested = [n for n in names if any(isinstance(r.get(n), dict | list) for r in rows)]
    data = {
        n: [json.dumps(r.get(n), ensure_ascii=False, sort_keys=True) if n in nested else r.get(n) for r in rows]
        for n in names
    }
    table = pa.table(data)
    table = table.replace_schema_metadata({JSON_COLUMNS: json.dumps(nested).encode()})
    pq.write_table(table, path, compression="zstd")


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Inverse of `write_parquet`; a Parquet file from elsewhere comes back with its own nested values."""
    table = pq.read_table(path)
    nested = json.loads((table.schema.metadata or {}).get(JSON_COLUMNS, b"[]"))
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for name in nested:
            row[name] = json.loads(row[name])
    return rows


def write_records(path: Path, records: Sequence[Row]) -> None:
    """Write records of one kind as Parquet."""
    write_parquet(path, [r.to_dict() for r in records], columns=["id", "source", "licence", "meta"])


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read a Parquet file that `write_records` wrote."""
    return [kind.from_dict(row) for row in read_parquet(path)]


def read_dicts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, dict) of `.jsonl`, `.jsonl.gz`, `.json` lines or `.parquet`."""
    if not path.exists():
        raise AloeError("no such file", where=str(path), fix="check the path; it is read relative to where aloe runs")
    if path.suffix == ".parquet":
        yield from enumerate(read_parquet(path), 1)
    else:
        yield from read_jsonl(path)
