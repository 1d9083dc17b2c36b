"""Invented results in the shapes of `evaluate` and `red_team`: rates from keyed draws, everything derived from them by
the project's own functions. Texts carry markup, control and direction characters on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.digests import digest_json, digest_text
from aloe.evaluate.stats import wilson
from aloe.keyed import rng
from aloe.records import ItemResult
from aloe.safety.red_team_table import summarise_model, summarise_pairs

BASE = "smollm2-135m-instruct"
CHECKPOINTS = (BASE, "sft", "merged", "helpful", "aligned")
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" \x07 \u202e \ud800"
STYLES = ("plain", "persona", "fiction", "past_tense", "refusal_suppression")
TOPICS = ("dangerous_substances", "fraud_and_deception", "self_harm", "privacy <b>violation</b>")


def scores_file() -> tuple[dict[str, Any], dict[str, Any]]:
    records, protocols = [], {}
    for benchmark, strategy, kind in (
        ("exam", "likelihood", "likelihood"),
        ("exam", "medprompt", "generated"),
        ("over-refusal", "reply", "over_refusal"),
    ):
        protocol = {"kind": kind, "strategy": strategy, "items": 120, "shots": 0, "template_digest": digest_text("t")}
        protocols[digest_json(protocol)] = protocol
        for at, model in enumerate(CHECKPOINTS):
            if strategy == "medprompt" and at == 0:
                continue
            hits = 30 + 6 * at
            low, high = wilson(hits, 120)
            metric = "over_refusal" if kind == "over_refusal" else "accuracy"
            record = {
                "model": model,
                "benchmark": benchmark,
                "kind": kind,
                "metric": metric,
                "strategy": strategy,
                "better": "lower" if metric == "over_refusal" else "higher",
                "unit": "share",
                "value": hits / 120,
                "low": low,
                "high": high,
                "n": 120,
                "successes": hits,
                "answered": 118,
                "unparsed": 2,
                "errored": 0,
                "parse_rate": 118 / 120,
                "protocol": digest_json(protocol),
                "extra": {},
            }
            if strategy == "medprompt":
                record["extra"] = {"accuracy_at": [{"n": n, "value": (hits + n) / 130} for n in range(1, 6)]}
            records.append(record)
            if strategy == "likelihood":
                nll = {
                    "metric": "nll_byte",
                    "unit": "nats",
                    "better": "lower",
                    "value": 0.9 - 0.02 * at,
                    "low": 0.85 - 0.02 * at,
                    "high": 0.95 - 0.02 * at,
                    "successes": None,
                    "unparsed": 0,
                }
                records += [record | nll, record | {"metric": "text_accuracy"}]
    return {"models": list(CHECKPOINTS), "benchmarks": ["exam", "over-refusal"], "scores": records}, protocols


def comparisons_file(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    protocol = scores["scores"][0]["protocol"]
    head = {"benchmark": "exam", "protocol": protocol, "compared": True, "n": 120, "left_out": 0}
    figures = {"difference": 0.05, "se": 0.03, "low": -0.009, "high": 0.109, "only_before": 4, "only_after": 10}
    return [
        {"before": BASE, "after": "sft", "metric": "accuracy", **head, **figures, "p_value": 0.18, "p_holm": 0.36},
        {
            "before": BASE,
            "after": "sft",
            "metric": "nll_byte",
            **head,
            "difference": -0.02,
            "se": 0.01,
            "low": -0.03,
            "high": -0.01,
        },
        {
            "before": "sft",
            "after": "merged",
            "benchmark": "exam",
            "protocol": protocol,
            "compared": False,
            "reason": f"the two were scored under different protocols {EVIL}",
        },
    ]


def red_team_file() -> dict[str, Any]:
    items = [
        _reply(model, style, topic, n, risk)
        for model, risk in (("merged", 0.7), ("helpful", 0.6), ("aligned", 0.2))
        for topic in TOPICS
        for style in (*STYLES, "benign")
        for n in range(6)
    ]
    held = {
        "styles": ["fiction"],
        "topics": ["self_harm"],
        "trained_by": ["attacks"],
        "base_requests_seen_in_training": 0,
    }
    models = ("merged", "helpful", "aligned")
    protocol = {"kind": "red_team", "judge": {"name": "rules", "version": 1}, "styles": list(STYLES), "split": "test"}
    return {
        "judge": {"name": "rules", "version": 1, "harm": "upper bound"},
        "interval": "Wilson 95%",
        "requests": "starter/harmful",
        "benign": "starter/over_refusal",
        "split": "test",
        "styles": list(STYLES),
        "topics": list(TOPICS),
        "base_requests": 24,
        "held_out": held,
        "protocols": {digest_json(protocol): protocol},
        "models": {m: summarise_model([i for i in items if i.model == m], held) for m in models},
        "paired": summarise_pairs(items, models),
    }


def _reply(model: str, style: str, topic: str, n: int, risk: float) -> ItemResult:
    benign = style == "benign"
    hit = float(rng(7, model, f"{style} {topic} {n}").random() < (0.15 if benign else risk))
    label = "refused" if hit == float(benign) else "complied"
    meta = {
        "topic": topic,
        "style": style,
        "base_id": f"{topic}{n}",
        "harm_rule": "on_topic_steps" if hit and n == 0 else "other",
    }
    return ItemResult(
        id=f"{model}{style}{topic}{n}",
        source="starter/harmful",
        licence="cc0-1.0",
        meta=meta,
        item=f"{style}{topic}{n}",
        model=model,
        benchmark="starter/harmful",
        metric="over_refusal" if benign else "attack_success",
        protocol="p",
        outcome="answered",
        value=hit,
        prediction=label,
    )
