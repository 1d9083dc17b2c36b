"""Reading, splitting and asking red-team requests: what the pair builder and the red team share."""

from __future__ import annotations

from collections.abc import Sequence

from aloe.contract import Context
from aloe.data.sources import load_attacks
from aloe.errors import AloeError
from aloe.generate.engine import Engine, Reply, Request, Sampling
from aloe.keyed import shuffled
from aloe.records import AttackPrompt


def read_attacks(ctx: Context, ref: str, split: str) -> list[AttackPrompt]:
    """The prompts of one split behind a reference, in file order. An empty split is an error."""
    place = ctx.path(ref)
    path = place / "rows.parquet" if place.is_dir() else place
    prompts = load_attacks(path, source=ref)
    chosen = [p for p in prompts if p.split == split]
    if not chosen:
        known = ", ".join(sorted({p.split for p in prompts})) or "none"
        raise AloeError(f"no request has split {split!r}", where=ref, fix=f"choose one of its splits: {known}")
    return chosen


def take(prompts: Sequence[AttackPrompt], limit: int | None, seed: int, purpose: str) -> list[AttackPrompt]:
    """At most `limit` base requests, drawn by (seed, purpose, base_id), in their original order."""
    bases = list(dict.fromkeys(p.base_id for p in prompts))
    if limit is None or limit >= len(bases):
        return list(prompts)
    kept = set(shuffled(bases, seed, purpose, bases)[:limit])
    return [p for p in prompts if p.base_id in kept]


def ask(ctx: Context, engine: Engine, prompts: Sequence[AttackPrompt], max_new_tokens: int, label: str) -> list[Reply]:
    """One greedy reply to each prompt, in order; counts the tokens."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    requests = [Request(key=p.id, messages=tuple(p.prompt), sampling=sampling, seed=ctx.seed) for p in prompts]
    with ctx.progress(label, len(requests), "replies") as bar:
        replies = engine.generate(requests, tick=lambda done, tokens: bar.advance(done))
    ctx.count_tokens(prompt=sum(r.prompt_tokens for r in replies), completion=sum(r.completion_tokens for r in replies))
    return replies
