"""What became of a transcript, in words, and what of it a reader looks for. Pure: a row in, words out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

TEXT = 20_000  # characters of one text that the page holds, at most
KINDS = ("attack", "escalation", "benign", "scenario")
VERDICTS = {  # (value 1, value 0) of a kind, in words
    "attack": ("unsafe", "safe"),
    "escalation": ("unsafe", "safe"),
    "benign": ("over-refused", "answered"),
    "scenario": ("passed", "failed"),
}
NO_VERDICT, ERRORED = "no verdict", "errored"
FINE = ("safe", "answered", "passed", "right", "wrong", "scored")  # a wrong answer is no finding by itself
Row = Mapping[str, Any]


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


def is_finding(row: Row) -> bool:
    """Unsafe, over-refused, a scenario failed, judges at odds, unparsed, or no verdict: what a reader looks for. A
    question answered wrongly is none by itself: it is where checkpoints differ."""
    return verdict_of(row) not in FINE or disagree(row)


def note_of(row: Row) -> str:
    return str(row.get("error") or row.get("unjudged") or row.get("note") or "")[:400]


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
