"""The stages of curation, in order: each takes a view of the rows and decides. `curate` chains them, and
`aloe curate --only STAGE` runs one.

Personal data comes right after cleaning and not late, so that no scorer, judge or ledger of a later stage sees what
was to be redacted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from aloe.data import dedup, diversity, mix, phi, quality, semantic, templates
from aloe.data.clean import clean_record
from aloe.data.curation_record import Measure, score_histogram
from aloe.data.flow import Outcome, Stage, StageOut, alone, rewritten, shown_text, spread
from aloe.data.settings import Dedup, Diversity, Phi, Quality
from aloe.data.sources import Dropped
from aloe.data.spool import Item, Mapped, View
from aloe.errors import AloeError
from aloe.records import Dialogue, Question

CLUSTERS_SHOWN, MEMBERS_SHOWN, TEXT_SHOWN = 10, 5, 400
TOOK = (Question, Dialogue)
NAMES = {"id", "original_id", "source", "licence", "task", "template", "form", "row_id", "item_id", "benchmark"}


# ---------------------------------------------------------------------------------------------- load


def load(inputs: Callable[[], Any], settings: Any) -> Stage:
    """Rows and misfits of every source. `inputs` yields (rank, origin, record or Dropped, place it came from)."""

    def run(_: None, out: StageOut) -> None:
        measure = Measure()
        repaired = 0
        for rank, origin, row, ref in inputs():
            if isinstance(row, Dropped):
                out.refuse(row)
                continue
            if not isinstance(row, TOOK):
                raise AloeError(
                    f"these are {row.kind} rows; curate takes questions and dialogues",
                    where=ref,
                    fix="name another set",
                )
            repaired += "repaired_answer" in row.meta
            measure.add(row)
            out.put(Item(row, origin, rank))
        out.facts |= {"measure": measure.to_dict(), "answer_repaired": repaired}

    return Stage("load", settings, run)


# ---------------------------------------------------------------------------------------------- row by row


def _cleaned(item: Item) -> Outcome:
    cleaned = clean_record(item.record)
    return Outcome(cleaned.record, cleaned.reason or "", note=cleaned.changes)


def clean() -> Stage:
    """Repair text, drop junk."""

    def run(view: View, out: StageOut) -> None:
        changes: Counter[str] = Counter()
        for _, found in rewritten(_cleaned, view, out):
            changes.update(found)
        out.facts["changes"] = dict(sorted(changes.items()))

    return Stage("clean", {}, run)


def _identified(item: Item, kinds: tuple[str, ...], allow: tuple[str, ...], mode: str) -> Outcome:
    """What is to become of the row, and how many identifiers of each kind it holds."""
    found = phi.find_in_record(item.record, kinds, allow)
    counted = Counter(f.kind for findings in found.values() for f in findings)
    counts = dict(sorted(counted.items()))
    record = item.record
    if mode == "drop" and counts:
        return Outcome(None, "personal_data", ", ".join(counts), {"found": counts}, counts)
    if mode == "redact":
        record = phi.redact_record(record, found)
        meta = _hidden(record.meta, kinds, allow)
        record = replace(record, meta={**meta, "redacted": counts} if counts else meta)
    return Outcome(record, note=counts)


def _hidden(value: Any, kinds: tuple[str, ...], allow: tuple[str, ...]) -> Any:
    """Any JSON-able value with its texts redacted; ids and names of ours are no text."""
    if isinstance(value, str):
        return phi.redact(value, phi.find(value, kinds, allow))
    if isinstance(value, Mapping):
        return {k: v if k in NAMES else _hidden(v, kinds, allow) for k, v in value.items()}
    return [_hidden(v, kinds, allow) for v in value] if isinstance(value, list | tuple) else value


def hider(settings: Phi) -> Callable[[Any], Any] | None:
    """What hides personal data in ledgers and examples, None where the mode leaves rows as they are."""
    if settings.mode in ("off", "report"):
        return None
    return partial(_hidden, kinds=tuple(settings.kinds or phi.KINDS), allow=tuple(settings.allow))


def personal(settings: Phi) -> Stage:
    """Count, redact or drop personal health information."""
    kinds, allow = tuple(settings.kinds or phi.KINDS), tuple(settings.allow)
    every = (*phi.KINDS, *phi.EXTRA_KINDS)
    if unknown := set(kinds) - set(every):
        raise AloeError(
            f"no kind of personal data is called {sorted(unknown)[0]!r}",
            where="phi.kinds",
            fix=f"use some of {', '.join(every)}",
        )

    def run(view: View, out: StageOut) -> None:
        by_kind: Counter[str] = Counter()
        by_source: dict[str, Counter[str]] = {}
        rows = 0
        find = partial(_identified, kinds=kinds, allow=allow, mode=settings.mode)
        for source, counts in rewritten(find, view, out, changes=settings.mode == "redact", content=False):
            rows += 1
            by_kind.update(counts)
            by_source.setdefault(source, Counter()).update(counts)
        out.facts |= {
            "mode": settings.mode, "rows_with": rows, "by_kind": dict(sorted(by_kind.items())),
            "by_source": {s: dict(sorted(c.items())) for s, c in sorted(by_source.items())},
        }  # fmt: skip

    return Stage("phi", {**settings.model_dump(), "kinds": kinds}, run, hides=settings.mode == "redact")


# ---------------------------------------------------------------------------------------------- duplicates


def _documents(view: View) -> Mapped[dedup.Document]:
    return Mapped(view, _document)


def _document(item: Item) -> dedup.Document:
    return dedup.document(item.record, item.rank)


def _exact_digests(items: list[Item]) -> bytes:
    return b"".join(dedup.exact_digest(_document(item)) for item in items)


def _signed(items: list[Item], qa: float, dialogue: float) -> dedup.SignedRows:
    return dedup.sign_rows([_document(item) for item in items], qa, dialogue)


def exact() -> Stage:
    """Rows whose normalised text another row has; both, where their gold answers contradict."""

    def run(view: View, out: StageOut) -> None:
        for d in dedup.exact_duplicates(_documents(view), spread(_exact_digests, view)):
            other = view.id_of(d.match)
            if d.by == "conflict":
                out.drop(d.index, view[d.index], "contradicts_another_row", "same question, other gold answer",
                         {"match": other})  # fmt: skip
            else:
                out.drop(d.index, view[d.index], "exact_duplicate", "", {"survivor": view.id_of(d.survivor)})

    return Stage("exact_dedup", {}, run)


def near(settings: Dedup, encoder: Callable[[str], Any]) -> Stage:
    """Near-duplicates by MinHash and true Jaccard; by meaning too, where that is asked for."""

    def run(view: View, out: StageOut) -> None:
        docs = _documents(view)
        qa, dialogue = settings.qa, settings.dialogue
        signed = None if alone(view) else spread(partial(_signed, qa=qa, dialogue=dialogue), view)
        found = dedup.near_duplicates(docs, qa=qa, dialogue=dialogue, scratch=out.scratch, known=signed)
        drops = {d.index: ("near_duplicate", d) for d in found.duplicates}
        out.facts["scheme"] = {
            **found.scheme, "candidate_pairs": found.candidates, "confirmed_pairs": found.confirmed,
            "large_buckets": found.large_buckets,
        }  # fmt: skip
        if settings.semantic is not None:
            left = np.array([n for n in range(len(view)) if n not in drops], dtype=np.int64)
            part = view.only(left)
            vectors = _vectors(encoder(settings.semantic.embedder), part)
            meant = semantic.semantic_duplicates(vectors, _documents(part), settings.semantic.threshold)
            out.facts["semantic"] = meant.scheme
            for d in meant.duplicates:
                moved = replace(d, index=int(left[d.index]), survivor=int(left[d.survivor]), match=int(left[d.match]))
                drops[moved.index] = ("semantic_duplicate", moved)
        for n in sorted(drops):
            reason, d = drops[n]
            measure = "jaccard" if reason == "near_duplicate" else "cosine"
            evidence = {
                "survivor": view.id_of(d.survivor), "match": view.id_of(d.match),
                measure: round(d.similarity, 4), "signature": d.by,
            }  # fmt: skip
            out.drop(n, view[n], reason, "", evidence)
        out.facts["clusters"] = _clusters([d for _, d in drops.values()], view)

    embedder = encoder(settings.semantic.embedder).digest if settings.semantic is not None else None
    return Stage("near_dedup", [settings.model_dump(), embedder], run)


def _clusters(duplicates: Sequence[dedup.Duplicate], view: View) -> dict[str, Any]:
    """Clusters by size, and the largest with some of their members."""
    found = dedup.clusters(duplicates)

    def shown(n: int) -> dict[str, Any]:
        return {"id": view[n].record.id, "text": shown_text(view[n].record)[:TEXT_SHOWN]}

    return {
        "count": len(found), "rows": sum(c.size for c in found),
        "sizes": {str(size): n for size, n in dedup.cluster_sizes(found).items()},
        "largest": [
            {
                "survivor": shown(c.survivor)["id"], "text": shown(c.survivor)["text"], "size": c.size,
                "members": [
                    {**shown(d.index), "similarity": round(d.similarity, 4)}
                    for d in sorted(c.members, key=lambda d: (-d.similarity, d.index))[:MEMBERS_SHOWN]
                ],
            }
            for c in found[:CLUSTERS_SHOWN]
        ],
    }  # fmt: skip


def _vectors(encoder: Any, view: View) -> np.ndarray[Any, Any]:
    """Embeddings of what the rows ask, float32 of shape (rows, dimension), a batch of texts in memory at a time."""
    parts = [encoder.encode([_asked_text(i) for i in batch]) for batch in view.batches()]
    return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)


def _asked_text(item: Item) -> str:
    record = item.record
    if isinstance(record, Question):
        return " ".join((record.question, *(record.options[k] for k in sorted(record.options))))
    assert isinstance(record, Dialogue)
    return next(m["content"] for m in record.messages if m["role"] == "user")


# ---------------------------------------------------------------------------------------------- quality, diversity


def _scores(items: list[Item], scorer: quality.Scorer) -> list[quality.Scored]:
    return scorer.score([item.record for item in items])


def scored(settings: Quality, scorer: quality.Scorer) -> Stage:
    """Drop what can't be scored and the lowest share of the rest."""

    def run(view: View, out: StageOut) -> None:
        scores: list[float | None] = []
        whys: dict[int, str] = {}
        pure = getattr(scorer, "pure", False)  # by code alone: any process may score
        look = partial(_scores, scorer=scorer)
        for some in spread(look, view) if pure else map(look, view.batches()):
            for found in some:
                if found.score is None:
                    whys[len(scores)] = found.why
                scores.append(found.score)
        ids, sources = view.column("id"), view.column("source")
        groups: dict[str, list[int]] = {}
        for n, source in enumerate(sources):
            groups.setdefault(source if settings.within == "source" else "", []).append(n)
        unscored, lowest = set[int](), set[int]()
        for places in groups.values():
            none, low = quality.bottom([scores[n] for n in places], [ids[n] for n in places], settings.drop_share)
            unscored |= {places[k] for k in none}
            lowest |= {places[k] for k in low}
        gone = unscored | lowest
        for n in sorted(gone):
            if n in unscored:
                out.drop(n, view[n], "unscored", whys.get(n, "not a number"))
            else:
                out.drop(n, view[n], "low_quality", "", {"score": round(float(scores[n] or 0.0), 6)})
        kept = [s for n, s in enumerate(scores) if s is not None and n not in gone]
        by_source: dict[str, list[float]] = {}
        for source, score in zip(sources, scores, strict=True):
            if score is not None:
                by_source.setdefault(source, []).append(score)
        out.facts |= {
            "scorer": scorer.name, "digest": scorer.digest, "drop_share": settings.drop_share,
            "threshold": round(min(kept), 6) if kept and settings.within == "all" else None,
            "unscored": len(unscored),
            "unscored_because": dict(sorted(Counter(w.split(":")[0] for w in whys.values()).items())),
            "histogram": score_histogram([s for s in scores if s is not None]),
            "by_source": {
                s: {"mean": round(float(np.mean(v)), 4), "median": round(float(np.median(v)), 4)}
                for s, v in sorted(by_source.items())
            },
            "scores": [None if s is None else round(s, 6) for n, s in enumerate(scores) if n not in gone],
        }  # fmt: skip

    return Stage("quality", {**settings.model_dump(), "scorer_digest": scorer.digest}, run)


def diverse(settings: Diversity, encoder: Callable[[str], Any], scores: Callable[[], Sequence[float] | None]) -> Stage:
    """Keep a row only when no better row that is kept resembles it."""

    def run(view: View, out: StageOut) -> None:
        vectors = _vectors(encoder(settings.embedder), view)
        ids, places, known = view.column("id"), view.column("rank"), scores()
        score = known if known is not None else [0.0] * len(ids)
        order = sorted(
            range(len(ids)), key=lambda n: (-score[n], places[n], ids[n])
        )  # then by source, as they are named
        found = diversity.diverse(vectors, order, settings.max_similarity)
        for n, match, similarity in sorted(found.dropped):
            evidence = {"match": ids[match], "cosine": round(float(similarity), 4)}
            out.drop(n, view[n], "too_similar", "", evidence)
        out.facts |= {"max_similarity": settings.max_similarity, "dropped": len(found.dropped)}

    return Stage("diversity", [settings.model_dump(), encoder(settings.embedder).digest], run)


# ---------------------------------------------------------------------------------------------- form and mix


def _rendered(item: Item, seed: int, explained_share: float) -> Outcome:
    return Outcome(templates.render(item.record, seed, explained_share))


def template(seed: int, explained_share: float) -> Stage:
    """Rows become dialogues, by a drawn template."""

    def run(view: View, out: StageOut) -> None:
        render = partial(_rendered, seed=seed, explained_share=explained_share)
        list(rewritten(render, view, out))

    return Stage("template", [seed, explained_share], run)


def mixed(weights: Mapping[str, float] | None, names: Sequence[str], rows: int | None, seed: int) -> Stage:
    """Draw by weight, in keyed random order."""

    def run(view: View, out: StageOut) -> None:
        ids, origins = view.column("id"), view.column("origin")
        groups: dict[str, list[int]] = {name: [] for name in names}
        for place, origin in enumerate(origins):
            groups[origin].append(place)
        for name in weights or ():
            if not groups[name]:
                raise AloeError(f"{name} has no row left to mix", where="sources", fix="see what its stages dropped")
        chosen = mix.choose({n: [ids[p] for p in places] for n, places in groups.items()}, weights, rows, seed)
        order = [groups[name][k] for name, k in chosen]
        out.arrange(order)
        taken = set(order)
        for place in range(len(view)):
            if place not in taken:
                out.drop(place, view[place], "not_sampled", content=False)

    return Stage("mix", [weights, list(names), rows, seed], run)
