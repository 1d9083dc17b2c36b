"""Which transcripts a page holds, where it can't hold all: whole items, findings first, in an order that no
file decides.

Every log is first surveyed, by columns where it is large: which item a row is of, what became of it. Then the items
are tried in order, each with all its rows, until there is no room: those with a finding first (a verdict to look at,
judges at odds, checkpoints at odds), the others after them, each in a keyed order. Only rows of items that are tried
are ever read in full.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from aloe.digests import digest_text
from aloe.report.transcript_table import Table
from aloe.report.verdicts import KINDS, is_finding, verdict_of

ROWS = 50_000  # transcripts that a page holds at most, so that its browser answers at once
PASSED = 100  # items that found no room, after which no smaller one is looked for
SLACK = 1.2  # by how much more is read than is likely to fit
Group = tuple[str, str]  # (set, kind) of an item


class Surveyed(NamedTuple):
    """A stretch of a log, by columns. `sizes`: about how many bytes of a page each row would take."""

    numbers: Sequence[int]
    groups: Sequence[Group]
    items: Sequence[str]
    verdicts: Sequence[str]
    findings: Sequence[bool]
    sizes: Sequence[int]


@dataclass(frozen=True)
class Log:
    """Rows of one file. `rows` reads those with the given numbers (from 0, ascending; None: all) in full."""

    survey: Callable[[], Iterable[Surveyed]]
    rows: Callable[[Sequence[int] | None], Iterator[tuple[int, dict[str, Any]]]]


def surveyed(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Surveyed]:
    """The survey of rows that are read in full anyway."""
    for number, row in rows:
        group = (str(row.get("set") or ""), str(row.get("kind")))
        size = 200 + sum(len(text) for _, text in row["messages"])
        yield Surveyed([number], [group], [str(row["item"])], [verdict_of(row)], [is_finding(row)], [size])


@dataclass
class _Items:
    """All items of all logs, numbered as they come."""

    names: list[str] = field(default_factory=list)
    group: array[int] = field(default_factory=lambda: array("l"))
    verdict: array[int] = field(default_factory=lambda: array("l"))  # that of the first row
    size: array[int] = field(default_factory=lambda: array("q"))
    finding: bytearray = field(default_factory=bytearray)
    groups: dict[Group, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)  # verdicts as numbers
    by_log: list[tuple[array[int], array[int]]] = field(default_factory=list)  # row numbers, and their items

    def add(self, log: Log) -> None:
        """Go through a log."""
        numbers, of = array("q"), array("q")
        known: dict[int, dict[str, int]] = {}
        for at, (name, of_group) in enumerate(zip(self.names, self.group, strict=True)):
            known.setdefault(of_group, {})[name] = at
        for part in log.survey():
            numbers.extend(part.numbers)
            for group, name, verdict, found, size in zip(*part[1:], strict=True):
                code = self.groups.setdefault(group, len(self.groups))
                mine, said = known.setdefault(code, {}), self.words.setdefault(verdict, len(self.words))
                at = mine.get(name, -1)
                if at < 0:
                    at = mine[name] = len(self.names)
                    self.names.append(name)
                    self.group.append(code)
                    self.verdict.append(said)
                    self.size.append(0)
                    self.finding.append(False)
                self.size[at] += size
                self.finding[at] |= found or self.verdict[at] != said
                of.append(at)
        self.by_log.append((numbers, of))

    def order(self) -> Iterator[int]:
        """Items, those with a finding first; within each half in an order that doesn't depend on the files'."""
        names = {code: " ".join(group) for group, code in self.groups.items()}
        for wanted in (1, 0):
            half = [at for at, finding in enumerate(self.finding) if finding == wanted]
            yield from sorted(half, key=lambda at: digest_text(f"{names[self.group[at]]} {self.names[at]}"))


def payload(logs: Sequence[Log], limit: int | None, models: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(data, counts). `models` come first, in this order; others as the rows have them.

    Args:
        limit: bytes of the data at most, and with it `ROWS` and cut texts; None: everything, in full.
    """
    items = _Items()
    for log in logs:
        items.add(log)
    if limit is None:
        kept, table = list(range(len(items.names))), Table(False, models)
        for log in logs:
            for _, row in log.rows(None):
                table.add(row)
    else:
        kept, table = _chosen(items, logs, limit, models)
    total = sum(len(numbers) for numbers, _ in items.by_log)
    told = {
        "transcripts": total,
        "shown": len(table.rows),
        "of_items": len(items.names),
        "items_shown": len(kept),
        "findings": sum(items.finding),
        "findings_shown": sum(items.finding[at] for at in kept),
        "cut": table.cut,
        "models": table.models(),
        "harm": any(kind in KINDS for _, kind in items.groups),
    }
    return table.data(), told


Read = dict[int, list[tuple[int, int, dict[str, Any]]]]  # item -> (log, number, row) of its rows, in the logs' order


def _chosen(items: _Items, logs: Sequence[Log], limit: int, models: Sequence[str]) -> tuple[list[int], Table]:
    """Items that fit, and the table of their rows in the logs' order."""
    order, trial, kept, passed = items.order(), Table(True, models), list[int](), 0
    rows: Read = {}
    while passed < PASSED and (tried := _next(order, items, limit - trial.size)):
        found = _read(tried, items, logs)
        for at in tried:
            of = found.pop(at)
            room = len(trial.rows) + len(of) <= ROWS
            if room and trial.add_item((row for _, _, row in of), limit):
                kept.append(at)
                rows[at] = of
            elif (passed := passed + 1) == PASSED:
                break
    while True:
        table = Table(True, models)
        for _, _, row in sorted((place for at in kept for place in rows[at]), key=lambda place: place[:2]):
            table.add(row)
        if table.size <= limit or not kept:
            return kept, table
        kept.pop()  # numbers of texts, in another order, may take a few digits more


def _next(order: Iterator[int], items: _Items, room: int) -> list[int]:
    """Items to try next: about as many as there is room for, and a few that there is none for."""
    tried: list[int] = []
    size = 0
    for at in order:
        tried.append(at)
        size += items.size[at]
        if size > SLACK * room:
            break
    return [*tried, *islice(order, PASSED)]


def _read(wanted: Sequence[int], items: _Items, logs: Sequence[Log]) -> Read:
    found: Read = {at: [] for at in wanted}
    chosen = np.zeros(len(items.names), dtype=bool)
    chosen[list(wanted)] = True
    for place, (log, (numbers, of)) in enumerate(zip(logs, items.by_log, strict=True)):
        mine = np.flatnonzero(chosen[np.asarray(of)]) if len(of) else np.empty(0, dtype=np.int64)
        if not len(mine):
            continue
        asked = np.asarray(numbers)[mine].tolist()
        whose = dict(zip(asked, np.asarray(of)[mine].tolist(), strict=True))
        for number, row in log.rows(asked):
            found[whose[number]].append((place, number, row))
    return found
