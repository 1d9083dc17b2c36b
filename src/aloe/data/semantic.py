"""Duplicates by meaning: rows whose embeddings have a cosine over a threshold that random pairs almost never reach.

What a cosine of 0.9 means differs from one embedder to the next and from one set to the next, so the threshold is
calibrated: the cosines of a keyed sample of random pairs of this very set are taken, and the threshold is their mean
plus `Z` standard deviations, never under the sample's `QUANTILE` quantile and never over `CEILING`. All of it is
returned, to be printed. (Ours; the idea of a random baseline is the usual one for similarity thresholds.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from aloe.data.clusters import Duplicate, Matches, Near, UnionFind
from aloe.data.documents import Document, digest, group_number, in_order, stands_by
from aloe.errors import AloeError
from aloe.keyed import rng

Z = 6.0  # standard deviations over the mean of random pairs
QUANTILE = 0.9999  # of random pairs
CEILING = 0.98  # sets whose rows are all alike would otherwise ask for more than a cosine can reach
SAMPLE = 200_000  # random pairs
BLOCK = 1_024  # rows against rows at a time: 4 MB of cosines
ROUNDING = 1e-4  # float32 products this near under the threshold are decided in float64


def semantic_duplicates(
    embeddings: npt.NDArray[np.float32], docs: Sequence[Document], threshold: float | None = None, *, seed: int = 0
) -> Near:
    """Rows that mean the same as a better one (`documents.survivor_key`).

    Args:
        embeddings: float32 of shape (rows, dimension), of any length but zero; row i is that of `docs[i]`.
        docs: read once, in order.
        threshold: cosine at or over which two rows mean the same; None calibrates it on random pairs.
        seed: of the sample of random pairs.

    Rows meet under the same conditions as near-duplicates: of one family, equal context and gold answer, and an answer
    that doesn't refer to the options. Work grows with the square of the rows that may meet; memory doesn't.
    """
    if len(embeddings) != len(docs):
        raise AloeError(f"{len(embeddings)} embeddings for {len(docs)} rows", where="embeddings", fix="embed every row")
    numbers, ids, groups = np.empty((len(docs), 3)), [], np.empty(len(docs), dtype=np.uint64)
    answers = np.empty(len(docs), dtype=bool)
    for i, doc in enumerate(docs):
        numbers[i] = doc.priority, -doc.quality, -doc.length
        ids.append(doc.id)
        groups[i] = group_number(doc) ^ int.from_bytes(digest(doc.family)[:8], "little")
        answers[i] = stands_by(doc, "stem")
    order = in_order(numbers, ids)
    unit = _unit(embeddings)
    facts = _calibrated(unit, order, threshold, seed)
    limit = float(facts["threshold"])
    rows = order[answers[order]]
    rows = rows[np.argsort(groups[rows], kind="stable")]  # groups together, by rank within each
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    union, matches, confirmed = UnionFind(len(docs)), Matches(len(docs)), 0
    for a, b, cosine in _pairs(unit, rows, groups, limit):
        confirmed += len(a)
        union.join(rank[a], rank[b])
        matches.offer(rank[a], rank[b], cosine, 0)
    found = []
    lost, survivor = matches.losers(union)
    for r, s in zip(lost.tolist(), survivor.tolist(), strict=True):
        i, j, match = int(order[r]), int(order[s]), int(order[matches.other[r]])
        to_survivor = float(_cosines(unit, np.array([i]), np.array([j]))[0])
        found.append(Duplicate(i, j, match, float(matches.similarity[r]), "meaning", to_survivor))
    return Near(sorted(found, key=lambda d: d.index), confirmed, confirmed, facts)


def _unit(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        raise AloeError(
            f"embedding {int(np.argmax(bad))} has length {lengths[np.argmax(bad)]}",
            where="embeddings", fix="leave rows without text out",
        )  # fmt: skip
    return (embeddings / lengths[:, None]).astype(np.float32)


def _calibrated(
    unit: npt.NDArray[np.float32], order: npt.NDArray[np.int64], threshold: float | None, seed: int
) -> dict[str, str | int | float]:
    """Mean, spread and quantiles of random pairs' cosines, and the threshold they lead to."""
    facts: dict[str, str | int | float] = {"measure": "cosine", "z": Z, "quantile": QUANTILE, "ceiling": CEILING}
    n = len(order)
    if n < 2:
        return {**facts, "threshold": CEILING if threshold is None else threshold, "random_pairs": 0}
    draw = rng(seed, "semantic-pairs")
    a = draw.integers(0, n, SAMPLE)
    b = (a + draw.integers(1, n, SAMPLE)) % n  # any other row, each as likely
    cosines = _cosines(unit, order[a], order[b])
    mean, spread, high = float(cosines.mean()), float(cosines.std()), float(np.quantile(cosines, QUANTILE))
    limit = min(max(mean + Z * spread, high), CEILING) if threshold is None else threshold
    return {
        **facts, "threshold": limit, "calibrated": int(threshold is None), "random_pairs": SAMPLE, "random_mean": mean,
        "random_sd": spread, "random_quantile": high, "random_share_over": float((cosines >= limit).mean()),
    }  # fmt: skip


def _pairs(
    unit: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], groups: npt.NDArray[np.uint64], limit: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """(a, b, cosine) of the pairs at or over the limit; `rows` has each group's rows together."""
    label = groups[rows]
    borders = np.append(np.flatnonzero(label[1:] != label[:-1]) + 1, len(rows))  # where each group ends
    for start in range(0, len(rows), BLOCK):
        left = rows[start : start + BLOCK]
        last = int(borders[np.searchsorted(borders, start + len(left) - 1, side="right")])
        for other in range(start, last, BLOCK):
            right = rows[other : min(other + BLOCK, last)]
            i, j = np.nonzero(unit[left] @ unit[right].T >= limit - ROUNDING)
            keep = (label[start + i] == label[other + j]) & (start + i < other + j)
            a, b = left[i[keep]], right[j[keep]]
            cosine = _cosines(unit, a, b)
            yield a[cosine >= limit], b[cosine >= limit], cosine[cosine >= limit]


def _cosines(
    unit: npt.NDArray[np.float32], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Cosines of rows a[i] and b[i], summed in float64."""
    if len(a) > 16_384:
        half = len(a) // 2
        return np.concatenate((_cosines(unit, a[:half], b[:half]), _cosines(unit, a[half:], b[half:])))
    products = unit[a].astype(np.float64)
    products *= unit[b]
    return np.minimum(products.sum(axis=1), 1.0)
