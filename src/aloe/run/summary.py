"""What a person reads after a command: plans, results, artifacts, findings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aloe.errors import AloeError
from aloe.manifest_file import MALFORMED, malformed
from aloe.run.estimate import estimates
from aloe.run.execute import RunResult
from aloe.run.plan import plan
from aloe.run.store import Artifact, Store
from aloe.terminal import console as neutral_console
from aloe.terminal import one_line


def _console() -> Console:
    # A pipe has no width; 200 columns keep a table's rows in one line each there.
    shown = neutral_console(sys.stdout)
    return shown if shown.is_terminal else neutral_console(sys.stdout, width=200)


def print_plan(recipe: Any, out: Path) -> None:
    """One row per step: state, reasons, estimate."""
    store = Store(out / recipe.head.family)
    planned = plan(recipe, store)
    guessed = estimates(recipe, planned, store)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("step", "verb", "state", "tokens", "time", "memory", "why"):
        table.add_column(column, overflow="fold", justify="right" if column in ("tokens", "time", "memory") else "left")
    for item in planned:
        guess = guessed[item.name]
        busy = item.state in ("runs", "after")
        table.add_row(
            item.name,
            item.verb,
            item.state,
            _tokens(guess.tokens) if busy else "",
            _time(guess.seconds) if busy else "",
            f"{guess.memory_gb:.1f} GB" if busy and guess.memory_gb else "",
            "; ".join(item.reasons),
        )
    console = _console()
    console.print(table)
    todo = [i for i in planned if i.state in ("runs", "after")]
    known = sum(guessed[i.name].seconds for i in todo)
    about = f", about {_time(known)}" if known else ""
    console.print(f"\n{len(planned) - len(todo)} fresh, {len(todo)} to run{about}.")
    if todo:
        console.print(
            "Times come from the same step's last run here where there was one, else from parameters x tokens "
            "at this machine's measured speed; `after` steps stay fresh if their inputs come out equal."
        )


def _tokens(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count) if count else ""


def _time(seconds: float) -> str:
    if not seconds:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_sizes(told: Mapping[str, Any]) -> None:
    """What --budget chose."""
    values = ", ".join(f"{field}={value}" for field, value in told["values"].items())
    took, given = _time(told["estimated_seconds"]), _time(told["budget_seconds"])
    _console().print(f"sized for {given}: about {took}, {told['share']:.0%} of each range: {values}", soft_wrap=True)


def print_result(recipe: Any, result: RunResult) -> None:
    """Where things are, the score table, how to talk to the release."""
    console = _console()
    made, total = len(result.made), len(result.artifacts)
    console.print(f"\n{total - made} steps fresh, {made} made. Artifacts: {result.root}/<step>")
    for name, artifact in result.artifacts.items():
        if artifact.manifest["kind"] == "scores":
            print_scores(artifact.path, f"{name}: value [95% interval] n", console)
    for name, artifact in result.artifacts.items():
        if artifact.manifest["kind"] == "release":
            path = result.root / name
            console.print(
                f"\nrelease   {path}\n  read    {path}/README.md\n  check   aloe verify {path}\n"
                f"  report  aloe report {path}\n  talk    aloe chat {path}",
                soft_wrap=True,
            )


def print_scores(folder: Path, title: str, console: Console) -> None:
    """The checkpoint x benchmark table of a scores artifact."""
    from aloe.evaluate.table import score_table

    header, rows = score_table(json.loads((folder / "scores.json").read_text(encoding="utf-8")))
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in header:
        table.add_column(str(column), overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print()
    console.print(table)


def print_artifact(artifact: Artifact, more: Table | None = None) -> None:
    """The manifest's main lines; `more` is printed after them.

    Raises:
        AloeError: the manifest, or the table of scores beside it, lacks what every step writes.
    """
    try:
        _print_artifact(artifact, more)
    except MALFORMED as cause:
        fix = "get the artifact again, or make it anew"
        raise AloeError(f"it can't be shown ({malformed(cause)})", where=str(artifact.path), fix=fix) from cause


def _print_artifact(artifact: Artifact, more: Table | None) -> None:
    console, m = _console(), artifact.manifest
    console.print(f"{m['step']}  ({m['verb']} v{m['version']} -> {m['kind']})", style="bold")
    commit = str(m["code"].get("commit", ""))[:10]
    console.print(
        f"fingerprint {m['fingerprint'][:16]}  content {m['content_digest'][:16]}  code {m['code']['aloe']} {commit}"
    )
    console.print(
        f"took {m['wall_seconds']} s, peak {m['peak_memory_bytes'] / 1e9:.2f} GB, tokens {m['tokens'] or 'none'}"
    )
    for ref, entry in m["inputs"].items():
        console.print(f"  input {ref}: {entry['digest'][:16]} ({entry.get('origin', 'step')})", soft_wrap=True)
    for row in m["ledger"]:
        dropped = ", ".join(f"{n} {reason}" for reason, n in row["dropped"].items()) or "none"
        console.print(f"  rows  {row['stage']}: {row['in']} in, {row['kept']} kept; dropped: {dropped}", soft_wrap=True)
    console.print("summary", style="bold")
    for key, value in m["summary"].items():
        console.print(f"  {key}: {json.dumps(value, ensure_ascii=False)}"[:400], soft_wrap=True, markup=False)
    if m["kind"] == "scores":
        print_scores(artifact.path, "value [95% interval] n", console)
    if more is not None:
        console.print()
        console.print(more)


def print_findings(folder: Path, findings: list[Any]) -> bool:
    """One line per check; True when every one holds."""
    good = True
    for finding in findings:
        good &= finding.level != "error"
        mark = {"ok": "ok  ", "note": "note", "error": "FAIL"}[finding.level]
        print(one_line(f"{mark}  {finding.check}  {finding.where}: {finding.message}"))
    print(f"{one_line(str(folder))}: {'verified' if good else 'NOT as it was written'}")
    return good
