"""Which written chains of thought may be trained on. Pure: a text in, the reasons against it out.

Rules of the Aloe papers: the conclusion equals the gold answer, every option is weighed, and the text does more than
repeat the question. Ours besides: nothing cut off, nothing copied from the worked examples, no phrase that gives away
that the answer was known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aloe.data.clean import words
from aloe.prompting.extract import extract
from aloe.records import Question

MAX_COPY = 0.7  # share of a text's word trigrams that may stand in the question and its options; ours
MAX_ECHO = 0.5  # share of its word 5-grams that may stand in a worked example; ours
UNSTATED = ("leading", "option_text")  # the extractor reads a letter, but the text states no conclusion
MIN_OWN_WORDS = 12  # words of reasoning beyond the conclusion; ours

_CORRECT = r"(?:correct|right|gold|reference|known|intended|expected)"
_KNOWN = r"(?:given|provided|stated|supplied|indicated|listed|marked|specified|mentioned|told|known)"
LEAKS: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:the\s+)?(?:{_KNOWN}|known|gold|reference|supplied)\s+(?:{_CORRECT}\s+)?(?:answer|option|choice|solution|"
        r"label|notes?|explanation)s?\b",
        rf"\b{_CORRECT}\s+(?:answer|option|choice)\s+(?:is|was|has\s+been)\s+(?:already\s+)?{_KNOWN}\b",
        rf"\bas\s+(?:is\s+|was\s+|already\s+)*{_KNOWN}(?!\s+(?:in|by)\s+the\s+(?:question|stem|vignette|case|patient))\b",
        rf"\b(?:answer|option|choice)\s+(?:is|was)\s+{_KNOWN}\s+(?:as|to\s+be|in|by|above|here)\b",
        r"\b(?:according\s+to|based\s+on|per|from|in)\s+the\s+(?:notes?|answer\s+key|key|solution|explanation"
        r"\s+(?:given|provided))\b",
        r"\bthe\s+notes?\s+(?:say|says|state|states|mention|mentions|tell|tells|indicate|indicates|explain|explains)\b",
        r"\bcorrect\s+option\s*:",
        r"\b(?:since|because|given\s+that)\s+(?:we\s+(?:know|are\s+told)\s+(?:that\s+)?)?the\s+(?:correct|right)\s+"
        r"(?:answer|option|choice)\s+is\b",
        r"\bwe\s+(?:are|were|have\s+been)\s+(?:told|given)\s+(?:that\s+)?the\s+(?:answer|correct|right)\b",
    )
)
_STATED = re.compile(r"\b[Aa]nswer\s*(?:is\b|:)[\s:*(\[]*([A-Z])\b(?!\s+[a-z])")  # "the answer is A", not "is a drug"
_CONCLUSION = re.compile(
    r"\n\s*\W*(?:(?:therefore|thus|so|hence),?\s+)?(?:the\s+)?(?:final\s+|correct\s+|best\s+)*(?:answer|option)\b"
    r"[^\n]{0,200}\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """`reasons` against a text, strongest first (empty: accepted); `rationale` is the text without its conclusion,
    `concluded` the letter it ends in."""

    reasons: tuple[str, ...]
    rationale: str
    concluded: str | None

    @property
    def accepted(self) -> bool:
        return not self.reasons


def check(
    text: str,
    question: Question,
    *,
    truncated: bool,
    examples: Sequence[str] = (),
    need_all_options: bool = True,
    may_know: bool = True,
) -> Verdict:
    """Judge one written chain of thought.

    Args:
        text: the whole assistant turn.
        question: options as they were shown, and the gold answer.
        truncated: the reply was cut by the length limit (no harm once the answer line is complete).
        examples: worked examples the writer saw.
        need_all_options: every option must be addressed by letter or text.
        may_know: the writer saw the gold answer, so leak phrases are looked for.
    """
    solution = until_answer(text)
    found = extract(solution, question.options)
    rationale = strip_conclusion(solution)
    reasons = []
    if truncated and solution == text:
        reasons.append("truncated")
    if found.conflict or len(set(_STATED.findall(solution))) > 1:
        reasons.append("conflicting_conclusion")
    elif found.letter is None or found.rule in UNSTATED:
        reasons.append("no_conclusion")
    elif found.letter != question.answer:
        reasons.append("disagrees_with_label")
    if len(words(rationale)) < MIN_OWN_WORDS:
        reasons.append("too_short")
    if may_know and any(pattern.search(solution) for pattern in LEAKS):
        reasons.append("leaked_label")
    if need_all_options and (missing := unaddressed(rationale, question.options)):
        reasons.append("option_not_addressed:" + "".join(missing))
    if wrong := mislabelled(rationale, question.options):
        reasons.append("mislabels_an_option:" + "".join(wrong))
    asked = " ".join((question.context, question.question, *question.options.values()))
    if containment(rationale, asked, 3) > MAX_COPY:
        reasons.append("copies_the_question")
    if any(containment(rationale, example, 5) > MAX_ECHO for example in examples):
        reasons.append("copies_an_example")
    if repetitive(rationale):
        reasons.append("repeats_itself")
    return Verdict(tuple(reasons), rationale, found.letter)


_ANSWER_LINE = re.compile(r"^\W*Answer\s*:\W*[A-Z]\b[^\n]*$", re.MULTILINE)


def until_answer(text: str) -> str:
    """The text up to and with its first line of the form "Answer: X": the shape ends there, whatever a small model
    adds."""
    found = _ANSWER_LINE.search(text)
    return text[: found.end()] if found else text


def strip_conclusion(text: str) -> str:
    """The text without a last line that only states the answer."""
    return _CONCLUSION.sub("", text.strip()).strip()


def unaddressed(rationale: str, options: Mapping[str, str]) -> list[str]:
    """Letters of the options that the rationale neither names by letter ("B.", "(B)", "option B") nor by text.

    By text: word for word, or at least half of the words of four letters or more that stand in this option alone
    ("Histoplasma" for "Histoplasma capsulatum").
    """
    tokens = words(rationale)
    said, known = f" {' '.join(tokens)} ", set(tokens)
    texts = {letter: words(text) for letter, text in options.items()}
    counts = Counter(word for text in texts.values() for word in set(text))
    missing = []
    for letter, text in sorted(texts.items()):
        own = {word for word in text if counts[word] == 1 and len(word) >= 4}
        by_text = f" {' '.join(text)} " in said or (bool(own) and 2 * len(own & known) >= len(own))
        if not by_text and not _names(rationale, letter):
            missing.append(letter)
    return missing


def mislabelled(rationale: str, options: Mapping[str, str]) -> list[str]:
    """Letters that open a line with another option's text ("C. High-flow oxygen" where that is option D)."""
    texts = {letter: words(text) for letter, text in options.items()}
    wrong = []
    for letter, line in re.findall(r"^\W*([A-Z])\s*[.):]\s*(.+)$", rationale, re.MULTILINE):
        said = words(line)
        opens = [k for k, text in texts.items() if text and said[: len(text)] == text]
        if opens and letter not in opens:
            wrong.append(letter)
    return sorted(set(wrong))


def _names(rationale: str, letter: str) -> bool:
    return bool(
        re.search(rf"(?:^|\n)\W*{letter}\s*[.):,-]|[(\[]{letter}[)\]]|\b(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswer)\s+{letter}\b",
                  rationale)
    )  # fmt: skip


def containment(text: str, other: str, n: int) -> float:
    """Share of the word n-grams of `text` that stand in `other`, 0 for a text without any."""
    grams = _grams(text, n)
    return len(grams & _grams(other, n)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def repetitive(text: str) -> bool:
    """Whether a line of five words or more stands there three times: a small model caught in a loop."""
    lines = Counter(" ".join(words(line)) for line in text.splitlines())
    return any(count >= 3 and len(line.split()) >= 5 for line, count in lines.items())
