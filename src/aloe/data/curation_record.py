"""What the curation report is drawn from: rows through the stages, examples, lengths, clusters, shares, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.data.card import strictest
from aloe.data.flow import StageRecord
from aloe.records import Dialogue, Question, Row

ROLES = ("user", "assistant")
SHOWN_HITS = 50  # contaminated rows shown with both texts; all of them are in contamination.json


class Measure:
    """Counts over rows, one row at a time: lengths in words by role, licences, sources, tasks, templates."""

    def __init__(self) -> None:
        self.rows = 0
        self.words: dict[str, Counter[int]] = {role: Counter() for role in ROLES}
        self.by_source: Counter[str] = Counter()
        self.tasks: Counter[str] = Counter()
        self.templates: Counter[str] = Counter()
        self.licences: dict[str, Counter[str]] = {}

    def add(self, record: Row) -> None:
        """Count one row."""
        self.rows += 1
        for role, text in _turns(record):
            self.words[role][len(text.split())] += 1
        self.by_source[record.source] += 1
        self.licences.setdefault(record.source, Counter())[record.licence] += 1
        if task := record.meta.get("task"):
            self.tasks[str(task)] += 1
        if template := record.meta.get("template"):
            self.templates[str(template)] += 1

    def licence_counts(self) -> dict[str, int]:
        """Rows by licence."""
        total: Counter[str] = Counter()
        for counts in self.licences.values():
            total.update(counts)
        return dict(sorted(total.items()))

    def licences_by_source(self) -> dict[str, dict[str, int]]:
        """{source: {licence: rows}}."""
        return {source: dict(sorted(counts.items())) for source, counts in sorted(self.licences.items())}

    def licence(self) -> str:
        """The loosest licence that all rows together may be under."""
        return strictest(list(self.licence_counts())) if self.rows else "unknown"

    def lengths(self) -> dict[str, dict[str, float]]:
        """Words per turn by role: mean, median, 95th percentile, maximum."""
        return {role: _lengths(counts) for role, counts in self.words.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary."""
        return {
            "rows": self.rows, "words": self.lengths(), "licences": self.licence_counts(),
            "histogram": {role: _histogram(counts) for role, counts in self.words.items()},
            "by_source": dict(sorted(self.by_source.items())), "tasks": dict(sorted(self.tasks.items())),
        }  # fmt: skip


def _turns(record: Row) -> list[tuple[str, str]]:
    if isinstance(record, Dialogue):
        return [(m["role"], m["content"]) for m in record.messages if m["role"] in ROLES]
    if isinstance(record, Question):
        asked = " ".join((record.context, record.question, *record.options.values()))
        return [("user", asked), ("assistant", record.explanation or record.options[record.answer])]
    return []


def _lengths(counts: Counter[int]) -> dict[str, float]:
    total = sum(counts.values())
    if not total:
        return {"mean": 0.0, "median": 0, "p95": 0, "max": 0}
    return {
        "mean": round(sum(n * c for n, c in counts.items()) / total, 2),
        "median": _at(counts, (total - 1) // 2),
        "p95": _at(counts, (total * 95 - 1) // 100),
        "max": max(counts),
    }


def _at(counts: Counter[int], place: int) -> int:
    """The value at `place` of the sorted multiset."""
    for value in sorted(counts):
        place -= counts[value]
        if place < 0:
            return value
    return 0


def _histogram(counts: Counter[int]) -> list[dict[str, int]]:
    """Rows by powers of two, so that one-word answers and whole articles fit one picture."""
    bins: Counter[int] = Counter()
    for value, count in counts.items():
        bins[value.bit_length()] += count
    top = max(bins, default=0)
    return [{"from": (1 << b) >> 1, "to": 1 << b, "rows": bins[b]} for b in range(top + 1)] if bins else []


def score_histogram(scores: Sequence[float], bins: int = 20) -> list[dict[str, float]]:
    """Rows by score in equal steps between the lowest and the highest."""
    if not scores:
        return []
    low, high = min(scores), max(scores)
    step = (high - low) / bins or 1.0
    counts = Counter(min(int((s - low) / step), bins - 1) for s in scores)
    return [
        {"from": round(low + b * step, 4), "to": round(low + (b + 1) * step, 4), "rows": counts[b]} for b in range(bins)
    ]


def curation(records: Sequence[StageRecord], after: Measure, mix: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report's data; `records` are all stages in order."""
    facts = {r.stage: r.facts for r in records}
    contamination = facts.get("decontaminate", {})
    return {
        "stages": [
            {"stage": r.stage, "rows_in": r.rows_in, "kept": r.kept, "dropped": r.dropped, "by_source": r.by_source}
            for r in records
        ],
        "examples": {r.stage: r.examples for r in records if r.examples},
        "before": facts["load"]["measure"], "after": after.to_dict(),
        "clusters": facts.get("near_dedup", {}).get("clusters"),
        "contamination": {
            "table": contamination.get("table", {}), "hits": contamination.get("hits", [])[:SHOWN_HITS],
            "total_hits": len(contamination.get("hits", [])),
        },
        "phi": facts.get("phi", {"mode": "off", "rows_with": 0, "by_kind": {}, "by_source": {}}),
        "quality": {k: v for k, v in facts["quality"].items() if k != "scores"} if "quality" in facts else None,
        "diversity": facts.get("diversity"),
        "templates": dict(sorted(after.templates.items())), "tasks": dict(sorted(after.tasks.items())),
        "mix": list(mix), "licences": after.licences_by_source(), "licence": after.licence(),
    }  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    """Indented, sorted JSON with a line end; NaN is refused."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")
