"""Templates: enough of them, drawn by key, one question shape for the whole project."""

from __future__ import annotations

from collections import Counter

import pytest

from aloe.data.templates import TEMPLATES, draw, fill, format_question, render
from aloe.records import Dialogue, Question

QUESTION = Question(
    id="q1", source="s", licence="mit", question="Which?", options={"B": "y", "A": "x {letter}"}, answer="B",
    explanation="Because.", meta={"topic": "t"},
)  # fmt: skip


def test_question_shape_equals_the_prompting_rooms() -> None:
    mcq = pytest.importorskip("aloe.prompting.mcq")
    cases: list[tuple[str, dict[str, str], str]] = [
        ("Which?", {"A": "x", "B": "y"}, ""),
        (" Which? \n", {"C": " z ", "A": "x", "B": "y"}, "Some\ncontext. "),
        ("Which?", {"A": "x", "B": "y"}, "  "),
    ]
    for case in cases:
        assert format_question(*case) == mcq.format_question(*case)
    assert format_question("Which?", {"A": "x", "B": "y"}, "C.") == "C.\n\nWhich?\n\nA. x\nB. y"


def test_five_templates_or_more_each_of_its_own() -> None:
    assert set(TEMPLATES) == {"multiple_choice", "multiple_choice_explained", "question_answering", "instruction"}
    for task, family in TEMPLATES.items():
        assert len(family) >= 5
        assert len({t.user for t in family}) == len(family)
        assert len({t.name for t in family}) == len(family)
        assert all(t.name.startswith(f"{task}/") for t in family)


def test_multiple_choice_answers_end_in_the_letter() -> None:
    explained, plain = render(QUESTION, 7, 1.0), render(QUESTION, 7, 0.0)
    assert explained.messages[1]["content"] == "Because.\n\nAnswer: B"
    assert plain.messages[1]["content"] == "Answer: B"
    for row, task in ((explained, "multiple_choice_explained"), (plain, "multiple_choice")):
        assert format_question("Which?", QUESTION.options) in row.messages[0]["content"]
        assert row.meta["task"] == task
        assert row.meta["template"].startswith(task)
        assert Question.from_dict(row.meta["question"]) == QUESTION
        assert (row.id, row.source, row.licence) == ("q1", "s", "mit")


def test_draw_depends_on_row_and_seed_alone_and_is_even() -> None:
    names = [draw("multiple_choice", f"r{i}", 7).name for i in range(3000)]
    assert names == [draw("multiple_choice", f"r{i}", 7).name for i in range(3000)]
    assert names != [draw("multiple_choice", f"r{i}", 8).name for i in range(3000)]
    counts = Counter(names)
    assert len(counts) == len(TEMPLATES["multiple_choice"])
    assert min(counts.values()) > 400


def test_slots_are_filled_once() -> None:
    assert fill("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"


def dialogue(*texts: str, **meta: object) -> Dialogue:
    roles = ["user", "assistant"] * 3
    turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return Dialogue(id="d", source="s", licence="mit", messages=turns, meta=dict(meta))


def test_dialogues() -> None:
    answered = render(dialogue("What is {flu}?", "A virus.", form="question_answer"), 7)
    assert answered.messages[1]["content"] == "A virus."
    assert "What is {flu}?" in answered.messages[0]["content"]
    assert answered.meta["task"] == "question_answering"
    instructed = render(dialogue("Sum up.", "Done.", form="instruction", task="summarise"), 7)
    assert (instructed.meta["task"], instructed.meta["original_task"]) == ("instruction", "summarise")
    talk = dialogue("a", "b", "c", "d")
    assert render(talk, 7).messages == talk.messages
    assert render(talk, 7).meta == {"task": "conversation", "template": "conversation/as_is"}
    assert render(render(talk, 7), 7) == render(talk, 7)
