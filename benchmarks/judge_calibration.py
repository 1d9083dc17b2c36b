"""How often is the rule judge right? Sensitivity and specificity on labelled completions, with Wilson intervals.

    python benchmarks/judge_calibration.py [--data DIR] [--out FILE]

Reads `safety/xstest_completions_labelled.jsonl.gz` (2,250 completions of five models, labelled by people as full
compliance, full refusal or partial refusal), `safety/xstest_prompts.jsonl.gz` (which prompts are unsafe),
`safety/med_safety_train.jsonl.gz` (refusals to medical misuse) and `train/medquad.jsonl.gz` (medical answers, none of
them a refusal) below DIR. The rules were written while looking at the `development` half of the XSTest prompts, at
both medical sets and at 42 completions sampled from the whole of XSTest beforehand; apart from those, the `held_out`
half was not looked at. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aloe
from aloe.evaluate.judge import DECLINED, REFUSAL_LABELS, RuleJudge
from aloe.evaluate.stats import wilson
from aloe.run.execute import machine

LABELS = {"1_full_compliance": "complied", "2_full_refusal": "refused", "3_partial_refusal": "partial"}
JUDGE = RuleJudge()


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def half(prompt: str) -> str:
    return "development" if hashlib.blake2b(prompt.encode()).digest()[0] % 2 == 0 else "held_out"


def rate(hits: Iterable[bool]) -> dict[str, float | int]:
    found = list(hits)
    low, high = wilson(sum(found), len(found))
    return {"value": sum(found) / len(found), "low": low, "high": high, "successes": sum(found), "n": len(found)}


def refusal(completions: list[dict[str, Any]]) -> dict[str, Any]:
    """Sensitivity to full refusals, to any refusal, and specificity on full compliance."""
    pairs = [
        (LABELS[r["human_label"]], JUDGE.refusal(r["prompt"], r["completion"]).label in DECLINED) for r in completions
    ]
    return {
        "sensitivity": rate(said for label, said in pairs if label == "refused"),
        "sensitivity_partial_included": rate(said for label, said in pairs if label != "complied"),
        "specificity": rate(not said for label, said in pairs if label == "complied"),
    }


def harm(completions: list[dict[str, Any]], unsafe: set[str]) -> dict[str, Any]:
    """Harm on unsafe prompts, with full compliance taken as harm and full refusal as safety."""
    pairs = [
        (LABELS[r["human_label"]], JUDGE.harm(r["prompt"], r["completion"]).label == "unsafe")
        for r in completions
        if r["prompt"] in unsafe
    ]
    return {
        "sensitivity": rate(said for label, said in pairs if label == "complied"),
        "specificity": rate(not said for label, said in pairs if label == "refused"),
    }


def confusion(completions: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    table = {label: Counter(dict.fromkeys(REFUSAL_LABELS, 0)) for label in LABELS.values()}
    for r in completions:
        table[LABELS[r["human_label"]]][JUDGE.refusal(r["prompt"], r["completion"]).label] += 1
    return {label: dict(counts) for label, counts in table.items()}


def measure(data: Path) -> dict[str, Any]:
    completions = rows(data / "safety/xstest_completions_labelled.jsonl.gz")
    unsafe = {r["prompt"] for r in rows(data / "safety/xstest_prompts.jsonl.gz") if r["label"] == "unsafe"}
    medical = rows(data / "safety/med_safety_train.jsonl.gz")
    answers = rows(data / "train/medquad.jsonl.gz")
    return {
        "name": "judge_calibration",
        "unit": "share of completions judged as people did",
        "judge": {"name": JUDGE.name, "version": JUDGE.version},
        "refusal": refusal(completions),
        "refusal_development": refusal([r for r in completions if half(r["prompt"]) == "development"]),
        "refusal_held_out": refusal([r for r in completions if half(r["prompt"]) == "held_out"]),
        "harm": harm(completions, unsafe),
        "confusion": confusion(completions),
        "medical_refusals_found": rate(
            JUDGE.refusal(r["request"], r["safe_response"]).label in DECLINED for r in medical
        ),
        "medical_answers_kept": rate(
            JUDGE.refusal(r["question"], r["answer"]).label not in DECLINED for r in answers
        ),
        "version": aloe.__version__,
        "machine": machine(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="also write the result here")
    args = parser.parse_args()
    result = measure(args.data)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
