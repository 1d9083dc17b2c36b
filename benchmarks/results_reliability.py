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


def faults(data: Found) -> list[str]:
    """A recipe killed at many moments, and what breaks around a run."""
    lines = ["## Faults: kills, full disks, lost rights"]
    if "kill" in data:
        k = data["kill"]
        lines += [
            "", f"Machine: {place(data['machine'])}. Command: `python benchmarks/faults/kill.py`. A recipe of "
            f"{k['steps']} steps on a tiny model, killed {k['kills']} times and resumed each time: "
            f"{len(k['differences'])} differences to the undisturbed run over {k['files_compared']} files; "
            f"{k['temporary_files_left_at_the_end']} temporary files left.",
        ]  # fmt: skip
    if "surroundings" in data:
        around = {n: p for n, p in data["surroundings"].items() if isinstance(p, dict)}
        lines += [
            "", f"Machine: {place(data['surroundings_machine'])}. Command: `python benchmarks/faults/surroundings.py`. "
            "In each: one clear error or a whole run, nothing finished lost, and a resumed run that ends as the "
            "undisturbed one.", "", "| what breaks | ended | went wrong |", "|---|---|---:|",
        ]  # fmt: skip
        for name, part in around.items():
            ended = part.get("ended", part.get("kills", part.get("said", part.get("said_to_the_second_run", ""))))
            told = ", ".join(f"{n} {w}" for w, n in ended.items()) if isinstance(ended, dict) else str(ended)
            lines.append(f"| {name} | {told.partition(' (')[0]} | {len(part['wrong'])} |")
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


def large_logs(data: Found) -> list[str]:
    """Report, compare and verify on a million items."""
    bounds, sizes = data["bounds"], " and ".join(f"{n / 1e6:.0f}" for n in data["file_bytes"])
    lines = [
        "## A million scored items", "",
        f"Machine: {place(data['machine'])}, one core of it, load {data['load']:.1f}. Command: "
        f"`python benchmarks/large_logs.py`. {data['items']:,} item rows in two artifacts ({sizes} MB), each command "
        f"in a fresh process; bounds {bounds['seconds']:.0f} s and {bounds['peak_bytes'] / 1e9:.0f} GB. Other work had "
        "its share of the core, which seconds hold and processor seconds don't.", "",
        "| command | seconds | of the processor | peak memory | page | opened in | a search, slowest |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for c in data["commands"]:
        page = c.get("page", {})
        shown = (
            f"{page['page_bytes'] / 1e6:.1f} MB" if page else "",
            f"{page['load_ms'] / 1000:.1f} s" if page else "",
            f"{page['search_ms']:.0f} ms" if "search_ms" in page else "",
        )
        lines.append(
            f"| {c['command']} | {c['seconds']:.0f} | {c['processor_seconds']:.0f} | {c['peak_bytes'] / 1e9:.2f} GB | "
            f"{' | '.join(shown)} |"
        )
    before = data.get("before")
    if before:
        told = "; ".join(
            f"{b['command']} {b['processor_seconds']:.0f} s of the processor, {b['peak_bytes'] / 1e9:.1f} GB"
            for b in before
        )
        lines += ["", f"Before rows were read by columns: {told}."]
    return lines


RENDERERS = {"chaos": chaos, "faults": faults, "fuzz": fuzz, "report_size": report_size, "large_logs": large_logs}
