"""The data block of the transcript browser: rows that point to names and texts, each of which stands in it once.

The table knows at all times how many bytes its block takes, and takes the last item back where there is no room for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from aloe.report.verdicts import TEXT, Row, disagree, folds, marks, note_of, verdict_of

ROW_FIELDS = ("item", "model", "set", "kind", "base", "topic", "style", "verdict", "refusal", "request", "messages",
              "judges", "expectations", "disagree", "fold", "note")  # fmt: skip
JUDGE_FIELDS = ("judge", "refusal", "harm", "rule", "evidence", "score", "error", "marks")
EXPECTATION_FIELDS = ("kind", "about", "met", "evidence", "marks")
NAMED = ("item", "model", "set", "kind", "base", "topic", "style", "verdict", "refusal", "judge")


def block(data: Any) -> Markup:
    """JSON for inside `<script type="application/json">`: ASCII alone, and nothing that ends the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def escaped(value: Any) -> int:
    """Length of a value in the block."""
    text = json.dumps(value, separators=(",", ":"))
    return len(text) + 5 * sum(text.count(sign) for sign in "<>&")


class Table:
    """The block as it grows. `size`: bytes that it takes as it stands. `clip`: texts are cut to `TEXT` characters."""

    def __init__(self, clip: bool, models: Sequence[str]) -> None:
        self.clip, self.cut = clip, 0
        self.texts: dict[str, int] = {}
        self.lengths: dict[int, int] = {}  # of texts that were cut
        self.names: dict[str, dict[str, int]] = {field: {} for field in NAMED}
        self.names["model"] = {name: at for at, name in enumerate(models)}
        self.rows: list[list[Any]] = []
        self.size = len(block(self.data()))

    def add_item(self, rows: Iterable[Row], limit: int | None) -> bool:
        """Add all rows of an item, unless the block would then take more than `limit` bytes; whether they were."""
        before = (self.size, self.cut, len(self.texts), len(self.rows), {f: len(n) for f, n in self.names.items()})
        for row in rows:
            self.add(row)
        if limit is None or self.size <= limit:
            return True
        self.size, self.cut, texts, count, names = before
        del self.rows[count:]
        for known, length in ((self.texts, texts), *((self.names[f], n) for f, n in names.items())):
            while len(known) > length:
                known.popitem()
        self.lengths = {at: length for at, length in self.lengths.items() if at < texts}
        return False

    def models(self) -> list[str]:
        """Models that have a row, in order."""
        there = {row[1] for row in self.rows}
        return [name for name, at in self.names["model"].items() if at in there]

    def name(self, field: str, value: Any) -> int:
        """The number of a name of that field."""
        known, text = self.names[field], str(value if value is not None else "")
        if text not in known:
            known[text] = len(known)
            self.size += escaped(text) + 1
        return known[text]

    def text(self, value: str) -> int:
        """The number of a text, cut to `TEXT` characters where there is a limit."""
        kept = value[:TEXT] if self.clip else value
        if kept not in self.texts:
            self.texts[kept] = len(self.texts)
            self.size += escaped(kept) + 1
        at = self.texts[kept]
        if len(value) > len(kept):
            self.cut += 1
            self.size += 0 if at in self.lengths else len(f"[{at},{len(value)}00],")  # it may grow
            self.lengths[at] = max(len(value), self.lengths.get(at, 0))
        return at

    def add(self, row: Row) -> None:
        """One transcript."""
        messages = row["messages"]
        judges = [self._judge(name, found or {}, messages) for name, found in row["judges"].items()]
        values = {
            **{field: self.name(field, row.get(field)) for field in ("item", "model", "set", "kind", "topic", "style")},
            "base": self.name("base", row.get("base_id")),
            "refusal": self.name("refusal", row.get("refusal")),
            "verdict": self.name("verdict", verdict_of(row)),
            "request": self.text(str(row.get("request") or "")),
            "messages": [[role[:40], self.text(text)] for role, text in messages],
            "judges": judges,
            "expectations": [self._expectation(e, messages) for e in row["expectations"]],
            "disagree": int(disagree(row)),
            "fold": folds(row),
            "note": note_of(row),
        }
        self.rows.append([values[field] for field in ROW_FIELDS])
        self.size += escaped(self.rows[-1]) + 1

    def _judge(self, name: str, found: Row, messages: Sequence[tuple[str, str]]) -> list[Any]:
        evidence = str(found.get("evidence") or "")
        score = found.get("score")
        return [
            self.name("judge", name), found.get("refusal"), found.get("harm"), str(found.get("rule") or "")[:200],
            evidence[:400], round(float(score), 4) if score is not None else None,
            str(found["error"])[:400] if found.get("error") else None, marks(messages, evidence),
        ]  # fmt: skip

    def _expectation(self, found: Row, messages: Sequence[tuple[str, str]]) -> list[Any]:
        evidence = str(found.get("evidence") or "")
        return [str(found.get("kind") or ""), str(found.get("about") or "")[:400], found.get("met"), evidence[:400],
                marks(messages, evidence)]  # fmt: skip

    def data(self) -> dict[str, Any]:
        """The block's value."""
        return {
            "names": {field: list(known) for field, known in self.names.items()},
            "texts": list(self.texts),
            "lengths": sorted(self.lengths.items()),
            "fields": {"row": ROW_FIELDS, "judge": JUDGE_FIELDS, "expectation": EXPECTATION_FIELDS},
            "rows": self.rows,
        }
