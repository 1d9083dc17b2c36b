"""The risk register, as it was computed: the levels as a table, and everything else that each risk states.

A register may hold risks and fields of the user's own, so whatever is there is shown: known headings first and in
their order, then the rest by name. Links stand as text: the page leads nowhere outside itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.records import SEVERITIES
from aloe.report.evidence import Evidence
from aloe.safety.risk_render import HEADINGS

FILE = "risk_assessment.json"
LEVELS = ("likelihood", "severity", "residual")
ORDER = (*HEADINGS, "rationale")
TITLED = ("title", "id", *LEVELS)


def risks(evidence: Evidence) -> dict[str, Any] | None:
    """{model, note, rows, details} of a release's register; None where there is none."""
    shelf = evidence.root.shelf
    register = shelf.json(FILE) if shelf is not None else None
    if not register or not register.get("risks"):
        return None
    found = register["risks"]
    named = found.items() if isinstance(found, Mapping) else [(str(r.get("id", at)), r) for at, r in enumerate(found)]
    listed = [(str(key), dict(risk)) for key, risk in named]
    return {
        "model": register.get("model", "not named"),
        "rows": [(str(risk.get("title", key)), [_level(risk, field) for field in LEVELS]) for key, risk in listed],
        "details": [(str(risk.get("title", key)), _headings(risk)) for key, risk in listed],
        "about": _headings({k: v for k, v in register.items() if k not in ("risks", "model")}),
    }


def _level(risk: Mapping[str, Any], field: str) -> tuple[str, Any, str]:
    """(level, the rate it was read off or None, what that rate is of)."""
    told = risk.get(field)
    evidence = risk.get("evidence")
    rate = evidence.get(field) if isinstance(evidence, Mapping) else None
    if isinstance(told, Mapping):  # a level with its own evidence
        rate = told.get("rate") or told.get("evidence") or rate
        told = told.get("level") or told.get("value")
    rate = rate if isinstance(rate, Mapping) and "value" in rate else None
    of = str((rate or {}).get("of") or "")
    # Alone under a level, "high" would read as another level: it is what scenarios state of themselves.
    return str(told) if told is not None else "unmeasured", rate, f"{of}-severity scenarios" if of in SEVERITIES else of


def _headings(risk: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(heading, body): a body is text, a list of bodies, or (name, body) pairs in a dict."""
    order = [*(h for h in ORDER if h in risk), *(k for k in risk if k not in ORDER and k not in TITLED)]
    return [(name, body) for name in order if (body := plainly(risk[name])) not in (None, "", [], {})]


def plainly(value: Any) -> Any:
    """A value as nested text: a rate on one line, numbers as people write them, dicts and lists kept."""
    if isinstance(value, Mapping):
        if {"value", "n"} <= set(value):
            return _rate(value)
        if {"file", "pointer"} <= set(value):
            return _link(value)
        return {str(k): found for k, v in value.items() if (found := plainly(v)) not in (None, "", [], {})}
    if isinstance(value, list | tuple):
        return [found for v in value if (found := plainly(v)) not in (None, "", [], {})]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return None if value is None else str(value)


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "not measured"
    bounds = (
        "" if rate.get("low") is None or rate.get("high") is None else f" [{rate['low']:.1%} to {rate['high']:.1%}]"
    )
    more = [str(rate[field]) for field in ("of", "note") if rate.get(field)]
    more += [_link(link) for link in rate.get("links") or () if isinstance(link, Mapping)]
    return ", ".join([f"{rate['value']:.1%}{bounds}, n = {rate['n']}", *more])


def _link(link: Mapping[str, Any]) -> str:
    """The file and the JSON pointer into it."""
    return f"{link.get('file')}#{link.get('pointer')}" if link.get("pointer") else str(link.get("file"))
