"""What the writer of a chain of thought is asked: task, worked examples (written for this project), the question.

`explain` shows the gold answer and the reference explanation, as Aloe's writers saw them (arXiv 2505.04388, synthetic
data); `exam` shows neither, as in Medprompt's self-generated, label-validated exemplars (Nori et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aloe.data.templates import format_question
from aloe.digests import digest_json
from aloe.records import Message, Question

Mode = Literal["explain", "exam"]

SYSTEM = "You write short worked solutions to multiple-choice questions in medicine."
ASK = (
    "Write a worked solution. Say what the question asks, comment on every option in turn, and finish with a line of "
    'the form "Answer: X".'
)
PREFILL = "The question asks"
STOP = ("\nQuestion:", "\n\n\n")


@dataclass(frozen=True)
class Shot:
    """A worked example: a question with its explanation, and the solution to imitate (after `PREFILL`)."""

    question: Question
    solution: str


def _shot(number: int, stem: str, options: tuple[str, ...], answer: str, notes: str, solution: str) -> Shot:
    question = Question(
        id=f"shot-{number}", source="aloe", licence="cc0-1.0", question=stem, answer=answer, explanation=notes,
        options=dict(zip("ABCD", options, strict=True)),
    )  # fmt: skip
    return Shot(question, solution)


SHOTS: tuple[Shot, ...] = (
    _shot(
        1,
        "Which vitamin is needed for the carboxylation of clotting factors II, VII, IX and X?",
        ("Vitamin A", "Vitamin C", "Vitamin K", "Vitamin D"),
        "C",
        "Gamma-carboxylation of these factors by the liver needs vitamin K; warfarin blocks its recycling.",
        " which vitamin the liver uses to finish four clotting factors.\n"
        "A. Vitamin A: it serves vision and epithelia, and has no part in clotting.\n"
        "B. Vitamin C: it is needed to make collagen, so its lack causes scurvy.\n"
        "C. Vitamin K: it is the cofactor of gamma-carboxylation, which makes these factors able to bind calcium.\n"
        "D. Vitamin D: it raises calcium absorption in the gut and does not act on clotting factors.\n"
        "Answer: C",
    ),
    _shot(
        2,
        "A tall, thin young man has sudden chest pain and breathlessness, with absent breath sounds and a "
        "hyperresonant note on the right. What is the diagnosis?",
        ("Spontaneous pneumothorax", "Lobar pneumonia", "Pleural effusion", "Acute asthma"),
        "A",
        "Air in the pleural space removes breath sounds and makes the chest hyperresonant; tall thin men are at risk.",
        " what explains one-sided silent, hyperresonant lung in a tall young man.\n"
        "A. Spontaneous pneumothorax: air around the lung gives sudden pain, a silent side and a hollow note.\n"
        "B. Lobar pneumonia: it brings fever and a dull note with bronchial breathing.\n"
        "C. Pleural effusion: fluid makes the note stony dull, not hyperresonant.\n"
        "D. Acute asthma: it causes wheeze on both sides.\n"
        "Answer: A",
    ),
)


def writer_messages(question: Question, mode: Mode, shots: int) -> tuple[Message, ...]:
    """System turn, `shots` worked examples as earlier turns, and the question."""
    messages: list[Message] = [{"role": "system", "content": SYSTEM}]
    for shot in SHOTS[:shots]:
        messages.append({"role": "user", "content": _ask(shot.question, mode)})
        messages.append({"role": "assistant", "content": PREFILL + shot.solution})
    messages.append({"role": "user", "content": _ask(question, mode)})
    return tuple(messages)


def _ask(question: Question, mode: Mode) -> str:
    shown = format_question(question.question, question.options, question.context)
    parts = [f"Question: {shown}"]
    if mode == "explain":
        if question.explanation:
            parts.append(f"Notes: {question.explanation}")
        parts.append(f"Correct option: {question.answer}. {question.options[question.answer]}")
    return "\n\n".join([*parts, ASK])


def prompt_digest(mode: Mode, shots: int) -> str:
    """Digest of everything the writer sees but the question."""
    shown = [writer_messages(shot.question, mode, shots) for shot in SHOTS[:1]]
    return digest_json({"mode": mode, "shots": shots, "prefill": PREFILL, "stop": STOP, "shown": shown})
