"""The stage of curation that takes out what benchmarks ask, in three tiers, with the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.data import decontaminate, rephrased
from aloe.data.flow import Stage, StageOut, spread
from aloe.data.settings import Decontaminate, Rephrased
from aloe.data.sources import Dropped, read_rows, source_name
from aloe.data.spool import Item, Mapped, View
from aloe.errors import AloeError
from aloe.records import Dialogue, Question, Row

Benchmarks = Mapping[str, tuple[Sequence[Row], int]]  # name -> (rows, how many could not be read)


def benchmarks(settings: Decontaminate, path: Callable[[str], Path]) -> Benchmarks:
    """Rows of each benchmark by name; those that could not be read are counted, and reported."""
    found: dict[str, tuple[Sequence[Row], int]] = {}
    for b in settings.against:
        if source_name(b.rows) in found:  # the second would take the first one's place, unseen
            raise AloeError(
                f"two benchmarks are called {source_name(b.rows)}",
                where="decontaminate.against",
                fix="name each once, and give files names of their own",
            )
        rows: list[Row] = []
        unread = 0
        for row in read_rows(
            path(b.rows), source=source_name(b.rows), preset=b.preset, columns=b.columns or None, split=b.split
        ):
            if isinstance(row, Dropped):
                unread += 1
            elif isinstance(row, Question | Dialogue):
                rows.append(row)
            else:
                raise AloeError(
                    f"these are {row.kind} rows; curate takes questions and dialogues",
                    where=b.rows,
                    fix="name another set",
                )
        found[source_name(b.rows)] = rows, unread
    return found


def decontaminated(
    settings: Decontaminate,
    benchmarks: Callable[[], Benchmarks],
    encoder: Callable[[str], Any],
    engine: Callable[[str], Any],
    digests: Mapping[str, str],
) -> Stage:
    """Drop rows that hold a benchmark's item. `digests` are those of benchmarks and judge, by reference."""

    def run(view: View, out: StageOut) -> None:
        found = benchmarks()
        items = {name: [decontaminate.item(r) for r in rows] for name, (rows, _) in found.items()}
        rows = Mapped(view, _item)
        look = _Look(decontaminate.Look(items, settings.min_similarity))
        report = decontaminate.gathered(spread(look, view), items)
        suspected: list[decontaminate.Hit] = []
        if settings.rephrased is not None:
            report, suspected = _rephrased(settings.rephrased, rows, items, report, encoder, engine, out)
        hits = [_evidence(hit, rows, items) for hit in report.hits]
        worst: dict[int, dict[str, Any]] = {}
        for hit, evidence in zip(report.hits, hits, strict=True):
            if hit.row not in worst or evidence["similarity"] > worst[hit.row]["similarity"]:
                worst[hit.row] = evidence
        for n in sorted(worst):
            out.drop(n, view[n], "contaminated", f"holds {worst[n]['benchmark']} {worst[n]['item_id']}", worst[n])
        out.facts |= {
            "settings": {
                **settings.model_dump(mode="json", exclude={"against"}),
                "against": [source_name(b.rows) for b in settings.against],
                "ngram": [decontaminate.MIN_N, decontaminate.MAX_N],
                "other_answer_similarity": decontaminate.OTHER_ANSWER, "contained_share": decontaminate.CONTAINED,
            },
            "benchmarks": {n: {"items": len(rows), "unreadable": unread} for n, (rows, unread) in found.items()},
            "table": report.table,
            "flagged_items": {n: sorted({h["item_id"] for h in hits if h["benchmark"] == n}) for n in items},
            "hits": hits, "suspected": [_evidence(hit, rows, items) for hit in suspected],
        }  # fmt: skip

    embedder = encoder(settings.rephrased.embedder).digest if settings.rephrased is not None else None
    return Stage("decontaminate", [settings.model_dump(mode="json"), dict(digests), embedder], run)


def _rephrased(
    settings: Rephrased,
    rows: Sequence[decontaminate.Item],
    items: Mapping[str, Sequence[decontaminate.Item]],
    report: decontaminate.Report,
    encoder: Callable[[str], Any],
    engine: Callable[[str], Any],
    out: StageOut,
) -> tuple[decontaminate.Report, list[decontaminate.Hit]]:
    """The report with the third tier's confirmed hits, and the pairs that are suspected still."""
    judge = engine(settings.judge) if settings.judge is not None else None
    embedder = encoder(settings.embedder)
    found = rephrased.rephrased_hits(
        rows, items, embedder, judge, k=settings.top_k, floor=settings.floor, known=report.hits
    )
    out.facts["rephrased"] = {
        "embedder": embedder.digest, "judge": None if judge is None else judge.model_digest, "table": found.table,
    }  # fmt: skip
    return rephrased.merged(report, found, {hit.row: rows[hit.row].source for hit in found.hits}), found.suspected


def _item(item: Item) -> decontaminate.Item:
    return decontaminate.item(item.record)


class _Look:
    """`decontaminate.Look` at rows as they lie on disk."""

    def __init__(self, look: decontaminate.Look) -> None:
        self.look = look

    def __call__(self, items: list[Item]) -> decontaminate.Found:
        return self.look([_item(item) for item in items])


def _evidence(
    hit: decontaminate.Hit, rows: Sequence[decontaminate.Item], benchmarks: Mapping[str, Sequence[decontaminate.Item]]
) -> dict[str, Any]:
    row, other = rows[hit.row], benchmarks[hit.benchmark][hit.item]
    return {
        "row_id": row.id, "source": row.source, "benchmark": hit.benchmark, "item_id": other.id, "tier": hit.tier,
        "similarity": round(hit.similarity, 4), "row_text": row.question, "item_text": other.question,
    }  # fmt: skip
