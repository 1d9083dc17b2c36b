"""The rounds themselves: what is made, measured and decided, and what stays of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aloe.contract import Context
from aloe.digests import digest_files, digest_json, digest_tree
from aloe.hardening.held_out import ACCURACY, BROKEN, HeldOut, Parted, change, figures
from aloe.hardening.place import OUT, Models, RoundContext, stage
from aloe.hardening.verdict import Verdict, judge
from aloe.licence import terms_of
from aloe.models.weights_digest import digest_model
from aloe.records import AttackPrompt, ItemResult, Preference, row_id
from aloe.rows import read_records, write_records
from aloe.safety.attacks import variants
from aloe.safety.pairs import NoPair
from aloe.safety.red_team_table import ATTACK, OVER_REFUSAL

if TYPE_CHECKING:
    from aloe.hardening.step import RedTeamLoop

CURRENT, PAIRS = "current", "pairs"  # names that inner steps have for the round's model and pairs
ITEMS = "items.parquet"
SIDE_FILES = ("preview.txt", "preview.json", "dropped.parquet", "metrics.jsonl", "evals.jsonl")


@dataclass
class Round:
    """One round as it went; round 0 is the model that the loop began with."""

    index: int
    folder: Path
    items: list[ItemResult]
    pairs: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    place: Path | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict(True))


class Loop:
    """The rounds, in a folder of the cache whose name is the digest of all they depend on."""

    def __init__(
        self,
        step: RedTeamLoop,
        ctx: Context,
        held: HeldOut,
        sides: Parted,
        counterweights: list[list[AttackPrompt]],
    ) -> None:
        self.step, self.ctx, self.held, self.sides, self.counterweights = step, ctx, held, sides, counterweights
        self.protocol = held.protocol(ctx)
        self.models = Models(ctx, terms_of(ctx, step.model))
        start = ctx.path(step.model)
        identity = {  # not the rails nor the number of rounds: they decide what is made next, never what a round makes
            "pairs": step.pairs_step().model_dump(mode="json", exclude={"guard"}),
            "dpo": step.dpo_step().identity(),
            "version": step.version,
            "start": digest_model(start),
            "protocol": self.protocol,
            "train": digest_json([[p.id, p.prompt, p.answer] for p in sides.train]),
            "benign": digest_json([[[p.id, p.prompt, p.answer] for p in rows] for rows in counterweights]),
            "others": [ctx.digest(ref) for ref in (step.safer, step.guard) if ref],
        }
        self.root = ctx.cache / "red-team-loop" / digest_json(identity)
        self.rounds: list[Round] = [Round(0, start, [])]
        self.stopped, self.why = "rounds", f"all {step.rounds} rounds were done"

    @property
    def kept(self) -> Round:
        """The last round that was kept."""
        return [r for r in self.rounds if r.verdict.kept][-1]

    def run(self) -> None:
        """Measure, and go round."""
        ctx, start = self.ctx, self.rounds[0]
        start.items = self._measured(start)
        ctx.log(f"start: {self._line(start)}")
        if not any(i.value for i in start.items if i.metric == ATTACK):
            self.stopped, self.why = "none_left", "no held-out attack succeeds against the model as it is"
            return
        for index in range(1, self.step.rounds + 1):
            try:
                made = self._round(index)
            except NoPair as cause:
                self.stopped, self.why = "no_pair", f"nothing to learn from: {cause.what}"
                break
            former = self.kept
            self.rounds.append(made)
            made.verdict = self._judged(made, former)
            ctx.log(f"round {index}: {self._line(made)}; {made.verdict.why}")
            if made.verdict.stop is not None:
                self.stopped, self.why = made.verdict.stop, made.verdict.why
                break
        ctx.log(f"{self.why}; the model of {name_of(self.kept)} is kept")

    def _round(self, index: int) -> Round:
        ctx, step, former = self.ctx, self.step, self.kept
        place, title = self.root / f"round-{index}", f"round {index}"
        local = {CURRENT: former.folder}

        def build(inner: RoundContext) -> dict[str, Any]:
            prompts = variants(self.sides.train, step.styles)
            pairs = step.pairs_step()
            return pairs.build(inner, prompts, self.counterweights, [], self.protocol["judges"])  # type: ignore[arg-type]

        pairs = stage(ctx, place / "pairs", f"{title} pairs", local, self.models, build)
        self.models.close()  # training needs the room
        local = {**local, PAIRS: place / "pairs" / OUT / "rows.parquet"}

        def tune(inner: RoundContext) -> dict[str, Any]:
            return step.dpo_step().run(inner)  # type: ignore[arg-type]

        training = stage(ctx, place / "model", f"{title} dpo", local, self.models, tune)
        made = Round(index, place / "model" / OUT, [], pairs, training, place)
        made.items = self._measured(made)
        return made

    def _measured(self, made: Round) -> list[ItemResult]:
        place, title = self.root / f"measured-{made.index}", name_of(made)

        def measure(inner: RoundContext) -> dict[str, Any]:
            engine = inner.engine(CURRENT)
            items = self.held.measure(inner, engine, title, digest_json(self.protocol))  # type: ignore[arg-type]
            write_records(inner.out / ITEMS, items)
            return {"items": len(items)}

        stage(self.ctx, place, title, {CURRENT: made.folder}, self.models, measure)
        return read_records(place / OUT / ITEMS, ItemResult)

    def _changes(self, before: Round, after: Round) -> dict[str, dict[str, Any] | None]:
        metric = self.held.accuracy.metric if self.held.accuracy else ACCURACY
        watched = [ATTACK, *([OVER_REFUSAL] if self.held.benign else []), BROKEN]
        watched += [ACCURACY] if self.held.accuracy else []
        return {m: change(before.items, after.items, m, metric) for m in watched}

    def _judged(self, made: Round, former: Round) -> Verdict:
        return judge(
            self.step.rails,
            self._changes(self.rounds[0], made),
            self._changes(former, made)[ATTACK],
            fall_min=self.step.fall_min,
            alpha=self.step.alpha,
        )

    def _line(self, made: Round) -> str:
        found = figures(made.items, self.held, self.sides.topics)
        shown = {m: found[m]["value"] for m in (ATTACK, OVER_REFUSAL, ACCURACY) if found[m] is not None}
        return ", ".join(
            f"{m.replace('_', ' ')} {v:.3f}" if v is not None else f"{m} unknown" for m, v in shown.items()
        )

    # -- what stays ----------------------------------------------------------------------------------------------------

    def write(self) -> dict[str, Any]:
        """Copy what is kept into the artifact; the summary."""
        out = self.ctx.out
        copy_model(self.kept.folder, out)
        write_records(out / ITEMS, [item for r in self.rounds for item in r.items])
        trained = [r for r in self.rounds if r.index and r.verdict.kept]
        write_records(out / "rows.parquet", [pair for r in trained for pair in pairs_of(r)])
        for made in self.rounds[1:]:
            _copy_round(made, out / "rounds" / f"round-{made.index}")
        record = self.record()
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        (out / "loop.json").write_text(text + "\n", encoding="utf-8")
        self.ctx.done_with(self.root)
        last = record["rounds"][self.kept.index]
        return {
            "rounds": len(self.rounds) - 1,
            "kept": self.kept.index,
            "stopped": self.stopped,
            "why": self.why,
            "attack_success": [r["figures"][ATTACK]["value"] for r in record["rounds"]],
            "over_refusal": [r["figures"][OVER_REFUSAL]["value"] for r in record["rounds"]],
            "against_start": last["against_start"],
            "pairs": sum(r.pairs["pairs"] for r in trained if r.pairs),
            "judges": self.protocol["judges"],
        }

    def record(self) -> dict[str, Any]:
        """The curve, with every round's figures and changes."""
        start = self.rounds[0]
        lines, former = [], start
        for made in self.rounds:
            line: dict[str, Any] = {
                "round": made.index,
                "weights": weights_of(made.folder),
                "figures": figures(made.items, self.held, self.sides.topics),
                "kept": made.verdict.kept,
                "crossed": made.verdict.crossed,
                "why": made.verdict.why,
                "pairs": made.pairs,
                "training": made.training,
                "against_start": self._changes(start, made) if made.index else None,
                "against_former": self._changes(former, made) if made.index else None,
            }
            lines.append(line)
            former = made if made.verdict.kept else former
        return {
            "model": self.step.model,
            "rounds": lines,
            "kept": self.kept.index,
            "stopped": self.stopped,
            "why": self.why,
            "rails": self.step.rails.model_dump(mode="json"),
            "fall_min": self.step.fall_min,
            "alpha": self.step.alpha,
            "styles": self.step.styles,
            "validation": {
                "topics": self.sides.topics,
                "styles": self.step.validation.styles,
                "base_requests": sorted({p.base_id for p in self.sides.validation}),
                "look_alikes": sorted({p.base_id for p in self.held.benign}),
                "attacks": len(self.held.attacks),
                "questions": len(self.held.questions),
            },
            "protocol": self.protocol,
        }


def name_of(made: Round) -> str:
    """`start` or `round 2`: what rows and bars call the model."""
    return f"round {made.index}" if made.index else "start"


def weights_of(folder: Path) -> str:
    """Digest of a model's weights alone."""
    return digest_tree(digest_files({p.name: p for p in sorted(folder.glob("*.safetensors"))}))


def pairs_of(made: Round) -> list[Preference]:
    """The pairs a round was trained on, with its number; one prompt may come in several rounds."""
    assert made.place is not None
    found = read_records(made.place / "pairs" / OUT / "rows.parquet", Preference)
    return [replace(p, id=row_id([p.id, made.index]), meta={**p.meta, "round": made.index}) for p in found]


def copy_model(folder: Path, out: Path) -> None:
    """The model's own files, and not what a trainer wrote beside them."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (*SIDE_FILES, "manifest.json") and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)


def _copy_round(made: Round, out: Path) -> None:
    assert made.place is not None
    out.mkdir(parents=True, exist_ok=True)
    for source, names in (("pairs", ("rows.parquet", "dropped.parquet")), ("model", ("metrics.jsonl",))):
        for name in names:
            place = made.place / source / OUT / name
            if place.exists():
                shutil.copyfile(place, out / (name if name != "rows.parquet" else "pairs.parquet"))
