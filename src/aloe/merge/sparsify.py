"""Which entries of a task vector are kept, and how the kept ones are scaled.

- **bernoulli**: DARE, keep each entry with probability `density` (Yu et al. 2023, arXiv 2311.03099).
- **magnitude**: TIES trimming, keep the floor(density x n) largest |delta|, at least one, equal magnitudes by lower
  index (Yadav et al. 2023, arXiv 2306.01708).

Everything works on one tensor given as consecutive blocks, so a tensor need not fit into memory, and gives the same
answer for any block size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Literal

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
Bools = npt.NDArray[np.bool_]
Blocks = Callable[[], Iterable[tuple[int, F32]]]  # (flat start, entries), in order, afresh at each call
Mask = Callable[[F32, int], Bools]  # (entries, flat start) -> which of them are kept
Draw = Callable[[int, int], F32]  # (flat start, stop) -> uniform numbers in [0, 1)
Rescale = Literal["none", "expectation", "l1"]

MAGNITUDE = np.uint32(0x7FFFFFFF)  # without the sign bit, float32 bits sort as the magnitudes they stand for
FINE = 15  # low bits left to the second histogram


def keep_count(size: int, density: float) -> int:
    """floor(density x size), at least 1. Decimal arithmetic, because 0.29 x 100 is 28.999... in binary."""
    return max(1, int(Decimal(repr(float(density))) * size))


def bernoulli(draw: Draw, density: float) -> Mask:
    """Keep an entry iff its uniform number is below `density`."""

    def mask(entries: F32, start: int) -> Bools:
        return draw(start, start + entries.size) < np.float32(density)

    return mask


def fixed(keep: npt.ArrayLike) -> Mask:
    """Keep what a given mask of the whole tensor says."""
    flat = np.asarray(keep, dtype=bool).reshape(-1)

    def mask(entries: F32, start: int) -> Bools:
        return flat[start : start + entries.size]

    return mask


def magnitude(blocks: Blocks, size: int, density: float) -> Mask:
    """Keep the `keep_count(size, density)` largest |entry| of the whole tensor, equal ones by lower flat index.

    The threshold comes from two histograms over the bits of |entry| (upper 16, then lower 15 of the bucket that holds
    it): exact, and O(block) in memory however large the tensor.
    """
    coarse = np.zeros(1 << 16, dtype=np.int64)
    for _, entries in blocks():
        coarse += np.bincount(_bits(entries) >> np.uint32(FINE), minlength=coarse.size)
    bucket, wanted = _descend(coarse, keep_count(size, density))
    fine = np.zeros(1 << FINE, dtype=np.int64)
    for _, entries in blocks():
        bits = _bits(entries)
        inside = bits[(bits >> np.uint32(FINE)) == bucket]
        fine += np.bincount(inside & np.uint32((1 << FINE) - 1), minlength=fine.size)
    low, wanted = _descend(fine, wanted)
    threshold = np.uint32((bucket << FINE) | low)
    cutoff = size if wanted == fine[low] else _index_after(blocks, threshold, wanted)

    def mask(entries: F32, start: int) -> Bools:
        bits = _bits(entries)
        if start + entries.size <= cutoff:
            return bits >= threshold
        keep: Bools = bits > threshold
        before = max(cutoff - start, 0)
        keep[:before] |= bits[:before] == threshold
        return keep

    return mask


def _bits(entries: F32) -> U32:
    return np.ascontiguousarray(entries).view(np.uint32) & MAGNITUDE


def _descend(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The highest bin at which the count from the top reaches `wanted`, and how many of that bin are still wanted."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    above = int(from_top[place - 1]) if place else 0
    return counts.size - 1 - place, wanted - above


def _index_after(blocks: Blocks, threshold: np.uint32, wanted: int) -> int:
    """One past the flat index of the `wanted`-th entry whose magnitude is exactly the threshold."""
    for start, entries in blocks():
        equal = np.flatnonzero(_bits(entries) == threshold)
        if equal.size >= wanted:
            return start + int(equal[wanted - 1]) + 1
        wanted -= equal.size
    raise ValueError("the blocks changed between two readings of one tensor")


class AbsoluteSum:
    """Exact sum of |x| over float32 numbers: integer mantissas are added by exponent, so order can't change it."""

    def __init__(self) -> None:
        self.units = 0  # in units of 2**-149, the smallest float32

    def add(self, entries: F32) -> None:
        """Add every entry's magnitude."""
        for at in range(0, entries.size, 1 << 20):  # 2**20 mantissas below 2**24 add exactly in float64
            bits = _bits(entries[at : at + (1 << 20)])
            exponents = bits >> np.uint32(23)
            mantissas = (bits & np.uint32(0x7FFFFF)) | ((exponents > 0).astype(np.uint32) << np.uint32(23))
            sums = np.bincount(exponents, weights=mantissas, minlength=256)
            self.units += sum(int(total) << max(e - 1, 0) for e, total in enumerate(sums) if total)


def rescale_factor(rescale: Rescale, density: float, blocks: Blocks, mask: Mask | None) -> float:
    """What the kept entries are multiplied by. 1 when everything is kept (`mask` None).

    `expectation`: 1 / density, unbiased under bernoulli (DARE). `l1`: the tensor's L1 norm before over after
    sparsifying (mergekit >= 0.1); 1 when nothing but zeros was kept.
    """
    if mask is None or rescale == "none":
        return 1.0
    if rescale == "expectation":
        return 1.0 / density
    before, after = AbsoluteSum(), AbsoluteSum()
    for start, entries in blocks():
        before.add(entries)
        after.add(entries[mask(entries, start)])
    return before.units / after.units if after.units else 1.0
