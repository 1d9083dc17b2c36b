"""Mixing sources by weight, with exact shares and without repeating a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import TypeVar

from aloe.errors import AloeError
from aloe.keyed import shuffled
from aloe.records import Row

R = TypeVar("R", bound=Row)


def quotas(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`, as near to the weights as whole numbers get (largest remainder; equal
    remainders go to the larger weight, then by name)."""
    scale = sum(weights.values())
    exact = {name: weight / scale * total for name, weight in weights.items()}
    counts = {name: floor(share + 1e-9) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: (-round(exact[name] - counts[name], 9), -weights[name], name))
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def largest_total(sizes: Mapping[str, int], weights: Mapping[str, float]) -> int:
    """The most rows that can be drawn at these weights without repeating one."""
    scale = sum(weights.values())
    total = min(ceil((sizes[name] + 1) * scale / weight) for name, weight in weights.items())  # a quota rounds down
    while any(count > sizes[name] for name, count in quotas(weights, total).items()):
        total -= 1
    return total


def mix(
    groups: Mapping[str, Sequence[R]], weights: Mapping[str, float] | None, total: int | None, seed: int
) -> list[R]:
    """Rows of all groups in keyed random order.

    Args:
        groups: rows by source, ids unique over all of them.
        weights: relative share of every source, above 0; None takes the shares the sources have.
        total: rows wanted; None takes as many as the weights allow (all, without weights).

    Raises:
        AloeError: a source has too few rows for its share of `total`.
    """
    chosen = choose({name: [r.id for r in rows] for name, rows in groups.items()}, weights, total, seed)
    return [groups[name][k] for name, k in chosen]


def choose(
    groups: Mapping[str, Sequence[str]], weights: Mapping[str, float] | None, total: int | None, seed: int
) -> list[tuple[str, int]]:
    """`mix` on ids alone: (group, place in it) of the rows drawn, in keyed random order."""
    sizes = {name: len(ids) for name, ids in groups.items()}
    natural = {name: float(size) for name, size in sizes.items() if size}
    weights = dict(weights) if weights is not None else natural
    total = largest_total(sizes, weights) if total is None else total
    counts = quotas(weights, total)
    for name, count in counts.items():
        if count > sizes[name]:
            most = largest_total(sizes, weights)
            raise AloeError(
                f"{total} rows at these weights need {count} rows of {name}, which has {sizes[name]}",
                where="rows",
                fix=f"ask for {most} rows or fewer, or lower the weight of {name}",
            )
    drawn = [
        (name, k)
        for name, count in counts.items()
        for k in shuffled(range(sizes[name]), seed, f"mix:{name}", groups[name])[:count]
    ]
    return shuffled(drawn, seed, "mix-order", [groups[name][k] for name, k in drawn])
