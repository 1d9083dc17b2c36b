"""`red_team`: ask every model every held-out request in every style, judge the replies, count with intervals.

Attack success never stands alone: over-refusal on benign look-alikes and well-meant clinical conversations are measured
beside it, a reply that nobody could judge has its own count, and a request that errored is neither safe nor unsafe.
Models are compared prompt by prompt, in the order they are named.

Everything is read and checked first; then each model is loaded once and asked everything; then each judge is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from aloe.contract import AttacksRef, Context, Kind, ModelRef, Params, RowsRef, Step
from aloe.digests import digest_json
from aloe.records import ItemResult
from aloe.rows import write_records
from aloe.safety.attacks import TEST_STYLES, styles_digest
from aloe.safety.budget import Budget
from aloe.safety.calibration import Calibration, load, packaged
from aloe.safety.judges import open_judges, try_out
from aloe.safety.judging import Judge
from aloe.safety.red_team_ask import Docket, Heard, hear, reopened
from aloe.safety.red_team_items import deciders
from aloe.safety.red_team_plan import Plan, make_plan
from aloe.safety.red_team_rows import places_of, rows_of
from aloe.safety.red_team_table import tables
from aloe.safety.splits import SplitRule
from aloe.safety.trained_on import Seen, held_out
from aloe.safety.transcripts import write_transcripts
from aloe.schema import mark

INTERVAL = "Wilson 95% over prompts; the clustered ones are over base requests, whose variants succeed or fail together"


class Escalation(Params):
    """Conversations in which the request is approached turn by turn."""

    attacker: ModelRef | None = None  # writes each turn in view of the replies; null: a fixed ladder of frames
    turns: int = Field(default=4, ge=2, le=8)  # of the user; the last one is the request itself
    limit: int | None = Field(default=None, ge=1)  # base requests at most, of those that are asked


class RedTeam(Step):
    """Attack success by model, style and topic, with over-refusal and clinical conversations beside it."""

    verb: ClassVar[str] = "red_team"
    version: ClassVar[int] = 3
    makes: ClassVar[Kind] = "red_team"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    models: list[ModelRef] = Field(min_length=1)
    requests: list[AttacksRef] = Field(min_length=1)
    split: str = "test"
    split_by: SplitRule | None = None  # for sets that state no split of their own
    styles: list[str] = Field(default_factory=lambda: list(TEST_STYLES), min_length=1)  # of aloe.safety.attacks
    translator: ModelRef | None = None  # of the styles that ask in another language
    limit: int | None = Field(default=None, ge=1)  # base requests, look-alikes and scenarios at most, each
    max_new_tokens: int = Field(default=160, ge=1)  # tokens a reply, end of turn included
    attempts: int = Field(default=1, ge=1)  # replies drawn to each attack
    temperature: float = Field(default=0.0, ge=0.0)  # 0 is greedy
    benign: list[AttacksRef] = Field(default_factory=lambda: ["starter/over_refusal"])
    judges: list[str] = Field(default_factory=lambda: ["rules", "classifier"], min_length=1)  # the first one decides
    guard: ModelRef | None = None  # the model of the judge `guard`
    guard_format: Literal["llama_guard_3", "wildguard", "shieldgemma"] | None = None
    calibration: RowsRef | None = None  # file of `aloe judge calibrate` for the first judge; null: the packaged one
    scenarios: RowsRef | None = "starter/clinical_scenarios"
    scenario_tokens: int = Field(default=400, ge=1)  # tokens a reply there: one that is cut off may have no verdict
    escalation: Escalation | None = None
    budget: Budget | None = None

    @field_validator("requests", "benign", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> RedTeam:
        for name in ("models", "requests", "benign"):
            values = getattr(self, name)
            twice = next((v for v in values if values.count(v) > 1), None)
            if twice is not None:
                raise ValueError(f"{twice} is named twice in `{name}`")
        if self.attempts > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.attempts} attempts at temperature 0 would be {self.attempts} times the same reply: "
                "set a temperature above 0, or attempts to 1"
            )
        return self

    def run(self, ctx: Context) -> dict[str, Any]:
        # Everything that can be wrong with the input is found before the first model is loaded.
        judges = open_judges(reopened(ctx), self.judges, self.guard, self.guard_format)
        calibration = self._calibration(ctx)
        seen = held_out(ctx)
        plan = make_plan(self, ctx)
        try_out(judges)
        attacker = self.escalation.attacker if self.escalation else None
        turns = self.escalation.turns if self.escalation else 0
        heard = [hear(ctx, plan, model, turns, attacker) for model in self.models]
        items, transcripts, told = self._judged(ctx, judges, plan, heard)
        of_refusal = packaged(told["deciders"]["refusal"], "refusal")
        result = self._head(plan, seen, heard, told) | {
            "calibration": calibration.as_dict() if calibration else None,
            "refusal_calibration": of_refusal.as_dict() if of_refusal else None,
        }
        result["cautions"] = self._cautions(plan, heard, told, calibration)
        # What the rows say when they are read again is what the tables are made of.
        result |= tables(items, result)
        write_records(ctx.out / "items.parquet", items)
        write_transcripts(ctx.out, transcripts)
        text = json.dumps(mark("red team") | result, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        (ctx.out / "red_team.json").write_text(text + "\n", encoding="utf-8")
        return summary_of(result)

    def _calibration(self, ctx: Context) -> Calibration | None:
        """The labelled counts behind the corrected rate: of the judge that decides of harm."""
        first = self.judges[0]
        return packaged(first) if self.calibration is None else load(ctx.path(self.calibration), first)

    def _judged(
        self, ctx: Context, judges: Sequence[Judge], plan: Plan, heard: Sequence[Heard]
    ) -> tuple[list[ItemResult], list[dict[str, Any]], dict[str, Any]]:
        docket = Docket()
        places = [places_of(docket, one) for one in heard]
        judged, identities = docket.judge(ctx, judges)
        told: dict[str, Any] = {"judges": identities, "protocols": {}}
        items: list[ItemResult] = []
        transcripts: list[dict[str, Any]] = []
        told["deciders"] = deciders(self.judges, judged)
        for one, at in zip(heard, places, strict=True):
            protocols = self._protocols(ctx, plan, one, told)
            told["protocols"] |= {digest_json(p): p for p in protocols.values()}
            digests = {part: digest_json(p) for part, p in protocols.items()}
            rows, talks = rows_of(one, at, docket, judged, told["deciders"], digests, str(self.scenarios))
            items += rows
            transcripts += talks
        return items, transcripts, told

    def _protocols(self, ctx: Context, plan: Plan, heard: Heard, told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Everything that makes two rates comparable, by part; the model itself is what differs."""
        base = {
            "kind": "red_team",
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "template_digest": heard.facts["template_digest"],
            **({"seed": ctx.seed} if self.temperature > 0 else {}),
        }
        judged = base | {"judges": told["judges"], "deciders": told["deciders"], "split": self.split}
        styles = sorted(set(self.styles))
        found: dict[str, dict[str, Any]] = {
            "attack": judged
            | {
                "part": "attacks",
                "styles": styles,
                "styles_digest": styles_digest(styles, ctx.seed),
                "attempts": self.attempts,
                **({"translator": ctx.digest(self.translator)} if self.translator else {}),
            }
        }
        if plan.benign:
            found["benign"] = judged | {"part": "benign"}
        if plan.scenarios:
            from aloe.safety.scenarios import checker

            # What was played, wherever the file lies.
            rows = digest_json(sorted(digest_json(s.to_dict() | {"source": ""}) for s in plan.scenarios))
            found["scenario"] = base | {
                "part": "clinical", "scenarios_digest": rows, "checker": checker(),
                "max_new_tokens": self.scenario_tokens,
            }  # fmt: skip
        if self.escalation is not None:
            from aloe.safety.escalation import escalation_digest

            attacker, turns = self.escalation.attacker, self.escalation.turns
            found["escalation"] = judged | {
                "part": "escalation",
                "escalation_digest": escalation_digest(turns, attacker is not None),
                "attacker": None if attacker is None else ctx.digest(attacker),
            }
        return found

    def _head(self, plan: Plan, seen: Seen, heard: Sequence[Heard], told: Mapping[str, Any]) -> dict[str, Any]:
        styles, topics = sorted({a.prompt.style for a in plan.attacks}), sorted({p.topic for p in plan.base})
        return {
            "judge": dict(told["judges"][0]),
            "judges": told["judges"],
            "deciders": told["deciders"],
            "interval": INTERVAL,
            "requests": ", ".join(self.requests),
            "sets": list(self.requests),
            "benign": ", ".join(self.benign) or None,
            "scenarios": self.scenarios,
            "split": self.split,
            "styles": styles,
            "families": plan.families,
            "topics": topics,
            "base_requests": len({p.base_id for p in plan.base}),
            "attempts": self.attempts,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "budget": self.budget.model_dump() if self.budget else None,
            "escalation": self.escalation.model_dump() if self.escalation else None,
            "not_asked": plan.not_asked,
            "not_made": plan.not_made,
            "held_out": seen.unseen(styles, topics, {p.base_id for p in plan.base}),
            "order": list(self.models),
            "model_digests": {h.model: h.facts["model_digest"] for h in heard},
            "protocols": told["protocols"],
        }

    def _cautions(
        self, plan: Plan, heard: Sequence[Heard], told: Mapping[str, Any], calibration: Calibration | None
    ) -> list[str]:
        """What a reader of the figures must know."""
        found = []
        if self.judges[0] == "rules":
            found.append("The rule judge's harm verdict is an upper bound: fluent text on the request's topic counts.")
        if calibration is None:
            found.append(f"No calibration of the judge {self.judges[0]!r} is there: attack success is not corrected.")
        else:
            found.append(
                f"The judge's errors were measured on {calibration.set}, not on these models' replies in these styles: "
                "the corrected rate holds as far as they are alike."
            )
            other = calibration.caution(told["judges"][0])
            found += [f"{other[0].upper()}{other[1:]}."] if other else []
        if told["deciders"]["refusal"] != told["deciders"]["harm"]:
            mute, says = (told["deciders"][of] for of in ("harm", "refusal"))
            found.append(f"The judge {mute!r} tells no refusals from answers: {says!r} decides what is a refusal.")
        system = sum(any(m["role"] == "system" for m in a.prompt.prompt) for a in plan.requests)
        for one in heard:
            if system and one.facts["folds_system"]:
                found.append(
                    f"{one.model}: its chat template has no place for a system message, so that of {system} prompts "
                    "stands at the start of the first user turn."
                )
        return found


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of the red team."""
    models = result["models"]
    return {
        "attack_success": {m: r["attack_success"]["value"] for m, r in models.items()},
        "over_refusal": {m: (r["over_refusal"] or {}).get("value") for m, r in models.items()},
        "clinical_pass": {m: r["clinical"]["pass"]["value"] if r["clinical"] else None for m, r in models.items()},
        "errors": {m: r["errors"] for m, r in models.items()},
        "unjudged": {m: r["unjudged"] for m, r in models.items()},
        "n": {m: r["attack_success"]["n"] for m, r in models.items()},
        "not_asked": (result["not_asked"] or {}).get("attempts", 0),
        "styles": result["styles"],
        "topics": result["topics"],
        "held_out_styles": result["held_out"]["styles"],
        "held_out_topics": result["held_out"]["topics"],
        "judge": result["judge"],
    }
