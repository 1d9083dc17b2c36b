"""Exact and near-duplicate removal.

Exact: equal normalised text. Near: MinHash signatures cut into bands (LSH) give candidate pairs, the *true* Jaccard
similarity of their shingle sets decides, union-find makes clusters, one row of each survives. Thresholds of the Aloe
Beta paper (arXiv 2505.04388): 0.72 for questions with answers, 0.77 for dialogues.

Multiple-choice rows are signed twice, on the stem and on stem + sorted options, so copies with shuffled options meet.
Two questions with different gold answers are never near-duplicates; word-for-word equal ones with different gold
answers contradict each other and are both refused.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from rensa import RMinHash

from aloe.data.clean import key_text, words
from aloe.data.sources import question_of
from aloe.records import Dialogue, Row

T = TypeVar("T")
PERMUTATIONS = 128
SEED = 1  # of the permutations; part of the scheme, so that signatures are the same in every run
MAX_MISS = 1e-3  # chance that a pair exactly at the threshold shares no band
SLACK = 5.0  # standard errors of the MinHash estimate below which a pair is not looked at
NGRAM_WORDS = 5
NGRAM_CHARS = 5
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 50_000  # documents signed at a time: bounds the memory that shingles take
_REFERS_TO_OPTIONS = {"all", "none", "both", "neither", "any", "either"}


@dataclass(frozen=True)
class Document:
    """What deduplication looks at. `texts` maps a signature's name to the text it covers; rows meet only within the
    same (family, name). `scope` must be equal for two rows to be near-duplicates (the context they refer to)."""

    id: str
    family: str  # "mcq", "qa" or "dialogue"
    exact: str
    texts: Mapping[str, str]
    gold: str = ""
    scope: str = ""
    priority: int = 0  # of the source: lower survives
    length: int = 0  # characters: longer survives


@dataclass(frozen=True)
class Duplicate:
    """Row `index` goes, row `survivor` stays. `match` is the row it was found to equal or resemble, with the true
    Jaccard `similarity` under signature `by`; a contradiction has no survivor (-1)."""

    index: int
    survivor: int
    match: int
    similarity: float
    by: str


@dataclass(frozen=True)
class Near:
    """Near-duplicates and how they were found."""

    duplicates: list[Duplicate]
    candidates: int
    confirmed: int
    scheme: dict[str, str | int | float] = field(default_factory=dict)


def document(record: Row, priority: int = 0) -> Document:
    """The document of a question or dialogue. A dialogue made from a question counts as that question."""
    question = question_of(record)
    if question is not None:
        options = " ".join(sorted(key_text(text) for text in question.options.values()))
        stem, scope = key_text(question.question), key_text(question.context)
        full = f"{stem} {options}"
        size = sum(map(len, (question.question, question.explanation, *question.options.values())))
        return Document(
            id=record.id, family="mcq", exact=f"{scope}\x1f{stem}\x1f{options}", texts={"stem": stem, "full": full},
            gold=key_text(question.options[question.answer]), scope=scope, priority=priority, length=size,
        )  # fmt: skip
    if not isinstance(record, Dialogue):
        raise TypeError(f"deduplication takes questions and dialogues, not {type(record).__name__}")
    turns = [m for m in record.messages if m["role"] != "system"]
    size = sum(len(m["content"]) for m in record.messages)
    if len(turns) == 2:
        text = " ".join(key_text(m["content"]) for m in turns)
        return Document(
            id=record.id, family="qa", exact="\x1f".join(key_text(m["content"]) for m in turns), texts={"full": text},
            priority=priority, length=size,
        )  # fmt: skip
    tagged = " ".join(f"{m['role']} {key_text(m['content'])}" for m in turns)
    return Document(
        id=record.id, family="dialogue", exact=tagged, texts={"full": tagged}, priority=priority, length=size
    )


def shingles(text: str) -> frozenset[str]:
    """Word 5-grams of a text; character 5-grams when it has fewer than five words."""
    tokens = words(text)
    if len(tokens) >= NGRAM_WORDS:
        return frozenset(" ".join(tokens[i : i + NGRAM_WORDS]) for i in range(len(tokens) - NGRAM_WORDS + 1))
    joined = " ".join(tokens) or text
    return frozenset(joined[i : i + NGRAM_CHARS] for i in range(max(1, len(joined) - NGRAM_CHARS + 1)))


def jaccard(a: frozenset[T], b: frozenset[T]) -> float:
    """|a & b| / |a | b|; two empty sets are equal."""
    common = len(a & b)
    union = len(a) + len(b) - common
    return common / union if union else 1.0


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the longest bands that miss a pair at the threshold with chance at most `MAX_MISS`."""
    for rows in range(16, 0, -1):
        bands = PERMUTATIONS // rows
        if (1.0 - threshold**rows) ** bands <= MAX_MISS:
            return bands, rows
    return PERMUTATIONS, 1


def survivor_key(doc: Document) -> tuple[int, int, str]:
    """Sort key: the smallest survives. Source priority, then length, ties by row id."""
    return doc.priority, -doc.length, doc.id


# ---------------------------------------------------------------------------------------------- exact


def exact_duplicates(docs: Sequence[Document]) -> list[Duplicate]:
    """Rows whose normalised text equals another's; all rows of a group that contradicts itself on the gold answer."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, doc in enumerate(docs):
        groups.setdefault((doc.family, doc.exact), []).append(i)
    found = []
    for members in groups.values():
        if len(members) == 1:
            continue
        best = min(members, key=lambda i: survivor_key(docs[i]))
        if len({docs[i].gold for i in members}) > 1:
            for i in members:
                other = next(j for j in members if docs[j].gold != docs[i].gold)
                found.append(Duplicate(i, -1, other, 1.0, "conflict"))
        else:
            found += [Duplicate(i, best, best, 1.0, "exact") for i in members if i != best]
    return sorted(found, key=lambda d: d.index)


# ---------------------------------------------------------------------------------------------- near


def near_duplicates(docs: Sequence[Document], qa: float = 0.72, dialogue: float = 0.77) -> Near:
    """Near-duplicates at the two Jaccard thresholds (`qa` holds for multiple choice too)."""
    union = UnionFind(len(docs))
    edges: dict[int, tuple[float, int, str]] = {}  # row -> its best confirmed match
    candidates = confirmed = 0
    scheme: dict[str, str | int | float] = {
        "scheme": f"rensa RMinHash v{RMinHash.ALGORITHM_VERSION}", "library": importlib.metadata.version("rensa"),
        "permutations": PERMUTATIONS, "seed": SEED, "word_ngram": NGRAM_WORDS, "char_ngram_under_5_words": NGRAM_CHARS,
    }  # fmt: skip
    for family, threshold in (("mcq", qa), ("qa", qa), ("dialogue", dialogue)):
        members = [i for i, doc in enumerate(docs) if doc.family == family]
        bands, rows = bands_for(threshold)
        scheme |= {f"{family}_threshold": threshold, f"{family}_bands": bands, f"{family}_rows_per_band": rows}
        for name in ("stem", "full") if family == "mcq" else ("full",):
            texts = [docs[i].texts[name] for i in members]
            pairs = candidate_pairs(signature_matrix(texts), bands, rows, threshold)
            candidates += len(pairs)
            for a, b, similarity in _similar(texts, pairs, threshold):
                i, j = members[a], members[b]
                if not _compatible(docs[i], docs[j], name):
                    continue
                confirmed += 1
                union.join(i, j)
                for x, y in ((i, j), (j, i)):
                    edges[x] = max(edges.get(x, (-1.0, 0, "")), (similarity, y, name), key=lambda e: (e[0], -e[1]))
    return Near(_losers(docs, union, edges), candidates, confirmed, scheme)


def _compatible(a: Document, b: Document, by: str) -> bool:
    """Whether two similar rows may count as the same: equal context and gold answer; on the stem alone the answer
    must also mean the same without its options (not "all of the above", not "both A and C")."""
    if a.scope != b.scope or a.gold != b.gold:
        return False
    return by != "stem" or not _REFERS_TO_OPTIONS & set(a.gold.split())


def _losers(docs: Sequence[Document], union: UnionFind, edges: Mapping[int, tuple[float, int, str]]) -> list[Duplicate]:
    best: dict[int, int] = {}
    for i in edges:
        root = union.find(i)
        if root not in best or survivor_key(docs[i]) < survivor_key(docs[best[root]]):
            best[root] = i
    found = []
    for i, (similarity, match, by) in sorted(edges.items()):
        survivor = best[union.find(i)]
        if i != survivor:
            found.append(Duplicate(i, survivor, match, similarity, by))
    return found


def candidate_pairs(signatures: np.ndarray, bands: int, rows: int, threshold: float) -> np.ndarray:
    """Pairs (a < b) of row numbers, int64 of shape (pairs, 2), each once, sorted: signatures that agree on a whole
    band and whose agreement over all permutations is not `SLACK` standard errors below the threshold."""
    n = len(signatures)
    floor = threshold - SLACK * (threshold * (1.0 - threshold) / PERMUTATIONS) ** 0.5
    codes = np.empty(0, dtype=np.int64)
    for band in range(bands):
        found = [codes]
        for members in _buckets(signatures[:, band * rows : (band + 1) * rows]):
            for k in range(len(members) - 1):  # members ascend, so the first is the smaller number
                close = np.mean(signatures[members[k + 1 :]] == signatures[members[k]], axis=1) >= floor
                found.append(members[k] * n + members[k + 1 :][close])
        codes = np.sort(np.concatenate(found))
        codes = codes[np.concatenate(([True], codes[1:] != codes[:-1]))] if len(codes) else codes
    return np.stack([codes // max(n, 1), codes % max(n, 1)], axis=1)


def _buckets(band: np.ndarray) -> list[np.ndarray]:
    """Row numbers, ascending, of every group of two or more equal rows of `band` (a 64-bit hash collision may add a
    row; it is weeded out with the other false candidates)."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIER + column
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    starts, ends = np.concatenate(([0], edges)), np.concatenate((edges, [len(order)]))
    return [order[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True) if b - a > 1]


def signature_matrix(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, uint32 of shape (texts, PERMUTATIONS)."""
    parts = []
    for start in range(0, len(texts), CHUNK):
        sets = [list(shingles(text)) for text in texts[start : start + CHUNK]]
        parts.append(np.array(RMinHash.digests_from_token_sets(sets, PERMUTATIONS, SEED), dtype=np.uint32))
    return np.concatenate(parts) if parts else np.empty((0, PERMUTATIONS), dtype=np.uint32)


def _similar(texts: Sequence[str], pairs: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
    """(a, b, Jaccard) of the pairs whose true Jaccard similarity reaches the threshold."""
    numbers: dict[str, int] = {}  # shingle -> number: sets of small integers intersect faster than sets of texts
    sets = {
        int(k): frozenset(numbers.setdefault(s, len(numbers)) for s in shingles(texts[k])) for k in np.unique(pairs)
    }
    for a, b in pairs.tolist():
        small, large = sorted((len(sets[a]), len(sets[b])))
        if small < threshold * large:  # the sizes alone keep the pair below
            continue
        similarity = jaccard(sets[a], sets[b])
        if similarity >= threshold:
            yield a, b, similarity


class UnionFind:
    """Disjoint sets over 0..n-1; the root of a set is its smallest member."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, i: int) -> int:
        """Root of `i`'s set."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Make one set of the two."""
        a, b = sorted((self.find(i), self.find(j)))
        self._parent[b] = a
