"""`search.json`: every trial, feasible or not, the frontier, and what held-out items say of the merge taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.search.frontier import adjusted, oriented, paired, pareto, score_of
from aloe.search.loop import Outcome, Search, Trial, mean
from aloe.search.measure import BETTER, SCORES, Items, Part, PartName
from aloe.search.trials import Measurement


def search_record(
    search: Search, outcome: Outcome, parts: Mapping[PartName, Part], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `search.json`. Times aren't in it: the same search gives the same bytes."""
    clusters = parts["search"].clusters() | parts["held_out"].clusters()
    written = outcome.trials[0].search
    front = set(frontier(search, outcome))
    trials = []
    for index, trial in enumerate(outcome.trials):
        entry: dict[str, Any] = {
            "trial": index,
            "origin": trial.origin,
            "point": trial.point,
            "models": trial.merge["models"],
            "scores": None,
            "feasible": False,
            "frontier": index in front,
            "error": trial.error,
        }
        if trial.search is not None:
            entry["scores"] = scores_of(trial.search.items, clusters)
            entry["feasible"] = search.standing(trial, outcome.bound)[2] <= 0
            if written is not None and index:
                entry["against_written"] = _six(
                    paired(written.items[search.score], trial.search.items[search.score], clusters)
                )
        trials.append(entry)
    references = [
        {
            "name": r.name,
            "kind": r.kind,
            "scores": scores_of(r.search.items, clusters),
            "held_out": scores_of(r.held_out.items, clusters),
        }
        for r in outcome.references
    ]
    return {
        "score": search.score,
        "better": BETTER[search.score],
        "strategy": search.strategy,
        "budget": search.budget,
        "space": {d.name: list(d.choices) or [d.low, d.high] for d in search.dims},
        "safety": _safety(search, outcome, parts["search"]),
        "protocol": protocol,
        "items": {
            name: {"questions": sorted(q.id for q in part.questions), "requests": sorted(p.id for p in part.requests)}
            for name, part in parts.items()
        },
        "references": references,
        "trials": trials,
        "frontier": frontier(search, outcome),
        "chosen": outcome.chosen,
        "merge": outcome.trials[outcome.chosen].merge if outcome.chosen is not None else None,
        "held_out": _held_out(search, outcome, clusters),
    }


def frontier(search: Search, outcome: Outcome) -> list[int]:
    """Trials that no other beats in score without being less safe, feasible or not, from the lowest score up. Without
    a safety bound, the best score alone."""
    done = [(i, t.search.items) for i, t in enumerate(outcome.trials) if t.search is not None]
    metric = search.safety.metric if search.safety is not None else None
    points = [
        (
            oriented(mean(items[search.score]), BETTER[search.score]),
            oriented(mean(items[metric]), BETTER[metric]) if metric else 0.0,
        )
        for _, items in done
    ]
    return [done[i][0] for i in pareto(points)]


def scores_of(items: Items, clusters: Mapping[str, str]) -> dict[str, Any]:
    """Every metric with its 95% interval."""
    return {metric: _six(score_of(values, clusters)) for metric, values in sorted(items.items())}


def _safety(search: Search, outcome: Outcome, part: Part) -> dict[str, Any] | None:
    """The bound, and what it was kept on: a merge was chosen by these, so a red team that asks them is optimistic."""
    if search.safety is None or outcome.bound is None:
        return None
    return {
        "requests": search.safety.requests,
        "split": search.safety.split,
        "metric": search.safety.metric,
        "better": outcome.bound.better,
        "asked": search.safety.bound,
        "margin": search.safety.margin,
        "bound": float(f"{outcome.bound.value:.6g}"),
        "selected_on": {
            "styles": sorted({p.style for p in part.requests}),
            "topics": sorted({p.topic for p in part.requests}),
            "base_requests": sorted({p.base_id for p in part.requests}),
        },
    }


def _held_out(search: Search, outcome: Outcome, clusters: Mapping[str, str]) -> dict[str, Any] | None:
    """The chosen merge on held-out items: its scores, the starting points', and paired comparisons with all others."""
    if outcome.chosen is None:
        return None
    chosen = outcome.trials[outcome.chosen]
    assert chosen.held_out is not None  # measured when it was chosen
    others: list[tuple[str, Measurement]] = [
        (trial.origin, trial.held_out) for trial in _starting(outcome) if trial.merge != chosen.merge and trial.held_out
    ]
    others += [(r.name, r.held_out) for r in outcome.references]
    metrics = [*SCORES, *([search.safety.metric] if search.safety is not None else [])]
    comparisons = [
        {"against": name, "metric": metric, **paired(other.items[metric], chosen.held_out.items[metric], clusters)}
        for name, other in others
        for metric in metrics
    ]
    return {
        "scores": scores_of(chosen.held_out.items, clusters),
        "starting_points": {
            t.origin: scores_of(t.held_out.items, clusters) for t in _starting(outcome) if t.held_out is not None
        },
        "comparisons": [_six(c) for c in adjusted(comparisons, BETTER)],
    }


def _starting(outcome: Outcome) -> Sequence[Trial]:
    return [t for t in outcome.trials[:2] if t.origin in ("as written", "equal weights")]


def _six(values: Mapping[str, Any]) -> dict[str, Any]:
    """Floats to six significant digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}


def summarise(told: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """What the manifest keeps of a search."""
    verdict = next(
        (c for c in told["held_out"]["comparisons"] if c["against"] == "as written" and c["metric"] == told["score"]),
        None,
    )
    seconds = [t.search.fill_seconds + t.search.measure_seconds for t in outcome.trials if t.search is not None]
    return {
        "score": told["score"],
        "strategy": told["strategy"],
        "trials": len(told["trials"]),
        "feasible": sum(t["feasible"] for t in told["trials"]),
        "failed": sum(t["error"] is not None for t in told["trials"]),
        "chosen": told["chosen"],
        "origin": told["trials"][told["chosen"]]["origin"],
        "held_out": told["held_out"]["scores"][told["score"]],
        "against_written": verdict,  # None where the merge as written was taken
        "seconds_a_trial": round(sum(seconds) / len(seconds), 2),
        "streamed": told["streamed"],
    }


def write_timing(path: Path, outcome: Outcome) -> None:
    """One line a measurement of the search's part: seconds to put the weights in place, and to measure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [(r.name, r.search) for r in outcome.references]
    found += [(t.name, t.search) for t in outcome.trials if t.search is not None]
    lines = [{"name": n, "fill_s": m.fill_seconds, "measure_s": m.measure_seconds} for n, m in found]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
