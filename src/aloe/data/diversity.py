"""The diversity filter: best rows first, keep a row unless a kept one is too much like it.

DEITA's *repr filter* (Liu et al. 2024, arXiv 2312.15685, section 3.3): rows in order of falling score; a row stays
when its cosine *similarity* to every row kept so far is at most the threshold (0.9). Peers differ in ways that this
module's tests rule out: distilabel's DeitaFiltering asks for a cosine *distance* of 0.9 to the nearest row of the
whole set, which keeps only outliers and neither of two twins; its EmbeddingDedup lets each twin remove the other;
DEITA's own batched filter lets a row that is itself dropped drop another of its batch.

The result is exact and independent of block size, BLAS and thread count: matrix products only find the pairs that
could be over the threshold, with their rounding error allowed for; each of those is decided by the exactly rounded dot
product of the two float32 rows.

Cost: every row meets every kept one, n x kept x d multiplications, quadratic where little is dropped. `screen` cuts d
without changing the result: rows are rotated to their principal axes, and the first `screen` coordinates together with
the length of the rest bound a dot product from above (Cauchy-Schwarz). That pays on sentence embeddings, whose variance
lies in few directions, and not on isotropic noise, so by default a sample of the rows decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aloe.errors import AloeError

Floats = npt.NDArray[np.float32]
UNIT = 1e-3  # how far a row's length may be from 1
BASIS_ROWS = 20_000  # rows that the principal axes are taken from; any orthogonal basis gives the same result
SCREEN_SLACK = 1e-4  # over the rounding of rotation and rest length, by far
SCREEN_FROM = 10_000  # rows from which a screen is considered
SCREEN_DIVISORS = (6, 3, 2)  # of the dimension, smallest screen first
SCREEN_PAIRS = 1e-4  # a screen that lets more than this share of sampled pairs through saves nothing
SAMPLE_ROWS = 2048
CLOSE = 1e-12  # over the rounding of a float64 dot product of unit rows, by far


@dataclass(frozen=True)
class Diversity:
    """`kept`: row indices in the order they were kept. `dropped`: (row, nearest kept row before it, similarity)."""

    kept: list[int]
    dropped: list[tuple[int, int, float]]


def similarity(a: Floats, b: Floats) -> float:
    """Cosine of two float32 rows of length 1: their dot product, rounded once (products of float32 are exact in
    float64, and `fsum` is exact), at most 1."""
    return min(1.0, math.fsum((a.astype(np.float64) * b.astype(np.float64)).tolist()))


def by_score(scores: Sequence[float], ids: Sequence[str]) -> list[int]:
    """The order of the filter: highest score first, equal scores by id."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], ids[i]))


def diverse(
    vectors: Floats, order: Sequence[int], max_similarity: float = 0.9, *, block: int = 1024, screen: int | None = None
) -> Diversity:
    """Exact greedy filter.

    Args:
        vectors: (n, d) float32, each row of length 1; a row of zeros is like no other and is kept.
        order: indices into `vectors`, best first; rows that are not named are left out.
        max_similarity: a row with a kept row above this is dropped, one equal to it kept; 1 drops nothing.
        block: rows compared at a time; memory beyond `vectors` is about 4 x block x (d + 8 x block) bytes.
        screen: principal coordinates to compare first; 0 compares all d at once, None lets a sample of the rows
            decide. Takes n x (screen + 1) floats more, and a copy of the rows while it is made.

    Raises:
        AloeError: a row is not of length 1 or not finite.
        ValueError: shapes or arguments that make no sense.
    """
    places = _checked(vectors, order, max_similarity, block, screen)
    screen = _choose_screen(vectors, places, max_similarity) if screen is None else screen
    finder = _Finder(vectors[places] if screen else vectors, places, max_similarity, screen)
    kept: list[int] = []  # positions in `order`
    dropped: list[tuple[int, int, float]] = []
    for start in range(0, len(places), block):
        here = np.arange(start, min(start + block, len(places)))
        near = finder.against(here, np.asarray(kept, dtype=np.int64), 8 * block)
        inside = finder.within(here)
        gone: set[int] = set()
        for position in sorted({*near, *inside}):
            rivals = near.get(position, []) + [p for p in inside.get(position, []) if p not in gone]
            best = _nearest(vectors, places, position, rivals)
            if best is not None and best[1] > max_similarity:
                gone.add(position)
                dropped.append((int(places[position]), int(places[best[0]]), best[1]))
        kept += [p for p in here.tolist() if p not in gone]
    return Diversity([int(places[p]) for p in kept], dropped)


def _nearest(
    vectors: Floats, places: npt.NDArray[np.int64], position: int, rivals: Sequence[int]
) -> tuple[int, float] | None:
    """(position, exact similarity) of the rival that is most like the row; the earliest of equals."""
    if not rivals:
        return None
    row = vectors[places[position]]
    rough = vectors[places[list(rivals)]].astype(np.float64) @ row.astype(np.float64)
    first = rough >= rough.max() - CLOSE
    found = [(p, similarity(row, vectors[places[p]])) for p, near in zip(rivals, first.tolist(), strict=True) if near]
    return min(found, key=lambda f: (-f[1], f[0]))


class _Finder:
    """Finds pairs of positions that may be over the threshold: all that are, and few others."""

    def __init__(self, vectors: Floats, places: npt.NDArray[np.int64], max_similarity: float, screen: int) -> None:
        if screen:
            self.rows, self.index = _screened(vectors, screen), np.arange(len(places))
            self.floor = np.float32(max_similarity - SCREEN_SLACK)
        else:
            # |fl(a.b) - a.b| <= d u |a||b| / (1 - d u) in any order of summation (Higham, section 3.1)
            self.rows, self.index = vectors, places
            self.floor = np.float32(max_similarity - 1.01 * (vectors.shape[1] + 2) * 2.0**-24)

    def against(self, here: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], chunk: int) -> dict[int, list[int]]:
        """Kept positions that each position in `here` may be too near to."""
        found: dict[int, list[int]] = {}
        block = self.rows[self.index[here]]
        for start in range(0, len(kept), chunk):
            part = kept[start : start + chunk]
            _collect(block @ self.rows[self.index[part]].T > self.floor, here, part, found)
        return found

    def within(self, here: npt.NDArray[np.int64]) -> dict[int, list[int]]:
        """For each position in `here`, earlier ones of it that it may be too near to."""
        found: dict[int, list[int]] = {}
        block = self.rows[self.index[here]]
        _collect(np.tril(block @ block.T > self.floor, -1), here, here, found)
        return found


def _collect(
    over: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    found: dict[int, list[int]],
) -> None:
    if not over.any():
        return
    for i, j in zip(*(axis.tolist() for axis in np.nonzero(over)), strict=True):
        found.setdefault(int(rows[i]), []).append(int(columns[j]))


def _screened(vectors: Floats, screen: int) -> Floats:
    """(n, screen + 1): principal coordinates and the length of the rest, so that a product of two rows is at least
    the dot product of the vectors they stand for."""
    sample = vectors[:: max(1, len(vectors) // BASIS_ROWS)].astype(np.float64)
    _, axes = np.linalg.eigh(sample.T @ sample)
    axes = axes[:, ::-1][:, :screen]
    out = np.empty((len(vectors), screen + 1), dtype=np.float32)
    for start in range(0, len(vectors), 4096):
        rows = vectors[start : start + 4096].astype(np.float64)
        head = rows @ axes
        rest = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", head, head)
        out[start : start + 4096, :screen] = head
        out[start : start + 4096, screen] = np.sqrt(np.maximum(rest, 0.0))
    return out


def _choose_screen(vectors: Floats, places: npt.NDArray[np.int64], max_similarity: float) -> int:
    """The smallest screen that leaves few of the sampled pairs to look at again; 0 where none does."""
    if len(places) < SCREEN_FROM or vectors.shape[1] < SCREEN_DIVISORS[0]:
        return 0
    sample = vectors[places[:: max(1, len(places) // SAMPLE_ROWS)]]
    for divisor in SCREEN_DIVISORS:
        screen = vectors.shape[1] // divisor
        rows = _screened(sample, screen)
        over = np.count_nonzero(rows @ rows.T > max_similarity - SCREEN_SLACK) - len(rows)
        if over <= SCREEN_PAIRS * len(rows) ** 2:
            return screen
    return 0


def _checked(
    vectors: Floats, order: Sequence[int], max_similarity: float, block: int, screen: int | None
) -> npt.NDArray[np.int64]:
    places = np.asarray(order, dtype=np.int64).reshape(-1)
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError(f"vectors must be a float32 matrix, not {vectors.dtype} of shape {vectors.shape}")
    if len(places) and (places.min() < 0 or places.max() >= len(vectors)):
        raise ValueError("order names a row that is not there")
    if len(np.unique(places)) < len(places):
        raise ValueError("order names a row twice")
    if not 0 < max_similarity <= 1:
        raise ValueError(f"max_similarity lies above 0 and is at most 1, not {max_similarity}")
    if block < 1 or not 0 <= (screen or 0) < max(1, vectors.shape[1]):
        raise ValueError("block is at least 1, and screen less than the vectors' dimension")
    for start in range(0, len(places), 65536):
        rows = places[start : start + 65536]
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors[rows], vectors[rows], dtype=np.float64))
        bad = rows[~((np.abs(lengths - 1) <= UNIT) | (lengths == 0))]
        if len(bad):
            raise AloeError(
                f"row {int(bad[0])}'s vector is not of length 1",
                where="diversity",
                fix="normalise the embeddings; NaN means that the embedder failed on that row",
            )
    return places
