"""From confirmed pairs to clusters: union-find, the best match of each row, and who goes for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Duplicate:
    """Row `index` goes, row `survivor` stays. `match` is the most similar row it was compared with, with the true
    Jaccard `similarity` under signature `by` (cosine where that is "meaning"), and `to_survivor` its similarity to the
    survivor under the same, which is lower where a cluster is a chain. A contradiction has no survivor: -1, and 0."""

    index: int
    survivor: int
    match: int
    similarity: float
    by: str
    to_survivor: float = 1.0


@dataclass(frozen=True)
class Near:
    """Near-duplicates and how they were found. A pair that meets in a bucket of many rows may be compared, and count,
    more than once."""

    duplicates: list[Duplicate]
    candidates: int  # pairs compared
    confirmed: int  # pairs at or over the threshold
    scheme: dict[str, str | int | float] = field(default_factory=dict)
    large_buckets: int = 0  # buckets too large for all their pairs to be looked at (`minhash.Search`)


@dataclass(frozen=True)
class Cluster:
    """Rows that count as one: the survivor and, by index, those that went for it."""

    survivor: int
    members: tuple[Duplicate, ...]

    @property
    def size(self) -> int:
        """Rows, survivor included."""
        return len(self.members) + 1


class UnionFind:
    """Disjoint sets over 0..n-1; the root of a set is its smallest member."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def roots(self, rows: np.ndarray) -> np.ndarray:
        """Root of each row's set."""
        root = self._parent[rows]
        while (self._parent[root] != root).any():
            root = self._parent[root]
        self._parent[rows] = root
        return root

    def find(self, i: int) -> int:
        """Root of `i`'s set."""
        return int(self.roots(np.array([i]))[0])

    def join(self, one: npt.ArrayLike, other: npt.ArrayLike) -> None:
        """Make one set of the sets of one[i] and other[i], for every i (or of two single rows)."""
        a, b = np.atleast_1d(np.asarray(one)), np.atleast_1d(np.asarray(other))
        while len(a):
            x, y = self.roots(a), self.roots(b)
            apart = x != y
            a, b = np.minimum(x, y)[apart], np.maximum(x, y)[apart]
            np.minimum.at(self._parent, b, a)


class Matches:
    """The best confirmed match of every row, rows counted by rank: most similar, then of lowest rank."""

    def __init__(self, n: int) -> None:
        self.similarity = np.full(n, -1.0)
        self.other = np.full(n, -1, dtype=np.int64)
        self.view = np.zeros(n, dtype=np.int8)

    def offer(self, a: np.ndarray, b: np.ndarray, similarity: np.ndarray, view: int) -> None:
        """Take confirmed pairs of view number `view`."""
        row, other, s = np.concatenate((a, b)), np.concatenate((b, a)), np.concatenate((similarity, similarity))
        hope = s >= self.similarity[row]
        row, other, s = row[hope], other[hope], s[hope]
        best = np.lexsort((other, -s, row))
        best = best[np.concatenate(([True], row[best][1:] != row[best][:-1]))] if len(best) else best
        row, other, s = row[best], other[best], s[best]
        old = self.similarity[row]
        better = (s > old) | ((s == old) & (other < self.other[row]))
        self.similarity[row[better]], self.other[row[better]], self.view[row[better]] = s[better], other[better], view

    def losers(self, union: UnionFind) -> tuple[np.ndarray, np.ndarray]:
        """(rows that go, the survivor of each): the root of a cluster is its smallest rank, so it is the survivor."""
        rows = np.flatnonzero(self.other >= 0)
        survivor = union.roots(rows)
        return rows[survivor != rows], survivor[survivor != rows]


def clusters(duplicates: Sequence[Duplicate]) -> list[Cluster]:
    """Clusters of near-duplicates (or of exact ones), largest first, ties by survivor; contradictions are none."""
    members: dict[int, list[Duplicate]] = {}
    for duplicate in duplicates:
        if duplicate.survivor >= 0:
            members.setdefault(duplicate.survivor, []).append(duplicate)
    found = [Cluster(survivor, tuple(rows)) for survivor, rows in members.items()]
    return sorted(found, key=lambda c: (-c.size, c.survivor))


def cluster_sizes(found: Sequence[Cluster]) -> dict[int, int]:
    """How many clusters there are of each size, by size."""
    return dict(sorted(Counter(c.size for c in found).items()))
