"""Ask until a text is good enough: the loop that `synthesize` and `rewrite` share.

All items still open in a try go to the engine in blocks of `BLOCK`, each with a seed keyed by item and try; texts are
judged block by block and go to disk. What stays in memory is small: the items, and the reasons against their texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aloe.contract import Context
from aloe.digests import digest_text
from aloe.errors import AloeError
from aloe.generate.engine import Engine, Reply, Request, Tick
from aloe.records import Dialogue
from aloe.synthesize.spool import AcceptedRows, TableWriter, blocks

BLOCK = 8192  # requests handed to the engine at once: full batches for any backend, and bounded memory
REJECTED_COLUMNS = {
    "id": "text", "question_id": "text", "source": "text", "try": "int", "reason": "text", "reasons": "json",
    "concluded": "text", "gold": "text", "text": "text", "error": "text", "measures": "json", "evidence": "json",
}  # fmt: skip
EXHAUSTED_COLUMNS = {"id": "text", "source": "text", "reason": "text", "reasons": "json"}


class Item(Protocol):
    """What is asked about: any row."""

    @property
    def id(self) -> str: ...

    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=Item)


@dataclass(frozen=True)
class Judged:
    """One text judged: `row` when it is kept, else the `reasons` against it, strongest first. `text`, `measures`,
    `evidence`, `concluded` and `gold` are for the reader of `rejected.parquet`."""

    row: Dialogue | None
    reasons: tuple[str, ...]
    text: str
    measures: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)
    concluded: str | None = None
    gold: str | None = None


ERRORED = Judged(None, ("errored",), "")


@dataclass
class Tally:
    """Who was asked and accepted in which try, and why texts were rejected."""

    asked: Counter[tuple[str, int]] = field(default_factory=Counter)  # (source, try)
    accepted: Counter[tuple[str, int]] = field(default_factory=Counter)
    because: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # (reason, source, try): every reason
    first: Counter[str] = field(default_factory=Counter)  # the strongest reason of each rejected text
    reasons: dict[str, list[list[str]]] = field(default_factory=dict)  # of each try, by item; items still open
    rejected: int = 0
    errors: int = 0
    error: str = ""  # the first one

    def note(self, item: Item, number: int, judged: Judged) -> None:
        """Count one judged text."""
        self.asked[item.source, number] += 1
        if judged.row is not None:
            self.accepted[item.source, number] += 1
            self.reasons.pop(item.id, None)
            return
        self.rejected += 1
        self.first[head(judged.reasons[0])] += 1
        self.because.update((head(r), item.source, number) for r in judged.reasons)
        self.reasons.setdefault(item.id, []).append(list(judged.reasons))

    @property
    def kept(self) -> int:
        """Items with an accepted text."""
        return sum(self.accepted.values())

    def by_try(self) -> list[dict[str, int]]:
        """[{try, asked, accepted}], for the tries that were made."""
        numbers = sorted({n for _, n in self.asked})
        return [{"try": n, "asked": _at(self.asked, n), "accepted": _at(self.accepted, n)} for n in numbers]

    def by_source_and_try(self) -> dict[str, dict[str, dict[str, int]]]:
        """{source: {try: {asked, accepted}}}."""
        table: dict[str, dict[str, dict[str, int]]] = {}
        for (source, number), asked in sorted(self.asked.items()):
            cell = {"asked": asked, "accepted": self.accepted[source, number]}
            table.setdefault(source, {})[str(number)] = cell
        return table

    def by_source(self) -> dict[str, dict[str, Any]]:
        """{source: {questions, accepted, share}}."""
        table = {}
        for source, tries in self.by_source_and_try().items():
            asked, kept = tries["1"]["asked"], sum(cell["accepted"] for cell in tries.values())
            table[source] = {"questions": asked, "accepted": kept, "share": round(kept / asked, 6)}
        return table

    def reasons_by(self) -> dict[str, dict[str, dict[str, int]]]:
        """{reason: {source: {try: texts}}}; a text counts under each of its reasons."""
        table: dict[str, dict[str, dict[str, int]]] = {}
        for (reason, source, number), count in sorted(self.because.items()):
            table.setdefault(reason, {}).setdefault(source, {})[str(number)] = count
        return table

    def totals(self) -> dict[str, int]:
        """{reason: texts}; a text counts under each of its reasons."""
        found: Counter[str] = Counter()
        for (reason, _, _), count in self.because.items():
            found[reason] += count
        return dict(sorted(found.items()))


def _at(counts: Counter[tuple[str, int]], number: int) -> int:
    return sum(count for (_, n), count in counts.items() if n == number)


def head(reason: str) -> str:
    """A reason without what follows its colon."""
    return reason.split(":")[0]


def write_until_accepted(
    ctx: Context,
    engine: Engine,
    items: Sequence[T],
    tries: int,
    request: Callable[[T, int], Request],
    judge: Callable[[T, Reply, int], Judged],
    accepted: AcceptedRows,
    rejected: TableWriter,
) -> Tally:
    """Up to `tries` texts per item until one is accepted; `request` and `judge` get the try's number, from 1."""
    tally = Tally()
    open_ = list(range(len(items)))
    with _progress(ctx, len(items) * tries) as tick:
        for number in range(1, tries + 1):
            left: list[int] = []
            for start, end in blocks(len(open_), BLOCK):
                block = open_[start:end]
                replies = engine.generate([request(items[i], number) for i in block], tick)
                ctx.count_tokens(
                    prompt=sum(r.prompt_tokens for r in replies), completion=sum(r.completion_tokens for r in replies)
                )
                for i, reply in zip(block, replies, strict=True):
                    judged = ERRORED if reply.error is not None else judge(items[i], reply, number)
                    if reply.error is not None:
                        tally.errors, tally.error = tally.errors + 1, tally.error or reply.error
                    tally.note(items[i], number, judged)
                    if judged.row is not None:
                        accepted.add(number, i, judged.row.to_dict())
                    else:
                        left.append(i)
                        rejected.add(_rejected(items[i], number, judged, reply))
            open_ = left
            if not open_:
                break
    return tally


@contextmanager
def _progress(ctx: Context, total: int) -> Iterator[Tick]:
    """A bar over all tries; items accepted early leave it short of the total."""
    with ctx.progress("writing", total, "texts") as bar:

        def tick(done: int, tokens: int) -> None:
            bar.advance(done)

        yield tick


def _rejected(item: Item, number: int, judged: Judged, reply: Reply) -> dict[str, Any]:
    return {
        "id": digest_text(f"{item.id}|{number}")[:16], "question_id": item.id, "source": item.source, "try": number,
        "reason": head(judged.reasons[0]), "reasons": list(judged.reasons), "concluded": judged.concluded,
        "gold": judged.gold, "text": judged.text, "error": reply.error, "measures": dict(judged.measures),
        "evidence": dict(judged.evidence),
    }  # fmt: skip


def refuse_failure(tally: Tally, count: int, tries: int, allow_empty: bool, fix: str) -> None:
    """Errors everywhere, or nothing accepted: say why, unless an empty set was asked for.

    Raises:
        AloeError: every request failed; or no text was accepted and `allow_empty` is off.
    """
    if tally.errors and tally.errors == tally.rejected and not tally.kept:
        raise AloeError(f"the writer failed every request: {tally.error}", where="writer", fix="mend the writer")
    if tally.kept or allow_empty:
        return
    counted = ", ".join(f"{reason} {n}x" for reason, n in tally.first.most_common(3))
    raise AloeError(
        f"none of {count} questions got an acceptable text in {tries} tries: {counted}", where="writer", fix=fix
    )


def write_exhausted(path: Path, items: Sequence[T], tally: Tally) -> dict[str, int]:
    """Write the items whose tries are used up, in order: the strongest reason of the last try, and all of each try.

    Returns:
        {"exhausted:<reason>": items}, for the row ledger.
    """
    dropped: Counter[str] = Counter()
    with TableWriter(path, EXHAUSTED_COLUMNS) as out:
        for item in items:
            if item.id in tally.reasons:
                tries = tally.reasons[item.id]
                reason = head(tries[-1][0])
                out.add({"id": item.id, "source": item.source, "reason": reason, "reasons": tries})
                dropped[f"exhausted:{reason}"] += 1
    return dict(sorted(dropped.items()))
