"""Item rows of scores, read by columns: of a million rows only what comparisons need becomes Python values.

What an item's `meta` says (its cluster, by-products) is read by Arrow's JSON parser, field by field. A batch that it
won't read as Python would (a key twice, NaN, a field of another type) is read by Python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.json as pj

from aloe.errors import AloeError
from aloe.records import ItemResult
from aloe.rows import UNREADABLE, column_texts, json_columns, parquet_batches

KEY = ("model", "benchmark", "protocol", "metric")
READ = (*KEY, "item", "value", "gold", "prediction", "meta")
BATCH_ROWS = 8192
FIX = "evaluate again"
CLUSTER, LETTER, TEXT = "cluster", "text_letter", "text_accuracy"
ABSENT: Any = object()  # what a row's meta says of a field that isn't in it
Metas = dict[str, list[Any]]  # field -> its value in every row, ABSENT where it isn't stated


class Scored(NamedTuple):
    """What a comparison needs of an item row beside its values. `cluster`: items that vary together, the item itself
    where it states none; `letter`: the option chosen by its text, "" where that wasn't asked."""

    metric: str
    gold: str
    prediction: str
    cluster: str
    letter: str


class Run(NamedTuple):
    """Rows one after the other of one model, benchmark, protocol and metric (`key`). `values`: by metric, its own
    first; None where an item has none."""

    key: tuple[str, str, str, str]
    items: list[str]
    rows: list[Scored]
    values: dict[str, list[float | None]]


def read_runs(path: Path, by_products: Sequence[str]) -> Iterator[Run]:
    """The rows of an items file, in its order.

    Args:
        by_products: metrics that `meta` may state beside the item's own.

    Raises:
        AloeError: these are no rows of scored items, or a value that is read is not a finite number.
    """
    stated = list(dict.fromkeys([TEXT, *by_products]))
    for batch in parquet_batches(path, lambda schema: _columns(schema, path), BATCH_ROWS):
        missing = sorted(_REQUIRED - set(batch.schema.names))
        if missing and batch.num_rows:
            raise _no_rows(f"no column {missing[0]!r}", path)
        if batch.num_rows:
            yield from _runs(batch, stated, path)


_FIELDS = {f.name for f in fields(ItemResult)}
_REQUIRED = {f.name for f in fields(ItemResult) if f.default is MISSING and f.default_factory is MISSING} & set(READ)


def _columns(schema: pa.Schema, path: Path) -> list[str]:
    unknown = sorted(set(schema.names) - _FIELDS)
    if unknown:
        raise _no_rows(f"ItemResult has no field {unknown[0]!r}", path)
    return [name for name in READ if name in schema.names]


def _no_rows(why: str, path: Path) -> AloeError:
    return AloeError(f"not a row of scored items ({why})", where=str(path), fix=FIX)


# -- a batch -----------------------------------------------------------------------------------------------------------


def _runs(batch: pa.RecordBatch, stated: Sequence[str], path: Path) -> Iterator[Run]:
    texts = {name: column_texts(batch, name) for name in (*KEY, "item", "gold", "prediction")}
    values = batch.column("value").to_pylist()
    if not all(v is None or isinstance(v, int | float) for v in values):
        raise _no_rows("a value is no number", path)
    metas, unsound = _metas(batch, list(dict.fromkeys([CLUSTER, LETTER, *stated])), path)
    _check_finite([values, *metas.values(), unsound], texts, path)
    for begin, end in _spans(texts):
        part = slice(begin, end)
        key = (texts["model"][begin], texts["benchmark"][begin], texts["protocol"][begin], texts["metric"][begin])
        items, golds, letters = texts["item"][part], texts["gold"][part], metas[LETTER][part]
        rows = [
            Scored(key[3], gold, said, item if group is ABSENT else str(group), "" if letter is ABSENT else str(letter))
            for item, gold, said, group, letter in zip(
                items, golds, texts["prediction"][part], metas[CLUSTER][part], letters, strict=True
            )
        ]
        mine = [None if v is None else float(v) for v in values[part]]
        found = {name: _stated(mine, metas[name][part]) for name in stated}
        found[TEXT] = [
            other if letter is ABSENT or v is None else float(letter == gold)
            for v, other, letter, gold in zip(mine, found[TEXT], letters, golds, strict=True)
        ]
        yield Run(key, items, rows, {**found, key[3]: mine})


def _stated(values: Sequence[float | None], said: Sequence[Any]) -> list[float | None]:
    """A by-product's values: those of items that have a value of their own, and state this one as a number."""
    return [
        float(s) if v is not None and isinstance(s, int | float) and not isinstance(s, bool) else None
        for v, s in zip(values, said, strict=True)
    ]


def _spans(texts: dict[str, list[str]]) -> Iterator[tuple[int, int]]:
    """Where rows of one key begin and end."""
    keys = list(zip(*(texts[name] for name in KEY), strict=True))
    begin = 0
    for at in range(1, len(keys) + 1):
        if at == len(keys) or keys[at] != keys[begin]:
            yield begin, at
            begin = at


def _check_finite(columns: Sequence[Sequence[Any]], texts: dict[str, list[str]], path: Path) -> None:
    firsts = (
        next((i for i, v in enumerate(c) if isinstance(v, float) and not math.isfinite(v)), None) for c in columns
    )
    at = min((first for first in firsts if first is not None), default=None)
    if at is not None:
        what = (
            f"item {texts['item'][at]} of {texts['benchmark'][at]}, model {texts['model'][at]}, has a value that is "
            "not a finite number"
        )
        fix = "a failed item must be `errored` without a value; look at the model for NaN weights and evaluate again"
        raise AloeError(what, where=str(path), fix=fix)


# -- what meta says ----------------------------------------------------------------------------------------------------


def _metas(batch: pa.RecordBatch, names: Sequence[str], path: Path) -> tuple[Metas, list[float]]:
    """The fields, and by rows a number of meta that isn't finite, where Python read them and met one."""
    if "meta" not in batch.schema.names:
        return {name: [ABSENT] * batch.num_rows for name in names}, []
    column, text = batch.column("meta"), "meta" in json_columns(batch.schema)
    if text and pa.types.is_string(column.type) and not column.null_count:
        found = _by_arrow(column, names)
        if found is not None:
            return found, []
    return _by_python(column, names, text, path)


def _by_arrow(column: pa.StringArray, names: Sequence[str]) -> Metas | None:
    """The fields by Arrow's parser; None where it doesn't read them, or where it and Python could differ."""
    texts = column.to_pylist()
    schema = pa.schema([(name, pa.string() if name in (CLUSTER, LETTER) else pa.float64()) for name in names])
    data = "\n".join(texts).encode()
    if b"NaN" in data or b"Infinity" in data:
        return None  # perhaps as numbers, which are refused wherever they stand
    try:
        table = pj.read_json(
            pa.py_buffer(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    if table.num_rows != len(texts):
        return None
    found = {}
    for name in names:
        values = table.column(name)
        told = values.to_pylist()
        if values.null_count == len(texts) - data.count(f'"{name}"'.encode()):
            found[name] = [ABSENT if v is None else v for v in told]  # wherever it stands, it has a value
        else:
            mark = f'"{name}"'
            found[name] = [
                v if v is not None else json.loads(text).get(name, ABSENT) if mark in text else ABSENT
                for v, text in zip(told, texts, strict=True)
            ]
    return found


def _by_python(column: pa.Array, names: Sequence[str], text: bool, path: Path) -> tuple[Metas, list[float]]:
    try:
        metas = [json.loads(m) if text else m for m in column.to_pylist()]
    except UNREADABLE as cause:
        what = f"a row can't be read ({str(cause)[:200]})"
        raise AloeError(what, where=str(path), fix="write the file again") from None
    if not all(isinstance(m, dict) for m in metas):
        raise _no_rows("meta is no object", path)
    unsound = [next((v for v in meta.values() if isinstance(v, float) and not math.isfinite(v)), 0.0) for meta in metas]
    return {name: [m.get(name, ABSENT) for m in metas] for name in names}, unsound
