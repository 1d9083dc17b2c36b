"""Sections of docs/results.md on what holds under faults, hostile input and size."""

from __future__ import annotations

from typing import Any

from results_evaluation import place

Found = dict[str, Any]
KINDS = {"red_team": "red team, 3 models", "scores": "answers of 4 checkpoints side by side"}


def chaos(data: Found) -> list[str]:
    """Requests through a proxy that spoils answers."""
    runs = [(name, run) for name, run in data.items() if isinstance(run, dict) and "answered" in run]
    lines = [
        "## Servers under a chaos proxy", "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/faults/chaos.py`. "
        f"{len(data['faults'])} kinds of fault, drawn by key; at most {data['attempts']} attempts a request. "
        "See [reliability](reliability.md).", "",
        "| run | requests | answers spoiled | answered | reported as errors | lost | wrong | twice in the ledger |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, r in runs:
        counts = (r["answered"], r["errored"], r["lost"], r["wrong"], r["twice_in_the_ledger"])
        cells = " | ".join(f"{n:,}" for n in counts)
        lines.append(f"| {name} | {r['requests']:,} | {100 * r['share_of_answers_spoiled']:.0f}% | {cells} |")
    return lines


def fuzz(data: Found) -> list[str]:
    """Readers under a coverage-guided fuzzer."""
    found = [t["target"] for t in data["targets"] if t["finding"]]
    lines = [
        "## Readers under a fuzzer", "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/fuzz/run.py`. {data['tool']}. "
        f"{data['ours']:,} inputs in {data['seconds']:.0f} s; findings: {', '.join(found) or 'none'} "
        "([what they were](reliability.md#hostile-input)).", "", "| target | inputs | edges reached | finding |",
        "|---|---:|---:|---|",
    ]  # fmt: skip
    for t in data["targets"]:
        edges = "not reported" if t.get("edges") is None else f"{t['edges']:,}"
        lines.append(f"| {t['target']} | {t['inputs']:,} | {edges} | {'yes' if t['finding'] else 'no'} |")
    return lines


def report_size(data: Found) -> list[str]:
    """The report with 10,000 items in a browser."""
    worst, bounds = data["worst"], data["bounds"]
    lines = [
        "## The report with 10,000 items", "",
        f"Machine: {place(data['machine'])}, load {data['load']:.1f}. Command: `python benchmarks/report_size.py`.", "",
        "| page | items | size | written in |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for p in data["pages"]:
        limited = "" if p["limited"] else ", nothing left out"
        lines.append(
            f"| {KINDS.get(p['kind'], p['kind'])}{limited} | {p['items']:,} | {p['page_bytes'] / 1e6:.1f} MB | "
            f"{p['wall_seconds']:.0f} s |"
        )
    lines += ["", "| in the browser, worst median | milliseconds | bound | held |", "|---|---:|---:|---|"]
    for name, value in worst.items():
        what = name.removesuffix("_ms")
        lines.append(f"| {what} | {value:.0f} | {bounds[name]:.0f} | {'yes' if data['held'][name] else 'no'} |")
    return lines


RENDERERS = {"chaos": chaos, "fuzz": fuzz, "report_size": report_size}
