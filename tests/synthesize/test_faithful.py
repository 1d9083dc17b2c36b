"""What a rewritten answer must keep: quantities, polarity, terms."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.synthesize.faithful import Fidelity, compare, stem, terms
from aloe.synthesize.quantities import quantities
from aloe.synthesize.rewrite_prompt import SHOTS, rewrite_messages

QUESTION = "How is a simple urinary infection treated?"
ANSWER = (
    "Nitrofurantoin 100 mg twice daily for 5 days. It should not be given late in pregnancy. Drink plenty of water and "
    "see a doctor if fever develops."
)
GOOD = (
    "A simple urinary infection is usually treated with nitrofurantoin, 100 mg twice daily for 5 days, since the drug "
    "collects in the bladder where the bacteria live. It should not be given late in pregnancy, because it may harm "
    "the newborn's red cells. Drink plenty of water, which helps to flush the bladder, and see a doctor if fever "
    "develops, as that may mean that the kidneys are involved."
)


def judge(text: str, answer: str = ANSWER, **changes: object) -> Fidelity:
    limits = {"truncated": False, "min_words": 30, "max_words": 400, "min_terms": 0.7} | changes
    return compare(text, QUESTION, answer, **limits)  # type: ignore[arg-type]


def test_a_faithful_explanation_passes_with_its_measures() -> None:
    found = judge(GOOD)
    assert found.accepted, found
    assert found.measures["quantities_kept"] == found.measures["negations_kept"] == 1.0
    assert found.measures["terms_kept"] > 0.7
    assert found.measures["growth"] > 2


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        (GOOD.replace("100 mg", "100 mcg"), "adds_a_quantity", "100 mcg"),
        (GOOD.replace("100 mg", "1000 mg"), "adds_a_quantity", "1000 mg"),
        (GOOD.replace("for 5 days", "for a few days"), "loses_a_quantity", "5 days"),
        (GOOD.replace("100 mg", "100"), "loses_a_quantity", "100 mg"),
        (GOOD + " At most 8 tablets may be taken.", "adds_a_quantity", "8 tablets"),
        (GOOD + " About 30 percent of women have a second one.", "adds_a_quantity", "30 percent"),
        (GOOD.replace("should not be given", "should be given"), "turns_a_negation", "pregnanc"),
        (GOOD.replace("Drink plenty of water", "Do not drink water"), "turns_a_negation", "drink"),
        (
            GOOD.replace("It should not be given late in pregnancy, because it", "Late use"),
            "loses_a_negation",
            "not be given",
        ),
        (GOOD.replace("nitrofurantoin", "the antibiotic").replace("pregnancy", "it"), "loses_terms", "nitrofurantoin"),
        ("The original answer is explained here. " + GOOD, "leaks_the_source", "original_answer"),
        ("Infections are treated: 100 mg twice daily for 5 days.", "too_short", "words"),
        (GOOD + " See https://example.org for more.", "adds_a_link", "example.org"),
        ((ANSWER + "\n") * 3, "repeats_itself", "yes"),
        (ANSWER, "copies_the_answer", "1.00"),
    ],
)
def test_each_rule_rejects(text: str, reason: str, shown: str) -> None:
    found = judge(text, min_terms=0.9) if reason == "loses_terms" else judge(text)
    assert reason in found.reasons
    assert shown in found.evidence[reason]


def test_a_cut_or_overlong_text_is_rejected() -> None:
    assert judge(GOOD, truncated=True).reasons[0] == "truncated"
    assert judge(GOOD, max_words=40).reasons == ("too_long",)


def test_a_share_of_denials_may_be_allowed_to_go() -> None:
    answer = "Not for children. Not with alcohol. Never with warfarin."
    text = "It is not for children, and never goes with warfarin, since both meet in the liver. Alcohol adds to it."
    strict = compare(text, "?", answer, truncated=False, min_words=5, max_words=90, min_terms=0.5)
    assert strict.measures["negations_kept"] == pytest.approx(2 / 3, abs=1e-4)
    assert "loses_a_negation" in strict.reasons
    lenient = compare(text, "?", answer, truncated=False, min_words=5, max_words=90, min_terms=0.5, min_negations=0.6)
    assert "loses_a_negation" not in lenient.reasons
    assert "turns_a_negation" in lenient.reasons  # alcohol is affirmed now


def test_a_warning_against_stopping_may_not_become_advice_to_stop() -> None:
    answer = "Do not stop the tablets without asking."
    assert "turns_a_negation" in judge("Stop the tablets at any time.", answer).reasons
    kept = judge("Never stop the tablets by yourself, and not without asking.", answer).reasons
    assert "turns_a_negation" not in kept
    assert "loses_a_negation" not in kept


def test_a_double_negation_is_an_affirmation() -> None:
    answer = "Exercise is good in pregnancy."
    assert "turns_a_negation" not in judge("There is no need to avoid exercise in pregnancy.", answer).reasons
    assert "turns_a_negation" in judge("Avoid exercise in pregnancy.", answer).reasons


def test_numbers_of_the_question_may_be_used() -> None:
    found = compare(
        "At 70 years the dose of 5 mg is the usual one, as the kidneys clear it slowly at that age.",
        "What is the dose at 70 years?", "The usual dose is 5 mg.",
        truncated=False, min_words=10, max_words=100, min_terms=0.5,
    )  # fmt: skip
    assert "adds_a_quantity" not in found.reasons


def test_rephrased_negation_and_units_are_the_same_fact() -> None:
    answer = "Do not take 1 g of paracetamol more than 4 times in 24 hours, and avoid alcohol."
    text = (
        "Never take paracetamol in doses of 1,000 mg more often than four times in 24 hours, since the liver can break "
        "down only so much of it. Do not drink alcohol with it, because alcohol burdens the same enzymes."
    )
    assert compare(text, "?", answer, truncated=False, min_words=10, max_words=90, min_terms=0.6).accepted


def test_worked_examples_obey_the_rules_they_teach() -> None:
    for shot in SHOTS:
        found = compare(
            shot.explained, shot.question, shot.answer, truncated=False, min_words=30, max_words=400, min_terms=0.7
        )
        assert found.accepted, found
    assert [m["role"] for m in rewrite_messages("q", "a", 1)] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000 mg, 1 g and one gram", ["1000 mg", "1000 mg", "1000 mg"]),
        ("2-3 days or 5 to 7 weeks", ["172800 s", "259200 s", "3024000 s", "4233600 s"]),
        ("type 2 diabetes, vitamin B12, COVID-19, CD4, 5-HT, T3", []),
        ("1. Rest\n2) Drink 2 litres", ["2000 ml"]),
        ("0.5 mg/kg every 8 hours at 38.5 °C", ["0.5 mg/kg", "28800 s", "38.5 °c"]),
        ("140/90 mmHg, pH 7.35-7.45", ["140 mmhg", "90 mmhg", "7.35 ", "7.45 "]),
        ("two main causes, two weeks, twice a day", ["1209600 s", "2 times"]),
        ("Once it stops, 5mg of 2 µg", ["5 mg", "0.002 mg"]),
        ("a 2-week course for a 70-year-old", ["1209600 s", "840 month"]),
    ],
)
def test_quantities(text: str, expected: list[str]) -> None:
    assert [f"{format(q.value.normalize(), 'f')} {q.unit}" for q in quantities(text)] == expected


@given(st.integers(1, 9999), st.sampled_from(["mg", "ml", "days", "%", "mmHg"]), st.sampled_from(["", " "]))
def test_a_number_is_read_with_its_unit_wherever_it_stands(value: int, unit: str, gap: str) -> None:
    [found] = quantities(f"Take {value}{gap}{unit}, then wait.")
    assert found == quantities(f"It was {value:,} {unit}.")[0]
    assert found.value > 0
    assert found.value % Decimal(value) == 0 or found.unit != "s"


def test_terms_meet_across_endings() -> None:
    assert stem("infections") == stem("infected") == stem("infection") == "infect"
    assert terms("The treatment of infections") == {"infect"}
