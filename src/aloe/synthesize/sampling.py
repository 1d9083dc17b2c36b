"""Several sampled answers per prompt, on disk: the raw material of preference pairs.

Prompts go to the engine in blocks, the samples of one prompt side by side, so an engine that shares prefixes reads the
prompt once. Every sample is kept with what was read from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from aloe.contract import Context
from aloe.data.templates import user_text
from aloe.generate.engine import Engine, Reply, Request, Sampling, Tick
from aloe.keyed import key64
from aloe.prompting.extract import extract
from aloe.records import Dialogue, Message, Question
from aloe.rows import iter_parquet
from aloe.synthesize.lengths import count_words
from aloe.synthesize.pairs import Sample
from aloe.synthesize.spool import TableWriter, blocks

BLOCK = 8192  # requests handed to the engine at once
TASK = "multiple_choice_explained"
SAMPLE_COLUMNS = {
    "id": "text", "question_id": "text", "source": "text", "sample": "int", "seed": "int", "outcome": "text",
    "letter": "text", "rule": "text", "gold": "text", "words": "int", "tokens": "int", "logprob": "float",
    "text": "text", "error": "text",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """What is answered: messages up to a user turn, the question they show (if any) and a reference answer."""

    id: str
    source: str
    licence: str
    messages: tuple[Message, ...]
    question: Question | None
    reference: str


def prompt_of_question(question: Question, seed: int) -> Prompt:
    """A multiple-choice question in a drawn template; the reference is its gold answer and explanation."""
    user, _ = user_text(question, TASK, seed)
    gold = f"{question.answer}. {question.options[question.answer]}"
    reference = f"{gold}\n{question.explanation}".strip()
    turns: tuple[Message, ...] = ({"role": "user", "content": user},)
    return Prompt(question.id, question.source, question.licence, turns, question, reference)


def prompt_of_dialogue(row: Dialogue) -> Prompt:
    """A conversation without its last turn, which is the reference."""
    return Prompt(row.id, row.source, row.licence, tuple(row.messages[:-1]), None, row.messages[-1]["content"])


def sample(ctx: Context, engine: Engine, prompts: Sequence[Prompt], count: int, sampling: Sampling, path: Path) -> None:
    """Write `count` sampled answers to every prompt to `path`, in the order of the prompts."""
    step = max(1, BLOCK // count)
    with TableWriter(path, SAMPLE_COLUMNS) as out, ticking(ctx, "sampling", len(prompts) * count, "texts") as tick:
        for start, end in blocks(len(prompts), step):
            asked = [(p, n) for p in prompts[start:end] for n in range(1, count + 1)]
            requests = [
                Request(
                    key=f"{p.id}#{n}", messages=p.messages, sampling=sampling,
                    seed=key64(ctx.seed, "preference_pairs", f"{p.id}|{n}"),
                )
                for p, n in asked
            ]  # fmt: skip
            replies = engine.generate(requests, tick)
            ctx.count_tokens(
                prompt=sum(r.prompt_tokens for r in replies), completion=sum(r.completion_tokens for r in replies)
            )
            for (prompt, number), request, reply in zip(asked, requests, replies, strict=True):
                out.add(_row(prompt, number, request.seed, reply))


def _row(prompt: Prompt, number: int, seed: int, reply: Reply) -> dict[str, Any]:
    text = reply.text.strip()
    letter, rule = None, "none"
    if reply.error is not None:
        outcome = "errored"
    elif reply.finish_reason == "length":
        outcome = "truncated"  # on neither side: a cut answer teaches to stop early
    elif prompt.question is not None:
        found = extract(text, prompt.question.options)
        letter, rule = found.letter, found.rule
        outcome = "answered" if letter else "unparsed"
    else:
        outcome = "answered" if text else "unparsed"
    return {
        "id": f"{prompt.id}#{number}", "question_id": prompt.id, "source": prompt.source, "sample": number,
        "seed": seed, "outcome": outcome, "letter": letter, "rule": rule,
        "gold": prompt.question.answer if prompt.question else None, "words": count_words(text),
        "tokens": reply.completion_tokens, "logprob": reply.logprob, "text": text, "error": reply.error,
    }  # fmt: skip


def sampled(path: Path, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[Sample]]]:
    """The prompts with their samples, read back a batch at a time."""
    rows = groupby(iter_parquet(path), key=lambda row: str(row["question_id"]))
    for prompt, (name, group) in zip(prompts, rows, strict=True):
        assert prompt.id == name, "samples are not in the order of the prompts"
        yield (
            prompt,
            [
                Sample(r["sample"], r["text"], r["outcome"], r["words"], r["letter"], r["rule"], r["seed"])
                for r in group
            ],
        )


@contextmanager
def ticking(ctx: Context, label: str, total: int, unit: str) -> Iterator[Tick]:
    """The step's progress bar as the callback that engines call."""
    with ctx.progress(label, total, unit) as bar:
        yield lambda done, tokens: bar.advance(done)
