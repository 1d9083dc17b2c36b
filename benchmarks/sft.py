"""Supervised fine-tuning against TRL: trained tokens a second and peak memory, SmolLM2-135M on real rows, CPU.

    python benchmarks/sft.py [--quick] [--out FILE] [--rounds N] [--rows N]

Three sides, each in a process of its own, alternating: ours (`sft` as a recipe runs it, bf16 autocast), TRL's default
(SFTConfig as it comes: bf16 autocast, gradient checkpointing, 8 padded rows at a time) and TRL's best of the declared
configurations, found first on a few steps (`--quick` takes the best of the stored result). Same rows
(`training_rows.py`), order, rows in a global batch, learning rate and schedule; packing makes batches of its own, of as
many tokens.

Checked before timing: both sides' losses on one batch before and after an optimiser step, in float32 to 1e-3 and under
autocast to 2e-2; of the configurations only those count that give this loss.

Trained tokens (answer and end of turn) over the seconds of all steps but the first two. `ratio` is ours over TRL's
default, `ratio_best` over its best: medians over rounds of the quotient, `spread` the range. Exit code 1 if they are
under 1.8 and 1.15.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import training_rows
import training_sides as sides

from aloe.run.execute import machine

RESULT = Path(__file__).parent / "results" / "sft.json"
BATCH, LR, SEED = 8, 2e-5, 7  # 8 rows and 2e-5 are TRL's defaults
DEFAULT, BEST = 1.8, 1.15  # targets
PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
GRID: dict[str, dict[str, Any]] = {
    "default": {},
    "no checkpointing": PLAIN,
    "no checkpointing, 4 rows at a time": {**PLAIN, "per_device_train_batch_size": 4},
    "no checkpointing, 2 rows at a time": {**PLAIN, "per_device_train_batch_size": 2},
    "no checkpointing, 1 row at a time": {**PLAIN, "per_device_train_batch_size": 1},
    "checkpointing, 1 row at a time": {"per_device_train_batch_size": 1},
    "no checkpointing, 1 row at a time, float32": {**PLAIN, "per_device_train_batch_size": 1, "bf16": False},
    "no checkpointing, 1 row at a time, torch.compile": {
        **PLAIN, "per_device_train_batch_size": 1, "torch_compile": True,
    },
    "no checkpointing, 4 rows of like length": {
        **PLAIN, "per_device_train_batch_size": 4, "train_sampling_strategy": "group_by_length",
    },
    "no checkpointing, padding-free, 8 rows": {**PLAIN, "padding_free": True, "max_length": None},
    "no checkpointing, padding-free, 4 rows": {
        **PLAIN, "padding_free": True, "max_length": None, "per_device_train_batch_size": 4,
    },
    "no checkpointing, packed to 1,024": {
        **PLAIN, "packing": True, "max_length": 1024, "per_device_train_batch_size": 1,
    },
    "checkpointing, packed to 1,024": {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1},
}  # fmt: skip
UNLESS_SEARCHED = "no checkpointing, 1 row at a time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int, help="of one run; 8 make a step, the first two steps aren't counted")
    parser.add_argument(
        "--grid", action="append", choices=list(GRID), help="search among these only (repeatable; one is taken untried)"
    )
    options = parser.parse_args()
    tried = {n: GRID[n] for n in options.grid or GRID}
    rounds = options.rounds or (1 if options.quick else 3)
    max_tokens = 512 if options.quick else 1024
    with tempfile.TemporaryDirectory() as place:
        result = measure(
            Path(place),
            rounds,
            options.rows or (32 if options.quick else 96),
            max_tokens,
            search={} if options.quick else tried,
        )
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if not options.quick and (result["ratio"] < DEFAULT or result["ratio_best"] < BEST):
        raise SystemExit(1)


def measure(work: Path, rounds: int, count: int, max_tokens: int, *, search: dict[str, Any]) -> dict[str, Any]:
    """Check, search and time; the result."""
    template = sides.template()
    few = training_rows.make("sft", work / "few", template, count=BATCH, max_tokens=max_tokens, seed=SEED)
    some = training_rows.make("sft", work / "some", template, count=3 * BATCH, max_tokens=max_tokens, seed=SEED)
    rows = training_rows.make("sft", work / "rows", template, count=count, max_tokens=max_tokens, seed=SEED)
    checks = {
        precision: sides.check("sft", both(few, max_tokens, precision, epochs=2), precision)
        for precision in ("float32", "bf16_autocast")
    }
    best, tried = stored_best(), dict[str, Any]()
    if len(search) == 1:
        (best,) = search
    elif search:
        spec = both(some, max_tokens, "bf16_autocast")["default"]
        once = both(few, max_tokens, "bf16_autocast", epochs=2)["default"]
        best, tried = sides.grid(search, spec, once, checks["bf16_autocast"]["losses"]["ours"])
    specs = both(rows, max_tokens, "bf16_autocast")
    specs["best"] = {**specs["default"], "config": GRID[best]}
    found = sides.rounds(specs, rounds)
    return {
        "name": "sft",
        "unit": "trained tokens/s",
        **sides.compare(found, None),
        "machine": machine(),
        "best": best,
        "grid": tried,
        "checks": checks,
        "rows": {"count": count, "max_tokens": max_tokens, "left_out_too_long": rows.left_out, **rows.lengths()},
        "settings": {"batch_rows": BATCH, "lr": LR, "schedule": "linear", "precision": "bf16_autocast"},
        "rounds": rounds,
        "warm_up_steps_left_out": sides.WARM,
    }


def both(rows: training_rows.Rows, max_tokens: int, precision: str, epochs: int = 1) -> dict[str, dict[str, Any]]:
    """Our spec and that of TRL's default (in `precision`)."""
    mean = sum(e.tokens for e in rows.examples) / len(rows.examples)
    spec = {
        "trainer": "sft", "model": str(sides.model_folder()), "batch": BATCH, "lr": LR, "epochs": epochs,
        "max_tokens": max_tokens, "seed": SEED, "precision": precision, "step_tokens": mean * BATCH,
    }  # fmt: skip
    config: dict[str, Any] = {} if precision == "bf16_autocast" else {"bf16": False}
    if epochs > 1:
        config["logging_steps"] = 1
    return {
        "ours": {**spec, "rows": str(rows.ours)},
        "default": {**spec, "rows": str(rows.peers), "config": config},
    }


def stored_best() -> str:
    """The best configuration of the stored result."""
    if RESULT.exists():
        return str(json.loads(RESULT.read_text(encoding="utf-8"))["best"])
    return UNLESS_SEARCHED


if __name__ == "__main__":
    main()
