"""DEITA: golden expectations, the published prompts, and no default scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.data.deita import RAW_TEMPLATE, DeitaScorer, complexity_prompt, expected_grade, quality_prompt
from aloe.data.quality import Scorer, bottom
from aloe.errors import AloeError
from aloe.generate.engine import Score, ScoreRequest, Tick
from aloe.generate.mock import MockEngine
from aloe.records import Dialogue
from aloe.records import Message as Turn

GRADES = ("1", "2", "3", "4", "5", "6")


def dialogue(name: str, *texts: str) -> Dialogue:
    roles = ("user", "assistant")
    messages: list[Turn] = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
    return Dialogue(id=name, source="s", licence="x", messages=messages)


def grading(probabilities: dict[str, Sequence[float]]) -> MockEngine:
    """An engine that gives these six probabilities to a prompt that holds the given text."""

    def score(request: ScoreRequest, continuation: str) -> float:
        [message] = request.messages
        [found] = [p for text, p in probabilities.items() if text in message["content"]]
        value = found[GRADES.index(continuation)]
        return math.log(value) if value > 0 else value

    return MockEngine(score=score)


def test_golden_expectations() -> None:
    """By hand: the mean of 1..6; all on one grade; (1 x .1 + 2 x .2 + 3 x .4 + 4 x .2 + 5 x .1) / 1.0 = 3.0; half of
    the mass elsewhere: (5 x .3 + 6 x .2) / .5 = 5.4."""
    assert expected_grade([math.log(0.1)] * 6) == pytest.approx(3.5, abs=1e-12)
    assert expected_grade([-1000, -1000, -1000, 0, -1000, -1000]) == pytest.approx(4.0, abs=1e-12)
    logs = [math.log(p) for p in (0.1, 0.2, 0.4, 0.2, 0.1, 1e-300)]
    assert expected_grade(logs) == pytest.approx(3.0, abs=1e-12)
    logs = [math.log(p) for p in (1e-300, 1e-300, 1e-300, 1e-300, 0.3, 0.2)]
    assert expected_grade(logs) == pytest.approx(5.4, abs=1e-12)


def test_tiny_probabilities_do_not_underflow() -> None:
    assert expected_grade([-2000.0 + x for x in (0, -1, -2, -3, -4, -5)]) == pytest.approx(
        expected_grade([0.0, -1, -2, -3, -4, -5]), abs=1e-12
    )


@given(st.lists(st.floats(-50, 0), min_size=6, max_size=6), st.floats(-100, 100))
def test_an_expectation_lies_in_its_range_and_ignores_a_common_factor(logs: list[float], shift: float) -> None:
    value = expected_grade(logs)
    assert 1 <= value <= 6
    assert expected_grade([x + shift for x in logs]) == pytest.approx(value, abs=1e-6)


def test_score_is_complexity_times_quality_summed_over_turns() -> None:
    """Turn one: 3.5 x 6 = 21; turn two: 2 x 1.5 = 3."""
    engine = grading(
        {
            "##Query: first": [1 / 6] * 6, "#Question#:\nfirst": [1e-12] * 5 + [1.0],
            "##Query: second": [1e-12, 1.0, 1e-12, 1e-12, 1e-12, 1e-12],
            "#Question#:\nsecond": [0.5, 0.5, 1e-12, 1e-12, 1e-12, 1e-12],
        }
    )  # fmt: skip
    [scored] = DeitaScorer(engine).score([dialogue("d", "first", "answer one", "second", "answer two")])
    assert scored.score == pytest.approx(24.0, abs=1e-6)
    assert scored.parts["turns"] == 2
    assert scored.parts["complexity"] == pytest.approx(2.75, abs=1e-6)
    assert scored.parts["quality"] == pytest.approx(3.75, abs=1e-6)
    assert scored.parts["mass"] == pytest.approx(1.0, abs=1e-6)
    assert len(engine.scored) == 4
    assert all(r.continuations == GRADES for r in engine.scored)


def test_the_published_prompts_word_for_word() -> None:
    assert complexity_prompt("Why {is} it?") == (
        "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
        "##Query: Why {is} it?  \n##Complexity: "
    )
    assert quality_prompt("Why {output}?", "Because {instruction}.") == (
        "You are a helpful assistant. Please identify the quality score of the Response corresponding to the "
        "Question. \n #Question#:\nWhy {output}?\n#Response#:\nBecause {instruction}. \n##Quality: "
    )


def test_raw_form_sends_the_prompt_and_chat_form_drops_only_its_last_space() -> None:
    row = dialogue("d", "q", "a")
    raw, chat = MockEngine(), MockEngine()
    DeitaScorer(raw, form="raw").score([row])
    DeitaScorer(chat).score([row])
    assert [r.messages[0]["content"] for r in raw.scored] == [complexity_prompt("q"), quality_prompt("q", "a")]
    assert [r.messages[0]["content"] + " " for r in chat.scored] == [r.messages[0]["content"] for r in raw.scored]
    assert DeitaScorer(raw, form="raw").digest != DeitaScorer(raw).digest


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_missing_probability_leaves_the_row_unscored(bad: float) -> None:
    """Published code: `except KeyError: return 3.0`."""
    engine = MockEngine(score=lambda request, c: bad if c == "4" and request.key.endswith("quality") else -1.0)
    scored = DeitaScorer(engine).score([dialogue("d", "q", "a")])
    assert scored[0].score is None
    assert scored[0].why == "no probability: no log-probability for grade 4"
    assert bottom([s.score for s in scored], ["d"], 0.1) == ({0}, set())


class Failing(MockEngine):
    """Scores, but the requests of row `bad` come back as errors."""

    def loglikelihood(self, requests: Sequence[ScoreRequest], tick: Tick | None = None) -> list[Score]:
        return [
            Score(key=s.key, logprobs=(), token_counts=(), greedy=(), prompt_tokens=0, error="HTTP 500")
            if s.key.startswith("bad|") else s
            for s in super().loglikelihood(requests, tick)
        ]  # fmt: skip


def test_an_engine_error_leaves_only_its_row_unscored() -> None:
    """Not distilabel's rule either, which takes the one score that did come, or 0."""
    rows = [dialogue("good", "q", "a"), dialogue("bad", "q", "a"), dialogue("fine", "x", "y")]
    scored = DeitaScorer(Failing()).score(rows)
    assert [s.score is None for s in scored] == [False, True, False]
    assert scored[1].why == "engine error: HTTP 500"


def test_a_prompt_over_the_window_is_unscored() -> None:
    rows = [dialogue("short", "q", "a"), dialogue("long", "word " * 300, "a")]
    scored = DeitaScorer(MockEngine(), max_prompt_tokens=100).score(rows)
    assert scored[0].score is not None
    assert scored[1].score is None
    assert scored[1].why.startswith("too long: ")


def test_a_model_that_does_not_grade_can_be_refused() -> None:
    engine = MockEngine(score=lambda request, c: math.log(1e-4))
    [kept] = DeitaScorer(engine).score([dialogue("d", "q", "a")])
    assert kept.parts["mass"] == pytest.approx(6e-4)
    [refused] = DeitaScorer(engine, min_mass=0.5).score([dialogue("d", "q", "a")])
    assert refused.score is None
    assert refused.why.startswith("not a grade: ")


def test_nothing_to_score() -> None:
    engine = MockEngine()
    greeting: list[Turn] = [{"role": "assistant", "content": "hello"}]
    [scored] = DeitaScorer(engine).score([Dialogue(id="d", source="s", licence="x", messages=greeting)])
    assert scored.score is None
    assert scored.why.startswith("no answered turn")
    assert engine.scored == []
    assert DeitaScorer(engine).score([]) == []


def test_order_and_neighbours_change_nothing() -> None:
    rows = [dialogue(f"d{i}", f"question {i}", f"answer {i}") for i in range(7)]
    together = DeitaScorer(MockEngine()).score(rows)
    alone = [DeitaScorer(MockEngine()).score([r])[0] for r in rows]
    backwards = DeitaScorer(MockEngine()).score(rows[::-1])[::-1]
    assert together == alone == backwards
    assert len({s.score for s in together}) == 7


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(AloeError, match="form"):
        DeitaScorer(MockEngine(), form="vicuna")  # type: ignore[arg-type]
    with pytest.raises(AloeError, match="min_mass"):
        DeitaScorer(MockEngine(), min_mass=1.0)
    assert isinstance(DeitaScorer(MockEngine()), Scorer)


def test_digest_names_the_model() -> None:
    assert DeitaScorer(MockEngine()).digest == DeitaScorer(MockEngine()).digest
    assert DeitaScorer(MockEngine()).digest != DeitaScorer(MockEngine(name="other")).digest


def test_the_raw_template_prints_the_prompt_and_nothing_else(tiny_tokenizer: Any) -> None:
    """What the published scorers were trained on: the start token, the prompt, at once the digit."""
    import copy

    from aloe.models.chat import ChatTemplate

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = RAW_TEMPLATE
    template = ChatTemplate(tokenizer)
    prompt = quality_prompt("Is it {safe}?", "Yes.")
    assert template.prompt_ids([{"role": "user", "content": prompt}]) == [
        tokenizer.bos_token_id, *template.content_ids(prompt),
    ]  # fmt: skip
    assert prompt.endswith(" ")
    assert tokenizer.decode(template.prompt_ids([{"role": "user", "content": prompt}])[1:]) == prompt


def test_a_real_model_grades_by_its_next_token(tiny_model_folder: Path) -> None:
    """The tiny random model: the score equals the expectation from a plain forward pass over the whole vocabulary."""
    import torch

    from aloe.generate.local import LocalEngine
    from aloe.models.load import load

    loaded = load(tiny_model_folder)
    row = dialogue("d", "Which option is right about a fever?", "Rest and water.")
    [scored] = DeitaScorer(LocalEngine(loaded, "tiny", "digest")).score([row])
    grades = []
    for prompt in (complexity_prompt("Which option is right about a fever?"),
                   quality_prompt("Which option is right about a fever?", "Rest and water.")):  # fmt: skip
        ids = loaded.template.prompt_ids([{"role": "user", "content": prompt.rstrip()}])
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([ids])).logits[0, -1].double()
        six = torch.softmax(logits[[loaded.template.content_ids(g)[0] for g in GRADES]], dim=0)
        grades.append(float((six * torch.arange(1, 7, dtype=torch.float64)).sum()))
    assert scored.score == pytest.approx(grades[0] * grades[1], rel=1e-4)
