"""One step in several processes, on one machine or several: torchrun starts them, files carry job and result.

The parent writes a job file into a folder beside the store's artifacts, starts torchrun's agent, and shows what rank 0
says until all ranks are done. Each rank is `python -m aloe.worker JOB`. Files rather than pipes, because on several
nodes all there is between the parent and rank 0 is a shared file system.

    job.json       the step, its inputs, where to write           result.json  what rank 0's step returned
    events.jsonl   rank 0's log lines and progress                done-R.json  rank R's peak memory
    scratch-R/     what other ranks' steps write as their output  error-R.json why rank R ended, or a node refused
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import psutil

import aloe
from aloe.contract import Context, Progress, Step, references
from aloe.digests import digest_file, digest_tree
from aloe.errors import AloeError
from aloe.run.store import write_aside

WORKER = "aloe.worker"
STRATEGY = "ALOE_STRATEGY"  # read by `aloe.train.parallel`
LAUNCHER = "ALOE_LAUNCHER"  # pid and start of the process that started the agent: ranks end when it is gone
RUN = "ALOE_RUN"  # names the run that the nodes of one job take part in, so that none takes up a dead one's call
POLL = 0.1  # seconds between looks at agent and events
GRACE = 10  # seconds that the agent has to end its ranks before they are killed
JOIN_TIMEOUT = 3600  # seconds within which all nodes must have come
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NODES = "nodes.json"  # in the store: what other nodes are to run
REFUSED = "error-node-{}.json"  # left by a node that can't take part


@dataclass(frozen=True)
class Job:
    """What a rank must know. Paths are absolute; `inputs` are by reference, `upstream` artifact folders by step."""

    verb: str
    parameters: dict[str, Any]
    seed: int
    family: str
    name: str
    licence: str
    recipe_text: str
    out: str
    cache: str
    hardware: dict[str, Any]
    precision: str
    strategy: str
    inputs: dict[str, dict[str, Any]]
    upstream: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Ran:
    """What a step in several processes gave: its summary, and what each rank needed (bytes, by rank)."""

    summary: dict[str, Any]
    ranks: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """Of the rank that took most main memory."""
        return max(self.ranks["peak_memory_bytes"])


class RankFailed(RuntimeError):
    """A rank ended with an exception that is no user's mistake; the message is its traceback."""


def run_on_ranks(step: Step, context: Context, launch: Any) -> Ran:
    """Run `step` in `launch.nodes` x `launch.processes` processes (an `aloe.recipe.Launch`), as if it ran here.

    Raises:
        AloeError: as raised in a rank, or: a rank was killed, or nodes didn't come.
        RankFailed: any other exception in a rank.
        OSError: the disk was full or broken for a rank.
        KeyboardInterrupt: after all ranks have ended.
    """
    store = context.out.parent
    folder = Path(tempfile.mkdtemp(prefix=f"tmp-ranks-{context.name}-", dir=store))
    os.chmod(folder, 0o755)
    try:
        job = folder.resolve() / "job.json"
        write_aside(job, json.dumps(asdict(_job(step, context, launch.strategy))))
        call = Call(str(job), uuid.uuid4().hex, launch.nodes, launch.processes, launch.strategy, launch.rendezvous)
        many = f"{launch.nodes} nodes x {launch.processes}" if launch.nodes > 1 else str(launch.processes)
        context.log(f"{many} processes, {launch.strategy}")
        if launch.nodes > 1:
            _announce(store, call)
            root = store.resolve().parent
            context.log(f"on each of the {launch.nodes - 1} other nodes, unless it runs there: aloe join {root}")
        code = attend(call, folder, _Replay(folder / "events.jsonl", context))
        if code != 0 or not (folder / "result.json").exists():
            raise _failure(folder, code, launch)
        return _result(folder, context, launch)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _job(step: Step, context: Context, strategy: str) -> Job:
    inputs = {}
    upstream = {name: str(context.folder(name).resolve()) for name in context.manifests()}
    for _, ref, _ in references(step):
        about = {"path": str(context.path(ref).resolve()), "digest": context.digest(ref)}
        inputs[ref] = {**about, "licence": context.licence_of(ref), "artifact": context.manifest(ref) is not None}
    return Job(
        verb=step.verb,
        parameters=step.model_dump(mode="json", by_alias=True),
        seed=context.seed,
        family=context.family,
        name=context.name,
        licence=context.licence,
        recipe_text=context.recipe_text,
        out=str(context.out.resolve()),
        cache=str(context.cache.resolve()),
        hardware=context.hardware.model_dump(mode="json"),
        precision=context.precision,
        strategy=strategy,
        inputs=inputs,
        upstream=upstream,
    )


def _result(folder: Path, context: Context, launch: Any) -> Ran:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for entry in result["ledgers"]:
        context.ledger(entry["stage"], rows_in=entry["in"], kept=entry["kept"], dropped=entry["dropped"])
    context.count_tokens(**result["tokens"])
    for done_with in result["done_with"]:
        context.done_with(Path(done_with))
    world = launch.nodes * launch.processes
    done = [json.loads((folder / f"done-{rank}.json").read_text()) for rank in range(world)]
    about = {"processes": launch.processes, "nodes": launch.nodes, "strategy": launch.strategy}
    peaks = {name: [d[name] for d in done] for name in ("peak_memory_bytes", "peak_gpu_bytes")}
    return Ran(result["summary"], {**about, **peaks})


# -- the agent ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One start of torchrun; equal on all nodes."""

    job: str
    identity: str
    nodes: int
    processes: int
    strategy: str
    rendezvous: str | None

    def command(self, logs: Path) -> list[str]:
        endpoint = self.rendezvous or "localhost:0"
        options = {
            "nnodes": self.nodes,
            "nproc-per-node": self.processes,
            "rdzv-backend": "c10d",
            "rdzv-endpoint": endpoint,
            "rdzv-id": self.identity,
            "rdzv-conf": f"join_timeout={JOIN_TIMEOUT}",
            "max-restarts": 0,  # a resume is the user's decision, and the same command
            "shutdown-timeout": GRACE // 2,
            "log-dir": logs,
            "redirects": 3,  # both streams of every rank into files: the parent shows what matters
        }
        if endpoint.rpartition(":")[0] in LOOPBACK:
            options["local-addr"] = "127.0.0.1"  # a machine's own name may not resolve
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", WORKER, self.job]

    def environment(self) -> dict[str, str]:
        me = psutil.Process()
        more = {STRATEGY: self.strategy, LAUNCHER: f"{me.pid}:{me.create_time()}"}
        # Else torchrun sets 1, and libraries without it take all cores in every process.
        threads = {"OMP_NUM_THREADS": str(max(1, _cores() // self.processes))}
        return {**threads, **os.environ, **more}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attend(call: Call, folder: Path, replay: _Replay | None) -> int:
    """Start the agent, show events until it ends, return its exit code. However this ends, no rank is left."""
    logs = folder / f"agent-{socket.gethostname()}-{os.getpid()}"
    logs.mkdir()
    with open(logs / "agent.log", "w") as log:
        # A session of its own: ctrl-C comes here alone, and the ranks end in order.
        agent = subprocess.Popen(
            call.command(logs),
            env=call.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while agent.poll() is None:
                time.sleep(POLL)
                if replay:
                    replay.more()
                if any(folder.glob(REFUSED.format("*"))):
                    return 1  # `_stop` ends the agent, `_failure` says what the node wrote
            if replay:
                replay.more()
        finally:
            if replay:
                replay.close()
            _stop(agent)
    return agent.returncode


def _stop(agent: subprocess.Popen[bytes]) -> None:
    """End the agent and every process below it, in order if they will, by force if not."""
    if agent.poll() is not None:
        return
    try:
        ranks = psutil.Process(agent.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        ranks = []
    agent.send_signal(signal.SIGTERM)
    try:
        agent.wait(GRACE)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
    for rank in ranks:
        try:
            rank.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(ranks, timeout=GRACE)


class _Replay:
    """Shows rank 0's log lines and progress through the parent's own context."""

    def __init__(self, path: Path, context: Context) -> None:
        self._path, self._context = path, context
        self._file: IO[str] | None = None
        self._rest = ""
        self._bars: dict[int, tuple[AbstractContextManager[Progress], Progress]] = {}

    def more(self) -> None:
        """What was written since the last look."""
        if self._file is None:
            if not self._path.exists():
                return
            self._file = open(self._path, encoding="utf-8")  # noqa: SIM115  # closed by close()
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            self._show(**json.loads(line))

    def _show(self, event: str, **values: Any) -> None:
        if event == "log":
            self._context.log(values["message"])
        elif event == "begin":
            bar = self._context.progress(values["label"], values["total"], values["unit"])
            self._bars[values["bar"]] = (bar, bar.__enter__())
        elif event == "advance":
            self._bars[values["bar"]][1].advance(values["count"], **values["figures"])
        elif event == "end":
            self._bars.pop(values["bar"])[0].__exit__(None, None, None)

    def close(self) -> None:
        """Close what rank 0 left open."""
        while self._bars:
            self._bars.popitem()[1][0].__exit__(None, None, None)
        if self._file:
            self._file.close()


# -- what went wrong --------------------------------------------------------------------------------------------------


def _failure(folder: Path, code: int, launch: Any) -> Exception:
    """The cause, out of what ranks and agents left behind: first what a user can mend, then a killed rank, then the
    earliest exception, because those after it are ranks that lost their partner."""
    errors = sorted((json.loads(p.read_text()) for p in folder.glob("error-*.json")), key=lambda e: e["time"])
    for error in errors:
        if error["what"] is not None:
            return AloeError(error["what"], where=error["where"], fix=error["fix"])
    log = "\n".join(p.read_text(errors="replace") for p in sorted(folder.glob("agent-*/agent.log")))
    ended = re.findall(r"rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)", log)
    killed = [(int(rank), -int(ended_by)) for rank, ended_by in ended if int(ended_by) < 0]
    # The agent ends those that are left by SIGTERM, so that signal is the cause only where there is no other.
    killed = [k for k in killed if k[1] != signal.SIGTERM] or ([] if errors else killed)
    if killed:
        rank, number = killed[0]
        return AloeError(
            f"process {rank} of {launch.nodes * launch.processes} was ended by signal {number} "
            f"({signal.Signals(number).name}); the others were stopped",
            where="launch",
            fix="a system short of memory kills processes: lower launch.processes or shard with fsdp2; the same "
            "command goes on from the last checkpoint",
        )
    if errors:
        first = errors[0]
        if first["errno"] is not None:
            return OSError(first["errno"], f"rank {first['rank']}: {first['message']}")
        return RankFailed(f"in rank {first['rank']}:\n{first['traceback']}")
    said = "\n".join(["", *log.strip().splitlines()[-15:]])
    if launch.nodes > 1 and not list(folder.glob("agent-*/*/*/*")):
        return AloeError(
            f"{launch.nodes} nodes didn't meet at {launch.rendezvous} within {JOIN_TIMEOUT // 60} minutes:{said}",
            where="launch.rendezvous",
            fix="start `aloe join` on every other node, and name an address of one of them that all can reach",
        )
    return RankFailed(f"torchrun ended with exit code {code} and no rank said why:{said}")


# -- several nodes ----------------------------------------------------------------------------------------------------


def _announce(store: Path, call: Call) -> None:
    state = json.loads((store / NODES).read_text())
    write_aside(store / NODES, json.dumps({**state, "call": asdict(call), "software": software()}))


def software() -> dict[str, str]:
    """What must be equal on all nodes of a run: aloe to the byte of its code, and the libraries that ranks meet in."""
    package = Path(aloe.__file__).parent
    code = digest_tree({p.relative_to(package).as_posix(): digest_file(p) for p in package.rglob("*.py")})
    libraries = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"aloe": f"{aloe.__version__}, code {code[:12]}", **libraries}
