"""The `curate` verb: sources in, one clean, deduplicated, decontaminated, templated and mixed set of dialogues out.

Stages, in order: load, clean, exact and near deduplication, decontamination, templates, mix (Aloe Beta,
arXiv 2505.04388, data section). No stage loses a row silently: every one that leaves is in `dropped.parquet` with its
stage, reason and evidence, and too many of them stop the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from aloe.contract import Context, Kind, Params, RowsRef, Step
from aloe.data import card, decontaminate, dedup, mix, templates
from aloe.data.clean import clean_record
from aloe.data.dedup import Near
from aloe.data.sources import Dropped, load_rows, source_name
from aloe.data.starter import LICENCE, is_starter
from aloe.errors import AloeError
from aloe.records import Dialogue, Question, Row
from aloe.rows import write_parquet, write_records

LEDGER_COLUMNS = ("id", "source", "stage", "reason", "where", "detail", "evidence", "row")


class Source(Params):
    """One input of `curate`."""

    rows: RowsRef
    weight: float | None = Field(default=None, gt=0)  # relative share in the mix; give it to all sources or to none
    limit: int | None = Field(default=None, ge=1)  # read at most this many rows, from the start of the file
    ids: Literal["own", "content"] = "own"  # `content` makes ids from the rows, for sets whose own ids repeat


class Decontaminate(Params):
    """Benchmarks that must not be trained on."""

    against: list[RowsRef] = Field(default_factory=list)
    min_similarity: float = Field(default=0.6, gt=0, le=1)  # of question + options, character 5-gram Jaccard; ours


class Dedup(Params):
    """Jaccard thresholds of near-duplicates: Aloe Beta (arXiv 2505.04388)."""

    qa: float = Field(default=0.72, gt=0, le=1)
    dialogue: float = Field(default=0.77, gt=0, le=1)


@dataclass(frozen=True)
class Item:
    """A row on its way: `origin` is the name of the source it came in by, `rank` that source's place in the list."""

    record: Row
    origin: str
    rank: int


@dataclass
class Flow:
    """The rows still in, the rows out, and the ledger by stage."""

    items: list[Item]
    dropped: list[Dropped] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


class Curate(Step):
    """Build a supervised fine-tuning set. Sources are named in order of priority: the first one's copy survives."""

    verb: ClassVar[str] = "curate"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "dialogues"

    # A list of references, or a map from reference to {weight, limit}.
    sources: list[Source] = Field(min_length=1)
    decontaminate: Decontaminate = Decontaminate()
    dedup: Dedup = Dedup()
    max_dropped_share: float = Field(default=0.2, ge=0, le=1)  # of the rows read; more stops the run
    rows: int | None = Field(default=None, ge=1)  # rows after the mix; None keeps all that the weights allow
    explained_share: float = Field(default=0.5, ge=0, le=1)  # of questions with an explanation, trained with it; ours
    licences: dict[str, str] = Field(default_factory=dict)  # licence by source name, over what rows state

    @field_validator("sources", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Mapping):
            value = [{"rows": ref, **(options or {})} for ref, options in value.items()]
        return [{"rows": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    def run(self, ctx: Context) -> dict[str, Any]:
        flow = self._load(ctx)
        read = len(flow.items) + len(flow.dropped)
        changes = _clean(ctx, flow)
        near = self._deduplicate(ctx, flow)
        contamination = self._decontaminate(ctx, flow)
        self._check_dropped(flow, read)
        dialogues = self._template(ctx, flow)
        mixed = self._mix(ctx, flow, dialogues)
        stats = _statistics(mixed, flow, changes, near)
        write_records(ctx.out / "rows.parquet", mixed)
        write_parquet(ctx.out / "dropped.parquet", [asdict(d) for d in flow.dropped], columns=LEDGER_COLUMNS)
        _write_json(ctx.out / "stats.json", stats)
        _write_json(ctx.out / "contamination.json", contamination)
        about = "Curated by `aloe curate`: cleaned, deduplicated, decontaminated, templated and mixed."
        readme = card.dataset_card("Medical instruction dialogues", about, mixed, flow.stages)
        (ctx.out / "README.md").write_text(readme, encoding="utf-8")
        return {
            "rows": len(mixed), "rows_read": read, "by_source": stats["by_source"], "licence": stats["licence"],
            "licences": stats["licences"], "dropped": {k: s["dropped"] for k, s in flow.stages.items() if s["dropped"]},
            "contaminated": sum(d.stage == "decontaminate" for d in flow.dropped),
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------ stages

    def _load(self, ctx: Context) -> Flow:
        flow = Flow([])
        names = [source_name(source.rows) for source in self.sources]
        if len(set(names)) < len(names):
            raise AloeError("two sources have one name", where="sources", fix="name each source once, files apart")
        for rank, (source, name) in enumerate(zip(self.sources, names, strict=True)):
            if source.rows in self.decontaminate.against:
                raise AloeError(
                    f"{source.rows} is a source and a benchmark", where="decontaminate.against", fix="drop one of both"
                )
            licence = LICENCE if is_starter(source.rows) else None
            path = ctx.path(source.rows)
            records, dropped = load_rows(path, source=name, licence=licence, limit=source.limit, ids=source.ids)
            _refuse_other_kinds(records, source.rows)
            stated = ctx.licence_of(source.rows)  # of the file or set; what a row states itself comes first
            flow.items += [Item(self._placed(record, name, stated), name, rank) for record in records]
            flow.dropped += [replace(d, id=f"{name}:{d.id}") for d in dropped]
        unused = set(self.licences) - {i.record.source for i in flow.items} - set(names)
        if unused:
            raise AloeError(
                f"no source is called {sorted(unused)[0]!r}",
                where="licences",
                fix=f"use one of {', '.join(sorted({*names, *(i.record.source for i in flow.items)}))}",
            )
        read = len(flow.items) + len(flow.dropped)
        _account(ctx, flow, "load", read, Counter(d.reason for d in flow.dropped))
        return flow

    def _placed(self, record: Row, name: str, stated: str) -> Row:
        """Id made unique over sources, original id kept, licence override applied."""
        own = record.licence if record.licence != "unknown" else stated
        licence = self.licences.get(record.source) or self.licences.get(name) or own
        meta = {"original_id": record.id, **record.meta}
        return replace(record, id=f"{name}:{record.id}", licence=licence.lower(), meta=meta)

    def _deduplicate(self, ctx: Context, flow: Flow) -> Near:
        items, docs = flow.items, [dedup.document(i.record, i.rank) for i in flow.items]
        exact = {d.index: d for d in dedup.exact_duplicates(docs)}

        def exact_reason(n: int) -> tuple[str, str, dict[str, Any]] | None:
            if n not in exact:
                return None
            if exact[n].by == "conflict":
                other = items[exact[n].match].record.id
                return "contradicts_another_row", "same question, other gold answer", {"match": other}
            return "exact_duplicate", "", {"survivor": items[exact[n].survivor].record.id}

        _filter(ctx, flow, "exact_dedup", exact_reason)
        kept = flow.items
        near = dedup.near_duplicates(
            [docs[n] for n in range(len(docs)) if n not in exact], qa=self.dedup.qa, dialogue=self.dedup.dialogue
        )
        by_index = {d.index: d for d in near.duplicates}

        def near_reason(n: int) -> tuple[str, str, dict[str, Any]] | None:
            if (d := by_index.get(n)) is None:
                return None
            survivor, match = kept[d.survivor].record.id, kept[d.match].record.id
            evidence = {"survivor": survivor, "match": match, "jaccard": round(d.similarity, 4), "signature": d.by}
            return "near_duplicate", "", evidence

        _filter(ctx, flow, "near_dedup", near_reason)
        return near

    def _decontaminate(self, ctx: Context, flow: Flow) -> dict[str, Any]:
        benchmarks: dict[str, list[decontaminate.Item]] = {}
        unread: dict[str, int] = {}
        for ref in self.decontaminate.against:
            name = source_name(ref)
            records, dropped = load_rows(ctx.path(ref), source=name)
            _refuse_other_kinds(records, ref)
            benchmarks[name], unread[name] = [decontaminate.item(r) for r in records], len(dropped)
        rows = [decontaminate.item(i.record) for i in flow.items]
        report = decontaminate.contamination(rows, benchmarks, self.decontaminate.min_similarity)
        hits = [_hit_evidence(hit, rows, benchmarks) for hit in report.hits]
        worst: dict[int, dict[str, Any]] = {}
        for hit, evidence in zip(report.hits, hits, strict=True):
            if hit.row not in worst or evidence["similarity"] > worst[hit.row]["similarity"]:
                worst[hit.row] = evidence
        _filter(
            ctx, flow, "decontaminate",
            lambda n: ("contaminated", f"holds {worst[n]['benchmark']} {worst[n]['item_id']}", worst[n])
            if n in worst else None,
        )  # fmt: skip
        return {
            "settings": {
                **self.decontaminate.model_dump(), "ngram": [decontaminate.MIN_N, decontaminate.MAX_N],
                "other_answer_similarity": decontaminate.OTHER_ANSWER, "contained_share": decontaminate.CONTAINED,
            },
            "benchmarks": {n: {"items": len(v), "unreadable": unread[n]} for n, v in benchmarks.items()},
            "table": report.table,
            "flagged_items": {n: sorted({h["item_id"] for h in hits if h["benchmark"] == n}) for n in benchmarks},
            "hits": hits,
        }  # fmt: skip

    def _check_dropped(self, flow: Flow, read: int) -> None:
        reasons = Counter((d.stage, d.reason) for d in flow.dropped).most_common(3)
        top = "; ".join(
            f"{stage}: {count} {reason}, e.g. {_example(flow, reason)}" for (stage, reason), count in reasons
        )
        if not flow.items:
            raise AloeError(f"no row is left of {read} ({top})", where="sources", fix="check the sources it names")
        if len(flow.dropped) > self.max_dropped_share * read:
            raise AloeError(
                f"{len(flow.dropped)} of {read} rows dropped, over max_dropped_share {self.max_dropped_share}: {top}",
                where="sources",
                fix="mend the source, or raise max_dropped_share if these rows should go",
            )

    def _template(self, ctx: Context, flow: Flow) -> dict[str, list[Dialogue]]:
        groups: dict[str, list[Dialogue]] = {source_name(s.rows): [] for s in self.sources}
        for i in flow.items:
            groups[i.origin].append(templates.render(i.record, ctx.seed, self.explained_share))
        _account(ctx, flow, "template", len(flow.items), Counter())
        return groups

    def _mix(self, ctx: Context, flow: Flow, groups: dict[str, list[Dialogue]]) -> list[Dialogue]:
        weights = {source_name(s.rows): s.weight for s in self.sources if s.weight is not None}
        if weights and len(weights) < len(self.sources):
            missing = next(s.rows for s in self.sources if s.weight is None)
            raise AloeError(f"{missing} has no weight", where="sources", fix="give every source a weight, or none")
        for name in weights:
            if not groups[name]:
                raise AloeError(f"{name} has no row left to mix", where="sources", fix="see what its stages dropped")
        mixed = mix.mix(groups, weights or None, self.rows, ctx.seed)
        chosen = {row.id for row in mixed}
        _filter(ctx, flow, "mix", lambda n: None if flow.items[n].record.id in chosen else ("not_sampled", "", {}))
        return mixed


def _clean(ctx: Context, flow: Flow) -> dict[str, int]:
    """Clean every row in place of its old self; returns how often each change was made."""
    cleaned = [clean_record(i.record) for i in flow.items]
    changes = Counter(change for c in cleaned for change in c.changes)
    changes["answer_repaired"] = sum("repaired_answer" in i.record.meta for i in flow.items)
    _filter(ctx, flow, "clean", lambda n: (cleaned[n].reason or "", "", {}) if cleaned[n].record is None else None)
    records = [c.record for c in cleaned if c.record is not None]
    flow.items = [replace(i, record=record) for i, record in zip(flow.items, records, strict=True)]
    return dict(sorted(changes.items()))


Verdict = Callable[[int], tuple[str, str, dict[str, Any]] | None]  # index -> (reason, detail, evidence) or None


def _filter(ctx: Context, flow: Flow, stage: str, verdict: Verdict) -> None:
    """Drop the rows with a verdict, with their content (not for rows that were merely not sampled)."""
    kept: list[Item] = []
    reasons: Counter[str] = Counter()
    before = len(flow.items)
    for n, i in enumerate(flow.items):
        if (found := verdict(n)) is None:
            kept.append(i)
            continue
        reason, detail, evidence = found
        reasons[reason] += 1
        content = {} if stage == "mix" else i.record.to_dict()
        flow.dropped.append(Dropped(i.record.id, i.record.source, stage, reason, i.origin, detail, evidence, content))
    flow.items = kept
    _account(ctx, flow, stage, before, reasons)


def _account(ctx: Context, flow: Flow, stage: str, rows_in: int, reasons: Counter[str]) -> None:
    dropped = dict(sorted(reasons.items()))
    flow.stages[stage] = {
        "rows_in": rows_in, "kept": len(flow.items), "dropped": dropped,
        "by_source": dict(sorted(Counter(i.record.source for i in flow.items).items())),
    }  # fmt: skip
    ctx.ledger(stage, rows_in=rows_in, kept=len(flow.items), dropped=dropped)


def _refuse_other_kinds(records: Sequence[Row], ref: str) -> None:
    for record in records:
        if not isinstance(record, Question | Dialogue):
            raise AloeError(
                f"these are {record.kind} rows; curate takes questions and dialogues", where=ref, fix="name another set"
            )


def _hit_evidence(
    hit: decontaminate.Hit, rows: Sequence[decontaminate.Item], benchmarks: Mapping[str, Sequence[decontaminate.Item]]
) -> dict[str, Any]:
    row, other = rows[hit.row], benchmarks[hit.benchmark][hit.item]
    return {
        "row_id": row.id, "source": row.source, "benchmark": hit.benchmark, "item_id": other.id, "tier": hit.tier,
        "similarity": round(hit.similarity, 4), "row_text": row.question, "item_text": other.question,
    }  # fmt: skip


def _example(flow: Flow, reason: str) -> str:
    found = next(d for d in flow.dropped if d.reason == reason)
    return f"{found.id} ({found.where})" if found.where else found.id


def _statistics(rows: Sequence[Dialogue], flow: Flow, changes: Mapping[str, int], near: Near) -> dict[str, Any]:
    by_source = dict(sorted(Counter(r.source for r in rows).items()))
    texts = {
        role: [m["content"] for r in rows for m in r.messages if m["role"] == role] for role in ("user", "assistant")
    }
    return {
        "rows": len(rows), "stages": flow.stages, "by_source": by_source,
        "shares": {source: round(count / len(rows), 6) for source, count in by_source.items()},
        "tasks": dict(sorted(Counter(r.meta["task"] for r in rows).items())),
        "templates": dict(sorted(Counter(r.meta["template"] for r in rows).items())),
        "licences": dict(sorted(Counter(r.licence for r in rows).items())),
        "licences_by_source": card.licences_by_source(rows),
        "licence": card.strictest([r.licence for r in rows]),
        "changes": dict(changes), "words": {role: card.lengths(found) for role, found in texts.items()},
        "dedup": {**near.scheme, "candidate_pairs": near.candidates, "confirmed_pairs": near.confirmed},
    }  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")
