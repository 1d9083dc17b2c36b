"""The `curate` verb: sources in, one clean, deduplicated, decontaminated, templated and mixed set of dialogues out.

Stages, in order: load, clean, personal data, exact and near deduplication, decontamination, quality, diversity,
templates, mix (Aloe Beta, arXiv 2505.04388, data section). No stage loses a row silently: every one that leaves is in
`dropped.parquet` with its stage, reason and evidence, and too many of them stop the run. Rows stay on disk between
stages, and finished stages outlive a run that dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from aloe.contract import Context, Kind, Step
from aloe.data import contaminated, scorers, stages
from aloe.data.curated import write_artifact
from aloe.data.flow import Flow, Stage, StageRecord
from aloe.data.settings import Decontaminate, Dedup, Diversity, Phi, Quality, Source, listed
from aloe.data.sources import Dropped, read_rows, source_name
from aloe.data.starter import LICENCE, is_starter
from aloe.digests import digest_file, digest_json, digest_tree, files_in
from aloe.errors import AloeError
from aloe.records import Row

ROW_COLUMNS = ("id", "source", "licence", "meta", "messages")

MEANT = {"low_quality", "too_similar"}  # reasons that a setting asked for


class Curate(Step):
    """Build a supervised fine-tuning set. Sources are named in order of priority: the first one's copy survives."""

    verb: ClassVar[str] = "curate"
    version: ClassVar[int] = 2
    makes: ClassVar[Kind] = "dialogues"
    spread: ClassVar[bool] = True
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")  # scorers and judges answer in it

    # A list of references, or a map from reference to its options.
    sources: list[Source] = Field(min_length=1)
    phi: Phi = Phi()
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    quality: Quality | None = None
    diversity: Diversity | None = None
    max_dropped_share: float = Field(default=0.2, ge=0, le=1)  # of the rows read; more stops the run
    rows: int | None = Field(default=None, ge=1)  # rows after the mix; None keeps all that the weights allow
    explained_share: float = Field(default=0.5, ge=0, le=1)  # of questions with an explanation, trained with it; ours
    licences: dict[str, str] = Field(default_factory=dict)  # licence by source name, over what rows state

    @field_validator("sources", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return listed(value)

    def run(self, ctx: Context) -> dict[str, Any]:
        names = self._names()
        weights = self._weights()
        key = digest_json({"inputs": self._digests(ctx), "code": code_digest(), "hide": self.phi.model_dump()})
        flow = Flow(ctx.cache / "curate" / key[:16], key, stages.hider(self.phi), told=_teller(ctx))
        for stage in self._until_template(ctx, flow, names):
            flow.step(stage)
        self._check_dropped(flow)
        flow.step(stages.template(ctx.seed, self.explained_share))
        flow.step(stages.mixed(weights, names, self.rows, ctx.seed))
        summary = write_artifact(ctx.out, flow, self._names(), weights)
        flow.forget()
        return summary

    # ------------------------------------------------------------------------------------------ stages

    def _until_template(self, ctx: Context, flow: Flow, names: list[str]) -> Iterator[Stage]:
        """The stages that look at what rows say, before they get their final form."""
        yield self._load(ctx, names)
        yield stages.clean()
        if self.phi.mode != "off":
            yield stages.personal(self.phi)
        yield stages.exact()
        yield stages.near(self.dedup, scorers.encoder)
        against = {b.rows: ctx.digest(b.rows) for b in self.decontaminate.against}
        if self.decontaminate.rephrased is not None and (judge := self.decontaminate.rephrased.judge) is not None:
            against[judge] = ctx.digest(judge)
        yield contaminated.decontaminated(
            self.decontaminate, lambda: contaminated.benchmarks(self.decontaminate, ctx.path), scorers.encoder,
            ctx.engine, against,
        )  # fmt: skip
        if self.quality is not None:
            yield stages.scored(self.quality, scorers.scorer(self.quality, ctx.engine))
        if self.diversity is not None:
            known = {r.stage: r.facts for r in flow.records}
            yield stages.diverse(
                self.diversity, scorers.encoder, lambda: known.get("quality", {}).get("scores")
            )  # scores of the rows still in

    def _load(self, ctx: Context, names: list[str]) -> Stage:
        def inputs() -> Iterator[tuple[int, str, Row | Dropped, str]]:
            seen: set[str] = set(names)
            for rank, (source, name) in enumerate(zip(self.sources, names, strict=True)):
                stated = ctx.licence_of(source.rows)  # of the file or set; what a row states itself comes first
                for row in read_rows(
                    ctx.path(source.rows), source=name, licence=LICENCE if is_starter(source.rows) else None,
                    preset=source.preset, columns=source.columns or None, split=source.split, limit=source.limit,
                    ids=source.ids,
                ):  # fmt: skip
                    if isinstance(row, Dropped):
                        yield rank, name, replace(row, id=f"{name}:{row.id}"), source.rows
                    else:
                        seen.add(row.source)
                        yield rank, name, self._placed(row, name, stated), source.rows
            if unused := set(self.licences) - seen:
                raise AloeError(
                    f"no source is called {sorted(unused)[0]!r}",
                    where="licences",
                    fix=f"use one of {', '.join(sorted(seen))}",
                )

        settings = {"sources": [s.model_dump(exclude={"weight"}) for s in self.sources], "licences": self.licences}
        return stages.load(inputs, settings)

    def _placed(self, record: Row, name: str, stated: str) -> Row:
        """Id made unique over sources, original id kept, licence override applied."""
        own = record.licence if record.licence != "unknown" else stated
        licence = self.licences.get(record.source) or self.licences.get(name) or own
        meta = {"original_id": record.id, **record.meta}
        return replace(record, id=f"{name}:{record.id}", licence=licence.lower(), meta=meta)

    # ------------------------------------------------------------------------------------------ checks

    def _names(self) -> list[str]:
        names = [source_name(source.rows) for source in self.sources]
        if len(set(names)) < len(names):
            raise AloeError("two sources have one name", where="sources", fix="name each source once, files apart")
        for source in self.sources:
            if source.rows in {b.rows for b in self.decontaminate.against}:
                raise AloeError(
                    f"{source.rows} is a source and a benchmark", where="decontaminate.against", fix="drop one of both"
                )
        return names

    def _weights(self) -> dict[str, float] | None:
        weights = {source_name(s.rows): s.weight for s in self.sources if s.weight is not None}
        if weights and len(weights) < len(self.sources):
            missing = next(s.rows for s in self.sources if s.weight is None)
            raise AloeError(f"{missing} has no weight", where="sources", fix="give every source a weight, or none")
        return weights or None

    def _digests(self, ctx: Context) -> list[list[str]]:
        """Content and stated licence of every source: both reach the rows."""
        return [[ctx.digest(s.rows), ctx.licence_of(s.rows)] for s in self.sources]

    def _check_dropped(self, flow: Flow) -> None:
        """Too many rows that nobody meant to lose stop the run."""
        read, left = flow.records[0].rows_in, flow.records[-1].kept
        counts = Counter({(r.stage, why): n for r in flow.records for why, n in r.dropped.items() if why not in MEANT})
        lost = sum(counts.values())
        examples = {(r.stage, why): found[0] for r in flow.records for why, found in r.examples.items()}
        top = "; ".join(
            f"{stage}: {n} {why}, e.g. {_named(examples[stage, why])}" for (stage, why), n in counts.most_common(3)
        )
        if not left:
            raise AloeError(f"no row is left of {read} ({top})", where="sources", fix="check the sources it names")
        if lost > self.max_dropped_share * read:
            raise AloeError(
                f"{lost} of {read} rows dropped, over max_dropped_share {self.max_dropped_share}: {top}",
                where="sources",
                fix="mend the source, or raise max_dropped_share if these rows should go",
            )


def _teller(ctx: Context) -> Any:
    def told(record: StageRecord, found: bool) -> None:
        ctx.ledger(record.stage, rows_in=record.rows_in, kept=record.kept, dropped=record.dropped)
        dropped = f", {record.rows_in - record.kept} dropped" if record.rows_in > record.kept else ""
        took = "done before" if found else f"{record.seconds:.1f} s"
        ctx.log(f"{record.stage}: {record.kept} rows{dropped} ({took})")
        if calibrated := record.facts.get("semantic"):
            ctx.log(f"  same meaning from cosine {calibrated['threshold']:.3f} on")

    return told


def _named(example: Mapping[str, Any]) -> str:
    place = f" ({example['where']})" if example["where"] else ""
    return f"{example['id']}{place}{', ' + example['detail'] if example['detail'] else ''}"


@cache
def code_digest() -> str:
    """Digest of this room's source, templates and word lists: finished stages serve only the code that made them."""
    here = Path(__file__).parent
    files = [p for p in files_in(here) if p.suffix in (".py", ".yaml", ".txt")]
    return digest_tree({p.relative_to(here).as_posix(): digest_file(p) for p in files})
