"""`red_team_loop`: attack a model, align it on what got through, and attack again, as long as that helps.

Each round is the papers' second alignment stage: pairs from the current model's own unsafe replies (`red_team_pairs`),
preference optimisation that starts from that model and is referenced to it (`dpo`), and held-out attacks on the result.
The loop ends when they no longer succeed less often, or when over-refusal, broken replies or accuracy cross a guard
rail; the last model that was kept is what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from aloe.contract import AttacksRef, Context, Kind, ModelRef, Step
from aloe.data.clean import normalise
from aloe.hardening.held_out import HeldOut, Parted, in_styles, look_alikes, parted, questions_of
from aloe.hardening.loop import CURRENT, PAIRS, Loop
from aloe.hardening.settings import Rails, Tuning, Validation
from aloe.records import AttackPrompt
from aloe.safety.answers import GuardFormat, Panel
from aloe.safety.attacks import TRAIN_STYLES
from aloe.safety.pairs import RedTeamPairs, refuse_harmful, refuse_held_out
from aloe.safety.requests import read_attacks, read_sets, take
from aloe.safety.splits import SplitRule
from aloe.train.dpo import Dpo


class RedTeamLoop(Step):
    """Rounds of `red_team_pairs` and `dpo` under guard rails. Makes the last model that kept them and helped."""

    verb: ClassVar[str] = "red_team_loop"
    version: ClassVar[int] = 100 * RedTeamPairs.version + Dpo.version  # what those two do is done here, too
    makes: ClassVar[Kind] = "model"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    model: ModelRef
    requests: list[AttacksRef] = Field(min_length=1)
    split: str = "train"
    split_by: SplitRule | None = None  # for sets that state no splits
    styles: list[str] = Field(default_factory=lambda: list(TRAIN_STYLES))  # attacked in, and trained on
    limit: int | None = Field(default=None, ge=1)  # base requests trained on at most; each comes in every style
    max_new_tokens: int = Field(default=160, ge=1)  # of a reply, in training and validation
    rounds: int = Field(default=3, ge=1)  # at most
    safer: ModelRef | None = None  # answers requests that come without a safe response
    benign: list[AttacksRef] = Field(default_factory=lambda: ["starter/over_refusal"])  # counterweights, of `split`
    benign_share: float = Field(default=0.5, ge=0.0, lt=1.0)
    benign_styles: list[str] = Field(default_factory=lambda: list(TRAIN_STYLES))
    benign_rejected: Literal["listed", "safe_responses", "both"] = "both"
    judges: list[str] = Field(default_factory=lambda: ["rules", "classifier"], min_length=1)  # the first one decides
    guard: ModelRef | None = None  # the model of the judge `guard`
    guard_format: GuardFormat | None = None
    dpo: Tuning = Field(default_factory=Tuning)
    validation: Validation = Field(default_factory=Validation)
    rails: Rails = Field(default_factory=Rails)
    fall_min: float = Field(default=0.01, ge=0, lt=1)  # of held-out attack success in a round, for the round to be kept
    alpha: float | None = Field(default=None, gt=0, lt=1)  # and the paired test's p at most this; None: no test

    @field_validator("requests", "benign", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    def run(self, ctx: Context) -> dict[str, Any]:
        """Write the model that was kept, `loop.json`, `items.parquet`, `rows.parquet` and `rounds/`."""
        held, sides, counterweights = self._inputs(ctx)
        loop = Loop(self, ctx, held, sides, counterweights)
        try:
            loop.run()
        finally:
            loop.models.close()
        return loop.write()

    def pairs_step(self) -> RedTeamPairs:
        """The inner `red_team_pairs`."""
        return RedTeamPairs(
            model=CURRENT,
            requests=self.requests,
            split=self.split,
            styles=self.styles,
            max_new_tokens=self.max_new_tokens,
            safer=self.safer,
            benign=self.benign,
            benign_share=self.benign_share,
            benign_styles=self.benign_styles,
            benign_rejected=self.benign_rejected,
            judges=self.judges,
            guard=self.guard,
            guard_format=self.guard_format,
        )

    def dpo_step(self) -> Dpo:
        """The inner `dpo`: it starts from the round's model and is referenced to it."""
        return Dpo(model=CURRENT, pairs={PAIRS: 1.0}, **self.dpo.of_dpo())

    def _inputs(self, ctx: Context) -> tuple[HeldOut, Parted, list[list[AttackPrompt]]]:
        """Everything that is read, checked before a model is loaded."""
        panel = Panel(self.judges, self.guard, self.guard_format)
        panel.identities(ctx)
        self.dpo_step().check()
        refuse_held_out(self.styles, self.split_by)
        found, _ = read_sets(ctx, self.requests, self.split, self.split_by)
        sides = parted(found, self.validation, self.styles, ctx.seed)
        train = take(sides.train, self.limit, ctx.seed, "red_team_pairs")
        left = {
            "held_out": len(sides.validation),
            "over_limit": len(sides.train) - len(train),
            "neither": len(found) - len(sides.train) - len(sides.validation),
        }
        ctx.ledger("requests", rows_in=len(found), kept=len(train), dropped={k: n for k, n in left.items() if n})
        benign = look_alikes(ctx, self.validation, self.split_by)
        counterweights = self._counterweights(ctx, benign)
        accuracy = self.rails.accuracy
        panel.try_out(ctx)
        held = HeldOut(
            attacks=in_styles(sides.validation, self.validation.styles),
            benign=benign,
            questions=questions_of(ctx, accuracy) if accuracy else [],
            accuracy=accuracy,
            panel=panel,
            max_new_tokens=self.max_new_tokens,
        )
        return held, replace(sides, train=train), counterweights

    def _counterweights(self, ctx: Context, watched: Sequence[AttackPrompt]) -> list[list[AttackPrompt]]:
        """Harmless requests to train on, set by set: none that over-refusal is watched on."""
        lists = [read_attacks(ctx, ref, self.split, self.split_by) for ref in self.benign]
        refuse_harmful(lists, self.benign)
        ids, texts = {p.base_id for p in watched}, {normalise(p.request).casefold() for p in watched}
        kept = [
            [p for p in rows if p.base_id not in ids and normalise(p.request).casefold() not in texts] for rows in lists
        ]
        for ref, rows, own in zip(self.benign, lists, kept, strict=True):
            out = len(rows) - len(own)
            ctx.ledger(f"benign {ref}", rows_in=len(rows), kept=len(own), dropped={"held_out": out} if out else {})
        return kept
