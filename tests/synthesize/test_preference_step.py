"""The preference_pairs step: by label, from a synthesize artifact, by a judge; ledgers, files, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.data.sources import load_preferences
from aloe.errors import AloeError
from aloe.generate.engine import Request, ScoreRequest
from aloe.generate.mock import MockEngine
from aloe.records import Preference
from aloe.rows import read_parquet, read_records, write_jsonl
from aloe.synthesize.cot import Synthesize
from aloe.synthesize.preferences import PreferencePairs
from aloe.train.packing import read_preferences

MakeWriter = Callable[..., Any]


def mcq(name: str) -> dict[str, Any]:
    return {
        "id": name, "source": "set", "licence": "mit", "question": f"Which {name} vessel brings blood?", "answer": "B",
        "options": {"A": f"{name} vein", "B": f"{name} artery", "C": f"{name} duct"},
    }  # fmt: skip


NAMES = ("mixed", "right", "wrong", "vague", "broken", "cut")


def answer(request: Request) -> str:
    """Four samples a question: `mixed` has two right ones of two lengths."""
    name, _, number = request.key.partition("#")
    body = f"Sample {number} says that the vessel under pressure leads outwards. " + "And so on. " * int(number)
    if name == "broken":
        raise RuntimeError("connection lost")
    if name == "cut":
        return "word " * 500
    if name == "vague":
        return f"{body} Hard to say."
    letter = {"mixed": "BABC"[int(number) - 1], "right": "B", "wrong": "A"}[name]
    return f"{body}\nAnswer: {letter}"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [mcq(name) for name in NAMES])
    return str(path)


def step(**values: Any) -> PreferencePairs:
    return PreferencePairs.model_validate(values)


def test_by_label(make_writer: MakeWriter, questions: str) -> None:
    engine = MockEngine(answer, name="policy")
    ctx = make_writer(engine)
    summary = step(rows=questions, model="model", pairs_per_question=2).run(ctx)
    rows = read_records(ctx.out / "rows.parquet", Preference)
    assert (summary["pairs"], summary["prompts"], summary["prompts_with_pairs"]) == (2, 6, 1)
    assert [(r.meta["chosen_sample"], r.meta["rejected_sample"]) for r in rows] in ([(1, 2), (3, 4)], [(3, 4), (1, 2)],
        [(3, 2), (1, 4)])  # fmt: skip
    row = rows[0]
    assert row.chosen.endswith("Answer: B")
    assert not row.rejected.endswith("Answer: B")
    assert (row.source, row.licence, row.meta["by"], row.meta["gold"]) == ("synthetic:set", "mit", "label", "B")
    assert row.meta["length_difference"] == len(row.chosen.split()) - len(row.rejected.split())
    assert row.meta["texts"] == {"right": 2, "wrong": 2, "answered": 4}
    assert row.meta["chosen_rule"] == "phrase"
    assert "A. mixed vein" in row.prompt[-1]["content"]
    dropped = {r["id"]: r["reason"] for r in read_parquet(ctx.out / "dropped.parquet")}
    assert dropped == {
        "right": "all_correct", "wrong": "all_wrong", "vague": "unparsed", "broken": "errored", "cut": "truncated",
    }  # fmt: skip
    assert ctx.stages["preference_pairs"] == (6, 1, dict.fromkeys(sorted(dropped.values()), 1))
    samples = read_parquet(ctx.out / "samples.parquet")
    assert len(samples) == 24
    assert len({s["seed"] for s in samples}) == 24
    assert [r.key for r in engine.requests][:4] == [f"mixed#{n}" for n in range(1, 5)]
    stats = json.loads((ctx.out / "stats.json").read_text())
    assert stats["before_pairing"]["texts"] == {"answered": 12, "errored": 4, "truncated": 4, "unparsed": 4}
    assert stats["before_pairing"]["right"]["mean"] > 0
    assert -1 <= stats["words"]["preference_length_correlation"] <= 1
    assert stats["by_source"] == {"set": {"questions": 6, "accepted": 1, "pairs": 2}}
    assert "| synthetic:set | 2 | mit (2) |" in (ctx.out / "README.md").read_text()


def test_alignment_reads_the_pairs(make_writer: MakeWriter, questions: str) -> None:
    ctx = make_writer(MockEngine(answer))
    step(rows=questions, model="model").run(ctx)
    [row] = list(read_preferences(ctx.out / "rows.parquet"))
    assert row.messages[-1]["role"] == "user"
    assert row.licence == "mit"
    [same] = load_preferences(ctx.out)
    assert (same.chosen, same.rejected) == (row.chosen, row.rejected)


def test_from_a_synthesize_step(make_writer: MakeWriter, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [mcq(n) for n in ("alpha", "bravo", "charlie", "delta")])
    tries: dict[str, int] = {}

    def write(request: Request) -> str:
        tries[request.key] = tries.get(request.key, 0) + 1
        body = (
            " the vessel. The vein leads back to the atrium, the artery brings oxygen under pressure from the aorta, "
            "and the duct carries secretions"
        )
        plan = {"alpha": "B", "bravo": "ACB", "charlie": "AAA", "delta": "LBB"}[request.key]
        letter = plan[min(tries[request.key], len(plan)) - 1]
        lead = " As stated, this is" if letter == "L" else ""
        return f"{lead}{body}.\nAnswer: {letter.replace('L', 'B')}\n\nAnd more."

    made = make_writer(MockEngine(write), "reasoning")
    Synthesize.model_validate({"questions": str(path), "writer": "writer"}).run(made)
    ctx = make_writer(MockEngine(write), "pairs")
    summary = step(synthesized=str(made.out), pairs_per_question=3).run(ctx)
    assert ctx.stages == {
        "rows": (4, 3, {"never accepted": 1}),
        "preference_pairs": (3, 1, {"all_correct": 2}),
    }
    rows = read_records(ctx.out / "rows.parquet", Preference)
    assert [r.meta["rejected_letter"] for r in rows] in (["A", "C"], ["C", "A"])
    assert all(r.meta["original_id"] == "bravo" and r.source == "synthetic:set" for r in rows)
    assert all(r.chosen.endswith("\n\nAnswer: B") for r in rows)
    assert {r.rejected[-10:] for r in rows} == {"\nAnswer: A", "\nAnswer: C"}  # nothing after the answer line
    assert summary["protocol"]["rejected_because"] == "wrong_conclusion"
    any_ = make_writer(MockEngine(write), "any")
    step(synthesized=str(made.out), rejected_because="any_reason").run(any_)
    rows = read_records(any_.out / "rows.parquet", Preference)
    assert {r.meta["original_id"] for r in rows} == {"bravo", "delta"}
    leaked = next(r for r in rows if r.meta["original_id"] == "delta")
    assert leaked.meta["rejected_rule"] == "leaked_label"
    with pytest.raises(AloeError, match="no rejected texts here"):
        step(synthesized=str(any_.out)).run(make_writer(MockEngine(write), "c"))


OPEN = [
    {"id": n, "question": f"What helps against {n}?", "answer": f"Rest helps {n}."} for n in ("cough", "fever", "ache")
]


def open_answer(request: Request) -> str:
    number = int(request.key.partition("#")[2])
    return f"Answer {number}: rest." + (" Also water." * number)


def compare(request: Request) -> str:
    """Prefers the answer with the higher number for `cough`, the place for `fever`, nothing for `ache`."""
    text = request.messages[-1]["content"]
    if request.key.startswith("cough"):
        first, second = (int(part.split(":")[0]) for part in text.split("\nAnswer ")[1:3])
        return f"Reason. Better answer: {1 if first > second else 2}"
    return "Better answer: 1" if request.key.startswith("fever") else "Better answer: tie"


@pytest.fixture
def dialogues(tmp_path: Path) -> str:
    path = tmp_path / "open.jsonl"
    write_jsonl(path, OPEN)
    return str(path)


def test_by_judge_in_both_orders(make_writer: MakeWriter, dialogues: str) -> None:
    judge = MockEngine(compare, name="judge")
    ctx = make_writer({"model": MockEngine(open_answer), "judge": judge})
    summary = step(rows=dialogues, model="model", by="judge", judge="judge", samples=3).run(ctx)
    [row] = read_records(ctx.out / "rows.parquet", Preference)
    assert row.meta["original_id"] == "cough"
    assert row.meta["chosen_sample"] > row.meta["rejected_sample"]
    assert row.prompt == [{"role": "user", "content": "What helps against cough?"}]
    assert {r["id"]: r["reason"] for r in read_parquet(ctx.out / "dropped.parquet")} == {"fever": "tie", "ache": "tie"}
    assert summary["judge"]["outcomes"] == {"decided": 3, "disagrees": 3, "tie": 3}
    assert summary["judge"]["verdicts"] == {"first": 9, "second": 3, "tie": 6}
    assert summary["judge"]["first_share"] == 0.75
    assert summary["judge"]["longer_wins"] == 1.0
    assert summary["protocol"]["judge"] == "judge"
    assert len(judge.requests) == 18
    assert "[Reference answer]\nRest helps cough." in judge.requests[0].messages[-1]["content"]
    hidden = MockEngine(compare)
    again = make_writer({"model": MockEngine(open_answer), "judge": hidden}, "b")
    step(rows=dialogues, model="model", by="judge", judge="judge", samples=3, show_reference=False).run(again)
    assert "Reference" not in hidden.requests[0].messages[-1]["content"]


def test_by_likelihood(make_writer: MakeWriter, dialogues: str) -> None:
    def score(request: ScoreRequest, continuation: str) -> float:
        if not request.key.startswith("cough"):
            return -1.0
        text = request.messages[-1]["content"]
        first, second = (int(part.split(":")[0]) for part in text.split("\nAnswer ")[1:3])
        return -0.1 if (continuation == " 1") == (first > second) else -2.0

    ctx = make_writer({"model": MockEngine(open_answer), "judge": MockEngine(score=score)})
    values = {"rows": dialogues, "model": "model", "by": "judge", "judge": "judge", "verdict": "likelihood"}
    summary = step(**values, samples=2).run(ctx)
    [row] = read_records(ctx.out / "rows.parquet", Preference)
    assert (row.meta["chosen_sample"], row.meta["rejected_sample"]) == (2, 1)
    assert row.meta["margin"] == pytest.approx(1 / (1 + 2.718281828**-1.9) - 0.5, abs=1e-6)
    assert summary["judge"]["outcomes"] == {"decided": 1, "tie": 2}


def test_judge_that_fails_or_rambles(make_writer: MakeWriter, dialogues: str) -> None:
    def broken(request: Request) -> str:
        if request.key.startswith("cough"):
            return compare(request)
        if request.key.startswith("fever"):
            raise RuntimeError("overloaded")
        return "Both have merits."

    ctx = make_writer({"model": MockEngine(open_answer), "judge": MockEngine(broken)})
    step(rows=dialogues, model="model", by="judge", judge="judge", samples=2).run(ctx)
    dropped = {r["id"]: r["reason"] for r in read_parquet(ctx.out / "dropped.parquet")}
    assert dropped == {"fever": "judge_errored", "ache": "judge_unparsed"}


def test_equal_samples_are_nothing_to_compare(make_writer: MakeWriter, dialogues: str) -> None:
    engines = {"model": MockEngine(lambda r: "Rest."), "judge": MockEngine(compare)}
    with pytest.raises(AloeError, match=r"3 of 3 prompts gave no pair \(same_text 3\): no pair remains"):
        step(rows=dialogues, model="model", by="judge", judge="judge").run(make_writer(engines))


def test_too_many_dropped_stops_the_run(make_writer: MakeWriter, questions: str) -> None:
    with pytest.raises(AloeError, match=r"5 of 6 prompts gave no pair .*over max_dropped 0.5"):
        step(rows=questions, model="model", max_dropped=0.5).run(make_writer(MockEngine(answer)))


def test_open_questions_have_no_label(make_writer: MakeWriter, dialogues: str) -> None:
    with pytest.raises(AloeError, match="by: label takes multiple-choice questions only"):
        step(rows=dialogues, model="model").run(make_writer(MockEngine(answer)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name either `rows`"),
        ({"rows": "a", "synthesized": "b"}, "name either `rows`"),
        ({"rows": "a"}, "go together"),
        ({"synthesized": "b", "by": "judge", "judge": "j"}, "needs a `judge`, and `rows`"),
        ({"rows": "a", "model": "m", "by": "judge"}, "needs a `judge`"),
        ({"rows": "a", "model": "m", "judge": "j"}, "asks none"),
    ],
)
def test_parameters_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step(**values)
