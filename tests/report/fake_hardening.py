"""A hardening loop's record, invented, in the shape that `red_team_loop` writes."""

from __future__ import annotations

from typing import Any

from fake_results import EVIL

from aloe.evaluate.stats import wilson


def _rate(hits: int, n: int, clusters: int | None = None) -> dict[str, Any]:
    low, high = wilson(hits, n)
    found = {"value": hits / n, "low": low, "high": high, "n": n}
    if clusters is not None:
        wide = wilson(hits * clusters / n, clusters)
        found |= {
            "clustered_low": wide[0],
            "clustered_high": wide[1],
            "clusters": clusters,
            "successes": hits,
            "unknown": 1,
        }
    return found


def _change(before: float, after: float) -> dict[str, Any]:
    return {"before": before, "after": after, "difference": after - before, "low": after - before - 0.1,
            "high": after - before + 0.1, "n": 60, "clusters": 20, "p_value": 0.0123}  # fmt: skip


def loop_file(accuracy: bool = True) -> dict[str, Any]:
    """Three rounds: the first two kept, the third beyond a rail."""
    rounds = []
    for at, (hits, refused, right) in enumerate(((42, 3, 50), (30, 4, 50), (18, 5, 49), (9, 22, 48))):
        figures = {
            "attack_success": _rate(hits, 60, 20),
            "unseen_topics": _rate(hits // 3, 20, 8),
            "over_refusal": _rate(refused, 40, 40),
            "over_refusal_full": _rate(0, 40, 40),
            "broken": _rate(0, 40),
            "accuracy": _rate(right, 100) if accuracy else None,
            "unjudged": at,
            "errors": 0,
        }
        changes = {
            "attack_success": _change(0.7, hits / 60),
            "over_refusal": _change(0.075, refused / 40),
            "broken": None,
        }
        made = {"pairs": 80, "harmful_pairs": 40, "benign_pairs": 40}
        trained = {"steps": 10, "health": {"last": {"margin": 1.5, "chosen_drift": -0.25}}}
        rounds.append(
            {
                "round": at,
                "weights": "0" * 32,
                "figures": figures,
                "kept": at != 3,
                "crossed": ["over_refusal"] if at == 3 else [],
                "why": f"round {at} {EVIL}" if at else "",
                "pairs": made if at else None,
                "training": trained if at else None,
                "against_start": changes if at else None,
                "against_former": changes if at else None,
            }
        )
    return {
        "model": "helpful",
        "rounds": rounds,
        "kept": 2,
        "stopped": "rail",
        "why": f"beyond a guard rail: over refusal +47.5 points since the start {EVIL}",
        "rails": {"over_refusal_rise_max": 0.05, "broken_rise_max": 0.05, "accuracy_drop_max": 0.01,
                  "accuracy": {"data": "starter/exam"} if accuracy else None, "by": "estimate"},
        "fall_min": 0.01,
        "alpha": None,
        "styles": ["plain", "persona"],
        "validation": {"topics": ["weapons"], "styles": ["hypothetical"], "base_requests": ["a"], "look_alikes": ["b"],
                       "attacks": 60, "questions": 100},
        "protocol": {},
    }  # fmt: skip
