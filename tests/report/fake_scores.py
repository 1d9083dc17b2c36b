"""Scores of questions answered by ensembles: decisions made over the mock engine, so that votes, curves, costs and item
rows are the project's own; and item rows with hostile texts."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fake_release import FakeRun
from fake_transcripts import HOSTILE

from aloe.digests import digest_json
from aloe.evaluate.generated import is_right, item_meta, summary
from aloe.evaluate.stats import wilson
from aloe.generate.engine import Request
from aloe.generate.mock import MockEngine
from aloe.prompting import Decision, Strategy, answer
from aloe.records import ItemResult, Question
from aloe.run.store import Artifact

OPTIONS = {"A": "Aspirin", "B": "Furosemide", "C": "Metformin", "D": "Warfarin"}
SKILL = {"base": 8, "sft": 16, "merged": 22, "aligned": 27}  # of 40
STRATEGIES = {
    "direct": Strategy(name="direct", prompt="direct", members=1, shuffle=False, seed=1),
    "vote": Strategy(name="vote", prompt="direct", members=5, shuffle=True, seed=1),
}


def questions(n: int) -> list[Question]:
    return [
        Question(id=f"q{i:05d}", source="t", licence="cc0-1.0", question=f"Stem number {i}?", options=OPTIONS,
                 answer="ABCD"[i % 4], meta={"topic": ("cardiology", "neurology")[i % 2]})
        for i in range(n)
    ]  # fmt: skip


def decide(model: str, strategy: Strategy, asked: Sequence[Question]) -> list[Decision]:
    """Answers of a model that is right about as often as its skill says."""

    def reply(request: Request) -> str:
        at = int(request.key.split("#")[0][1:])
        said = str(request.messages[-1]["content"])
        number = zlib.crc32(f"{model} {said}".encode())
        if number % 13 == 0:
            return "I cannot say."
        wanted = OPTIONS["ABCD"[at % 4]] if number % 40 < SKILL[model] else list(OPTIONS.values())[number % 4]
        letter = next(line[0] for line in said.splitlines() if line.endswith(f". {wanted}"))
        return f"{model} thinks of case {at}. Answer: {letter}"

    return answer(MockEngine(reply), strategy, list(asked))


def make_scores(root: Path, n: int = 24, models: Sequence[str] = tuple(SKILL), run: FakeRun | None = None) -> Artifact:
    """An artifact of `evaluate`: every model under every strategy."""
    asked = questions(n)
    records, items, protocols = [], [], {}
    for model in models:
        for name, strategy in STRATEGIES.items():
            protocol = {"kind": "generated", "strategy": name, "members": strategy.members, "items_digest": "i",
                        "data_digest": "d", "template_digest": "t"}  # fmt: skip
            digest = digest_json(protocol)
            protocols[digest] = protocol
            decisions = decide(model, strategy, asked)
            found = [_item(d, model, digest) for d in decisions]
            items += found
            records.append(_record(model, name, digest, found, summary(decisions)))
    table = {"models": list(models), "benchmarks": ["exam"], "scores": records}
    files = {"scores.json": table, "protocols.json": protocols, "items.parquet": [asdict_row(i) for i in items]}
    made = run or FakeRun(root)
    return made.step("scores", "evaluate", "scores", files, parameters={"models": list(models)})


def asdict_row(item: ItemResult) -> dict[str, Any]:
    """A row as the file has it: nested columns as JSON."""
    import json

    return {**asdict(item), "meta": json.dumps(item.meta)}


def _item(d: Decision, model: str, protocol: str) -> ItemResult:
    return ItemResult(
        id=f"{model}{protocol}{d.question.id}", source="t", licence="cc0-1.0", meta=item_meta(d), item=d.question.id,
        model=model, benchmark="exam", metric="accuracy", protocol=protocol, outcome=d.outcome,
        value=is_right(d, d.letter), gold=d.question.answer, prediction=d.letter or "",
        output=d.replies[-1].text if d.replies else "", prompt_tokens=sum(r.prompt_tokens for r in d.replies),
        completion_tokens=sum(r.completion_tokens for r in d.replies),
    )  # fmt: skip


def _record(
    model: str, strategy: str, protocol: str, items: Sequence[ItemResult], extra: Mapping[str, Any]
) -> dict[str, Any]:
    scored = [i for i in items if i.value is not None]
    hits = int(sum(i.value or 0.0 for i in scored))
    low, high = wilson(hits, len(scored))
    unparsed = sum(i.outcome == "unparsed" for i in items)
    return {
        "model": model, "benchmark": "exam", "kind": "generated", "metric": "accuracy", "strategy": strategy,
        "better": "higher", "unit": "share", "value": hits / len(scored), "low": low, "high": high, "n": len(scored),
        "successes": hits, "answered": len(items) - unparsed, "unparsed": unparsed, "errored": 0,
        "parse_rate": 1 - unparsed / len(items), "protocol": protocol, "extra": dict(extra),
    }  # fmt: skip


def hostile_scores(root: Path) -> Artifact:
    """Every hostile text as reply, member's reply, item, model, benchmark, error, judge and topic."""
    items, records = [], []
    for at, (name, text) in enumerate(HOSTILE.items()):
        plain = text.encode("utf-8", "replace").decode()
        members = [{"letter": text, "text": text}, {"letter": None, "text": text}] if at % 2 else []
        meta = {"topic": text, "error": text, "rule": text, "evidence": text, "members": members}
        items.append(
            ItemResult(
                id=name,
                source="t",
                licence="cc0-1.0",
                meta=meta,
                item=f"{name} {plain[:30]}",
                model=f"m {plain[:40]}",
                benchmark=plain[:40],
                metric="over_refusal" if at % 3 == 0 else "accuracy",
                protocol="p",
                outcome="answered",
                value=float(at % 2),
                gold="A",
                prediction=plain[:30],
                output=plain,
                prompt_tokens=1,
                completion_tokens=1,
            )
        )
        extra = {"accuracy_at": [{"n": 1, "value": 0.5}, {"n": 2, "value": 0.6}], "members_asked": {}}
        records.append(_record(f"m {plain[:40]}", text, "p", items[-1:], extra) | {"benchmark": text})
    table = {"models": [r["model"] for r in records], "benchmarks": [], "scores": records}
    protocols = {"p": {"strategy": HOSTILE["script"], "judge": {"name": HOSTILE["handler"]}}}
    files = {"scores.json": table, "protocols.json": protocols, "items.parquet": [asdict_row(i) for i in items]}
    return FakeRun(root).step("scores", "evaluate", "scores", files)
