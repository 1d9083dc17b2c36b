"""MinHash signatures and the pairs of rows that share a band of them (LSH).

A row keeps two digests of its signature and not the signature itself: a 32-bit key per band, which finds candidates,
and the low four bits of every permutation, which weed most of them out before any text is looked at (b-bit minwise
hashing, Li and König, WWW 2010). That is 192 bytes a row at 32 bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rensa import RMinHash

from aloe.data.shingles import Ragged, mix

PERMUTATIONS = 128
SEED = 1  # of the permutations; part of the scheme, so that signatures are the same in every run
MAX_MISS = 1e-3  # chance that a pair exactly at the threshold shares no band
SLACK = 4.0  # standard errors of the estimated similarity below which a pair is not looked at (chance 3e-5)
BITS = 4  # of every permutation's minimum, kept for the estimate
SMALL = 48  # rows in a bucket up to which all its pairs are looked at
LIMIT = 2_048  # rows in a bucket up to which all its pairs are that are not known to be in one cluster
BATCH = 1 << 18  # pairs estimated at a time

Known = Callable[[np.ndarray], np.ndarray]  # rows -> the cluster each is known to belong to


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the longest bands that miss a pair at the threshold with chance at most `MAX_MISS`."""
    for rows in range(16, 0, -1):
        bands = PERMUTATIONS // rows
        if (1.0 - threshold**rows) ** bands <= MAX_MISS:
            return bands, rows
    return PERMUTATIONS, 1


def signatures(shingles: Ragged) -> np.ndarray:
    """MinHash signatures, uint32 of shape (rows, PERMUTATIONS)."""
    if len(shingles.offsets) == 1:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.values, shingles.offsets.astype(np.uint64), PERMUTATIONS, SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint32 of shape (rows, bands): equal for equal bands, and by chance once in 2^32 (weeded out later)."""
    cut = signature[:, : bands * rows].reshape(len(signature), bands, rows).astype(np.uint64)
    key = np.zeros((len(signature), bands), dtype=np.uint64)
    for k in range(rows):
        key = mix(key + cut[:, :, k])
    return (key >> np.uint64(32)).astype(np.uint32)


def sketches(signature: np.ndarray) -> np.ndarray:
    """The low `BITS` bits of every permutation as bit planes: uint64 of shape (rows, BITS, PERMUTATIONS / 64)."""
    planes = [np.packbits((signature >> np.uint32(k)) & np.uint32(1) != 0, axis=1) for k in range(BITS)]
    return np.ascontiguousarray(np.stack(planes, axis=1)).view(np.uint64)


def close(sketch: np.ndarray, a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
    """Whether pairs (a[i], b[i]) agree in enough permutations: not `SLACK` standard errors below the threshold. Two
    unrelated values agree in `BITS` bits once in 2^BITS."""
    chance = threshold + (1.0 - threshold) / 2**BITS
    floor = PERMUTATIONS * (chance - SLACK * (chance * (1.0 - chance) / PERMUTATIONS) ** 0.5)
    kept = np.empty(len(a), dtype=bool)
    for start in range(0, len(a), BATCH):
        span = slice(start, start + BATCH)
        differs = sketch[a[span]] ^ sketch[b[span]]
        any_bit = differs[:, 0]
        for k in range(1, BITS):
            any_bit = any_bit | differs[:, k]
        kept[span] = PERMUTATIONS - np.bitwise_count(any_bit) @ np.ones(any_bit.shape[1], np.int64) >= floor
    return kept


class Pairs(NamedTuple):
    """Pairs a[i] < b[i] of row numbers, similar enough by their sketches, each once in a band."""

    a: np.ndarray
    b: np.ndarray


class Piece(NamedTuple):
    """Rows, ascending, of which every two are a pair but for those of one cluster."""

    rows: np.ndarray
    clusters: np.ndarray


@dataclass
class Search:
    """The candidate pairs of rows, band by band.

    Rows meet when a band's key and their `groups` number are equal. In a bucket of up to `SMALL` rows every pair is
    looked at; in one of up to `LIMIT` rows every pair that isn't yet known to be in one cluster, which leads to the
    same clusters. A larger bucket, whose pairs would grow with its square, is put in order of the next bands' keys, so
    that rows with more in common stand together, and cut into pieces of `LIMIT` rows, and only pairs within a piece
    are looked at. So work in a bucket grows linearly with its rows. A pair that is cut apart meets again in its other
    bands; it can only be lost where it is cut apart in all of them and joined through no other rows. `large` counts
    the buckets treated so.
    """

    keys: np.ndarray  # uint32 (rows, bands), from `band_keys`
    groups: np.ndarray  # uint32 (rows): only rows of one group may meet
    sketch: np.ndarray  # uint64 (rows, BITS, PERMUTATIONS / 64), from `sketches`
    threshold: float
    known: Known  # rows -> the cluster that the pairs found so far put each in
    large: int = 0

    def candidates(self) -> Iterator[Pairs | Piece]:
        """Pairs of small buckets, whole pieces of others. The caller joins what it confirms before it asks for more,
        as `known` must answer with it."""
        n = len(self.keys)
        for band in range(self.keys.shape[1] if n else 0):
            key = (self.groups.astype(np.uint64) << np.uint64(32)) | self.keys[:, band]
            order = np.argsort(key, kind="stable")  # ascending row numbers in a bucket
            fresh = np.flatnonzero(np.concatenate(([True], key[order][1:] != key[order][:-1])))
            sizes = np.diff(np.append(fresh, n))
            few, many = (sizes > 1) & (sizes <= SMALL), sizes > SMALL
            for a, b in _all_pairs(order, fresh[few], sizes[few]):
                near = close(self.sketch, a, b, self.threshold)
                yield Pairs(a[near], b[near])
            for start, size in zip(fresh[many].tolist(), sizes[many].tolist(), strict=True):
                yield from self._pieces(order[start : start + size], band)

    def _pieces(self, members: np.ndarray, band: int) -> Iterator[Piece]:
        if len(members) > LIMIT:
            self.large += 1
            bands = self.keys.shape[1]
            members = members[np.lexsort([self.keys[members, (band + k) % bands] for k in (3, 2, 1)])]
        for start in range(0, len(members), LIMIT):
            rows = np.sort(members[start : start + LIMIT])
            clusters = self.known(rows)
            if (clusters != clusters[0]).any():
                yield Piece(rows, clusters)


def _all_pairs(order: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of each bucket `order[start:start + size]`, about `BATCH` at a time."""
    ends = np.repeat(starts + sizes, sizes)
    places = np.arange(len(ends)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(starts, sizes)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    waiting = step = 0
    while len(places):
        step += 1
        within = places + step < ends
        places, ends = places[within], ends[within]
        found.append((order[places], order[places + step]))
        waiting += len(places)
        if waiting >= BATCH or not len(places):
            yield np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])
            found, waiting = [], 0
