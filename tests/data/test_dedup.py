"""Deduplication: what meets, what must not, who survives, and how surely LSH finds a pair."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest

from aloe.data.dedup import (
    UnionFind,
    bands_for,
    candidate_pairs,
    document,
    exact_duplicates,
    jaccard,
    near_duplicates,
    shingles,
    signature_matrix,
)
from aloe.keyed import rng
from aloe.records import Dialogue, Question

STEM = (
    "A 60-year-old man has crushing central chest pain for one hour with ST elevation in leads II, III and aVF. "
    "Which artery is most likely to be occluded in this patient?"
)
OPTIONS = {"A": "Right coronary artery", "B": "Left anterior descending artery", "C": "Circumflex artery"}


def mcq(name: str, question: str = STEM, options: dict[str, str] | None = None, answer: str = "A") -> Question:
    return Question(id=name, source="s", licence="mit", question=question, options=options or OPTIONS, answer=answer)


def qa(name: str, question: str, answer: str) -> Dialogue:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Dialogue(id=name, source="s", licence="mit", messages=turns)


def word(k: int) -> str:
    """A word for a number, letters only."""
    return "".join("abcdefghij"[int(d)] for d in f"{k:06}")


def qa_words(name: str, numbers: Iterable[int]) -> Dialogue:
    """A row whose comparison text is exactly these words: a question of signs alone has none."""
    return qa(name, "?", " ".join(word(k) for k in numbers))


def exact(*rows: Question | Dialogue) -> list[tuple[str, str]]:
    return [(rows[d.index].id, d.by) for d in exact_duplicates([document(r) for r in rows])]


def near(*rows: Question | Dialogue, **thresholds: float) -> list[str]:
    return [rows[d.index].id for d in near_duplicates([document(r) for r in rows], **thresholds).duplicates]


def test_shuffled_options_are_an_exact_copy() -> None:
    shuffled = {"A": OPTIONS["C"], "B": OPTIONS["A"], "C": OPTIONS["B"]}
    assert exact(mcq("a"), mcq("b", STEM.upper(), shuffled, "B")) == [("b", "exact")]
    assert exact(mcq("a"), mcq("b", options={**OPTIONS, "C": "Obtuse marginal artery"})) == []


def test_contradiction_refuses_both() -> None:
    assert exact(mcq("a"), mcq("b", answer="B"), mcq("c")) == [("a", "conflict"), ("b", "conflict"), ("c", "conflict")]


def test_near_copy_by_text_or_by_stem_with_equal_answer() -> None:
    assert near(mcq("a"), mcq("b", STEM.replace("A 60-year-old man", "A man"))) == ["b"]
    other = {"A": "Posterior tibial vessel", "B": "Right coronary artery", "C": "Ulnar vessel", "D": "Aorta"}
    assert near(mcq("a"), mcq("b", options=other, answer="B")) == ["b"]


def test_questions_that_only_look_alike_stay() -> None:
    assert near(mcq("a"), mcq("b", answer="B")) == []  # other gold answer
    refers = {"A": "All of the above", "B": "Thrombolysis now", "C": "Aspirin at once"}
    again = {"A": "All of the above", "B": "Warfarin for life", "C": "A surgical bypass"}
    assert near(mcq("a", options=refers), mcq("b", options=again)) == []
    short = "Which of the following is true?"
    assert near(mcq("a", short, {"A": "x", "B": "y"}), mcq("b", short, {"A": "p", "B": "q"})) == []


def test_same_stem_about_another_context_stays() -> None:
    one = Question(**{**mcq("a").to_dict(), "context": "First abstract."})
    two = Question(**{**mcq("b").to_dict(), "context": "Second abstract."})
    assert exact(one, two) == []
    assert near(one, two) == []


def test_threshold_is_the_true_jaccard() -> None:
    rows = (qa_words("a", range(104)), qa_words("b", range(15, 119)))
    value = jaccard(*(shingles(document(r).texts["full"]) for r in rows))
    assert value == pytest.approx(85 / 115)
    assert near(*rows, qa=value) == ["b"]
    assert near(*rows, qa=value + 1e-9) == []


def test_dialogues_have_their_own_threshold_and_speakers() -> None:
    def talk(name: str, roles: str) -> Dialogue:
        turns = ["what helps a common cold", "rest and fluids help most people", "how long does it last",
                 "about a week for most people"]  # fmt: skip
        names = {"u": "user", "a": "assistant"}
        messages = [{"role": names[r], "content": t} for r, t in zip(roles, turns, strict=True)]
        return Dialogue(id=name, source="s", licence="mit", messages=messages)

    assert exact(talk("a", "uaua"), talk("b", "uaua")) == [("b", "exact")]
    assert exact(talk("a", "uaua"), talk("b", "auau")) == []


def test_survivor_by_priority_then_length_then_id() -> None:
    texts = {
        "short": "one two three four five six seven eight",
        "long": "One, two; three - four (five) six seven eight!",
    }
    rows = [qa("c", "q", texts["short"]), qa("b", "q", texts["long"]), qa("a", "q", texts["long"])]
    docs = [document(r) for r in rows]
    assert {d.survivor for d in exact_duplicates(docs)} == {2}
    docs = [document(r, priority) for r, priority in zip(rows, (0, 1, 1), strict=True)]
    assert {d.survivor for d in exact_duplicates(docs)} == {0}


def test_chain_makes_one_cluster() -> None:
    rows = [qa_words(str(k), range(k * 12, k * 12 + 124)) for k in range(3)]
    found = near_duplicates([document(r) for r in rows])
    assert [(d.index, d.survivor) for d in found.duplicates] == [(1, 0), (2, 0)]
    assert found.duplicates[1].match == 1  # its evidence is the neighbour it resembles


def test_order_of_rows_changes_nothing() -> None:
    rows = [qa_words(f"r{i}", range(i % 7, 60 + i % 5)) for i in range(40)]
    expected = set(near(*rows))
    assert expected
    assert set(near(*reversed(rows))) == expected


def test_short_texts_use_characters() -> None:
    assert shingles("flu shot") == {"flu s", "lu sh", "u sho", " shot"}
    assert shingles("one two three four five") == {"one two three four five"}
    assert shingles("") == {""}


def test_bands_miss_less_than_one_in_a_thousand_at_the_threshold() -> None:
    for threshold in (0.5, 0.72, 0.77, 0.95):
        bands, rows = bands_for(threshold)
        assert bands * rows <= 128
        assert (1 - threshold**rows) ** bands <= 1e-3


def test_lsh_finds_pairs_at_the_threshold() -> None:
    """400 pairs at Jaccard 0.72 or a little more."""
    texts = []
    for k in range(0, 400_000, 1000):
        texts += [" ".join(map(word, range(k, k + 104))), " ".join(map(word, range(k + 16, k + 120)))]
    assert jaccard(shingles(texts[0]), shingles(texts[1])) == pytest.approx(84 / 116)
    bands, rows = bands_for(0.72)
    pairs = {tuple(p) for p in candidate_pairs(signature_matrix(texts), bands, rows, 0.72).tolist()}
    assert len(pairs & {(2 * k, 2 * k + 1) for k in range(400)}) >= 399


def test_near_duplicates_equal_brute_force() -> None:
    draw = rng(3, "dedup-test")
    rows = []
    for k in range(60):
        numbers = list(range(k % 20 * 100, k % 20 * 100 + 80))
        for _ in range(int(draw.integers(0, 8))):
            numbers[int(draw.integers(0, 80))] = int(draw.integers(10_000, 900_000))
        rows.append(qa_words(f"r{k:02}", numbers))
    docs = [document(r) for r in rows]
    union = UnionFind(len(docs))
    for i, j in combinations(range(len(docs)), 2):
        if jaccard(shingles(docs[i].texts["full"]), shingles(docs[j].texts["full"])) >= 0.72:
            union.join(i, j)
    clusters = {i: union.find(i) for i in range(len(docs))}
    lost = {d.index for d in near_duplicates(docs).duplicates}
    assert 0 < len(lost) < 40
    assert len(docs) - len(lost) == len(set(clusters.values()))


def test_signatures_are_pinned() -> None:
    """A change of the library's scheme would change artifacts silently; then `version` must be bumped."""
    first = signature_matrix(["the quick brown fox jumps over the lazy dog"])
    assert first.shape == (1, 128)
    assert first.dtype == np.uint32
    assert first[0, :3].tolist() == [3745571858, 3298934994, 3190686803]
