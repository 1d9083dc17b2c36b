"""The dataset card: what `README.md` of a rows artifact says, in Hugging Face's format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aloe import licence
from aloe.errors import AloeError
from aloe.records import Row

_SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))


def strictest(licences: Sequence[str]) -> str:
    """The loosest licence that all rows together may be under; `unknown` where one is unknown or two clash."""
    try:
        return licence.strictest(licences)
    except AloeError:  # a set may be kept and looked at all the same; it is its release that is refused
        return "unknown"


def lengths(texts: Sequence[str]) -> dict[str, float]:
    """Words per text: mean, median, 95th percentile and maximum."""
    counts = sorted(len(text.split()) for text in texts)
    if not counts:
        return {"mean": 0.0, "median": 0, "p95": 0, "max": 0}
    return {
        "mean": round(sum(counts) / len(counts), 2),
        "median": counts[(len(counts) - 1) // 2],
        "p95": counts[(len(counts) * 95 - 1) // 100],
        "max": counts[-1],
    }


def licences_by_source(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """{source: {licence: rows}}, sorted."""
    table: dict[str, Counter[str]] = {}
    for row in rows:
        table.setdefault(row.source, Counter())[row.licence] += 1
    return {source: dict(sorted(counts.items())) for source, counts in sorted(table.items())}


def dataset_card(
    title: str, about: str, rows: Sequence[Row], stages: Mapping[str, Mapping[str, Any]], tags: Sequence[str] = ()
) -> str:
    """README.md: YAML header, sources with licences, and the row ledger by stage.

    `stages` maps a stage to {"rows_in", "kept", "dropped": {reason: rows}}.
    """
    licences = licences_by_source(rows)
    hardest = strictest([row.licence for row in rows]) if rows else "unknown"
    size = next((name for name, limit in _SIZES if len(rows) < limit), "n>1M")
    header = [
        "---",
        f"pretty_name: {title}",
        f"license: {'other' if hardest == 'unknown' or ' AND ' in hardest else hardest}",
        "language:",
        "- en",
        "task_categories:",
        "- question-answering",
        "- text-generation",
        "size_categories:",
        f"- {size}",
        "tags:",
        *(f"- {tag}" for tag in ("medical", *tags)),
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: rows.parquet",
        "---",
    ]
    body = [
        f"# {title}",
        "",
        about,
        "",
        f"{len(rows)} rows. What all of them allow together is **{hardest}**: the set as a whole may not be used more "
        "freely than that.",
        "",
        "## Sources",
        "",
        "| source | rows | licence |",
        "|---|---:|---|",
        *(
            f"| {s} | {sum(c.values())} | {', '.join(f'{k} ({n})' for k, n in c.items())} |"
            for s, c in licences.items()
        ),
        "",
        "## Row ledger",
        "",
        "| stage | rows in | kept | dropped |",
        "|---|---:|---:|---|",
        *(f"| {name} | {s['rows_in']} | {s['kept']} | {_reasons(s['dropped'])} |" for name, s in stages.items()),
        "",
        "## Limits",
        "",
        "For research and education. Not medical advice, and not a basis for diagnosis or treatment.",
    ]
    return "\n".join([*header, "", *body]) + "\n"


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none"
