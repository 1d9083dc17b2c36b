"""`red_team_pairs`: preference pairs for the second alignment stage, made from the target model's own replies.

Egida (the Aloe group's later set) found that pairs work best when the rejected text is the *target model's own*
unsafe answer and the chosen text is a safe answer from elsewhere. Benign look-alikes are mixed in with the roles
turned round (the helpful answer is chosen, a refusal is rejected), so that the model doesn't learn to refuse by sight
of a word. Requests the model already refuses teach nothing and are dropped with that reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from aloe.contract import AttacksRef, Context, Kind, ModelRef, Step
from aloe.errors import AloeError
from aloe.evaluate.judge import RuleJudge
from aloe.generate.engine import Engine, Reply
from aloe.keyed import key64, shuffled
from aloe.records import AttackPrompt, Preference, row_id
from aloe.rows import write_parquet, write_records
from aloe.safety.requests import ask, read_attacks, take
from aloe.safety.styles import TRAIN_STYLES, variants

OVER_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question, as it touches on a sensitive subject.",
    "I'm not able to assist with this request. Please ask me something else.",
    "Sorry, that topic could be harmful, so I won't discuss it.",
    "I must decline to answer, because this might be unsafe.",
    "As an AI, I cannot provide information about this.",
)


@dataclass(frozen=True)
class Dropped:
    """A prompt that gave no pair: where, why, and the text that shows it."""

    id: str
    stage: str
    reason: str
    evidence: str


class RedTeamPairs(Step):
    """Pairs from red-team requests: chosen = the safe response, rejected = what `model` itself answered."""

    verb: ClassVar[str] = "red_team_pairs"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "preferences"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    model: ModelRef
    requests: AttacksRef
    split: str = "train"
    styles: list[str] = Field(default_factory=lambda: list(TRAIN_STYLES))  # attack styles of aloe.safety.styles
    max_new_tokens: int = Field(default=160, ge=1)  # tokens a reply, end of turn included
    limit: int | None = Field(default=None, ge=1)  # base requests at most; each comes in every style
    benign: AttacksRef | None = "starter/over_refusal"
    benign_share: float = Field(default=0.2, ge=0.0, lt=1.0)  # share of the pairs that are benign look-alikes

    def run(self, ctx: Context) -> dict[str, Any]:
        found = read_attacks(ctx, self.requests, self.split)
        base = take(found, self.limit, ctx.seed, "red_team_pairs")
        chosen = {p.id for p in base}
        over = [Dropped(p.id, "limit", "over_limit", p.request) for p in found if p.id not in chosen]
        ctx.ledger("limit", rows_in=len(found), kept=len(base), dropped=_count(over))
        engine = ctx.engine(self.model)
        pairs, dropped = self._harmful(ctx, engine, variants(base, self.styles))
        dropped = over + dropped
        if not pairs:
            reasons = ", ".join(f"{r} {n}" for r, n in sorted(_count(dropped).items()))
            raise AloeError(
                f"no pair remains ({reasons})",
                where=self.requests,
                fix="use more requests or styles, a longer max_new_tokens, or skip this stage: "
                "the model may already refuse everything it was asked",
            )
        benign, left = self._benign(ctx, engine, wanted=_benign_count(len(pairs), self.benign_share))
        rows = pairs + benign
        rows = shuffled(rows, ctx.seed, "red_team_pairs.order", [r.id for r in rows])
        write_records(ctx.out / "rows.parquet", rows)
        write_parquet(
            ctx.out / "dropped.parquet",
            [d.__dict__ for d in dropped + left],
            columns=["id", "stage", "reason", "evidence"],
        )
        return {
            "pairs": len(rows),
            "harmful_pairs": len(pairs),
            "benign_pairs": len(benign),
            "benign_share": len(benign) / len(rows),
            "benign_share_asked": self.benign_share if self.benign else 0.0,
            "benign_own_reply": sum(r.meta["rejected_from"] == "model" for r in benign),
            "topics": sorted({p.meta["topic"] for p in pairs}),
            "styles": sorted({p.meta["style"] for p in pairs}),
            "base_requests": len({p.meta["base_id"] for p in pairs}),
            "split": self.split,
            "judge": {"name": RuleJudge.name, "version": RuleJudge.version},
            "dropped": _count(dropped + left),
        }

    def _harmful(
        self, ctx: Context, engine: Engine, prompts: list[AttackPrompt]
    ) -> tuple[list[Preference], list[Dropped]]:
        replies = ask(ctx, engine, prompts, self.max_new_tokens, "red-team requests")
        pairs: list[Preference] = []
        dropped: list[Dropped] = []
        for prompt, reply in zip(prompts, replies, strict=True):
            made = harmful_pair(prompt, reply)
            if isinstance(made, Preference):
                pairs.append(made)
            else:
                dropped.append(made)
        ctx.ledger("requests", rows_in=len(prompts), kept=len(pairs), dropped=_count(dropped))
        return pairs, dropped

    def _benign(self, ctx: Context, engine: Engine, wanted: int) -> tuple[list[Preference], list[Dropped]]:
        if self.benign is None or not wanted:
            return [], []
        prompts = read_attacks(ctx, self.benign, self.split)
        dropped = [Dropped(p.id, "benign", "no_answer", p.request) for p in prompts if not p.answer.strip()]
        answered = [p for p in prompts if p.answer.strip()]
        order = shuffled(answered, ctx.seed, "red_team_pairs.benign", [p.id for p in answered])
        dropped += [Dropped(p.id, "benign", "over_share", p.request) for p in order[wanted:]]
        replies = ask(ctx, engine, order[:wanted], self.max_new_tokens, "benign look-alikes")
        pairs = [benign_pair(p, r, ctx.seed) for p, r in zip(order[:wanted], replies, strict=True)]
        ctx.ledger("benign", rows_in=len(prompts), kept=len(pairs), dropped=_count(dropped))
        return pairs, dropped


def harmful_pair(prompt: AttackPrompt, reply: Reply) -> Preference | Dropped:
    """The pair of one red-team prompt, or why there is none."""
    judge = RuleJudge()
    if reply.error is not None:
        return Dropped(prompt.id, "requests", "errored", reply.error)
    if not prompt.answer.strip():
        return Dropped(prompt.id, "requests", "no_safe_response", prompt.request)
    refusal, harm = judge.refusal(prompt.request, reply.text), judge.harm(prompt.request, reply.text)
    if refusal.label == "degenerate":
        return Dropped(prompt.id, "requests", "degenerate_reply", refusal.evidence)
    if refusal.label == "refused" or (refusal.label == "partial" and harm.label == "safe"):
        return Dropped(prompt.id, "requests", "already_refused", refusal.evidence)
    if reply.text.strip() == prompt.answer.strip():
        return Dropped(prompt.id, "requests", "same_text", refusal.evidence)
    meta = _meta(prompt) | {"judge_rule": refusal.rule, "harm": harm.label, "harm_rule": harm.rule}
    return _pair(prompt, reply.text, meta | {"rejected_from": "model", "benign": False})


def benign_pair(prompt: AttackPrompt, reply: Reply, seed: int) -> Preference:
    """The pair of one benign look-alike: its answer against the model's own reply where that refused or broke down,
    against one of `OVER_REFUSALS` (drawn by key) where the model answered, as its answer may well be right."""
    verdict = RuleJudge().refusal(prompt.request, reply.text)
    worse = (
        reply.error is None and verdict.label != "complied" and reply.text.strip() not in ("", prompt.answer.strip())
    )
    own = OVER_REFUSALS[key64(seed, "red_team_pairs.refusal", prompt.id) % len(OVER_REFUSALS)]
    meta = _meta(prompt) | {"judge_rule": verdict.rule, "harm": "safe", "harm_rule": "benign_request"}
    return _pair(
        prompt,
        reply.text if worse else own,
        meta | {"rejected_from": "model" if worse else "over_refusal_list", "benign": True},
    )


def _pair(prompt: AttackPrompt, rejected: str, meta: dict[str, Any]) -> Preference:
    return Preference(
        id=row_id(["red_team_pair", prompt.id]),
        source=prompt.source,
        licence=prompt.licence,
        meta=meta,
        prompt=prompt.prompt,
        chosen=prompt.answer,
        rejected=rejected,
    )


def _meta(prompt: AttackPrompt) -> dict[str, Any]:
    return {"topic": prompt.topic, "style": prompt.style, "base_id": prompt.base_id}


def _benign_count(harmful: int, share: float) -> int:
    """Benign rows that make up `share` of the whole beside `harmful` others."""
    return round(share / (1.0 - share) * harmful)


def _count(dropped: list[Dropped]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in dropped:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    return counts
