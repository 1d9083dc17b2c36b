"""What a model answers to red-team prompts, judged: shared by the pair builder and the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aloe.contract import Context
from aloe.generate.engine import Engine, Reply
from aloe.records import AttackPrompt
from aloe.safety.judges import open_judges, try_out
from aloe.safety.red_team_ask import Docket, refuse_lost, reopened
from aloe.safety.red_team_items import Said, decide, deciders
from aloe.safety.requests import ask

GuardFormat = Literal["llama_guard_3", "wildguard", "shieldgemma"]


@dataclass(frozen=True)
class Answer:
    """A reply to one prompt and the verdict on it; None where the request errored."""

    prompt: AttackPrompt
    reply: Reply
    said: Said | None


@dataclass(frozen=True)
class Panel:
    """The judges as a step's parameters name them; the first one decides."""

    judges: Sequence[str]
    guard: str | None = None
    guard_format: GuardFormat | None = None

    def open(self, ctx: Context) -> list[Any]:
        """The judges. No model is loaded before it judges, and names are checked at once."""
        return open_judges(reopened(ctx), self.judges, self.guard, self.guard_format)

    def try_out(self, ctx: Context) -> None:
        """`judges.try_out`, of these."""
        try_out(self.open(ctx))

    def identities(self, ctx: Context) -> list[dict[str, Any]]:
        """What a record says of the judges."""
        return [dict(judge.identity()) for judge in self.open(ctx)]


def answers(
    ctx: Context, engine: Engine, prompts: Sequence[AttackPrompt], max_new_tokens: int, panel: Panel, label: str
) -> list[Answer]:
    """One greedy reply to each prompt, in order, with the verdict on it.

    Raises:
        AloeError: the model's or a judge's server lost too much (`aloe.evaluate.lost`).
    """
    replies = ask(ctx, engine, prompts, max_new_tokens, label)
    refuse_lost([r.error for r in replies], label, "model")
    docket = Docket()
    places = [
        None if reply.error is not None else docket.add(prompt.request, prompt.prompt, reply.text)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    judged, _ = docket.judge(ctx, panel.open(ctx))
    who = deciders(panel.judges, judged)
    return [
        Answer(p, r, None if at is None else decide(p.request, r.text, docket.said(judged, at), who))
        for p, r, at in zip(prompts, replies, places, strict=True)
    ]
