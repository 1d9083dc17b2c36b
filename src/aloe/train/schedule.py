"""Which rows, in which order, at which learning rate. Everything is keyed by (seed, purpose, row)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from aloe.errors import AloeError
from aloe.keyed import shuffled

ScheduleName = Literal["cosine", "linear", "constant"]


def lr_factor(step: int, steps: int, warmup: int, schedule: ScheduleName) -> float:
    """Factor on the learning rate of step `step` (from 0) of `steps`.

    Warm-up rises linearly and reaches 1 at step `warmup`; its first step is 1/(warmup + 1) of the rate and not zero,
    which would waste a batch. Cosine and linear then fall towards 0, which they would reach one step after the last.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def warmup_of(steps: int, asked: int | None) -> int:
    """Warm-up steps: as asked, else the 100 of the Aloe Beta recipe or a tenth of a run that is shorter than 1,000."""
    return min(100, steps // 10) if asked is None else asked


def quotas(sizes: Sequence[int], weights: Sequence[float], max_rows: int | None) -> list[int]:
    """Rows to draw from each source so that the shares are `weights` and no row is drawn twice.

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


def draw(keys: Sequence[str], count: int, seed: int, purpose: str) -> list[int]:
    """`count` indices into `keys`, chosen by key alone, in ascending order."""
    return sorted(shuffled(range(len(keys)), seed, purpose, keys)[:count])


def stream(keys: Sequence[str], epochs: float, seed: int, purpose: str) -> list[int]:
    """Indices of all rows trained on, in order: each epoch in a shuffled order of its own, the last may be a part."""
    total = max(1, round(len(keys) * epochs))
    order: list[int] = []
    for epoch in range(math.ceil(total / len(keys))):
        order += shuffled(range(len(keys)), seed, f"{purpose} epoch {epoch}", keys)
    return order[:total]
