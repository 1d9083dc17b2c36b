"""Of which shape a file is that aloe writes and reads again: a number in it, and the one rule by which it is read.

Every kind of thing counts its shapes from 1. A newer aloe reads all older numbers; a number above the newest that this
aloe knows is refused with one error, whoever reads it, before anything in the file is believed. What states no number
is of shape 1: that is how it was written before there were numbers.

An artifact states its number in `manifest.json` (`format`), and that covers every file the manifest lists. Tables that
are also read away from their manifest (`scores.json` of a copied folder, rows of any Parquet file) state one themselves
from shape 2 on (`schema`, of Parquet the key `aloe_schema`), so that content digests of shape 1 stay what they are.
What no manifest covers (ledgers, stores, classifiers, calibrations, chosen sizes) always states one.

Raise a number in `LATEST` when an aloe that is out there could not read, or would misread, what this one writes; a verb
whose results change meaning raises its own `version` instead. Then read the older number, too, and keep a fixture of it
(`make fixture`; docs/reliability.md).

Caches that only save time (finished stages of a curation, tokens, journals of merges and searches) are keyed by what
made them: another version doesn't find them and makes them again. They need no number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aloe
from aloe.errors import AloeError

FIELD = "schema"  # in JSON objects that state no `format`
PARQUET = b"aloe_schema"  # in the metadata of a Parquet file's schema
LATEST: dict[str, int] = {
    "artifact": 1,  # manifest.json and the files it lists
    "scores": 1,  # scores.json with protocols.json
    "red team": 1,  # red_team.json
    "rows": 1,  # Parquet rows of every kind: items.parquet, rows.parquet, dropped.parquet
    "request ledger": 1,  # SQLite's user_version
    "checkpoint": 1,
    "exemplar store": 1,
    "TF-IDF": 1,
    "judge": 1,  # the packaged classifier and those trained like it
    "toxicity classifier": 1,
    "calibration": 1,
    "chosen sizes": 1,  # budget.json
}
_NUMBERED = re.compile(r"(?P<name>.*)/(?P<number>[1-9][0-9]{0,8})")


class Newer(AloeError):
    """Written by a newer aloe than this one."""


def check(kind: str, stated: Any, where: str | Path) -> int:
    """The number that a file states (1 where it states none).

    Args:
        kind: a key of `LATEST`.
        stated: what stands in the file.
        where: the file.

    Raises:
        Newer: the number is above what this aloe knows.
        AloeError: it is no number.
    """
    if stated is None:
        return 1
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 1:
        what = f"states {str(stated)[:80]!r} as the schema of its {kind}, which is no number from 1"
        raise AloeError(what, where=str(where), fix="restore it, or make it anew")
    if stated > LATEST[kind]:
        raise Newer(
            f"written by a newer aloe: the schema of its {kind} is {stated}, "
            f"and this one (aloe {aloe.__version__}) knows {LATEST[kind]}",
            where=str(where),
            fix="upgrade aloe-llm: pip install --upgrade aloe-llm",
        )
    return stated


def check_object(kind: str, content: Any, where: str | Path, field: str = FIELD) -> int:
    """`check` of a JSON object's field; other values state no number."""
    return check(kind, content.get(field) if isinstance(content, Mapping) else None, where)


def check_rows(metadata: Mapping[bytes, bytes] | None, where: str | Path) -> int:
    """`check` of a Parquet file, by its schema's metadata."""
    text = (metadata or {}).get(PARQUET)
    if text is None:
        return 1
    return check("rows", int(text) if text.isdigit() and len(text) < 10 else text, where)


def check_name(kind: str, name: str, stated: Any, where: str | Path) -> int:
    """`check` of a format that is written as "NAME/NUMBER".

    Raises:
        ValueError: it has another name.
    """
    found = _NUMBERED.fullmatch(stated) if isinstance(stated, str) else None
    if found is None or found["name"] != name:
        raise ValueError(f"its format is {str(stated)[:80]!r}, not {name}/{LATEST[kind]}")
    return check(kind, int(found["number"]), where)


def mark(kind: str) -> dict[str, int]:
    """What a table of this kind states of itself: nothing while it is of shape 1."""
    return {FIELD: LATEST[kind]} if LATEST[kind] > 1 else {}


def mark_rows() -> dict[bytes, bytes]:
    """What a Parquet file states of itself: nothing while it is of shape 1."""
    return {PARQUET: str(LATEST["rows"]).encode()} if LATEST["rows"] > 1 else {}
