"""The texts of a `synthesize` artifact as material for pairs: what was accepted, and what was rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aloe.contract import Context
from aloe.errors import AloeError
from aloe.keyed import shuffled
from aloe.records import Question
from aloe.rows import iter_parquet
from aloe.synthesize.lengths import count_words
from aloe.synthesize.pairs import Sample, SampleOutcome, in_one_form
from aloe.synthesize.sampling import Prompt

WRONG = "disagrees_with_label"


def written_texts(
    folder: Path, *, any_reason: bool, limit: int | None, seed: int, ctx: Context
) -> Iterator[tuple[Prompt, list[Sample]]]:
    """Every question with an accepted text: that text, and the rejected ones.

    A rejected text is brought into the form of accepted ones (answer line, nothing after it). Its letter is what it
    concludes with; with `any_reason`, a text that was rejected for another reason than its conclusion (copies, leaks,
    options passed over) is on the wrong side too, under no letter.

    Rejected texts are held in memory, those of the questions taken only.

    Args:
        folder: what `synthesize` wrote.
        any_reason: take texts rejected for any reason, not for a wrong conclusion alone.
        limit: at most this many questions with an accepted text, drawn by key.
        seed: of that draw.
        ctx: the running step, whose ledger is told of questions without an accepted text and beyond the limit.

    Raises:
        AloeError: the folder is no `synthesize` artifact.
    """
    if not (folder / "rejected.parquet").exists() or not (folder / "rows.parquet").exists():
        raise AloeError(
            "no rejected texts here", where=str(folder), fix="name a `synthesize` step: it keeps its rejected texts"
        )
    names = [row["meta"]["original_id"] for row in iter_parquet(folder / "rows.parquet")]
    never = sum(1 for _ in iter_parquet(folder / "dropped.parquet"))
    taken = set(shuffled(names, seed, "preference-limit", names)[:limit])
    left = {"never accepted": never, "over limit": len(names) - len(taken)}
    if any(left.values()):
        dropped = {reason: count for reason, count in left.items() if count}
        ctx.ledger("rows", rows_in=len(names) + never, kept=len(taken), dropped=dropped)
    rejected: dict[str, list[Sample]] = {}
    for row in iter_parquet(folder / "rejected.parquet"):
        if row["question_id"] in taken:
            rejected.setdefault(row["question_id"], []).append(_rejected(row, any_reason))
    for row in iter_parquet(folder / "rows.parquet"):
        if (name := row["meta"]["original_id"]) in taken:
            yield _prompt(row), [_accepted(row), *rejected.pop(name, [])]


def _prompt(row: Mapping[str, Any]) -> Prompt:
    question = Question.from_dict(row["meta"]["question"])
    asked = tuple(row["messages"][:-1])
    return Prompt(row["meta"]["original_id"], row["source"], row["licence"], asked, question, "")


def _accepted(row: Mapping[str, Any]) -> Sample:
    text, meta = row["messages"][-1]["content"], row["meta"]
    return Sample(meta["try"], text, "answered", count_words(text), meta["question"]["answer"], "accepted")


def _rejected(row: Mapping[str, Any], any_reason: bool) -> Sample:
    """`answered` marks a text that may stand on the wrong side."""
    if row["error"] or not row["text"]:
        return Sample(row["try"], "", "errored", 0)
    text, reasons = in_one_form(row["text"], row["concluded"]), row["reasons"]
    if "truncated" in reasons:
        outcome: SampleOutcome = "truncated"
    else:
        outcome = "answered" if any_reason or WRONG in reasons else "unparsed"
    letter = row["concluded"] if row["concluded"] != row["gold"] else None
    return Sample(row["try"], text, outcome, count_words(text), letter, row["reason"])
