"""The demo recipe on a tiny model, killed again and again at keyed moments of all its steps, and resumed each time.

    python benchmarks/faults/kill.py [--quick] [--kills N] [--out FILE]

Every attempt is a fork of one process that has imported everything and run nothing. It runs the recipe (`tiny.py`: the
steps and verbs of `recipes/demo.yaml`) and ends by SIGKILL: at a drawn one of the calls that change a file (before it,
or in the middle of a write; `shim.c`), or after a drawn amount of processor time. Draws are keyed and made within each
step in turn, so that every step is hit as often as the others. Then the same recipe runs again, until it is done.

What it left must be what one undisturbed run left: the same folders, the same bytes in every file, the same manifests
(`same.py` says what may differ: times, and the last digits of replies' log-probabilities). Counted beside that: what
killed attempts left behind, optimiser steps that were done twice (at most one interval between checkpoints), and
replies that were under way.

The last line printed is one JSON object. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from same import Compared
from shim import Disk, forked, preloaded, settled
from tiny import CHECKPOINT_STEPS, MAX_BATCH, tiny_recipe

SEED = 11
KILLS_A_STEP = 2  # in one life of the recipe, from nothing to the release
BY_TIME = 0.35  # share of the kills that come by processor time
TORN = 0.3  # share of the others that come in the middle of a write
Found = dict[str, Any]


@dataclass
class Attempt:
    """What one run of the recipe told before it ended. `at` is the step it was in; steps are optimiser steps."""

    code: int
    at: str = ""
    made: list[str] = field(default_factory=list)
    trained: dict[str, list[int]] = field(default_factory=dict)
    asked: int = 0
    kept: int = 0
    extent: dict[str, tuple[int, float]] = field(default_factory=dict)  # step -> calls, processor seconds
    armed: str = ""


def telling(trace: Path) -> Callable[..., None]:
    """A function that appends a line to `trace`: what is written is there, whatever comes."""
    handle = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    return lambda *words: os.write(handle, (" ".join(map(str, words)) + "\n").encode())  # type: ignore[return-value]


def watch(tell: Callable[..., None], begin: Callable[[str], None], disk: Disk) -> None:
    """Have this process tell how far it is; `begin` is called with the name of every step that is made."""
    from aloe.generate.reply_store import ReplyStore
    from aloe.run.execute import Runner
    from aloe.train.loop import Loop

    make, train, take, put = Runner._make, Loop._step, ReplyStore.take, ReplyStore.put
    now = [""]

    def making(self: Any, name: str, plan: Any) -> Any:
        now[0] = name
        tell("step", name)
        seen, spent = disk.seen, time.process_time()
        begin(name)
        made = make(self, name, plan)
        tell("made", name, disk.seen - seen, time.process_time() - spent)
        return made

    def stepping(self: Any, chunk: Any, step: int, *rest: Any) -> None:
        tell("train", now[0], step)
        train(self, chunk, step, *rest)

    def taking(self: Any, keys: Any) -> Any:
        mine, finished = take(self, keys)
        tell("asked", len(mine))
        return mine, finished

    def putting(self: Any, rows: Any) -> None:
        put(self, rows)
        tell("kept", len(rows))

    Runner._make, Loop._step = making, stepping  # type: ignore[method-assign]
    ReplyStore.take, ReplyStore.put = taking, putting  # type: ignore[method-assign]


def read_trace(path: Path, code: int) -> Attempt:
    """What a run told."""
    found = Attempt(code)
    for line in path.read_text().splitlines() if path.exists() else []:
        what, *rest = line.split()
        if what == "step":
            found.at = rest[0]
        elif what == "armed":
            found.armed = " ".join(rest)
        elif what == "made":
            found.made.append(rest[0])
            found.extent[rest[0]] = (int(rest[1]), float(rest[2]))
        elif what == "train":
            found.trained.setdefault(rest[0], []).append(int(rest[1]))
        else:
            setattr(found, what, getattr(found, what) + int(rest[0]))
    return found


def run(recipe: Path, out: Path) -> None:
    """The recipe, as the command runs it."""
    import torch

    from aloe.recipe import Recipe
    from aloe.run.execute import run_recipe
    from aloe.run.progress import Console

    torch.set_num_threads(1)
    run_recipe(Recipe.load(recipe), out=out, console=Console(quiet=True))


def undisturbed(recipe: Path, out: Path, trace: Path, disk: Disk) -> Attempt:
    """One run to the end, every call counted."""

    def work() -> None:
        watch(telling(trace), lambda name: None, disk)
        disk.count(out)
        run(recipe, out)

    found = read_trace(trace, forked(work))
    if found.code != 0:
        raise SystemExit(f"the undisturbed run ended with {found.code} in {found.at}")
    return found


def killed(
    recipe: Path, out: Path, trace: Path, disk: Disk, left: Counter[str], whole: Attempt, draw: Any
) -> Attempt:  # fmt: skip
    """One attempt: it dies at a drawn moment of the first step it makes that is still owed a kill, or later."""
    by_time, place, torn = draw.random() < BY_TIME, draw.random(), draw.random() < TORN

    def work() -> None:
        tell = telling(trace)
        armed: list[str] = []

        def begin(name: str) -> None:
            if armed or left[name] <= 0:
                return
            armed.append(name)
            calls, seconds = whole.extent[name]
            if by_time:
                tell("armed", name, "time", f"{place * seconds:.4f}")
                disk.kill_after(max(1e-3, place * seconds))
            else:
                tell("armed", name, "torn" if torn else "call", 1 + int(place * calls))
                disk.kill_at(out, 1 + int(place * calls), torn)

        watch(tell, begin, disk)
        run(recipe, out)

    found = read_trace(trace, forked(work))
    if found.code not in (0, -9):
        raise SystemExit(f"an attempt ended with {found.code} in step {found.at}")
    return found


# -- what was left --------------------------------------------------------------------------------------------------


def left_behind(family: Path) -> tuple[int, int]:
    """(bytes, folders and files) of what a killed attempt was writing."""
    marks = ("tmp-", ".partial", ".part", ".new", ".aside")
    found = [p for p in family.rglob("*") if any(m in p.name for m in marks)] if family.exists() else []
    size = sum(f.stat().st_size for p in found for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file())
    return size, len(found)


def repeated(attempts: list[Attempt]) -> list[int]:
    """Optimiser steps that each killed attempt had done and a later one did again."""
    found = []
    for number, attempt in enumerate(attempts):
        done = attempt.trained.get(attempt.at)
        if attempt.code == 0 or not done:
            continue
        later = next((a.trained[attempt.at] for a in attempts[number + 1 :] if a.trained.get(attempt.at)), None)
        found.append(done[-1] + 1 - later[0] if later else 0)
    return found


def life(recipe: Path, place: Path, whole: Attempt, disk: Disk, number: int, kills: int) -> Found:
    """One life of the recipe: `kills` in every step, until it is done."""
    from aloe.keyed import rng

    out = place / f"life-{number}"
    shutil.rmtree(out, ignore_errors=True)
    left = Counter(dict.fromkeys(whole.extent, kills))
    attempts: list[Attempt] = []
    most = Counter[str]()
    while not attempts or attempts[-1].code != 0:
        draw = rng(SEED, "faults.kill", f"{number}/{len(attempts)}")
        attempts.append(killed(recipe, out, place / "trace", disk, left, whole, draw))
        if attempts[-1].code != 0:
            left[attempts[-1].at] -= 1
            size, count = left_behind(next(iter(out.glob("*")), out))
            most["bytes"], most["count"] = max(most["bytes"], size), max(most["count"], count)
        if len(attempts) > 3 * kills * len(whole.extent):
            raise SystemExit(f"no end in sight: stuck in {attempts[-1].at}")
    dead = [a for a in attempts if a.code != 0]
    family = next(iter(out.glob("*")))
    compared = Compared(next(iter((place / "whole").glob("*"))), family)
    found = {
        "kills": len(dead), "by_step": dict(Counter(a.at for a in dead)),
        "by_kind": dict(Counter(a.armed.split()[1] for a in dead)),
        "differences": compared.differences, "files": compared.files, "files_of_equal_bytes": compared.exact,
        "largest_distance_of_log_probabilities": compared.close,
        "left_behind_after_a_kill": dict(most), "left_behind_at_the_end": left_behind(family)[1],
        "repeated_optimizer_steps": repeated(attempts),
        "replies_under_way_at_a_kill": [a.asked - a.kept for a in dead],
    }  # fmt: skip
    if compared.differences:
        out.rename(place / f"differs-{number}-{time.time():.0f}")  # to be looked at, with --keep
    else:
        shutil.rmtree(out)
    return found


def all_lives(place: Path, kills: int, a_step: int, disk: Disk, recipe: Path) -> Found:
    """Lives until at least `kills` attempts were killed."""
    told = place / "lives.json"  # with --keep, a benchmark that is interrupted goes on with the next life
    if told.exists():
        known = json.loads(told.read_text())
        whole, first, lives = Attempt(0, extent=known["extent"]), known["first"], known["lives"]
    else:
        shutil.rmtree(place / "whole", ignore_errors=True)
        begun = time.monotonic()
        whole = undisturbed(recipe, place / "whole", place / "trace", disk)
        first, lives = time.monotonic() - begun, []
        told.write_text(json.dumps({"extent": whole.extent, "first": first, "lives": lives}))
    while sum(one["kills"] for one in lives) < kills:
        begun = time.monotonic()
        lives.append(life(recipe, place, whole, disk, len(lives), a_step) | {"seconds": time.monotonic() - begun})
        told.write_text(json.dumps({"extent": whole.extent, "first": first, "lives": lives}))
        print(f"life {len(lives)}: {lives[-1]['kills']} kills", *lives[-1]["differences"], sep="\n  ", flush=True)
    again = [n for one in lives for n in one["repeated_optimizer_steps"]]
    flying = [n for one in lives for n in one["replies_under_way_at_a_kill"]]
    return {
        "kills": sum(one["kills"] for one in lives), "lives": len(lives), "steps": len(whole.extent),
        "calls_that_change_a_file": {name: calls for name, (calls, _) in whole.extent.items()},
        "kills_by_step": dict(sum((Counter(one["by_step"]) for one in lives), Counter[str]())),
        "kills_by_kind": dict(sum((Counter(one["by_kind"]) for one in lives), Counter[str]())),
        "differences": [d for one in lives for d in one["differences"]],
        "files_compared": sum(one["files"] for one in lives),
        "files_of_equal_bytes": sum(one["files_of_equal_bytes"] for one in lives),
        "largest_distance_of_log_probabilities": max(one["largest_distance_of_log_probabilities"] for one in lives),
        "optimizer_steps_between_checkpoints": CHECKPOINT_STEPS,
        "optimizer_steps_repeated_after_a_kill": {"most": max(again, default=0), "kills_in_training": len(again)},
        "replies_side_by_side": MAX_BATCH,
        "replies_under_way_at_a_kill": {"most": max(flying, default=0)},
        "most_bytes_left_by_a_kill": max(one["left_behind_after_a_kill"].get("bytes", 0) for one in lives),
        "temporary_files_left_at_the_end": sum(one["left_behind_at_the_end"] for one in lives),
        "undisturbed_seconds": first, "seconds": sum(one["seconds"] for one in lives),
    }  # fmt: skip


def imported(recipe: Path) -> None:
    """Import what a run imports, late imports too, so that every fork has it."""
    import accelerate
    import torch

    from aloe.models.load import load
    from aloe.recipe import Recipe

    torch.set_num_threads(1)
    del accelerate
    Recipe.load(recipe)
    load(recipe.parent / "model")
    settled()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--a-step", type=int, default=KILLS_A_STEP, help="kills in each step of one life")
    parser.add_argument("--steps", nargs="*", help="only these steps of the recipe and what they need")
    parser.add_argument("--keep", type=Path, help="folder to work in and leave behind, instead of a temporary one")
    parser.add_argument("--quick", action="store_true", help="one kill in each step")
    args = parser.parse_args()
    if args.quick:
        args.kills, args.a_step = 12, 1
    preloaded()
    from aloe import __version__
    from aloe.run.execute import library_versions, machine

    disk = Disk()
    with nullcontext(str(args.keep)) if args.keep else tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        place.mkdir(exist_ok=True)
        recipe = place / "recipe.yaml"
        if not recipe.exists():
            tiny_recipe(place, args.steps)
        imported(recipe)
        found = all_lives(place, args.kills, args.a_step, disk, recipe)
    result = {"name": "faults", "unit": "kills", "machine": machine(), "aloe": __version__,
              "versions": library_versions(), "kill": found}  # fmt: skip
    if args.out:
        old = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        args.out.write_text(json.dumps({**old, **result}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    waste = found["optimizer_steps_repeated_after_a_kill"]["most"] > CHECKPOINT_STEPS
    if found["differences"] or found["temporary_files_left_at_the_end"] or waste:
        sys.exit("a killed run left other things than an undisturbed one")


if __name__ == "__main__":
    main()
