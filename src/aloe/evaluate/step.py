"""`evaluate`: score models on benchmarks. One model is loaded at a time and answers everything before the next one.

Writes `items.parquet` (one row per item x model x protocol: the source of truth), `scores.json` (what
`aloe.evaluate.table` reads), `protocols.json` (digest -> protocol) and `comparisons.json` (each model against the one
before it, item by item, under the same protocol only).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from aloe.contract import Context, Kind, ModelRef, Ref, RowsRef, Step
from aloe.data.sources import load_rows, question_of, source_name
from aloe.digests import digest_json
from aloe.evaluate import likelihood
from aloe.evaluate.benchmarks import BenchmarkSpec
from aloe.evaluate.checks import check_exemplars
from aloe.evaluate.compare import neighbours
from aloe.evaluate.contamination import Flags, flagged_line, read_flags, split_scores
from aloe.evaluate.gather import Gathered, gather
from aloe.evaluate.lost import refuse_lost, ticking
from aloe.evaluate.measured import Asked, Measured, base_protocol, refuse_nan
from aloe.evaluate.measures import MEASURES
from aloe.evaluate.registry import load_aggregate
from aloe.evaluate.runs import WAYS
from aloe.evaluate.suites import members, suites
from aloe.generate.encoders import open_encoder
from aloe.generate.engine import Engine, ScoreRequest
from aloe.generate.rerank import CrossEncoderReranker
from aloe.prompting.exemplars import STATED, ExemplarStore, exemplars_of
from aloe.prompting.extract import extract
from aloe.prompting.store_files import is_store, open_store
from aloe.records import Dialogue, ItemResult, Question, Row
from aloe.rows import write_parquet, write_records
from aloe.schema import mark

FlagsRef = Annotated[str, Ref(("questions", "dialogues"), "rows")]
RerankerRef = Annotated[str, Ref(("model",), "rows")]  # the folder of a cross-encoder
SUMMARY = ("model", "benchmark", "metric", "strategy", "value", "low", "high", "n", "parse_rate")


class Evaluate(Step):
    """Scores with intervals, parse rates and paired comparisons."""

    verb: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 3
    makes: ClassVar[Kind] = "scores"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    models: list[ModelRef] = Field(min_length=1)  # in the order of the table; neighbours are compared
    benchmarks: dict[str, BenchmarkSpec] = Field(min_length=1)  # name in the table -> what is asked and how
    exemplars: RowsRef | None = None  # worked questions that few_shot, knn_few_shot and medprompt show
    encoder: Literal["packaged", "tfidf"] = "packaged"  # of the exemplars' questions; a store brings its own
    reranker: RerankerRef | None = None  # a cross-encoder that puts the nearest exemplars in order
    aggregates: list[str] = Field(default_factory=list)  # scores over several benchmarks: multimedqa, or YAML files
    contamination: FlagsRef | None = None  # flagged items: what `curate` found, or a list of ids

    @model_validator(mode="after")
    def _fits_together(self) -> Evaluate:
        if len(set(self.models)) < len(self.models):
            raise ValueError("a model is named twice in `models`")
        for name, spec in self.benchmarks.items():
            if spec.needs_exemplars() and self.exemplars is None:
                raise ValueError(f"benchmark {name!r} uses a strategy that shows exemplars: name a file in `exemplars`")
        for name in self.aggregates:
            members(load_aggregate(name), self._files())
        if self.reranker is not None and not any(spec.needs_exemplars() for spec in self.benchmarks.values()):
            raise ValueError("`reranker` orders exemplars, and no benchmark shows any: leave it out")
        return self

    def _files(self) -> dict[str, str | None]:
        """Each benchmark's name in the table -> the name of its file."""
        return {name: spec.file.name if spec.file else None for name, spec in self.benchmarks.items()}

    def run(self, ctx: Context) -> dict[str, Any]:
        dropped: list[dict[str, str]] = []
        # Everything that can be wrong with rows is found before the first model is loaded.
        asked = {name: gather(ctx, name, spec) for name, spec in self.benchmarks.items()}
        for name, one in asked.items():
            _ledger(ctx, f"benchmark {name}", len(one.rows), one.dropped, dropped)
        flags = read_flags(ctx.path(self.contamination), self.contamination) if self.contamination else None
        store, overlaps = None, {}
        if any(spec.needs_exemplars() for spec in self.benchmarks.values()):
            store = self._store(ctx, dropped)
            rows = {name: one.rows for name, one in asked.items()}
            overlaps = check_exemplars(store, self.benchmarks, rows, str(self.exemplars))
        for name, overlap in overlaps.items():
            if overlap.items:
                ctx.log(f"{name}: {overlap.items} items stand among the exemplars, which are kept from them")
        found: dict[str, list[Measured]] = {}
        records: list[dict[str, Any]] = []
        for model in self.models:
            engine = ctx.engine(model)
            probe(engine, model)
            found[model] = [
                measured
                for name, spec in self.benchmarks.items()
                for measured in self._measure(ctx, engine, model, name, spec, asked[name], store)
            ]
            if flags is not None:
                self._split(ctx, model, found[model], flags)
            mine = [score for measured in found[model] for score in measured.scores]
            for name in self.aggregates:
                file = load_aggregate(name)
                mine += suites(file, members(file, self._files()), found[model])
            for score in mine:
                score |= {"model": model, "model_digest": engine.model_digest}
            records += mine
        comparisons = neighbours(found)
        _write(ctx, [*self.benchmarks, *map(_aggregate_name, self.aggregates)], found, records, comparisons, dropped)
        return {
            "models": self.models,
            "benchmarks": list(self.benchmarks),
            "items": sum(len(m.items) for each in found.values() for m in each),
            "errored": sum(i.outcome == "errored" for each in found.values() for m in each for i in m.items),
            "scores": [{k: s[k] for k in SUMMARY} for s in records],
            "comparisons": len(comparisons),
            "exemplar_overlap": {name: {"items": o.items, "exemplars": o.exemplars} for name, o in overlaps.items()},
        }

    def _split(self, ctx: Context, model: str, found: Sequence[Measured], flags: Flags) -> None:
        """Put the scores on flagged and unflagged items beside each benchmark's own score."""
        for measured in found:
            name = measured.items[0].benchmark
            spec = self.benchmarks[name]
            ids = flags.of(name, *([spec.file.name] if spec.file else []), source_name(spec.data))
            for score in measured.scores:
                if score["metric"] != measured.items[0].metric:
                    continue
                if ids is None:
                    score["extra"]["contamination"] = {"looked_for": False}
                    continue
                score["extra"]["contamination"] = {"looked_for": True, **split_scores(measured.items, ids)}
                ctx.log(f"{model}, {name}: {flagged_line(score['extra']['contamination'])}")

    def _store(self, ctx: Context, dropped: list[dict[str, str]]) -> ExemplarStore:
        assert self.exemplars is not None  # the validator saw to it
        folder = ctx.path(self.exemplars)
        ranker = CrossEncoderReranker(ctx.path(self.reranker)) if self.reranker is not None else None
        if is_store(folder):
            store = open_store(folder, reranker=ranker, say=ctx.log)
            _ledger(ctx, "exemplars", len(store.exemplars), [], dropped)
            return store
        written = folder / "exemplars.parquet"  # of `synthesize`: validated solutions, not the reference explanations
        records, misfits = load_rows(written if written.is_file() else folder, source=self.exemplars)
        out = [{"id": d.id, "reason": d.reason, "evidence": d.detail} for d in misfits]
        questions = []
        for record in records:
            question = reasoned(record)
            if question is None:
                out.append({"id": record.id, "reason": "no multiple-choice question", "evidence": record.kind})
            else:
                questions.append(question)
        exemplars, refused = exemplars_of(questions)
        _ledger(ctx, "exemplars", len(exemplars), out + refused, dropped)
        stems = [e.question.question for e in exemplars]
        return ExemplarStore(exemplars, open_encoder(self.encoder, fit=stems), reranker=ranker)

    def _measure(
        self, ctx: Context, engine: Engine, model: str, name: str, spec: BenchmarkSpec, asked: Gathered,
        store: ExemplarStore | None,
    ) -> list[Measured]:  # fmt: skip
        rows, file = asked.rows, spec.file
        about = {"name": file.name, "version": file.version, "digest": file.digest} if file else None
        base = base_protocol(spec.protocol, engine, rows, ctx.digest(spec.data), ctx.seed, about)
        if spec.shots_from is not None:
            base["shots_from_digest"] = ctx.digest(spec.shots_from)
        way = WAYS[spec.protocol]
        with ticking(ctx, f"{model}: {name}", way.count(spec, rows, ctx.seed), way.unit) as tick:
            found = way.run(Asked(engine, name, model, spec, rows, base, store, tick, asked.shown, asked.classifier))
        refuse_lost(found, name, model)
        by_id = {row.id: row for row in rows}
        for measured in found:
            for metric in spec.metrics or ():
                measured.scores.extend(MEASURES[metric](name, measured.protocol, measured.items, by_id))
        ctx.count_tokens(
            prompt=sum(i.prompt_tokens for m in found for i in m.items),
            completion=sum(i.completion_tokens for m in found for i in m.items),
        )
        return found


def probe(engine: Engine, model: str) -> None:
    """Score four letters once, so that a checkpoint with NaN weights costs one forward pass and not an evaluation.

    A server isn't probed: its weights are not ours to judge, and it may state no log-probabilities at all.
    """
    if hasattr(getattr(engine, "engine", engine), "spec"):  # a ServerEngine, behind its ledger
        return
    asked = ScoreRequest(
        key="probe",
        messages=({"role": "user", "content": "Which letter comes first?\n\nA. A\nB. B\nC. C\nD. D"},),
        continuations=(" A", " B", " C", " D"),
        prefill="Answer:",
    )
    refuse_nan(likelihood.finite(engine.loglikelihood([asked])), model)


def reasoned(record: Row) -> Question | None:
    """The question a row is or was made from, with the reasoning to show as its explanation.

    A dialogue's last assistant turn is taken where it is longer than the question's own explanation and states the
    gold answer; None for a row without a multiple-choice question.
    """
    question = question_of(record)
    if question is None or not isinstance(record, Dialogue):
        return question
    told = next(m["content"] for m in reversed(record.messages) if m["role"] == "assistant")
    found = extract(told, question.options)
    better = found.letter == question.answer and found.rule in STATED and len(told) > len(question.explanation)
    return replace(question, explanation=told) if better else question


def _ledger(ctx: Context, stage: str, kept: int, out: list[dict[str, str]], dropped: list[dict[str, str]]) -> None:
    reasons = [row["reason"] for row in out]
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    ctx.ledger(stage, rows_in=kept + len(out), kept=kept, dropped=counts)
    dropped += [{"stage": stage, **row} for row in out]


def item_values(items: Sequence[ItemResult], metric: str) -> dict[str, float]:
    """Item -> its value of a metric; items without one (errored) are left out."""
    found: dict[str, float] = {}
    for item in items:
        if item.value is None:
            continue
        if metric == item.metric:
            found[item.item] = item.value
        elif metric == "text_accuracy":
            found[item.item] = float(item.meta["text_letter"] == item.gold)
        else:
            found[item.item] = float(item.meta[metric])
    return found


def _aggregate_name(ref: str) -> str:
    return load_aggregate(ref).name


def _write(
    ctx: Context, benchmarks: Sequence[str], found: Mapping[str, Sequence[Measured]], scores: list[dict[str, Any]],
    comparisons: list[dict[str, Any]], dropped: list[dict[str, str]],
) -> None:  # fmt: skip
    every = [m for each in found.values() for m in each]
    write_records(ctx.out / "items.parquet", [i for m in every for i in m.items])
    write_parquet(ctx.out / "dropped.parquet", dropped, columns=["stage", "id", "reason", "evidence"])
    for name, content in (
        ("scores.json", mark("scores") | {"models": list(found), "benchmarks": list(benchmarks), "scores": scores}),
        ("protocols.json", {digest_json(m.protocol): m.protocol for m in every}),
        ("comparisons.json", comparisons),
    ):
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        (ctx.out / name).write_text(text + "\n", encoding="utf-8")
