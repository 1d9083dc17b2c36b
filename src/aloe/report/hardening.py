"""The hardening loop: what every round brought on held-out attacks, what it cost, and why the loop ended.

All figures are those of `loop.json` (`aloe.hardening.loop`); intervals are over base requests where the loop has them,
as variants of one request succeed or fail together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aloe.report.charts import Dot, dots
from aloe.report.evidence import Evidence

FILE = "loop.json"
MEASURES = {  # figure: (title, which way is better)
    "attack_success": ("Attack success, held out", "↓ lower is better"),
    "unseen_topics": ("Attack success, topics held out whole", "↓ lower is better"),
    "over_refusal": ("Over-refusal", "↓ lower is better"),
    "broken": ("Broken replies to look-alikes", "↓ lower is better"),
    "accuracy": ("Accuracy", "↑ higher is better"),
}
STOPPED = {
    "rounds": "all rounds were done",
    "no_fall": "held-out attack success no longer fell",
    "rail": "a guard rail was crossed",
    "none_left": "no held-out attack succeeded any more",
    "no_pair": "nothing was left to learn from",
    "unjudged": "no held-out attack had a verdict before and after",
}
SAID = "it no longer falls: "  # how the loop's own words begin where `STOPPED` says the same
LIMITS = {"over_refusal": "over_refusal_rise_max", "broken": "broken_rise_max", "accuracy": "accuracy_drop_max"}


def loops(evidence: Evidence) -> list[dict[str, Any]]:
    """One entry per hardening loop: its rounds as charts and as rows, its rails, and why it stopped."""
    found = []
    for step in evidence.speaking():
        loop = step.shelf.json(FILE) if step.shelf is not None else None
        if not loop or not loop.get("rounds"):
            continue
        rounds, kept = loop["rounds"], loop.get("kept")
        names = [_name(r, kept) for r in rounds]
        measured = [m for m in MEASURES if any(_rate(r, m) for r in rounds)]
        stopped = str(loop.get("stopped") or "")
        found.append(
            {
                "step": step.name,
                "model": loop.get("model"),
                "stopped": STOPPED.get(stopped, stopped.replace("_", " ") or "not stated"),
                "why": str(loop.get("why") or "").removeprefix(SAID),
                "kept": f"round {kept}" if kept else "the model it began with",
                "charts": [(*MEASURES[m], _chart(m, rounds, names)) for m in measured],
                "measures": [(m, MEASURES[m][0]) for m in measured],
                "rounds": [_round(r, name, measured) for r, name in zip(rounds, names, strict=True)],
                "rails": _rails(loop),
                "validation": loop.get("validation") or {},
                "styles": [str(s) for s in loop.get("styles") or ()],
            }
        )
    return found


def _name(entry: Mapping[str, Any], kept: Any) -> str:
    number = entry.get("round")
    name = f"round {number}" if number else "start"
    return f"{name} ✓" if number == kept else name


def _rate(entry: Mapping[str, Any], measure: str) -> dict[str, Any] | None:
    """A figure with the interval over base requests, where there is one."""
    rate = (entry.get("figures") or {}).get(measure)
    if not isinstance(rate, Mapping):
        return None
    low, high = rate.get("clustered_low"), rate.get("clustered_high")
    both = (
        {"low": rate.get("low"), "high": rate.get("high")}
        if low is None or high is None
        else {"low": low, "high": high}
    )
    return {k: rate[k] for k in ("value", "n", "unknown") if k in rate} | {"value": rate.get("value"), **both}


def _chart(measure: str, rounds: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    rows = []
    for at, (entry, name) in enumerate(zip(rounds, names, strict=True)):
        rate = _rate(entry, measure) or {}
        rows.append(Dot(name, rate.get("value"), rate.get("low"), rate.get("high"), f"n = {rate.get('n')}", at))
    return dots(rows, MEASURES[measure][0])


def _round(entry: Mapping[str, Any], name: str, measured: Sequence[str]) -> dict[str, Any]:
    pairs, training = entry.get("pairs") or {}, entry.get("training") or {}
    health = (training.get("health") or {}).get("last") or {}
    figures = entry.get("figures") or {}
    changes = entry.get("against_start") or {}
    return {
        "name": name,
        "rates": [_rate(entry, m) for m in measured],
        "changes": [(MEASURES[m][0], changes[m]) for m in measured if changes.get(m)],
        "former": (entry.get("against_former") or {}).get("attack_success"),
        "kept": bool(entry.get("kept")),
        "chosen": name.endswith("✓"),
        "start": not entry.get("round"),
        "crossed": [str(m).replace("_", " ") for m in entry.get("crossed") or ()],
        "why": str(entry.get("why") or ""),
        "pairs": pairs.get("pairs"),
        "harmful": pairs.get("harmful_pairs"),
        "benign": pairs.get("benign_pairs"),
        "steps": training.get("steps"),
        "margin": health.get("margin"),
        "drift": health.get("chosen_drift"),
        "unjudged": figures.get("unjudged"),
        "errors": figures.get("errors"),
    }


def _rails(loop: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(what is watched, by how much it may get worse); accuracy only where questions were asked."""
    rails = loop.get("rails") or {}
    return [
        (MEASURES[m][0], float(rails[field]))
        for m, field in LIMITS.items()
        if rails.get(field) is not None and (m != "accuracy" or rails.get("accuracy"))
    ]
