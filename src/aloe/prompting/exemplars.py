"""The exemplar store: worked questions to show before the one that is asked.

Only rows whose reasoning ends in the gold answer may enter. Neighbours are exact (all cosines are computed); a stem
that is the asked question, or nearly, is refused: showing a benchmark item its own answer is a leak, not a method.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.generate.embed import Encoder
from aloe.keyed import key64, shuffled
from aloe.prompting.extract import clean, extract
from aloe.prompting.mcq import letters_of, rotations, shown_letter, shown_options
from aloe.records import Question

LEAK_COSINE = 0.97  # above it two stems count as the same question
ROUNDING = 5  # decimals that decide the order of neighbours: batch shape moves a cosine in the seventh
STATED = ("structured", "boxed", "phrase", "bracket", "trailing")


@dataclass(frozen=True)
class Exemplar:
    """A question with reasoning that leads to its gold answer. `reasoning` holds no concluding answer line: the
    prompt adds it. Construction refuses reasoning that concludes in another letter."""

    question: Question
    reasoning: str

    def __post_init__(self) -> None:
        found = extract(f"{self.reasoning}\n\nAnswer: {self.question.answer}", self.question.options)
        if not self.reasoning.strip() or found.letter != self.question.answer:
            raise AloeError(
                f"the reasoning does not end in the gold answer {self.question.answer}",
                where=f"exemplar {self.question.id}",
                fix="use only rows whose reasoning was validated against the label",
            )


@dataclass(frozen=True)
class Shot:
    """An exemplar chosen for a question; `similarity` is the cosine of the stems, None when it was not chosen by it."""

    exemplar: Exemplar
    similarity: float | None


def exemplars_of(questions: Sequence[Question]) -> tuple[list[Exemplar], list[dict[str, str]]]:
    """Make exemplars of questions with an explanation; what cannot be one comes back with its reason.

    An explanation that states an answer must state the gold one. One that states none (it was written to the label)
    is kept, and the prompt's answer line concludes it.
    """
    kept: list[Exemplar] = []
    dropped: list[dict[str, str]] = []
    for question in questions:
        text = question.explanation.strip()
        found = extract(text, question.options)
        if not text:
            dropped.append({"id": question.id, "reason": "no reasoning", "evidence": ""})
        elif found.rule in STATED and found.letter != question.answer:
            evidence = f"gold {question.answer}, concludes {found.letter}: {text[-160:]}"
            dropped.append({"id": question.id, "reason": "reasoning contradicts the label", "evidence": evidence})
        else:
            kept.append(Exemplar(question, _without_conclusion(text, question) or text))
    return kept, dropped


def _without_conclusion(text: str, question: Question) -> str:
    """The reasoning without a last line that only states the answer: the prompt states it in its own form."""
    body, _, last = text.rstrip().rpartition("\n")
    found = extract(last, question.options)
    return body.rstrip() if found.rule in STATED and len(last) < 80 and body.strip() else text


def normal_stem(text: str) -> str:
    """A stem as the leak guard compares it: NFKC, lower case, letters and digits only."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


class ExemplarStore:
    """Exemplars with the embeddings of their stems (computed when first needed).

    Args:
        exemplars: what may be shown; ids must be unique.
        encoder: embeds stems; rows of unit length.
    """

    def __init__(self, exemplars: Sequence[Exemplar], encoder: Encoder) -> None:
        self.exemplars, self.encoder = list(exemplars), encoder
        self.ids = [e.question.id for e in self.exemplars]
        if len(set(self.ids)) < len(self.ids):
            repeated = next(i for i in self.ids if self.ids.count(i) > 1)
            raise AloeError("two exemplars have the same id", where=f"exemplar {repeated}", fix="give rows unique ids")
        self._stems = [normal_stem(e.question.question) for e in self.exemplars]

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Stem embeddings, shape (exemplars, dimension)."""
        return self.encoder.encode([e.question.question for e in self.exemplars])

    @cached_property
    def digest(self) -> str:
        """Digest of what may be shown, in any order; for the protocol record."""
        rows = sorted((e.question.id, e.question.to_dict(), e.reasoning) for e in self.exemplars)
        return digest_json(rows)

    def nearest(self, questions: Sequence[Question], k: int) -> list[list[Shot]]:
        """For each question its k nearest exemplars by cosine of the stems, the most similar last."""
        self._need(k)
        asked = self.encoder.encode([q.question for q in questions])
        found = []
        for start in range(0, len(questions), 256):  # bounds the similarity block to 256 x store
            cosines = asked[start : start + 256] @ self.vectors.T
            found += [
                self._nearest(question, row, k)
                for question, row in zip(questions[start : start + 256], cosines, strict=True)
            ]
        return found

    def _nearest(self, question: Question, cosines: npt.NDArray[np.float32], k: int) -> list[Shot]:
        stem = normal_stem(question.question)
        reach = k
        while True:  # widen until k exemplars survive the leak guard
            reach = min(len(self.exemplars), reach * 2 + 16)
            near = np.argpartition(-cosines, reach - 1)[:reach]
            order = sorted(near, key=lambda i: (-round(float(cosines[i]), ROUNDING), self.ids[i]))
            allowed = [i for i in order if cosines[i] <= LEAK_COSINE and self._stems[i] != stem]
            if len(allowed) >= k or reach == len(self.exemplars):
                return [Shot(self.exemplars[i], float(cosines[i])) for i in reversed(allowed[:k])]

    def fixed(self, questions: Sequence[Question], k: int, seed: int) -> list[list[Shot]]:
        """The same k exemplars, drawn by seed, before every question; one that a question leaks from gives way to
        the next in the draw for that question alone."""
        self._need(k)
        places = {self.ids[i]: i for i in range(len(self.ids))}
        draw = shuffled(self.exemplars, seed, "fixed-exemplars", self.ids)[: 2 * k + 8]
        vectors = self.encoder.encode([e.question.question for e in draw])
        cosines = self.encoder.encode([q.question for q in questions]) @ vectors.T
        found = []
        for question, row in zip(questions, cosines, strict=True):
            stem = normal_stem(question.question)
            allowed = [
                e
                for e, cosine in zip(draw, row, strict=True)
                if cosine <= LEAK_COSINE and self._stems[places[e.question.id]] != stem
            ]
            found.append([Shot(e, None) for e in allowed[:k]])
        return found

    def _need(self, k: int) -> None:
        if len(self.exemplars) < k:
            raise AloeError(
                f"{k} exemplars are to be shown, the store holds {len(self.exemplars)}",
                fix="name a larger exemplar file, or lower `shots`",
            )


@dataclass(frozen=True)
class ShownExemplar:
    """An exemplar as displayed: options in their shown order, the gold letter and the reasoning re-lettered to it."""

    question: str
    context: str
    options: Mapping[str, str]
    answer: str
    reasoning: str


def balance(shots: Sequence[Shot], seed: int, key: str) -> list[ShownExemplar]:
    """Rotate the options of exemplars so that their gold letters are spread evenly, drawn by (seed, key).

    Reasoning that names letters is re-lettered; where a bare letter could be one or a word ("vitamin C"), the
    exemplar keeps its order, and the others are balanced around it.
    """
    used: dict[str, int] = {}
    plans: dict[int, tuple[str, ...]] = {}
    for i in sorted(range(len(shots)), key=lambda i: _can_rotate(shots[i].exemplar)):  # the immovable ones first
        exemplar = shots[i].exemplar
        letters = letters_of(exemplar.question.options)
        choices = rotations(letters) if _can_rotate(exemplar) else [letters]
        gold = {order: shown_letter(exemplar.question.answer, order) for order in choices}
        plans[i] = min(choices, key=lambda o: (used.get(gold[o], 0), key64(seed, "balance", f"{key}|{i}|{gold[o]}")))
        used[gold[plans[i]]] = used.get(gold[plans[i]], 0) + 1
    return [_shown(shot.exemplar, plans[i]) for i, shot in enumerate(shots)]


def _shown(exemplar: Exemplar, order: tuple[str, ...]) -> ShownExemplar:
    question = exemplar.question
    return ShownExemplar(
        question=question.question,
        context=question.context,
        options=shown_options(question.options, order),
        answer=shown_letter(question.answer, order),
        reasoning=reletter(exemplar.reasoning, {letter: shown_letter(letter, order) for letter in order}),
    )


# Places where a capital letter is an option for sure: "option B", "(B)", "[B]", "B. text" at the start of a line.
_LETTER_PLACES = (
    r"(?P<a>\b(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswers?)(?:\s+(?:is|are)|:)?\s+\(?){x}(?![\w'-])",
    r"(?P<a>[(\[]){x}(?=[)\]])",
    r"(?P<a>^[\s*#-]*){x}(?=[.):])",
)


def _reletter_patterns(letters: str) -> list[re.Pattern[str]]:
    return [re.compile(p.replace("{x}", rf"(?P<x>[{letters}])"), re.M) for p in _LETTER_PLACES]


def reletter(text: str, mapping: Mapping[str, str]) -> str:
    """Rename option letters in a text, all at once, in the places where a letter is an option for sure."""
    if all(old == new for old, new in mapping.items()):
        return text
    changes: dict[int, str] = {}
    for pattern in _reletter_patterns("".join(mapping)):
        for match in pattern.finditer(text):
            changes[match.start("x")] = mapping[match["x"]]
    return "".join(changes.get(i, character) for i, character in enumerate(text))


def _can_rotate(exemplar: Exemplar) -> bool:
    """Whether every letter that the reasoning might mean as an option stands in a place `reletter` knows."""
    letters = "".join(letters_of(exemplar.question.options))
    text = exemplar.reasoning
    for pattern in _reletter_patterns(letters):
        text = pattern.sub(lambda m: m["a"] + "_", text)
    text = re.sub(r"(?:^|(?<=[.!?]\s))A(?= [a-z])", "_", clean(text), flags=re.M)  # the article at a sentence's start
    return not re.search(rf"(?<![\w-])[{letters}](?![\w-])", text)
