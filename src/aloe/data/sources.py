"""Rows from anywhere: JSON Lines (gzip or plain), JSON arrays, Parquet, CSV and artifact or dataset folders, as
records. A row that doesn't fit goes to the ledger with file, line and reason; with `strict` it is an error."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from aloe.data.shapes import SHAPES, Defaults, Misfit, Shape
from aloe.data.starter import LICENCE, is_starter, starter_names, starter_path
from aloe.errors import AloeError
from aloe.records import AttackPrompt, Dialogue, Preference, Question, Row, row_id
from aloe.rows import read_dicts

R = TypeVar("R", bound=Row)
RowKind = Literal["auto", "question", "dialogue", "preference", "attack"]
SUFFIXES = (".jsonl.gz", ".json.gz", ".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Dropped:
    """A row that left the flow: where, why, and what shows it. `row` is its content, for the reader of the ledger."""

    id: str
    source: str
    stage: str
    reason: str
    where: str = ""
    detail: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)


def source_name(ref: str) -> str:
    """The name a reference gives its rows: `starter/<name>` and step names as they are, files without folder and
    suffix."""
    if is_starter(ref):
        return ref
    name = Path(ref).name
    return next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), ref)


def load_rows(
    path: Path,
    *,
    source: str,
    licence: str | None = None,
    kind: RowKind = "auto",
    limit: int | None = None,
    strict: bool = False,
    ids: Literal["own", "content"] = "own",
) -> tuple[list[Row], list[Dropped]]:
    """Read a file or folder as records of one kind.

    Args:
        path: `.jsonl[.gz]`, `.json`, `.parquet`, `.csv`, an artifact folder (its `rows.parquet`) or a folder of
            such files.
        source: for rows that state no `source` of their own.
        licence: for all rows, over what they state; without it a row's own, else `unknown`.
        kind: what the rows must become; `auto` takes the shape of the first row. `question` also takes dialogues
            that carry their original question in `meta` (what `curate` writes).
        limit: read at most this many rows.
        strict: a row that doesn't fit is an error instead of a dropped row, and no answer is repaired.
        ids: `own` takes the `id` column (content where a row has none) and refuses repeated ids; `content` makes every
            id from the row's content, for sets whose own ids repeat.

    Returns:
        The records in file order, and what was dropped.

    Raises:
        AloeError: missing or empty input, unknown shape, repeated id, or (strict) a row that doesn't fit.
    """
    defaults = Defaults(source, licence, repair=not strict, content_ids=ids == "content")
    records: list[Row] = []
    dropped: list[Dropped] = []
    seen: dict[str, str] = {}
    shape: Shape | None = None
    for count, (where, row) in enumerate(_rows(path)):
        if count == limit:
            break
        shape = shape or _shape_of(row, where, kind)
        try:
            record = _build(shape, row, defaults, kind)
        except Misfit as misfit:
            if strict:
                raise AloeError(misfit.detail, where=where, fix=f"mend or remove this {shape.name} row") from None
            dropped.append(_dropped(row, defaults, misfit, Path(where).name))  # no folder: ledgers are portable
            continue
        record = _unique(record, bool(row.get("id")) and ids == "own", seen, where)
        seen[record.id] = where
        records.append(record)
    if shape is None:
        raise AloeError("no rows", where=str(path), fix="give a file that holds at least one row")
    return records, dropped


def _build(shape: Shape, row: dict[str, Any], defaults: Defaults, kind: RowKind) -> Row:
    try:
        record = shape.build(row, defaults)
    except ValueError as cause:  # the record's own check
        raise Misfit("invalid_row", str(cause)) from None
    if kind == "question" and not isinstance(record, Question):
        question = question_of(record)
        if question is None:
            raise Misfit("not_a_question", "this dialogue was not made from a multiple-choice question")
        return question
    return record


def _dropped(row: dict[str, Any], defaults: Defaults, misfit: Misfit, where: str) -> Dropped:
    plain = json.loads(json.dumps(row, default=str))
    name, origin = str(row.get("id") or row_id(plain)), str(row.get("source") or defaults.source)
    return Dropped(name, origin, "load", misfit.reason, where, misfit.detail, row=plain)


def _unique(record: Row, own: bool, seen: Mapping[str, str], where: str) -> Row:
    if record.id not in seen:
        return record
    if own:
        raise AloeError(
            f"id {record.id!r} was used before, at {seen[record.id]}",
            where=where,
            fix="give every row its own id, or say `ids: content` to have ids made from content",
        )
    number = 2  # rows without ids may repeat word for word; exact deduplication deals with that
    while f"{record.id}-{number}" in seen:
        number += 1
    return replace(record, id=f"{record.id}-{number}")


def _shape_of(row: Mapping[str, Any], where: str, kind: RowKind) -> Shape:
    columns = set(row)
    shape = next((s for s in SHAPES if s.fits(columns)), None)
    if shape is None:
        raise AloeError(
            f"columns {sorted(columns)} are no known row shape",
            where=where,
            fix="use one of: " + "; ".join(SHAPE_HELP),
        )
    wanted = "attack" if shape.makes is AttackPrompt else shape.makes.kind
    if kind not in ("auto", wanted) and not (kind == "question" and shape.makes is Dialogue):
        raise AloeError(
            f"these are {shape.name} rows, expected {kind} rows", where=where, fix=f"give a file of {kind} rows"
        )
    return shape


SHAPE_HELP = (
    "question + options + answer",
    "question + choices + answer (0-based index)",
    "question + answer",
    "instruction + input + output",
    "conversations (from, value)",
    "messages (role, content)",
    "prompt + chosen + rejected",
    "request + safe_response",
)


# ---------------------------------------------------------------------------------------------- files


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, row) of a file or folder."""
    if path.is_dir():
        for file in _files(path):
            yield from _rows(file)
        return
    if path.suffix == ".csv":
        numbered = _read_csv(path)
    elif path.suffix == ".json" and path.exists() and path.read_text("utf-8").lstrip()[:1] == "[":
        numbered = enumerate(_read_json_array(path), 1)
    elif path.exists() and not path.name.endswith(SUFFIXES):
        raise AloeError("not a kind of file that holds rows", where=str(path), fix="use one of " + ", ".join(SUFFIXES))
    else:
        numbered = read_dicts(path)
    for number, row in numbered:
        yield f"{path}:{number}", row


def _files(folder: Path) -> list[Path]:
    if (folder / "rows.parquet").exists():
        return [folder / "rows.parquet"]
    if (folder / "manifest.json").exists():
        raise AloeError("this artifact holds no rows", where=str(folder), fix="name a step that makes rows")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not files:
        raise AloeError("no data files in this folder", where=str(folder), fix="put one of " + ", ".join(SUFFIXES))
    return files


def _read_json_array(path: Path) -> list[dict[str, Any]]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as cause:
        raise AloeError(
            f"not valid JSON ({cause.msg})", where=f"{path}:{cause.lineno}", fix="repair the file"
        ) from None
    if not all(isinstance(v, dict) for v in values):
        raise AloeError("the array holds something that is not an object", where=str(path), fix="one {...} per row")
    return list(values)


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.exists():
        raise AloeError("no such file", where=str(path), fix="check the path; it is read relative to where aloe runs")
    csv.field_size_limit(1 << 27)
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        for row in reader:
            if None in row or None in row.values():
                raise AloeError(
                    f"this row has not the {len(reader.fieldnames or [])} cells of the header",
                    where=f"{path}:{reader.line_num}",
                    fix="quote cells that hold commas or line breaks",
                )
            yield reader.line_num, {k: _cell(k, v) for k, v in row.items() if v != ""}


def _cell(column: str, text: str) -> Any:
    """CSV has no types: an answer of digits is an index, everything else stays text."""
    return int(text) if column in ("answer", "answer_idx", "answer_index", "cop") and text.isdecimal() else text


# ---------------------------------------------------------------------------------------------- typed loaders


def question_of(record: Row) -> Question | None:
    """The multiple-choice question a record is, or was made from (`meta["question"]`, under the record's id)."""
    if isinstance(record, Question):
        return record
    inner = record.meta.get("question") if isinstance(record, Dialogue) else None
    if not isinstance(inner, dict):
        return None
    return replace(Question.from_dict(inner), id=record.id, source=record.source, licence=record.licence)


def load_questions(
    path: Path, *, source: str | None = None, licence: str | None = None, strict: bool = True, limit: int | None = None
) -> list[Question]:
    """Multiple-choice questions of a file, a starter set or an artifact.

    From a dialogues artifact come the questions its rows were made from; its other rows are no questions and are
    passed over. `strict=False` passes over rows that don't fit, too: use `load_rows` where they must be counted.
    """
    name = source or _default_name(path)
    rows, _ = load_rows(path, source=name, licence=licence or _starter_licence(path), strict=strict)
    found = [q for q in map(question_of, rows) if q is not None]
    if not found:
        raise AloeError("no multiple-choice questions here", where=str(path), fix="give question + options + answer")
    return found[:limit]


def load_preferences(
    path: Path, *, source: str | None = None, licence: str | None = None, strict: bool = True, limit: int | None = None
) -> list[Preference]:
    """Preference pairs of a file, a starter set or an artifact."""
    return _typed(path, Preference, "preference", source, licence, strict, limit)


def load_attacks(
    path: Path, *, source: str | None = None, licence: str | None = None, strict: bool = True, limit: int | None = None
) -> list[AttackPrompt]:
    """Red-team requests and benign look-alikes of a file, a starter set or an artifact."""
    return _typed(path, AttackPrompt, "attack", source, licence, strict, limit)


def _typed(
    path: Path, cls: type[R], kind: RowKind, source: str | None, licence: str | None, strict: bool, limit: int | None
) -> list[R]:
    rows, _ = load_rows(
        path, source=source or _default_name(path), licence=licence or _starter_licence(path), kind=kind,
        strict=strict, limit=limit,
    )  # fmt: skip
    return [r for r in rows if isinstance(r, cls)]


def _is_starter_file(path: Path) -> bool:
    return path.stem in starter_names() and path == starter_path(path.stem)


def _default_name(path: Path) -> str:
    return f"starter/{path.stem}" if _is_starter_file(path) else source_name(path.name)


def _starter_licence(path: Path) -> str | None:
    return LICENCE if _is_starter_file(path) else None
