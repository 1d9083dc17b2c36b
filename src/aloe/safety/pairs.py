"""`red_team_pairs`: preference pairs for the second alignment stage, made from the target model's own replies.

Egida (the Aloe group's later set) found that pairs work best when the rejected text is the *target model's own*
unsafe answer and the chosen text is a safe answer from elsewhere. Benign look-alikes are mixed in with the roles
turned round (the helpful answer is chosen, a refusal is rejected), so that the model doesn't learn to refuse by sight
of a word. Requests the model already refuses teach nothing and are dropped with that reason; so are replies on which
the judge has no verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from aloe.contract import AttacksRef, Context, Kind, ModelRef, Step
from aloe.errors import AloeError
from aloe.evaluate.judge import DECLINED
from aloe.keyed import key64, shuffled
from aloe.licence import joined, terms_of
from aloe.records import AttackPrompt, Preference, row_id
from aloe.rows import write_parquet, write_records
from aloe.safety.answers import Answer, GuardFormat, Panel, answers
from aloe.safety.attacks import TRAIN_STYLES, variants
from aloe.safety.judging import DEGENERATE
from aloe.safety.requests import read_attacks, read_sets, take
from aloe.safety.splits import SplitRule, holds

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


class NoPair(AloeError):
    """The model gave nothing to learn from."""


class RedTeamPairs(Step):
    """Pairs from red-team requests: chosen = the safe response, rejected = what `model` itself answered."""

    verb: ClassVar[str] = "red_team_pairs"
    version: ClassVar[int] = 3
    makes: ClassVar[Kind] = "preferences"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    model: ModelRef
    requests: list[AttacksRef] = Field(min_length=1)
    split: str = "train"
    split_by: SplitRule | None = None  # for sets that state no splits
    styles: list[str] = Field(default_factory=lambda: list(TRAIN_STYLES))  # attack styles of aloe.safety.attacks
    max_new_tokens: int = Field(default=160, ge=1)  # tokens a reply, end of turn included
    limit: int | None = Field(default=None, ge=1)  # base requests at most; each comes in every style
    safer: ModelRef | None = None  # answers requests that come without a safe response
    benign: list[AttacksRef] = Field(default_factory=lambda: ["starter/over_refusal"])  # they take turns
    benign_share: float = Field(default=0.2, ge=0.0, lt=1.0)  # share of the pairs that are benign look-alikes
    benign_styles: list[str] = Field(default_factory=lambda: ["plain"])
    # What is rejected where the model answered a look-alike: one of the six refusals above, the safe response of a
    # harmful request (the very text that is chosen there, so that only the request can tell them apart), or either.
    benign_rejected: Literal["listed", "safe_responses", "both"] = "both"
    judges: list[str] = Field(default_factory=lambda: ["rules", "classifier"], min_length=1)  # the first one decides
    guard: ModelRef | None = None  # the model of the judge `guard`
    guard_format: GuardFormat | None = None

    @field_validator("requests", "benign", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @property
    def panel(self) -> Panel:
        """The judges."""
        return Panel(self.judges, self.guard, self.guard_format)

    def run(self, ctx: Context) -> dict[str, Any]:
        judges = self.panel.identities(ctx)  # wrong names are found out before a model is loaded
        found = self._requests(ctx)
        look_alikes = [read_attacks(ctx, ref, self.split, self.split_by) for ref in self.benign]
        refuse_harmful(look_alikes, self.benign)
        base = take(found, self.limit, ctx.seed, "red_team_pairs")
        chosen = {p.id for p in base}
        over = [Dropped(p.id, "limit", "over_limit", p.request) for p in found if p.id not in chosen]
        ctx.ledger("limit", rows_in=len(found), kept=len(base), dropped=_count(over))
        self.panel.try_out(ctx)
        return self.build(ctx, variants(base, self.styles), look_alikes, over, judges)

    def build(
        self,
        ctx: Context,
        prompts: list[AttackPrompt],
        look_alikes: Sequence[Sequence[AttackPrompt]],
        over: Sequence[Dropped],
        judges: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Ask, judge, and write the pairs of these prompts and look-alikes (set by set).

        Raises:
            AloeError: no harmful pair remains.
        """
        pairs, dropped = self._harmful(ctx, prompts)
        if not pairs:
            reasons = ", ".join(f"{r} {n}" for r, n in sorted(_count([*over, *dropped]).items()))
            raise NoPair(
                f"no pair remains ({reasons})",
                where=", ".join(self.requests),
                fix="use more requests or styles, a longer max_new_tokens, or skip this stage: "
                "the model may already refuse everything it was asked",
            )
        wanted = _benign_count(len(pairs), self.benign_share)
        benign, left = self._benign(ctx, look_alikes, wanted, [p.chosen for p in pairs])
        rows = pairs + benign
        rows = shuffled(rows, ctx.seed, "red_team_pairs.order", [r.id for r in rows])
        write_records(ctx.out / "rows.parquet", rows)
        everything = [*over, *dropped, *left]
        write_parquet(
            ctx.out / "dropped.parquet",
            [d.__dict__ for d in everything],
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
            "by_style": _by(prompts, pairs, lambda p: p.style, "style"),
            "by_topic": _by(prompts, pairs, lambda p: p.topic, "topic"),
            "words": {"harmful": _words(pairs), "benign": _words(benign)},
            "split": self.split,
            "judges": judges,
            "dropped": _count(everything),
        }

    def _requests(self, ctx: Context) -> list[AttackPrompt]:
        refuse_held_out(self.styles, self.split_by)
        return read_sets(ctx, self.requests, self.split, self.split_by)[0]

    def _harmful(self, ctx: Context, prompts: list[AttackPrompt]) -> tuple[list[Preference], list[Dropped]]:
        engine = ctx.engine(self.model)
        found = answers(ctx, engine, prompts, self.max_new_tokens, self.panel, "red-team requests")
        unsafe, dropped = _parted(found)
        safer = self._safer(ctx, [a.prompt for a in unsafe])
        terms = self._terms(ctx)
        pairs: list[Preference] = []
        for answer in unsafe:
            made = harmful_pair(answer, safer.get(answer.prompt.base_id))
            if isinstance(made, Preference):
                pairs.append(signed(made, terms))
            else:
                dropped.append(made)
        ctx.ledger("requests", rows_in=len(prompts), kept=len(pairs), dropped=_count(dropped))
        return pairs, dropped

    def _terms(self, ctx: Context) -> dict[str, str]:
        """What binds whoever uses the words of each model that writes here."""
        return {
            "model": terms_of(ctx, self.model),
            "safer": terms_of(ctx, self.safer) if self.safer is not None else "",
        }

    def _safer(self, ctx: Context, prompts: Sequence[AttackPrompt]) -> dict[str, Answer]:
        """The other model's answers to plain requests that have no safe response, by base request."""
        bare = {p.base_id: plain_of(p) for p in prompts if not p.answer.strip()}
        if not bare or self.safer is None:
            return {}
        engine = ctx.engine(self.safer)
        found = answers(ctx, engine, list(bare.values()), self.max_new_tokens, self.panel, "safe answers")
        return {a.prompt.base_id: a for a in found}

    def _benign(
        self, ctx: Context, sources: Sequence[Sequence[AttackPrompt]], wanted: int, refusals: Sequence[str]
    ) -> tuple[list[Preference], list[Dropped]]:
        if not sources or not wanted:
            return [], []
        bare = [p for source in sources for p in source if not p.answer.strip()]
        dropped = [Dropped(p.id, "benign", "no_answer", p.request) for p in bare]
        lines = []
        for source in sources:
            styled = variants([p for p in source if p.answer.strip()], self.benign_styles)
            lines.append(shuffled(styled, ctx.seed, "red_team_pairs.benign", [p.id for p in styled]))
        order = in_turns(lines)
        dropped += [Dropped(p.id, "benign", "over_share", p.request) for p in order[wanted:]]
        engine = ctx.engine(self.model)
        found = answers(ctx, engine, order[:wanted], self.max_new_tokens, self.panel, "benign look-alikes")
        listed = () if self.benign_rejected == "safe_responses" else OVER_REFUSALS
        theirs = () if self.benign_rejected == "listed" else tuple(dict.fromkeys(refusals))
        terms = self._terms(ctx)
        pairs = [signed(benign_pair(a, listed, theirs, ctx.seed), terms) for a in found]
        ctx.ledger("benign", rows_in=len(bare) + len(order), kept=len(pairs), dropped=_count(dropped))
        return pairs, dropped


def why_no_pair(answer: Answer) -> Dropped | None:
    """Why a reply can't be the rejected side of a pair; None where it can: the first judge calls it unsafe."""
    prompt, said = answer.prompt, answer.said

    def dropped(reason: str, evidence: str) -> Dropped:
        return Dropped(prompt.id, "requests", reason, evidence)

    if said is None:
        return dropped("errored", answer.reply.error or "")
    if said.refusal == DEGENERATE:
        return dropped("degenerate_reply", said.evidence)
    if said.harm == "unsafe":
        return None
    if said.refusal in DECLINED:
        return dropped("already_refused", said.evidence)
    if said.harm is None:
        return dropped("unjudged", said.why_not["harm"][1])
    return dropped("judged_safe", said.evidence)


def harmful_pair(answer: Answer, safer: Answer | None = None) -> Preference | Dropped:
    """The pair of one unsafe reply, or why there is none: chosen is the prompt's own safe response, else the reply of
    a `safer` model where that declines and is safe."""
    prompt, text, source = answer.prompt, answer.prompt.answer, "set"
    if not text.strip():
        if safer is None:
            return Dropped(prompt.id, "requests", "no_safe_response", prompt.request)
        said = safer.said
        if said is None or said.harm is None or said.refusal in (None, DEGENERATE):
            return Dropped(prompt.id, "requests", "safer_unjudged", safer.reply.error or safer.reply.text[:200])
        if said.refusal not in DECLINED or said.harm != "safe":
            return Dropped(prompt.id, "requests", "safer_not_safe", said.evidence)
        text, source = safer.reply.text, "safer"
    if answer.reply.text.strip() == text.strip():
        return Dropped(prompt.id, "requests", "same_text", text[:200])
    meta = {"rejected_from": "model", "chosen_from": source, "benign": False}
    return _pair(answer, text, answer.reply.text, meta)


def benign_pair(answer: Answer, listed: Sequence[str], safe_responses: Sequence[str], seed: int) -> Preference:
    """The pair of one benign look-alike: its answer against the model's own reply where that refused or broke down.

    Where the model answered, its answer may well be right: then a refusal stands in, drawn by key from `listed` or
    from the safe responses to harmful requests, half of the time each where there are both.
    """
    prompt, text, said = answer.prompt, answer.reply.text, answer.said
    failed = said is not None and said.refusal in (*DECLINED, DEGENERATE)
    if failed and text.strip() not in ("", prompt.answer.strip()):
        meta = {"rejected_from": "model", "chosen_from": "set", "benign": True}
        return _pair(answer, prompt.answer, text, meta)
    draw = key64(seed, "red_team_pairs.refusal", prompt.id)
    theirs = bool(safe_responses) and (not listed or draw % 2 == 1)
    pool = safe_responses if theirs else listed
    meta = {"rejected_from": "safe_responses" if theirs else "over_refusal_list", "chosen_from": "set", "benign": True}
    return _pair(answer, prompt.answer, pool[draw // 2 % len(pool)], meta)


def signed(pair: Preference, terms: Mapping[str, str]) -> Preference:
    """The pair with the licences of the models whose words are in it (`meta.writer_licence`), where there are any.

    Args:
        terms: licence by what `rejected_from` and `chosen_from` call the writer.
    """
    wrote = joined(terms.get(str(pair.meta[side]), "") for side in ("rejected_from", "chosen_from"))
    return replace(pair, meta={**pair.meta, "writer_licence": wrote}) if wrote else pair


def in_turns(lists: Sequence[Sequence[AttackPrompt]]) -> list[AttackPrompt]:
    """First of each list, second of each, and so on, until all are used up."""
    return [p for p in chain.from_iterable(zip_longest(*lists)) if p is not None]


def plain_of(prompt: AttackPrompt) -> AttackPrompt:
    """The base request of a prompt, unwrapped."""
    return replace(prompt, id=prompt.base_id, style="plain", prompt=[{"role": "user", "content": prompt.request}])


def _pair(answer: Answer, chosen: str, rejected: str, meta: dict[str, Any]) -> Preference:
    prompt, said = answer.prompt, answer.said
    verdict = {} if said is None else {"refusal": said.refusal, "judge_rule": said.harm_rule or said.refusal_rule}
    harm = {} if said is None or meta["benign"] else {"harm": said.harm, "judges": dict(said.judges)}
    return Preference(
        id=row_id(["red_team_pair", prompt.id]),
        source=prompt.source,
        licence=prompt.licence,
        meta={"topic": prompt.topic, "style": prompt.style, "base_id": prompt.base_id, **verdict, **harm, **meta},
        prompt=prompt.prompt,
        chosen=chosen,
        rejected=rejected,
    )


def refuse_held_out(styles: Sequence[str], rule: SplitRule | None) -> None:
    """Raise AloeError for a style that a rule holds out, alone or in a combination: pairs would be made in it."""
    for style in styles:
        if rule is not None and holds(style, set(rule.hold_out_styles)):
            raise AloeError(
                f"style {style!r} is held out by split_by, and pairs would be made in it",
                where="styles",
                fix="leave it out here, or out of split_by.hold_out_styles",
            )


def refuse_harmful(sources: Sequence[Sequence[AttackPrompt]], refs: Sequence[str]) -> None:
    """Raise AloeError for a look-alike that isn't marked harmless; `sources` are the rows behind `refs`."""
    for ref, rows in zip(refs, sources, strict=True):
        if any(not p.benign for p in rows):
            raise AloeError(
                "a look-alike is not marked benign",
                where=ref,
                fix="name sets of harmless requests with answers here; harmful ones belong in `requests`",
            )


def _parted(found: Sequence[Answer]) -> tuple[list[Answer], list[Dropped]]:
    """(answers that are the rejected side of a pair, why the others are not)."""
    kept, dropped = [], []
    for answer in found:
        reason = why_no_pair(answer)
        if reason is None:
            kept.append(answer)
        else:
            dropped.append(reason)
    return kept, dropped


def _by(
    prompts: Sequence[AttackPrompt], pairs: Sequence[Preference], of: Callable[[AttackPrompt], str], field: str
) -> dict[str, dict[str, int]]:
    """Prompts asked and pairs made, by a field of both."""
    asked, made = Counter(map(of, prompts)), Counter(str(p.meta[field]) for p in pairs)
    return {name: {"asked": asked[name], "pairs": made[name]} for name in sorted(asked)}


def _words(pairs: Sequence[Preference]) -> dict[str, float] | None:
    """Mean words of both sides: pairs may teach length."""
    if not pairs:
        return None
    return {
        side: round(sum(len(getattr(p, side).split()) for p in pairs) / len(pairs), 1)
        for side in ("chosen", "rejected")
    }


def _benign_count(harmful: int, share: float) -> int:
    """Benign rows that make up `share` of the whole beside `harmful` others."""
    return round(share / (1.0 - share) * harmful)


def _count(dropped: Sequence[Dropped]) -> dict[str, int]:
    return dict(Counter(row.reason for row in dropped))
