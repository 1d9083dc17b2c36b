"""Where a round works: folders that are whole or not there, and the context that its inner steps see.

A loop that is killed finds finished stages (pairs, models, measurements) again and goes on with the one that was under
way: replies lie in the request ledger, optimiser steps in the trainer's own checkpoints.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloe.contract import Context, Hardware, Progress
from aloe.digests import digest_file
from aloe.generate.engine import Engine
from aloe.generate.ledger import LedgerEngine
from aloe.generate.local import LocalEngine
from aloe.models.load import load
from aloe.models.weights_digest import digest_model

DONE, OUT = "stage.json", "out"  # in a stage's folder


class Models:
    """Engines over model folders behind the request ledger, one in memory at a time. `terms` bind whoever uses the
    words of these models: those of the model that the loop began with."""

    def __init__(self, ctx: Context, terms: str = "unknown") -> None:
        self._ctx, self.terms = ctx, terms
        self._engine: LedgerEngine | None = None
        self._digest = ""

    def engine(self, folder: Path, name: str) -> Engine:
        """The engine over this folder's weights."""
        digest = digest_model(folder)
        if self._engine is None or digest != self._digest:
            self.close()
            local = LocalEngine(load(folder, self._ctx.precision), name, digest)
            self._engine = LedgerEngine(local, self._ctx.cache / "requests.sqlite", self._ctx.precision)
            self._digest = digest
        self._engine.name = name
        return self._engine

    def close(self) -> None:
        """Let the model go."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._digest = None, ""
        gc.collect()


@dataclass
class Told:
    """What a stage told of itself, kept with its result so that a loop taken up again tells the same."""

    ledgers: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    removable: list[str] = field(default_factory=list)


class RoundContext:
    """`aloe.contract.Context` for an inner step: the loop's own, but for `out`, the names in `local`, and its counts,
    which are kept with the stage."""

    def __init__(self, ctx: Context, out: Path, name: str, local: Mapping[str, Path], models: Models) -> None:
        self._ctx, self._local, self._models = ctx, dict(local), models
        self.out, self.name = out, name
        self.told = Told()

    @property
    def seed(self) -> int:
        return self._ctx.seed

    @property
    def family(self) -> str:
        return self._ctx.family

    @property
    def licence(self) -> str:
        return self._ctx.licence

    @property
    def recipe_text(self) -> str:
        return self._ctx.recipe_text

    @property
    def cache(self) -> Path:
        return self._ctx.cache

    @property
    def hardware(self) -> Hardware:
        return self._ctx.hardware

    @property
    def precision(self) -> str:
        return self._ctx.precision

    def path(self, ref: str) -> Path:
        return self._local.get(ref) or self._ctx.path(ref)

    def digest(self, ref: str) -> str:
        if ref not in self._local:
            return self._ctx.digest(ref)
        place = self._local[ref]
        return digest_model(place) if place.is_dir() else digest_file(place)

    def licence_of(self, ref: str) -> str:
        if ref not in self._local:
            return self._ctx.licence_of(ref)
        return self._models.terms if self._local[ref].is_dir() else "unknown"  # rows state their own

    def manifest(self, ref: str) -> dict[str, Any] | None:
        return None if ref in self._local else self._ctx.manifest(ref)

    def manifests(self) -> dict[str, dict[str, Any]]:
        return self._ctx.manifests()

    def folder(self, name: str) -> Path:
        return self._ctx.folder(name)

    def engine(self, ref: str) -> Any:
        if ref in self._local:
            return self._models.engine(self._local[ref], self.name)
        return self._ctx.engine(ref)

    def ledger(self, stage: str, *, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        self.told.ledgers.append({"stage": stage, "rows_in": rows_in, "kept": kept, "dropped": dict(dropped)})

    def count_tokens(self, **tokens: int) -> None:
        for kind, count in tokens.items():
            self.told.tokens[kind] = self.told.tokens.get(kind, 0) + int(count)

    def done_with(self, folder: Path) -> None:
        self.told.removable.append(str(folder))

    def progress(self, label: str, total: int, unit: str) -> AbstractContextManager[Progress]:
        return self._ctx.progress(f"{self.name}: {label}", total, unit)

    def log(self, message: str) -> None:
        self._ctx.log(message)


def stage(
    ctx: Context,
    place: Path,
    name: str,
    local: Mapping[str, Path],
    models: Models,
    make: Callable[[RoundContext], dict[str, Any]],
) -> dict[str, Any]:
    """What `make` returned, from `place` where it was made before; else made in a folder aside and renamed.

    Args:
        place: the finished stage's folder; what `make` wrote lies in its `out`.
        name: of the stage, in front of its counts and bars.
        local: names of its inputs that are no references of the loop.
    """
    if not (place / DONE).exists():
        aside = place.with_name(f"{place.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        (aside / OUT).mkdir(parents=True)
        inner = RoundContext(ctx, aside / OUT, name, local, models)
        summary = make(inner)
        text = json.dumps({"summary": summary, "told": inner.told.__dict__}, ensure_ascii=False)
        with open(aside / DONE, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(place, ignore_errors=True)
        os.replace(aside, place)
    kept = json.loads((place / DONE).read_text(encoding="utf-8"))
    told = Told(**kept["told"])
    for line in told.ledgers:
        line = {**line, "stage": f"{name}: {line['stage']}"}
        ctx.ledger(line.pop("stage"), **line)
    ctx.count_tokens(**told.tokens)
    for folder in told.removable:
        if Path(folder).exists():
            ctx.done_with(Path(folder))
    found: dict[str, Any] = kept["summary"]
    return found
