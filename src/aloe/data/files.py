"""Rows of one file, of any format, one at a time: JSON Lines, JSON, CSV and TSV, Parquet, Arrow.

What stands in a row's place but can't be read as one (broken JSON, another encoding, NUL bytes, too long a line) comes
as a `Broken` with a reason, at its place, and reading goes on after it. What spoils the whole file is an `AloeError`.
No format loads more than a line or a batch at a time, JSON that is one value excepted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from aloe.data.options import CsvIndex
from aloe.errors import AloeError
from aloe.rows import UNREADABLE, byte_lines, json_columns, json_fault, parquet_batches, read_bytes

MAX_ROW_BYTES = 4 << 20  # a row longer than this is no row of text to train on, but a file that went wrong
MAX_JSON_BYTES = 1 << 30  # of a file that is one JSON value, which is read whole
MAX_DEPTH = 100  # lists and maps of a row inside one another
_START = 200  # characters of a broken row that are kept for the reader of the ledger

_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_JSON = (".json", ".json.gz")
_CSV = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
SUFFIXES = (*_LINES, *_JSON, *_CSV, ".parquet")
_ARROW = ".arrow"  # what `save_to_disk` writes: read by name, not picked up from a folder of files


@dataclass(frozen=True)
class Broken:
    """What could not be read as a row: a reason for the ledger, a detail for the reader, and how it starts."""

    reason: str
    detail: str
    start: str = ""


Found = tuple[int, "dict[str, Any] | Broken"]  # line (text) or row (the other formats) number from 1


@dataclass(frozen=True)
class Form:
    """What a preset knows of its files. `key` says that a `.json` is one object whose keys are that column;
    `header` names the columns of CSV files that have no header line."""

    key: str | None = None
    header: tuple[str, ...] | None = None


PLAIN = Form()


def holds_rows(path: Path) -> bool:
    """Whether the name says that this file holds rows."""
    return path.name.endswith(SUFFIXES)


def read_file(path: Path, form: Form = PLAIN) -> Iterator[Found]:
    """Yield every row of a file with its number, or what is wrong with it.

    An empty cell of a CSV file is None, so that the first row shows all columns.

    Raises:
        AloeError: a missing, empty, damaged or cut file, another encoding or format, CSV without a proper header.
    """
    name = path.name
    if path.exists() and not name.endswith((*SUFFIXES, _ARROW)):
        raise AloeError("not a kind of file that holds rows", where=str(path), fix="use one of " + ", ".join(SUFFIXES))
    if path.is_file() and path.stat().st_size == 0:
        raise AloeError("no rows: the file is empty (0 bytes)", where=str(path), fix="write or fetch the file again")
    if name.endswith(".parquet"):
        return _batches(parquet_batches(path))
    if name.endswith(_ARROW):
        return _batches(_arrow_batches(path))
    if name.endswith(tuple(_CSV)):
        return _csv(path, next(_CSV[s] for s in _CSV if name.endswith(s)), form.header)
    if name.endswith(_JSON):
        return _json(path, form.key)
    return _json_lines(path)


# ---------------------------------------------------------------------------------------------- checks


def _fault(row: Mapping[str, Any]) -> Broken | None:
    """Why a row that parsed can't be used as text: NUL, a lone surrogate (no UTF-8), too long."""
    size = 0
    for text in _texts(row):
        if "\0" in text:
            return Broken("nul_bytes", "a text holds a NUL character", text[:_START])
        try:
            size += len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as cause:
            code = ord(text[cause.start])  # a byte that could not be decoded stands there as U+DC80 to U+DCFF
            byte = 0xDC80 <= code <= 0xDCFF
            what = f"byte {code - 0xDC00:#04x}" if byte else f"the lone surrogate U+{code:04X}"
            return Broken("not_utf8", f"{what} is not UTF-8", text[:_START].encode(errors="replace").decode())
    return _too_long(size, next(_texts(row))) if size > MAX_ROW_BYTES else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _too_deep(value: Any) -> bool:
    """Whether lists and maps lie inside one another beyond `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, Mapping | list | tuple)
        ]
        if not level:
            return False
    return True


def _nested_too_deeply(start: str) -> Broken:
    return Broken("not_json", f"lists and maps lie inside one another more than {MAX_DEPTH} deep", start)


def _too_long(size: int, start: str) -> Broken:
    return Broken("row_too_long", f"the row has {size:,} bytes; at most {MAX_ROW_BYTES:,} are read", start[:_START])


# ---------------------------------------------------------------------------------------------- JSON


def _json_lines(path: Path) -> Iterator[Found]:
    for number, line, size in byte_lines(path, MAX_ROW_BYTES):
        if size > MAX_ROW_BYTES:
            yield number, _too_long(size, line[:_START].decode(errors="replace"))
        elif line.strip():
            yield number, _json_row(line)


def _json_row(line: bytes) -> dict[str, Any] | Broken:
    start = line[:_START].decode(errors="replace").rstrip()
    if b"\0" in line:
        return Broken("nul_bytes", f"a NUL byte at column {line.index(0) + 1}", start.replace("\0", "\\0"))
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as cause:
        return Broken("not_utf8", f"byte {line[cause.start]:#04x} at column {cause.start + 1} is not UTF-8", start)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as cause:
        return Broken("not_json", f"not valid JSON ({json_fault(cause)})", start)
    if not isinstance(value, dict):
        return Broken("not_an_object", f"expected an object, found {type(value).__name__}", start)
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(value):
        return _nested_too_deeply(start)
    return (_fault(value) if "\\u" in text else None) or value


def _json(path: Path, key: str | None) -> Iterator[Found]:
    """A `.json` file: an array of objects, JSON Lines under another name, or (with `key`) one object of objects."""
    first, whole = next(
        ((n, z <= MAX_ROW_BYTES) for _, n, z in byte_lines(path, MAX_ROW_BYTES) if n.strip()), (b"", True)
    )
    if key is None and whole and first.lstrip()[:1] != b"[" and isinstance(_json_row(first), dict):
        yield from _json_lines(path)
        return
    if path.stat().st_size > MAX_JSON_BYTES:
        what = f"one JSON value of {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read whole"
        raise AloeError(what, where=str(path), fix="write one object a line: jq -c '.[]' IN.json > OUT.jsonl")
    text = read_bytes(path).decode("utf-8", errors="surrogateescape")  # bytes that are no UTF-8 show in their row
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as cause:
        line = cause.lineno if isinstance(cause, json.JSONDecodeError) else 1
        if first.lstrip()[:1] == b"{" and text.strip().count("\n") and key is None:  # lines, the first one broken
            yield from _json_lines(path)
            return
        raise AloeError(
            f"not valid JSON ({json_fault(cause)})", where=f"{path}:{line}", fix="repair the file"
        ) from None
    if key is not None and isinstance(values, dict):
        values = [{key: name, **v} if isinstance(v, dict) else v for name, v in values.items()]
    if not isinstance(values, list):
        raise AloeError(
            "one object, not rows" if isinstance(values, dict) else "a value, not rows",
            where=str(path),
            fix="write an array of objects, or one object a line; sets keyed by id need their preset",
        )
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield number, _nested_too_deeply("") if _too_deep(value) else _fault(value) or value
        else:
            yield number, Broken("not_an_object", f"expected an object, found {type(value).__name__}")


# ---------------------------------------------------------------------------------------------- CSV


class _TooLong(Exception):
    """A record of a CSV file grew over the limit: a huge cell, or a quote that is never closed."""


class _Lines:
    """The decoded lines of a CSV file for `csv.reader`, with a count of the bytes of the record at hand."""

    def __init__(self, path: Path) -> None:
        self._lines = byte_lines(path, MAX_ROW_BYTES)
        self.number, self.size, self.start = 0, 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line, size = next(self._lines)
        text = line.decode("utf-8", errors="surrogateescape")
        self.start = self.start or text[:_START]
        self.size += size
        if self.size > MAX_ROW_BYTES:
            raise _TooLong
        return text


def _csv(path: Path, delimiter: str, header: tuple[str, ...] | None) -> Iterator[Found]:
    csv.field_size_limit(1 << 27)
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = list(header) if header else None
    while True:
        first, lines.size, lines.start = lines.number + 1, 0, ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _TooLong:
            yield first, _too_long(lines.size, lines.start)
            continue
        except csv.Error as cause:
            if "unexpected end" in str(cause):
                raise AloeError(
                    "a quote that opens in this row is never closed",
                    where=f"{path}:{first}",
                    fix="close the quote; double quotes that stand inside a cell",
                ) from None
            yield first, Broken("bad_csv", f"not valid CSV ({cause})", lines.start.rstrip())
            continue
        if not cells:
            continue
        if names is None:
            names = _header(cells, path, delimiter)
        elif len(cells) != len(names):
            what = f"this row has {len(cells)} cells, not the {len(names)} of the header"
            yield first, Broken("wrong_cell_count", what, lines.start.rstrip())
        else:
            row = {name: _cell(name, text) for name, text in zip(names, cells, strict=True)}
            yield first, _fault(row) or row


def _header(cells: list[str], path: Path, delimiter: str) -> list[str]:
    names = [c.strip() for c in cells]
    other = next((c for c in ";\t|," if len(names) == 1 and c in names[0]), None)
    if other:
        raise AloeError(
            f"the columns are separated by {other!r}, not {delimiter!r}",
            where=f"{path}:1",
            fix="write the file with commas (.csv) or tabs (.tsv)",
        )
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise AloeError(f"two columns are called {twice[0]!r}", where=f"{path}:1", fix="rename one of both")
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise AloeError("the header is not UTF-8", where=f"{path}:1", fix="convert the file to UTF-8") from None
    return names


def _cell(column: str, text: str) -> Any:
    """CSV has no types: an answer of digits is an index, an empty cell is none, everything else stays text."""
    if not text:
        return None
    numbers = ("answer", "answer_idx", "answer_index", "cop")
    return CsvIndex(text) if column in numbers and text.isascii() and text.isdecimal() and len(text) < 5 else text


# ---------------------------------------------------------------------------------------------- Parquet, Arrow


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file: the stream format that `datasets` writes, or the file format."""
    if not path.exists():
        raise AloeError("no such file", where=str(path), fix="check the path; it is read relative to where aloe runs")
    rows = 0
    try:
        with pa.memory_map(str(path)) as source:
            head = source.read(6)
            source.seek(0)
            if head == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches: Iterator[pa.RecordBatch] = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                _validate(batch)
                yield batch
                rows += batch.num_rows
    except (pa.ArrowException, OSError, RuntimeError, ValueError, OverflowError) as cause:
        raise AloeError(
            f"not an Arrow file that can be read ({str(cause).splitlines()[0].rstrip('.')}); {rows} rows could be read "
            "before",
            where=str(path),
            fix="save the data set again",
        ) from None


def _validate(batch: pa.RecordBatch) -> None:
    """Refuse offsets and indices that lead out of their buffers: an Arrow file is used as it lies there, so one that
    was tampered with would be read beyond its end. Texts that are no UTF-8 are for the rows to say."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as cause:
            if "UTF8" not in str(cause) or not (
                pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            ):
                raise
            raw = pa.binary() if pa.types.is_string(column.type) else pa.large_binary()
            column.view(raw).validate(full=True)


def _batches(batches: Iterator[pa.RecordBatch]) -> Iterator[Found]:
    number = 0
    for batch in batches:
        nested = json_columns(batch.schema)
        for value in _batch_rows(batch):
            number += 1
            yield number, value if isinstance(value, Broken) else _nested(value, nested)


def _batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Broken]:
    for start in range(0, batch.num_rows, 256):
        part = batch.slice(start, 256)
        try:
            rows = part.to_pylist()
        except UNREADABLE:  # one row at a time, to say which
            rows = [_one(part, i) for i in range(part.num_rows)]
        yield from rows


def _one(part: pa.RecordBatch, i: int) -> dict[str, Any] | Broken:
    try:
        row: dict[str, Any] = part.slice(i, 1).to_pylist()[0]
        return row
    except UnicodeDecodeError as cause:
        byte = cause.object[cause.start]
        return Broken("not_utf8", f"byte {byte:#04x} is not UTF-8", str(cause.object[:_START]))
    except UNREADABLE as cause:
        return Broken("unreadable_value", f"a value can't be read ({str(cause).splitlines()[0][:_START]})")


def _nested(row: dict[str, Any], columns: list[str]) -> dict[str, Any] | Broken:
    for name in columns:
        if isinstance(row[name], str):
            try:
                row[name] = json.loads(row[name])
            except (ValueError, RecursionError) as cause:
                return Broken("not_json", f"{name} is not valid JSON ({json_fault(cause)})", row[name][:_START])
    return _nested_too_deeply("") if _too_deep(row) else _fault(row) or row
