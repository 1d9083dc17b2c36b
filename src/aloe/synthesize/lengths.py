"""Length statistics. Pure: lengths in words in, figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def summary(counts: Sequence[int]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum, as `aloe.data.card.lengths` states them."""
    ordered = sorted(counts)
    if not ordered:
        return {"mean": 0.0, "median": 0, "p95": 0, "max": 0}
    return {
        "mean": round(sum(ordered) / len(ordered), 2),
        "median": ordered[(len(ordered) - 1) // 2],
        "p95": ordered[(len(ordered) * 95 - 1) // 100],
        "max": ordered[-1],
    }


def preference_by_length(chosen: Sequence[int], rejected: Sequence[int]) -> float | None:
    """Point-biserial correlation of being chosen with length in words, over both texts of every pair, in [-1, 1].

    None where it is undefined: no texts of one side, or all of one length.
    """
    n_w, n_l = len(chosen), len(rejected)
    if not n_w or not n_l:
        return None
    lengths = [*chosen, *rejected]
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((x - mean) ** 2 for x in lengths) / len(lengths))
    if spread == 0:
        return None
    gap = sum(chosen) / n_w - sum(rejected) / n_l
    return round(gap / spread * math.sqrt(n_w * n_l) / (n_w + n_l), 6)


def compare(chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, object]:
    """Lengths of both sides, how often the chosen text is the longer one, and what length says about preference."""
    longer = sum(w > r for w, r in zip(chosen, rejected, strict=True))
    equal = sum(w == r for w, r in zip(chosen, rejected, strict=True))
    return {
        "chosen": summary(chosen),
        "rejected": summary(rejected),
        "chosen_longer": round(longer / len(chosen), 6) if chosen else None,
        "equal_length": round(equal / len(chosen), 6) if chosen else None,
        "preference_length_correlation": preference_by_length(chosen, rejected),
    }
