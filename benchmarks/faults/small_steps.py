"""Four small steps that do what steps do with the disk, for `surroundings.py`: rows, a model made from them, replies of
it through the request ledger, a release."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

from aloe.contract import Context, DialoguesRef, EvidenceRef, Kind, ModelRef, Step
from aloe.generate.engine import Request
from aloe.generate.ledger import LedgerEngine
from aloe.generate.mock import MockEngine
from aloe.rows import write_jsonl, write_parquet

REPLIES = 6
BALLAST = 300_000  # bytes that the model step writes: more than the small file systems have
DURING = "ALOE_FAULT_DURING"  # names a file of code that the model step runs in its middle
Found = dict[str, Any]


class Rows(Step):
    """Rows."""

    verb: ClassVar[str] = "source"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "dialogues"

    def run(self, ctx: Context) -> Found:
        write_parquet(ctx.out / "rows.parquet", [{"id": str(i), "text": "words " * i} for i in range(20)])
        write_jsonl(ctx.out / "rows.jsonl", [{"id": i} for i in range(20)])
        return {}


class Train(Step):
    """Weights."""

    verb: ClassVar[str] = "train"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "model"
    data: DialoguesRef

    def run(self, ctx: Context) -> Found:
        import numpy as np
        from safetensors.numpy import save_file

        save_file({"w": np.arange(BALLAST // 4, dtype=np.float32)}, ctx.out / "model.safetensors")
        (ctx.out / "logs").mkdir()
        (ctx.out / "logs" / "timing.txt").write_text(str(time.time()))
        during = Path(os.environ.get(DURING, ""))
        if during.is_file():
            exec(during.read_text(), {"ctx": ctx})
        return {}


class Ask(Step):
    """Replies."""

    verb: ClassVar[str] = "ask"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "scores"
    model: ModelRef

    def run(self, ctx: Context) -> Found:
        engine = LedgerEngine(MockEngine(reply=lambda r: f"said {r.key}"), ctx.cache / "requests.sqlite")
        try:
            asked = [Request(key=f"k{i}", messages=({"role": "user", "content": f"q{i}"},)) for i in range(REPLIES)]
            write_jsonl(ctx.out / "replies.jsonl", [{"text": r.text} for r in engine.generate(asked)])
        finally:
            engine.close()
        return {"calls": REPLIES}


class Release(Step):
    """All of it."""

    verb: ClassVar[str] = "release"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "release"
    model: ModelRef
    evidence: list[EvidenceRef]

    def run(self, ctx: Context) -> Found:
        shutil.copyfile(ctx.path(self.model) / "model.safetensors", ctx.out / "model.safetensors")
        return {"evidence": [ctx.digest(e) for e in self.evidence]}


STEPS = {step.verb: step for step in (Rows, Train, Ask, Release)}
RECIPE: Found = {
    "family": "small", "licence": "cc-by-nc-4.0",
    "steps": {
        "rows": {"source": {}}, "model": {"train": {"data": "rows"}}, "scores": {"ask": {"model": "model"}},
        "release": {"release": {"model": "model", "evidence": ["scores"]}},
    },
}  # fmt: skip
