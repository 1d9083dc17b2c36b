"""How it was made: the graph of steps, training curves, rows in and out, merges, what the trainer saw.

Evidence in, plain values and charts out; nothing is drawn that no file states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from aloe.report.charts import Curve, curves, ledger_bar
from aloe.report.evidence import Evidence, Made, outside, parents
from aloe.report.flow import Node, flow
from aloe.rows import JSON_COLUMNS

POINTS = 300  # of a curve; longer runs are averaged, and the caption says so
EXAMPLES = 5  # dropped rows shown per stage
EXCERPT = 280  # characters of a dropped row
OPEN, CLOSE = "⟦", "⟧"  # the trainer's marks around trained tokens
PANELS = (  # title, fields of metrics.jsonl: one chart each, where they are there
    ("loss", ("loss",)),
    ("reward margin", ("margin",)),
    ("accuracy: chosen above rejected", ("accuracy",)),
    ("rewards", ("reward_chosen", "reward_rejected")),
    ("drift of the chosen answers, nats a token", ("chosen_drift",)),
    ("log-probability of the chosen answers, nats a token", ("chosen_logp",)),
    ("gradient norm before clipping", ("grad_norm",)),
    ("learning rate", ("lr",)),
)


# -- graph --------------------------------------------------------------------------------------------------------


def graph(evidence: Evidence) -> dict[str, Any]:
    """The steps as an SVG graph, and the same as rows."""
    nodes, edges, rows = [], [], []
    for step in evidence.steps.values():
        seconds = step.manifest.get("wall_seconds")
        what = step.verb or str(step.manifest.get("kind", ""))
        took = "" if seconds is None else f" · {duration(float(seconds))}"
        refs = list(outside(step.manifest))
        nodes.append(Node(step.name, [what + took, step.state], refs, "verb" in step.manifest, step is evidence.own))
        made_by = parents(step.manifest)
        edges += [(parent, step.name) for parent in made_by]
        kind = str(step.manifest.get("kind", ""))
        rows.append(
            {
                "name": step.name,
                "verb": step.verb,
                "kind": kind,
                "seconds": seconds,
                "state": step.state,
                "inputs": [*made_by, *refs],
            }
        )
    return {"chart": flow(nodes, edges), "rows": rows}


def duration(seconds: float) -> str:
    """Wall time in the unit a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"


# -- training -----------------------------------------------------------------------------------------------------


def training(evidence: Evidence) -> list[dict[str, Any]]:
    """Curves of every training step with a `metrics.jsonl`, and the warnings it raised."""
    found = []
    for step in evidence.speaking():
        lines = step.shelf.lines("metrics.jsonl") if step.shelf else []
        if not lines:
            continue
        width = math.ceil(len(lines) / POINTS)
        charts = []
        for title, fields in PANELS:
            there = [f for f in fields if any(_number(x.get(f)) for x in lines)]
            series = [Curve(f.replace("_", " "), _averaged(lines, f, width), at) for at, f in enumerate(there)]
            if series:
                charts.append((title, curves(series, f"{step.name}: {title}", "step")))
        summary = step.manifest.get("summary", {})
        shown = ("budget", "padding_share", "first_loss", "last_loss", "warmup_steps", "reference", "length")
        found.append(
            {
                "step": step.name,
                "verb": step.verb,
                "steps": len(lines),
                "averaged": width,
                "charts": charts,
                "facts": [(k, summary[k]) for k in shown if summary.get(k) is not None],
                "warnings": [str(w) for w in summary.get("warnings") or ()],
            }
        )
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _averaged(lines: Sequence[Mapping[str, Any]], field: str, width: int) -> list[tuple[float, float]]:
    """(step, value), each the mean of `width` consecutive steps; a group without a finite value is a gap."""
    points = []
    for start in range(0, len(lines), width):
        group = lines[start : start + width]
        values = [float(x[field]) for x in group if _number(x.get(field))]
        at = group[0].get("step", start)
        points.append((float(at), sum(values) / len(values) if values else math.nan))
    return points


def previews(evidence: Evidence) -> list[dict[str, Any]]:
    """What the trainer saw: rows as text, cut into (text, is trained) pieces.

    Pairs that a red team made hold replies judged harmful; their preview is withheld, as a report must not spread them.
    """
    found = []
    for step in evidence.speaking():
        text = step.shelf.text("preview.txt") if step.shelf else None
        if not text:
            continue
        harmful = _red_team_pairs(evidence, step)
        found.append({"step": step.name, "withheld": harmful, "pieces": [] if harmful else _pieces(text)})
    return found


def _red_team_pairs(evidence: Evidence, step: Made) -> list[str]:
    """Inputs of a training step that hold, or may hold, harmful replies."""
    sources = [evidence.steps[p] for p in parents(step.manifest) if p in evidence.steps]
    unknown = [s.name for s in sources if not s.verb and s.manifest.get("kind") == "preferences"]
    return [s.name for s in sources if s.verb == "red_team_pairs"] + unknown


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Split at the trainer's marks, from the first row on; a mark inside a row's own text shifts that row's colours."""
    pieces = []
    for at, part in enumerate(text[max(text.find("==="), 0) :].split(OPEN)):
        inside, sign, rest = part.partition(CLOSE)
        if at == 0 or not sign:
            pieces.append((part, False))
        else:
            pieces += [(inside, True), (rest, False)]
    return [(words, trained) for words, trained in pieces if words]


# -- rows ---------------------------------------------------------------------------------------------------------


def data_flow(evidence: Evidence) -> list[dict[str, Any]]:
    """Row ledgers by step and stage, with examples of what was dropped and contamination where it was looked for."""
    release = evidence.manifest["kind"] == "release"
    found = []
    for step in evidence.steps.values() if release else [evidence.own]:
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


# -- merges -------------------------------------------------------------------------------------------------------


def merges(evidence: Evidence) -> list[dict[str, Any]]:
    """Every merge: the method as it ran, the models with weight and density, statistics by tensor class."""
    found = []
    release = evidence.manifest["kind"] == "release"
    for step in evidence.steps.values() if release else [evidence.own]:
        if step.verb != "merge":
            continue
        report = (step.shelf.json("merge.json") if step.shelf else None) or {}
        summary, parameters = step.manifest.get("summary", {}), step.manifest.get("parameters", {})
        settings = {"base": parameters.get("base"), "method": summary.get("method"), **(summary.get("row") or {})}
        settings |= {k: report.get(k, parameters.get(k)) for k in ("lambda", "t", "dtype", "seed")}
        kept = ("models", "sign_disagreement", "merged_delta_norm")
        total = report.get("total") or {"entries": summary.get("parameters"), **{k: summary.get(k) for k in kept}}
        classes = [*(report.get("classes") or {}).items(), ("all tensors", total)]
        names = list(dict.fromkeys(ref for _, c in classes for ref in c.get("models") or {}))
        found.append(
            {
                "step": step.name,
                "settings": [(k, v) for k, v in settings.items() if v is not None],
                "names": names,
                "models": [(ref, dict(p or {})) for ref, p in (parameters.get("models") or {}).items()],
                "classes": classes,
            }
        )
    return found


def _kept_by_source(counts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Rows kept by source: curate states a number, synthesize how many of the questions asked were accepted."""
    return sorted((source, n["accepted"] if isinstance(n, Mapping) else n) for source, n in counts.items())
