"""Run a recipe: skip what is fresh, make what is not, keep what is finished whatever happens next."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aloe
from aloe.contract import Step
from aloe.errors import AloeError
from aloe.models.driver import has_gpu_driver
from aloe.run.context import EnginePool, Meter, RunContext
from aloe.run.inputs import Resource
from aloe.run.nodes import open_to_nodes
from aloe.run.plan import StepPlan, open_resources, plan_step, settings_of
from aloe.run.progress import Console
from aloe.run.store import Artifact, Store
from aloe.run.surroundings import explained, mishap
from aloe.run.torchrun import run_on_ranks

LIBRARIES = (
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "accelerate",
    "numpy",
    "pyarrow",
    "pydantic",
    "rensa",
    "sentence-transformers",
)


@dataclass
class RunResult:
    """Artifacts by step name, which of them were made now, and where they lie."""

    root: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)


def run_recipe(
    recipe: Any,
    *,
    out: str | Path = "out",
    steps: Sequence[str] = (),
    redo: Sequence[str] = (),
    console: Console | None = None,
) -> RunResult:
    """Run `recipe` (an `aloe.recipe.Recipe`), or only `steps` and what they need.

    Args:
        out: artifacts go to `out/<family>/`.
        steps: names to make; empty means all.
        redo: names to make anew though they are fresh.

    Raises:
        AloeError: a mistake the user can mend; finished steps stay.
    """
    console = console or Console()
    names = wanted_steps(recipe, steps)
    for name in redo:
        if name not in recipe.steps:
            raise AloeError(f"--redo names no step {name!r}", fix=f"steps: {', '.join(recipe.order)}")
    store = Store(Path(out) / recipe.head.family)
    resources = open_resources(recipe, names)
    with explained(store.root), store.lock(), open_to_nodes(store, recipe.head.launch):
        pool = EnginePool(recipe.head.engine.precision, recipe.head.engine.max_batch, store.cache)
        runner = Runner(recipe, store, resources, pool, console, set(redo))
        try:
            for at, name in enumerate(names, 1):
                runner.step(name, f"[{at}/{len(names)}]")
        finally:
            pool.release()
    return RunResult(store.root, {n: p.artifact for n, p in runner.planned.items() if p.artifact}, runner.made)


def wanted_steps(recipe: Any, steps: Sequence[str]) -> list[str]:
    """The named steps with everything they depend on, in running order; all steps when none is named."""
    if not steps:
        return list(recipe.order)
    need: set[str] = set()
    for name in steps:
        if name not in recipe.steps:
            raise AloeError(f"no step {name!r} in the recipe", fix=f"steps: {', '.join(recipe.order)}")
        need |= {name, *recipe.ancestors(name)}
    return [n for n in recipe.order if n in need]


class Runner:
    """Brings the steps of a recipe up to date, one after another."""

    def __init__(
        self,
        recipe: Any,
        store: Store,
        resources: dict[str, Resource],
        pool: EnginePool,
        console: Console,
        redo: set[str],
    ) -> None:
        self.recipe, self.store, self.resources, self.pool = recipe, store, resources, pool
        self.console, self.redo = console, redo
        self.planned: dict[str, StepPlan] = {}
        self.made: list[str] = []

    def step(self, name: str, counter: str) -> None:
        """Bring one step up to date; its inputs are."""
        self._fetch_inputs(name)
        plan = plan_step(self.recipe, self.store, name, self.resources, self.planned, redo=name in self.redo)
        if plan.artifact is not None:
            self.store.point(name, plan.artifact)
            self.console.line(f"{counter} {name} ({plan.verb}): fresh")
            plan.state = "fresh"
        else:
            self.console.line(f"{counter} {name} ({plan.verb}): {'; '.join(plan.reasons)}")
            plan.artifact = self._make(name, plan)
            plan.state = "fresh"
            self.made.append(name)
        self.planned[name] = plan

    def _fetch_inputs(self, name: str) -> None:
        """Inputs from outside are needed on disk only if the step runs, but their digests are needed to know that."""
        for _, ref, _ in self.recipe.outside[name]:
            resource = self.resources[ref]
            if resource.digest is None or (resource.kind == "model" and resource.model is not None):
                if resource.digest is None:
                    self.console.line(f"  preparing {ref} ({resource.origin}; once)")
                self.resources[ref] = resource.fetch()

    def _make(self, name: str, plan: StepPlan) -> Artifact:
        recipe, step = self.recipe, self.recipe.steps[name]
        assert plan.fingerprint is not None
        folder = self.store.begin(name)
        self.store.cache.mkdir(parents=True, exist_ok=True)
        upstream = recipe.ancestors(name)
        context = RunContext(
            out=folder,
            cache=self.store.cache,
            name=name,
            head=recipe.head,
            artifacts={n: a for n in upstream if (a := self.planned[n].artifact) is not None},
            resources=self.resources,
            pool=self.pool,
            console=self.console,
            recipe_text=recipe.dump([*upstream, name]),
        )
        try:
            with Meter(metered=True) as meter:
                summary, ranks = self._run(step, context, meter)
            manifest = self._manifest(name, step, plan, context, meter, summary) | ranks
            artifact = self.store.finish(folder, step.verb, name, manifest, context.removable)
        except AloeError as cause:
            if cause.where is None:
                raise AloeError(f"step {name}: {cause.what}", where=recipe.line("steps", name), fix=cause.fix) from None
            raise
        except Exception as cause:
            told = mishap(cause, self.store.root)
            if told is None:
                raise
            raise AloeError(f"step {name}: {told.what}", where=told.where, fix=told.fix) from None
        finally:
            _remove(folder)  # first: a ledger on a full disk can close only when there is room again
            self.pool.release()
            give_back_memory()
        peak, seconds = meter.peak_bytes / 1e9, meter.seconds
        self.console.line(f"  done in {seconds:.1f} s, peak memory {peak:.1f} GB")
        return artifact

    def _run(self, step: Step, context: RunContext, meter: Meter) -> tuple[dict[str, Any], dict[str, Any]]:
        """The step's summary, and what the manifest says of the processes that shared it."""
        launch = self.recipe.head.launch
        if not step.parallel or launch.processes * launch.nodes == 1:
            return step.run(context), {}
        self.pool.release()
        ran = run_on_ranks(step, context, launch)
        meter.peak_bytes = max(meter.peak_bytes, ran.peak_bytes)
        return ran.summary, {"ranks": ran.ranks}

    def _manifest(
        self, name: str, step: Step, plan: StepPlan, context: RunContext, meter: Meter, summary: dict[str, Any]
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for edge in self.recipe.edges[name]:
            artifact = self.planned[edge.source].artifact
            assert artifact is not None
            inputs[edge.source] = {
                "digest": artifact.content_digest,
                "fingerprint": artifact.fingerprint,
                "step": edge.source,
                "kind": artifact.manifest["kind"],
            }
        for _, ref, _ in self.recipe.outside[name]:
            resource = self.resources[ref]
            inputs[ref] = {
                "digest": resource.digest,
                "origin": resource.origin,
                "licence": resource.licence,
                "kind": resource.kind,
            }
        return {
            "fingerprint": plan.fingerprint,
            "kind": step.makes,
            "step": name,
            "verb": step.verb,
            "version": step.version,
            "parameters": step.model_dump(mode="json", by_alias=True),
            "settings": settings_of(self.recipe, step),
            "seed": self.recipe.head.seed,
            "inputs": inputs,
            "ledger": context.ledgers,
            "tokens": context.tokens,
            "summary": summary,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(meter.seconds, 3),
            "peak_memory_bytes": meter.peak_bytes,
            "energy": meter.energy,  # None: no counter; the release computes it from stated power, or says unknown
            "machine": machine(),
            "code": code_version(),
            "versions": library_versions(),
        }


def give_back_memory() -> None:
    """Return freed pages to the system, so that a step's peak isn't what the one before it left in the allocator."""
    import ctypes
    import gc

    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # another C library: nothing to ask


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, Any]:
    """What the work ran on; no host name."""
    import psutil

    gpus: list[str] = []
    if has_gpu_driver():
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's own name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def library_versions() -> dict[str, str]:
    """Installed versions of what results depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_version() -> dict[str, Any]:
    """aloe's version and, in a checkout of aloe itself, the git commit and whether files differ from it."""
    root = Path(aloe.__file__).parents[2]
    info: dict[str, Any] = {"aloe": aloe.__version__}
    if (root / ".git").exists() and (root / "pyproject.toml").exists():
        try:
            git = ["git", "-C", str(root)]
            info["commit"] = subprocess.run(
                [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            status = subprocess.run(
                [*git, "status", "--porcelain", "--", "src"], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            info["dirty"] = bool(status.strip())
        except (OSError, subprocess.SubprocessError):
            print("aloe: git could not tell the commit; the manifest goes without it", file=sys.stderr)
    return info
