"""Rows in and out: Parquet (zstd) and JSON Lines, gzip or plain. Nested values travel as JSON text in Parquet columns
named in the schema metadata, so `datasets` and duckdb open the files and nothing is lost on the way back.

Reading is lazy: a text file line by line, a Parquet file by record batches. A file that can't be read (cut off, in
another encoding, damaged) is an error that names it and how far reading came.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from aloe.errors import AloeError
from aloe.records import Row
from aloe.schema import check_rows, mark_rows

R = TypeVar("R", bound=Row)
JSON_COLUMNS = b"aloe.json_columns"
# What a value can raise on its way into Python: a date beyond year 9999, a map with equal keys, bytes that are no text,
# JSON text that is none.
UNREADABLE = (ValueError, TypeError, OverflowError, KeyError, RecursionError, NotImplementedError, pa.ArrowException)
BATCH_ROWS = 1024  # of a Parquet file, decoded at a time
UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"),
               (b"\xfe\xff", "UTF-16"))  # fmt: skip
_HEAD = 4096  # bytes looked at to tell the encoding
BOMB = 300  # times its size that a compressed file may grow, beyond the first gigabyte: text shrinks to a tenth or so
_GIGABYTE = 1 << 30


# ---------------------------------------------------------------------------------------------- text


def byte_lines(path: Path, limit: int | None = None) -> Iterator[tuple[int, bytes, int]]:
    """Yield (line number from 1, line with its break, its size in bytes) of a text file, plain, `.gz` or `.zst`.

    A UTF-8 byte order mark is taken off. Of a line over `limit` bytes only the start comes, with the size of the
    whole, so no line takes more memory than that.

    Raises:
        AloeError: no such file; another encoding than UTF-8; lines that end in a carriage return alone; compressed
            data that is damaged, ends in the middle, or is made to fill a disk or the memory.
    """
    number = done = 0
    try:
        with _open(path) as handle:
            _check_encoding(handle.peek(_HEAD)[:_HEAD], path)
            packed = path.suffix in (".gz", ".zst")
            bound = max(_GIGABYTE, BOMB * path.stat().st_size) if packed else None
            most = -1 if limit is None and bound is None else (bound if limit is None else limit) + 1  # type: ignore[operator]
            while line := handle.readline(most):
                number, size = number + 1, len(line)
                if limit is not None and size > limit:
                    ended = line.endswith(b"\n")
                    while not ended and (more := handle.readline(1 << 20)):
                        size, ended = size + len(more), more.endswith(b"\n")
                        _check_bomb(done + size, bound, path)
                    line = line[:limit]
                done += size
                _check_bomb(done, bound, path)
                if number == 1 and line.startswith(UTF8_BOM):
                    line, size = line[len(UTF8_BOM) :], size - len(UTF8_BOM)
                yield number, line, size
    except OSError as cause:
        raise _unreadable(path, number, cause) from None
    except (EOFError, zlib.error) as cause:
        raise _unreadable(path, number, cause) from None


def _check_bomb(size: int, bound: int | None, path: Path) -> None:
    if bound is not None and size > bound:
        what = f"the compressed file grows to over {BOMB} times its size: it is made to fill memory, or no text"
        raise AloeError(what, where=str(path), fix="unpack it and look at what it holds")


def read_bytes(path: Path) -> bytes:
    """The whole of a text file, plain or compressed, without its byte order mark; errors as of `byte_lines`."""
    return b"".join(line for _, line, _ in byte_lines(path))


def _open(path: Path) -> BufferedReader:
    if not path.exists():
        raise AloeError("no such file", where=str(path), fix="check the path; it is read relative to where aloe runs")
    if path.suffix == ".zst":
        return BufferedReader(cast("Any", pa.input_stream(str(path), compression="zstd")))
    return BufferedReader(cast("Any", gzip.GzipFile(path, "rb") if path.suffix == ".gz" else FileIO(path, "rb")))


def _check_encoding(head: bytes, path: Path) -> None:
    found = next((name for mark, name in _OTHER_BOMS if head.startswith(mark)), None)
    if found is None and len(head) >= 4:  # text in UTF-16 without a mark: every second byte is zero
        halves = head[0::2].count(0), head[1::2].count(0)
        found = "UTF-16" if max(halves) > 0.4 * (len(head) / 2) and min(halves) == 0 else None
    if found:
        raise AloeError(
            f"the file is in {found}, not UTF-8", where=str(path), fix=f"convert it: iconv -f {found} -t UTF-8 IN > OUT"
        )
    if b"\r" in head[:-1] and b"\n" not in head:
        raise AloeError(
            "lines end in a carriage return alone", where=str(path), fix="convert it: tr '\\r' '\\n' < IN > OUT"
        )


def _unreadable(path: Path, lines: int, cause: Exception) -> AloeError:
    if path.suffix in (".gz", ".zst") and (not isinstance(cause, OSError) or cause.errno is None):
        cut = isinstance(cause, EOFError) or "runcated" in str(cause)
        what = "ends in the middle" if cut else f"is damaged or not {path.suffix[1:]} data ({cause})"
        return AloeError(
            f"the compressed file {what}: {lines} lines could be read before",
            where=str(path),
            fix="fetch or copy the file again; nothing of a cut file is used",
        )
    return AloeError(f"can't be read ({cause.strerror if isinstance(cause, OSError) else cause})", where=str(path),
                     fix="check that it is a file and that you may read it")  # fmt: skip


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON Lines file (`.gz` too). A broken line is an error naming it."""
    for number, line, _ in byte_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line.rstrip(b"\r\n"))
        except UnicodeDecodeError as cause:
            raise AloeError(
                f"not UTF-8 (byte {line[cause.start]:#04x} at column {cause.start + 1})", where=where, fix="convert it"
            ) from None
        except (ValueError, RecursionError) as cause:
            raise AloeError(
                f"not valid JSON ({json_fault(cause)})",
                where=where,
                fix="repair or delete that line; a JSON Lines file holds one object a line",
            ) from None
        if not isinstance(value, dict):
            raise AloeError(
                f"expected an object, found {type(value).__name__}",
                where=where,
                fix="write each row as {...} on its own line",
            )
        yield number, value


def json_fault(cause: Exception) -> str:
    """Why a text is no JSON, in the words of its parser."""
    if isinstance(cause, json.JSONDecodeError):
        return f"{cause.msg} at column {cause.colno}"
    return "nested too deeply" if isinstance(cause, RecursionError) else str(cause)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write objects as JSON Lines; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


# ---------------------------------------------------------------------------------------------- Parquet


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write dicts as Parquet. Dicts and lists become JSON text; `columns` fixes the columns of an empty table."""
    names = list(rows[0]) if rows else list(columns or [])
    nested = [n for n in names if any(isinstance(r.get(n), dict | list) for r in rows)]
    data = {
        n: [json.dumps(r.get(n), ensure_ascii=False, sort_keys=True) if n in nested else r.get(n) for r in rows]
        for n in names
    }
    table = pa.table(data)
    table = table.replace_schema_metadata({JSON_COLUMNS: json.dumps(nested).encode(), **mark_rows()})
    pq.write_table(table, path, compression="zstd")


def parquet_batches(
    path: Path, columns: Callable[[pa.Schema], Sequence[str]] | None = None, size: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a Parquet file, none longer than `size` rows. `columns` says by the file's schema
    which are read; all by default.

    Raises:
        AloeError: no such file, or one that is empty, damaged or no Parquet; the message says how many rows came.
    """
    if not path.exists():
        raise AloeError("no such file", where=str(path), fix="check the path; it is read relative to where aloe runs")
    if path.stat().st_size == 0:
        raise AloeError("no rows: the file is empty (0 bytes)", where=str(path), fix="write or fetch the file again")
    rows = 0
    try:
        with pq.ParquetFile(path) as file:
            check_rows(file.schema_arrow.metadata, path)
            _check_groups(file.metadata, path)
            chosen = None if columns is None else list(columns(file.schema_arrow))
            for batch in file.iter_batches(size, columns=chosen):
                yield batch
                rows += batch.num_rows
    except (pa.ArrowException, OSError, RuntimeError, ValueError, OverflowError) as cause:
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise AloeError(
            f"not a Parquet file that can be read ({reason.rstrip('.')}); {rows} rows could be read before",
            where=str(path),
            fix="write or fetch the file again",
        ) from None


def column_texts(batch: pa.RecordBatch, name: str, default: str | None = "") -> list[Any]:
    """A column of a batch as Python values, equal texts as one object; `default` where the file has no such column."""
    if name not in batch.schema.names:
        return [default] * batch.num_rows
    column = batch.column(name)
    if not pa.types.is_string(column.type):
        return list(column.to_pylist())
    encoded = column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    return [None if at is None else names[at] for at in encoded.indices.to_pylist()]


def _check_groups(metadata: pq.FileMetaData, path: Path) -> None:
    """Refuse row groups that grow out of all proportion when they are unpacked. Their columns aren't looked at one by
    one: pyarrow 26 ends the process where a column's statistics are damaged."""
    bound = max(_GIGABYTE, BOMB * path.stat().st_size)
    for i in range(metadata.num_row_groups):
        _check_bomb(metadata.row_group(i).total_byte_size, bound, path)


def json_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold nested values as JSON text."""
    try:
        names = json.loads((schema.metadata or {}).get(JSON_COLUMNS, b"[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) and n in schema.names for n in names):
        what = f"the file's own list of nested columns ({JSON_COLUMNS.decode()}) is damaged"
        raise AloeError(what, where="Parquet schema", fix="write the file again")
    return names


def iter_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Inverse of `write_parquet`, one row at a time; a file from elsewhere comes with its own nested values."""
    for batch in parquet_batches(path):
        nested = json_columns(batch.schema)
        try:
            for row in batch.to_pylist():
                for name in nested:
                    row[name] = json.loads(row[name])
                yield row
        except UNREADABLE as cause:
            what = f"a row can't be read ({str(cause)[:200]})"
            raise AloeError(what, where=str(path), fix="write the file again") from None


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """`iter_parquet` as a list."""
    return list(iter_parquet(path))


def write_records(path: Path, records: Sequence[Row]) -> None:
    """Write records of one kind as Parquet."""
    write_parquet(path, [r.to_dict() for r in records], columns=["id", "source", "licence", "meta"])


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read a Parquet file that `write_records` wrote."""
    try:
        return [kind.from_dict(row) for row in read_parquet(path)]
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        what = f"these are no {kind.kind} rows ({type(cause).__name__}: {str(cause)[:200]})"
        raise AloeError(what, where=str(path), fix="name a file that aloe wrote, or write it again") from None


def read_dicts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, dict) of `.jsonl`, `.jsonl.gz`, `.json` lines or `.parquet`."""
    if path.suffix == ".parquet":
        yield from enumerate(iter_parquet(path), 1)
    else:
        yield from read_jsonl(path)
