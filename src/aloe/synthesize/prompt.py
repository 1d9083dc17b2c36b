"""What the writer of a chain of thought is asked: task, worked examples (written for this project), the question.

`explain` shows the gold answer and the reference explanation, as Aloe's writers saw them (arXiv 2505.04388, synthetic
data); `exam` shows neither, as in Medprompt's self-generated, label-validated exemplars (Nori et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from aloe.data.templates import format_question
from aloe.digests import digest_json
from aloe.records import Message, Question

Mode = Literal["explain", "exam"]

SYSTEM = "You write short worked solutions to multiple-choice questions in medicine."
ASK = (
    "Write a worked solution: say what the question asks, weigh every option on a line of its own, and finish with a "
    'line of the form "Answer: X".'
)
PREFILL = "The question asks"
END = "\n###"  # closes every worked example: a small writer imitates a mark more surely than the end of a turn
STOP = (END, "\nQuestion:")


@dataclass(frozen=True)
class Shot:
    """A worked example: a question with its explanation, and the solution to imitate (between `PREFILL` and `END`)."""

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
        "Vitamin K is the cofactor that carboxylates these factors, which lets them bind calcium. Vitamin A serves "
        "vision, vitamin C is needed to make collagen, and vitamin D raises calcium absorption in the gut.",
        " which vitamin the liver needs to finish four clotting factors.\n"
        "A. Vitamin A serves vision, so it does not fit.\n"
        "B. Vitamin C is needed to make collagen, so it does not fit.\n"
        "C. Vitamin K is the cofactor that carboxylates these factors, which lets them bind calcium, so it fits.\n"
        "D. Vitamin D raises calcium absorption in the gut, so it does not fit.\n"
        "Answer: C",
    ),
    _shot(
        2,
        "A tall, thin young man has sudden chest pain and breathlessness, with absent breath sounds and a "
        "hyperresonant note on the right. What is the diagnosis?",
        ("Lobar pneumonia", "Spontaneous pneumothorax", "Pleural effusion", "Acute asthma"),
        "B",
        "Air around the lung removes the breath sounds and makes the note hyperresonant, and tall thin men are at risk "
        "of spontaneous pneumothorax. Lobar pneumonia gives fever and a dull note, pleural effusion gives a stony dull "
        "note, and acute asthma gives wheeze on both sides.",
        " what causes sudden chest pain with a silent, hyperresonant right side in a tall, thin young man.\n"
        "A. Lobar pneumonia gives fever and a dull note, so it does not fit.\n"
        "B. Spontaneous pneumothorax puts air around the lung, which removes the breath sounds and makes the note "
        "hyperresonant, so it fits.\n"
        "C. Pleural effusion gives a stony dull note, so it does not fit.\n"
        "D. Acute asthma gives wheeze on both sides, so it does not fit.\n"
        "Answer: B",
    ),
)


def writer_messages(question: Question, mode: Mode, shots: int) -> tuple[Message, ...]:
    """System turn, `shots` worked examples as earlier turns, and the question: the same opening for every question, so
    an engine computes it once."""
    return (*_opening(mode, shots), {"role": "user", "content": _ask(question, mode)})


@cache
def _opening(mode: Mode, shots: int) -> tuple[Message, ...]:
    messages: list[Message] = [{"role": "system", "content": SYSTEM}]
    for shot in SHOTS[:shots]:
        messages.append({"role": "user", "content": _ask(shot.question, mode)})
        messages.append({"role": "assistant", "content": PREFILL + shot.solution + END})
    return tuple(messages)


def _ask(question: Question, mode: Mode) -> str:
    shown = format_question(question.question, question.options, question.context)
    parts = [f"{ASK}\n\nQuestion: {shown}"]
    if mode == "explain":
        if question.explanation:
            parts.append(f"Notes: {question.explanation}")
        parts.append(f"Correct option: {question.answer}. {question.options[question.answer]}")
    return "\n\n".join(parts)


def prompt_digest(mode: Mode, shots: int) -> str:
    """Digest of everything the writer sees but the question."""
    shown = [writer_messages(shot.question, mode, shots) for shot in SHOTS[:1]]
    return digest_json({"mode": mode, "shots": shots, "prefill": PREFILL, "stop": STOP, "shown": shown})
