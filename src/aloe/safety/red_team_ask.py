"""Asking: every model everything, one model in memory at a time; then every judge everything, each loaded once.

Replies lie in the engines' request ledger as soon as they are there, so a run that dies goes on with the rest, and what
is judged, when all is asked, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from aloe.contract import Context
from aloe.errors import AloeError
from aloe.evaluate.lost import LOST_ITEMS, LOST_SHARE, is_lost, ticking
from aloe.generate.engine import Engine, Reply, Request, Score, ScoreRequest, Tick
from aloe.records import Message
from aloe.safety.judging import Exchange, Judge, Judgement
from aloe.safety.red_team_items import Asked
from aloe.safety.red_team_plan import Plan
from aloe.safety.requests import request_of


class Reopened:
    """A model by reference: opened when it is asked, counted by the context's token counters.

    Two of them may talk with one another though only one local model is in memory at a time: whoever is asked is
    loaded in the other's place. A batch at a time, that is a load for each turn of a side.
    """

    def __init__(self, ctx: Context, ref: str) -> None:
        self._ctx, self._ref = ctx, ref

    @property
    def name(self) -> str:
        return self._ref

    @property
    def model_digest(self) -> str:
        return str(self._ctx.engine(self._ref).model_digest)

    @property
    def template_digest(self) -> str:
        return str(self._ctx.engine(self._ref).template_digest)

    def generate(self, requests: Sequence[Request], tick: Tick | None = None) -> list[Reply]:
        replies: list[Reply] = self._ctx.engine(self._ref).generate(requests, tick)
        self._ctx.count_tokens(
            prompt=sum(r.prompt_tokens for r in replies), completion=sum(r.completion_tokens for r in replies)
        )
        return replies

    def loglikelihood(self, requests: Sequence[ScoreRequest], tick: Tick | None = None) -> list[Score]:
        scores: list[Score] = self._ctx.engine(self._ref).loglikelihood(requests, tick)
        self._ctx.count_tokens(prompt=sum(s.prompt_tokens for s in scores))
        return scores


def reopened(ctx: Context) -> Callable[[str], Engine]:
    """`ctx.engine`, but a model is loaded when it is first asked and not when it is named."""
    return lambda ref: cast("Engine", Reopened(ctx, ref))


@dataclass
class Heard:
    """What one model said. `facts` is what protocol records say of its engine."""

    model: str
    facts: dict[str, Any]
    replies: list[tuple[Asked, Reply]] = field(default_factory=list)
    played: list[Any] = field(default_factory=list)  # aloe.safety.scenarios.Played
    talks: list[tuple[Asked, Any]] = field(default_factory=list)  # aloe.safety.escalation.Conversation


def hear(ctx: Context, plan: Plan, model: str, turns: int, attacker: str | None) -> Heard:
    """Ask one model everything in the plan.

    Raises:
        AloeError: the model can't be loaded or asked, or its server lost too many replies for the figures to stand.
    """
    engine = reopened(ctx)(model)
    heard = Heard(model, facts_of(ctx.engine(model)))
    for label, part in (("attacks", plan.attacks), ("benign", plan.benign)):
        if not part:
            continue
        requests = [request_of(a.prompt, plan.sampling, ctx.seed, a.item) for a in part]
        with ticking(ctx, f"{model}: {label}", len(requests), "replies") as tick:
            replies = engine.generate(requests, tick)
        refuse_lost([r.error for r in replies], label, f"model {model}")
        heard.replies += zip(part, replies, strict=True)
    if plan.scenarios:
        from aloe.safety.scenarios import play

        asked = sum(len(s.turns) for s in plan.scenarios)
        with ticking(ctx, f"{model}: scenarios", asked, "turns") as tick:
            heard.played = play(engine, plan.scenarios, plan.scenario_sampling, ctx.seed, tick)
        refuse_lost([p.error for p in heard.played], "scenarios", f"model {model}")
    if plan.climbs:
        heard.talks = _escalated(ctx, plan, model, engine, turns, attacker)
    return heard


def _escalated(
    ctx: Context, plan: Plan, model: str, engine: Engine, turns: int, attacker: str | None
) -> list[tuple[Asked, Any]]:
    from aloe.safety.escalation import escalate

    other = None if attacker is None else reopened(ctx)(attacker)
    sides = 1 if other is None else 2
    prompts = [a.prompt for a in plan.climbs]
    with ticking(ctx, f"{model}: escalation", len(prompts) * turns * sides, "turns") as tick:
        talks = escalate(engine, other, prompts, turns, plan.sampling, ctx.seed, tick)
    refuse_lost([t.error for t in talks], "escalations", f"model {model}")
    return list(zip(plan.climbs, talks, strict=True))


def facts_of(engine: Any) -> dict[str, Any]:
    """What stays to be said of an engine when another model has taken its place."""
    local = getattr(engine, "engine", engine)  # behind the request ledger
    template = getattr(getattr(local, "loaded", None), "template", None)
    return {
        "model_digest": engine.model_digest,
        "template_digest": engine.template_digest,
        "folds_system": bool(getattr(template, "folds_system", False)),
    }


# -- judges ------------------------------------------------------------------------------------------------------------


class Docket:
    """Replies to be judged, collected over all models so that each judge is loaded once."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def add(self, request: str, messages: Sequence[Message], reply: str) -> int:
        """Place of the exchange in what `judge` returns."""
        key = str(len(self.exchanges))
        self.exchanges.append(Exchange(key=key, request=request, messages=tuple(messages), reply=reply))
        return len(self.exchanges) - 1

    def judge(self, ctx: Context, judges: Sequence[Judge]) -> tuple[dict[str, list[Judgement]], list[dict[str, Any]]]:
        """({judge: a judgement for each exchange}, identities of the judges), judge by judge."""
        found: dict[str, list[Judgement]] = {}
        identities = []
        for judge in judges:
            with ticking(ctx, f"judge {judge.name}", len(self.exchanges), "replies") as tick:
                said = judge.judge(self.exchanges, tick) if self.exchanges else []
            if len(said) != len(self.exchanges):
                raise AssertionError(f"judge {judge.name}: {len(said)} judgements of {len(self.exchanges)} replies")
            refuse_lost([j.error for j in said], "judgements", f"judge {judge.name}")
            found[judge.name] = said
            identities.append(dict(judge.identity()))
        return found, identities

    def said(self, judged: Mapping[str, Sequence[Judgement]], at: int) -> dict[str, Judgement]:
        """What each judge says of one exchange."""
        return {name: found[at] for name, found in judged.items()}


# -- failing servers ---------------------------------------------------------------------------------------------------


def refuse_lost(errors: Sequence[str | None], what: str, where: str) -> None:
    """Stop where a server lost so much that figures of the rest would stand as done (`aloe.evaluate.lost`).

    A request that no run will get answered is a third outcome, and counted; one that another run may get is not.
    """
    lost = [e for e in errors if e is not None and is_lost(e)]
    if len(lost) > max(LOST_ITEMS, LOST_SHARE * len(errors)):
        raise AloeError(
            f"{len(lost)} of {len(errors)} {what} were lost: {lost[0]}; the other {len(errors) - len(lost)} are kept",
            where=where,
            fix="see what ails the server, or raise its timeout_s or attempts; the same command then asks for the lost "
            "ones only",
        )
