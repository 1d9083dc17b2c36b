"""Scores that another tool measured, as tables of a scores artifact.

They keep a protocol of their own (`kind: imported`, with tool, version, task and hash), so nothing pairs or shares a
column with what aloe measured. A value is as its tool states it, and its interval is the value ± 1.96 of the stated
standard errors. Item rows are kept where there are samples, and hold a metric only if its mean over them is the stated
value: another figure (a perplexity, a correlation) can't be computed again from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.evaluate.stats import Z95, mean_interval, wilson
from aloe.records import ItemResult, Outcome, row_id
from aloe.rows import write_records
from aloe.schema import mark

KIND = "imported"
LICENCE = "unknown"  # of samples that another tool wrote down


@dataclass(frozen=True)
class Claim:
    """A score as its tool states it. `higher`: whether more is better. `reported`: the tool's own names and figures.
    `interval`: its 95% interval, where the tool states one."""

    metric: str
    value: float
    stderr: float | None
    n: int | None
    higher: bool
    reported: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sampled:
    """An item as its tool saw it; `values` by metric."""

    item: str
    outcome: Outcome
    values: Mapping[str, float]
    gold: str = ""
    prediction: str = ""
    output: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """A model under one foreign protocol on one task. `where` is the file, for errors."""

    model: str
    benchmark: str
    protocol: Mapping[str, Any]
    claims: Sequence[Claim]
    items: Sequence[Sampled]
    where: str
    told: Mapping[str, Any] = field(default_factory=dict)


def tables(found: Sequence[Imported]) -> tuple[list[ItemResult], dict[str, Any], dict[str, Any]]:
    """(item rows, content of scores.json, content of protocols.json).

    Raises:
        AloeError: one model, task and protocol comes twice; a claim without a number of items.
    """
    items: list[ItemResult] = []
    scores: list[dict[str, Any]] = []
    protocols: dict[str, Any] = {}
    seen: dict[tuple[str, str, str], str] = {}
    for one in found:
        digest = digest_json(one.protocol)
        key = one.model, one.benchmark, digest
        if key in seen:
            raise AloeError(
                f"{one.model} on {one.benchmark} comes twice under one protocol, the first time from {seen[key]}",
                where=one.where,
                fix="leave one of the two out, or give one of the models another name with --rename",
            )
        seen[key] = one.where
        protocols[digest] = dict(one.protocol)
        recomputed = [c for c in one.claims if _follows(c, one.items)]
        items += _rows(one, digest, recomputed)
        scores += [_record(one, digest, claim, claim in recomputed) for claim in one.claims]
    models = list(dict.fromkeys(s["model"] for s in scores))
    return items, {"models": models, "benchmarks": list(dict.fromkeys(s["benchmark"] for s in scores)),
                   "scores": scores}, protocols  # fmt: skip


def _values(metric: str, items: Sequence[Sampled]) -> list[float]:
    return [i.values[metric] for i in items if i.outcome != "errored" and metric in i.values]


def _follows(claim: Claim, items: Sequence[Sampled]) -> bool:
    """Whether a claim is the mean of its items' values."""
    values = _values(claim.metric, items)
    if not values or (claim.n is not None and claim.n != len(values)):
        return False
    return math.isclose(math.fsum(values) / len(values), claim.value, rel_tol=1e-9, abs_tol=1e-9)


def _rows(one: Imported, digest: str, claims: Sequence[Claim]) -> list[ItemResult]:
    if not claims:
        return []
    first, tool = claims[0].metric, str(one.protocol["tool"])
    rows = []
    for i in one.items:
        more = {c.metric: i.values[c.metric] for c in claims[1:] if c.metric in i.values}
        scored = i.outcome != "errored" and first in i.values
        rows.append(
            ItemResult(
                id=row_id([i.item, one.model, one.benchmark, first, digest]), source=f"{tool}/{one.benchmark}",
                licence=LICENCE, meta={**i.meta, **more}, item=i.item, model=one.model, benchmark=one.benchmark,
                metric=first, protocol=digest, outcome=i.outcome if scored else "errored",
                value=i.values[first] if scored else None, gold=i.gold, prediction=i.prediction, output=i.output,
                prompt_tokens=i.prompt_tokens, completion_tokens=i.completion_tokens,
            )
        )  # fmt: skip
    return rows


def _record(one: Imported, digest: str, claim: Claim, from_items: bool) -> dict[str, Any]:
    values = _values(claim.metric, one.items) if from_items else []
    n = claim.n if claim.n is not None else len(values)
    if not n:
        fix = "import its samples, too, or a log that states how many items were scored"
        raise AloeError(
            f"how many items {claim.metric} of {one.benchmark} is of is not stated", where=one.where, fix=fix
        )
    share = all(0 <= v <= 1 for v in values) if values else 0 <= claim.value <= 1 and claim.metric in SHARES
    low, high, how = _interval(claim, values, n, share)
    counts = {o: sum(i.outcome == o for i in one.items) for o in ("answered", "unparsed", "errored")}
    if not one.items:
        counts |= {"answered": n}
    scored = counts["answered"] + counts["unparsed"]
    binary = bool(values) and all(v in (0.0, 1.0) for v in values)
    return {
        "model": one.model,
        "model_digest": None,
        "benchmark": one.benchmark,
        "kind": KIND,
        "metric": claim.metric,
        "strategy": one.protocol["strategy"],
        "better": "higher" if claim.higher else "lower",
        "unit": "share" if share else "points",
        "value": claim.value,
        "low": low,
        "high": high,
        "n": n,
        "successes": round(sum(values)) if binary else None,
        **counts,
        "parse_rate": counts["answered"] / scored if one.items and scored else None,
        "protocol": digest,
        "protocol_line": _line(one.protocol),
        "extra": {
            "imported": {
                **one.told,
                "stderr": claim.stderr,
                "interval": how,
                "from_items": from_items,
                **claim.reported,
            }
        },
    }


SHARES = {"accuracy", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mc1", "mc2", "match"}


def _line(protocol: Mapping[str, Any]) -> str:
    """The protocol in words, for tables."""
    parts = [f"imported from {protocol['tool']} {protocol['tool_version']}", f"task {protocol['task']}"]
    if protocol.get("task_version") not in (None, 0):
        parts[1] += f" version {protocol['task_version']}"
    parts += [f"{protocol['shots']} shots"] if protocol.get("shots") is not None else []
    parts += [f"{key} {protocol[key]}" for key in ("filter", "scorer") if protocol.get(key) not in (None, "none")]
    return ", ".join(parts)


def _interval(claim: Claim, values: Sequence[float], n: int, share: bool) -> tuple[float | None, float | None, str]:
    """(low, high, how it was come by). A standard error of 0 says that all values were equal, not that the mean is
    known; then, and without one, the items decide, or the count. No interval where there is nothing to go by."""
    if claim.interval is not None:
        return *claim.interval, "stated interval"
    if claim.stderr:
        low, high = claim.value - Z95 * claim.stderr, claim.value + Z95 * claim.stderr
        return max(0.0, low) if share else low, min(1.0, high) if share else high, "stated standard error"
    if values:
        _, low, high = mean_interval(values)
        return low, high, "item rows"
    if share and claim.stderr == 0 and claim.value in (0.0, 1.0):
        return *wilson(claim.value * n, n), "stated count"
    return None, None, "none: no standard error is stated"


def write_tables(out: Path, found: Sequence[Imported]) -> dict[str, Any]:
    """Write `items.parquet`, `scores.json`, `protocols.json` and an empty `comparisons.json`; returns a summary."""
    items, scores, protocols = tables(found)
    write_records(out / "items.parquet", items)
    for name, content in (
        ("scores.json", mark("scores") | scores),
        ("protocols.json", protocols),
        ("comparisons.json", []),
    ):
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        (out / name).write_text(text + "\n", encoding="utf-8")
    keys = ("model", "benchmark", "metric", "strategy", "value", "low", "high", "n", "parse_rate")
    return {
        "models": scores["models"],
        "benchmarks": scores["benchmarks"],
        "items": len(items),
        "errored": sum(i.outcome == "errored" for i in items),
        "scores": [{k: s[k] for k in keys} for s in scores["scores"]],
        "comparisons": 0,
    }
