"""Choosing pairs: right against wrong, by length or by draw; judged pairs; a judge asked both ways round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.generate.engine import Request, ScoreRequest
from aloe.synthesize.lengths import compare, preference_by_length, summary
from aloe.synthesize.pair_judge import both_orders, prefers_first, read_verdict, settle, settle_likelihoods
from aloe.synthesize.pairs import (
    Pair,
    Sample,
    best_pairs,
    candidates,
    in_one_form,
    label_pairs,
    no_label_pair,
    unlike,
)


def text(number: int, letter: str | None, words: int = 10, outcome: str = "answered") -> Sample:
    return Sample(number, f"text {number} " + "w " * words, outcome, words, letter)  # type: ignore[arg-type]


MIXED = [text(1, "A", 40), text(2, "B", 12), text(3, "B", 55), text(4, "A", 10), text(5, "C", 90), text(6, None, 1, "unparsed")]  # noqa: E501  # fmt: skip


def numbers(pairs: list[Pair]) -> list[tuple[int, int]]:
    return [(p.chosen.number, p.rejected.number) for p in pairs]


def test_label_pairs_take_the_smallest_difference_in_length() -> None:
    found = label_pairs(MIXED, "A", count=3, choose="length", seed=7, key="q")
    assert numbers(found) == [(4, 2), (1, 3)]  # each text once; no third right text
    assert [p.length_difference for p in found] == [-2, -15]
    assert all(p.chosen.letter == "A" != p.rejected.letter for p in found)


def test_a_single_right_text_may_be_reused() -> None:
    found = label_pairs(MIXED[:3] + MIXED[4:], "A", count=2, choose="length", seed=7, key="q", reuse=True)
    assert numbers(found) == [(1, 3), (1, 2)]


def test_draw_depends_on_seed_and_key_only() -> None:
    drawn = {tuple(numbers(label_pairs(MIXED, "A", count=1, choose="draw", seed=s, key="q"))) for s in range(12)}
    assert len(drawn) > 2
    for s in range(3):
        same = [label_pairs(m, "A", count=1, choose="draw", seed=s, key="q") for m in (MIXED, MIXED[::-1])]
        assert numbers(same[0]) == numbers(same[1])


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 80)), max_size=9), st.integers(1, 5))
def test_no_text_stands_in_two_pairs(drawn: list[tuple[str, int]], count: int) -> None:
    texts = [text(n, letter, words) for n, (letter, words) in enumerate(drawn)]
    found = label_pairs(texts, "B", count=count, choose="length", seed=1, key="k")
    used = [n for pair in numbers(found) for n in pair]
    assert len(used) == len(set(used))
    right = sum(letter == "B" for letter, _ in drawn)
    assert len(found) == min(count, right, len(drawn) - right)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([text(1, "A"), text(2, "A")], "all_correct"),
        ([text(1, "B"), text(2, None, 3, "unparsed")], "all_wrong"),
        ([text(1, None, 3, "unparsed"), text(2, None, 3, "unparsed"), text(3, None, 0, "errored")], "unparsed"),
        ([text(1, None, 3, "truncated"), text(2, None, 3, "unparsed")], "truncated"),
        ([text(1, None, 0, "errored")], "errored"),
    ],
)
def test_why_there_is_no_pair(texts: list[Sample], reason: str) -> None:
    assert label_pairs(texts, "A", count=1, choose="length", seed=1, key="q") == []
    assert no_label_pair(texts, "A") == reason


def test_equal_texts_count_once() -> None:
    twice = [Sample(1, "same", "answered", 1, "A"), Sample(2, " same ", "answered", 1, "A")]
    assert [s.number for s in unlike(twice)] == [1]


def test_candidates_prefer_texts_not_yet_shown() -> None:
    found = candidates(MIXED, count=4, choose="length", seed=3, key="q")
    assert numbers(found)[:2] == [(2, 4), (1, 3)]
    assert len(found) == 4
    assert len({frozenset(pair) for pair in numbers(found)}) == 4


def test_judged_pairs_by_margin() -> None:
    pairs = [Pair(MIXED[0], MIXED[1]), Pair(MIXED[1], MIXED[2]), Pair(MIXED[2], MIXED[3])]
    found = best_pairs([(0.1, pairs[0]), (0.4, pairs[1]), (0.2, pairs[2])], 2)
    assert numbers([p for _, p in found]) == [(2, 3)]  # the others share a text with it


def test_form_is_the_same_on_both_sides() -> None:
    text = "It is slow.\nAnswer: C. Iron\n\nThe answer is D."
    assert in_one_form(text, "C") == "It is slow.\n\nAnswer: C"
    assert in_one_form("No conclusion here.", None) == "No conclusion here."


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The second is safer.\nBetter answer: 2", "second"),
        ("**Better answer: 1**", "first"),
        ("Better answer: 2? No: it is unsafe. Better answer: 1", "first"),
        ("Better answer: tie", "tie"),
        ("The better answer is answer 2.", "second"),
        ("<think>Better answer: 1</think> Better answer: 2", "second"),
        ("Both are good.", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_verdicts(text: str, verdict: str) -> None:
    assert read_verdict(text) == verdict


def test_only_a_preference_that_survives_the_swap_counts() -> None:
    assert settle("first", "second").winner == 0
    assert settle("second", "first").winner == 1
    assert settle("first", "first").outcome == settle("second", "second").outcome == "disagrees"
    assert settle("tie", "first").outcome == "tie"
    assert settle("unparsed", "first").outcome == "unparsed"
    assert settle("errored", "unparsed").outcome == "errored"


def test_likelihood_verdicts() -> None:
    assert prefers_first((-1.0, -1.0)) == 0.5
    assert prefers_first((-1.0, -3.0)) == pytest.approx(1 / (1 + 2.718281828**-2))
    assert prefers_first((-2000.0, 0.0)) == pytest.approx(0.0)
    decided = settle_likelihoods(0.9, 0.3)
    assert (decided.winner, decided.margin) == (0, 0.3)
    assert settle_likelihoods(0.9, 0.8).outcome == "disagrees"
    assert settle_likelihoods(0.5, 0.2).outcome == "tie"


def test_both_orders_show_the_same_texts_swapped() -> None:
    prompt = ({"role": "user", "content": "Why?"},)
    a, b = both_orders("k", prompt, ("one", "two"), "ref", "generated", 64)
    assert isinstance(a, Request)
    assert "[Answer 1]\none\n\n[Answer 2]\ntwo" in a.messages[-1]["content"]
    assert "[Answer 1]\ntwo\n\n[Answer 2]\none" in b.messages[-1]["content"]
    assert "[Reference answer]\nref" in a.messages[-1]["content"]
    assert a.sampling.temperature == 0
    assert len({a.key, b.key}) == 2
    c, _ = both_orders("k", prompt, ("one", "two"), "", "likelihood", 64)
    assert isinstance(c, ScoreRequest)
    assert "Reference" not in c.messages[-1]["content"]
    assert c.continuations == (" 1", " 2")


def test_length_figures() -> None:
    assert summary([3, 1, 2]) == {"mean": 2.0, "median": 2, "p95": 3, "max": 3}
    assert summary([]) == {"mean": 0.0, "median": 0, "p95": 0, "max": 0}
    assert preference_by_length([10, 10], [5, 5]) == 1.0
    assert preference_by_length([5, 10], [10, 5]) == 0.0
    assert preference_by_length([5], [5]) is None
    assert preference_by_length([], [5]) is None
    assert preference_by_length([9, 4, 7], [3, 6]) == pytest.approx(2.166667 / 4.56**0.5 * 6**0.5 / 5, abs=1e-5)
    found = compare([5, 9], [5, 3])
    assert (found["chosen_longer"], found["equal_length"]) == (0.5, 0.5)


@given(st.lists(st.integers(1, 99), min_size=2, max_size=8), st.lists(st.integers(1, 99), min_size=2, max_size=8))
def test_correlation_is_pearsons(chosen: list[int], rejected: list[int]) -> None:
    import numpy as np

    found = preference_by_length(chosen, rejected)
    lengths = np.array([*chosen, *rejected], dtype=float)
    if lengths.std() == 0:
        assert found is None
        return
    label = np.array([1.0] * len(chosen) + [0.0] * len(rejected))
    assert found == pytest.approx(float(np.corrcoef(label, lengths)[0, 1]), abs=1e-6)
