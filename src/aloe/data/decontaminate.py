"""Decontamination from the training side: which training rows hold a benchmark's items?

Three tiers. Two are lexical and stand here: (a) the exact normalised stem; (b) shared word n-grams and shared rare
words (`overlap.py`), which only make *candidates*, as boilerplate ("which of the following is the most appropriate
next step in the management of this patient") over-flags medical items: a candidate counts when question *and* options
are alike (`confirm.py`). The third, (c), finds rephrased items by embeddings and a judge (`rephrased.py`).

One index holds the items of all benchmarks; rows pass by once, in chunks, and are never all in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from aloe.data.clean import key_text
from aloe.data.confirm import CONTAINED, OTHER_ANSWER, Comparison
from aloe.data.overlap import MAX_N, MIN_N, TIERS, Index, Item, ngram_size
from aloe.data.sources import question_of
from aloe.records import Dialogue, Row

__all__ = [
    "CONTAINED", "MAX_N", "MIN_N", "MIN_SIMILARITY", "OTHER_ANSWER", "Hit", "Item", "Report", "contamination",
    "find_candidates", "item", "ngram_size",
]  # fmt: skip

T = TypeVar("T")
MIN_SIMILARITY = 0.6  # of two questions with the same answer (`confirm.Comparison`)
CHUNK = 4096  # rows looked at together


@dataclass(frozen=True)
class Hit:
    """Row `row` holds item `item` of `benchmark`: found by `tier` ("exact_stem", "ngram", "words" or "rephrased"),
    confirmed by `similarity` in [0, 1] (for "rephrased" the cosine)."""

    row: int
    benchmark: str
    item: int
    tier: str
    similarity: float


@dataclass
class Report:
    """Confirmed hits in order of (benchmark, row, item), and per source and benchmark the numbers of `rows` looked
    at, of rows that were `candidates`, and of `contaminated` rows."""

    hits: list[Hit] = field(default_factory=list)
    table: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


def item(record: Row) -> Item:
    """The item of a question or dialogue; a dialogue made from a question counts as that question."""
    question = question_of(record)
    if question is not None:
        options = tuple(sorted(key_text(v) for v in question.options.values()))
        stem, gold = key_text(question.question), key_text(question.options[question.answer])
        full = " ".join((stem, *options))
        rest = (key_text(question.context), key_text(question.explanation))
        return Item(record.id, record.source, stem, full, " ".join((full, *rest)), options, gold)
    if not isinstance(record, Dialogue):
        raise TypeError(f"decontamination takes questions and dialogues, not {type(record).__name__}")
    stem = key_text(next(m["content"] for m in record.messages if m["role"] != "system"))
    return Item(record.id, record.source, stem, stem, " ".join(key_text(m["content"]) for m in record.messages))


def contamination(
    rows: Sequence[Item],
    benchmarks: Mapping[str, Sequence[Item]],
    min_similarity: float = MIN_SIMILARITY,
    *,
    chunk: int = CHUNK,
) -> Report:
    """Compare training rows with the items of all benchmarks by their words (tiers a and b).

    Args:
        rows: read once, in order, `chunk` at a time; may be lazy.
        benchmarks: by name; all items are held in memory.
        min_similarity: of two questions with the same answer. Different answers need `OTHER_ANSWER`, items in free
            text `CONTAINED`, where these are higher.
        chunk: rows looked at together; the report does not depend on it.
    """
    look = Look(benchmarks, min_similarity)
    return gathered((look(part) for _, part in chunks(rows, chunk)), benchmarks)


class Found(NamedTuple):
    """What `Look` finds in some rows that follow each other: rows by source, hits (rows counted from the first), and
    counts by (source, benchmark, column of the table)."""

    sizes: Counter[str]
    hits: list[Hit]
    counts: Counter[tuple[str, str, str]]


class Look:
    """Looks at rows for the items of all benchmarks. Pickled without its index, which each process builds once."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Item]], min_similarity: float) -> None:
        self.benchmarks, self.min_similarity = benchmarks, min_similarity
        self._ready: tuple[Index, Comparison] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ready": None}

    def __call__(self, rows: Sequence[Item]) -> Found:
        flat = [(name, j) for name, items in self.benchmarks.items() for j in range(len(items))]
        if self._ready is None:
            index = Index([other for items in self.benchmarks.values() for other in items])
            self._ready = index, Comparison(index)
        index, compare = self._ready
        found = index.search(rows)
        hits: list[Hit] = []
        seen: set[tuple[int, str, str]] = set()  # (row, benchmark, column of the table)
        for i, k, tier in zip(found.rows.tolist(), found.items.tolist(), found.tiers.tolist()):
            name, j = flat[k]
            seen.add((i, name, "candidates"))
            similarity, bar = compare(rows[i], k, self.min_similarity)
            if similarity >= bar:
                seen.add((i, name, "contaminated"))
                hits.append(Hit(i, name, j, TIERS[tier], similarity))
        counts = Counter((rows[i].source, name, column) for i, name, column in seen)
        return Found(Counter(row.source for row in rows), hits, counts)


def gathered(parts: Iterable[Found], benchmarks: Mapping[str, Sequence[Item]]) -> Report:
    """The report of all rows, out of what was found in them part by part, in order."""
    order = {name: place for place, name in enumerate(benchmarks)}
    sizes: Counter[str] = Counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    hits: list[Hit] = []
    for found in parts:
        start = sizes.total()
        hits += [replace(hit, row=start + hit.row) for hit in found.hits]
        sizes.update(found.sizes)
        counts.update(found.counts)
    hits.sort(key=lambda hit: (order[hit.benchmark], hit.row, hit.item))
    return Report(hits, _table(sizes, list(benchmarks), counts))


def find_candidates(rows: Sequence[Item], items: Sequence[Item]) -> dict[tuple[int, int], str]:
    """{(row, item): tier} of every pair that shares a stem, an n-gram or rare words."""
    index = Index(items)
    pairs: dict[tuple[int, int], str] = {}
    for start, part in chunks(rows, CHUNK):
        found = index.search(part)
        tiers = (TIERS[t] for t in found.tiers.tolist())
        pairs.update(zip(zip((found.rows + np.int64(start)).tolist(), found.items.tolist()), tiers))
    return pairs


def chunks(rows: Sequence[T], size: int) -> Iterator[tuple[int, list[T]]]:
    """(place of its first row, rows) of every `size` rows, read in order."""
    stream, start = iter(rows), 0
    while part := list(islice(stream, size)):
        yield start, part
        start += len(part)


def _table(
    sizes: Mapping[str, int], benchmarks: Sequence[str], counts: Mapping[tuple[str, str, str], int]
) -> dict[str, dict[str, dict[str, int]]]:
    columns = ("candidates", "contaminated")
    return {
        source: {
            name: {"rows": size, **{column: counts.get((source, name, column), 0) for column in columns}}
            for name in benchmarks
        }
        for source, size in sorted(sizes.items())
    }
