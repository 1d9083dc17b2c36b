"""Multiple choice by likelihood, over the mock engine."""

from __future__ import annotations

import math
import re

import pytest

from aloe.evaluate import likelihood
from aloe.evaluate.likelihood import read_scores, score_requests
from aloe.evaluate.stats import total_variation
from aloe.generate.engine import Score, ScoreRequest
from aloe.generate.mock import MockEngine
from aloe.records import Question

TEXTS = ["Aspirin", "Furosemide", "Metformin", "Warfarin"]


def question(i: int, answer: str = "B") -> Question:
    return Question(
        id=f"q{i}", source="s", licence="l", question=f"Which drug, case {i}?", answer=answer, context="A case.",
        options=dict(zip("ABCD", TEXTS, strict=True)),
    )  # fmt: skip


def shown_text(request: ScoreRequest, letter: str) -> str:
    match = re.search(rf"^{letter}\. (.*)$", request.messages[-1]["content"], re.M)
    return match[1] if match else ""


def run(engine: MockEngine, questions: list[Question], limit: int | None = None) -> list[likelihood.LikelihoodResult]:
    return [read_scores(q, engine.loglikelihood(score_requests(q, limit)), 0, limit) for q in questions]


def biased(request: ScoreRequest, continuation: str) -> float:
    """Knows furosemide a little, loves the letter A much more."""
    letter = continuation.strip()
    if letter not in "ABCD":
        return -1.0 * len(continuation) if continuation != "Furosemide" else -4.0
    return -5.0 + 3.0 * (letter == "A") + 1.0 * (shown_text(request, letter) == "Furosemide")


def test_one_request_per_rotation_with_all_letters_over_one_context() -> None:
    requests = score_requests(question(0))
    assert len(requests) == 5
    for request in requests[:4]:
        assert request.continuations == (" A", " B", " C", " D")
        assert request.prefill == "Answer:"
        assert request.messages[-1]["content"].startswith("A case.\n\nWhich drug, case 0?")
    assert {shown_text(r, "A") for r in requests[:4]} == set(TEXTS)
    assert requests[4].continuations == tuple(TEXTS)
    assert "Aspirin" not in requests[4].messages[-1]["content"]
    assert len(score_requests(question(0), limit=1)) == 2


def test_rotation_averaging_undoes_a_letter_preference() -> None:
    questions = [question(i, answer) for i, answer in enumerate("BBBB")]
    results = run(MockEngine(score=biased), questions)
    assert [r.letter for r in results] == ["B"] * 4
    assert likelihood.rotation_accuracy(results) == [0.0, 1.0, 0.0, 0.0]  # alone, only where B stands under A
    predicted, gold = likelihood.letter_counts(results)
    assert predicted == {"A": 16}
    assert gold == {"A": 4, "B": 4, "C": 4, "D": 4}
    assert total_variation(predicted, gold) == 0.75
    assert [r.letter for r in run(MockEngine(score=biased), questions, limit=1)] == ["A"] * 4


def test_the_mean_over_rotations_is_exact() -> None:
    (result,) = run(MockEngine(score=biased), [question(0)])
    assert result.logprobs == pytest.approx({"A": -4.25, "B": -3.25, "C": -4.25, "D": -4.25})


def test_nll_of_the_right_text_per_token_and_byte() -> None:
    row = Question(
        id="q", source="s", licence="l", question="Which?", options={"A": "acute érythema", "B": "none"}, answer="A"
    )
    engine = MockEngine(score=lambda _, continuation: -6.0 if "acute" in continuation else -8.0)
    (result,) = run(engine, [row])
    assert result.nll_token == 3.0  # two words
    assert result.nll_byte == pytest.approx(6.0 / 15)  # é is two bytes
    assert result.text_letter == "A"


def test_a_model_without_preference_is_not_scored_by_where_gold_stands() -> None:
    questions = [question(i, "A") for i in range(400)]
    results = run(MockEngine(score=lambda *_: -1.0), questions)
    share = sum(r.letter == "A" for r in results) / len(results)
    assert 0.18 < share < 0.32
    assert results == run(MockEngine(score=lambda *_: -1.0), questions)


def test_a_failed_request_makes_the_item_errored() -> None:
    row = question(0)
    scores = MockEngine().loglikelihood(score_requests(row))
    broken = Score(key="x", logprobs=(), token_counts=(), greedy=(), prompt_tokens=0, error="out of memory")
    result = read_scores(row, [*scores[:2], broken, *scores[3:]], 0)
    assert (result.error, result.letter, result.shown) == ("out of memory", None, ())


def test_finite() -> None:
    good = Score(key="x", logprobs=(-1.0,), token_counts=(1,), greedy=(True,), prompt_tokens=1)
    bad = Score(key="x", logprobs=(math.nan,), token_counts=(1,), greedy=(True,), prompt_tokens=1)
    assert likelihood.finite([good])
    assert not likelihood.finite([good, bad])
