"""Multiple choice by generation: a prompting strategy answers, and what could not be read or asked is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from aloe.evaluate.stats import total_variation, wilson
from aloe.prompting.strategies import Decision


def is_right(decision: Decision, letter: str | None) -> float | None:
    """1 or 0; unparsed is wrong, errored has no value."""
    return None if decision.outcome == "errored" else float(letter == decision.question.answer)


def accuracy_at(decisions: Sequence[Decision]) -> list[dict[str, float]]:
    """Accuracy of the first n members for every n up to the largest ensemble, from one run, with Wilson intervals.

    A question with fewer effective members than n (few options, greedy) keeps its full ensemble's answer.
    """
    scored = [d for d in decisions if d.outcome != "errored"]
    found = []
    for n in range(1, max((d.members for d in scored), default=0) + 1):
        hits = sum(d.votes[min(n, d.members) - 1].winner == d.question.answer for d in scored)
        low, high = wilson(hits, len(scored))
        found.append({"n": n, "value": hits / len(scored), "low": low, "high": high})
    return found


def summary(decisions: Sequence[Decision]) -> dict[str, Any]:
    """What a single accuracy hides: the ensemble curve, ties, conflicts, letter bias, tokens per question."""
    scored = [d for d in decisions if d.outcome != "errored"]
    predicted = Counter(d.letter for d in scored if d.letter)
    gold = Counter(d.question.answer for d in scored if d.letter)
    members = [d.members for d in decisions]
    tokens = sum(r.completion_tokens for d in decisions for r in d.replies)
    return {
        "accuracy_at": accuracy_at(decisions),
        "effective_members": {"min": min(members, default=0), "max": max(members, default=0)},
        "member_parse_rate": _share([e.letter is not None for d in scored for e in d.extractions]),
        "conflicts": sum(e.conflict for d in scored for e in d.extractions),
        "truncated": sum(r.finish_reason == "length" for d in scored for r in d.replies),
        "ties": dict(sorted(Counter(d.votes[-1].tie_rule for d in scored if d.votes[-1].tied).items())),
        "letter_bias": total_variation(predicted, gold),
        "completion_tokens_per_item": tokens / len(decisions) if decisions else 0.0,
    }


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def item_meta(decision: Decision) -> dict[str, Any]:
    """What the item row keeps beside its value: every member's reply, reading and vote."""
    last = decision.votes[-1]
    return {
        "error": decision.error,
        "votes": last.counts,
        "margin": last.margin,
        "tied": list(last.tied),
        "tie_rule": last.tie_rule,
        "winners": [vote.winner for vote in decision.votes],
        "shots": [[s.exemplar.question.id, s.similarity] for s in decision.shots],
        "members": [
            {
                "letter": b.letter,
                "rule": e.rule,
                "conflict": e.conflict,
                "finish_reason": r.finish_reason,
                "logprob": r.logprob,
                "text": r.text,
            }
            for b, e, r in zip(decision.ballots, decision.extractions, decision.replies, strict=True)
        ],
    }
