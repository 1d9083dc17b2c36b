"""How it was made: the graph of steps, rows in and out.

Evidence in, plain values and charts out; nothing is drawn that no file states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from aloe.report.charts import ledger_bar
from aloe.report.evidence import Evidence, Made, outside, parents, superseded
from aloe.report.flow import Node, flow
from aloe.rows import JSON_COLUMNS

EXAMPLES = 5  # dropped rows shown per stage
EXCERPT = 280  # characters of a dropped row


# -- graph --------------------------------------------------------------------------------------------------------


def graph(evidence: Evidence) -> dict[str, Any]:
    """The steps as an SVG graph, and the same as rows with their times.

    Freshness is what manifests can tell: whether the artifacts that a step was made from are those that stand now.
    Whether a recipe file asks for other parameters by now, `aloe plan` says.
    """
    nodes, edges, rows = [], [], []
    for step in evidence.steps.values():
        seconds = step.manifest.get("wall_seconds")
        what = step.verb or str(step.manifest.get("kind", ""))
        took = "" if seconds is None else f" · {duration(float(seconds))}"
        refs = list(outside(step.manifest))
        old = superseded(step, evidence.steps)
        lines = [what + took, step.state, *([f"stale: {', '.join(old)} made anew"] if old else [])]
        nodes.append(Node(step.name, lines, refs, "verb" in step.manifest, step is evidence.own))
        made_by = parents(step.manifest)
        edges += [(parent, step.name) for parent in made_by]
        kind = str(step.manifest.get("kind", ""))
        rows.append(
            {
                "name": step.name,
                "verb": step.verb,
                "kind": kind,
                "seconds": seconds,
                "finished": step.manifest.get("finished"),
                "state": step.state,
                "stale": old,
                "inputs": [*made_by, *refs],
            }
        )
    known = [float(s.manifest["wall_seconds"]) for s in evidence.steps.values() if "wall_seconds" in s.manifest]
    return {"chart": flow(nodes, edges), "rows": rows, "seconds": sum(known), "stale": [r for r in rows if r["stale"]]}


def duration(seconds: float) -> str:
    """Wall time in the unit a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"


# -- rows ---------------------------------------------------------------------------------------------------------


def data_flow(evidence: Evidence) -> list[dict[str, Any]]:
    """Row ledgers by step and stage, with examples of what was dropped and contamination where it was looked for."""
    found = []
    for step in evidence.about():
        stages = [
            {
                "stage": str(s["stage"]),
                "rows_in": s["in"],
                "kept": s["kept"],
                "dropped": sorted(s["dropped"].items()),
                "bar": ledger_bar(s["kept"], sorted(s["dropped"].items()), f"{step.name}, {s['stage']}"),
            }
            for s in step.manifest.get("ledger") or ()
        ]
        stats = step.shelf.json("stats.json") if step.shelf else None
        entry = {
            "step": step.name,
            "verb": step.verb,
            "stages": stages,
            "examples": _examples(step),
            "contamination": _contamination(step),
            "shares": _kept_by_source((stats or {}).get("by_source") or {}),
        }
        if stages or entry["examples"] or entry["contamination"]:
            found.append(entry)
    return found


def _examples(step: Made) -> list[dict[str, Any]]:
    """Up to five dropped rows per stage, taking the reasons in turn."""
    path = step.shelf.path("dropped.parquet") if step.shelf else None
    if path is None:
        return []
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    with pq.ParquetFile(path) as file:
        nested = json.loads((file.schema_arrow.metadata or {}).get(JSON_COLUMNS, b"[]"))
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                by_reason = groups.setdefault(str(row.get("stage") or "rows"), {})
                kept = by_reason.setdefault(str(row.get("reason") or "no reason stated"), [])
                if len(kept) < EXAMPLES:
                    kept.append(_example({k: json.loads(v) if k in nested and v else v for k, v in row.items()}))
    found = []
    for stage, by_reason in groups.items():
        turns = [rows[at] for at in range(EXAMPLES) for rows in by_reason.values() if at < len(rows)]
        found.append({"stage": stage, "rows": turns[:EXAMPLES]})
    return found


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    """Id, reason, what shows it, and the beginning of the row's text."""
    content = row.get("row") if isinstance(row.get("row"), Mapping) else row
    evidence = row.get("evidence")
    if isinstance(evidence, Mapping):
        evidence = ", ".join(f"{k} {v}" for k, v in evidence.items() if not isinstance(v, Mapping | list))
    shows = "; ".join(str(x) for x in (row.get("detail"), evidence) if x)
    return {
        "id": str(row.get("id") or row.get("key") or ""),
        "reason": str(row.get("reason") or "no reason stated"),
        "shows": cut(shows),
        "text": cut(_text_of(content or {})),
    }


def _text_of(content: Mapping[str, Any]) -> str:
    for field in ("question", "request", "text", "output"):
        value = content.get(field)
        if isinstance(value, Mapping):
            value = value.get("question")
        if isinstance(value, str) and value:
            return value
    turns = content.get("messages") or content.get("prompt") or []
    return " / ".join(str(t.get("content", "")) for t in turns if isinstance(t, Mapping))


def cut(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text[: 4 * EXCERPT].split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _contamination(step: Made) -> list[dict[str, Any]]:
    report = step.shelf.json("contamination.json") if step.shelf else None
    return [
        {"source": source, "benchmark": benchmark, **counts}
        for source, by_benchmark in ((report or {}).get("table") or {}).items()
        for benchmark, counts in by_benchmark.items()
    ]


def _kept_by_source(counts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Rows kept by source: curate states a number, synthesize how many of the questions asked were accepted."""
    return sorted((source, n["accepted"] if isinstance(n, Mapping) else n) for source, n in counts.items())
