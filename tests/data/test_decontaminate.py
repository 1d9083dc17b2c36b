"""Decontamination: planted copies are found, boilerplate and siblings are not."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.confirm import Comparison
from aloe.data.decontaminate import Item, contamination, find_candidates, item, ngram_size
from aloe.data.overlap import Index, content, fold
from aloe.keyed import rng
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


# ---------------------------------------------------------------------------------------------- in other words


def test_reworded_question_without_a_shared_ngram() -> None:
    bench = mcq("The sensory supply of the palate comes through all of the following nerves except", {
        "A": "Facial nerve", "B": "Hypoglossal nerve", "C": "Maxillary nerve", "D": "Glossopharyngeal nerve"}, "B", "b",
    )  # fmt: skip
    options = {"A": "Hypoglossal nerve", "B": "Glossopharyngeal nerve", "C": "Facial nerve", "D": "Maxillary nerve"}
    assert [t for t, _ in hits(mcq("Which nerve is not sensory to the palate?", options, "A"), bench)] == ["words"]


def test_number_words_spelling_and_endings_meet() -> None:
    assert content("anaemias in twelve haemorrhages") == content("anemia in 12 hemorrhage")
    assert fold("arteries") == fold("artery")
    assert fold("nerve") != fold("nervous")
    assert fold("ph") == "ph"


@pytest.mark.parametrize(("row", "bench"), [
    ("Most common cause of hypercalcaemia is", "Least common cause of hypercalcaemia is"),
    ("Which of the following is a function of vitamin B12?", "Which of the following is a function of vitamin B6?"),
    ("The superior rectal artery is a branch of", "The inferior rectal artery is a branch of"),
])  # fmt: skip
def test_siblings_with_the_same_options_and_another_key(row: str, bench: str) -> None:
    options = {"A": "First possible answer", "B": "Second possible answer", "C": "Third possible answer"}
    assert find_candidates([item(mcq(row, options, "A"))], [item(mcq(bench, options, "B"))]), "worth looking at"
    assert hits(mcq(row, options, "A"), mcq(bench, options, "B", "b")) == []


def test_answers_with_other_numbers_are_other_answers() -> None:
    row = mcq("Dose of misoprostol in postpartum haemorrhage", {"A": "800 mcg", "B": "600 mcg", "C": "200 mcg"}, "A")
    bench = mcq("What is the dose of misoprostol in postpartum haemorrhage?", row.options, "B", "b")
    assert hits(row, bench) == []
    assert hits(row, mcq(bench.question, {"A": "200 mcg", "B": "800 mcg", "C": "600 mcg"}, "B", "b")) != []


def test_yes_and_no_say_nothing_about_the_question() -> None:
    options = {"A": "yes", "B": "no", "C": "maybe"}
    bench = mcq("Is breast cancer survival improving?", options, "A", "b")
    assert hits(mcq("Does radiotherapy improve survival in breast cancer of young women?", options, "A"), bench) == []
    assert hits(mcq("Breast cancer: is survival improving?", options, "A"), bench) != []


def test_item_with_its_options_in_a_long_dialogue() -> None:
    bench = mcq("The ulnar nerve supplies", {"A": "Adductor pollicis", "B": "Brachialis", "C": "Deltoid"}, "A", "b")
    talk = "We spoke about the hand and how its muscles are supplied, and went on to other things. " * 20
    quoted = f"{talk} They asked: The ulnar nerve supplies (a) Deltoid (b) Adductor pollicis (c) Brachialis. {talk}"
    assert [s for _, s in hits(qa("Tell me of your day", quoted), bench)] == [1.0]
    scattered = f"The ulnar nerve supplies much. {talk} Deltoid, Brachialis {talk} and Adductor pollicis."
    assert hits(qa("Tell me of your day", scattered), bench) == []


def test_an_article_that_holds_the_words_and_the_answer_is_no_leak() -> None:
    bench = mcq(
        "Hormone replacement therapy in postmenopausal women increases the risk of all of these except",
        {"A": "Breast cancer", "B": "Colorectal cancer", "C": "Stroke", "D": "Thromboembolism"}, "B", "b",
    )  # fmt: skip
    article = (
        "Hormone replacement therapy in women who are postmenopausal: the therapy with a hormone increases the risk of "
        "breast cancer. It lowers that of colorectal cancer."
    )
    assert hits(qa("What are the effects of hormones?", article), bench) == []


def test_stem_and_answer_as_a_plain_exchange() -> None:
    assert hits(qa("Most potent stimulator of naive T cells", "Mature dendritic cells."), mcq(
        "Most potent stimulator of naive T cells", {"A": "Mature dendritic cells", "B": "B cells"}, "A", "b")
    ) == [("exact_stem", 1.0)]  # fmt: skip
    assert hits(qa("The heart has", "Many things are said of it."), mcq("The heart has", name="b")) == []


def test_a_problem_with_other_numbers_is_another_problem() -> None:
    bench = qa(
        "A baker sells 12 loaves on Monday and twice as many on Tuesday at 3 dollars. What does she earn?", "108"
    )
    other = bench.messages[0]["content"].replace("12", "15").replace("3 dollars", "4 dollars")
    assert hits(qa(other.replace("sells", "sold").replace("earn", "get"), "180"), bench) == []
    assert hits(qa(bench.messages[0]["content"].replace("She", "she"), "108"), bench) != []


# ---------------------------------------------------------------------------------------------- invariants

WORDS = re.findall(
    r"\w+", "liver bile spleen nerve artery twelve fever renal cough which of the is not most common cause dose"
)
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join)


@st.composite
def records(draw: Any) -> Question | Dialogue:
    name = str(draw(st.integers(0, 10**9)))
    if draw(st.booleans()):
        turns = [{"role": "user", "content": draw(TEXT)}, {"role": "assistant", "content": draw(TEXT)}]
        return Dialogue(id=name, source="talk", licence="mit", messages=turns)
    texts = draw(st.lists(TEXT, min_size=2, max_size=4, unique=True))
    return mcq(draw(TEXT), dict(zip("ABCD", texts)), "A", name)


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), min_size=1, max_size=12), st.lists(records(), min_size=1, max_size=6), st.integers(1, 5))
def test_report_depends_on_neither_chunks_nor_order(rows: list[Any], bench: list[Any], chunk: int) -> None:
    left, right = [item(r) for r in rows], [item(b) for b in bench]
    whole = contamination(left, {"exam": right})
    assert contamination(left, {"exam": right}, chunk=chunk) == whole
    backwards = contamination(left[::-1], {"exam": right})
    size = len(left) - 1
    assert sorted((size - h.row, h.item, h.tier, h.similarity) for h in backwards.hits) == sorted(
        (h.row, h.item, h.tier, h.similarity) for h in whole.hits
    )
    assert backwards.table == whole.table


@settings(max_examples=60, deadline=None)
@given(records(), st.lists(records(), min_size=1, max_size=6))
def test_a_copy_of_a_question_is_always_found(row: Any, others: list[Any]) -> None:
    bench = [item(row), *(item(o) for o in others)]
    found = contamination([item(row)], {"exam": bench})
    assert not item(row).options or (0, "exact_stem", 1.0) in [(h.item, h.tier, h.similarity) for h in found.hits]
    assert all(0 <= h.similarity <= 1 + 1e-9 for h in found.hits)


def test_word_candidates_are_all_that_hold_half_of_an_item() -> None:
    """The inverted index against comparing every pair."""
    draw = rng(3, "words", "test")
    names = [f"w{chr(97 + k % 26)}{chr(97 + k // 26)}x" for k in range(60)]

    def text(length: int) -> str:
        return " ".join(names[int(k)] for k in (draw.random(length) ** 2 * 60).astype(int))

    rows = [item(mcq(text(12), {"A": text(2), "B": text(2)}, name=f"r{n}")) for n in range(80)]
    bench = [item(mcq(text(9), {"A": text(2), "B": text(2)}, name=f"b{n}")) for n in range(40)]
    index = Index(bench)
    expected = set()
    for i, row in enumerate(rows):
        held = set(content(row.text))
        for j, other in enumerate(bench):
            bag = set(content(f"{other.stem} {other.gold}"))
            total = sum(index.weights[w] for w in bag)
            if sum(index.weights[w] for w in bag & held) >= 0.5 * total:
                expected.add((i, j))
    found = find_candidates(rows, bench)
    assert expected
    assert {pair for pair, tier in found.items() if tier == "words"} | {
        pair for pair, tier in found.items() if tier != "words" and pair in expected
    } == expected


class Lazy(Sequence[Item]):
    """Rows made when they are read; counts how many are alive at once."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: Any) -> Any:
        raise AssertionError("rows are read in order, once")

    def __iter__(self) -> Iterator[Item]:
        for n in range(self.count):
            row = item(qa(f"Question {n} about the liver and bile", "An answer"))
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(row, self._gone)
            yield row

    def _gone(self) -> None:
        self.alive -= 1


def test_rows_are_read_once_and_not_kept() -> None:
    rows = Lazy(2000)
    report = contamination(
        rows, {"exam": [item(BENCH)], "second": [item(mcq("Where is bile made?", name="b2"))]}, chunk=50
    )
    assert report.table["talk"]["exam"]["rows"] == 2000
    assert rows.most <= 110  # two chunks: the one at hand and the one being read


def test_no_rows_no_items_no_words() -> None:
    assert contamination([], {"exam": [item(BENCH)]}).table == {}
    assert contamination([item(BENCH)], {}).table == {"train": {}}
    assert contamination([item(BENCH)], {"exam": []}).hits == []
    assert contamination([item(qa("?!", "..."))], {"exam": [item(BENCH)]}).hits == []
    assert contamination([item(qa("of the", "is"))], {"exam": [item(qa("Is it?", "of"))]}).hits == []


def test_comparison_does_not_depend_on_what_came_before() -> None:
    rows = [item(mcq(VIGNETTE)), item(qa("Hello", VIGNETTE)), item(mcq("Unrelated matter?"))]
    index = Index([item(BENCH), item(mcq("Something else entirely?", name="b2"))])
    warm = Comparison(index)
    both = [(row, j) for row in rows for j in (0, 1)]
    assert [warm(row, j, 0.6) for row, j in both] == [Comparison(index)(row, j, 0.6) for row, j in both]
