"""Quality of a row: what every scorer gives, and which rows a score drops.

Scorers are interchangeable: `deita.py` (a model's probabilities of the grades 1..6), `rubric.py` (a judge model and a
written rubric) and `heuristics.py` (measured features, no model). A row that can't be scored is *unscored* with its
reason; it never gets a default score, which would place it somewhere in the ranking. (DEITA's own code gives such a
row 3.0, and distilabel's gives it 0 or half of the product.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from aloe.data.templates import format_question
from aloe.generate.engine import Tick
from aloe.keyed import key64
from aloe.records import Dialogue, Question, Row

QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Scored:
    """A row's score (higher is better, on the scorer's own scale) and what it is made of; None is unscored, and `why`
    says the reason: a short kind, then a colon and its detail ("unparsed: <the judge's text>")."""

    score: float | None
    parts: dict[str, float] = field(default_factory=dict)
    why: str = ""


@runtime_checkable
class Scorer(Protocol):
    """Scores questions and dialogues, in order. `digest` covers everything that decides a score: version, prompts,
    weights, and the model where there is one."""

    name: str
    digest: str

    def score(self, records: Sequence[Row], tick: Tick | None = None) -> list[Scored]: ...


def exchanges(record: Row) -> list[tuple[str, str]]:
    """(user's text, assistant's text) of every answered turn of a row, in order.

    A question is its training exchange: stem and options, answered by the explanation (if any) and the letter. In a
    dialogue the system turn is left out, turns in a row of one role are joined, an opening assistant turn and a
    closing user turn belong to no exchange (DEITA's code would score the latter with an empty response).
    """
    if isinstance(record, Question):
        reason = record.explanation.strip()
        answer = f"Answer: {record.answer}"
        shown = format_question(record.question, record.options, record.context)
        return [(shown, f"{reason}\n\n{answer}" if reason else answer)]
    if not isinstance(record, Dialogue):
        raise TypeError(f"quality is scored for questions and dialogues, not {type(record).__name__}")
    turns: list[tuple[str, list[str]]] = []
    for message in record.messages:
        role, text = message["role"], message["content"].strip()
        if role == "system":
            continue
        if turns and turns[-1][0] == role:
            turns[-1][1].append(text)
        else:
            turns.append((role, [text]))
    texts = [(role, "\n\n".join(parts)) for role, parts in turns]
    return [
        (user, answer)
        for (role, user), (next_role, answer) in pairwise(texts)
        if role == "user" and next_role == "assistant"
    ]


def bottom(scores: Sequence[float | None], ids: Sequence[str], share: float) -> tuple[set[int], set[int]]:
    """Which rows go: (indices of the unscored, indices of the lowest `share` of the scored).

    The count is exact: floor(share x scored), with `share` taken as the decimal it is written as (0.29 of 100 is 29,
    where floats make 28). None, NaN and infinities are unscored. Equal scores are broken by a key of the row's id, so
    the outcome depends neither on the order of the rows nor on which source's ids come first in the alphabet.

    Raises:
        ValueError: lengths differ, ids repeat, or `share` is outside [0, 1].
    """
    if len(scores) != len(ids):
        raise ValueError(f"{len(scores)} scores for {len(ids)} ids")
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, not {share}")
    if len(set(ids)) < len(ids):
        raise ValueError("ids repeat: ties could not be broken the same way in every order")
    ranked = [(score, i) for i, score in enumerate(scores) if score is not None and math.isfinite(score)]
    unscored = set(range(len(scores))) - {i for _, i in ranked}
    count = math.floor(Fraction(repr(float(share))) * len(ranked))
    ranked.sort()
    if not 0 < count < len(ranked):
        return unscored, {i for _, i in ranked[:count]}
    edge = ranked[count - 1][0]
    lowest = {i for score, i in ranked if score < edge}
    tied = [i for score, i in ranked if score == edge]
    tied.sort(key=lambda i: (key64(0, "quality-tie", ids[i]), ids[i]))
    return unscored, lowest | set(tied[: count - len(lowest)])


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Counts, unscored rows by reason, and quantiles of the score and of each part (nearest rank), for reports."""
    reasons = Counter(s.why.split(":", 1)[0] or "unscored" for s in scored if not _is_scored(s.score))
    found = [s for s in scored if _is_scored(s.score)]
    names = sorted({name for s in found for name in s.parts})
    return {
        "rows": len(scored),
        "scored": len(found),
        "unscored": dict(sorted(reasons.items())),
        "score": quantiles([s.score for s in found if s.score is not None]),
        "parts": {name: quantiles([s.parts[name] for s in found if name in s.parts]) for name in names},
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Nearest-rank quantiles under their names ("0.1"); empty for no values. Exact values of the data, so that they
    are the same on every machine."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {str(q): ordered[max(0, math.ceil(Fraction(repr(q)) * len(ordered)) - 1)] for q in QUANTILES}


def _is_scored(score: float | None) -> bool:
    return score is not None and math.isfinite(score)
