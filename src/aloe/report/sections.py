"""What was measured, and what it rests on: scores, protocols, inputs, digests. Evidence in, plain values out.

A section is None (or empty) when its evidence is absent, and a figure that isn't there stays None: the templates write
"not measured" and "unknown", never a zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from aloe.report.charts import Dot, dots, ticks
from aloe.report.evidence import RELEASE, RUN, Evidence, Made, outside

HEADLINE = ("accuracy", "over_refusal", "attack_success", "nll_byte")
ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better"}
Palette = Mapping[str, int]


def palette(evidence: Evidence) -> dict[str, int]:
    """A colour's number for every model measured, in the order in which they were named: the same in all charts."""
    names: list[str] = []
    for file in ("scores.json", "red_team.json"):
        for step in evidence.speaking():
            names += in_order(step, (_json(step, file) or {}).get("models", ()))
    return {name: at for at, name in enumerate(dict.fromkeys(names))}


def _json(step: Made, name: str) -> Any:
    return step.shelf.json(name) if step.shelf is not None else None


# -- head ---------------------------------------------------------------------------------------------------------


def header(evidence: Evidence) -> dict[str, Any]:
    """Title and the facts under it, as (label, text)."""
    m, root = evidence.manifest, evidence.root.manifest
    summary, code, machine = root.get("summary", {}), root.get("code", {}), root.get("machine", {})
    family = _family(evidence)
    steps = [s for s in evidence.steps.values() if s.verb]
    made_by = f"step {m['step']}, verb {m['verb']}" + (f" version {m['version']}" if "version" in m else "")
    commit = str(code.get("commit", ""))[:12]
    version = " ".join(x for x in (f"aloe {code['aloe']}" if "aloe" in code else "", commit) if x)
    facts = [
        ("made by", made_by if m["kind"] != RUN else f"{len(steps)} steps"),
        ("kind", m["kind"]),
        ("model", root.get("parameters", {}).get("model") if root["kind"] == RELEASE else None),
        ("licence", summary.get("licence")),
        ("seed", root.get("seed")),
        ("code", version + (" with uncommitted changes" if code.get("dirty") else "") if version else None),
        ("machine", _machine(machine)),
        ("begun", m.get("started")),
        ("finished", m.get("finished")),
        ("fingerprint", str(m.get("fingerprint", ""))[:16]),
        ("content digest", str(m.get("content_digest", ""))[:16]),
    ]
    return {
        "family": family,
        "title": family or m["step"],
        "step": m["step"],
        "kind": m["kind"],
        "facts": [(label, str(value)) for label, value in facts if value not in (None, "")],
    }


def _family(evidence: Evidence) -> str | None:
    """Stated by a release; else the folder that the store lies in; else unknown."""
    summary = evidence.manifest.get("summary", {})
    if evidence.manifest["kind"] == RUN:
        return evidence.own.name
    if evidence.manifest["kind"] == RELEASE and isinstance(summary.get("name"), str):
        return str(summary["name"])
    store = evidence.folder.resolve().parent
    return store.parent.name if store.name == ".store" else None


def _machine(machine: Mapping[str, Any]) -> str | None:
    parts = [
        machine.get("processor"),
        f"{machine['cores']} cores" if "cores" in machine else None,
        f"{machine['memory_gb']} GB" if "memory_gb" in machine else None,
        *machine.get("gpus", ()),
        machine.get("system"),
        f"Python {machine['python']}" if "python" in machine else None,
    ]
    return ", ".join(str(p) for p in parts if p) or None


# -- scores -------------------------------------------------------------------------------------------------------


def scores(evidence: Evidence, colours: Palette) -> list[dict[str, Any]]:
    """One entry per scores artifact: tables of headline and further metrics, charts, comparisons."""
    found = []
    for step in evidence.speaking():
        table = _json(step, "scores.json")
        if not table:
            continue
        records = list(table.get("scores", ()))
        models = list(dict.fromkeys([*table.get("models", ()), *(r["model"] for r in records)]))
        columns = _columns(records)
        head = [c for c in columns if c["metric"] in HEADLINE]
        head.sort(key=lambda c: HEADLINE.index(c["metric"]))
        entry = {
            "step": step.name,
            "models": models,
            "head": head,
            "more": [c for c in columns if c["metric"] not in HEADLINE],
            "charts": [(c, _score_chart(c, models, colours)) for c in head],
            "comparisons": _comparisons(step, records),
        }
        found.append(entry)
    return found


def _columns(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One column per benchmark, metric and protocol: scores under different protocols never share one."""
    columns: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in records:
        key = (str(r["benchmark"]), str(r["metric"]), str(r["protocol"]))
        if key not in columns:
            columns[key] = {
                "benchmark": key[0],
                "metric": key[1],
                "protocol": key[2],
                "strategy": str(r.get("strategy") or ""),
                "better": ARROWS.get(str(r.get("better")), ""),
                "unit": str(r.get("unit", "share")),
                "cells": {},
            }
        columns[key]["cells"][str(r["model"])] = dict(r)
    return list(columns.values())


def _score_chart(column: Mapping[str, Any], models: Sequence[str], colours: Palette) -> Markup:
    cells, share = column["cells"], column["unit"] == "share"
    rows = [_score_dot(m, cells[m], colours) for m in models if m in cells]
    top = max([r.high if r.high is not None else r.value or 0.0 for r in rows], default=1.0)
    title = f"{column['metric']} on {column['benchmark']}, {column['strategy']}"
    return dots(rows, title, 1.0 if share else ticks(0.0, max(top, 1e-9))[-1], share)


def _score_dot(model: str, cell: Mapping[str, Any], colours: Palette) -> Dot:
    return Dot(
        model, cell.get("value"), cell.get("low"), cell.get("high"), f"n = {cell.get('n')}", colours.get(model, 0)
    )


def _comparisons(step: Made, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each model against the one before it, item by item; what was not compared keeps its reason."""
    how = {str(r["protocol"]): r for r in records}
    nats = {str(r["metric"]) for r in records if r.get("unit") == "nats"}
    fields = (
        "before",
        "after",
        "benchmark",
        "metric",
        "n",
        "difference",
        "low",
        "high",
        "only_before",
        "only_after",
        "p_value",
        "p_holm",
        "reason",
        "protocol",
    )
    return [
        {f: entry.get(f) for f in fields}
        | {
            "strategy": str(how.get(str(entry.get("protocol")), {}).get("strategy") or ""),
            "unit": "nats" if entry.get("metric") in nats else "share",
        }
        for entry in _json(step, "comparisons.json") or ()
    ]


def protocols(evidence: Evidence) -> list[dict[str, Any]]:
    """Every protocol record, by digest: what must be equal for two figures to be comparable."""
    found: dict[str, dict[str, Any]] = {}
    for step in evidence.speaking():
        for table in (_json(step, "protocols.json"), (_json(step, "red_team.json") or {}).get("protocols")):
            for digest, record in (table or {}).items():
                if isinstance(record, Mapping):
                    settings = [(k, plain(v)) for k, v in record.items()]
                    found.setdefault(str(digest), {"digest": str(digest), "step": step.name, "settings": settings})
    return list(found.values())


def plain(value: Any) -> str:
    """A setting as text: words as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def in_order(step: Made, names: Iterable[str]) -> list[str]:
    """Names as the recipe lists its models: JSON files have their keys sorted."""
    listed = step.manifest.get("parameters", {}).get("models")
    asked = [n for n in listed if n in names] if isinstance(listed, list) else []
    return list(dict.fromkeys([*asked, *names]))


# -- record -------------------------------------------------------------------------------------------------------


def inputs(evidence: Evidence) -> dict[str, Any] | None:
    """Everything from outside the recipe with its licence, and the licences of rows where a step counted them."""
    shelf = evidence.root.shelf
    stated = shelf.json("inputs.json") if shelf else None
    rows = [dict(r) for r in stated] if stated else list(_outside_inputs(evidence))
    counted = [
        (step.name, source, licence, count)
        for step in evidence.speaking()
        for source, found in ((_json(step, "stats.json") or {}).get("licences_by_source") or {}).items()
        for licence, count in found.items()
    ]
    cards = []
    if shelf is not None and evidence.root.manifest["kind"] == RELEASE:
        for name in shelf.names():
            if name.startswith("data/") and name.endswith("/README.md"):
                cards.append((name.split("/")[1], shelf.text(name) or ""))
    return {"rows": rows, "counted": counted, "cards": cards} if rows or counted or cards else None


def _outside_inputs(evidence: Evidence) -> Iterator[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for step in evidence.steps.values():
        for ref, entry in outside(step.manifest).items():
            row = found.setdefault(
                ref,
                {
                    "name": ref,
                    "kind": entry.get("kind", "unknown"),
                    "origin": entry.get("origin", "unknown"),
                    "licence": entry.get("licence") or "unknown",
                    "digest": entry.get("digest") or "",
                    "used_by": [],
                },
            )
            row["used_by"].append(step.name)
    yield from found.values()


def ledger(evidence: Evidence) -> dict[str, Any]:
    """Time, memory, tokens and energy of every step whose manifest is known; carbon where a release computed it."""
    steps = [s for s in evidence.steps.values() if "wall_seconds" in s.manifest]
    return {
        "steps": [
            {
                "name": s.name,
                "verb": s.verb,
                "seconds": s.manifest["wall_seconds"],
                "memory": s.manifest.get("peak_memory_bytes"),
                "tokens": s.manifest.get("tokens") or {},
                "energy": s.manifest.get("energy"),
                "machine": _machine(s.manifest.get("machine") or {}),
            }
            for s in steps
        ],
        "seconds": sum(float(s.manifest["wall_seconds"]) for s in steps),
        "carbon": evidence.root.shelf.json("carbon.json") if evidence.root.shelf else None,
        "machines": sorted({str(_machine(s.manifest.get("machine") or {}) or "unknown") for s in steps}),
    }


def digests(evidence: Evidence) -> dict[str, Any]:
    """Fingerprints and content digests of the steps, the artifact's files, library versions, parameters, the recipe."""
    m, shelf = evidence.root.manifest, evidence.root.shelf
    return {
        "steps": [
            {
                "name": s.name,
                "state": s.state,
                "fingerprint": s.manifest.get("fingerprint"),
                "content": s.manifest.get("content_digest"),
            }
            for s in evidence.steps.values()
        ],
        "of": evidence.root.name if m is not evidence.manifest else "",
        "manifest": m.get("manifest_digest"),
        "files": [(name, entry.get("bytes"), entry["digest"]) for name, entry in sorted(m["files"].items())],
        "versions": sorted((m.get("versions") or {}).items()),
        "parameters": [
            (s.name, s.verb, json.dumps(s.manifest["parameters"], indent=1, ensure_ascii=False, sort_keys=True))
            for s in evidence.steps.values()
            if "parameters" in s.manifest
        ],
        "summary": json.dumps(m.get("summary", {}), indent=1, ensure_ascii=False, sort_keys=True),
        "recipe": shelf.text("recipe.yaml") if shelf else None,
    }
