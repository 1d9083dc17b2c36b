"""The files of a curated set: rows, ledger, statistics, the report's data and the dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.data import card
from aloe.data.curation_record import Measure, curation, write_json
from aloe.data.flow import LEDGER_COLUMNS, LEDGER_NESTED, Flow, StageRecord
from aloe.data.parquet_out import ParquetRows

ROW_COLUMNS = ("id", "source", "licence", "meta", "messages")


def write_artifact(out: Path, flow: Flow, names: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, Any]:
    """Write all files of the finished flow below `out`; returns the summary for the manifest."""
    measure = Measure()
    assert flow.view is not None
    with ParquetRows(out / "rows.parquet", ROW_COLUMNS, ("meta", "messages")) as file:
        for item in flow.view:
            measure.add(item.record)
            file.put(vars(item.record))
    with ParquetRows(out / "dropped.parquet", LEDGER_COLUMNS, LEDGER_NESTED) as file:
        for row in flow.dropped():
            file.put(row)
    facts = {r.stage: r.facts for r in flow.records}
    origins, total = Counter(flow.view.column("origin")), max(measure.rows, 1)
    shares = [
        {"source": n, "weight": (weights or {}).get(n), "rows": origins[n], "share": round(origins[n] / total, 6)}
        for n in names
    ]  # fmt: skip
    stats = _statistics(measure, flow.records, facts)
    write_json(out / "stats.json", stats)
    write_json(out / "contamination.json", facts["decontaminate"])
    write_json(out / "curation.json", curation(flow.records, measure, shares))
    about = "Curated by `aloe curate`: cleaned, deduplicated, decontaminated, templated and mixed."
    readme = card.card_text(
        "Medical instruction dialogues", about, measure.licences_by_source(), stats["stages"],
        sections=_card_sections(facts, measure), features=dict.fromkeys(ROW_COLUMNS, "string"),
    )  # fmt: skip
    (out / "README.md").write_text(readme, encoding="utf-8")
    return {
        "rows": measure.rows, "rows_read": flow.records[0].rows_in, "by_source": stats["by_source"],
        "licence": stats["licence"], "licences": stats["licences"],
        "dropped": {r.stage: r.dropped for r in flow.records if r.dropped},
        "contaminated": sum(n for r in flow.records if r.stage == "decontaminate" for n in r.dropped.values()),
        "seconds": {r.stage: r.seconds for r in flow.records},
    }  # fmt: skip


def _card_sections(facts: Mapping[str, Any], measure: Measure) -> dict[str, list[str]]:
    """What a reader of the card must know beside the ledger: form, personal data, benchmarks looked for."""
    lengths = measure.lengths()
    structure = [
        "One dialogue a row. `messages` (role, content) and `meta` (task, template, original id, the question that a "
        "row was made from) are JSON text.",
        "",
        *(
            f"- {role}: {f['mean']} words a turn, median {f['median']}, 95% up to {f['p95']}, most {f['max']}."
            for role, f in lengths.items()
        ),
        f"- {len(measure.tasks)} tasks, {len(measure.templates)} instruction templates.",
    ]
    found = facts.get("phi")
    personal = ["Not looked for."]
    if found:
        done = {
            "report": "counted and left in",
            "redact": "replaced by placeholders",
            "drop": "dropped with their rows",
        }
        kinds = ", ".join(f"{kind} {n}" for kind, n in found["by_kind"].items()) or "none"
        personal = [
            f"Identifiers found by rules were {done[found['mode']]}: {kinds}, in {found['rows_with']} rows. Rules miss "
            "some and take some words for names; look at the rows before you pass them on.",
        ]
    table = facts["decontaminate"]["table"]
    against = list(facts["decontaminate"]["benchmarks"])
    compared = ["Compared with no benchmark."]
    if against:
        compared = [
            "| benchmark | items | rows taken out |",
            "|---|---:|---:|",
            *(
                f"| {name} | {facts['decontaminate']['benchmarks'][name]['items']} | "
                f"{sum(by[name]['contaminated'] for by in table.values())} |"
                for name in against
            ),
        ]
    return {"Structure": structure, "Personal and sensitive information": personal, "Benchmarks": compared}


def _statistics(measure: Measure, records: list[StageRecord], facts: Mapping[str, Any]) -> dict[str, Any]:
    by_source = dict(sorted(measure.by_source.items()))
    changes = {**facts["clean"]["changes"], "answer_repaired": facts["load"]["answer_repaired"]}
    return {
        "rows": measure.rows, "by_source": by_source,
        "stages": {
            r.stage: {"rows_in": r.rows_in, "kept": r.kept, "dropped": r.dropped, "by_source": r.by_source}
            for r in records
        },
        "shares": {source: round(count / measure.rows, 6) for source, count in by_source.items()},
        "tasks": dict(sorted(measure.tasks.items())), "templates": dict(sorted(measure.templates.items())),
        "licences": measure.licence_counts(), "licences_by_source": measure.licences_by_source(),
        "licence": measure.licence(), "changes": dict(sorted(changes.items())), "words": measure.lengths(),
        "dedup": facts["near_dedup"]["scheme"], "semantic": facts["near_dedup"].get("semantic"),
    }  # fmt: skip
