"""Exact and near-duplicate removal, for sets that are larger than memory.

Exact: equal normalised text. Near: MinHash signatures cut into bands (LSH) give candidate pairs, the *true* Jaccard
similarity of their shingle sets decides, union-find makes clusters, one row of each survives. Thresholds of the Aloe
Beta paper (arXiv 2505.04388): 0.72 for questions with answers, 0.77 for dialogues.

Multiple-choice rows are signed twice, on the stem and on stem + sorted options, so copies with shuffled options meet.
Two questions with different gold answers are never near-duplicates; word-for-word equal ones with different gold
answers contradict each other and are both refused.

What is found doesn't depend on the order of the rows: all choices go by `survivor_key`, which ends in the row's id.
What is guaranteed: every removed row has a confirmed match at or over the threshold. A pair at the threshold is missed
with chance at most `minhash.MAX_MISS`, less above it, as long as no band of it falls in a bucket of more than
`minhash.LIMIT` rows; `minhash.Search` says what is done there, and `Near.large_buckets` how often it was.
"""

from __future__ import annotations

import importlib.metadata
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rensa import RMinHash

from aloe.data import minhash
from aloe.data.clusters import Cluster, Duplicate, Matches, Near, UnionFind, cluster_sizes, clusters
from aloe.data.documents import Document, digest, document, group_number, in_order, stands_by, survivor_key
from aloe.data.semantic import semantic_duplicates
from aloe.data.shingles import NGRAM_CHARS, NGRAM_WORDS
from aloe.data.similar import MOST, Shelf, Signed, View, sign

__all__ = [
    "Cluster", "Document", "Duplicate", "Near", "cluster_sizes", "clusters", "document", "exact_duplicates",
    "near_duplicates", "semantic_duplicates", "survivor_key",
]  # fmt: skip
CHUNK = 500_000  # characters signed at a time


# ---------------------------------------------------------------------------------------------- exact


def exact_digest(doc: Document) -> bytes:
    """128 bits of what must be equal for two rows to be exact duplicates."""
    return digest(f"{doc.family}\x1f{doc.exact}")


def exact_duplicates(docs: Sequence[Document], known: Iterable[bytes] | None = None) -> list[Duplicate]:
    """Rows whose normalised text equals another's; all rows of a group that contradicts itself on the gold answer.

    Texts are compared by 128-bit digests, 16 bytes a row; rows are fetched again only where two digests are equal.
    `known` are the rows' `exact_digest`s in their order, end to end, where others have computed them.
    """
    digests = np.frombuffer(b"".join(map(exact_digest, docs) if known is None else known), dtype="<u8")
    low, high = digests[0::2], digests[1::2]
    order = np.lexsort((low, high))
    equal = (low[order][1:] == low[order][:-1]) & (high[order][1:] == high[order][:-1])
    cuts = np.concatenate(([0], np.flatnonzero(~equal) + 1, [len(order)])) if len(order) else np.zeros(1, np.int64)
    found = []
    for k in np.flatnonzero(np.diff(cuts) > 1).tolist():
        found += _exact_group(docs, np.sort(order[cuts[k] : cuts[k + 1]]).tolist())
    return sorted(found, key=lambda d: d.index)


def _exact_group(docs: Sequence[Document], group: Sequence[int]) -> list[Duplicate]:
    golds, keys = {}, {}
    for i in group:
        doc = docs[i]
        golds[i], keys[i] = doc.gold, survivor_key(doc)
    best, *rest = sorted(group, key=keys.__getitem__)
    other = next((i for i in rest if golds[i] != golds[best]), None)
    if other is None:
        return [Duplicate(i, best, best, 1.0, "exact") for i in rest]
    return [
        Duplicate(i, -1, other if golds[i] == golds[best] else best, 1.0, "conflict", to_survivor=0.0) for i in group
    ]


# ---------------------------------------------------------------------------------------------- near


def near_duplicates(
    docs: Sequence[Document],
    qa: float = 0.72,
    dialogue: float = 0.77,
    scratch: Path | None = None,
    workers: int = 2,
    known: Iterable[SignedRows] | None = None,
) -> Near:
    """Near-duplicates at the two Jaccard thresholds (`qa` holds for multiple choice too).

    `docs` is read once, in order, and no text is kept. `scratch` is a folder for a temporary file of 8 bytes a
    shingle (about 1 GB for a million rows of 120 words). `workers` threads sign rows; they change no result. `known`
    is what `sign_rows` gives for all rows, some after others, where other processes have signed them: `docs` isn't
    read then.
    """
    thresholds = {"mcq": qa, "qa": qa, "dialogue": dialogue}
    with closing(Shelf(scratch)) as shelf, ThreadPoolExecutor(workers) as pool:
        views = {
            (family, name): View(name, thresholds[family], shelf, pool)
            for family, name in (("mcq", "stem"), ("mcq", "full"), ("qa", "full"), ("dialogue", "full"))
        }
        order = _sign(docs, views, pool, 2 * workers) if known is None else _take(known, len(docs), views)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        union, matches = UnionFind(len(docs)), Matches(len(docs))
        confirmed = 0
        for code, view in enumerate(views.values()):
            for a, b, similarity in view.pairs(rank, union.roots):
                confirmed += len(a)
                union.join(a, b)
                matches.offer(a, b, similarity, code)
        duplicates = _losers(order, union, matches, list(views.values()))
    return Near(
        duplicates, sum(v.candidates for v in views.values()), confirmed, _scheme(thresholds),
        sum(v.large_buckets for v in views.values()),
    )  # fmt: skip


def _scheme(thresholds: Mapping[str, float]) -> dict[str, str | int | float]:
    scheme: dict[str, str | int | float] = {
        "scheme": f"rensa RMinHash v{RMinHash.ALGORITHM_VERSION}", "library": importlib.metadata.version("rensa"),
        "permutations": minhash.PERMUTATIONS, "seed": minhash.SEED, "word_ngram": NGRAM_WORDS,
        "char_ngram_under_5_words": NGRAM_CHARS, "all_pairs_up_to_bucket": minhash.LIMIT,
    }  # fmt: skip
    for family, threshold in thresholds.items():
        bands, rows = minhash.bands_for(threshold)
        scheme |= {f"{family}_threshold": threshold, f"{family}_bands": bands, f"{family}_rows_per_band": rows}
    return scheme


@dataclass
class _Batch:
    """Rows of one view that wait to be signed: document numbers, groups, texts."""

    members: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    size: int = 0  # characters


def _sign(
    docs: Sequence[Document], views: Mapping[tuple[str, str], View], pool: ThreadPoolExecutor, ahead: int
) -> np.ndarray:
    """Put every document in its views, with at most `ahead` chunks waiting to be signed. Returns document numbers in
    order of `survivor_key`."""
    ids: list[str] = []
    numbers = np.empty((len(docs), 3))
    batches = {key: _Batch() for key in views}
    running: deque[tuple[View, _Batch, Future[Signed]]] = deque()
    waiting = 0

    def start() -> None:
        for key, batch in batches.items():
            if batch.texts:
                running.append((views[key], batch, pool.submit(sign, batch.texts, *views[key].bands)))
                batches[key] = _Batch()

    def finish(most: int) -> None:
        while len(running) > most:
            view, batch, signed = running.popleft()
            view.add(batch.members, batch.groups, signed.result())

    for i, doc in enumerate(docs):
        ids.append(doc.id)
        numbers[i] = doc.priority, -doc.quality, -doc.length
        for name, text in doc.texts.items():
            if stands_by(doc, name):
                batch = batches[doc.family, name]
                batch.members.append(i)
                batch.groups.append(group_number(doc))
                batch.texts.append(text)
                waiting += max(len(text), CHUNK // MOST + 1)
        if waiting >= CHUNK:
            start()
            finish(ahead)
            waiting = 0
    start()
    finish(0)
    return in_order(numbers, ids)


class SignedRows(NamedTuple):
    """Some rows that follow each other, signed elsewhere. `numbers` are the columns of `survivor_key` before the id,
    float64 of shape (rows, 3); `parts` are (family, signature's name, rows counted from the first, groups, `sign`)."""

    ids: list[str]
    numbers: np.ndarray
    parts: list[tuple[str, str, list[int], list[int], Signed]]


def sign_rows(docs: Sequence[Document], qa: float = 0.72, dialogue: float = 0.77) -> SignedRows:
    """What `near_duplicates` needs of these rows. Pure: the same for a row whatever others stand beside it."""
    thresholds = {"mcq": qa, "qa": qa, "dialogue": dialogue}
    waiting: dict[tuple[str, str], _Batch] = {}
    parts = []

    def sign_all(family: str, name: str) -> None:
        batch = waiting.pop((family, name))
        signed = sign(batch.texts, *minhash.bands_for(thresholds[family]))
        parts.append((family, name, batch.members, batch.groups, signed))

    for i, doc in enumerate(docs):
        for name, text in doc.texts.items():
            if stands_by(doc, name):
                batch = waiting.setdefault((doc.family, name), _Batch())
                batch.members.append(i)
                batch.groups.append(group_number(doc))
                batch.texts.append(text)
                batch.size += len(text)
                if batch.size >= CHUNK or len(batch.texts) >= MOST:
                    sign_all(doc.family, name)
    for family, name in list(waiting):
        sign_all(family, name)
    return SignedRows([d.id for d in docs], _numbers(docs), parts)


def _numbers(docs: Sequence[Document]) -> np.ndarray:
    return np.array([(d.priority, -d.quality, -d.length) for d in docs], dtype=np.float64).reshape(-1, 3)


def _take(known: Iterable[SignedRows], count: int, views: Mapping[tuple[str, str], View]) -> np.ndarray:
    """Put rows that were signed elsewhere in their views. Returns document numbers in order of `survivor_key`."""
    ids: list[str] = []
    numbers = np.empty((count, 3))
    for rows in known:
        first = len(ids)
        ids += rows.ids
        numbers[first : len(ids)] = rows.numbers
        for family, name, members, groups, signed in rows.parts:
            views[family, name].add([first + i for i in members], groups, signed)
    return in_order(numbers, ids)


def _losers(order: np.ndarray, union: UnionFind, matches: Matches, views: Sequence[View]) -> list[Duplicate]:
    rows, survivor = matches.losers(union)
    to_survivor = np.array(matches.similarity[rows])
    for code, view in enumerate(views):
        todo = np.flatnonzero((matches.view[rows] == code) & (matches.other[rows] != survivor))
        a, b = (np.searchsorted(view.rank, x[todo]) for x in (rows, survivor))
        parts = [similarity for _, _, similarity in view.similarities(a, b)]
        to_survivor[todo] = np.concatenate(parts) if parts else []
    return sorted(
        (
            Duplicate(
                int(order[r]), int(order[s]), int(order[matches.other[r]]), float(matches.similarity[r]),
                views[matches.view[r]].name, float(t),
            )
            for r, s, t in zip(rows.tolist(), survivor.tolist(), to_survivor.tolist(), strict=True)
        ),
        key=lambda d: d.index,
    )  # fmt: skip
