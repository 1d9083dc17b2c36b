"""Trains to the end through twenty kills, beside a run that nobody disturbs. Run by `test_kill_training.py`.

    python kill_script.py KIND MODEL ROWS FOLDER KILLS

Every run is a fork of this process, which has imported all there is and computed nothing. A killed one ends by SIGKILL
from within, at a keyed place of a keyed step: before or after a backward pass, before the optimiser's step, with a
checkpoint half written, or before its folder gets its name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from aloe.contract import Hardware
from aloe.keyed import rng
from aloe.train import checkpoints
from aloe.train.dpo import Dpo
from aloe.train.loop import Loop
from aloe.train.parallel import Team
from aloe.train.sft import Sft
from tests import killed
from tests.train.conftest import FakeContext

PLACES = ("backward", "after backward", "clip", "checkpoint file", "checkpoint name")
EVERY = 3  # steps between checkpoints: some kills cost work, some hit a checkpoint being written


def step_of(kind: str, model: str, rows: str) -> Any:
    """Several packed rows a batch (accumulation), several passes, a part of one at the end."""
    shared = {"epochs": 2.6, "lr": 1e-3, "max_tokens": 256, "warmup_steps": 2}
    if kind == "sft":
        return Sft(base=model, data=rows, batch_rows=4, **shared)
    more = {"chunks": 2, "chunk_reference": "chunk", "precision": "bf16_autocast"}
    return Dpo(model=model, pairs=rows, batch_pairs=4, **shared, **more)


def train(step: Any, out: Path, cache: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    ctx = FakeContext(out, cache)
    ctx.hardware = Hardware(checkpoint_steps=EVERY, row_tokens=64)
    summary: dict[str, Any] = step.run(ctx)
    return summary


def deadly(at_step: int, place: str) -> None:
    """Have this process kill itself at that place of that step (or of the next checkpoint from it on)."""
    now = {"step": -1}
    whole_step, backward, clip = Loop._step, Team.backward, Team.clip
    write, replace = checkpoints.write_part, os.replace

    def die(where: str) -> None:
        if place == where and now["step"] >= at_step:
            killed.die()

    def stepping(self: Any, chunk: Any, step: int, *rest: Any) -> None:
        now["step"] = step
        whole_step(self, chunk, step, *rest)

    def back(self: Any, loss: Any) -> None:
        die("backward")
        backward(self, loss)
        die("after backward")

    def clipping(self: Any, *rest: Any) -> float:
        die("clip")
        return clip(self, *rest)

    def writing(folder: Path, rank: int, shards: Any) -> Any:
        def some() -> Any:
            for number, shard in enumerate(shards):
                if number == 7:
                    die("checkpoint file")
                yield shard

        return write(folder, rank, some())

    def renaming(source: Any, target: Any) -> None:
        if "step-" in str(target):
            die("checkpoint name")
        replace(source, target)

    Loop._step, Team.backward, Team.clip = stepping, back, clipping  # type: ignore[method-assign]
    checkpoints.write_part, os.replace = writing, renaming  # type: ignore[assignment]


def main() -> None:
    kind, model, rows, folder, kills = sys.argv[1:6]
    step, root = step_of(kind, model, rows), Path(folder)
    killed.prepare(Path(model))
    steps = root / "steps.json"

    def undisturbed() -> None:
        steps.write_text(json.dumps(train(step, root / "whole", root / "cache-whole")["steps"]))

    killed.must_end(undisturbed, "the undisturbed run")
    total, done = json.loads(steps.read_text()), 0
    draw = rng(7, "kills", kind)
    places = [PLACES[i % len(PLACES)] for i in range(int(kills))]
    for number, at in enumerate(sorted(draw.integers(0, total - EVERY, int(kills)).tolist())):

        def attempt(at: int = at, number: int = number) -> None:
            deadly(at, places[number])
            train(step, root / f"killed-{number}", root / "cache")

        killed.must_die(attempt, f"{places[number]} of step {at}")
        done += 1
    result = root / "result.json"

    def to_the_end() -> None:
        result.write_text(json.dumps(train(step, root / "resumed", root / "cache")))

    killed.must_end(to_the_end, "the last run")
    print(json.dumps({"kills": done, "steps": total, "resumed_from": json.loads(result.read_text())["resumed_from"]}))


if __name__ == "__main__":
    main()
