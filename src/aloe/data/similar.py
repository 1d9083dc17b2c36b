"""Rows signed under one name, and the pairs of them whose true Jaccard similarity reaches a threshold.

Memory is bounded: of a row there stay its band keys, its sketch and a few numbers; its hashed shingles lie in a
temporary file, from which only candidates' are read back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from aloe.data import minhash
from aloe.data.shingles import Ragged, hashed, mix

BLOCK = 500_000  # shingles compared at a time, pair by pair
KEPT = 48  # bits of a shingle's hash that rows are compared by: two rows of 200 seem to share one once in 10^10 pairs
MOST = 1 << (64 - KEPT)  # rows signed at a time


class Signed(NamedTuple):
    """Some rows, signed. `sets` are their distinct shingles, ascending, by the upper `KEPT` bits of their hashes;
    `digest` is equal for equal sets."""

    sets: Ragged
    keys: np.ndarray
    sketch: np.ndarray
    digest: np.ndarray


def sign(texts: Sequence[str], bands: int, rows: int) -> Signed:
    """Sign at most `MOST` texts: pure, and the same for a text whatever others stand beside it."""
    found = hashed(texts)
    signature = minhash.signatures(found)
    sets = _sets(found)
    sizes = np.diff(sets.offsets)
    digest = mix(np.add.reduceat(mix(sets.values), sets.offsets[:-1]) + sizes.astype(np.uint64))
    return Signed(sets, minhash.band_keys(signature, bands, rows), minhash.sketches(signature), digest)


def _sets(found: Ragged) -> Ragged:
    """Distinct values of each row, ascending, cut to `KEPT` bits; one sort for all rows."""
    left = np.uint64(KEPT)
    owner = np.repeat(np.arange(len(found.offsets) - 1, dtype=np.uint64), np.diff(found.offsets))
    marked = (owner << left) | (found.values >> (np.uint64(64) - left))
    marked.sort()
    marked = marked[np.concatenate(([True], marked[1:] != marked[:-1]))]
    sizes = np.bincount((marked >> left).astype(np.int64), minlength=len(found.offsets) - 1)
    values = marked & ((np.uint64(1) << left) - np.uint64(1))
    return Ragged(values, np.concatenate(([0], np.cumsum(sizes))))


class Shelf:
    """Hashed shingles in an unnamed temporary file: written in order, read back anywhere."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115, open until `close`
        self.size = 0  # in shingles

    def close(self) -> None:
        self._file.close()

    def write(self, values: np.ndarray) -> int:
        """Append; returns where the values start."""
        start, rest = self.size, values.astype("<u8", copy=False).data.cast("B")
        while len(rest):
            rest = rest[os.write(self._file.fileno(), rest) :]
        self.size += len(values)
        return start

    def read(self, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The values at `starts[i]:starts[i] + sizes[i]`, one after another. uint64."""
        out = np.empty(int(sizes.sum()), dtype="<u8")
        view, at, number = out.data.cast("B"), 0, self._file.fileno()
        for start, size in zip((starts * 8).tolist(), (sizes * 8).tolist(), strict=True):
            end = at + size
            while at < end:
                got = os.preadv(number, [view[at:end]], start + size - (end - at))
                if got == 0:
                    raise EOFError(f"the temporary file of shingles ends at {start}")
                at += got
        return out


@dataclass
class View:
    """The rows of one family under one signature's name. Built by `add` in order of the documents; `settle` then puts
    them in order of rank, and everything after counts rows in that order."""

    name: str
    threshold: float
    shelf: Shelf
    pool: ThreadPoolExecutor
    rank: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # of each row, ascending
    start: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # on the shelf
    size: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    candidates: int = 0
    large_buckets: int = 0
    _parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    @property
    def bands(self) -> tuple[int, int]:
        """(bands, rows per band)."""
        return minhash.bands_for(self.threshold)

    def add(self, members: Sequence[int], groups: Sequence[int], signed: Signed) -> None:
        """Take rows in: their document numbers, the numbers of the groups they may meet in, what `sign` gave."""
        begin = self.shelf.write(signed.sets.values) + signed.sets.offsets
        whom = np.array(members, dtype=np.int64)
        allowed = np.array(groups, dtype=np.uint64)
        parts = (whom, allowed, begin[:-1], np.diff(begin).astype(np.int32), signed.digest, signed.keys, signed.sketch)
        self._parts.append(parts)

    def pairs(
        self, rank: np.ndarray, known: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Confirmed pairs, each once, as arrays (a, b, Jaccard): ranks a < b of rows at or over the threshold.

        `rank[i]` is document i's; `known` maps ranks to the clusters that the pairs given so far put them in. Of rows
        with equal shingles only the first takes part in the search; the others are paired with it.
        """
        if not self._parts:
            return
        column = list(zip(*self._parts, strict=True))
        self._parts = []
        keys, sketches = list(column.pop(5)), list(column.pop(5))
        whom, allowed, start, size, digest = (np.concatenate(c) for c in column)
        order = np.argsort(rank[whom], kind="stable")
        self.rank, self.start, self.size = rank[whom][order], start[order], size[order].astype(np.int64)
        groups = np.unique(allowed, return_inverse=True)[1].astype(np.uint32)[order]
        first = _first_equal(mix(digest[order]) + mix(groups.astype(np.uint64)))
        copies = np.flatnonzero(first != np.arange(len(first)))
        yield from self._confirmed(first[copies], copies)
        active = np.flatnonzero(first == np.arange(len(first)))
        search = minhash.Search(
            _gather(keys, order[active]), groups[active], _gather(sketches, order[active]), self.threshold,
            lambda rows: known(self.rank[active[rows]]),
        )  # fmt: skip
        seen = np.empty(0, dtype=np.int64)  # codes of the pairs that have been compared, ascending
        for found in search.candidates():
            if isinstance(found, minhash.Piece):
                yield self._within(active[found.rows], found.clusters)
                continue
            codes = found.a * len(active) + found.b
            codes.sort()  # each once: np.unique hashes, which takes several times longer
            codes = codes[np.concatenate(([True], codes[1:] != codes[:-1]))] if len(codes) else codes
            at = np.searchsorted(seen, codes)
            new = np.ones(len(codes), dtype=bool)
            new[at < len(seen)] = seen[at[at < len(seen)]] != codes[at < len(seen)]
            codes, at = codes[new], at[new]
            seen = np.insert(seen, at, codes) if len(codes) else seen
            yield from self._confirmed(active[codes // len(active)], active[codes % len(active)])
        self.large_buckets = search.large

    def _confirmed(self, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        self.candidates += len(a)
        for x, y, similarity in self.similarities(a, b):
            near = similarity >= self.threshold
            yield self.rank[x[near]], self.rank[y[near]], similarity[near]

    def _within(self, rows: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Confirmed pairs of rows (ascending) that aren't of one cluster, all compared at once."""
        sizes = self.size[rows]
        common = _common(self.shelf.read(self.start[rows], sizes), sizes)
        # J >= t means common >= t (|a| + |b|) / (1 + t); the quotient decides, as it does elsewhere
        enough = (self.threshold / (1 + self.threshold) - 1e-9) * sizes
        i, j = np.nonzero(common >= (enough[:, None] + enough))
        keep = (i < j) & (clusters[i] != clusters[j])
        i, j = i[keep], j[keep]
        shared = common[i, j]
        similarity = shared / (sizes[i] + sizes[j] - shared)
        near = similarity >= self.threshold
        members = np.unique(clusters, return_counts=True)[1]
        self.candidates += (len(rows) ** 2 - int((members**2).sum())) // 2
        return self.rank[rows[i[near]]], self.rank[rows[j[near]]], similarity[near]

    def similarities(self, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(a, b, true Jaccard similarity) of pairs of rows, some at a time."""
        if not len(a):
            return
        blocks = np.cumsum(self.size[a] + self.size[b]) // BLOCK
        cuts = [0, *(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), len(a)]

        def compare(cut: tuple[int, int]) -> np.ndarray:
            x, y = a[slice(*cut)], b[slice(*cut)]
            rows, place = self._involved(x, y)
            sizes = self.size[rows]
            return _jaccard(self.shelf.read(self.start[rows], sizes), sizes, place[x], place[y])

        parts = list(pairwise(cuts))
        for (begin, end), found in zip(parts, self.pool.map(compare, parts), strict=True):
            yield a[begin:end], b[begin:end], found

    def _involved(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that stand in a or b, ascending, and the place of each row among them."""
        here = np.zeros(len(self.size), dtype=bool)
        here[a] = here[b] = True
        rows, place = np.flatnonzero(here), np.empty(len(self.size), dtype=np.int32)
        place[rows] = np.arange(len(rows))
        return rows, place


def _jaccard(values: np.ndarray, sizes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jaccard similarity of rows a[i] and b[i], each row a run of `sizes` distinct ascending values."""
    begin = np.concatenate(([0], np.cumsum(sizes)))
    sets = csr_array((np.ones(len(values), np.int8), values.view(np.int64), begin), shape=(len(sizes), 1 << KEPT))
    common = np.diff(sets[a].multiply(sets[b]).tocsr().indptr)
    return common / (sizes[a] + sizes[b] - common)


def _common(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How many values each two rows have in common: int32 of shape (rows, rows), the diagonal unset. Row k is a run of
    `sizes[k]` distinct values.

    Rows that share one sentence share all its shingles, so shingles that the same rows have are taken together, with
    their number as weight: many times fewer products in boilerplate. Which rows have a shingle is told by the sum of
    64-bit numbers that stand for rows.
    """
    rows = len(sizes)
    slots = values & np.uint64((1 << max(12, (4 * len(values)).bit_length())) - 1)
    often = np.bincount(slots.astype(np.int64))[slots] > 1  # values that only one row has need no sorting
    bits = np.uint64(rows.bit_length())
    marked = (values[often] << bits) | np.repeat(np.arange(rows, dtype=np.uint64), sizes)[often]
    marked.sort()
    if not len(marked):
        return np.zeros((rows, rows), dtype=np.int32)
    owner, value = (marked & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), marked >> bits
    fresh = np.flatnonzero(np.concatenate(([True], value[1:] != value[:-1])))
    holders = np.diff(np.append(fresh, len(value)))
    who = np.add.reduceat(mix(owner.astype(np.uint64) + np.uint64(1)), fresh)
    several = np.flatnonzero(holders > 1)
    _, first, weight = np.unique(who[several], return_index=True, return_counts=True)
    start, size = fresh[several[first]], holders[several[first]]
    place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + np.repeat(start, size)
    row, group = owner[place], np.repeat(np.arange(len(size)), size)
    have = csr_array((np.ones(len(row), np.int32), (row, group)), shape=(rows, len(size)))
    weighted = csr_array((np.repeat(weight, size).astype(np.int32), (row, group)), shape=(rows, len(size)))
    return (have @ weighted.T).toarray()


def _first_equal(values: np.ndarray) -> np.ndarray:
    """For each value the place of the first one equal to it."""
    order = np.argsort(values, kind="stable")
    fresh = np.concatenate(([True], values[order][1:] != values[order][:-1])) if len(values) else np.empty(0, bool)
    first = np.empty(len(values), dtype=np.int64)
    first[order] = order[fresh][np.cumsum(fresh) - 1] if len(values) else order
    return first


def _gather(parts: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of the concatenation of `parts`, which are let go of one by one: both never lie in memory whole."""
    found = np.empty((len(rows), *parts[0].shape[1:]), dtype=parts[0].dtype)
    places = np.argsort(rows, kind="stable")
    wanted = rows[places]
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        begin, end = np.searchsorted(wanted, (start, start + len(part)))
        found[places[begin:end]] = part[wanted[begin:end] - start]
        start += len(part)
    return found
