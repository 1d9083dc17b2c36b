"""What the writer of an explained answer is asked: task, worked examples (written for this project), question and
answer. System text and examples come first, so an engine computes them once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from aloe.digests import digest_json
from aloe.records import Message
from aloe.synthesize.prompt import END

SYSTEM = "You turn short medical answers into clear, explained ones without changing what they say."
ASK = (
    "Write the answer to the question below anew, as one who explains it: say what it means and why, in full sentences."
    " Keep every fact, number, unit and warning of the answer. Add no number, dose, drug or advice that it does not "
    "have. Speak to the reader, not about the answer."
)
STOP = (END, "\nQuestion:", "\nAnswer to explain:")


@dataclass(frozen=True)
class RewriteShot:
    """A worked example."""

    question: str
    answer: str
    explained: str


SHOTS: tuple[RewriteShot, ...] = (
    RewriteShot(
        "How should iron tablets be taken?",
        "On an empty stomach with orange juice; not with tea. Stools may turn black. Continue for 3 months after the "
        "haemoglobin is normal.",
        "Iron is absorbed best on an empty stomach, and orange juice helps because vitamin C keeps the iron dissolved. "
        "Do not take the tablets with tea, whose tannins bind iron in the gut so that less of it gets through. Your "
        "stools may turn black; this is unabsorbed iron and no cause for alarm. Once the haemoglobin is normal, "
        "continue the tablets for 3 months, so that the body's iron stores fill up again as well.",
    ),
    RewriteShot(
        "Why does asthma often get worse at night?",
        "Airways narrow with the body clock; lying down and allergens in bedding add to it.",
        "The width of the airways follows the body clock, and they narrow during the night, when the body makes less of"
        " the hormones that hold them open. Lying down adds to it, since mucus drains less well and the lungs have less"
        " room. Allergens in bedding, such as those of house dust mites, irritate airways that are already inflamed, "
        "and so asthma that is quiet by day can wake a person at night.",
    ),
)


def rewrite_messages(question: str, answer: str, shots: int) -> tuple[Message, ...]:
    """System turn, `shots` worked examples as earlier turns, question and answer."""
    return (*_opening(shots), {"role": "user", "content": _ask(question, answer)})


@cache
def _opening(shots: int) -> tuple[Message, ...]:
    messages: list[Message] = [{"role": "system", "content": SYSTEM}]
    for shot in SHOTS[:shots]:
        messages.append({"role": "user", "content": _ask(shot.question, shot.answer)})
        messages.append({"role": "assistant", "content": shot.explained + END})
    return tuple(messages)


def _ask(question: str, answer: str) -> str:
    return f"{ASK}\n\nQuestion: {question.strip()}\n\nAnswer to explain: {answer.strip()}"


def rewrite_prompt_digest(shots: int) -> str:
    """Digest of everything the writer sees but question and answer."""
    return digest_json({"shots": shots, "stop": STOP, "shown": rewrite_messages("q", "a", shots)})
