"""Parquet written row by row: the same files as `aloe.rows.write_parquet` makes, without holding all rows at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aloe.rows import JSON_COLUMNS
from aloe.schema import mark_rows

GROUP = 65_536  # rows of a row group


class ParquetRows:
    """A Parquet file of text columns; those in `nested` hold JSON.

    Args:
        path: file to write.
        columns: names, in order.
        nested: which of them take dicts and lists.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], nested: tuple[str, ...]) -> None:
        self.columns, self.nested, self.count = columns, nested, 0
        marked = {JSON_COLUMNS: json.dumps([c for c in columns if c in nested]).encode(), **mark_rows()}
        self._schema = pa.schema([(c, pa.string()) for c in columns], metadata=marked)
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[tuple[str, ...]] = []

    def put(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._rows.append(
            tuple(
                json.dumps(row[c], ensure_ascii=False, sort_keys=True) if c in self.nested else row[c]
                for c in self.columns
            )
        )
        self.count += 1
        if len(self._rows) == GROUP:
            self._flush()

    def _flush(self) -> None:
        columns = (
            [list(values) for values in zip(*self._rows, strict=True)] if self._rows else [[] for _ in self.columns]
        )
        self._file.write_table(
            pa.table([pa.array(values, pa.string()) for values in columns], schema=self._schema), row_group_size=GROUP
        )
        self._rows = []

    def close(self) -> None:
        """Write what is held and end the file."""
        if self._rows or not self.count:
            self._flush()
        self._file.close()

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
