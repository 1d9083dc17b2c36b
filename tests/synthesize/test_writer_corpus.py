"""Acceptance on messy writer texts: `writer_corpus.jsonl` holds questions (`define`) and texts with the reasons that
must be found, in any order; all of them our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe.records import Question
from aloe.synthesize.accept import check, named_letters, unaddressed, without_lists
from aloe.synthesize.leaks import LABEL_LEAKS, SOURCE_LEAKS, find_leak
from aloe.synthesize.tries import head

LINES = [json.loads(line) for line in (Path(__file__).parent / "writer_corpus.jsonl").read_text("utf-8").splitlines()]
QUESTIONS = {
    row["define"]: Question(
        id=row["define"], source="own", licence="cc0-1.0", question=row["question"], options=row["options"],
        answer=row["answer"], context=row.get("context", ""), explanation=row.get("explanation", ""),
    )
    for row in LINES if "define" in row
}  # fmt: skip
TEXTS = [row for row in LINES if "text" in row]


@pytest.mark.parametrize("row", TEXTS, ids=lambda row: f"{row['question']}: {row['text'][:40]!r}")
def test_verdict(row: dict[str, Any]) -> None:
    verdict = check(
        row["text"],
        QUESTIONS[row["question"]],
        truncated=row.get("truncated", False),
        may_know=not row.get("exam", False),
    )
    assert sorted(map(head, verdict.reasons)) == sorted(row["reasons"]), verdict
    assert verdict.accepted == (not row["reasons"])
    assert ("leaked_label" in verdict.evidence) == ("leaked_label" in row["reasons"])


def test_the_corpus_covers_every_reason_and_leak() -> None:
    assert len(TEXTS) >= 60
    assert sum(not row["reasons"] for row in TEXTS) >= 25
    seen = {reason for row in TEXTS for reason in row["reasons"]}
    assert seen >= {
        "truncated", "conflicting_conclusion", "no_conclusion", "disagrees_with_label", "too_short", "leaked_label",
        "option_not_addressed", "option_only_listed", "asserts_without_reasons", "mislabels_an_option",
        "copies_the_question", "repeats_itself",
    }  # fmt: skip
    texts = [row["text"] for row in TEXTS if "leaked_label" in row["reasons"]]
    assert {name for name in LABEL_LEAKS if any(find_leak(t, {name: LABEL_LEAKS[name]}) for t in texts)} == set(
        LABEL_LEAKS
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The original answer says that rest is enough.", "original_answer"),
        ("According to the text, rest is enough.", "answer_says"),
        ("The answer mentions rest.", "answer_says"),
        ("Here is a clear, detailed answer: rest.", "about_rewriting"),
        ("Rewritten, it means rest.", "about_rewriting"),
        ("As an AI language model, I say rest.", "assistant_talk"),
        ("Sure! Rest is enough.", "assistant_talk"),
    ],
)
def test_source_leaks(text: str, rule: str) -> None:
    found = find_leak(text, SOURCE_LEAKS)
    assert found
    assert found.rule == rule


@pytest.mark.parametrize(
    "text",
    [
        "The initial response to treatment is often good.",
        "The original injury heals within weeks.",
        "Your doctor provides information about the operation.",
        "The immune response follows the passage of food.",
        "A short answer to pain is rest, and certainly sleep helps.",
        "The source of the bleeding is found by endoscopy.",
    ],
)
def test_clinical_wording_is_no_source_leak(text: str) -> None:
    assert find_leak(text, SOURCE_LEAKS) is None


def test_a_phrase_of_the_original_itself_is_no_leak() -> None:
    text = "Based on the information provided, rest is enough."
    assert find_leak(text, SOURCE_LEAKS)
    assert find_leak(text, SOURCE_LEAKS, allowed="Based on the information provided you can rest.") is None


def test_named_letters() -> None:
    assert named_letters("Options A through C are wrong.") == {"A", "B", "C"}
    assert named_letters("Choices A, B and D fail; (c) stays.") == {"A", "B", "C", "D"}
    assert named_letters("Vitamins A and D are stored in fat. A cause of rickets.") == set()
    assert named_letters("Hepatitis A and B are viral.") == set()
    assert named_letters("B and C would both harm. D makes it worse.") == {"B", "C", "D"}


def test_a_shorter_option_is_not_named_inside_a_longer_one() -> None:
    options = {"A": "Type 1 diabetes", "B": "Type 1 diabetes with ketoacidosis", "C": "Gout"}
    assert unaddressed("Type 1 diabetes with ketoacidosis explains the breath, gout does not.", options) == ["A"]
    assert unaddressed("Type 1 diabetes, even type 1 diabetes with ketoacidosis, not gout.", options) == []


def test_lists_are_taken_out_before_weighing() -> None:
    options = {"A": "Iron", "B": "Folic acid"}
    assert without_lists("A. Iron\nB. Folic acid is correct.\nIron builds haem.", options) == "Iron builds haem."
    assert without_lists("A. Iron builds haem.", options) == "A. Iron builds haem."


def test_measures_are_stated() -> None:
    row = TEXTS[0]
    question = QUESTIONS[row["question"]]
    measures = check(row["text"], question, truncated=False, examples=[row["text"]]).measures
    assert measures["echoed"] == 1.0
    assert measures["copied"] == 0.0
    assert measures["new_words"] >= 5
    same = check(question.explanation + "\nAnswer: B", question, truncated=False).measures
    assert same["from_notes"] == 1.0
    asked = check(question.question + " Because.\nAnswer: B", question, truncated=False).measures
    assert 0.7 < asked["copied"] < 1.0
