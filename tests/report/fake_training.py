"""Invented records of training steps in the shapes that `sft` and `dpo` write: figures from keyed draws, texts of our
own. Texts carry markup, control and direction characters on purpose."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fake_release import STORED, FakeRun

from aloe.keyed import rng

HARM = "SECRET-HARMFUL-REPLY"
STEPS = 120


def make_training(root: Path) -> FakeRun:
    """A fine-tune with everything, a preference stage, and one on a red team's pairs."""
    run = FakeRun(root)
    run.step(
        "sft",
        "sft",
        "model",
        {
            "metrics.jsonl": lines(figures(s) for s in range(STEPS)),
            "evals.jsonl": lines({"step": s, "loss": 2.8 * math.exp(-s / 90) + 0.3} for s in range(0, STEPS + 1, 20)),
            "logs/timing.jsonl": lines(timing(s) for s in range(STEPS)),
            "samples.jsonl": lines(samples()),
            "preview.json": preview(f"Rest and water. {STORED}"),
        },
        outside={"starter/general": ("rows", "cc0-1.0")},
        summary=sft_summary(),
        peak_memory_bytes=2_950_000_000,
    )
    pairs = lines(figures(s) | pair_figures(s) for s in range(STEPS))
    run.step(
        "helpful",
        "dpo",
        "model",
        {
            "metrics.jsonl": pairs,
            "evals.jsonl": lines({"step": s, "loss": 0.69 - s / 900, "margin": s / 300} for s in (0, 60, STEPS)),
            "logs/timing.jsonl": lines({"step": s, "seconds": 2.0, "tokens_s": 300.0} for s in range(STEPS)),
            "preview.json": pair_preview("Drink water.", "Ignore it."),
        },
        inputs=("sft",),
        outside={"starter/preferences": ("rows", "cc0-1.0")},
        summary={
            "warnings": [
                "chosen answers have lost 0.021 nats a token against the reference by step 70: the loss is pushing "
                "both answers down"
            ],
            "chunks": [24, 24, 24, 24, 24],
        },
    )
    run.step("attacks", "red_team_pairs", "preferences", {"note.txt": "pairs"}, inputs=("helpful",))
    run.step(
        "aligned",
        "dpo",
        "model",
        {
            "metrics.jsonl": pairs,
            "preview.json": pair_preview("I can't help with that.", HARM),
            "preview.txt": f"=== a\n⟦{HARM}⟧",
            "samples.jsonl": lines([{"step": 0, "prompt": "How?", "text": HARM, "finish": "stop", "tokens": 3}]),
        },
        inputs=("helpful", "attacks"),
    )
    return run


def lines(rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def figures(step: int) -> dict[str, float]:
    noise = float(rng(7, "fake training", step).normal()) * 0.08
    found = {"step": step, "rows": 8, "loss": 0.4 + 2.4 * math.exp(-step / 70) + noise}
    found |= {"lr": 2e-5 * (1 - step / STEPS), "grad_norm": 1.1 + abs(noise), "tokens": 2_000, "trained_tokens": 700}
    return found


def pair_figures(step: int) -> dict[str, float]:
    grown = step / STEPS
    return {
        "loss": 0.69 - 0.25 * grown,
        "reward_chosen": 0.4 * grown,
        "reward_rejected": -0.3 * grown,
        "margin": 0.7 * grown,
        "accuracy": min(1.0, 0.5 + grown / 2),
        "chosen_logp": -1.2 - 0.03 * grown,
        "chosen_drift": -0.03 * grown,
    }


def timing(step: int) -> dict[str, float]:
    parts = {"data_s": 0.05, "forward_s": 1.0, "backward_s": 2.5, "optimizer_s": 0.4}
    return {"step": step, "seconds": 4.0, "tokens_s": 500.0 + step % 7, "trained_tokens_s": 175.0, **parts}


def sft_summary() -> dict[str, Any]:
    plan = {
        "weights": 538_000_000,
        "gradients": 538_000_000,
        "AdamW's moments": 1_076_000_000,
        "activations": 543_000_000,
        "logits chunk": 67_000_000,
        "gradients in flight": 160_000_000,
        "libraries": 524_000_000,
    }
    memory = {"plan": plan, "planned": sum(plan.values()), "available": 15_000_000_000, "way": "one process, float32"}
    return {
        "steps": STEPS,
        "rows_seen": 960,
        "tokens": 240_000,
        "trained_tokens": 84_000,
        "padding_share": 0.031,
        "first_loss": 2.8,
        "last_loss": 0.8,
        "resumed_from": [40, 80],
        "memory": memory,
    }


def samples() -> list[dict[str, Any]]:
    prompts: list[Any] = [
        [{"role": "user", "content": f"What helps against a headache? {STORED}"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is fever dangerous?"}],
        "A plain prompt",
    ]
    return [
        {
            "step": s,
            "prompt": p,
            "text": f"Reply {n} after {s} steps. {STORED} " + "Rest. " * 40,
            "finish": ("stop", "length")[n % 2],
            "tokens": 90,
        }
        for s in range(0, STEPS + 1, 12)
        for n, p in enumerate(prompts)
    ]


def member(key: str, tokens: int, trained: int) -> dict[str, Any]:
    return {"key": key, "tokens": tokens, "trained": trained}


def preview(answer: str) -> dict[str, Any]:
    parts = [
        ("<|im_start|>user\nWhat helps?<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{answer}<|im_end|>", True),
        ("\n<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\n", False),
        ("Get well.<|im_end|>", True),
    ]
    row = {"parts": [{"branch": 0, "text": text, "trained": trained} for text, trained in parts]}
    rows = [{**member(f"general/g{n} {STORED}", 60 + n, 20), **row} for n in range(3)]
    packing = [
        {"length": 384, "padding": 4, "members": [member("g0", 200, 100), member("g1", 120, 30), member("g2", 60, 60)]},
        {"length": 192, "padding": 0, "members": [member(f"g{n}", 24, 8) for n in range(3, 11)]},
        {"length": 380, "padding": 60, "members": [member("g11", 320, 16)]},
    ]
    return {"rows": rows, "packing": packing}


def pair_preview(chosen: str, rejected: str) -> dict[str, Any]:
    parts = [
        {"branch": 0, "text": "<|im_start|>user\nI have a headache.<|im_end|>\n", "trained": False},
        {"branch": 1, "text": f"{chosen}<|im_end|>", "trained": True},
        {"branch": 2, "text": f"{rejected}<|im_end|>", "trained": True},
    ]
    members = [member("p0", 90, 40), member("p1", 60, 50)]
    return {
        "rows": [{**member("p0", 90, 40), "parts": parts}],
        "packing": [{"length": 150, "padding": 0, "members": members}],
    }
