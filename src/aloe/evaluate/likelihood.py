"""Multiple choice by likelihood.

The letters are scored as the continuation of a fixed prefill ("Answer:" + " A"), once under every rotation of the
options, and an option's score is the mean over rotations of its log-probability: a model that merely likes the letter
A scores every option alike. Beside it, without showing any options, the options' texts are scored as answers to the
question: the right text's negative log-likelihood (NLL; per token and per byte, lower is better) moves long before
accuracy does, and byte-normalised text accuracy is the usual `acc_norm`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aloe.generate.engine import Score, ScoreRequest
from aloe.keyed import key64
from aloe.prompting.library import load_prompt
from aloe.prompting.mcq import format_question, letters_of, rotations, shown_letter, shown_options
from aloe.records import Message, Question


@dataclass(frozen=True)
class LikelihoodResult:
    """One question. Log-probabilities in nats.

    `logprobs`: original letter -> mean log-probability over rotations. `shown`: per rotation (predicted letter as
    shown, gold letter as shown). `nll_token`, `nll_byte`: of the right option's text as an open answer.
    `text_letter`: the option whose text has the highest log-probability per byte. All empty or None when errored.
    """

    letter: str | None
    logprobs: dict[str, float]
    shown: tuple[tuple[str, str], ...]
    nll_token: float | None
    nll_byte: float | None
    text_letter: str | None
    prompt_tokens: int
    error: str | None = None


def orders(question: Question, limit: int | None) -> list[tuple[str, ...]]:
    """The rotations scored: all of them, or the first `limit` (1 = the options as given)."""
    return rotations(letters_of(question.options))[:limit]


def score_requests(question: Question, limit: int | None = None) -> list[ScoreRequest]:
    """One request per rotation (all letters over one shared context), then one for the options' texts."""
    prompt, letters = load_prompt("likelihood"), letters_of(question.options)
    found = []
    for turn, order in enumerate(orders(question, limit)):
        text = format_question(question.question, shown_options(question.options, order), question.context)
        found.append(
            ScoreRequest(
                key=f"{question.id}#rotation{turn}",
                messages=_messages(prompt.system, prompt.user, text),
                continuations=tuple(f" {letter}" for letter in letters),
                prefill=prompt.prefill,
            )
        )
    bare = load_prompt("open_answer")
    stem = f"{question.context.strip()}\n\n{question.question.strip()}".strip()
    found.append(
        ScoreRequest(
            key=f"{question.id}#text",
            messages=_messages(bare.system, bare.user, stem),
            continuations=tuple(question.options[letter].strip() for letter in letters),
            prefill=bare.prefill,
        )
    )
    return found


def _messages(system: str, user: str, text: str) -> tuple[Message, ...]:
    asked: Message = {"role": "user", "content": user.format(question=text)}
    return ({"role": "system", "content": system}, asked) if system else (asked,)


def read_scores(question: Question, scores: Sequence[Score], seed: int, limit: int | None = None) -> LikelihoodResult:
    """Turn the scores of `score_requests(question, limit)` into a result. One failed request makes the item errored;
    exactly equal options are decided by a draw keyed by (seed, question)."""
    tokens = sum(s.prompt_tokens for s in scores)
    error = next((s.error for s in scores if s.error is not None), None)
    if error is not None:
        return LikelihoodResult(None, {}, (), None, None, None, tokens, error)
    letters = letters_of(question.options)
    turns = orders(question, limit)
    sums = dict.fromkeys(letters, 0.0)
    shown = []
    for turn, (order, score) in enumerate(zip(turns, scores[:-1], strict=True)):
        by_slot = dict(zip(letters, score.logprobs, strict=True))
        for slot, original in zip(letters, order, strict=True):
            sums[original] += by_slot[slot]
        shown.append((_best(by_slot, seed, f"{question.id}#{turn}"), shown_letter(question.answer, order)))
    means = {letter: total / len(turns) for letter, total in sums.items()}
    texts = dict(zip(letters, zip(scores[-1].logprobs, scores[-1].token_counts, strict=True), strict=True))
    per_byte = {letter: texts[letter][0] / _bytes(question.options[letter]) for letter in letters}
    gold_logprob, gold_tokens = texts[question.answer]
    return LikelihoodResult(
        letter=_best(means, seed, question.id),
        logprobs=means,
        shown=tuple(shown),
        nll_token=-gold_logprob / max(1, gold_tokens),
        nll_byte=-per_byte[question.answer],
        text_letter=_best(per_byte, seed, f"{question.id}#text"),
        prompt_tokens=tokens,
    )


def _bytes(text: str) -> int:
    return len(text.strip().encode())


def _best(values: dict[str, float], seed: int, key: str) -> str:
    """The letter with the highest value; rounding noise of the last bits is no lead."""
    top = max(values.values())
    tied = [letter for letter, value in values.items() if math.isclose(value, top, rel_tol=1e-12, abs_tol=1e-12)]
    return min(tied, key=lambda letter: key64(seed, "likelihood-tie", f"{key}|{letter}"))


def finite(scores: Sequence[Score]) -> bool:
    """Whether every log-probability of every answered request is a number."""
    return all(math.isfinite(value) for s in scores if s.error is None for value in s.logprobs)


def rotation_accuracy(results: Sequence[LikelihoodResult]) -> list[float]:
    """Accuracy under each rotation alone; the spread shows what the order of options is worth."""
    answered = [r.shown for r in results if r.error is None]
    turns = max((len(shown) for shown in answered), default=0)
    found = []
    for turn in range(turns):
        pairs = [shown[turn] for shown in answered if len(shown) > turn]
        found.append(sum(predicted == gold for predicted, gold in pairs) / len(pairs))
    return found


def letter_counts(results: Sequence[LikelihoodResult]) -> tuple[dict[str, int], dict[str, int]]:
    """(predicted, gold) counts of shown letters over all rotations: their distance is the letter bias."""
    pairs = [pair for r in results for pair in r.shown]
    return dict(Counter(p for p, _ in pairs)), dict(Counter(g for _, g in pairs))


def item_meta(result: LikelihoodResult) -> dict[str, Any]:
    """What the item row keeps beside its value, so that every aggregate can be recomputed from rows."""
    if result.error is not None:
        return {"error": result.error}
    return {
        "logprobs": result.logprobs,
        "shown": [list(pair) for pair in result.shown],
        "nll_token": result.nll_token,
        "nll_byte": result.nll_byte,
        "text_letter": result.text_letter,
    }
