"""One stage of curation on a plain file: `aloe curate --only dedup in.jsonl out.parquet`.

Beside the rows that stay (`out.parquet` or `out.jsonl`, in the kind they came in) it writes `out.dropped.parquet`, the
ledger with reasons and evidence, and `out.stats.json`, the set before and after.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from aloe.contract import Params
from aloe.data import contaminated, scorers, stages
from aloe.data.curation_record import Measure, write_json
from aloe.data.flow import LEDGER_COLUMNS, LEDGER_NESTED, Flow, Stage, StageRecord
from aloe.data.parquet_out import ParquetRows
from aloe.data.settings import Decontaminate, Dedup, Diversity, Phi, Quality, Source
from aloe.data.sources import Dropped, read_rows, source_name
from aloe.data.spool import View
from aloe.errors import AloeError
from aloe.records import Row


class Template(Params):
    """How questions become dialogues."""

    explained_share: float = Field(default=0.5, ge=0, le=1)  # of questions with an explanation, shown with it


class Mix(Params):
    """What is drawn."""

    rows: int | None = Field(default=None, ge=1)  # None keeps all that the weights allow
    weights: dict[str, float] | None = None  # relative share by the rows' own `source`


class Clean(Params):
    """Cleaning has no settings."""


GROUPS: dict[str, type[Params]] = {
    "clean": Clean, "phi": Phi, "dedup": Dedup, "decontaminate": Decontaminate, "quality": Quality,
    "diversity": Diversity, "template": Template, "mix": Mix,
}  # fmt: skip
OUTPUTS = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Surroundings:
    """What a stage needs from outside: files behind references, and engines of models."""

    path: Callable[[str], Path]
    engine: Callable[[str], Any]


def run_stage(
    stage: str,
    source: Path,
    target: Path,
    values: Mapping[str, Any],
    *,
    seed: int,
    around: Surroundings,
    told: Callable[[StageRecord, bool], None] = lambda record, found: None,
    licence: str = "unknown",
) -> dict[str, Any]:
    """Run one stage on `source` and write its rows to `target`.

    Args:
        stage: one of `GROUPS`.
        source: rows in any form that `curate` reads.
        target: `.parquet` or `.jsonl`; must not exist.
        values: the stage's own settings, and the input's (`preset`, `columns`, `split`, `limit`, `ids`).
        seed: of templates and draws.
        around: files and engines behind references.
        told: hears of each finished stage.
        licence: what the file states, of rows that state none themselves.

    Returns:
        What `out.stats.json` holds.

    Raises:
        AloeError: unknown stage or setting, unreadable input, a target that exists.
    """
    reading, settings = _settings(stage, values)
    _check_target(source, target)
    aside = target.with_name(f".{target.name}.part-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        hide = stages.hider(settings) if isinstance(settings, Phi) else None
        flow = Flow(aside / "stages", stage, hide, told)
        flow.step(stages.load(lambda: _inputs(source, reading, licence), {}))
        for part in _stages(stage, settings, flow, seed, around):
            flow.step(part)
        stats = _write(flow, stage, settings, seed, aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return stats


def _settings(stage: str, values: Mapping[str, Any]) -> tuple[Source, Any]:
    if stage not in GROUPS:
        raise AloeError(f"no stage is called {stage!r}", where="--only", fix=_nearest(stage, GROUPS))
    reads = set(Source.model_fields) - {"rows", "weight"}
    group = GROUPS[stage]
    known = reads | set(group.model_fields)
    for key in values:
        if key not in known:
            raise AloeError(f"{stage} has no setting {key!r}", where=key, fix=_nearest(key, sorted(known)))
    try:
        reading = Source.model_validate({"rows": "input", **{k: v for k, v in values.items() if k in reads}})
        return reading, group.model_validate({k: v for k, v in values.items() if k not in reads})
    except ValidationError as cause:
        first = cause.errors()[0]
        name = ".".join(str(p) for p in first["loc"])
        raise AloeError(
            first["msg"], where=name or stage, fix=f"see docs/curate.md for the settings of {stage}"
        ) from None


def _nearest(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"use one of {', '.join(known)}"


def _check_target(source: Path, target: Path) -> None:
    if target.suffix not in OUTPUTS:
        raise AloeError("unknown kind of output", where=str(target), fix="name a .parquet or .jsonl file")
    for path in (target, *_beside(target)):
        if path.exists():
            raise AloeError("this file is there already", where=str(path), fix="remove it or name another output")
    if not source.exists():
        raise AloeError("no such file", where=str(source), fix="check the path")
    target.parent.mkdir(parents=True, exist_ok=True)


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_suffix(".dropped.parquet"), target.with_suffix(".stats.json")


def _inputs(source: Path, reading: Source, licence: str) -> Iterator[tuple[int, str, Row | Dropped, str]]:
    name = source_name(source.name)
    for row in read_rows(
        source, source=name, preset=reading.preset, columns=reading.columns or None, split=reading.split,
        limit=reading.limit, ids=reading.ids,
    ):  # fmt: skip
        if isinstance(row, Dropped):
            yield 0, name, row, str(source)
        else:
            placed = replace(row, licence=licence) if row.licence == "unknown" else row
            yield 0, row.source, placed, str(source)


def _stages(stage: str, settings: Any, flow: Flow, seed: int, around: Surroundings) -> Iterator[Stage]:
    if stage == "clean":
        yield stages.clean()
    elif stage == "phi":
        yield stages.personal(settings)
    elif stage == "dedup":
        yield stages.exact()
        yield stages.near(settings, scorers.encoder)
    elif stage == "decontaminate":
        if not settings.against:
            raise AloeError("no benchmark to compare with", where="against", fix="give against=[FILE, ...]")
        yield contaminated.decontaminated(
            settings, lambda: contaminated.benchmarks(settings, around.path), scorers.encoder, around.engine, {}
        )
    elif stage == "quality":
        yield stages.scored(settings, scorers.scorer(settings, around.engine))
    elif stage == "diversity":
        yield stages.diverse(settings, scorers.encoder, lambda: None)
    elif stage == "template":
        yield stages.template(seed, settings.explained_share)
    else:
        assert flow.view is not None
        names = list(dict.fromkeys(flow.view.column("origin")))
        if settings.weights is not None and set(settings.weights) != set(names):
            raise AloeError(f"weights name {sorted(settings.weights)}, the rows' sources are {sorted(names)}",
                            where="weights", fix="give every source a weight, and no other")  # fmt: skip
        yield stages.mixed(settings.weights, names, settings.rows, seed)


def _write(flow: Flow, stage: str, settings: Params, seed: int, aside: Path, target: Path) -> dict[str, Any]:
    assert flow.view is not None
    after = Measure()
    kept = aside / f"rows{target.suffix}"
    (_parquet if target.suffix == ".parquet" else _jsonl)(kept, flow.view, after)
    with ParquetRows(aside / "dropped.parquet", LEDGER_COLUMNS, LEDGER_NESTED) as file:
        for row in flow.dropped():
            file.put(row)
    first, *rest = flow.records
    stats = {
        "stage": stage, "settings": settings.model_dump(mode="json"), "seed": seed,
        "stages": {r.stage: {"rows_in": r.rows_in, "kept": r.kept, "dropped": r.dropped} for r in flow.records},
        "before": first.facts["measure"], "after": after.to_dict(),
        "facts": {r.stage: {k: v for k, v in r.facts.items() if k != "scores"} for r in rest},
        "examples": {r.stage: r.examples for r in flow.records if r.examples},
    }  # fmt: skip
    write_json(aside / "stats.json", stats)
    for made, final in zip((aside / "dropped.parquet", aside / "stats.json"), _beside(target), strict=True):
        made.replace(final)
    kept.replace(target)  # last: a target that exists is whole
    return stats


def _jsonl(path: Path, view: View, measure: Measure) -> None:
    with open(path, "w", encoding="utf-8") as handle:
        for item in view:
            measure.add(item.record)
            handle.write(json.dumps(vars(item.record), ensure_ascii=False, sort_keys=True) + "\n")


def _parquet(path: Path, view: View, measure: Measure) -> None:
    kinds = set(view.column("kind"))
    if len(kinds) > 1:
        raise AloeError(
            f"the rows are of several kinds ({', '.join(sorted(kinds))}), which one Parquet file can't hold",
            where=str(path.name),
            fix="name a .jsonl output",
        )
    columns: tuple[str, ...] = ("id", "source", "licence", "meta", "messages")
    if kinds == {"question"}:
        columns = ("id", "source", "licence", "meta", "question", "options", "answer", "context", "explanation")
    with ParquetRows(path, columns, ("meta", "messages", "options")) as file:
        for item in view:
            measure.add(item.record)
            file.put(vars(item.record))
