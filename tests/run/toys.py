"""Toy verbs for testing the machinery without models: they write text files and count how often they ran."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field

from aloe import recipe as recipe_module
from aloe.contract import Context, DialoguesRef, EvidenceRef, Kind, ModelRef, Params, RowsRef, Step

RUNS: list[str] = []


class Source(Step):
    """Makes rows out of a text."""

    verb: ClassVar[str] = "source"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "dialogues"
    text: str = "a"
    files: list[RowsRef] = Field(default_factory=list)

    def run(self, ctx: Context) -> dict[str, Any]:
        RUNS.append(ctx.name)
        extra = "".join(ctx.path(ref).read_text() for ref in self.files)
        # The first letter alone reaches the output: changing the rest re-makes this step and nothing after it.
        (ctx.out / "rows.txt").write_text(self.text[:1] + extra)
        (ctx.out / "logs").mkdir()
        (ctx.out / "logs" / "timing.txt").write_text(str(len(RUNS)))
        ctx.ledger("read", rows_in=3, kept=2, dropped={"empty": 1})
        ctx.count_tokens(processed=10)
        return {"length": len(self.text)}


class Knobs(Params):
    """A nested group."""

    beta: float = 0.1
    names: list[str] = Field(default_factory=list)


class Train(Step):
    """Makes a 'model' from rows."""

    verb: ClassVar[str] = "train"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "model"
    data: dict[DialoguesRef, float]
    knobs: Knobs = Knobs()
    start: ModelRef | None = None
    fail: bool = False

    def run(self, ctx: Context) -> dict[str, Any]:
        RUNS.append(ctx.name)
        texts = [(ctx.path(ref) / "rows.txt").read_text() for ref in self.data]
        (ctx.out / "weights.txt").write_text(f"{texts} {self.knobs.beta} {self.knobs.names} {ctx.seed}")
        if self.start:
            (ctx.out / "start.txt").write_text(ctx.digest(self.start))
        if self.fail:
            raise KeyboardInterrupt
        return {"texts": texts}


class Judge(Step):
    """Reads evidence."""

    verb: ClassVar[str] = "judge"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "release"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "licence")
    model: ModelRef
    evidence: list[EvidenceRef] = Field(default_factory=list)

    def run(self, ctx: Context) -> dict[str, Any]:
        RUNS.append(ctx.name)
        names = sorted(ctx.manifests())
        (ctx.out / "card.txt").write_text(f"{ctx.licence} {names} {[ctx.folder(e).name for e in self.evidence]}")
        return {"upstream": names}


TOYS = {step.verb: step for step in (Source, Train, Judge)}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Recipes of this test use the toy verbs; returns the list of step names that ran."""
    monkeypatch.setattr(recipe_module, "VERBS", TOYS)
    RUNS.clear()
    return RUNS


RECIPE = """\
family: toy
seed: 3
licence: cc-by-nc-4.0
steps:
  rows:
    source: {text: abc}
  first:
    train:
      data: {rows: 1.0}
      knobs: {beta: 0.1}
  second:
    train:
      data: {rows: 1.0}
      start: first
      knobs:
        beta: 0.5
  done:
    judge: {model: second, evidence: [rows, first]}
"""
