"""Every part of the red team that is a model, on real models: translator, escalating attacker, guard, and the loop.

    python benchmarks/red_team_models.py LARGE SMALL [--work DIR] [--out FILE]

The target is the packaged SmolLM2-135M-Instruct. LARGE is a model that translates and stands in for the guard, SMALL
one that leads the escalation: any that aloe opens; the stored result is of Qwen2.5-Coder-1.5B- and -0.5B-Instruct.
Neither is made for its part, so that this shows what the red team does with bad translations, odd replies and a guard
that isn't one, not how well good ones would do; the sets are small, and no rate here is a finding. WORK is kept: a
second run goes on where the first one stopped. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from aloe import __version__
from aloe.run.execute import library_versions

TARGET = "smollm2-135m-instruct"


def recipe(large: str, small: str) -> dict[str, Any]:
    """A red team in all its parts, and two rounds of the loop."""
    attacked = {
        "models": [TARGET], "requests": "starter/harmful", "limit": 6, "styles": ["plain", "persona", "translation_zu"],
        "translator": large, "escalation": {"attacker": small, "turns": 3, "limit": 4},
        "judges": ["rules", "classifier", "guard"], "guard": large, "guard_format": "shieldgemma",
        "max_new_tokens": 48, "scenario_tokens": 120,
    }  # fmt: skip
    loop = {
        "model": TARGET, "requests": "starter/harmful", "limit": 12, "rounds": 2, "max_new_tokens": 48,
        "dpo": {"lr": 1e-5, "batch_pairs": 8, "max_tokens": 512}, "validation": {"topics": ["hate", "weapons"]},
    }  # fmt: skip
    steps = {"attacked": {"red_team": attacked}, "loop": {"red_team_loop": loop}}
    return {"family": "safety-real", "licence": "apache-2.0", "seed": 7, "steps": steps}


def of_attacks(result: dict[str, Any]) -> dict[str, Any]:
    """What became of prompts, replies and verdicts."""
    model = result["models"][TARGET]
    keep = ("attack_success", "attack_success_bounds", "over_refusal", "labels", "unjudged_reasons", "agreement")
    return {
        "not_made": result["not_made"], "styles": {s: r["n"] for s, r in model["by_style"].items()},
        **{name: model[name] for name in keep}, "escalation": model["escalation"],
        "guard": model["judges"]["guard"], "clinical": model["clinical"]["bounds"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("large")
    parser.add_argument("small")
    parser.add_argument("--work", type=Path, default=Path("red-team-models"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(options.large, options.small), sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "aloe", "run", str(path), "--out", str(options.work / "out")], check=True)
    folders = {name: options.work / "out" / "safety-real" / name for name in ("attacked", "loop")}
    manifests = {name: json.loads((folder / "manifest.json").read_text("utf-8")) for name, folder in folders.items()}
    attacked = json.loads((folders["attacked"] / "red_team.json").read_text("utf-8"))
    result = {
        "name": "red_team_models", "unit": "third outcomes", "ours": None, "peer": None, "peer_version": None,
        "ratio": None, "spread": None, "machine": manifests["attacked"]["machine"], "aloe": __version__,
        "versions": library_versions(), "target": TARGET,
        "large": Path(options.large).name, "small": Path(options.small).name,
        "peak_memory_bytes": {name: m["peak_memory_bytes"] for name, m in manifests.items()},
        "attacked": of_attacks(attacked), "loop": manifests["loop"]["summary"],
    }  # fmt: skip
    # Names of files, not where they lie on this machine.
    text = json.dumps(result, ensure_ascii=False)
    for given in (options.large, options.small):
        text = text.replace(json.dumps(given)[1:-1], Path(given).name)
    if options.out:
        options.out.write_text(json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
