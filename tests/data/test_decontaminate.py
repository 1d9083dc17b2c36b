"""Decontamination: planted copies are found, boilerplate and siblings are not."""

from __future__ import annotations

import pytest

from aloe.data.decontaminate import contamination, find_candidates, item, ngram_size
from aloe.records import Dialogue, Question

BOILERPLATE = "Which of the following is the most appropriate next step in the management of this patient?"
VIGNETTE = (
    "A 34-year-old woman comes to the clinic because of fatigue, weight gain and cold intolerance for six months. Her "
    "pulse is 54 per minute and her skin is dry. Serum thyroid-stimulating hormone is raised. " + BOILERPLATE
)
OPTIONS = {"A": "Levothyroxine", "B": "Carbimazole", "C": "Radioiodine", "D": "Propranolol"}


def mcq(question: str, options: dict[str, str] | None = None, answer: str = "A", name: str = "t1") -> Question:
    return Question(
        id=name, source="train", licence="mit", question=question, options=options or OPTIONS, answer=answer
    )


def qa(question: str, answer: str) -> Dialogue:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Dialogue(id="d1", source="talk", licence="mit", messages=turns)


def hits(row: Question | Dialogue, *bench: Question | Dialogue, **options: float) -> list[tuple[str, float]]:
    report = contamination([item(row)], {"exam": [item(b) for b in bench]}, **options)
    return [(h.tier, round(h.similarity, 2)) for h in report.hits]


BENCH = mcq(VIGNETTE, name="b1")


def test_copy_with_shuffled_options_and_other_typography() -> None:
    shuffled = {"A": OPTIONS["D"], "B": OPTIONS["A"], "C": OPTIONS["B"], "D": OPTIONS["C"]}
    assert hits(mcq(VIGNETTE.upper().replace(",", " ,"), shuffled, "B"), BENCH) == [("exact_stem", 1.0)]


def test_light_edit_and_other_distractors() -> None:
    edited = VIGNETTE.replace("34-year-old woman", "35-year-old lady").replace("six months", "half a year")
    found = hits(mcq(edited), BENCH)
    assert [tier for tier, _ in found] == ["ngram"]
    assert found[0][1] > 0.8
    others = {"A": "Levothyroxine", "B": "Thyroidectomy at once", "C": "Selenium tablets", "D": "Watchful waiting"}
    assert hits(mcq(VIGNETTE, others), BENCH)


def test_shared_boilerplate_is_a_candidate_and_no_hit() -> None:
    other = mcq(
        "A 70-year-old man has had painless haematuria for two weeks. He smoked for years. " + BOILERPLATE,
        {"A": "Cystoscopy", "B": "Observation", "C": "Antibiotics", "D": "Renal biopsy"},
    )
    assert find_candidates([item(other)], [item(BENCH)]) == {(0, 0): "ngram"}
    assert hits(other, BENCH) == []
    table = contamination([item(other)], {"exam": [item(BENCH)]}).table
    assert table == {"train": {"exam": {"rows": 1, "candidates": 1, "contaminated": 0}}}


def test_equal_short_stem_needs_equal_options() -> None:
    stem = "Which of the following is true?"
    bench = mcq(stem, {"A": "The liver makes bile", "B": "The spleen makes bile"}, name="b")
    assert hits(mcq(stem, {"A": "Bone is avascular", "B": "Tendon is elastic"}), bench) == []
    assert hits(mcq(stem, {"A": "The spleen makes bile", "B": "The liver makes bile"}, "B"), bench)


def test_sibling_with_another_answer_is_no_hit() -> None:
    options = {"A": "Costocervical trunk", "B": "Thyrocervical trunk", "C": "Internal thoracic artery"}
    bench = mcq("The inferior thyroid artery is a branch of which of these vessels?", options, "B", "b")
    assert (
        hits(mcq("The superior intercostal artery is a branch of which of these vessels?", options, "A"), bench) == []
    )
    assert hits(mcq(bench.question, options, "A"), bench) == [("exact_stem", 1.0)]  # the same item, wrongly keyed


def test_free_text_that_holds_the_stem() -> None:
    wrapped = f"Please answer.\n\n{VIGNETTE}\n\n(1) Levothyroxine (2) Carbimazole"
    assert hits(qa(wrapped, "Levothyroxine"), BENCH) == [("ngram", 1.0)]
    assert hits(qa("Tell me a story about exams.", f"Once they asked: {VIGNETTE}"), BENCH) == [("ngram", 1.0)]
    assert hits(qa(f"What should I do? {BOILERPLATE}", "Rest."), BENCH) == []
    assert hits(qa(VIGNETTE, "Levothyroxine"), BENCH) == [("exact_stem", 1.0)]


def test_rendered_question_counts_as_its_question() -> None:
    made = Dialogue(**{**qa("other words", "Answer: A").to_dict(), "meta": {"question": mcq(VIGNETTE).to_dict()}})
    assert hits(made, BENCH) == [("exact_stem", 1.0)]


def test_explanation_that_quotes_the_item() -> None:
    quoting = Question(
        id="t", source="train", licence="mit", question="What treats an underactive thyroid gland best?",
        options={"A": "Levothyroxine", "B": "Iodine"}, answer="A", explanation=VIGNETTE,
    )  # fmt: skip
    assert find_candidates([item(quoting)], [item(BENCH)])


@pytest.mark.parametrize("place", range(16))
def test_any_one_word_may_change_and_the_row_stays_a_candidate(place: int) -> None:
    stem = "drug that lowers uric acid by inhibiting xanthine oxidase and is used for long prevention of gout"
    words = stem.split()
    assert len(words) == 17
    changed = [*words[:place], "changed", *words[place + 1 :]]
    assert find_candidates([item(mcq(" ".join(changed)))], [item(mcq(stem))])


def test_ngram_sizes() -> None:
    assert [ngram_size(n) for n in (3, 8, 16, 20, 26, 300)] == [8, 8, 8, 10, 13, 13]


def test_per_source_table_and_evidence_order() -> None:
    rows = [item(mcq(VIGNETTE)), item(qa("Hello there", "Hi")), item(mcq("Unrelated?", name="t2"))]
    report = contamination(rows, {"exam": [item(BENCH)], "other": [item(mcq("Something else entirely?"))]})
    assert report.table["train"]["exam"] == {"rows": 2, "candidates": 1, "contaminated": 1}
    assert report.table["talk"]["exam"]["contaminated"] == 0
    assert report.table["train"]["other"]["contaminated"] == 0
    assert [(h.row, h.benchmark, h.item) for h in report.hits] == [(0, "exam", 0)]
