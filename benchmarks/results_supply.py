"""Sections of docs/results.md on what aloe is built from, and the versions that its tests ran with."""

from __future__ import annotations

from typing import Any

from results_evaluation import place

Found = dict[str, Any]


def audit(data: Found) -> list[str]:
    """Known vulnerabilities, and what could not be asked about."""
    lines = [
        "## Known vulnerabilities of the dependencies", "",
        f"Machine: {place(data['machine'])}. Command: `make audit` on {data['date']}, service: {data['service']}. "
        f"It ended with {data['exit_code']} (0: all asked about and nothing found, 1: a finding, 2: not all could be "
        "asked about).", "",
        "| of | asked about | findings | not asked about | why not |", "|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for name, one in data["audits"].items():
        missing = "all" if one["not_asked"] is None else one["not_asked"]
        lines.append(f"| {name} | {one['asked']} | {len(one['findings'])} | {missing} | {'; '.join(one['reasons'])} |")
    return lines


def matrix(data: Found) -> list[str]:
    """Tests under other Pythons and dependencies."""
    cells = list(data["cells"].values())
    lines = [
        "## Pythons and dependencies", "",
        f"Machine: {place(cells[0]['machine'])}. Command: `make test-matrix`; which tests each cell ran stands in the "
        "file. See [reliability](reliability.md).", "",
        "| Python | dependencies | torch | outcome | passed | failed | skipped | need torch |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for cell in cells:
        torch = cell.get("versions", {}).get("torch", "none") if "torch" in cell else ""
        counts = " | ".join(str(cell.get(k, "")) for k in ("passed", "failed", "skipped", "needs_torch"))
        lines.append(f"| {cell['python']} | {cell['resolution']} | {torch} | {cell['state']} | {counts} |")
    for cell in cells:
        if cell["state"] == "not run":
            lines += ["", f"Python {cell['python']}, {cell['resolution']}: {cell['reason']}"]
        lines += ["", *(f"- {failure}" for failure in cell["failures"])] if cell.get("failures") else []
    return lines


RENDERERS = {"audit": audit, "test_matrix": matrix}
