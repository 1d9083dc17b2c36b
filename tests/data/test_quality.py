"""What every scorer shares: the exchanges of a row, the bottom share, the summary."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.data.quality import Scored, bottom, exchanges, quantiles, summary
from aloe.keyed import shuffled
from aloe.records import Dialogue, Message, Preference, Question


def say(*turns: str) -> list[Message]:
    """Turns written "u: text", "a: text" or "s: text"."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[t[0]], "content": t[3:]} for t in turns]


def dialogue(*turns: str) -> Dialogue:
    return Dialogue(id="d", source="s", licence="cc0-1.0", messages=say(*turns))


def test_a_question_is_its_exchange() -> None:
    options = {"A": "Insulin", "B": "Glucagon"}
    plain = Question(id="q", source="s", licence="x", question="Which lowers glucose?", options=options, answer="A")
    shown = "Which lowers glucose?\n\nA. Insulin\nB. Glucagon"
    assert exchanges(plain) == [(shown, "Answer: A")]
    told = Question(
        id="q", source="s", licence="x", question="Which lowers glucose?", options=options, answer="A",
        explanation="It moves glucose into cells.", context="On hormones.",
    )  # fmt: skip
    assert exchanges(told) == [(f"On hormones.\n\n{shown}", "It moves glucose into cells.\n\nAnswer: A")]


def test_turns_of_a_dialogue() -> None:
    assert exchanges(dialogue("s: be kind", "u: one", "a: two", "u: three", "a: four")) == [
        ("one", "two"), ("three", "four"),
    ]  # fmt: skip
    assert exchanges(dialogue("u: one", "u: more", "a: two", "a: three")) == [("one\n\nmore", "two\n\nthree")]


def test_an_unanswered_turn_is_not_an_exchange() -> None:
    """DEITA's code pairs a closing user turn with an empty response and scores that."""
    assert exchanges(dialogue("u: one", "a: two", "u: and now?")) == [("one", "two")]
    assert exchanges(dialogue("a: welcome", "u: one", "a: two")) == [("one", "two")]
    assert exchanges(dialogue("a: nobody asked")) == []


def test_other_rows_are_refused() -> None:
    with pytest.raises(TypeError, match="Preference"):
        exchanges(Preference(id="p", source="s", licence="x", prompt=say("u: x"), chosen="a", rejected="b"))


def names(count: int) -> list[str]:
    return [f"row{i:04d}" for i in range(count)]


def test_the_bottom_tenth_is_exact() -> None:
    for count, share, expected in ((10, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (100, 0.29, 29), (3, 0.1, 0), (4, 1.0, 4)):
        unscored, lowest = bottom([float(i) for i in range(count)], names(count), share)
        assert unscored == set()
        assert lowest == set(range(expected)), (count, share)


def test_unscored_rows_are_apart_and_not_counted_in_the_share() -> None:
    scores = [None, 5.0, math.nan, 1.0, math.inf, *(float(i) for i in range(10, 18))]
    unscored, lowest = bottom(scores, names(len(scores)), 0.2)
    assert unscored == {0, 2, 4}
    assert lowest == {1, 3}  # 2 of the 10 scored rows


@given(
    st.lists(st.one_of(st.none(), st.just(math.nan), st.integers(0, 4).map(float)), max_size=60),
    st.integers(0, 100),
    st.integers(0, 5),
)
def test_bottom_whatever_the_order(scores: list[float | None], percent: int, seed: int) -> None:
    ids, share = names(len(scores)), percent / 100
    unscored, lowest = bottom(scores, ids, share)
    scored = [i for i, s in enumerate(scores) if s is not None and not math.isnan(s)]
    assert unscored == set(range(len(scores))) - set(scored)
    assert len(lowest) == percent * len(scored) // 100
    worst = max((scores[i] for i in lowest), default=-1.0)
    assert all(scores[i] >= worst for i in scored if i not in lowest)
    order = shuffled(range(len(scores)), seed, "test-order", ids)
    _, again = bottom([scores[i] for i in order], [ids[i] for i in order], share)
    assert {order[i] for i in again} == lowest


def test_ties_do_not_follow_the_alphabet() -> None:
    """Ids start with the source's name: with ties by plain id, one source alone would pay."""
    ids = [f"{source}:{i}" for source in "ab" for i in range(100)]
    _, lowest = bottom([0.5] * 200, ids, 0.3)
    from_a = sum(i < 100 for i in lowest)
    assert len(lowest) == 60
    assert 15 <= from_a <= 45


def test_ties_do_not_depend_on_the_hash_seed() -> None:
    code = "from aloe.data.quality import bottom; print(sorted(bottom([1.0]*40, [str(i) for i in range(40)], .25)[1]))"
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outs) == 1


def test_bottom_refuses_what_makes_no_sense() -> None:
    for scores, ids, share in (([1.0], [], 0.1), ([1.0, 2.0], ["a", "a"], 0.1), ([1.0], ["a"], 1.5)):
        with pytest.raises(ValueError):
            bottom(scores, ids, share)


def test_summary_counts_reasons_and_keeps_data_values() -> None:
    scored = [Scored(float(i), {"x": i / 10}) for i in range(1, 11)]
    scored += [Scored(None, why="unparsed: I think 4"), Scored(None, why="unparsed: no"), Scored(math.nan)]
    found = summary(scored)
    assert (found["rows"], found["scored"]) == (13, 10)
    assert found["unscored"] == {"unparsed": 2, "unscored": 1}
    assert (found["score"]["0.1"], found["score"]["0.5"], found["score"]["1.0"]) == (1.0, 5.0, 10.0)
    assert found["parts"]["x"]["0.9"] == 0.9
    assert quantiles([]) == {}
