"""What a red team will ask, worked out and checked before the first model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aloe.contract import Context
from aloe.errors import AloeError
from aloe.generate.engine import Sampling
from aloe.records import AttackPrompt, Scenario
from aloe.safety.attacks import STYLES, needing, parts_of, style, variants
from aloe.safety.budget import conversation_tokens, fit, tokens_of
from aloe.safety.red_team_items import Asked
from aloe.safety.requests import read_attacks, read_sets, take

if TYPE_CHECKING:
    from aloe.safety.red_team import RedTeam


@dataclass(frozen=True)
class Plan:
    """Everything that each model is asked. `base` are the plain requests behind `attacks`; `not_asked` counts what the
    budget left out (None without a budget), `not_made` the translations that there are none of."""

    base: list[AttackPrompt]
    attacks: list[Asked]
    benign: list[Asked]
    scenarios: list[Scenario]
    climbs: list[Asked]
    sampling: Sampling
    scenario_sampling: Sampling
    not_asked: dict[str, Any] | None
    not_made: dict[str, Any]
    families: dict[str, str]

    @property
    def requests(self) -> list[Asked]:
        """All that is asked in one turn."""
        return [*self.attacks, *self.benign]


def make_plan(step: RedTeam, ctx: Context) -> Plan:
    """Read and check every input of the step that is not a model.

    Raises:
        AloeError: an empty split, an unknown style, harmful rows among the harmless or the other way round, a prompt
            that doesn't end with the user's turn, scenarios that can't be read, a budget that leaves room for nothing.
    """
    sampling = Sampling(max_new_tokens=step.max_new_tokens, temperature=step.temperature)
    _check_styles(step)
    base, of = _harmful(step, ctx)
    benign = _look_alikes(step, ctx)
    scenarios = _scenarios(step, ctx)
    climbed = []
    if step.escalation is not None:
        climbed = take(base, step.escalation.limit, ctx.seed, "red_team.escalation")
        climbed = list({p.base_id: p for p in climbed}.values())  # of a set with styles of its own one form of each
    prompts, unmade = _styled(step, ctx, base)
    check_prompts(prompts)
    not_asked, spent = None, 0
    if step.budget is not None:
        spent = _beside(step, benign, scenarios, climbed)
        fitted = fit(
            prompts, step.budget, seed=ctx.seed, attempts=step.attempts, reply=step.max_new_tokens, spent=spent
        )
        not_asked = fitted.not_asked(step.attempts)
        _ledger(ctx, "budget", len(prompts), len(fitted.kept), "over_budget")
        prompts = fitted.kept
    families = {s: family_of(s) for s in sorted({p.style for p in prompts})}
    attacks = [
        Asked(prompt=p, set=of[p.base_id], family=families[p.style], attempt=k, attempts=step.attempts)
        for p in prompts
        for k in range(1, step.attempts + 1)
    ]
    return Plan(
        base,
        attacks,
        benign,
        scenarios,
        [Asked(prompt=p, set=of[p.base_id], family="escalation") for p in climbed],
        sampling,
        Sampling(max_new_tokens=step.scenario_tokens, temperature=step.temperature),
        not_asked,
        unmade,
        families,
    )


def family_of(style_id: str) -> str:
    """The family of an attack style; `own` for a style that a set brings with it."""
    known = style_id in STYLES or "+" in style_id
    return style(style_id).family if known else "own"


def _check_styles(step: RedTeam) -> None:
    """Unknown and impossible styles, and those whose model isn't named."""
    for turning in needing(step.styles, "target"):
        raise AloeError(
            f"{turning} is a conversation in which the target answers every turn",
            where="styles",
            fix="leave it out here and set `escalation`",
        )
    foreign = needing(step.styles, "translator")
    if foreign and step.translator is None:
        raise AloeError(
            f"{foreign[0]} needs a model that translates",
            where="translator",
            fix="name a model that knows the language, or leave the style out",
        )
    if step.translator is not None and not foreign:
        raise AloeError(
            "a translator is named, and no style needs one",
            where="translator",
            fix="add a translation style, or leave it out",
        )


def _styled(step: RedTeam, ctx: Context, base: Sequence[AttackPrompt]) -> tuple[list[AttackPrompt], dict[str, Any]]:
    """(every request in every style, {style: {reason: prompts that could not be made}}); the translator, where there is
    one, is asked here."""
    if step.translator is None:
        return variants(base, step.styles, ctx.seed), {}
    from aloe.evaluate.lost import ticking
    from aloe.safety.attack_languages import prepare
    from aloe.safety.red_team_ask import reopened

    total = len(base) * len({parts_of(s)[-1].id for s in needing(step.styles, "translator")})
    with ticking(ctx, f"translator {step.translator}", total, "translations") as tick:
        made, unmade = prepare(base, step.styles, ctx.seed, reopened(ctx)(step.translator), tick=tick)
    reasons: dict[str, dict[str, int]] = {}
    for one in unmade:
        of = reasons.setdefault(one.style, {})
        of[one.reason] = of.get(one.reason, 0) + 1
    counts = {f"translation_{one.reason}": 0 for one in unmade}
    for one in unmade:
        counts[f"translation_{one.reason}"] += 1
    ctx.ledger("styles", rows_in=len(made) + len(unmade), kept=len(made), dropped=counts)
    return made, reasons


def _harmful(step: RedTeam, ctx: Context) -> tuple[list[AttackPrompt], dict[str, str]]:
    found, of = read_sets(ctx, step.requests, step.split, step.split_by)
    for ref in step.requests:  # a set of both kinds, such as XSTest, gives its harmful half
        if not any(of[p.base_id] == ref and not p.benign for p in found):
            raise AloeError(
                "every request is marked harmless",
                where=ref,
                fix="name harmful requests here; harmless look-alikes belong in `benign`",
            )
    found = [p for p in found if not p.benign]
    base = take(found, step.limit, ctx.seed, "red_team")
    _ledger(ctx, "requests", len(found), len(base), "over_limit")
    return base, of


def _look_alikes(step: RedTeam, ctx: Context) -> list[Asked]:
    found: list[Asked] = []
    for ref in step.benign:
        rows = read_attacks(ctx, ref, step.split, step.split_by)
        # A set of both kinds, such as XSTest, gives its harmless half.
        mine = [p for p in rows if p.benign]
        if not mine:
            raise AloeError(
                "a look-alike is not marked benign, and neither is any other row",
                where=ref,
                fix="name a set of harmless requests here (kind over-refusal); harmful ones belong in `requests`",
            )
        check_prompts(mine)
        found += [Asked(prompt=p, set=ref, family=family_of(p.style)) for p in mine]
    kept = {p.id for p in take([a.prompt for a in found], step.limit, ctx.seed, "red_team")}
    chosen = [a for a in found if a.prompt.id in kept]
    if step.benign:
        _ledger(ctx, "benign", len(found), len(chosen), "over_limit")
    ids = [a.item for a in chosen]
    twice = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise AloeError(
            f"look-alike {twice!r} stands in two sets",
            where="benign",
            fix="give rows of different sets ids of their own",
        )
    return chosen


def _scenarios(step: RedTeam, ctx: Context) -> list[Scenario]:
    if step.scenarios is None:
        return []
    from aloe.safety.scenarios import load_scenarios

    place = ctx.path(step.scenarios)
    found = load_scenarios(place / "rows.parquet" if place.is_dir() else place, step.scenarios, step.split)
    kept = set(_drawn([s.id for s in found], step.limit, ctx.seed))
    _ledger(ctx, "scenarios", len(found), len(kept), "over_limit")
    return [s for s in found if s.id in kept]


def _drawn(ids: Sequence[str], limit: int | None, seed: int) -> list[str]:
    from aloe.keyed import shuffled

    return shuffled(ids, seed, "red_team.scenarios", ids)[:limit]


def check_prompts(prompts: Sequence[AttackPrompt]) -> None:
    """Raise AloeError for a prompt that no model could answer: no turns, a blank one, or not the user's at the end."""
    for prompt in prompts:
        messages = prompt.prompt
        if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
            raise AloeError(
                f"prompt {prompt.id} (style {prompt.style}) doesn't end with a turn of the user",
                where=prompt.source,
                fix="end its messages with what the user asks",
            )


def _beside(
    step: RedTeam, benign: Sequence[Asked], scenarios: Sequence[Scenario], climbed: Sequence[AttackPrompt]
) -> int:
    """Estimated tokens of what is asked beside the attacks."""
    reply = step.max_new_tokens
    total = sum(tokens_of(a.prompt.prompt, reply) for a in benign)
    total += sum(conversation_tokens([str(t["user"]) for t in s.turns], step.scenario_tokens) for s in scenarios)
    turns = step.escalation.turns if step.escalation else 0
    return total + sum(conversation_tokens([p.request] * turns, reply) for p in climbed)


def _ledger(ctx: Context, stage: str, rows_in: int, kept: int, reason: str) -> None:
    dropped = rows_in - kept
    ctx.ledger(stage, rows_in=rows_in, kept=kept, dropped={reason: dropped} if dropped else {})
