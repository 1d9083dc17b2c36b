"""Run one side of `sft.py` or `dpo.py` in a process of its own, and compare sides. No benchmark by itself.

A step's seconds run on both sides from the end of the step before, with all that lies between.

Ours is the step as a recipe runs it (`aloe.train.sft.Sft`, `aloe.train.dpo.Dpo`), read from the logs it writes; the
peer is `training_peer.py` under the peer's Python. Memory is the peak resident size of the process, everything in it:
interpreter, libraries, loading, and on our side the writing of the trained model too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from aloe.contract import Hardware
from aloe.digests import digest_file, digest_tree
from aloe.models.load import load_template
from aloe.models.sources import materialise, resolve

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("ALOE_PEERS", Path.home() / ".cache" / "aloe-peers"))
PEER = PEERS / "trl" / "bin" / "python"
MODEL = "smollm2-135m-instruct"
WARM = 2  # steps left out of every figure
TOLERANCE = {"float32": 1e-3, "bf16_autocast": 2e-2}
Found = dict[str, Any]


class Surroundings:
    """What a step asks of `aloe.contract.Context`: folders, references that are paths, and clocks on its bars."""

    family, name, licence = "benchmark", "step", "unknown"

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.cache, self.seed = out / "out", out / "cache", seed
        self.hardware = Hardware()
        self.out.mkdir(parents=True)
        self.seconds: dict[str, float] = {}
        self.ends: list[float] = []  # of optimiser steps, after the beginning of the loop
        self.processor: list[float] = []  # seconds of processors then

    def path(self, ref: str) -> Path:
        return Path(ref)

    def licence_of(self, ref: str) -> str:
        return "unknown"

    def digest(self, ref: str) -> str:
        return digest_tree(Path(ref)) if Path(ref).is_dir() else digest_file(Path(ref))

    def done_with(self, folder: Path) -> None:
        """The whole folder of the run is removed in the end."""

    def log(self, message: str) -> None:
        print(message, file=sys.stderr)

    def ledger(self, stage: str, *, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        print(f"{stage}: {kept} of {rows_in} rows", file=sys.stderr)

    def count_tokens(self, **tokens: int) -> None:
        print(tokens, file=sys.stderr)

    def advance(self, count: int = 1, **figures: float | str) -> None:
        if figures:  # the end of an optimiser step
            self.ends.append(time.perf_counter())
            self.processor.append(time.process_time())

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Surroundings]:
        began = time.perf_counter()
        self.ends, self.processor = [began], [time.process_time()]
        yield self
        self.seconds[label] = time.perf_counter() - began


def ours(spec: Found, out: Path) -> Found:
    """Run our step; seconds, trained tokens (or pairs) and loss of every optimiser step."""
    from aloe.train.dpo import Dpo
    from aloe.train.sft import Sft

    shared = {k: spec[k] for k in ("epochs", "lr", "max_tokens", "precision")} | {
        "schedule": "linear",
        "warmup_steps": 0,
    }
    step: Any
    if spec["trainer"] == "sft":
        step = Sft(base=spec["model"], data=spec["rows"], batch_rows=spec["batch"], **shared)
    else:
        more = {"alpha_nll": spec.get("alpha_nll", 0.0), "batch_pairs": spec["batch"]}
        step = Dpo(model=spec["model"], pairs=spec["rows"], **more, **shared)
    ctx = Surroundings(out, spec["seed"])
    step.run(ctx)
    lines = (ctx.out / "logs" / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(m) for m in (ctx.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timing = [json.loads(line) for line in lines]
    counted = "trained_tokens" if spec["trainer"] == "sft" else "rows"
    assert len(ctx.ends) == len(metrics) + 1 == len(timing) + 1  # the last bar was the loop's
    parts = {k: [t[k] for t in timing] for k in timing[0] if k.endswith("_s") and "tokens" not in k}
    return {
        "seconds": [b - a for a, b in pairwise(ctx.ends)],
        "trained": [m[counted] for m in metrics],
        "losses": [m["loss"] for m in metrics],
        "reference_seconds": ctx.seconds.get("reference", 0.0),
        "processor_seconds": [b - a for a, b in pairwise(ctx.processor)],
        "parts": parts,
    }


def run(side: str, spec: Found) -> Found:
    """Run a side (`ours`, `peer`) in its own process; its figures, peak memory, or `error`."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        script = [sys.executable, HERE / "training_sides.py"] if side == "ours" else [PEER, HERE / "training_peer.py"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or side == "ours"}
        with open(work / "log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*map(str, script), str(work / "spec.json"), str(work / "found.json")],
                stdout=log, stderr=log, cwd=work, env=environment,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            tail = log.read()[-3000:]
        if process.returncode != 0:
            return {"error": f"exit code {process.returncode}", "tail": tail}
        found: Found = json.loads((work / "found.json").read_text(encoding="utf-8"))
    return {**found, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def rate(found: Found, epochs: float | None = None) -> float:
    """Trained tokens or pairs a second over the steps after the warm-up. With `epochs`, the seconds that the
    reference takes beforehand are added, shared out over so many passes over the rows."""
    trained, seconds = found["trained"][WARM:], sum(found["seconds"][WARM:])
    if epochs is not None:
        share = sum(trained) / (sum(found["trained"]))
        seconds += found.get("reference_seconds", 0.0) * share
    return float(sum(trained) / seconds)


def model_folder() -> Path:
    """The packaged model as a safetensors folder, converted once."""
    return materialise(resolve(MODEL))


def template() -> Any:
    return load_template(model_folder())[1]


def check(name: str, specs: dict[str, Found], precision: str) -> Found:
    """Both sides on one batch, twice over: losses before and after a step must agree.

    Raises:
        SystemExit: a side fails, or they compute different things, which would make every timing meaningless.
    """
    found = {side: run("ours" if side == "ours" else "peer", spec) for side, spec in specs.items()}
    for side, result in found.items():
        if "error" in result:
            raise SystemExit(f"{name}: {side} failed the check: {result['error']}\n{result['tail']}")
    pairs = [(found["ours"]["losses"], found[s]["losses"]) for s in found if s != "ours"]
    worst = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    print(f"check {precision}: losses {[(s, r['losses']) for s, r in found.items()]}", file=sys.stderr)
    if not worst <= TOLERANCE[precision]:
        raise SystemExit(
            f"{name}: {precision} losses differ by {worst:.3g}: {[(s, r['losses']) for s, r in found.items()]}"
        )
    return {"largest_difference": worst, "losses": {s: r["losses"] for s, r in found.items()}}


def rounds(specs: dict[str, Found], count: int) -> dict[str, list[Found]]:
    """Every side `count` times, in turn, the order reversed from round to round."""
    found: dict[str, list[Found]] = {name: [] for name in specs}
    for n in range(count):
        for name in list(specs)[:: 1 if n % 2 == 0 else -1]:
            result = run("ours" if name.startswith("ours") else "peer", specs[name])
            if "error" in result:
                raise SystemExit(f"{name}: {result['error']}\n{result['tail']}")
            found[name].append(result)
            print(f"round {n + 1} {name}: {rate(result):.1f}/s, {result['peak_gb']:.2f} GB", file=sys.stderr)
    return found


def grid(
    configs: dict[str, Found], spec: Found, check_spec: Found, wanted: list[float]
) -> tuple[str, dict[str, Found]]:
    """Try the peer's configurations on a few steps; the name of the fastest that computes our loss, and all figures.

    Args:
        spec: what is timed; `config` is put in.
        check_spec: one batch of rows, twice over; taken as one optimiser step however a configuration cuts it.
        wanted: our losses in those two steps.
    """
    found: dict[str, Found] = {}
    for name, config in configs.items():
        alone = {**config, "gradient_accumulation_steps": 1000, "logging_steps": 1}
        checked = run("peer", {**check_spec, "config": alone})
        timed = run("peer", {**spec, "config": config}) if "error" not in checked else checked
        if "error" in timed:
            found[name] = {"config": config, "error": timed["tail"].strip().splitlines()[-1][:300]}
        else:
            apart = max(abs(a - b) for a, b in zip(checked["losses"], wanted, strict=True))
            figures = {"rate": rate(timed, epochs=1), "peak_gb": timed["peak_gb"], "losses": checked["losses"]}
            same = apart <= TOLERANCE["bf16_autocast"]
            found[name] = {"config": config, **figures, "same_loss": same, "seconds": timed["seconds"]}
        print(f"grid {name}: {found[name]}", file=sys.stderr)
    good = {n: f["rate"] for n, f in found.items() if f.get("same_loss")}
    return max(good, key=lambda n: good[n]), found


def quotients(found: dict[str, list[Found]], mine: str, theirs: str, epochs: float | None) -> list[float]:
    """Ours over the peer's rate, round by round."""
    return [rate(a, epochs) / rate(b, epochs) for a, b in zip(found[mine], found[theirs], strict=True)]


def figures(found: list[Found], epochs: float | None) -> Found:
    """Medians over rounds of rate and memory, and every step's seconds."""
    return {
        "rate": statistics.median(rate(f) for f in found),
        "rate_with_reference": statistics.median(rate(f, epochs) for f in found),
        "peak_gb": statistics.median(f["peak_gb"] for f in found),
        "reference_seconds": statistics.median(f.get("reference_seconds", 0.0) for f in found),
        "step_seconds": [f["seconds"] for f in found],
        "processor_seconds": [f["processor_seconds"] for f in found],  # all threads; less disturbed by other work
        "trained_a_step": found[0]["trained"],
        "parts": found[0].get("parts", {}),
    }


def compare(found: dict[str, list[Found]], epochs: float | None) -> Found:
    """The common part of both results: `ours` against TRL as it comes (`default`) and at its `best`."""
    default, best = (quotients(found, "ours", side, epochs) for side in ("default", "best"))
    sides = {name: figures(results, epochs) for name, results in found.items()}
    key = "rate" if epochs is None else "rate_with_reference"
    return {
        "ours": round(sides["ours"][key], 4),
        "peer": "TRL",
        "peer_version": found["default"][0]["versions"]["trl"],
        "ratio": round(statistics.median(default), 3),
        "spread": [round(min(default), 3), round(max(default), 3)],
        "ratio_best": round(statistics.median(best), 3),
        "spread_best": [round(min(best), 3), round(max(best), 3)],
        "memory_ratio": round(sides["ours"]["peak_gb"] / sides["default"]["peak_gb"], 3),
        "memory_ratio_best": round(sides["ours"]["peak_gb"] / sides["best"]["peak_gb"], 3),
        "same_batches": found["ours"][0]["trained"] == found["default"][0]["trained"],
        "sides": sides,
        "versions": found["default"][0]["versions"],
    }


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(ours(spec, Path.cwd() / "run")), encoding="utf-8")
