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
    """`card_text` of rows in memory."""
    return card_text(title, about, licences_by_source(rows), stages, tags)


def card_text(
    title: str,
    about: str,
    licences: Mapping[str, Mapping[str, int]],
    stages: Mapping[str, Mapping[str, Any]],
    tags: Sequence[str] = (),
    *,
    sections: Mapping[str, Sequence[str]] | None = None,
    features: Mapping[str, str] | None = None,
) -> str:
    """README.md of a set in the hub's format: YAML header, sources with licences, and the row ledger by stage.

    Args:
        title: name of the set.
        about: one paragraph on how it was made.
        licences: {source: {licence: rows}}.
        stages: a stage to {"rows_in", "kept", "dropped": {reason: rows}}.
        tags: beside `medical`.
        sections: further headings with their lines, after the row ledger.
        features: columns with their types, for the header's `dataset_info`.
    """
    total = sum(sum(counts.values()) for counts in licences.values())
    hardest = strictest([name for counts in licences.values() for name in counts]) if total else "unknown"
    header = [
        "---",
        f"pretty_name: {title}",
        *_licence_lines(hardest),
        "language:",
        "- en",
        "multilinguality:",
        "- monolingual",
        "task_categories:",
        "- question-answering",
        "- text-generation",
        "size_categories:",
        f"- {next((name for name, limit in _SIZES if total < limit), 'n>1M')}",
        "tags:",
        *(f"- {tag}" for tag in ("medical", *tags)),
        *_info_lines(features, total),
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
        f"{total} rows. What all of them allow together is **{hardest}**: the set as a whole may not be used more "
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
        *(line for heading, lines in (sections or {}).items() for line in ("", f"## {heading}", "", *lines)),
        "",
        "## Uses",
        "",
        "For research and education: training and studying healthcare language models. Out of scope: clinical use, "
        "diagnosis, treatment, triage, and any decision about a person without a clinician.",
        "",
        "## Limits",
        "",
        "For research and education. Not medical advice, and not a basis for diagnosis or treatment.",
    ]
    return "\n".join([*header, "", *body]) + "\n"


def _licence_lines(hardest: str) -> list[str]:
    """The hub knows single licences; what it doesn't know is `other` with a name."""
    if hardest != "unknown" and " AND " not in hardest:
        return [f"license: {hardest}"]
    return ["license: other", f"license_name: {hardest.lower().replace(' ', '-')}"]


def _info_lines(features: Mapping[str, str] | None, total: int) -> list[str]:
    if not features:
        return []
    columns = [line for name, kind in features.items() for line in (f"  - name: {name}", f"    dtype: {kind}")]
    return ["dataset_info:", "  features:", *columns, "  splits:", "  - name: train", f"    num_examples: {total}"]


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none"
