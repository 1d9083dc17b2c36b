"""Write docs/results.md from the files in benchmarks/results. Nothing on that page is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aloe.evaluate.table import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OPEN, CLOSE = "<!-- output of the demo: make results -->", "<!-- end of output -->"


def main() -> None:
    parts = ["# Results", "", "Made by `make results` from `benchmarks/results/`. Each section names its machine."]
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        render = {"demo": demo, "judge_calibration": judge}.get(path.stem, plain)
        parts += ["", *render(data), "", f"Stored in [{path.name}](../benchmarks/results/{path.name})."]
        if path.stem == "demo":
            readme(data)
    (ROOT / "docs" / "results.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def readme(data: dict[str, Any]) -> None:
    """Put the stored output of the demo into README.md, between its markers."""
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(OPEN, 1)
    _, after = rest.split(CLOSE, 1)
    first, second = data["first_run"], data["second_run"]
    about = (
        f"On {place(data['machine'])}, `aloe run recipes/demo.yaml` took {first['seconds'] / 60:.1f} minutes and "
        f"{first['peak_bytes'] / 1e9:.1f} GB at peak; the second time, with all fresh, {second['seconds']:.0f} "
        "seconds. It ends with:"
    )
    printed = "\n".join(line.rstrip() for line in data["printed"]).strip()
    text = f"{before}{OPEN}\n{about}\n\n```text\n{printed}\n```\n{CLOSE}{after}"
    path.write_text(text, encoding="utf-8")


def place(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    gpus = ", ".join(machine.get("gpus") or []) or "no GPU"
    return f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('memory_gb')} GB, {gpus}"


def demo(data: dict[str, Any]) -> list[str]:
    """Times, memory and scores of the demo."""
    lines = [
        "## Demo: `recipes/demo.yaml`",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/demo.py`.",
    ]
    lines += ["", "| run | seconds | peak memory |", "|---|---|---|"]
    edited = data["edited_run"]
    names = (("first, weights converted too", data["first_run"]), ("second, all fresh", data["second_run"]))
    for name, run in (*names, (f"after `--set {edited['edit']}`", edited)):
        lines.append(f"| {name} | {run['seconds']:.1f} | {run['peak_bytes'] / 1e9:.2f} GB |")
    lines += ["", "| step | verb | seconds | peak memory | tokens |", "|---|---|---|---|---|"]
    for name, step in sorted(data["steps"].items(), key=lambda item: -item[1]["seconds"]):
        tokens = ", ".join(f"{k} {v:,}" for k, v in step["tokens"].items()) or "none"
        lines.append(
            f"| {name} | {step['verb']} | {step['seconds']:.1f} | {step['peak_bytes'] / 1e9:.2f} GB | {tokens} |"
        )
    lines += [
        "",
        "Scores of one run, value [95% interval] n. At 135M parameters letter accuracy is chance; see the intervals.",
        "Over-refusal is on items whose replies the judge's rules were adjusted to ([log](log.md)): no independent "
        "figure.",
        "",
    ]
    return [*lines, markdown_table(data["scores"])]


def judge(data: dict[str, Any]) -> list[str]:
    """Calibration of the rule judge."""
    lines = ["## Rule judge: calibration on labelled completions", "", f"Machine: {place(data['machine'])}."]
    lines += ["", "| measure | value [95% interval] | n |", "|---|---|---|"]
    return lines + [f"| {name} | {rate(value)} | {value['n']} |" for name, value in rates(data)]


def rates(data: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every {value, low, high, n} inside a result, by dotted name."""
    found: list[tuple[str, dict[str, Any]]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            if {"value", "low", "high", "n"} <= set(value):
                found.append((f"{prefix}{key}", value))
            else:
                found += rates(value, f"{prefix}{key}.")
    return found


def rate(value: dict[str, Any]) -> str:
    """`0.95 [0.94, 0.96]`."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def plain(data: dict[str, Any]) -> list[str]:
    """A benchmark against a peer."""
    machine = place(data.get("machine", {}))
    return [
        f"## {data['name']}", "", f"Machine: {machine}.", "",
        f"Ours {data['ours']} {data['unit']}, {data['peer']} {data['peer_version']}: ratio {data['ratio']} "
        f"(above 1: ours better), spread {data['spread']}.",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
