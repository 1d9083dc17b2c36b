"""Decontamination from the training side: which training rows hold a benchmark's items?

Two tiers find *candidates* only: (a) the exact normalised stem, (b) shared word n-grams (n = 13, down to 8 for short
stems). Boilerplate ("which of the following is the most appropriate next step in the management of this patient")
makes n-grams over-flag medical items, so a candidate counts only when question *and* options are similar.

Lexical by design: it finds copies and light edits. A rephrased copy shares no n-gram and needs embeddings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aloe.data.clean import key_text
from aloe.data.sources import question_of
from aloe.records import Dialogue, Row

MAX_N, MIN_N = 13, 8
CHARS = 5  # character n-gram for the similarity of two questions
TRIGRAM = 3  # word n-gram for the containment of a question in free text
CONTAINED = 0.8  # share of a stem's word trigrams that free text must hold
OTHER_ANSWER = (
    0.9  # bar for two questions with different gold answers: siblings ("most" / "least common") differ little
)
CHUNK = 20_000  # training rows searched at a time
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd multiplier of the rolling hash, modulo 2^64


@dataclass(frozen=True)
class Item:
    """A training row or benchmark item as decontamination sees it, in normalised text.

    `question` is stem + sorted options; `options` is empty and `gold` "" for free text; `text` is all the row says.
    """

    id: str
    source: str
    stem: str
    question: str
    text: str
    options: tuple[str, ...] = ()
    gold: str = ""


@dataclass(frozen=True)
class Hit:
    """Row `row` holds item `item` of `benchmark`: found by `tier` ("exact_stem" or "ngram"), confirmed by
    `similarity` in [0, 1]."""

    row: int
    benchmark: str
    item: int
    tier: str
    similarity: float


@dataclass
class Report:
    """Confirmed hits, and per source and benchmark: rows looked at, rows that were candidates, contaminated rows."""

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


def ngram_size(length: int) -> int:
    """n for a stem of `length` words: half of them within 8..13, so that changing one word anywhere leaves an n-gram
    of a stem of 17 to 27 words intact."""
    return min(MAX_N, max(MIN_N, length // 2))


def contamination(
    rows: Sequence[Item], benchmarks: Mapping[str, Sequence[Item]], min_similarity: float = 0.6
) -> Report:
    """Compare training rows with benchmark items; candidates become hits when `confirm` says so."""
    report = Report()
    sizes = Counter(row.source for row in rows)
    for name, items in benchmarks.items():
        candidates: dict[str, set[int]] = {}
        hits: dict[str, set[int]] = {}
        compare = _Comparison(rows, items)
        for (i, j), tier in sorted(find_candidates(rows, items).items()):
            candidates.setdefault(rows[i].source, set()).add(i)
            similarity, bar = compare(i, j, min_similarity)
            if similarity >= bar:
                hits.setdefault(rows[i].source, set()).add(i)
                report.hits.append(Hit(i, name, j, tier, similarity))
        for source, size in sorted(sizes.items()):
            report.table.setdefault(source, {})[name] = {
                "rows": size,
                "candidates": len(candidates.get(source, ())),
                "contaminated": len(hits.get(source, ())),
            }
    return report


# ---------------------------------------------------------------------------------------------- similarity


class _Comparison:
    """(similarity, bar) of a training row and a benchmark item, gram sets kept between calls.

    Two questions: Jaccard of character 5-grams over stem + sorted options, or over stem + gold answer where the gold
    answers agree (other distractors, same item). Free text: the share of the item's stem (word trigrams) it holds.
    """

    def __init__(self, rows: Sequence[Item], items: Sequence[Item]) -> None:
        self._rows, self._items = rows, items
        self._sets: dict[tuple[str, int, str], frozenset[str]] = {}

    def __call__(self, i: int, j: int, bar: float) -> tuple[float, float]:
        row, other = self._rows[i], self._items[j]
        if not row.options or not other.options:
            stem = self._grams("item", j, "stem", other.stem, _word_grams)
            held = self._grams("row", i, "text", row.text, _word_grams)
            return len(stem & held) / len(stem), max(bar, CONTAINED)
        full = self._jaccard(i, j, "question", row.question, other.question)
        if row.gold != other.gold:
            return full, max(bar, OTHER_ANSWER)
        keyed = self._jaccard(i, j, "keyed", f"{row.stem} {row.gold}", f"{other.stem} {other.gold}")
        return max(full, keyed), bar

    def _jaccard(self, i: int, j: int, view: str, a: str, b: str) -> float:
        left, right = self._grams("row", i, view, a, _char_grams), self._grams("item", j, view, b, _char_grams)
        common = len(left & right)
        return common / (len(left) + len(right) - common)

    def _grams(self, side: str, i: int, view: str, text: str, make: Callable[[str], frozenset[str]]) -> frozenset[str]:
        key = (side, i, view)
        if key not in self._sets:
            self._sets[key] = make(text)
        return self._sets[key]


def _char_grams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + CHARS] for i in range(max(1, len(text) - CHARS + 1)))


def _word_grams(text: str) -> frozenset[str]:
    tokens = text.split()
    return frozenset(" ".join(tokens[i : i + TRIGRAM]) for i in range(max(1, len(tokens) - TRIGRAM + 1)))


# ---------------------------------------------------------------------------------------------- candidates


def find_candidates(rows: Sequence[Item], items: Sequence[Item]) -> dict[tuple[int, int], str]:
    """{(row, item): tier} of every pair with equal stems or a shared n-gram."""
    by_stem: dict[str, list[int]] = {}
    for j, other in enumerate(items):
        if other.stem:
            by_stem.setdefault(other.stem, []).append(j)
    pairs = _shared_ngrams(rows, items)
    for i, row in enumerate(rows):
        for j in by_stem.get(row.stem, ()):
            pairs[i, j] = "exact_stem"
    return pairs


def _probe(other: Item) -> list[str]:
    """Words whose n-grams stand for an item: its stem, with its options where the stem is too short."""
    stem = other.stem.split()
    return stem if len(stem) >= MIN_N else other.question.split()


def _shared_ngrams(rows: Sequence[Item], items: Sequence[Item]) -> dict[tuple[int, int], str]:
    vocabulary: dict[str, int] = {}
    tables: dict[int, dict[tuple[int, ...], list[int]]] = {}  # n -> n-gram of word ids -> items
    for j, other in enumerate(items):
        tokens = [vocabulary.setdefault(w, len(vocabulary) + 1) for w in _probe(other)]
        n = ngram_size(len(tokens))
        table = tables.setdefault(n, {})
        for gram in {tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)}:
            table.setdefault(gram, []).append(j)
    values = np.random.Generator(np.random.Philox(key=0)).integers(1, 2**63, len(vocabulary) + 1, dtype=np.uint64)
    keys = {n: _hash_grams(table, values) for n, table in tables.items()}
    pairs: dict[tuple[int, int], str] = {}
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        ids, starts = _word_ids(chunk, vocabulary)
        for n, position in _matches(values[ids], keys):
            gram = tuple(ids[position : position + n].tolist())
            found = tables[n].get(gram, ())  # a hash collision finds nothing here
            i = start + int(np.searchsorted(starts, position, side="right")) - 1
            pairs.update(((i, j), "ngram") for j in found)
    return pairs


def _word_ids(rows: Sequence[Item], vocabulary: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """All rows' word ids in one array, a 0 (no benchmark word) after each row, and where each row starts."""
    ids: list[int] = []
    starts = []
    for row in rows:
        starts.append(len(ids))
        ids += [vocabulary.get(w, 0) for w in row.text.split()]
        ids.append(0)
    return np.array(ids, dtype=np.int64), np.array(starts, dtype=np.int64)


def _hash_grams(grams: Iterable[tuple[int, ...]], values: np.ndarray) -> np.ndarray:
    matrix = values[np.array(list(grams), dtype=np.int64).reshape(-1, len(next(iter(grams), (0,))))]
    total = np.zeros(len(matrix), dtype=np.uint64)
    for column in matrix.T:
        total = total * _BASE + column
    return np.unique(total)


def _matches(values: np.ndarray, keys: Mapping[int, np.ndarray]) -> Iterable[tuple[int, int]]:
    """(n, position) of every window whose rolling hash is a benchmark n-gram's."""
    rolling = values.copy()
    for n in range(1, MAX_N + 1):
        if n > 1:
            if len(values) < n:
                return
            rolling = rolling[:-1] * _BASE + values[n - 1 :]
        if n in keys:
            for position in np.flatnonzero(np.isin(rolling, keys[n])).tolist():
                yield n, position
