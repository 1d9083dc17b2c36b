"""Instruction templates: how a record becomes the dialogue a model is trained on.

One template of the record's task is drawn per row, by the row's id (keyed randomness), and its name stays on the row.
Multiple-choice text has one shape everywhere: `format_question` here and in the prompting room are held equal by a
test, so training and evaluation show a question alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aloe.keyed import rng
from aloe.records import Dialogue, Message, Question, Row


@dataclass(frozen=True)
class Template:
    """Texts of the user's and the assistant's turn, with `{slots}`; `name` is `task/number`."""

    name: str
    user: str
    assistant: str


def _family(task: str, *pairs: tuple[str, str]) -> tuple[Template, ...]:
    return tuple(Template(f"{task}/{i}", user, assistant) for i, (user, assistant) in enumerate(pairs))


_LETTER = "Answer: {letter}"
_REASONED = "{explanation}\n\nAnswer: {letter}"
TEMPLATES: dict[str, tuple[Template, ...]] = {
    "multiple_choice": _family(
        "multiple_choice",
        ("{question}", _LETTER),
        ("Answer the following multiple-choice question with the letter of the best option.\n\n{question}", _LETTER),
        ("{question}\n\nWhich option is correct? Reply with its letter.", _LETTER),
        ("Choose the one best answer.\n\n{question}", _LETTER),
        ("Here is an exam question in medicine. Give only the letter of the right option.\n\n{question}", _LETTER),
        ("{question}\n\nState the letter of the correct answer and nothing else.", _LETTER),
    ),
    "multiple_choice_explained": _family(
        "multiple_choice_explained",
        ("{question}\n\nExplain your reasoning, then give the letter of the answer.", _REASONED),
        ("Work through this multiple-choice question and finish with the letter of your answer.\n\n{question}",
         _REASONED),
        ("{question}\n\nWhich option is correct, and why? End with the letter.", _REASONED),
        ("Think about the question below, explain your choice and conclude with one letter.\n\n{question}", _REASONED),
        ("A colleague asks for help with this question. Explain the answer, then state it.\n\n{question}", _REASONED),
        ("{question}\n\nGive a short justification followed by the answer.", _REASONED),
    ),
    "question_answering": _family(
        "question_answering",
        ("{question}", "{answer}"),
        ("Please answer this medical question.\n\n{question}", "{answer}"),
        ("I have a question about health: {question}", "{answer}"),
        ("{question}\n\nPlease explain clearly.", "{answer}"),
        ("Can you help me understand this? {question}", "{answer}"),
        ("Question: {question}", "{answer}"),
    ),
    "instruction": _family(
        "instruction",
        ("{instruction}", "{answer}"),
        ("Please help me with the following.\n\n{instruction}", "{answer}"),
        ("Here is what I need:\n\n{instruction}", "{answer}"),
        ("Task: {instruction}", "{answer}"),
        ("I'd like your help. {instruction}", "{answer}"),
    ),
}  # fmt: skip
_TASK_OF_FORM = {"question_answer": "question_answering", "instruction": "instruction"}
AS_IS = "conversation/as_is"


def format_question(question: str, options: Mapping[str, str], context: str = "") -> str:
    """A multiple-choice question as text: context (if any), question, one `A. text` line per option, by letter."""
    head = f"{context.strip()}\n\n{question.strip()}" if context.strip() else question.strip()
    return head + "\n\n" + "\n".join(f"{letter}. {options[letter].strip()}" for letter in sorted(options))


def draw(task: str, row_id: str, seed: int) -> Template:
    """The template of `task` for this row: uniform, and the same whatever other rows there are."""
    family = TEMPLATES[task]
    return family[int(rng(seed, f"template:{task}", row_id).integers(len(family)))]


def fill(text: str, slots: Mapping[str, str]) -> str:
    """Put `slots` into `{names}`, in one pass: braces inside a slot's own text stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: slots[m[1]], text)


def explained(question: Question, seed: int, share: float) -> bool:
    """Whether a question is rendered with its explanation: it has one, and the keyed draw falls below `share`."""
    return bool(question.explanation) and float(rng(seed, "explained", question.id).random()) < share


def user_text(question: Question, task: str, seed: int) -> tuple[str, str]:
    """(user turn, template name) of a question for one of the two multiple-choice tasks."""
    template = draw(task, question.id, seed)
    shown = format_question(question.question, question.options, question.context)
    return fill(template.user, {"question": shown}), template.name


def render(record: Row, seed: int, explained_share: float = 1.0) -> Dialogue:
    """The training dialogue of a question or dialogue, its template and task in `meta`.

    A question keeps its fields in `meta["question"]`, so that later steps can read it. A conversation of several
    turns, and a dialogue that carries a template already, stay as they are.
    """
    if isinstance(record, Question):
        return _render_question(record, seed, explained_share)
    if not isinstance(record, Dialogue):
        raise TypeError(f"templates take questions and dialogues, not {type(record).__name__}")
    meta = dict(record.meta)
    if "template" in meta:
        return record
    task = _TASK_OF_FORM.get(meta.pop("form", ""), "conversation")
    if task not in TEMPLATES:
        return replace(record, meta=_with_task(meta, task, AS_IS))
    user, assistant = (m["content"] for m in record.messages)
    template = draw(task, record.id, seed)
    slots = {"question": user, "instruction": user, "answer": assistant}
    return replace(
        record,
        messages=exchange(fill(template.user, slots), fill(template.assistant, slots)),
        meta=_with_task(meta, task, template.name),
    )


def _render_question(question: Question, seed: int, explained_share: float) -> Dialogue:
    task = "multiple_choice_explained" if explained(question, seed, explained_share) else "multiple_choice"
    user, name = user_text(question, task, seed)
    slots = {"explanation": question.explanation, "letter": question.answer}
    assistant = fill(draw(task, question.id, seed).assistant, slots)
    return Dialogue(
        id=question.id, source=question.source, licence=question.licence, messages=exchange(user, assistant),
        meta=_with_task(dict(question.meta), task, name) | {"question": question.to_dict()},
    )  # fmt: skip


def exchange(user: str, assistant: str) -> list[Message]:
    """One user turn and one assistant turn."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _with_task(meta: dict[str, Any], task: str, template: str) -> dict[str, Any]:
    """`meta` with our task and template; a task the source itself names is kept as `original_task`."""
    if "task" in meta:
        meta["original_task"] = meta.pop("task")
    return {**meta, "task": task, "template": template}
