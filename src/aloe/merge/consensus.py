"""Sign election and the sum of what agrees (TIES, Yadav et al. 2023, arXiv 2306.01708, section 4).

The election is over the weighted, sparsified deltas. Zero elects +, and an entry that is zero (dropped, or zero to
begin with) never agrees and never enters the divisor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def elect(weighted: Sequence[F32]) -> Bools:
    """True where the elected sign is +: the sum over models is >= 0. Arrays of one shape, one per model."""
    total = weighted[0].copy()
    for delta in weighted[1:]:
        total += delta
    return total >= 0


def masked_sum(
    weighted: Sequence[F32], weights: Sequence[float], positive: Bools | None, normalize: bool
) -> tuple[F32, int]:
    """Sum over models of the entries that agree with the elected sign.

    Args:
        weighted: one array per model, already sparsified, rescaled and weighted.
        weights: one per model; only the divisor uses them.
        positive: the elected signs; None takes every entry, with no election.
        normalize: divide by the sum of the agreeing models' weights (of all weights without an election).
            Where no model agrees the sum is 0 and stays 0.

    Returns:
        The sum, and how many entries of all models agreed (0 without an election).
    """
    total = np.zeros_like(weighted[0])
    if positive is None:
        for delta in weighted:
            total += delta
        if normalize:
            total /= np.float32(sum(weights))
        return total, 0
    divisor = np.zeros_like(total) if normalize else None
    agreeing = 0
    negative = ~positive
    for delta, weight in zip(weighted, weights, strict=True):
        agree = ((delta > 0) & positive) | ((delta < 0) & negative)
        total += delta * agree
        agreeing += int(np.count_nonzero(agree))
        if divisor is not None:
            divisor += agree * np.float32(weight)
    if divisor is not None:
        divisor[divisor == 0] = 1
        total /= divisor
    return total, agreeing
