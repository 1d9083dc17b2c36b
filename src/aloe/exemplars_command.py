"""`aloe exemplars build|show|merge`: exemplar stores, folders of worked questions with their embeddings."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.terminal import json_text

if TYPE_CHECKING:
    from aloe.prompting.exemplars import Exemplar, ExemplarStore
    from aloe.records import Question, Row

LISTED = 20  # overlaps that are printed; all are in dropped.parquet
Drop = dict[str, str]  # id, reason, evidence

Embedder = Annotated[
    str,
    typer.Option(help="packaged (MiniLM), tfidf, or a folder: sentence-transformers, or any Hugging Face encoder."),
]
Pooling = Annotated[
    str | None, typer.Option(help="Of a plain encoder folder: mean (default) or cls, the first token's state.")
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens that a plain encoder reads of a question.")]


def build(
    rows: str,
    out: Path,
    embedder: Embedder = "packaged",
    pooling: Pooling = None,
    max_length: MaxLength = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep rows whose field is so: split=train. May be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Benchmark rows: exemplars that are one of its questions, or nearly, are left out."),
    ] = None,
) -> None:
    """Build an exemplar store from rows.

    ROWS is a file, a starter set or an artifact of multiple-choice questions with explanations (what `synthesize`
    writes, too). Rows whose reasoning contradicts the label are left out, with the reason in OUT/dropped.parquet.
    """
    from aloe.generate.encoders import TFIDF
    from aloe.prompting.exemplars import ExemplarStore, exemplars_of
    from aloe.prompting.store_files import refuse_existing, write_store

    refuse_existing(out)
    guards = [Guard(ref, questions_of(ref)) for ref in exclude or []]
    encoder = None if embedder == TFIDF and not (pooling or max_length) else opened(embedder, pooling, max_length)
    questions, dropped = chosen(rows, where or [])
    exemplars, refused = exemplars_of(questions)
    dropped += refused
    if not exemplars:
        counts = Counter(drop["reason"] for drop in dropped)
        told = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise AloeError(f"none of the rows can be an exemplar ({told})", where=rows, fix="name rows with explanations")
    print(f"embedding {len(exemplars)} questions with {embedder}", file=sys.stderr)
    store, overlaps = guarded(ExemplarStore(exemplars, encoder or fitted(exemplars)), guards, refit=encoder is None)
    dropped += overlaps
    record = write_store(
        out, store, encoder_name=embedder, dropped=dropped, made_from=[rows],
        excluded=[guard.record() for guard in guards],
    )  # fmt: skip
    for reason, count in record.dropped.items():
        print(f"left out: {count} {reason}", file=sys.stderr)
    print(f"{out}: {record.count} exemplars, digest {record.digest}")


def opened(embedder: str, pooling: str | None, max_length: int | None) -> Any:
    """The encoder that the options name."""
    from aloe.generate.encoders import open_encoder

    if pooling not in (None, "mean", "cls"):
        raise AloeError(f"no pooling {pooling!r}", where="--pooling", fix="use mean or cls")
    return open_encoder(embedder, pooling=pooling, max_length=max_length)  # type: ignore[arg-type]


def fitted(exemplars: Sequence[Exemplar]) -> Any:
    """TF-IDF of the stems that a store holds."""
    from aloe.generate.encoders import TfidfEncoder

    return TfidfEncoder.fit([e.question.question for e in exemplars])


def guarded(store: ExemplarStore, guards: Sequence[Guard], refit: bool) -> tuple[ExemplarStore, list[Drop]]:
    """The store without what overlaps a benchmark, and what that was, one entry per exemplar. `refit`: TF-IDF takes its
    vocabulary and frequencies anew, from what is kept and nothing else."""
    from aloe.prompting.exemplars import ExemplarStore

    overlaps = {drop["id"]: drop for guard in guards for drop in guard.overlaps(store)}
    if not overlaps:
        return store, []
    _print_overlaps(list(overlaps.values()))
    kept = [i for i in range(len(store)) if store.ids[i] not in overlaps]
    left = [store.exemplars[i] for i in kept]
    if refit and left:
        return ExemplarStore(left, fitted(left)), list(overlaps.values())
    return ExemplarStore(left, store.encoder, vectors=store.vectors[kept]), list(overlaps.values())


@dataclass
class Guard:
    """A benchmark that no exemplar may show an item of."""

    rows: str
    questions: Sequence[Question]
    left_out: set[str] = field(default_factory=set)

    def overlaps(self, store: ExemplarStore) -> list[Drop]:
        """Exemplars that are one of its questions, or nearly."""
        found = []
        for i, (asked, cosine) in sorted(store.leaks(self.questions).items()):
            self.left_out.add(i)
            found.append({"id": i, "reason": "overlaps a benchmark", "evidence": f"{self.rows} {asked}: {cosine:.3f}"})
        return found

    def record(self) -> dict[str, Any]:
        """The entry of the manifest."""
        from aloe.digests import digest_json

        digest = digest_json(sorted((q.id, q.question) for q in self.questions))
        return {"rows": self.rows, "digest": digest, "questions": len(self.questions), "left_out": len(self.left_out)}


def _print_overlaps(overlaps: Sequence[Drop]) -> None:
    for drop in overlaps[:LISTED]:
        print(f"overlap: {drop['id']} with {drop['evidence']}", file=sys.stderr)
    if len(overlaps) > LISTED:
        print(f"overlap: {len(overlaps) - LISTED} more, all in dropped.parquet", file=sys.stderr)


def path_of(ref: str) -> Path:
    """The place of a starter set, a file or a folder; of `synthesize` the validated solutions."""
    from aloe.data.starter import is_starter, starter_path

    path = starter_path(ref) if is_starter(ref) else Path(ref)
    if not path.exists():
        raise AloeError("no such rows", where=ref, fix="name a file, a folder of rows or starter/<name>")
    return path / "exemplars.parquet" if (path / "exemplars.parquet").is_file() else path


def questions_of(ref: str) -> list[Question]:
    """The multiple-choice questions of rows."""
    from aloe.data.sources import load_questions, source_name

    return load_questions(path_of(ref), source=source_name(ref), strict=False)


def chosen(ref: str, where: Sequence[str]) -> tuple[list[Question], list[Drop]]:
    """The questions of rows that meet every condition, and what was left out."""
    from aloe.data.sources import load_rows, source_name
    from aloe.data.starter import LICENCE, is_starter
    from aloe.evaluate.step import reasoned

    conditions = [_condition(text) for text in where]
    records, misfits = load_rows(path_of(ref), source=source_name(ref), licence=LICENCE if is_starter(ref) else None)
    dropped = [{"id": d.id, "reason": d.reason, "evidence": d.detail} for d in misfits]
    questions, seen = [], {key: Counter[str]() for key, _ in conditions}
    for record in records:
        question = reasoned(record)
        if question is None:
            dropped.append({"id": record.id, "reason": "no multiple-choice question", "evidence": record.kind})
            continue
        values = {key: _value(key, question, record) for key, _ in conditions}
        for key, value in values.items():
            seen[key][value] += 1
        unmet = next((f"{key}={value}" for key, value in conditions if values[key] != value), None)
        if unmet is None:
            questions.append(question)
        else:
            dropped.append({"id": question.id, "reason": f"not {unmet}", "evidence": ""})
    for key, value in conditions:
        if seen[key] and value not in seen[key]:
            there = ", ".join(f"{v or '(none)'} ({n})" for v, n in seen[key].most_common(8))
            raise AloeError(f"no row has {key}={value}", where=ref, fix=f"its values of {key}: {there}")
    return questions, dropped


def _condition(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise AloeError(f"{text!r} is no condition", where="--where", fix="write field=value, for example split=train")
    return key, value


def _value(key: str, question: Question, record: Row) -> str:
    """A row's value of a field: of its own, or of what it keeps in `meta`."""
    if key in ("id", "source", "licence", "answer"):
        return str(getattr(question, key))
    return str(question.meta.get(key, record.meta.get(key, "")))


def show(
    store: Path,
    near: Annotated[str | None, typer.Option(help="A question: print its nearest exemplars.")] = None,
    shots: Annotated[int, typer.Option(min=1, help="How many of them.")] = 5,
    full: Annotated[bool, typer.Option("--full", help="The whole manifest as JSON.")] = False,
) -> None:
    """Show what a store holds, or its neighbours of a text."""
    from aloe.prompting.store_files import read_record

    record = read_record(store)
    if full:
        print(json_text(vars(record), indent=1))
        return
    if near is not None:
        _print_near(store, near, shots)
        return
    encoder = record.encoder
    settings = "".join(f", {key} {encoder[key]}" for key in ("pooling", "max_length") if key in encoder)
    print(f"{record.count} exemplars from {', '.join(record.made_from)}, digest {record.digest}")
    print(f"encoder   {encoder['name']} ({encoder['kind']}{settings}), digest {encoder['digest']}")
    print(f"prompt    {record.prompt['name']}, digest {record.prompt['digest']}")
    for title, counts in (("sources", record.sources), ("licences", record.licences), ("left out", record.dropped)):
        print(f"{title:<9} {', '.join(f'{name} {count}' for name, count in counts.items()) or 'none'}")
    for entry in record.excluded:
        only = f" (only {entry['only']} was checked)" if "only" in entry else ""
        print(f"excludes  {entry['rows']}: {entry['questions']} questions, {entry['left_out']} overlapped{only}")


def _print_near(folder: Path, text: str, shots: int) -> None:
    from aloe.prompting.store_files import open_store
    from aloe.records import Question

    store = open_store(folder)
    asked = Question(id="near", source="", licence="", question=text, options={"A": "", "B": ""}, answer="A")
    for shot in reversed(store.nearest([asked], min(shots, len(store)))[0]):
        stem = " ".join(shot.exemplar.question.question.split())
        short = stem if len(stem) <= 80 else stem[:79] + "…"
        print(f"{shot.similarity:.3f}  {shot.exemplar.question.id}  {short}")


def merge(first: Path, second: Path, out: Path) -> None:
    """Merge two exemplar stores into a third.

    Both must have the same encoder (two of TF-IDF are fitted anew); an exemplar that both have enters once.
    """
    from aloe.prompting.store_files import merge_stores

    record = merge_stores(first, second, out)
    print(f"{out}: {record.count} exemplars, digest {record.digest}")
