"""Statistics of scores. Pure functions on arrays; every one names its source. Intervals are 95% unless `z` says more.

Items are the unit: a difference between two models is always taken item by item (paired), because two models fail on
much the same items and an unpaired interval would hide real differences (Miller 2024, "Adding error bars to evals").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aloe.keyed import rng

Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927). (0, 1) when n is 0: nothing is known."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def clustered_se(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean when items of one cluster (passage, template, base prompt) vary together.

    Liang and Zeger (1986) with the G/(G-1) correction: for singleton clusters it is the ordinary s / sqrt(n), and it
    equals statsmodels' `cov_type="cluster"` for a regression on a constant. 0 for fewer than two clusters.
    """
    x = np.asarray(values, dtype=np.float64)
    labels = list(clusters) if clusters is not None else list(range(len(x)))
    if len(labels) != len(x):
        raise ValueError(f"{len(x)} values but {len(labels)} cluster labels")
    sums: dict[Hashable, float] = {}
    for label, deviation in zip(labels, x - x.mean() if len(x) else x, strict=True):
        sums[label] = sums.get(label, 0.0) + float(deviation)
    groups = len(sums)
    if groups < 2:
        return 0.0
    return math.sqrt(groups / (groups - 1) * sum(s * s for s in sums.values())) / len(x)


@dataclass(frozen=True)
class MeanDifference:
    """Mean of b - a over the same items, with its clustered standard error and normal interval."""

    difference: float
    se: float
    low: float
    high: float
    n: int


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None, z: float = Z95
) -> MeanDifference:
    """Mean difference b - a of two models on the same items, in the values' unit (Miller 2024, section 4.2)."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired values are needed: {len(a)} against {len(b)}")
    differences = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
    mean, se = float(np.mean(differences)), clustered_se(differences, clusters)
    return MeanDifference(mean, se, mean - z * se, mean + z * se, len(differences))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test (McNemar 1947, binomial form): p-value from the discordant pairs alone.

    Args:
        only_a: items that only the first model gets right.
        only_b: items that only the second gets right.
    """
    n = only_a + only_b
    tail, ways = 0, 1
    for k in range(min(only_a, only_b) + 1):
        tail += ways  # n choose k
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)  # exact integers until the last division


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given; valid under any dependence."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def bootstrap_se(
    values: Sequence[float],
    *,
    seed: int,
    key: str,
    replicates: int = 1000,
    statistic: Callable[[npt.NDArray[np.float64]], float] = lambda sample: float(sample.mean()),
) -> float:
    """Bootstrap standard error: the standard deviation of the replicates (Efron 1979), *not* divided by their root."""
    x = np.asarray(values, dtype=np.float64)
    draw = rng(seed, "bootstrap", key)
    found = [statistic(x[draw.integers(0, len(x), len(x))]) for _ in range(replicates)]
    return float(np.std(found, ddof=1))


def total_variation(a: Mapping[Any, float], b: Mapping[Any, float]) -> float:
    """Total variation distance in [0, 1] of two distributions given as counts or weights; 0 when either is empty."""
    total_a, total_b = sum(a.values()), sum(b.values())
    if not total_a or not total_b:
        return 0.0
    return sum(abs(a.get(k, 0) / total_a - b.get(k, 0) / total_b) for k in set(a) | set(b)) / 2


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, z: float = Z95
) -> tuple[float, float, float]:
    """(mean, low, high). Wilson for independent zeros and ones, else mean +- z clustered standard errors."""
    if not values:
        raise ValueError("the mean of no values")
    binary = all(v in (0.0, 1.0) for v in values)
    if binary and (clusters is None or len(set(clusters)) == len(values)):
        return sum(values) / len(values), *wilson(sum(values), len(values), z)
    mean, se = float(np.mean(values)), clustered_se(values, clusters)
    low, high = mean - z * se, mean + z * se
    return (mean, max(0.0, low), min(1.0, high)) if binary else (mean, low, high)
