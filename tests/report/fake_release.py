"""A release and its store as a run of the demo recipe lays them out, with invented figures from keyed draws.

Rates, intervals, paired tests and the risk register come from the project's own functions, so the page is tested
against the shapes that the steps write. Texts carry markup, control and direction characters on purpose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fake_results import BASE, CHECKPOINTS, EVIL, comparisons_file, red_team_file, scores_file

from aloe.digests import digest_text
from aloe.keyed import rng
from aloe.rows import write_parquet
from aloe.run.store import Artifact, Store
from aloe.safety.risk import risk_register

STORED = EVIL.replace("\ud800", "")  # Parquet and UTF-8 files can't hold a lone surrogate; JSON text can
MACHINE = {
    "processor": "Example 3000",
    "cores": 2,
    "memory_gb": 16.0,
    "gpus": [],
    "system": "Linux",
    "python": "3.11.9",
}
Outside = Mapping[str, tuple[str, str]]  # reference -> (kind, licence)


class FakeRun:
    """Writes artifacts into a store, in order, as `aloe.run.execute` does."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "Aloe-Fake-demo")
        self.store.folder.mkdir(parents=True)
        self.made: dict[str, Artifact] = {}

    def step(
        self,
        name: str,
        verb: str,
        kind: str,
        files: Mapping[str, Any],
        *,
        inputs: tuple[str, ...] = (),
        outside: Outside | None = None,
        **extra: Any,
    ) -> Artifact:
        """Files: text as it is, a list of dicts as Parquet, anything else as JSON."""
        folder = self.store.begin(name)
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.endswith(".parquet"):
                write_parquet(target, content)
            else:
                text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
                target.write_text(text, encoding="utf-8")
        entries: dict[str, Any] = {
            up: {
                "digest": self.made[up].content_digest,
                "fingerprint": self.made[up].fingerprint,
                "step": up,
                "kind": self.made[up].manifest["kind"],
            }
            for up in inputs
        }
        for ref, (what, licence) in (outside or {}).items():
            entries[ref] = {"digest": digest_text(ref), "origin": "starter data", "licence": licence, "kind": what}
        manifest = {
            "fingerprint": digest_text(f"{name} {verb}"),
            "kind": kind,
            "step": name,
            "verb": verb,
            "version": 1,
            "parameters": {},
            "settings": {"seed": 7},
            "seed": 7,
            "inputs": entries,
            "ledger": [],
            "tokens": {},
            "summary": {},
            "wall_seconds": 12.345,
            "peak_memory_bytes": 1_230_000_000,
            "energy": None,
            "machine": MACHINE,
            "code": {"aloe": "0.1.0", "commit": "0123456789abcdef", "dirty": True},
            "versions": {"torch": "2.13.0", "numpy": "2.4.0"},
            **extra,
        }
        self.made[name] = self.store.finish(folder, verb, name, manifest)
        return self.made[name]


def make_release(root: Path) -> FakeRun:
    """All steps of the demo recipe, the release last."""
    run = FakeRun(root)
    _data(run)
    _models(run)
    scores, protocols = scores_file()
    comparisons = comparisons_file(scores)
    run.step(
        "scores",
        "evaluate",
        "scores",
        {"scores.json": scores, "protocols.json": protocols, "comparisons.json": comparisons},
        inputs=CHECKPOINTS[1:],
        outside={BASE: ("model", "apache-2.0"), "starter/exam": ("rows", "cc0-1.0")},
        ledger=[{"stage": "benchmark exam", "in": 120, "kept": 120, "dropped": {}}],
        wall_seconds=412.0,
        tokens={"prompt": 120_345, "completion": 9_876},
    )
    red_team = red_team_file()
    run.step(
        "red_team",
        "red_team",
        "red_team",
        {"red_team.json": red_team},
        inputs=("merged", "helpful", "aligned"),
        outside={"starter/harmful": ("rows", "cc0-1.0"), "starter/over_refusal": ("rows", "cc0-1.0")},
        parameters={"models": ["merged", "helpful", "aligned"]},
        wall_seconds=933.1,
        ledger=[{"stage": "requests", "in": 24, "kept": 24, "dropped": {}}],
    )
    lineage = {name: a.manifest for name, a in sorted(run.made.items())}
    files: dict[str, Any] = {
        "config.json": {},
        "README.md": "# card",
        "lineage.json": lineage,
        "recipe.yaml": "family: Aloe-Fake-demo\n",
        "evidence/scores/scores.json": scores,
        "evidence/scores/protocols.json": protocols,
        "evidence/scores/comparisons.json": comparisons,
        "evidence/red_team/red_team.json": red_team,
        "risk_assessment.json": risk_register(red_team, scores, "aligned"),
        "data/corpus/README.md": f"# corpus\n\nRows from {STORED}.",
        "inputs.json": [
            {
                "name": BASE,
                "kind": "model",
                "origin": "packaged model",
                "licence": "apache-2.0",
                "digest": digest_text(BASE),
                "used_by": ["sft", "scores"],
                "in_model": True,
            },
            {
                "name": "starter/exam",
                "kind": "rows",
                "origin": "starter data",
                "licence": "cc0-1.0",
                "digest": digest_text("exam"),
                "used_by": ["corpus", "scores"],
                "in_model": False,
            },
        ],
        "carbon.json": {
            "steps": [],
            "hours": 0.42,
            "kwh": 0.0126,
            "grams_co2e": None,
            "power_watts": {"value": 30.0, "source": "data sheet of the processor"},
            "intensity_g_per_kwh": {"value": None, "source": ""},
            "unknown": ["intensity"],
        },
    }
    run.step(
        "release",
        "release",
        "release",
        files,
        inputs=("aligned", "scores", "red_team", "corpus"),
        parameters={"model": "aligned", "evidence": ["scores", "red_team", "corpus"]},
        summary={"name": "Aloe-Fake-demo", "model": "aligned", "licence": "cc-by-nc-4.0"},
    )
    return run


# -- data ---------------------------------------------------------------------------------------------------------


def _data(run: FakeRun) -> None:
    stages = [
        ("load", 610, {}),
        ("clean", 610, {"empty": 4, "junk_answer": 9}),
        ("exact_dedup", 597, {"exact_duplicate": 21}),
        ("near_dedup", 576, {"near_duplicate": 33}),
        ("decontaminate", 543, {"contaminated": 6}),
        ("template", 537, {}),
        ("mix", 537, {"not_sampled": 57}),
    ]
    ledger = [{"stage": s, "in": n, "kept": n - sum(d.values()), "dropped": d} for s, n, d in stages]
    dropped = [
        {
            "id": f"starter/general:g{n:03d}",
            "source": "starter/general",
            "stage": stage,
            "reason": reason,
            "where": "starter/general",
            "detail": "",
            "evidence": {"survivor": f"g{n + 100}", "jaccard": 0.81} if stage == "near_dedup" else {},
            "row": {"messages": [{"role": "user", "content": f"How many hours of sleep do adults need? {n} {STORED}"}]},
        }
        for stage, _, reasons in stages
        for reason, count in reasons.items()
        for n in range(count)
    ]
    run.step(
        "corpus",
        "curate",
        "dialogues",
        {
            "dropped.parquet": dropped,
            "stats.json": {
                "by_source": {"starter/medical_mcq": 240, "starter/medical_qa": 140, "starter/general": 100},
                "licences_by_source": {"starter/medical_mcq": {"cc0-1.0": 240}, "starter/medical_qa": {"cc0-1.0": 140}},
            },
            "contamination.json": {
                "table": {
                    "starter/medical_mcq": {"starter/exam": {"rows": 300, "candidates": 14, "contaminated": 6}},
                }
            },
        },
        outside={f"starter/{n}": ("rows", "cc0-1.0") for n in ("medical_mcq", "medical_qa", "general", "exam")},
        ledger=ledger,
        parameters={"sources": [{"rows": "starter/medical_mcq", "weight": 0.6, "limit": None}]},
    )
    run.step(
        "reasoning",
        "synthesize",
        "dialogues",
        {"note.txt": "rows"},
        inputs=("corpus",),
        outside={BASE: ("model", "apache-2.0")},
        wall_seconds=4_000.0,
        ledger=[{"stage": "tries", "in": 240, "kept": 88, "dropped": {"wrong_letter": 120, "leak": 32}}],
    )


def _models(run: FakeRun) -> None:
    base: Outside = {BASE: ("model", "apache-2.0")}
    preview = f"Trained: ⟦this⟧.\n\n=== c1: 40 tokens\nuser: What helps?\nassistant: ⟦Rest. {STORED}⟧\n"
    sft = "\n".join(json.dumps(_figures(step, 700)) for step in range(700))
    run.step(
        "sft",
        "sft",
        "model",
        {"metrics.jsonl": sft, "preview.txt": preview, "logs/timing.jsonl": "{}"},
        inputs=("corpus", "reasoning"),
        outside=base,
        wall_seconds=1_900.0,
        tokens={"trained": 812_345},
        summary={"first_loss": 2.9, "last_loss": 1.7, "padding_share": 0.031},
    )
    entry = {"kept": 0.53, "task_vector_norm": 4.21}
    classes = {
        c: {"entries": 1000 * n, "models": {"sft": entry}, "sign_disagreement": None, "merged_delta_norm": 2.5}
        for n, c in enumerate(("attention", "embedding", "mlp", "norm"), 1)
    }
    total = {"entries": 134_515_008, "models": {"sft": entry}, "sign_disagreement": 0.113, "merged_delta_norm": 6.02}
    row = {"space": "deltas", "sparsify": "bernoulli", "rescale": "expectation", "consensus": True, "normalize": False}
    run.step(
        "merged",
        "merge",
        "model",
        {"merge.json": {"classes": classes, "total": total, "row": row, "lambda": 1.0, "dtype": "float32"}},
        inputs=("sft",),
        outside=base,
        summary={"method": "dare_ties", "row": row},
        parameters={"method": "dare_ties", "base": BASE, "models": {"sft": {"weight": 0.7, "density": 0.53}}},
    )
    pairs = "\n".join(json.dumps(_figures(step, 60) | _pair_figures(step)) for step in range(60))
    run.step(
        "helpful",
        "dpo",
        "model",
        {"metrics.jsonl": pairs, "preview.txt": preview},
        inputs=("merged",),
        outside={"starter/preferences": ("rows", "cc0-1.0")},
        parameters={"model": "merged"},
    )
    run.step(
        "attacks",
        "red_team_pairs",
        "preferences",
        {"note.txt": "pairs"},
        inputs=("helpful",),
        outside={"starter/harmful": ("rows", "cc0-1.0"), "starter/over_refusal": ("rows", "cc0-1.0")},
        ledger=[{"stage": "requests", "in": 96, "kept": 61, "dropped": {"already_refused": 35}}],
    )
    run.step(
        "aligned",
        "dpo",
        "model",
        {"metrics.jsonl": pairs, "preview.txt": "=== a1\nuser: asked\n--- branch 2\n⟦SECRET-HARMFUL-REPLY⟧"},
        inputs=("helpful", "attacks"),
        summary={"warnings": ["chosen answers have lost 0.020 nats a token"]},
        parameters={"model": "helpful"},
    )


def _figures(step: int, steps: int) -> dict[str, float]:
    noise = float(rng(7, "fake", step).normal()) * 0.08
    loss = 1.7 + 1.2 * math.exp(-4 * step / steps) + noise
    return {"step": step, "rows": 8, "loss": loss, "lr": 2e-5 * (1 - step / steps), "grad_norm": 1.1 + abs(noise)}


def _pair_figures(step: int) -> dict[str, float]:
    grown = step / 60
    return {
        "loss": 0.69 - 0.25 * grown,
        "reward_chosen": 0.4 * grown,
        "reward_rejected": -0.3 * grown,
        "margin": 0.7 * grown,
        "accuracy": min(1.0, 0.5 + grown / 2),
        "chosen_logp": -1.2,
        "chosen_drift": 0.01,
    }
