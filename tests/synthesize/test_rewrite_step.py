"""The rewrite step: which rows are asked, what is kept, ledgers, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.data.templates import render
from aloe.errors import AloeError
from aloe.generate.engine import Request
from aloe.generate.mock import MockEngine
from aloe.records import Dialogue, Question
from aloe.rows import read_parquet, read_records, write_jsonl, write_records
from aloe.synthesize.rewrite import Rewrite

MakeWriter = Callable[..., Any]
ROWS = [
    {"id": "iron", "question": "How are iron tablets taken?", "licence": "cc0-1.0",
     "answer": "Take 1 tablet of iron daily before a meal, not with tea."},
    {"id": "gout", "question": "How is gout prevented?", "licence": "cc0-1.0",
     "answer": "Allopurinol lowers uric acid. It is not started during an attack."},
]  # fmt: skip
GOOD = {
    "iron": "Take 1 tablet of iron daily before a meal, because an empty stomach lets more of the iron through. It is "
    "not taken with tea, whose tannins bind the iron in the gut and carry it out unused.",
    "gout": "Allopurinol blocks the enzyme that makes uric acid, so the level falls and crystals dissolve with time. "
    "It is not started during an attack, since a sudden change of the level can make an attack longer.",
}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "qa.jsonl"
    write_jsonl(path, ROWS)
    return str(path)


def step(rows: str, **change: Any) -> Rewrite:
    return Rewrite.model_validate({"rows": rows, "writer": "writer", **change})


def test_accepted_rows_keep_their_original(make_writer: MakeWriter, rows: str) -> None:
    engine = MockEngine(lambda r: GOOD[r.key], name="author")
    ctx = make_writer(engine)
    summary = step(rows).run(ctx)
    assert (summary["rows"], summary["acceptance"], summary["rejected_texts"]) == (2, 1.0, 0)
    row = read_records(ctx.out / "rows.parquet", Dialogue)[0]
    assert (row.id, row.source, row.licence) == ("iron/rewrite", "synthetic:qa", "cc0-1.0")
    assert [m["content"] for m in row.messages] == [ROWS[0]["question"], GOOD["iron"]]
    assert row.meta["original_answer"] == ROWS[0]["answer"]
    assert row.meta["fidelity"]["quantities_kept"] == 1.0
    assert (row.meta["original_id"], row.meta["writer"], row.meta["try"]) == ("iron", "author", 1)
    assert ctx.stages == {"rewrite": (2, 2, {})}
    stats = json.loads((ctx.out / "stats.json").read_text())
    assert stats["words"]["mean"] > 2 * stats["words_original"]["mean"]
    assert stats["fidelity_mean"]["quantities_kept"] == 1.0
    assert "| synthetic:qa | 2 | cc0-1.0 (2) |" in (ctx.out / "README.md").read_text()


def test_tries_reasons_and_ledger(make_writer: MakeWriter, rows: str) -> None:
    seen: list[Request] = []

    def reply(request: Request) -> str:
        seen.append(request)
        if request.key == "gout":
            return GOOD["gout"].replace("not started", "started")
        return GOOD["iron"] if sum(r.key == "iron" for r in seen) > 1 else GOOD["iron"] + " At most 3 tablets a day."

    ctx = make_writer(MockEngine(reply))
    summary = step(rows, tries=2).run(ctx)
    assert summary["by_source_and_try"] == {"qa": {"1": {"asked": 2, "accepted": 0}, "2": {"asked": 2, "accepted": 1}}}
    assert ctx.stages["rewrite"] == (2, 1, {"exhausted:turns_a_negation": 1})
    rejected = read_parquet(ctx.out / "rejected.parquet")
    assert [(r["question_id"], r["try"], r["reason"]) for r in rejected] == [
        ("iron", 1, "adds_a_quantity"), ("gout", 1, "turns_a_negation"), ("gout", 2, "turns_a_negation"),
    ]  # fmt: skip
    assert rejected[0]["evidence"] == {"adds_a_quantity": "3 tablets"}
    assert rejected[0]["text"].endswith("3 tablets a day.")
    assert len({r.seed for r in seen}) == 4
    assert read_parquet(ctx.out / "dropped.parquet")[0]["id"] == "gout"


def test_what_the_writer_sees(make_writer: MakeWriter, rows: str) -> None:
    engine = MockEngine(lambda r: GOOD[r.key])
    step(rows, shots=1, max_new_tokens=99, temperature=0.5).run(make_writer(engine))
    request = engine.requests[0]
    assert [m["role"] for m in request.messages] == ["system", "user", "assistant", "user"]
    assert request.messages[-1]["content"].endswith(
        f"Question: {ROWS[0]['question']}\n\nAnswer to explain: {ROWS[0]['answer']}"
    )
    assert (request.sampling.max_new_tokens, request.sampling.temperature) == (99, 0.5)


def test_only_plain_questions_with_an_answer_are_asked(make_writer: MakeWriter, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    mcq = Question(id="m", source="s", licence="mit", question="Which?", options={"A": "x", "B": "y"}, answer="A")
    plain = Dialogue(id="iron", source="s", licence="mit", messages=[
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": ROWS[0]["question"]},
        {"role": "assistant", "content": ROWS[0]["answer"]}])  # fmt: skip
    long = Dialogue(id="t", source="s", licence="mit", messages=[*talk, *talk])
    (tmp_path / "corpus").mkdir()
    write_records(tmp_path / "corpus" / "rows.parquet", [plain, long, render(mcq, 7)])
    ctx = make_writer(MockEngine(lambda r: GOOD["iron"]))
    step(str(tmp_path / "corpus")).run(ctx)
    assert ctx.stages["rows"] == (3, 1, {"more than one exchange": 1, "multiple-choice question": 1})
    [row] = read_records(ctx.out / "rows.parquet", Dialogue)
    assert [m["role"] for m in row.messages] == ["system", "user", "assistant"]
    write_records(tmp_path / "corpus" / "rows.parquet", [long])
    with pytest.raises(AloeError, match="no plain question with an answer here"):
        step(str(tmp_path / "corpus")).run(make_writer(MockEngine(), "b"))


def test_nothing_accepted_errors_and_limits(make_writer: MakeWriter, rows: str) -> None:
    bad = MockEngine(lambda r: "As an AI I can't.")
    with pytest.raises(AloeError, match="none of 2 questions got an acceptable text in 1 tries"):
        step(rows, tries=1).run(make_writer(bad, "a"))
    ctx = make_writer(bad, "b")
    assert step(rows, tries=1, allow_empty=True, limit=1).run(ctx)["rows"] == 0
    assert ctx.stages["rows"] == (2, 1, {"over limit": 1})

    def broken(request: Request) -> str:
        raise RuntimeError("gone")

    with pytest.raises(AloeError, match="failed every request: RuntimeError: gone"):
        step(rows, allow_empty=True).run(make_writer(MockEngine(broken), "c"))
    cut = make_writer(MockEngine(lambda r: GOOD[r.key]), "d")
    assert step(rows, max_new_tokens=9, tries=1, allow_empty=True).run(cut)["rejected_because"]["truncated"] == 2


def test_parameters() -> None:
    with pytest.raises(ValidationError, match="temperature 0 writes the same text"):
        step("q", temperature=0.0)
    with pytest.raises(ValidationError, match="min_words is above max_words"):
        step("q", min_words=50, max_words=40)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_a_copy_of_a_worked_example_is_rejected(make_writer: MakeWriter, rows: str, row: dict[str, str]) -> None:
    from aloe.synthesize.rewrite_prompt import SHOTS

    ctx = make_writer(MockEngine(lambda r: SHOTS[0].explained))
    summary = step(rows, tries=1, allow_empty=True).run(ctx)
    assert summary["rejected_because"]["copies_an_example"] == 2
