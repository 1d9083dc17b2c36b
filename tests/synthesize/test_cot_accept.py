"""Acceptance of a written chain of thought: each rule alone, and texts that must pass."""

from __future__ import annotations

import pytest

from aloe.records import Question
from aloe.synthesize.accept import check, containment, repetitive, strip_conclusion, unaddressed, until_answer

QUESTION = Question(
    id="q", source="s", licence="mit", question="Which drug is first in anaphylaxis?", answer="B",
    options={"A": "Oral cetirizine", "B": "Intramuscular adrenaline", "C": "Inhaled salbutamol"},
)  # fmt: skip
GOOD = (
    "The question asks what to give first. Intramuscular adrenaline reverses airway swelling and shock within minutes. "
    "Cetirizine only eases itch, and salbutamol treats wheeze but not the fall in pressure.\nAnswer: B"
)


def reasons(text: str, question: Question = QUESTION, **options: object) -> tuple[str, ...]:
    return check(text, question, **{"truncated": False, **options}).reasons  # type: ignore[arg-type]


def test_a_good_text_passes_and_loses_its_conclusion() -> None:
    verdict = check(GOOD, QUESTION, truncated=False)
    assert verdict.accepted
    assert verdict.concluded == "B"
    assert verdict.rationale.endswith("fall in pressure.")


def test_options_by_letter_pass() -> None:
    text = (
        "We need the fastest drug.\nA. It blocks histamine only and is slow by mouth.\nB) It raises pressure "
        "and opens airways.\nOption C helps the chest alone.\n\nThe answer is B."
    )
    assert reasons(text) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("Answer: B", "Answer: C"), "disagrees_with_label"),
        (GOOD.replace("Answer: B", "So there it is."), "no_conclusion"),
        (GOOD.replace("Cetirizine only eases itch, and", "Meanwhile,"), "option_not_addressed:A"),
        ("It is adrenaline.\nAnswer: B", "too_short"),
        ("As stated, " + GOOD, "leaked_label"),
        (GOOD + " (as provided)", "leaked_label"),
        ("The given answer is right. " + GOOD, "leaked_label"),
        ("The correct answer is given as B. " + GOOD, "leaked_label"),
        ("According to the notes, " + GOOD, "leaked_label"),
        ("Since the correct answer is B, we look at it. " + GOOD, "leaked_label"),
        ("The notes say so. " + GOOD, "leaked_label"),
        ("Correct option: B. " + GOOD, "leaked_label"),
        (
            "Which drug is first in anaphylaxis? Oral cetirizine, intramuscular adrenaline, inhaled salbutamol. Which "
            "drug is first in anaphylaxis?\nAnswer: B",
            "copies_the_question",
        ),
        ("Adrenaline it is, not cetirizine or salbutamol.\n" * 3 + "Answer: B", "repeats_itself"),
    ],
)
def test_each_rule_rejects(text: str, reason: str) -> None:
    assert reason in reasons(text)


def test_a_line_labelled_with_another_options_letter_is_rejected() -> None:
    lines = ("A. Oral cetirizine only eases itch.", "B. Intramuscular adrenaline reverses shock and swelling fast.",
             "C. Inhaled salbutamol treats wheeze alone.")  # fmt: skip
    text = "We need the fastest drug.\n" + "\n".join(lines) + "\nAnswer: B"
    assert reasons(text) == ()
    swapped = text.replace("A. Oral cetirizine", "A. Inhaled salbutamol")
    assert reasons(swapped) == ("mislabels_an_option:A",)


def test_two_stated_conclusions_conflict() -> None:
    text = GOOD.replace("\nAnswer: B", " The answer is A. Or the answer is C.\nAnswer: B")
    assert "conflicting_conclusion" in reasons(text)


def test_plain_clinical_wording_is_no_leak() -> None:
    for text in (
        "Adrenaline is given into the thigh. " + GOOD,
        "As stated in the vignette, the pressure is low. " + GOOD,
        "The dose given is small. " + GOOD,
        "As noted, oxygen is provided to all. " + GOOD,
    ):
        assert reasons(text) == ()


def test_without_sight_of_the_answer_nothing_can_leak() -> None:
    assert reasons("As stated, " + GOOD, may_know=False) == ()


def test_truncation_matters_only_before_the_answer_line() -> None:
    assert "truncated" in reasons(GOOD.replace("\nAnswer: B", ""), truncated=True)
    assert reasons(GOOD + "\n\nQuestion: and then", truncated=True) == ()


def test_what_follows_the_answer_line_is_not_part_of_it() -> None:
    assert until_answer(GOOD + "\nOr rather C.\nAnswer: C") == GOOD
    assert reasons(GOOD + "\nThe answer is C.") == ()
    assert until_answer("no line") == "no line"


def test_copy_of_a_worked_example() -> None:
    assert "copies_an_example" in reasons(GOOD, examples=[GOOD])
    assert reasons(GOOD, examples=["Something else about vitamins and the liver entirely."]) == ()


def test_all_options_rule_can_be_lifted() -> None:
    text = GOOD.replace("Cetirizine only eases itch, and", "Meanwhile,")
    assert reasons(text, need_all_options=False) == ()


def test_the_article_a_does_not_address_option_a() -> None:
    options = {"A": "Iron", "B": "Zinc"}
    assert unaddressed("A low level of zinc is a cause.", options) == ["A"]
    assert unaddressed("(A) is wrong, zinc is right.", options) == []
    assert unaddressed("Left and not right side.", {"A": "Left lateral medulla", "B": "Right lateral medulla"}) == []
    assert unaddressed("The lateral medulla.", {"A": "Left lateral medulla", "B": "Right lateral medulla"}) == [
        "A",
        "B",
    ]


def test_measures() -> None:
    assert containment("a b c d", "a b c x", 3) == 0.5
    assert containment("a", "a", 3) == 0.0
    assert strip_conclusion("Because.\n\nTherefore, the correct answer is B.") == "Because."
    assert strip_conclusion("Because the answer is simple.") == "Because the answer is simple."
    assert not repetitive("one\none\none")
