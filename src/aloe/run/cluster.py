"""A run whose steps are jobs of a cluster: plan here, send, wait, take over what the store then holds.

The run that waits doesn't hold the family's lock, which the job takes where it runs. Inputs from outside are fetched
here, because compute nodes often have no network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.run import jobs
from aloe.run.context import EnginePool
from aloe.run.execute import Runner, RunResult, wanted_steps
from aloe.run.plan import StepPlan, open_resources
from aloe.run.progress import Console
from aloe.run.slurm import require_slurm, require_submitit, script
from aloe.run.store import Artifact, Store
from aloe.run.surroundings import explained


def run_on_cluster(
    recipe: Any, out: Path, steps: Sequence[str], redo: Sequence[str], overrides: Sequence[str], console: Console
) -> RunResult:
    """Run `recipe` (with a path, and `launch.via: slurm`), each step that isn't fresh as a job.

    Raises:
        AloeError: Slurm is not there, or a job didn't end well; finished steps stay.
    """
    require_slurm(recipe.head.launch.slurm)
    names = wanted_steps(recipe, steps)
    for name in redo:
        if name not in recipe.steps:
            raise AloeError(f"--redo names no step {name!r}", fix=f"steps: {', '.join(recipe.order)}")
    store = Store(out / recipe.head.family)
    command = [sys.executable, "-m", "aloe", "run", str(recipe.path.resolve()), "--out", str(out.resolve())]
    for assignment in overrides:
        command += ["--set", assignment]
    runner = _OnCluster(recipe, store, open_resources(recipe, names), console, redo, command)
    for at, name in enumerate(names, 1):
        runner.step(name, f"[{at}/{len(names)}]")
    return RunResult(store.root, {n: p.artifact for n, p in runner.planned.items() if p.artifact}, runner.made)


class _OnCluster(Runner):
    """Brings steps up to date by jobs."""

    def __init__(
        self, recipe: Any, store: Store, resources: Any, console: Console, redo: Sequence[str], command: list[str]
    ) -> None:
        engine = recipe.head.engine
        pool = EnginePool(engine.precision, engine.max_batch, store.cache)  # stays empty: jobs load models
        super().__init__(recipe, store, resources, pool, console, set(redo))
        self.command = command

    def _make(self, name: str, plan: StepPlan) -> Artifact:
        recipe, launch = self.recipe, self.recipe.head.launch
        assert plan.fingerprint is not None
        where = recipe.line("steps", name)
        sent = jobs.running(self.store.folder, name)
        if sent is None:
            with explained(self.store.root), self.store.lock():  # two runs must not send two jobs
                sent = jobs.running(self.store.folder, name)
                if sent is None:
                    command = [*self.command, name, *(["--redo", name] if name in self.redo else [])]
                    sent = jobs.send(self.store.folder, name, plan.fingerprint, launch, recipe.steps[name], command)
            self.console.line(f"  sent as {sent.named}, which writes to {sent.log}")
        elif sent.fingerprint == plan.fingerprint:
            self.console.line(f"  {sent.named} makes it, sent {sent.since}: waiting for it")
        else:
            ends = "scancel" if sent.executor == "slurm" else "kill -INT"
            raise AloeError(
                f"step {name}: {sent.named}, sent {sent.since}, still makes it from other parameters or inputs",
                where=where, fix=f"wait until it has ended, or end it: {ends} {sent.id}",
            )  # fmt: skip
        try:
            jobs.wait(sent, self.console, launch.slurm.interrupt)
        except AloeError as cause:
            jobs.forget(self.store.folder, sent, files=False)
            raise AloeError(cause.what, where=where, fix=cause.fix) from None
        artifact = self.store.find(plan.verb, plan.fingerprint)
        if artifact is None:
            raise AloeError(
                f"step {name}: {sent.named} ended well, but what it made is not what was asked for", where=where,
                fix=f"were the recipe or its inputs changed while it waited? Run it again; its log is {sent.log}",
            )  # fmt: skip
        jobs.forget(self.store.folder, sent)
        return artifact


def write_scripts(recipe: Any, out: Path, folder: Path) -> list[Path]:
    """The sbatch script of every step, as it would be sent, below `folder`; needs no Slurm.

    Raises:
        AloeError: the recipe doesn't say `via: slurm`, or submitit isn't installed.
    """
    launch = recipe.head.launch
    if launch.via != "slurm":
        raise AloeError("--scripts shows what is sent to Slurm; this recipe says via: " + launch.via,
                        where=recipe.line("launch", "via"), fix="see docs/launch.md")  # fmt: skip
    require_submitit()
    folder.mkdir(parents=True, exist_ok=True)
    jobs_folder = (out / recipe.head.family / ".store" / jobs.JOBS).resolve()
    written = []
    for at, name in enumerate(recipe.order, 1):
        step = recipe.steps[name]
        kinds = [False, True] if step.spread and launch.slurm.workers else [False]
        for workers in kinds:
            path = folder / f"{at:02d}-{name}{'-workers' if workers else ''}.sh"
            below = jobs_folder / name / "workers" if workers else jobs_folder / name
            path.write_text(script(below, name, launch, step, workers=workers), encoding="utf-8")
            written.append(path)
    return written
