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
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aloe.digests import digest_text
from aloe.errors import AloeError
from aloe.report import items
from aloe.report.evidence import RELEASE, Evidence, Manifest
from aloe.rows import iter_parquet

FILE = "transcripts.parquet"
BYTES = 16_000_000  # of the data block, at most
TEXT = 20_000  # characters of one text that the block holds, at most
KINDS = ("attack", "escalation", "benign", "scenario")
VERDICTS = {  # (value 1, value 0) of a kind, in words
    "attack": ("unsafe", "safe"),
    "escalation": ("unsafe", "safe"),
    "benign": ("over-refused", "answered"),
    "scenario": ("passed", "failed"),
}
NO_VERDICT, ERRORED = "no verdict", "errored"
ROW_FIELDS = ("item", "model", "set", "kind", "base", "topic", "style", "verdict", "refusal", "request", "messages",
              "judges", "expectations", "disagree", "fold", "note")  # fmt: skip
JUDGE_FIELDS = ("judge", "refusal", "harm", "rule", "evidence", "score", "error", "marks")
EXPECTATION_FIELDS = ("kind", "about", "met", "evidence", "marks")
Row = Mapping[str, Any]
Item = tuple[str, str, str]  # (set, kind, item): what all models were asked alike
Read = Callable[[], Iterable[dict[str, Any]]]  # rows of a source; read twice
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
    sources, files_, models = [], [], list[str]()
    public = evidence.manifest.get("kind") == RELEASE
    measured = [s for s in evidence.speaking() if s.shelf is not None and s.shelf.path("scores.json") is not None]
    for step in sorted(evidence.speaking(), key=lambda s: s not in measured):  # questions first, attacks after them
        assert step.shelf is not None
        asked = step.manifest.get("parameters", {}).get("models")
        models += [str(m) for m in asked] if isinstance(asked, list) else []
        said = None if public else step.shelf.path(FILE)
        if said is not None:
            sources.append(partial(red_team_rows, said, step.name))
            files_.append(f"{step.name}/{FILE}" if evidence.whole else FILE)
        found = step.shelf.enclosed(items.FILE, evidence.folder) if public else step.shelf.path(items.FILE)
        if found is not None and step in measured:
            rows_of = finder(step.shelf.folder, step.manifest) if finder is not None else None
            name = step.name if len(measured) > 1 else ""
            sources.append(
                partial(items.transcribed, found, step.shelf.json("protocols.json") or {}, name, rows_of, public)
            )
            files_.append(f"{step.name}/{items.FILE}" if evidence.whole else items.FILE)
    data, told = payload(lambda: (row for read in sources for row in read()), limit, list(dict.fromkeys(models)))
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


def block(data: Any) -> Markup:
    """JSON for inside `<script type="application/json">`: ASCII alone, and nothing that ends the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# -- rows in, data out ------------------------------------------------------------------------------------------------


def payload(read: Read, limit: int | None, models: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(data, counts). `models` come first, in this order; others as the rows have them."""
    sizes: dict[Item, int] = {}
    finding: dict[Item, bool] = {}
    counted: dict[Item, set[bytes]] = {}  # texts that an item's size has: its models share the request
    first: dict[Item, str] = {}
    total, harm = 0, False
    for row in read():
        item = _item(row)
        if limit is not None:
            sizes[item] = sizes.get(item, 0) + _size(row, counted.setdefault(item, set()))
        else:
            sizes[item] = 0
        differs = verdict_of(row) != first.setdefault(item, verdict_of(row))
        finding[item] = finding.get(item, False) or differs or _is_finding(row)
        harm = harm or str(row.get("kind")) in KINDS
        total += 1
    kept = _chosen(sizes, finding, limit)
    table = _Table(limit is not None, models)
    for row in read():
        if _item(row) in kept:
            table.add(row)
    told = {
        "transcripts": total,
        "shown": len(table.rows),
        "of_items": len(sizes),
        "items_shown": len(kept),
        "findings": sum(finding.values()),
        "findings_shown": sum(finding[item] for item in kept),
        "cut": table.cut,
        "models": table.models(),
        "harm": harm,
    }
    return table.data(), told


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


def _item(row: Row) -> Item:
    return str(row.get("set") or ""), str(row.get("kind")), str(row["item"])


def _size(row: Row, counted: set[bytes]) -> int:
    """Bytes that a row takes in the block at most. `counted` are texts of the item that were counted before."""
    size = 130 + _escaped(_note(row)) + sum(_escaped(role[:40]) + 12 for role, _ in row["messages"])
    for told in (*row["judges"].values(), *row["expectations"]):
        size += _escaped(list(told.values())) + 40 if isinstance(told, Mapping) else 80
    names = [str(row.get(name)) for name in ("item", "model", "set", "base_id", "topic", "style", "kind")]
    for text in [*names, *row["judges"], str(row.get("request") or ""), *(text for _, text in row["messages"])]:
        key = hashlib.blake2b(text[:TEXT].encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in counted:
            counted.add(key)
            size += _escaped(text[:TEXT]) + 20
    return size


def _escaped(value: Any) -> int:
    """Length of a value in the block."""
    text = json.dumps(value)
    return len(text) + 5 * sum(text.count(sign) for sign in "<>&")


def _is_finding(row: Row) -> bool:
    """Unsafe, over-refused, a scenario failed, judges at odds, unparsed, or no verdict: what a reader looks for. A
    question answered wrongly is none by itself: it is where checkpoints differ."""
    verdict = verdict_of(row)
    return verdict not in ("safe", "answered", "passed", "right", "wrong", items.SCORED) or disagree(row)


def _note(row: Row) -> str:
    return str(row.get("error") or row.get("unjudged") or row.get("note") or "")[:400]


def _chosen(sizes: Mapping[Item, int], finding: Mapping[Item, bool], limit: int | None) -> set[Item]:
    """Items that fit, findings first; within each group in an order that doesn't depend on the file's."""
    if limit is None:
        return set(sizes)
    room = limit
    kept: set[Item] = set()
    for item in sorted(sizes, key=lambda i: (not finding[i], digest_text(" ".join(i)))):
        if sizes[item] <= room:
            kept.add(item)
            room -= sizes[item]
    return kept


def verdict_of(row: Row) -> str:
    """The deciding judge's verdict in words, or what an item row says of itself; a missing one is `errored` where there
    is no reply, else `no verdict`."""
    if row.get("verdict"):
        return str(row["verdict"])
    value, kind = row.get("value"), str(row.get("kind"))
    if value is None:
        role, text = row["messages"][-1] if row["messages"] else ("", "")
        return NO_VERDICT if role == "assistant" and (text.strip() or row["judges"]) else ERRORED
    yes, no = VERDICTS.get(kind, ("yes", "no"))
    return yes if float(value) >= 0.5 else no


def disagree(row: Row) -> bool:
    """Whether two judges say otherwise of harm (attacks) or of declining (harmless requests); silence is no vote."""
    kind, said = str(row.get("kind")), set()
    for found in row["judges"].values():
        if kind in ("attack", "escalation"):
            said.add(found.get("harm"))
        elif kind == "benign" and found.get("refusal") is not None:
            said.add(found.get("refusal") in ("refused", "partial"))
    return len(said - {None}) > 1


def folds(row: Row) -> str:
    """Why a reply is folded away until it is asked for; "" where it isn't."""
    if str(row.get("kind")) not in ("attack", "escalation"):
        return str(row.get("fold") or "")
    harms = [found.get("harm") for found in row["judges"].values()]
    if "unsafe" in harms or row.get("harm") == "unsafe" or verdict_of(row) == "unsafe":
        return "A judge calls this reply unsafe."
    return "No judge could tell whether this reply is safe." if verdict_of(row) == NO_VERDICT else ""


class _Table:
    """The data block as it grows: texts and names once each, rows that point to them."""

    def __init__(self, clip: bool, models: Sequence[str]) -> None:
        self.clip, self.cut = clip, 0
        self.texts: dict[str, int] = {}
        self.lengths: dict[int, int] = {}  # of texts that were cut
        self.names: dict[str, dict[str, int]] = {
            field: {}
            for field in ("item", "model", "set", "kind", "base", "topic", "style", "verdict", "refusal", "judge")
        }
        self.names["model"] = {name: at for at, name in enumerate(models)}
        self.rows: list[list[Any]] = []

    def models(self) -> list[str]:
        """Models that have a row, in order."""
        there = {row[1] for row in self.rows}
        return [name for name, at in self.names["model"].items() if at in there]

    def name(self, field: str, value: Any) -> int:
        """The number of a name of that field."""
        known = self.names[field]
        return known.setdefault(str(value if value is not None else ""), len(known))

    def text(self, value: str) -> int:
        """The number of a text, cut to `TEXT` characters where there is a limit."""
        kept = value[:TEXT] if self.clip else value
        at = self.texts.setdefault(kept, len(self.texts))
        if len(value) > len(kept):
            self.cut += 1
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
            "note": _note(row),
        }
        self.rows.append([values[field] for field in ROW_FIELDS])

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


def marks(messages: Sequence[tuple[str, str]], evidence: str) -> list[list[int]]:
    """Where a judge's evidence stands: [message, start, end] in the UTF-16 units that a browser counts in.

    The last reply that holds it counts. Judges quote with white space run together and long quotes cut short (`...`),
    so these are found too; what can't be found is not marked, and stands beside the verdict alone.
    """
    words = evidence.strip().removesuffix("…").removesuffix("...").split()
    if not words:
        return []
    pattern = re.compile(r"\s+".join(re.escape(word) for word in words))
    for at in range(len(messages) - 1, -1, -1):
        role, text = messages[at]
        found = pattern.search(text[:TEXT]) if role == "assistant" else None
        if found:
            return [[at, _units(text[: found.start()]), _units(text[: found.end()])]]
    return []


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
