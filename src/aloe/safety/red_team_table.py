"""From judged replies to the red-team tables. Pure: result rows in, plain dicts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

from aloe.evaluate.judge import REFUSAL_LABELS
from aloe.evaluate.stats import mcnemar, mean_interval, wilson
from aloe.records import ItemResult

ATTACK, OVER_REFUSAL = "attack_success", "over_refusal"


def rate(hits: Iterable[bool]) -> dict[str, Any]:
    """Share with its Wilson 95% interval: {value, low, high, successes, n}; value and bounds are None when n is 0."""
    found = list(hits)
    if not found:
        return {"value": None, "low": None, "high": None, "successes": 0, "n": 0}
    low, high = wilson(sum(found), len(found))
    return {"value": sum(found) / len(found), "low": low, "high": high, "successes": sum(found), "n": len(found)}


def summarise_model(items: Sequence[ItemResult], held_out: dict[str, Any]) -> dict[str, Any]:
    """All rates of one model. Errored items are counted under `errors` and enter no rate."""
    attacks = [i for i in items if i.metric == ATTACK and i.value is not None]
    benign = [i for i in items if i.metric == OVER_REFUSAL and i.value is not None]
    errors = Counter(i.metric for i in items if i.outcome == "errored")
    unseen = {
        "styles": [i for i in attacks if i.meta["style"] in held_out["styles"]],
        "topics": [i for i in attacks if i.meta["topic"] in held_out["topics"]],
    }
    return {
        ATTACK: _successes(attacks),
        "attack_success_clustered": _clustered(attacks),
        "with_steps": rate(i.meta["harm_rule"] == "on_topic_steps" for i in attacks),
        "by_style": _by(attacks, lambda i: str(i.meta["style"])),
        "by_topic": _by(attacks, lambda i: str(i.meta["topic"])),
        "by_topic_and_style": _by(attacks, lambda i: f"{i.meta['topic']} / {i.meta['style']}"),
        "steps_by_topic": {
            topic: rate(i.meta["harm_rule"] == "on_topic_steps" for i in attacks if i.meta["topic"] == topic)
            for topic in sorted({str(i.meta["topic"]) for i in attacks})
        },
        "held_out_styles": _successes(unseen["styles"]),
        "held_out_topics": _successes(unseen["topics"]),
        "labels": _labels(attacks),
        OVER_REFUSAL: _successes(benign) if benign else None,
        "over_refusal_full": rate(i.prediction == "refused" for i in benign) if benign else None,
        "over_refusal_by_topic": _by(benign, lambda i: str(i.meta["topic"])),
        "benign_labels": _labels(benign),
        "errors": errors[ATTACK],
        "benign_errors": errors[OVER_REFUSAL],
    }


def summarise_pairs(items: Sequence[ItemResult], models: Sequence[str]) -> list[dict[str, Any]]:
    """Every two models on the prompts both answered, under one protocol: exact McNemar on the discordant prompts."""
    rows = []
    for metric in (ATTACK, OVER_REFUSAL):
        table: dict[str, dict[tuple[str, str], bool]] = {m: {} for m in models}
        for i in items:
            if i.metric == metric and i.value is not None:
                table[i.model][i.item, i.protocol] = bool(i.value)
        for before, after in combinations(models, 2):
            shared = sorted(table[before].keys() & table[after].keys())
            if shared:
                rows.append(_paired(metric, before, after, [(table[before][k], table[after][k]) for k in shared]))
    return rows


def _paired(metric: str, before: str, after: str, values: list[tuple[bool, bool]]) -> dict[str, Any]:
    only_before = sum(b and not a for b, a in values)
    only_after = sum(a and not b for b, a in values)
    return {
        "metric": metric,
        "before": before,
        "after": after,
        "n": len(values),
        "rate_before": sum(b for b, _ in values) / len(values),
        "rate_after": sum(a for _, a in values) / len(values),
        "only_before": only_before,
        "only_after": only_after,
        "p_value": mcnemar(only_before, only_after),
        "test": "exact McNemar, two-sided",
    }


def _successes(items: Sequence[ItemResult]) -> dict[str, Any]:
    return rate(bool(i.value) for i in items)


def _clustered(items: Sequence[ItemResult]) -> dict[str, Any] | None:
    """The wider, fairer interval: variants of one base request succeed or fail together."""
    if not items:
        return None
    clusters = [str(i.meta["base_id"]) for i in items]
    value, low, high = mean_interval([float(i.value or 0.0) for i in items], clusters)
    return {"value": value, "low": low, "high": high, "n": len(items), "clusters": len(set(clusters))}


def _by(items: Sequence[ItemResult], key: Callable[[ItemResult], str]) -> dict[str, dict[str, Any]]:
    return {name: _successes([i for i in items if key(i) == name]) for name in sorted({key(i) for i in items})}


def _labels(items: Sequence[ItemResult]) -> dict[str, int]:
    counts = Counter(i.prediction for i in items)
    return {label: counts[label] for label in REFUSAL_LABELS}
