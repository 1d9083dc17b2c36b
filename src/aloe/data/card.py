"""The dataset card: what `README.md` of a rows artifact says, in Hugging Face's format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aloe.records import Row

# From free to strict; a licence takes the rank of the first prefix it starts with. What is not listed counts as
# unknown, which is the strictest: nobody may assume a permission that nobody stated.
STRICTNESS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("public domain", ("cc0", "pddl", "unlicense", "public-domain", "pdm")),
    ("attribution", ("mit", "apache", "bsd", "isc", "cc-by-1", "cc-by-2", "cc-by-3", "cc-by-4", "odc-by")),
    ("share-alike", ("cc-by-sa", "gpl", "lgpl", "agpl", "odbl", "gfdl", "mpl")),
    ("non-commercial", ("cc-by-nc",)),
    ("no derivatives", ("cc-by-nd", "cc-by-nc-nd")),
    ("unknown", ("",)),
)
_SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))


def strictness(licence: str) -> tuple[int, str]:
    """(rank, class) of a licence; a higher rank permits less."""
    found = [
        (len(prefix), rank, name)
        for rank, (name, prefixes) in enumerate(STRICTNESS)
        for prefix in prefixes
        if licence.startswith(prefix)
    ]
    _, rank, name = max(found)
    return rank, name


def strictest(licences: Sequence[str]) -> str:
    """The licence that permits least; by name among equals."""
    return max(sorted(set(licences)), key=lambda licence: strictness(licence)[0])


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
        f"license: {'other' if strictness(hardest)[1] == 'unknown' else hardest}",
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
        f"{len(rows)} rows. The strictest licence among them is **{hardest}** ({strictness(hardest)[1]}): the set as a "
        "whole may not be used more freely than that.",
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
