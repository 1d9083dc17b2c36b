"""Compare sampled answers with a judge, prompt by prompt, in both orders, and count what the judge does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aloe.contract import Context
from aloe.generate.engine import Engine, Reply, Request, Score, ScoreRequest, Tick
from aloe.synthesize.pair_judge import (
    Comparison,
    Reading,
    Verdict,
    both_orders,
    prefers_first,
    read_verdict,
    settle,
    settle_likelihoods,
)
from aloe.synthesize.pairs import Choose, Pair, Sample, candidates
from aloe.synthesize.sampling import Prompt, sampled, ticking

PROMPTS = 1024  # judged at a time


@dataclass
class Judgements:
    """What became of the comparisons, and how often the judge chose a place rather than a text."""

    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)  # of single verdicts
    longer_wins: int = 0
    decided: int = 0

    def note(self, pair: Pair, found: Comparison) -> None:
        """Count one comparison."""
        self.outcomes[found.outcome] += 1
        self.verdicts.update(found.verdicts)
        if found.winner is not None:
            first_longer = pair.chosen.words > pair.rejected.words
            self.decided += pair.chosen.words != pair.rejected.words
            self.longer_wins += pair.chosen.words != pair.rejected.words and first_longer == (found.winner == 0)

    def summary(self) -> dict[str, Any]:
        """Outcomes; `first_share` is how often the text shown first was preferred (0.5: no bias for a place),
        `longer_wins` how often the longer text won where the two differed."""
        stated = self.verdicts["first"] + self.verdicts["second"]
        return {
            "comparisons": sum(self.outcomes.values()),
            "outcomes": dict(sorted(self.outcomes.items())),
            "verdicts": dict(sorted(self.verdicts.items())),
            "first_share": round(self.verdicts["first"] / stated, 6) if stated else None,
            "longer_wins": round(self.longer_wins / self.decided, 6) if self.decided else None,
        }


Judged = tuple[Prompt, list[Sample], list[tuple[Pair, Comparison]]]


def judge_pairs(
    ctx: Context,
    engine: Engine,
    prompts: Sequence[Prompt],
    path: Path,
    judgements: Judgements,
    *,
    count: int,
    choose: Choose,
    reading: Reading,
    max_new_tokens: int,
    show_reference: bool,
) -> Iterator[Judged]:
    """Prompts with their samples (read from `path`) and up to `count` compared pairs each.

    `Pair.chosen` is the first text of a comparison here, not yet the better one.
    """
    groups = sampled(path, prompts)
    with ticking(ctx, "judging", len(prompts) * count * 2, "verdicts") as tick:
        while block := list(islice(groups, PROMPTS)):
            asked = [
                (number, prompt, pair)
                for number, (prompt, texts) in enumerate(block)
                for pair in candidates(texts, count=count, choose=choose, seed=ctx.seed, key=prompt.id)
            ]
            requests = [
                request
                for _, prompt, pair in asked
                for request in both_orders(
                    f"{prompt.id}|{pair.chosen.number}|{pair.rejected.number}",
                    prompt.messages,
                    (pair.chosen.text, pair.rejected.text),
                    prompt.reference if show_reference else "",
                    reading,
                    max_new_tokens,
                )
            ]
            found: list[list[tuple[Pair, Comparison]]] = [[] for _ in block]
            for (number, _, pair), comparison in zip(asked, _ask(ctx, engine, requests, tick), strict=True):
                judgements.note(pair, comparison)
                found[number].append((pair, comparison))
            for (prompt, texts), judged in zip(block, found, strict=True):
                yield prompt, texts, judged


def _ask(ctx: Context, engine: Engine, requests: Sequence[Request | ScoreRequest], tick: Tick) -> list[Comparison]:
    """One comparison for every two requests. All requests are of one kind."""
    written = [r for r in requests if isinstance(r, Request)]
    if written:
        replies = engine.generate(written, tick)
        ctx.count_tokens(
            prompt=sum(r.prompt_tokens for r in replies), completion=sum(r.completion_tokens for r in replies)
        )
        verdicts = [_read(r) for r in replies]
        return [settle(a, b) for a, b in zip(verdicts[::2], verdicts[1::2], strict=True)]
    scores = engine.loglikelihood([r for r in requests if isinstance(r, ScoreRequest)], tick)
    ctx.count_tokens(prompt=sum(s.prompt_tokens for s in scores))
    return [_settle(a, b) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def _read(reply: Reply) -> Verdict:
    return "errored" if reply.error is not None else read_verdict(reply.text)


def _settle(as_given: Score, swapped: Score) -> Comparison:
    if as_given.error is not None or swapped.error is not None:
        return Comparison("errored", verdicts=("errored", "errored"))
    return settle_likelihoods(prefers_first(as_given.logprobs), prefers_first(swapped.logprobs))
