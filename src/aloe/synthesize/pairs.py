"""Which two texts make a preference pair. Pure: sampled texts in, pairs out.

Longer answers are often the better liked ones, and a model trained on such pairs learns length. So pairs may be chosen
by the smallest difference in length (`length`) instead of by a keyed draw (`draw`); either way the choice depends on
the question's id and the seed alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aloe.keyed import key64
from aloe.synthesize.accept import strip_conclusion, until_answer

Choose = Literal["length", "draw"]
SampleOutcome = Literal["answered", "unparsed", "truncated", "errored"]


@dataclass(frozen=True)
class Sample:
    """One text for a prompt. `letter` is the option it concludes with, where one could be read by `rule`."""

    number: int
    text: str
    outcome: SampleOutcome
    words: int
    letter: str | None = None
    rule: str = "none"
    seed: int = 0

    def meta(self, side: str) -> dict[str, Any]:
        """What a pair says of this text, as the `chosen` or `rejected` side."""
        values = {
            "sample": self.number,
            "seed": self.seed,
            "words": self.words,
            "letter": self.letter,
            "rule": self.rule,
        }
        return {f"{side}_{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Pair:
    """Chosen and rejected."""

    chosen: Sample
    rejected: Sample

    @property
    def length_difference(self) -> int:
        """Words of the chosen text less those of the rejected one."""
        return self.chosen.words - self.rejected.words


def label_pairs(
    samples: Sequence[Sample], gold: str, *, count: int, choose: Choose, seed: int, key: str, reuse: bool = False
) -> list[Pair]:
    """Up to `count` pairs of a right and a wrong conclusion. Unparsed, cut and failed texts are on neither side.

    Args:
        samples: the texts of one question.
        gold: the right letter.
        count: most pairs.
        choose: by smallest difference in length, or by keyed draw.
        seed: with `key`, of the draw; it also breaks ties of length.
        key: the question's id.
        reuse: whether a right text may stand in several pairs (there is only one).
    """
    right, wrong = split(samples, gold)
    order = _order([(r, w) for r in right for w in wrong], choose, seed, key)
    return [Pair(r, w) for r, w in _disjoint(order, count, reuse)]


def split(samples: Sequence[Sample], gold: str) -> tuple[list[Sample], list[Sample]]:
    """Right and wrong conclusions; a text that stands there twice counts once."""
    answered = unlike([s for s in samples if s.outcome == "answered"])
    return [s for s in answered if s.letter == gold], [s for s in answered if s.letter != gold]


def unlike(samples: Sequence[Sample]) -> list[Sample]:
    """Samples without those whose text an earlier one has."""
    return list({s.text.strip(): s for s in reversed(samples)}.values())[::-1]


def no_label_pair(samples: Sequence[Sample], gold: str) -> str:
    """Why the samples of a question give no pair by label."""
    right, wrong = split(samples, gold)
    if right or wrong:
        return "all_wrong" if not right else "all_correct"
    return not_answered(samples)


def not_answered(samples: Sequence[Sample]) -> str:
    """The commonest outcome of samples none of which can be used; the worst one of equals."""
    counts: Counter[str] = Counter(s.outcome for s in samples)
    return max(("errored", "truncated", "unparsed"), key=lambda outcome: counts[outcome])


def candidates(samples: Sequence[Sample], *, count: int, choose: Choose, seed: int, key: str) -> list[Pair]:
    """Up to `count` pairs of whole texts for a judge to compare, in no order of merit: first such as share no text,
    then the others."""
    usable = unlike([s for s in samples if s.outcome in ("answered", "unparsed")])
    every = [(a, b) for i, a in enumerate(usable) for b in usable[i + 1 :]]
    order = _order(every, choose, seed, key)
    apart = _disjoint(order, count, reuse=False)
    rest = [pair for pair in order if pair not in apart]
    return [Pair(a, b) for a, b in [*apart, *rest][:count]]


def best_pairs(decided: Sequence[tuple[float, Pair]], count: int) -> list[tuple[float, Pair]]:
    """Up to `count` judged pairs by margin, none of which share a text; equal margins stay in the order given."""
    found: list[tuple[float, Pair]] = []
    used: set[int] = set()
    for margin, pair in sorted(decided, key=lambda d: -d[0]):
        numbers = {pair.chosen.number, pair.rejected.number}
        if len(found) < count and not numbers & used:
            found.append((margin, pair))
            used |= numbers
    return found


Two = tuple[Sample, Sample]


def _order(pairs: Sequence[Two], choose: Choose, seed: int, key: str) -> list[Two]:
    def rank(pair: Two) -> tuple[int, int]:
        a, b = pair
        draw = key64(seed, "preference-pair", f"{key}|{a.number}|{b.number}")
        return (abs(a.words - b.words) if choose == "length" else 0, draw)

    return sorted(pairs, key=rank)


def _disjoint(order: Sequence[Two], count: int, reuse: bool) -> list[Two]:
    """The first `count` pairs that share no text; with `reuse` only the second of each must be new."""
    found: list[Two] = []
    used: set[int] = set()
    for a, b in order:
        taken = b.number in used or (not reuse and a.number in used)
        if len(found) < count and not taken:
            found.append((a, b))
            used |= {b.number} if reuse else {a.number, b.number}
    return found


def in_one_form(text: str, letter: str | None) -> str:
    """A written solution with its conclusion in the form that accepted ones have, so that form isn't what tells the
    two sides apart; a text without a readable conclusion ends where it ended."""
    solution = until_answer(text).strip()
    return f"{strip_conclusion(solution)}\n\nAnswer: {letter}" if letter else solution
