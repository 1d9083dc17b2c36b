"""The transcript browser: what was asked and answered, as data for the page's one script.

Texts of models reach the page in a block of JSON that holds no `<`, `>` or `&`, and from there only text nodes: nothing
in them is ever parsed as markup. A text stands in the block once however many models were asked it. The block has a
size that it doesn't exceed: whole items (all models' replies) are taken while there is room, those with a finding
first, then the rest in a keyed order; what is left out is counted on the page.

A red team's own artifact shows its transcripts, a scores artifact its item rows (`items.py`), a run both. A release
shows answers to questions as it encloses them, and nothing of what was asked for harm: there, such replies are
withheld.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aloe.errors import AloeError
from aloe.report import items
from aloe.report.choosing import Log, payload, surveyed
from aloe.report.evidence import RELEASE, Evidence, Manifest
from aloe.report.transcript_table import block
from aloe.rows import iter_parquet

FILE = "transcripts.parquet"
BYTES = 16_000_000  # of the data block, at most
Finder = Callable[[Path, Manifest], items.RowsOf]  # of the rows that a scores artifact was asked


# -- the section ------------------------------------------------------------------------------------------------------


def transcripts(evidence: Evidence, limit: int | None = BYTES, finder: Finder | None = None) -> dict[str, Any] | None:
    """What the template needs: the data block, counts, and the script; None where there are no transcripts.

    Args:
        limit: bytes of the data block at most; None for no limit, on it or on single texts.
        finder: finds the rows that scores name by id; without it, ids stand for them.

    Raises:
        AloeError: a row of a file can't be read.
    """
    logs, files_, models = [], [], list[str]()
    public = evidence.manifest.get("kind") == RELEASE
    measured = [s for s in evidence.speaking() if s.shelf is not None and s.shelf.path("scores.json") is not None]
    for step in sorted(evidence.speaking(), key=lambda s: s not in measured):  # questions first, attacks after them
        assert step.shelf is not None
        asked = step.manifest.get("parameters", {}).get("models")
        models += [str(m) for m in asked] if isinstance(asked, list) else []
        said = None if public else step.shelf.path(FILE)
        if said is not None:
            logs.append(red_team_log(said, step.name))
            files_.append(f"{step.name}/{FILE}" if evidence.whole else FILE)
        found = step.shelf.enclosed(items.FILE, evidence.folder) if public else step.shelf.path(items.FILE)
        if found is not None and step in measured:
            rows_of = finder(step.shelf.folder, step.manifest) if finder is not None else None
            name = step.name if len(measured) > 1 else ""
            logs.append(items.log_of(found, step.shelf.json("protocols.json") or {}, name, rows_of, public))
            files_.append(f"{step.name}/{items.FILE}" if evidence.whole else items.FILE)
    data, told = payload(logs, limit, list(dict.fromkeys(models)))
    return {"data": block(data), "files": files_, **told} if told["transcripts"] else None


@cache
def script() -> Markup:
    """The browser's script, as it stands in the page."""
    text = files("aloe.report").joinpath("templates", "transcripts.js").read_text(encoding="ascii")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("transcripts.js would end its own element")
    return Markup(text)


def script_hash() -> Markup:
    """The source expression by which the page's content security policy lets that script, and no other, run."""
    digest = base64.b64encode(hashlib.sha256(script().encode("ascii")).digest()).decode()
    return Markup(f"'sha256-{digest}'")  # + and / and = of base64 need no escaping


# -- a red team's rows -------------------------------------------------------------------------------------------------


def red_team_log(path: Path, name: str = "") -> Log:
    """The rows of a red team's transcripts; `name` is what their set is called."""

    def rows(numbers: Sequence[int] | None) -> Iterator[tuple[int, dict[str, Any]]]:
        wanted = None if numbers is None else set(numbers)
        for number, row in enumerate(red_team_rows(path, name)):
            if wanted is None or number in wanted:
                yield number, row

    return Log(lambda: surveyed(rows(None)), rows)


def red_team_rows(path: Path, name: str = "") -> Iterator[dict[str, Any]]:
    """Rows of a red team's transcripts; `name` is what their set is called.

    Raises:
        AloeError: a row that can't be read, with its number.
    """
    for number, row in enumerate(iter_parquet(path), 1):
        try:
            for field in ("messages", "judges", "expectations"):
                value = row.get(field)
                row[field] = json.loads(value) if isinstance(value, str) and value else value
            row["messages"] = [(str(m["role"]), str(m["content"])) for m in row["messages"] or ()]
            row["judges"], row["expectations"] = dict(row["judges"] or {}), list(row["expectations"] or ())
            row["item"], row["model"], row["set"] = str(row["item"]), str(row["model"]), name
        except (KeyError, TypeError, ValueError) as cause:
            fault = f"lacks {cause}" if isinstance(cause, KeyError) else str(cause)
            raise AloeError(f"not a transcript ({fault})", where=f"{path}, row {number}",
                            fix="make the artifact anew") from None  # fmt: skip
        yield row
