"""Ensembles and what they cost: accuracy of the first n members for every n, from one run, and the tokens it took.

Figures come from the `extra` of score records (`aloe.evaluate.generated`). Curves of one chart share benchmark and
protocol. Strategies meet in one chart only where they answered the same items of the same rows: there the strategy is
what is compared, and the chart is of one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aloe.report.charts import Curve, curves
from aloe.report.ensembles_charts import Point, Series, shares
from aloe.report.evidence import Evidence, Made

Record = Mapping[str, Any]


def ensembles(evidence: Evidence, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """One entry per scores artifact in which more than one member voted: charts, and the same as rows."""
    found = []
    for step in evidence.speaking():
        table = step.shelf.json("scores.json") if step.shelf is not None else None
        records = [r for r in (table or {}).get("scores", ()) if _curve(r)]
        if not any(len(_curve(r)) > 1 for r in records):
            continue
        found.append(
            {
                "step": step.name,
                "by_size": _by_size(records, colours),
                "by_cost": _by_cost(records, _protocols(step)),
                "coverage": _coverage(records, colours),
                "rows": [row for r in records for row in _rows(r)],
                "asked": [_asked(r) for r in records if len(_curve(r)) > 1],
            }
        )
    return found


def _curve(record: Record) -> list[Record]:
    """The points that have a value: [{n, value, low, high, prompt_tokens, ...}]."""
    points = (record.get("extra") or {}).get("accuracy_at") or []
    return [p for p in points if p.get("value") is not None]


def _protocols(step: Made) -> Mapping[str, Any]:
    return (step.shelf.json("protocols.json") if step.shelf is not None else None) or {}


def _grouped(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by (benchmark, protocol), in their order."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        groups.setdefault((str(r["benchmark"]), str(r["protocol"])), []).append(r)
    return groups


def _named(record: Record) -> dict[str, Any]:
    return {k: str(record.get(k) or "") for k in ("benchmark", "strategy", "model", "protocol")}


# -- charts -------------------------------------------------------------------------------------------------------


def _by_size(records: Sequence[Record], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """One chart per benchmark and protocol: accuracy of the first n members, a curve a model."""
    found = []
    for group in _grouped(records).values():
        of = [r for r in group if len(_curve(r)) > 1]
        lines = [
            Series(
                str(r["model"]),
                [Point(float(p["n"]), float(p["value"]), p.get("low"), p.get("high")) for p in _curve(r)],
                colours.get(str(r["model"]), 0),
            )
            for r in of
        ]
        if lines:
            title = f"accuracy on {of[0]['benchmark']}, {of[0].get('strategy')}"
            found.append(
                {**_named(of[0]), "n": of[0].get("n"), "chart": shares(lines, title, "members that vote", True)}
            )
    return found


def _by_cost(records: Sequence[Record], protocols: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One chart per model and set of items: accuracy against tokens a question, a curve a strategy."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if _tokens(_curve(r)[0]) is not None:
            same = _same_items(str(r["protocol"]), protocols)
            groups.setdefault((str(r["benchmark"]), same, str(r["model"])), []).append(r)
    found = []
    for group in groups.values():
        lines = []
        for at, r in enumerate(group):
            points = [
                Point(tokens, float(p["value"]), p.get("low"), p.get("high"), f"{p['n']} members")
                for p in _curve(r)
                if (tokens := _tokens(p)) is not None
            ]
            lines.append(Series(str(r.get("strategy") or "no strategy"), points, at))
        title = f"accuracy of {group[0]['model']} on {group[0]['benchmark']}"
        found.append({**_named(group[0]), "chart": shares(lines, title, "tokens a question, prompt and completion")})
    return found


def _same_items(protocol: str, protocols: Mapping[str, Any]) -> str:
    """What two strategies must share to stand in one chart; a protocol that doesn't say stands alone."""
    told = protocols.get(protocol)
    if not isinstance(told, Mapping) or not told.get("items_digest"):
        return protocol
    return f"{told['items_digest']} {told.get('data_digest')} {told.get('template_digest')}"


def _tokens(point: Record) -> float | None:
    """Prompt and completion tokens a question."""
    if point.get("prompt_tokens") is None or point.get("completion_tokens") is None:
        return None
    return float(point["prompt_tokens"]) + float(point["completion_tokens"])


def _coverage(records: Sequence[Record], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """One chart per benchmark and protocol: the share of wrong answers when only the surest questions are answered."""
    found = []
    for group in _grouped(records).values():
        lines = []
        for r in group:
            margin = ((r.get("extra") or {}).get("confidence") or {}).get("margin") or {}
            points = [(float(x), float(y)) for x, y in margin.get("risk_coverage") or ()]
            if points:
                lines.append(Curve(str(r["model"]), points, colours.get(str(r["model"]), 0)))
        if lines:
            title = f"share wrong on {group[0]['benchmark']}, {group[0].get('strategy')}"
            found.append({**_named(group[0]), "chart": curves(lines, title, "share answered, surest first")})
    return found


# -- the same as numbers ------------------------------------------------------------------------------------------


def _rows(record: Record) -> list[dict[str, Any]]:
    """A row for every ensemble size."""
    named = _named(record)
    return [
        {
            **named,
            "n": p.get("n"),
            "of": record.get("n"),
            **{k: p.get(k) for k in ("value", "low", "high", "asked", "prompt_tokens", "completion_tokens")},
            "tokens": _tokens(p),
            "tokens_per_point": p.get("tokens_per_point"),
        }
        for p in _curve(record)
    ]


def _asked(record: Record) -> dict[str, Any]:
    """How many members had to be asked, and how far votes can be trusted."""
    extra = record.get("extra") or {}
    margin = (extra.get("confidence") or {}).get("margin") or {}
    error = margin.get("calibration_error")
    return {
        **_named(record),
        "members": extra.get("members_asked") or {},
        "calibration_error": error.get("value") if isinstance(error, Mapping) else error,
        "brier": (margin.get("brier") or {}).get("value"),
        "ties": sum((extra.get("ties") or {}).values()),
        "parse_rate": extra.get("member_parse_rate"),
    }
