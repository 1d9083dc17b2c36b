"""Where the steps of a run are executed: in this process, each in a fresh one, or each as a job of a cluster.

`process` gives all memory back between steps and keeps a crash in native code from taking the run down with it. The
store is the only channel between the processes, so both ways write the same artifacts.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.run.execute import RunResult, run_recipe, wanted_steps
from aloe.run.progress import Console
from aloe.run.store import Store


def launch(
    recipe: Any,
    *,
    out: str | Path = "out",
    steps: Sequence[str] = (),
    redo: Sequence[str] = (),
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> RunResult:
    """Run as the recipe's `launch.via` says."""
    if recipe.head.launch.via == "here":
        return run_recipe(recipe, out=out, steps=steps, redo=redo, console=console)
    if recipe.path is None:
        via = recipe.head.launch.via
        raise AloeError(f"launch.via: {via} needs a recipe file", fix="save the recipe, or use launch.via: here")
    if recipe.head.launch.via == "slurm":
        from aloe.run.cluster import run_on_cluster

        return run_on_cluster(recipe, Path(out), steps, redo, overrides, console or Console())
    made = []
    store = Store(Path(out) / recipe.head.family)
    for name in wanted_steps(recipe, steps):
        command = [sys.executable, "-m", "aloe", "run", str(recipe.path), name, "--out", str(out), "--quiet"]
        # The child must run its one step itself, not launch again.
        for assignment in [*overrides, "launch.via=here"]:
            command += ["--set", assignment]
        if name in redo:
            command += ["--redo", name]
        before = (store.root / name).resolve(), _finished(store, name)
        (console or Console()).line(f"{name}: in its own process")
        done = subprocess.run(command, check=False)
        if done.returncode < 0:
            raise _ended(name, -done.returncode, recipe.line("steps", name))
        if done.returncode != 0:
            raise AloeError(
                f"step {name} ended with exit code {done.returncode}",
                where=recipe.line("steps", name),
                fix="its message stands above; finished steps are kept",
            )
        if ((store.root / name).resolve(), _finished(store, name)) != before:
            made.append(name)
    result = run_recipe(recipe, out=out, steps=steps, console=Console(quiet=True))
    return RunResult(result.root, result.artifacts, made)


def _ended(name: str, number: int, where: str) -> AloeError:
    """The error of a step whose process was ended by a signal: it could say nothing itself."""
    try:
        known = f"{number} ({signal.Signals(number).name})"
    except ValueError:
        known = str(number)
    return AloeError(
        f"the process of step {name} was ended by signal {known}",
        where=where,
        fix="a system short of memory kills the largest process (dmesg says so): end others, or use smaller batches; "
        "then run the same command: finished steps, replies and checkpoints are kept",
    )


def _finished(store: Store, name: str) -> str:
    current = store.current(name)
    return str(current.manifest.get("finished", "")) if current else ""
