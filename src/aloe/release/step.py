"""`release`: a model folder that loads as it is, with everything needed to judge, trace and verify it.

All of it is deterministic given the upstream artifacts, except that the card and `carbon.json` quote wall times and
energy from their manifests: two releases of equal weights made by two runs differ there, and only there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from aloe.contract import Context, EvidenceRef, Kind, ModelRef, Step
from aloe.errors import AloeError
from aloe.licence import Table, check, packaged, parts, table
from aloe.licence_file import as_values, build_table, find_table, own_entries, read_table
from aloe.release.bundle import RED_TEAM_FILES, copy_evidence, copy_model, copy_prompts, copy_small
from aloe.release.carbon import Stated, footprint
from aloe.release.card import dataset_card, model_card, settings
from aloe.release.forms import Form, check_forms, write_forms
from aloe.release.front import hub_licence, spdx
from aloe.release.gate import Gate, refuse_missed, verdict
from aloe.release.gate_checks import check_gate
from aloe.release.lineage import (
    DATA_KINDS,
    Input,
    Manifests,
    ancestry,
    binding_sources,
    check_known,
    outside_inputs,
    row_licences,
    writer_licences,
)
from aloe.release.merges import VERBS as MERGES
from aloe.release.merges import write_merges
from aloe.release.protocols import protocol_lines
from aloe.release.withhold import withhold
from aloe.safety.risk import Source, assess, render_markdown
from aloe.safety.risk_file import dump_register, find_register, load_own, parse_register, read_register, written
from aloe.safety.risk_page import render_html
from aloe.safety.risk_sources import read_sources
from aloe.safety.table import render_markdown as render_safety
from aloe.safety.table import safety_table

# How each step went: learning curves, merge statistics, searches, curation. No previews and no dropped rows: they show
# texts.
MAKING = ("metrics.jsonl", "merge.json", "search.json", "stats.json", "contamination.json", "loop.json")


class Release(Step):
    """A releasable folder around `model`, with `evidence` (scores, red teams, data) copied or summarised beside it."""

    verb: ClassVar[str] = "release"
    version: ClassVar[int] = 3
    makes: ClassVar[Kind] = "release"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "family", "licence")

    model: ModelRef
    evidence: list[EvidenceRef] = Field(default_factory=list)
    also: list[Form] = Field(default_factory=list)  # other forms of the model, beside its weights
    dtype: Literal["as_is"] = "as_is"  # weights are released in the precision they were made in
    power_watts: float | None = Field(default=None, ge=0)  # watts of all devices together; None: unknown
    power_source: str = ""  # where that figure comes from
    intensity_g_per_kwh: float | None = Field(default=None, ge=0)  # g CO2-equivalent per kWh; None: unknown
    intensity_source: str = ""  # grid, year and publisher of that figure
    gate: Gate | None = None  # limits that the model must keep, else the step stops
    risks: dict[str, Any] | None = None  # the user's own risks: a YAML file's path, or what such a file holds

    licences: dict[str, Any] | None = None  # the user's own licences: a YAML file's path, or what such a file holds

    @field_validator("licences", mode="before")
    @classmethod
    def _licences_file(cls, value: Any, info: ValidationInfo) -> Any:
        """As of `risks`: read now, and kept by what it holds."""
        try:
            under = table()
            if isinstance(value, str):
                found = read_table(find_table(value, (info.context or {}).get("near")), under)
                return as_values(own_entries(found, under))
            return value if value is None else as_values(own_entries(build_table(value, under), under))
        except AloeError as cause:  # with the entry and the field
            raise ValueError(str(cause)) from None

    @field_validator("risks", mode="before")
    @classmethod
    def _risks_file(cls, value: Any, info: ValidationInfo) -> Any:
        """Read a file now, so that a mistake in it costs nothing, and keep what it holds, not where it lies."""
        try:
            if isinstance(value, str):
                return written(read_register(find_register(value, (info.context or {}).get("near"))))
            return value if value is None else written(parse_register(value, {}, "risks"))
        except AloeError as cause:  # with the line of the register's file, beside the recipe's
            raise ValueError(str(cause)) from None

    def run(self, ctx: Context) -> dict[str, Any]:
        manifests, chosen = ctx.manifests(), list(dict.fromkeys(self.evidence))
        check_known(chosen, manifests)
        chain = ancestry(self.model, manifests)
        data = {s: row_licences(ctx.folder(s)) for s in chain if manifests[s].get("kind") in DATA_KINDS}
        inputs = outside_inputs(self.model, manifests)
        if not chain:  # the model itself is from outside: nothing upstream states its licence
            raise AloeError(
                f"{self.model!r} is no step of the recipe, so its origin can't be traced",
                where="release.model",
                fix="name a step that makes a model (sft, dpo or merge)",
            )
        using = build_table(self.licences, table())
        written_by = {s: writer_licences(ctx.folder(s)) for s in data}
        check(ctx.licence, binding_sources(inputs, data, written_by), using)
        check_forms(self.also, self.model, manifests[self.model], ctx.path(self.model))
        sources = self._evidence(ctx, manifests, chosen)
        register = load_own(self.risks)
        verbs = {step: str(m.get("verb", "")) for step, m in manifests.items()}
        risks = assess(sources, self.model, register, verbs)
        gate = self._gate(ctx, sources, risks)
        copy_model(ctx.path(self.model), ctx.out)
        shown = data | {s: row_licences(ctx.folder(s)) for s in chosen if manifests[s].get("kind") in DATA_KINDS}
        for step, by_source in shown.items():
            _write(
                ctx.out / "data" / step / "README.md", dataset_card(data_facts(ctx, manifests[step], step, by_source))
            )
        facts = self._facts(ctx, manifests, chain, shown, sources) | {"risks": risks, "gate": gate, "licences": using}
        known_as = (hub_licence([ctx.licence], using), spdx(ctx.licence, using))
        made, model = manifests[self.model], ctx.path(self.model)
        facts["licence_spdx"] = known_as[1]
        facts["also"] = write_forms(self.also, made, model, ctx.out, ctx.family, known_as)
        _write_json(
            ctx.out / "licences.json", named_licences([ctx.licence, *(i.licence for i in inputs)], shown, using)
        )
        facts["merges"] = write_merges(manifests, ctx.folder, ctx.out / "merge")
        _write_json(ctx.out / "prompts" / "digests.json", copy_prompts(ctx.out / "prompts"))
        _write_json(ctx.out / "carbon.json", facts["carbon"])
        _write_json(ctx.out / "risk_assessment.json", risks)
        _write(ctx.out / "risk_assessment.md", render_markdown(risks))
        _write(ctx.out / "risk_assessment.html", render_html(risks))
        _write(ctx.out / "risk_register.yaml", dump_register(register))
        if gate is not None:
            _write_json(ctx.out / "gate.json", gate)
        _write_json(ctx.out / "lineage.json", manifests)
        _write_json(ctx.out / "inputs.json", [i.to_dict() for i in inputs])
        if facts["has_recipe"]:
            _write(ctx.out / "recipe.yaml", ctx.recipe_text)
        _write(ctx.out / "README.md", model_card(facts))
        return {
            "name": facts["name"],
            "model": self.model,
            "licence": ctx.licence,
            "inputs": len(inputs),
            "evidence": chosen,
            "scores": len(facts["scores"]),
            "kwh": facts["carbon"]["kwh"],
            "grams_co2e": facts["carbon"]["grams_co2e"],
            "residual_risk": {k: r["residual"] for k, r in risks["risks"].items()},
            "gates_passed": None if gate is None else len(gate["checks"]),
            "also": [one["file"] for one in facts["also"]],
        }

    def _evidence(self, ctx: Context, manifests: Manifests, chosen: Sequence[str]) -> list[Source]:
        """Copy results into evidence/<step>/, without harmful texts, and read the copies."""
        for step in manifests:
            copy_small(ctx.folder(step), ctx.out / "evidence" / step, MAKING)
        kept = {"scores": None, "red_team": RED_TEAM_FILES}
        found = [step for step in chosen if manifests[step].get("kind") in kept]
        for step in found:
            target = ctx.out / "evidence" / step
            copy_evidence(ctx.folder(step), target, kept[str(manifests[step]["kind"])])
            withhold(target / "items.parquet")
        return read_sources([ctx.out / "evidence" / step for step in sorted(found)], ctx.out)

    def _gate(self, ctx: Context, sources: Sequence[Source], risks: Mapping[str, Any]) -> dict[str, Any] | None:
        """Hold the results against the gate. A missed one stops the release before the weights are touched."""
        if self.gate is None:
            return None
        checks = check_gate(self.gate, self.model, sources, lambda s: (ctx.out / s.path).parent, risks)
        result = verdict(self.gate, self.model, checks)
        refuse_missed(result, f"{ctx.name}.gate")
        for passed in checks:
            ctx.log(f"gate passed: {passed.text}")
        return result

    def _shown(self, tables: Sequence[Mapping[str, Any]], red_team: Sequence[Mapping[str, Any]]) -> list[str]:
        """The models of the card's safety table: the released one, after the gate's baseline or the first measured."""
        measured = [str(m) for t in tables for m in t["models"]] + [str(m) for t in red_team for m in t["models"]]
        first = next((m for m in measured if m != self.model), None)
        before = self.gate.against if self.gate is not None and self.gate.against in measured else first
        return [*([before] if before else []), self.model]

    def _facts(
        self,
        ctx: Context,
        manifests: Manifests,
        chain: Sequence[str],
        data: Mapping[str, Mapping[str, Mapping[str, int]]],
        sources: Sequence[Source],
    ) -> dict[str, Any]:
        """Everything the model card shows, each from a manifest or a result file."""
        made, inputs = manifests[self.model], outside_inputs(self.model, manifests)
        carbon = footprint(
            {step: float(m.get("wall_seconds", 0.0)) for step, m in manifests.items()},
            Stated(self.power_watts, self.power_source),
            Stated(self.intensity_g_per_kwh, self.intensity_source),
            {step: float(m["energy"]["kwh"]) for step, m in manifests.items() if _metered(m)},
        )
        red_team = [s.data for s in sources if s.kind == "red_team"]
        tables = [s.data for s in sources if s.kind == "scores"]
        scores = [row for table in tables for row in table["scores"]]
        return {
            "name": ctx.family,
            "model": self.model,
            "licence": ctx.licence,
            "seed": made.get("seed", ctx.seed),
            "dtype": "as is" if self.dtype == "as_is" else self.dtype,
            "base_models": [
                vars(i) for i in inputs if i.kind == "model" and i.in_model and _trained_from(i, manifests)
            ],
            "data_inputs": [vars(i) for i in inputs if i.kind == "rows" and i.in_model],
            "relation": "merge" if made.get("verb") in MERGES else "finetune",
            "protocols": protocol_lines(ctx.out / s.path for s in sources if s.kind == "scores"),
            "training": [_training(s, manifests[s]) for s in chain if manifests[s].get("kind") == "model"],
            "data": [_data_row(s, manifests[s], by_source) for s, by_source in data.items()],
            "scores": scores,
            "red_team": red_team,
            "judges": _judges(red_team),
            "safety": render_safety(safety_table(tables, red_team, self._shown(tables, red_team))),
            "carbon": carbon.to_dict(),
            "machines": sorted({_machine(m["machine"]) for m in manifests.values() if m.get("machine")}),
            "gaps": _gaps(self.model, scores, red_team),
            "versions": ", ".join(f"{k} {v}" for k, v in sorted(_versions(made).items())),
            "fingerprint": made.get("fingerprint", "unknown"),
            "content_digest": made.get("content_digest", "unknown"),
            "has_recipe": bool(ctx.recipe_text),
        }


def _metered(manifest: Mapping[str, Any]) -> bool:
    """Whether all of a step's energy was counted: with a counter that was lost midway it is part of an energy."""
    energy = manifest.get("energy")
    return energy is not None and not energy.get("lost")


def data_facts(
    ctx: Context, manifest: Mapping[str, Any], step: str, by_source: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """What the dataset card of one step shows."""
    ledger = [
        {**stage, "dropped_text": ", ".join(f"{r} {n}" for r, n in sorted(stage["dropped"].items())) or "none"}
        for stage in manifest.get("ledger", [])
    ]
    return {
        "name": ctx.family,
        "step": step,
        "verb": manifest["verb"],
        "kind": manifest["kind"],
        "rows": sum(n for found in by_source.values() for n in found.values()),
        "sources": by_source,
        "licences": sorted({p for found in by_source.values() for text in found for p in parts(text)}),
        "ledger": ledger,
        "parameters": json.dumps(manifest["parameters"], indent=2, ensure_ascii=False, sort_keys=True),
        "content_digest": manifest.get("content_digest", "unknown"),
    }


def named_licences(
    stated: Sequence[str], data: Mapping[str, Mapping[str, Mapping[str, int]]], using: Table
) -> dict[str, Any]:
    """What every licence that is named here was taken to ask; `own` are not of the packaged table."""
    rows = [text for by_source in data.values() for found in by_source.values() for text in found]
    ids = sorted({p for text in [*stated, *rows] for p in parts(text, using) if p in using.licences})
    own = {one.id for one in own_entries(using, packaged())}
    return {"entries": as_values(using.licences[p] for p in ids), "own": [p for p in ids if p in own]}


def _trained_from(item: Input, manifests: Manifests) -> bool:
    """Whether weights descend from this model; a writer of training data is an input, not a base."""
    return any(manifests[step].get("kind") == "model" for step in item.used_by)


def _judges(red_team: Sequence[Mapping[str, Any]]) -> str:
    """Who judged the replies, in words."""
    named = [j for table in red_team for j in table.get("judges") or [table.get("judge") or {}]]
    return ", ".join(dict.fromkeys(str(j["name"]) for j in named if j.get("name")))


def _training(step: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "verb": manifest["verb"],
        "settings": settings(manifest),
        "tokens": sum(manifest.get("tokens", {}).values()),
        "hours": float(manifest.get("wall_seconds", 0.0)) / 3600,
        "memory_gb": manifest.get("peak_memory_bytes", 0) / 1e9,
    }


def _data_row(step: str, manifest: Mapping[str, Any], by_source: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    texts = [f"{source} ({', '.join(found)})" for source, found in by_source.items()]
    rows = sum(n for found in by_source.values() for n in found.values())
    return {"step": step, "verb": manifest["verb"], "rows": rows, "sources": "; ".join(texts)}


def _machine(machine: Mapping[str, Any]) -> str:
    gpus = machine.get("gpus") or []
    return ", ".join([f"{machine.get('processor')} ({machine.get('cores')} cores)", *map(str, gpus)])


def _versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    code = manifest.get("code") or {}
    own = {"aloe": str(code["aloe"])} if "aloe" in code else {}
    return {**{k: str(v) for k, v in (manifest.get("versions") or {}).items()}, **own}


def _gaps(model: str, scores: Sequence[Mapping[str, Any]], red_team: Sequence[Mapping[str, Any]]) -> list[str]:
    gaps = []
    if not any(row["model"] == model for row in scores):
        gaps.append("This model itself was not evaluated on any benchmark.")
    if not any(model in table["models"] for table in red_team):
        gaps.append("This model itself was not red-teamed.")
    return gaps


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")
