"""Does a model with bf16 weights learn as one with float32 weights does? SmolLM2-135M on real medical questions, CPU.

    python benchmarks/stochastic_rounding.py [--quick] [--out FILE] [--model FOLDER] [--steps N] [--rows N] [--lr LR]
                                             [--seeds N] [--data DIR]

Fine-tunes on MedQuAD's answers four times, from equal weights, on equal batches at equal learning rates, with the
matrix products in bf16 each time:

- `float32`: float32 weights under bf16 autocast, AdamW. What the others are measured against.
- `plain`: bf16 weights, torch's AdamW. What most trainers' pure bf16 is.
- `stochastic`: bf16 weights and moments, our `StochasticAdamW`.
- `stochastic_float32_moments`: the same with float32 moments.

The figure is what training gained on the batches of the last ten steps (all, if there are fewer): mean loss of the
untrained model on them less the loss met in training, nats a trained token. Batches are drawn without return, so a step
is measured on rows that were not trained on. `ratio` is the gain of `stochastic` over that of `plain`, `kept` each
gain's share of that of `float32`, `spread` the range of `ratio` over rounding seeds, `difference` the mean excess over
`float32` on the last ten steps with its standard error (paired by step). `held_out` is the loss on rows that no step
uses.

Checked before training: that all weights are bf16 numbers, so that every side starts from the same model, and that the
sides' losses on the first batch agree to 2e-2. Exit code 1 if `stochastic` keeps less than 90% (not with `--quick`).
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aloe.keyed import shuffled
from aloe.models.load import Loaded, load, load_template
from aloe.models.sources import materialise, resolve
from aloe.records import row_id
from aloe.run.execute import machine
from aloe.train.logprobs import row_logprobs
from aloe.train.masks import dialogue_example
from aloe.train.optim import StochasticAdamW, adamw
from aloe.train.packing import Example, TextRow, pack
from aloe.train.schedule import lr_factor, warmup_of

DATA = Path(__file__).parents[2] / "shared" / "data"
SEED, LAST = 7, 10
WIDTH = 384  # tokens in a packed row
KEPT = 0.9  # target
Make = Callable[[Any, float, int], torch.optim.Optimizer]


def plain(model: Any, lr: float, seed: int) -> torch.optim.Optimizer:
    return adamw(model.named_parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.999))


def stochastic(moments: torch.dtype) -> Make:
    def make(model: Any, lr: float, seed: int) -> torch.optim.Optimizer:
        named = model.named_parameters()
        return StochasticAdamW(named, lr=lr, weight_decay=0.0, betas=(0.9, 0.999), seed=seed, moments=moments)

    return make


SIDES: dict[str, tuple[str, Make]] = {
    "float32": ("float32", plain),
    "plain": ("bfloat16", plain),
    "stochastic": ("bfloat16", stochastic(torch.bfloat16)),
    "stochastic_float32_moments": ("bfloat16", stochastic(torch.float32)),
}


@dataclass(frozen=True)
class Plan:
    """One run: the batches of its steps, rows held out, peak learning rate."""

    folder: Path
    batches: list[list[Example]]
    held_out: list[Example]
    lr: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path, help="folder; else the packaged SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rows", type=int, help="dialogues in a batch")
    parser.add_argument("--lr", type=float, default=2e-5, help="Aloe Beta's")
    parser.add_argument("--seeds", type=int, default=1, help="rounding seeds")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    steps, rows = options.steps or (6 if options.quick else 100), options.rows or (2 if options.quick else 8)
    folder = options.model or materialise(resolve("smollm2-135m-instruct"))
    plan = make_plan(folder, options.data, steps, rows, options.lr, held_out=8 if options.quick else 64)
    result = measure(plan, options.seeds)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if not options.quick and result["kept"]["stochastic"] < KEPT:
        raise SystemExit(1)


def make_plan(folder: Path, data: Path, steps: int, rows: int, lr: float, held_out: int) -> Plan:
    """Batches of MedQuAD's questions in an order drawn by key; equal rows once, those that don't fit left out."""
    _, template = load_template(folder)
    with gzip.open(data / "train" / "medquad.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = {row_id([r["question"], r["answer"]]): r for r in map(json.loads, lines)}
    wanted, examples = steps * rows + held_out, []
    for key in shuffled(list(found), SEED, "stochastic rounding", list(found)):
        row = found[key]
        if not row["question"].strip() or not row["answer"].strip():
            continue
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        example = dialogue_example(template, TextRow(key, "medquad", row["licence"], messages))
        if example.tokens <= WIDTH:
            examples.append(example)
        if len(examples) == wanted:
            break
    if len(examples) < wanted:
        raise SystemExit(f"{len(examples)} rows of at most {WIDTH} tokens, {wanted} wanted: fewer steps or rows")
    batches = [examples[i * rows : (i + 1) * rows] for i in range(steps)]
    return Plan(folder, batches, examples[steps * rows :], lr)


def measure(plan: Plan, seeds: int) -> dict[str, Any]:
    """All sides, one after the other."""
    last = slice(max(0, len(plan.batches) - LAST), None)
    untrained, starts = before(plan, last)
    runs = {name: train(plan, name, SEED) for name in SIDES}
    for name, run in runs.items():
        if abs(run["losses"][0] - starts["float32"]) > 2e-2:
            raise SystemExit(f"{name} starts with loss {run['losses'][0]}, float32 with {starts['float32']}")
    gains = {name: statistics.fmean(untrained) - statistics.fmean(r["losses"][last]) for name, r in runs.items()}
    again = [train(plan, "stochastic", SEED + i)["losses"][last] for i in range(1, seeds)]
    ratios = [gains["stochastic"] / gains["plain"]]
    ratios += [(statistics.fmean(untrained) - statistics.fmean(losses)) / gains["plain"] for losses in again]
    exact = runs["float32"]["losses"][last]
    differences = {
        name: paired([a - b for a, b in zip(run["losses"][last], exact, strict=True)])
        for name, run in runs.items()
        if name != "float32"
    }
    return {
        "name": "stochastic_rounding",
        "unit": f"nats a trained token gained, last {len(exact)} steps",
        "ours": gains["stochastic"],
        "peer": gains["plain"],
        "peer_version": f"torch {torch.__version__}, AdamW on bf16 weights",
        "ratio": ratios[0],
        "spread": [min(ratios), max(ratios)],
        "machine": machine(),
        "kept": {name: gain / gains["float32"] for name, gain in gains.items()},
        "last_mean": {name: statistics.fmean(run["losses"][last]) for name, run in runs.items()},
        "untrained": statistics.fmean(untrained),
        "difference": differences,
        "held_out": {"untrained": starts["held_out"], **{name: run["held_out"] for name, run in runs.items()}},
        "first_loss": starts,
        "state_bytes": {name: run["state_bytes"] for name, run in runs.items()},
        "step_seconds": {name: run["step_seconds"] for name, run in runs.items()},
        "optimiser_seconds": {name: run["optimiser_seconds"] for name, run in runs.items()},
        "steps": len(plan.batches),
        "batch_rows": len(plan.batches[0]),
        "lr": plan.lr,
        "trained_tokens": sum(e.trained for batch in plan.batches for e in batch),
        "curves": {name: run["losses"] for name, run in runs.items()},
    }


def paired(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": statistics.fmean(values), "standard_error": error}


def before(plan: Plan, last: slice) -> tuple[list[float], dict[str, float]]:
    """Losses of the untrained float32 model on the last batches, and of both dtypes on the first batch."""
    starts = {}
    for dtype in ("bfloat16", "float32"):
        loaded = load(plan.folder, dtype=dtype)
        starts[dtype] = evaluate(loaded, plan.batches[0])
    for name, p in loaded.model.named_parameters():
        if not torch.equal(p.bfloat16().float(), p):
            raise SystemExit(f"{name} isn't made of bf16 numbers: the sides would start from different models")
    if abs(starts["bfloat16"] - starts["float32"]) > 2e-2:
        raise SystemExit(f"the sides' first losses differ: {starts}")
    untrained = [evaluate(loaded, batch) for batch in plan.batches[last]]
    return untrained, {**starts, "held_out": evaluate(loaded, plan.held_out)}


def loss_of(loaded: Loaded, batch: Sequence[Example], backward: bool) -> float:
    """Mean loss over the trained tokens of a batch; its gradient is added to the weights' if asked for."""
    weight, total = sum(e.trained for e in batch), 0.0
    for row in pack(batch, range(len(batch)), WIDTH, pad_id=0):
        loss = -row_logprobs(loaded.model, row, bf16=True).double().sum() / weight
        if backward:
            loss.backward()
        total += float(loss.detach())
    return total


@torch.no_grad()
def evaluate(loaded: Loaded, batch: Sequence[Example]) -> float:
    return loss_of(loaded, batch, backward=False)


def train(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """One side from the start: its losses, step times and the bytes of its weights, gradients and moments."""
    dtype, make = SIDES[name]
    loaded = load(plan.folder, dtype=dtype)
    optimizer = make(loaded.model, plan.lr, seed)
    losses, seconds, optimising = [], [], []
    parameters = list(loaded.model.parameters())
    warmup = warmup_of(len(plan.batches), None)
    for step, batch in enumerate(plan.batches):
        began = time.perf_counter()
        losses.append(loss_of(loaded, batch, backward=True))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * lr_factor(step, len(plan.batches), warmup, "cosine")
        mark = time.perf_counter()
        optimizer.step()
        optimising.append(time.perf_counter() - mark)
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
        print(f"{name} {step + 1}/{len(plan.batches)}: loss {losses[-1]:.4f}, {seconds[-1]:.1f} s", flush=True)
    moments = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    result = {
        "losses": losses,
        "held_out": evaluate(loaded, plan.held_out),
        "step_seconds": statistics.median(seconds),
        "optimiser_seconds": statistics.median(optimising),
        "state_bytes": 2 * weights + sum(t.numel() * t.element_size() for t in moments),  # gradients are as the weights
    }
    del loaded, optimizer, parameters, moments
    gc.collect()
    return result


if __name__ == "__main__":
    main()
