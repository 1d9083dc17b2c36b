"""Which written chains of thought may be trained on. Pure: a text in, the reasons against it out.

Rules of the Aloe papers: the conclusion equals the gold answer, every option is weighed, and the text does more than
repeat the question. Ours besides: nothing cut off, nothing copied from the worked examples, no phrase that gives away
that the answer was known, and reasons rather than verdicts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from aloe.data.clean import words
from aloe.prompting.extract import clean, extract
from aloe.records import Question
from aloe.synthesize.leaks import LABEL_LEAKS, find_leak
from aloe.synthesize.vocabulary import FUNCTION_WORDS, VERDICT_WORDS

MAX_COPY = 0.7  # share of a text's word trigrams that may stand in the question and its options; ours
MAX_ECHO = 0.5  # share of its word 5-grams that may stand in a worked example; ours
UNSTATED = ("leading", "option_text")  # the extractor reads a letter, but the text states no conclusion
MIN_OWN_WORDS = 12  # words of reasoning beyond the conclusion; ours
MIN_NEW_WORDS = 5  # different words of content that stand in neither question nor options; ours

_STATED = re.compile(r"\b[Aa]nswer\s*(?:is\b|:)[\s:*(\[]*([A-Z])\b(?!\s+[a-z])")  # "the answer is A", not "is a drug"
_CONCLUSION = re.compile(
    r"\n\s*\W*(?:(?:therefore|thus|so|hence),?\s+)?(?:the\s+)?(?:final\s+|correct\s+|best\s+)*(?:answer|option)\b"
    r"[^\n]{0,200}\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """`reasons` against a text, strongest first (empty: accepted); `rationale` is the text without its conclusion,
    `concluded` the letter it ends in and `rule` the kind of statement it was read from. `measures` holds what the
    limits were held against, `evidence` the words that a reason rests on."""

    reasons: tuple[str, ...]
    rationale: str
    concluded: str | None
    rule: str = "none"
    measures: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)

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
        need_all_options: every option must be addressed by letter or text, and weighed rather than listed.
        may_know: the writer saw the gold answer, so leak phrases are looked for.
    """
    solution = until_answer(text)
    found = extract(solution, question.options)
    rationale = strip_conclusion(solution)
    asked = " ".join((question.context, question.question, *question.options.values()))
    leak = find_leak(solution, LABEL_LEAKS) if may_know else None
    measures = {
        "own_words": float(len(words(rationale))),
        "new_words": float(len(new_words(rationale, asked))),
        "copied": containment(rationale, asked, 3),
        "echoed": max((_share(_grams(rationale, 5), _example_grams(e)) for e in examples), default=0.0),
        "from_notes": containment(rationale, question.explanation, 5) if may_know else 0.0,
    }
    reasons = []
    if truncated and solution == text:
        reasons.append("truncated")
    stated = found.rule not in UNSTATED  # several options named and none chosen is no contradiction
    if (found.conflict and stated) or len(set(_STATED.findall(solution))) > 1:
        reasons.append("conflicting_conclusion")
    elif found.letter is None or not stated:
        reasons.append("no_conclusion")
    elif found.letter != question.answer:
        reasons.append("disagrees_with_label")
    if measures["own_words"] < MIN_OWN_WORDS:
        reasons.append("too_short")
    if leak:
        reasons.append("leaked_label")
    if need_all_options:
        reasons += _not_weighed(rationale, question.options, measures["new_words"])
    if wrong := mislabelled(rationale, question.options):
        reasons.append("mislabels_an_option:" + "".join(wrong))
    if measures["copied"] > MAX_COPY:
        reasons.append("copies_the_question")
    if measures["echoed"] > MAX_ECHO:
        reasons.append("copies_an_example")
    if repetitive(rationale):
        reasons.append("repeats_itself")
    evidence = {"leaked_label": f"{leak.rule}: {leak.phrase}"} if leak else {}
    rounded = {name: round(value, 4) for name, value in measures.items()}
    return Verdict(tuple(reasons), rationale, found.letter, found.rule, rounded, evidence)


_ANSWER_LINE = re.compile(r"^\W*Answer\s*:\W*[A-Z]\b[^\n]*$", re.MULTILINE)


def until_answer(text: str) -> str:
    """The text up to and with its first line of the form "Answer: X": the shape ends there, whatever a small model
    adds."""
    found = _ANSWER_LINE.search(text)
    return text[: found.end()] if found else text


def strip_conclusion(text: str) -> str:
    """The text without a last line that only states the answer."""
    return _CONCLUSION.sub("", text.strip()).strip()


# ------------------------------------------------------------------------------------------ options


def _not_weighed(rationale: str, options: Mapping[str, str], new: float) -> list[str]:
    """Reasons of an option that is passed over or only listed, and of a text without reasons of its own."""
    reasons = []
    if missing := unaddressed(rationale, options):
        reasons.append("option_not_addressed:" + "".join(missing))
    if listed := [k for k in unaddressed(without_lists(rationale, options), options) if k not in missing]:
        reasons.append("option_only_listed:" + "".join(listed))
    if new < MIN_NEW_WORDS:
        reasons.append("asserts_without_reasons")
    return reasons


def unaddressed(rationale: str, options: Mapping[str, str]) -> list[str]:
    """Letters of the options that the rationale neither names by letter ("B.", "(B)", "option B", "B and D are") nor
    by text.

    By text: word for word (though not inside a longer option's text), or at least half of the words of four letters
    or more that stand in this option alone ("Histoplasma" for "Histoplasma capsulatum"). "All of the above" and the
    like are named by "all of these", "none of them".
    """
    plain = clean(rationale)
    tokens = words(plain)
    said, known, letters = f" {' '.join(tokens)} ", set(tokens), named_letters(plain)
    texts = {letter: words(text) for letter, text in options.items()}
    counts = Counter(word for text in texts.values() for word in set(text))
    return [
        letter
        for letter, text in sorted(texts.items())
        if letter not in letters
        and not _says(said, text, texts.values())
        and not _own_words(text, counts, known)
        and not _says_collective(said, text)
    ]


def _says(said: str, text: Sequence[str], texts: Iterable[Sequence[str]]) -> bool:
    mine = f" {' '.join(text)} "
    for other in texts:  # "diabetes" is not named by naming "diabetes insipidus" where both are options
        longer = f" {' '.join(other)} "
        if mine in longer and mine != longer:
            said = said.replace(longer, "  ")
    return mine in said


def _own_words(text: Sequence[str], counts: Counter[str], known: set[str]) -> bool:
    own = {word for word in text if counts[word] == 1 and len(word) >= 4}
    return bool(own) and 2 * len(own & known) >= len(own)


_COLLECTIVE = re.compile(r"^(all|none|both|neither)\b(?=.*\b(?:above|these|options|mentioned|them)\b)")


def _says_collective(said: str, text: Sequence[str]) -> bool:
    first = _COLLECTIVE.match(" ".join(text))
    pattern = r" {} (?:of )?(?:the )?(?:above|these|those|them|other|others|options|two|three|four|statements|are|is) "
    return bool(first) and re.search(pattern.format(first[1] if first else ""), said) is not None


_MORE = r"(?:\s*(?:,|/|&|\band\b|\bor\b|,\s*and\b|,\s*or\b)\s*(?:[Oo]ptions?\s+|[Cc]hoices?\s+)?[A-J])"
_NAMED = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:^|\n)\W*(?P<x>[A-J])\s*[.):,-]",
        r"[(\[](?P<x>[A-Ja-j])[)\]]",
        rf"\b(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswers?)\s+\(?(?P<x>[A-J]{_MORE}*)(?!\w)",
        r"\b(?:[Oo]ptions?|[Cc]hoices?)\s+(?P<low>[A-J])\s*(?:-|to|through)\s*(?P<high>[A-J])(?!\w)",
        # letters as the subject of a sentence: "A and C are wrong because", "D moves it"; "A" alone may be an article
        rf"(?<![Vv]itamin )(?<![Vv]itamins )(?<![Hh]epatitis )(?<![Tt]ype )(?<![Gg]roup )(?<![\w-])"
        rf"(?P<x>[A-J]{_MORE}+)\s+[a-z]+\b",
        r"(?:^|[.!?;:,]\s+)(?P<x>[A-J])\s+(?:is|was|would|does|can|cannot|may|has|will|should)\b",
        r"(?:^|[.!?;:,]\s+)(?P<x>[B-HJ])\s+[a-z]+s\b",
    )
)


def named_letters(text: str) -> set[str]:
    """Option letters that the text names as such."""
    found: set[str] = set()
    for pattern in _NAMED:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            if groups.get("low"):
                found |= {chr(c) for c in range(ord(groups["low"]), ord(groups["high"]) + 1)}
            else:
                found |= set(re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", groups["x"].upper()))
    return found


_LABEL = re.compile(r"^\W*(?:(?:[Oo]ption|[Cc]hoice)\s+)?[A-J]\s*[.):-]\s*(?P<rest>.*)$")


def without_lists(rationale: str, options: Mapping[str, str]) -> str:
    """The rationale without lines that only repeat an option: its label, its own words, a verdict on it."""
    texts = [set(words(text)) for text in options.values()]
    kept = []
    for line in clean(rationale).splitlines():
        label = _LABEL.match(line)
        said = set(words(label["rest"] if label else line)) - FUNCTION_WORDS - VERDICT_WORDS
        if said and not any(said <= text for text in texts):
            kept.append(line)
    return "\n".join(kept)


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


# ------------------------------------------------------------------------------------------ overlap


def new_words(rationale: str, asked: str) -> set[str]:
    """Words of content (four letters or more) that the question and its options don't have: what a reason is made
    of."""
    known = set(words(asked))
    return {w for w in words(rationale) if len(w) >= 4 and w.isalpha()} - known - FUNCTION_WORDS - VERDICT_WORDS


def containment(text: str, other: str, n: int) -> float:
    """Share of the word n-grams of `text` that stand in `other`, 0 for a text without any."""
    return _share(_grams(text, n), _grams(other, n))


def _share(grams: Iterable[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    mine = frozenset(grams)
    return len(mine & other) / len(mine) if mine else 0.0


def _grams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    tokens = words(text)
    return frozenset(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


@lru_cache(maxsize=16)
def _example_grams(example: str) -> frozenset[tuple[str, ...]]:
    return _grams(example, 5)


def repetitive(text: str) -> bool:
    """Whether a line of five words or more stands there three times: a small model caught in a loop."""
    lines = Counter(" ".join(words(line)) for line in text.splitlines())
    return any(count >= 3 and len(line.split()) >= 5 for line, count in lines.items())
