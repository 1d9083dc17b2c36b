"""In which order rows are trained on: a shuffled mixture of sources that can be entered at any place at once.

Nothing of the run is held: which row stands at position t is computed from t. A run that is taken up again, and every
process of a distributed one, therefore finds its place without going through what came before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from aloe.errors import AloeError
from aloe.keyed import key64

Integers = npt.NDArray[np.int64]
# Four rounds make a pseudorandom permutation of a large domain (Luby & Rackoff 1988). On a handful of elements twelve
# still prefer some of the n! orders (chi-square over keys), sixteen don't.
ROUNDS, SMALL, ROUNDS_OF_SMALL = 10, 4096, 24
_GOLDEN = 0x9E3779B97F4A7C15


def permuted(index: npt.ArrayLike, size: int, key: int) -> Integers:
    """Where a keyed permutation of `range(size)` sends `index`: O(1) in time and memory for every index.

    A Feistel network over Z_a x Z_b with a * b just above `size` (Black & Rogaway 2002, "Ciphers with arbitrary
    finite domains", generalised Feistel), walked on until it is back below `size`.

    Args:
        index: integers in `range(size)`, of any shape.
        key: 64 bits; another key is another permutation.

    Raises:
        IndexError: an index outside `range(size)`.
    """
    at = np.asarray(index, dtype=np.int64)
    if at.size and (at.min() < 0 or at.max() >= size):
        raise IndexError(f"an index is outside range({size})")
    found = at.astype(np.uint64).ravel()
    a = max(1, math.isqrt(size - 1) + 1) if size else 1
    b = -(-size // a) if size else 1
    rounds = ROUNDS_OF_SMALL if size < SMALL else ROUNDS
    keys = mixed(np.arange(1, rounds + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key & (2**64 - 1)))
    todo = np.arange(len(found))
    while len(todo):
        moved = _feistel(found[todo], np.uint64(a), np.uint64(b), keys)
        found[todo] = moved
        todo = todo[moved >= np.uint64(size)]  # few: less than one in sqrt(size)
    return found.astype(np.int64).reshape(at.shape)


def _feistel(x: npt.NDArray[np.uint64], a: np.uint64, b: np.uint64, keys: npt.NDArray[np.uint64]) -> Any:
    """One pass of the network over range(a * b): each half in turn is shifted by a hash of the other."""
    left, right = x // b, x % b
    for i in range(0, len(keys), 2):
        left = (left + mixed(right ^ keys[i]) % a) % a
        right = (right + mixed(left ^ keys[i + 1]) % b) % b
    return left * b + right


def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of 64 bits, one to one: SplitMix64's finaliser (Steele, Lea & Flood 2014; Stafford's variant 13)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def quotas(sizes: Sequence[int], weights: Sequence[float], max_rows: int | None) -> list[int]:
    """Rows of each source in one pass, so that the shares are `weights` and a pass holds no row twice.

    The total is the largest that every source can serve, or `max_rows` if that is fewer; fractions go to the largest
    remainders, ties to the earlier source.

    Raises:
        AloeError: a source is too small to give a single row.
    """
    shares = [w / sum(weights) for w in weights]
    total = min(math.floor(n / s + 1e-9) for n, s in zip(sizes, shares, strict=True))
    total = total if max_rows is None else min(total, max_rows)
    exact = [total * s for s in shares]
    rows = [math.floor(x + 1e-9) for x in exact]
    by_remainder = sorted(range(len(rows)), key=lambda i: (rows[i] - exact[i], i))
    for i in by_remainder[: total - sum(rows)]:
        rows[i] += 1
    if total == 0 or not all(rows):
        raise AloeError(
            f"weights {list(weights)} can't be kept with sources of {list(sizes)} rows",
            fix="every source must give one row at least: raise max_rows or the small weights, or leave a source out",
        )
    return rows


class Order(Sequence[int]):
    """Indices of the rows trained on, source after source in one numbering (source s has the `sizes[s]` indices from
    `sum(sizes[:s])` on).

    A pass ("epoch") takes `quota[s]` rows of source s. The sources take turns as evenly as whole rows allow, so that
    every stretch of the run, and not only a pass, has the shares to within a row or two; the k-th row taken from a
    source over the whole run is the (k mod n)-th of its shuffled rows, shuffled anew each time all n have been taken.
    No row comes again before every row of its source has come.

    Args:
        sizes: rows of each source.
        quota: rows of each source in a pass, at most its size (see `quotas`).
        epochs: passes; a fraction is that part of a pass.
        seed: with `purpose`, of the shuffling.
    """

    def __init__(self, sizes: Sequence[int], quota: Sequence[int], epochs: float, seed: int, purpose: str) -> None:
        if len(sizes) != len(quota) or not all(0 < q <= n for q, n in zip(quota, sizes, strict=True)):
            raise ValueError(f"a pass of {list(quota)} rows can't be taken from sources of {list(sizes)}")
        self.sizes, self.quota, self.epochs = tuple(sizes), tuple(quota), epochs
        self.pass_rows = sum(quota)
        self._seed, self._purpose = seed, purpose
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._start, self._stop = 0, max(1, round(self.pass_rows * epochs))

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            found: list[int] = self.at(np.arange(*index.indices(len(self)), dtype=np.int64)).tolist()
            return found
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"position {index} of an order of {len(self)} rows")
        return int(self.at(np.array([position]))[0])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), 4096):  # many at once cost little more than one
            yield from self[start : start + 4096]

    def at(self, positions: Integers) -> Integers:
        """Indices [n] at `positions` [n], each in `range(len(self))`."""
        passes, within = np.divmod(positions + self._start, self.pass_rows)
        found = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(passes).tolist():
            here = np.flatnonzero(passes == number)
            sources, ranks = self._turns(number, within[here])
            for s in np.unique(sources).tolist():
                mine = here[sources == s]
                found[mine] = self._first[s] + self._drawn(s, number * self.quota[s] + ranks[sources == s])
        return found

    def taken(self) -> list[int]:
        """Rows of each source from the first position to the last, repeats counted."""
        return [b - a for a, b in zip(self._before(self._start), self._before(self._stop), strict=True)]

    def counts(self) -> Integers:
        """How often each index comes: [sum(sizes)]. O(rows of the sources), not of the run."""
        seen = np.zeros(self._first[-1], dtype=np.int64)
        for s, (begin, end) in enumerate(zip(self._before(self._start), self._before(self._stop), strict=True)):
            for sign, upto in ((-1, begin), (1, end)):
                whole, rest = divmod(upto, self.sizes[s])
                seen[self._first[s] : self._first[s + 1]] += sign * whole
                last = whole * self.sizes[s] + np.arange(rest, dtype=np.int64)
                seen[self._first[s] + self._drawn(s, last)] += sign
        return seen

    # -- which source comes when ------------------------------------------------------------------------------------

    def _turns(self, number: int, within: Integers) -> tuple[Integers, Integers]:
        """The source of each place in pass `number`, and how many rows of that source came before it in the pass.

        Sources are split in two halves, again and again; among the first x rows of a split, floor((x l + phase) / n)
        are of its left half, where l of all n are. The phase is drawn for every pass, so that no source has the same
        places each time.
        """
        sources = np.empty(len(within), dtype=np.int64)
        ranks = np.empty(len(within), dtype=np.int64)
        todo = [(0, len(self.quota), np.arange(len(within)), within)]
        while todo:
            low, high, members, x = todo.pop()
            if high - low == 1:
                sources[members], ranks[members] = low, x
                continue
            middle, before = (low + high) // 2, self._left_of(number, low, high, x)
            left = self._left_of(number, low, high, x + 1) > before
            todo.append((low, middle, members[left], before[left]))
            todo.append((middle, high, members[~left], (x - before)[~left]))
        return sources, ranks

    def _left_of(self, number: int, low: int, high: int, x: Any) -> Any:
        """How many of the first `x` rows of the sources low..high in a pass belong to the left half of them."""
        rows, left = sum(self.quota[low:high]), sum(self.quota[low : (low + high) // 2])
        phase = key64(self._seed, f"{self._purpose} turns", f"{number}/{low}-{high}") % rows
        return (x * left + phase) // rows

    def _before(self, position: int) -> list[int]:
        """Rows of each source before a position of the whole order."""
        number, within = divmod(position, self.pass_rows)
        counts = [number * q for q in self.quota]
        todo = [(0, len(self.quota), within)]
        while todo:
            low, high, x = todo.pop()
            if high - low == 1:
                counts[low] += x
                continue
            left = self._left_of(number, low, high, x)
            todo += [(low, (low + high) // 2, left), ((low + high) // 2, high, x - left)]
        return counts

    def _drawn(self, source: int, k: Integers) -> Integers:
        """The rows of `source` that are taken as its k-th over the whole run."""
        cycles, within = np.divmod(k, self.sizes[source])
        found = np.empty(len(k), dtype=np.int64)
        for cycle in np.unique(cycles).tolist():
            key = key64(self._seed, f"{self._purpose} source {source}", cycle)
            mine = cycles == cycle
            found[mine] = permuted(within[mine], self.sizes[source], key)
        return found
