"""Models against each other, item by item: how large a difference is, how sure, and which items it comes from. Pure.

Which scores may be compared, `aloe.evaluate.sides` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.evaluate.measured import Measured
from aloe.evaluate.sides import NATS, Better, Pairing, Series, Side, value_of
from aloe.evaluate.stats import (
    Part,
    clustered_mean,
    combined,
    holm,
    mcnemar,
    mean_interval,
    minimum_detectable,
    non_inferiority,
    paired_difference,
    sign_flip,
)
from aloe.records import ItemResult


@dataclass(frozen=True)
class Flip:
    """An item whose value changed: for the worse if `worse`. `before` and `after` are what was predicted, or the values
    of a metric that rates no prediction (NLL)."""

    item: str
    worse: bool
    before: str
    after: str
    gold: str


@dataclass(frozen=True)
class Comparison:
    """`after` against `before` on the items that both have a value of. Shares in [0, 1], nats as they are.

    `values`: (value, low, high) of both on those items. `improved`, `worsened`: items, by which way is better.
    `left_out`: items without a pair, by reason. `p_value` by `test`; `p_holm` adjusted over all of one report.
    `detectable`: the smallest difference found with 80% power (None: none). `verdict` etc. with a margin only.
    """

    benchmark: str
    metric: str
    strategy: str
    better: Better
    unit: str
    before: str
    after: str
    n: int
    groups: int
    values: tuple[tuple[float, float, float], tuple[float, float, float]]
    difference: float
    se: float
    low: float
    high: float
    improved: int
    worsened: int
    p_value: float
    p_holm: float
    test: str
    detectable: float | None
    left_out: dict[str, int]
    across: dict[str, tuple[Any, Any]]
    flips: tuple[Flip, ...] = ()
    margin: float | None = None
    p_worse: float | None = None
    verdict: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the two values by name."""
        names = ("value", "low", "high")
        return asdict(self) | {"values": [dict(zip(names, v, strict=True)) for v in self.values]}


def contrast(a: Side, b: Side, pairing: Pairing, *, margin: float | None = None, flips: int = 0) -> Comparison:
    """One comparison. `margin` (a share) asks for non-inferiority, of shares only; `p_holm` is still `p_value`."""
    before, after = pairing.before, pairing.after
    both = sorted(set(before.values) & set(after.values))
    if not both:
        raise AloeError(
            f"{before.benchmark} ({before.metric}): no item was scored for both {a.label} and {b.label}",
            fix="evaluate both on the same rows",
        )
    x, y = [before.values[i] for i in both], [after.values[i] for i in both]
    clusters = [before.rows[i].cluster for i in both]
    change = paired_difference(x, y, clusters)
    d = [v - u for u, v in zip(x, y, strict=True)]
    sign = 1 if before.better == "higher" else -1
    spread = clustered_mean(d, clusters)
    binary = all(v in (0.0, 1.0) for v in (*x, *y))
    key = f"{a.label}|{b.label}|{before.benchmark}|{before.metric}|{before.digest}|{after.digest}"
    p, test = significance(x, y, clusters, key=key)
    found = None
    if margin is not None and before.unit == "share":
        found = non_inferiority(x, y, margin, clusters, better=before.better)
    return Comparison(
        before.benchmark, before.metric, _strategies(before, after), before.better, before.unit, a.label, b.label,
        len(both), spread.groups, (mean_interval(x, clusters), mean_interval(y, clusters)),
        change.difference, change.se, change.low, change.high,
        sum(sign * v > 0 for v in d), sum(sign * v < 0 for v in d), p, p, test,
        _detectable(d, binary, spread.se, spread.groups), _left_out(before, after), dict(pairing.across),
        _flips(before, after, both, d, sign, flips),
        *((found.margin, found.p_value, found.verdict) if found else ()),
    )  # fmt: skip


def significance(x: Sequence[float], y: Sequence[float], clusters: Sequence[str], *, key: str) -> tuple[float, str]:
    """(p, name of the test): exact McNemar for independent right-or-wrong items, else a sign-flip permutation."""
    d = [v - u for u, v in zip(x, y, strict=True)]
    alone = len(set(clusters)) == len(d)
    if alone and all(v in (0.0, 1.0) for v in (*x, *y)):
        return mcnemar(sum(v < 0 for v in d), sum(v > 0 for v in d)), "exact McNemar"
    return sign_flip(d, clusters, key=key), "sign-flip permutation" + ("" if alone else ", clustered")


def _strategies(before: Series, after: Series) -> str:
    return before.strategy if before.strategy == after.strategy else f"{before.strategy} → {after.strategy}"


def _detectable(d: Sequence[float], binary: bool, se: float, groups: int) -> float | None:
    n = len(d)
    if groups < 2:
        return None
    mean = math.fsum(d) / n
    variance = math.fsum((v - mean) ** 2 for v in d) / (n - 1)
    effect = max(1.0, se * se * n / variance) if variance > 0 else n / groups
    if binary:
        # One more in both cells: none discordant among n doesn't mean that none could be.
        return minimum_detectable(n, discordance=(sum(v != 0 for v in d) + 2) / (n + 2), design_effect=effect)
    return minimum_detectable(n, sd=math.sqrt(variance), design_effect=effect) if variance > 0 else None


def _left_out(before: Series, after: Series) -> dict[str, int]:
    counts = {
        "only before": len(before.rows.keys() - after.rows.keys()),
        "only after": len(after.rows.keys() - before.rows.keys()),
        "errored before": sum(i in after.rows for i in before.rows.keys() - before.values.keys()),
        "errored after": sum(i in before.rows for i in after.rows.keys() - after.values.keys()),
    }
    return {k: v for k, v in counts.items() if v}


def _flips(
    before: Series, after: Series, both: Sequence[str], d: Sequence[float], sign: int, count: int
) -> tuple[Flip, ...]:
    """The `count` items that lost most, and as many that gained most; ties by item."""
    found = []
    for side in (-1, 1):
        moved = sorted((-abs(v), i) for i, v in zip(both, d, strict=True) if side * sign * v > 0)
        for _, i in moved[:count]:
            told = [_said(series, i) for series in (before, after)]
            gold = before.rows[i].gold if before.metric in (before.rows[i].metric, "text_accuracy") else ""
            found.append(Flip(i, side < 0, told[0], told[1], gold))
    return tuple(found)


def _said(series: Series, item: str) -> str:
    """What was predicted; of a metric that rates no prediction, its value."""
    row = series.rows[item]
    if series.metric == "text_accuracy":
        return row.letter
    return row.prediction if series.metric == row.metric else f"{series.values[item]:.3f}"


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with Holm's adjustment over all of them."""
    p = holm([c.p_value for c in comparisons])
    return [replace(c, p_holm=q) for c, q in zip(comparisons, p, strict=True)]


def means(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Mean difference over benchmarks, macro and by items, of each pair of models and metric with two or more."""
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault((c.before, c.after, c.metric, c.unit), []).append(c)
    result = []
    for (before, after, metric, unit), found in groups.items():
        if len({c.benchmark for c in found}) < max(2, len(found)):
            continue  # one benchmark under two strategies has its items twice: not independent
        parts = [Part(c.difference, c.low, c.high, c.n) for c in found]
        for weighting in ("macro", "items"):
            m = combined(parts, weighting)  # type: ignore[arg-type]
            head = {"before": before, "after": after, "metric": metric, "unit": unit, "weighting": weighting}
            told_by = {"benchmarks": len(parts), "n": m.n, "difference": m.value, "low": m.low, "high": m.high}
            result.append(head | told_by)
    return result


# -- within one artifact -----------------------------------------------------------------------------------------------


def neighbours(found: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Every model against the one before it, for `comparisons.json`: each metric that both have under one protocol.

    Holm's adjustment is over the tests of one pair of models. NLL has an interval and no test. Protocols that only one
    of the two was run under are listed as not compared, and so are figures that have no value by item (bias scores).
    """
    result: list[dict[str, Any]] = []
    for before, after in pairwise(found):
        mine = {(m.items[0].benchmark, digest_json(m.protocol)): m for m in found[before] if m.items}
        pairs: list[dict[str, Any]] = []
        for second in (m for m in found[after] if m.items):
            benchmark, digest = second.items[0].benchmark, digest_json(second.protocol)
            head = {"before": before, "after": after, "benchmark": benchmark, "protocol": digest}
            first = mine.get((benchmark, digest))
            if first is None:
                pairs.append({**head, "compared": False, "reason": "the two were scored under different protocols"})
                continue
            for metric in dict.fromkeys(str(score["metric"]) for score in second.scores):
                pairs.append(head | _neighbour(first.items, second.items, metric, f"{before}|{after}|{digest}"))
        tested = [p for p in pairs if p.get("p_value") is not None]
        for pair, p in zip(tested, holm([p["p_value"] for p in tested]), strict=True):
            pair["p_holm"] = p
        result += pairs
    return result


def _neighbour(first: Sequence[ItemResult], second: Sequence[ItemResult], metric: str, key: str) -> dict[str, Any]:
    a, b = ({i.item: v for i in items if (v := value_of(i, metric)) is not None} for items in (first, second))
    both = [item for item in a if item in b]
    entry: dict[str, Any] = {
        "metric": metric,
        "compared": bool(both),
        "n": len(both),
        "left_out": len(first) - len(both),
    }
    if not both:
        by_item = any(i.metric == metric for i in first) or a or b
        return entry | {"reason": "no item was scored for both" if by_item else "it has no value by item"}
    told = {i.item: str(i.meta.get("cluster", i.item)) for i in first}
    x, y, clusters = [a[i] for i in both], [b[i] for i in both], [told[i] for i in both]
    change = paired_difference(x, y, clusters)
    entry |= {"difference": change.difference, "se": change.se, "low": change.low, "high": change.high}
    if metric not in NATS:
        p, test = significance(x, y, clusters, key=f"{key}|{metric}")
        entry |= {"only_before": sum(u > v for u, v in zip(x, y, strict=True)), "p_value": p, "test": test}
        entry["only_after"] = sum(v > u for u, v in zip(x, y, strict=True))
    return entry
