"""The exemplar store: leak guard, order, balance, re-lettering."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from aloe.errors import AloeError
from aloe.generate.embed import unit_rows
from aloe.prompting.exemplars import Exemplar, ExemplarStore, Shot, balance, exemplars_of, reletter
from aloe.prompting.mcq import letters_of
from aloe.records import Question


class Words:
    """Bag-of-words vectors: an encoder whose cosines a reader can work out."""

    digest = "words"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), 512), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in text.lower().split():
                vectors[i, zlib.crc32(word.encode()) % 512] += 1
        return unit_rows(vectors)


def question(name: str, stem: str, answer: str = "A", explanation: str = "It fits the picture.") -> Question:
    options = {"A": "one", "B": "two", "C": "three", "D": "four"}
    return Question(
        id=name,
        source="test",
        licence="cc0-1.0",
        question=stem,
        options=options,
        answer=answer,
        explanation=explanation,
    )


STEMS = ["alpha beta gamma delta", "alpha beta gamma x", "alpha beta y z", "alpha u v w", "k l m n"]
STORE = ExemplarStore([Exemplar(question(f"e{i}", s), "Because.") for i, s in enumerate(STEMS)], Words())


def test_the_most_similar_exemplar_stands_last_and_neighbours_are_exact() -> None:
    asked = question("q", "alpha beta gamma q")
    (shots,) = STORE.nearest([asked], 3)
    cosines = STORE.vectors @ Words().encode([asked.question])[0]
    assert [s.similarity for s in shots] == sorted(np.sort(cosines)[-3:].tolist())
    assert shots[0].exemplar.question.id == "e2"
    assert {s.exemplar.question.id for s in shots} == {"e0", "e1", "e2"}


def test_identical_and_near_identical_stems_are_refused() -> None:
    same = question("q", "ALPHA  beta gamma delta")  # equal once normalised
    turned = question("q", "delta gamma beta alpha")  # cosine 1 though the text differs
    for asked in (same, turned):
        (shots,) = STORE.nearest([asked], 4)
        assert [s.exemplar.question.id for s in shots] == ["e4", "e3", "e2", "e1"]
        (fixed,) = STORE.fixed([asked], 4, seed=0)
        assert "e0" not in {s.exemplar.question.id for s in fixed}


def test_the_guard_looks_further_when_the_nearest_are_all_leaks() -> None:
    copies = [Exemplar(question(f"c{i:02}", "alpha beta gamma delta"), "Because.") for i in range(60)]
    store = ExemplarStore([*copies, *STORE.exemplars[1:]], Words())
    (shots,) = store.nearest([question("q", "alpha beta gamma delta")], 2)
    assert [s.exemplar.question.id for s in shots] == ["e2", "e1"]


def test_fixed_exemplars_are_the_same_for_every_question_and_keyed_by_seed() -> None:
    asked = [question("q1", "p q"), question("q2", "r s")]
    first, second = STORE.fixed(asked, 2, seed=1)
    assert [s.exemplar for s in first] == [s.exemplar for s in second]
    assert len({tuple(s.exemplar.question.id for s in STORE.fixed(asked[:1], 2, seed=n)[0]) for n in range(12)}) > 3


def test_a_store_that_is_too_small_or_repeats_ids_is_refused() -> None:
    with pytest.raises(AloeError, match="the store holds 5"):
        STORE.nearest([question("q", "x")], 6)
    with pytest.raises(AloeError, match="same id"):
        ExemplarStore([STORE.exemplars[0], STORE.exemplars[0]], Words())


def test_only_reasoning_that_agrees_with_the_label_becomes_an_exemplar() -> None:
    rows = [
        question("good", "a", "B", "It is the loop that matters. The answer is B."),
        question("bare", "b", "B", "It is the loop that matters."),
        question("wrong", "c", "B", "It is the loop that matters. The answer is C."),
        question("torn", "d", "B", "The answer is A or B."),
        question("empty", "e", "B", "  "),
    ]
    kept, dropped = exemplars_of(rows)
    assert [e.question.id for e in kept] == ["good", "bare"]
    assert {d["id"]: d["reason"] for d in dropped} == {
        "wrong": "reasoning contradicts the label",
        "torn": "reasoning contradicts the label",
        "empty": "no reasoning",
    }
    with pytest.raises(AloeError, match="does not end in the gold answer"):
        Exemplar(rows[0], "<think>never closed")


def test_a_concluding_answer_line_is_left_to_the_prompt() -> None:
    (exemplar,), _ = exemplars_of([question("q", "a", "B", "The loop matters.\n\nAnswer: B")])
    assert exemplar.reasoning == "The loop matters."


def test_gold_letters_of_shown_exemplars_are_balanced() -> None:
    shots = [Shot(Exemplar(question(f"e{i}", f"s{i}", "A"), "Option A fits; (B) does not."), 0.5) for i in range(8)]
    shown = balance(shots, seed=1, key="q")
    assert Counter(s.answer for s in shown) == {"A": 2, "B": 2, "C": 2, "D": 2}
    for one in shown:
        assert one.options[one.answer] == "one"
        assert one.reasoning.startswith(f"Option {one.answer} fits")
        second = next(letter for letter, text in one.options.items() if text == "two")
        assert f"({second}) does not" in one.reasoning
    assert shown == balance(shots, seed=1, key="q")


def test_reasoning_with_a_letter_that_may_be_a_word_keeps_its_order() -> None:
    shots = [Shot(Exemplar(question("e", "s", "A"), "Vitamin C is not involved."), 0.5)] * 3
    assert [s.answer for s in balance(shots, seed=1, key="q")] == ["A", "A", "A"]
    article = Exemplar(question("e", "s", "A"), "A loop diuretic fits.")
    assert len({s.answer for s in balance([Shot(article, 0.5)] * 4, seed=1, key="q")}) == 4


def test_letters_are_renamed_all_at_once_and_only_where_they_are_options() -> None:
    text = "Options A is out, (B) too. [C]\nD. stays. Vitamin A."
    turn = dict(zip("ABCD", "BCDA", strict=True))
    assert reletter(text, turn) == "Options B is out, (C) too. [D]\nA. stays. Vitamin A."
    assert letters_of({"B": "", "A": ""}) == ("A", "B")
