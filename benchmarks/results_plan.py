"""The section of docs/results.md on what `aloe plan` predicts and what runs then took."""

from __future__ import annotations

from typing import Any

from results_evaluation import place

Found = dict[str, Any]
UNITS = {"seconds": "seconds", "tokens": "tokens", "memory_gb": "GB at peak"}


def plan(data: Found) -> list[str]:
    """A table of steps for each run, and how far off they are together."""
    lines = [
        "## `aloe plan` against what runs took", "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/plan_accuracy.py`. Predicted by arithmetic, "
        "as for a recipe that never ran here; once a step has run, its own last run is shown instead. Rows that a step "
        "upstream has yet to make are predicted at their limit.",
    ]  # fmt: skip
    for name, run in data["runs"].items():
        if not run["summary"]:
            continue
        lines += ["", f"**{name}**: " + "; ".join(said(f, s) for f, s in run["summary"].items()) + ".", ""]
        fields = [f for f in UNITS if f in run["summary"]]
        heads = " | ".join(f"{UNITS[f]}, predicted | taken" for f in fields)
        lines += [f"| step | verb | {heads} |", "|---|---|" + "---:|" * (2 * len(fields))]
        for step, s in run["steps"].items():
            measured = s.get("measured")
            if measured is None:
                continue
            cells = " | ".join(f"{figure(s['predicted'][f])} | {figure(measured[f])}" for f in fields)
            lines.append(f"| {step} | {s['verb']} | {cells} |")
    return lines


def said(field: str, s: Found) -> str:
    """One quantity in words: the whole, and the steps apart."""
    whole = "highest" if field == "memory_gb" else "all steps"
    text = f"{UNITS[field]}, {whole}: predicted {figure(s['predicted'])}, taken {figure(s['measured'])}"
    if s["ratios"]:
        text += (
            f"; of {s['steps_with_a_ratio']} steps {s['within_a_factor_of_2']} within a factor of 2 "
            f"(predicted / taken from {s['ratios'][0]:.2f} to {s['ratios'][-1]:.2f}, geometric mean "
            f"{s['geometric_mean_ratio']:.2f})"
        )
    return text


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
