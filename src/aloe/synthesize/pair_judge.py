"""A model that compares two answers, asked in both orders.

Judges favour the answer shown first (or second) beyond its merit: Zheng et al. 2023, "Judging LLM-as-a-Judge",
arXiv 2306.05685, section 3.3. So every pair is shown both ways round, and only a preference that survives the swap
counts; otherwise it is a tie. The verdict is read from what the judge writes, or from the likelihood of "1" and "2".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aloe.digests import digest_json
from aloe.generate.engine import Request, Sampling, ScoreRequest
from aloe.prompting.extract import after_reasoning, clean
from aloe.records import Message

Verdict = Literal["first", "second", "tie", "unparsed", "errored"]
Reading = Literal["generated", "likelihood"]

SYSTEM = "You compare two answers to a medical question and say which one is better."
ASK = (
    "Prefer the answer that is medically correct, safe and complete, and that answers what was asked. A longer answer "
    "is not better for being longer, and the order in which the two stand means nothing. Give your reason in a "
    'sentence or two, then finish with one line: "Better answer: 1", "Better answer: 2" or "Better answer: tie".'
)
ASK_LETTER = (
    "Prefer the answer that is medically correct, safe and complete, and that answers what was asked. A longer answer "
    "is not better for being longer, and the order in which the two stand means nothing. Reply with its number alone."
)
PREFILL = "Better answer:"
CHOICES = (" 1", " 2")
_BETTER = re.compile(
    r"\b(?:better|best|preferred|winning)\s+(?:answer|one|response)?\s*(?:is\s*:?|:)\s*[\"'(\[]*"
    r"(?:(?:answer|number|response)\s*)?(?P<x>1|2|one|two|first|second|tie|equal|both|neither)\b",
    re.IGNORECASE,
)
_READ: dict[str, Verdict] = {
    "1": "first", "one": "first", "first": "first", "2": "second", "two": "second", "second": "second",
    "tie": "tie", "equal": "tie", "both": "tie", "neither": "tie",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What became of a pair. `winner` is 0 or 1 (which text), None for a tie or where nothing was read; `margin` is the
    mean probability of the winner less one half, 0.5 for verdicts in words."""

    outcome: Literal["decided", "tie", "disagrees", "unparsed", "errored"]
    winner: int | None = None
    margin: float = 0.0
    verdicts: tuple[Verdict, Verdict] = ("tie", "tie")


def compare_messages(
    prompt: Sequence[Message], first: str, second: str, reference: str, reading: Reading
) -> tuple[Message, ...]:
    """The judge's turns: task, the conversation so far, a reference answer if there is one, the two answers."""
    asked = "\n\n".join(m["content"] if m["role"] == "user" else f"({m['role']}) {m['content']}" for m in prompt)
    parts = [ASK if reading == "generated" else ASK_LETTER, f"[Question]\n{asked}"]
    if reference:
        parts.append(f"[Reference answer]\n{reference}")
    parts += [f"[Answer 1]\n{first}", f"[Answer 2]\n{second}"]
    return ({"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n\n".join(parts)})


def both_orders(
    key: str, prompt: Sequence[Message], texts: tuple[str, str], reference: str, reading: Reading, max_new_tokens: int
) -> tuple[Request | ScoreRequest, Request | ScoreRequest]:
    """The two requests of a comparison: texts as given, and the other way round."""
    found: list[Request | ScoreRequest] = []
    for name, (first, second) in (("12", texts), ("21", texts[::-1])):
        messages = compare_messages(prompt, first, second, reference, reading)
        if reading == "generated":
            sampling = Sampling(max_new_tokens=max_new_tokens)
            found.append(Request(key=f"{key}|{name}", messages=messages, sampling=sampling))
        else:
            found.append(ScoreRequest(key=f"{key}|{name}", messages=messages, continuations=CHOICES, prefill=PREFILL))
    return found[0], found[1]


def read_verdict(text: str) -> Verdict:
    """The last verdict in the text after its reasoning block."""
    found = _BETTER.findall(clean(after_reasoning(text)))
    return _READ[found[-1].lower()] if found else "unparsed"


def prefers_first(logprobs: Sequence[float]) -> float:
    """Probability of the first answer, given that one of the two is named."""
    return 1 / (1 + math.exp(max(-700.0, min(700.0, logprobs[1] - logprobs[0]))))


def settle(as_given: Verdict, swapped: Verdict, margin: float = 0.5) -> Comparison:
    """Two verdicts on the same two texts, the second with them swapped, as one."""
    verdicts = (as_given, swapped)
    for problem in ("errored", "unparsed"):
        if problem in verdicts:
            return Comparison("errored" if problem == "errored" else "unparsed", verdicts=verdicts)
    if "tie" in verdicts:
        return Comparison("tie", verdicts=verdicts)
    if as_given == swapped:  # the same place twice: it is the place that was preferred
        return Comparison("disagrees", verdicts=verdicts)
    return Comparison("decided", 0 if as_given == "first" else 1, margin, verdicts)


def settle_likelihoods(as_given: float, swapped: float) -> Comparison:
    """From the probabilities of the text shown first, in both orders; exactly one half counts as a tie."""
    sides: list[Verdict] = ["tie" if p == 0.5 else "first" if p > 0.5 else "second" for p in (as_given, swapped)]
    mean = (as_given + 1 - swapped) / 2
    return settle(sides[0], sides[1], margin=round(abs(mean - 0.5), 6))


def judge_prompt_digest(reading: Reading, show_reference: bool) -> str:
    """Digest of everything the judge sees but question and answers."""
    shown = compare_messages([{"role": "user", "content": "q"}], "a", "b", "r" if show_reference else "", reading)
    return digest_json({"shown": shown, "prefill": PREFILL, "choices": CHOICES, "reading": reading})
