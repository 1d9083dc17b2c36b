"""Jobs that a recipe's steps run in: sent, written down, found again, waited for, told about.

A step's job is written down in the store beside its artifacts before it is waited for. A run that is killed while it
waits leaves the job to Slurm, and the next run takes up waiting for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from aloe.errors import AloeError
from aloe.run.job import StepJob, work
from aloe.run.progress import Console
from aloe.run.slurm import Slurm, executor
from aloe.run.store import write_aside

LOOK = 0.2  # seconds between looks at a job's files
ASK = 15.0  # seconds between questions to Slurm: its controller serves a whole cluster
ANSWER = 60  # seconds that Slurm has to answer
JOBS = "jobs"  # folder below the store
CREW = "ALOE_CREW"  # read by `aloe.data.crew`
UNKNOWN = "UNKNOWN"
OURS = re.compile(r"submitit |\[\d+/\d+\] ")
ENDED = frozenset(
    (
        "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE",
        "PREEMPTED", "REVOKED",
    )
)  # fmt: skip
MEANT = {
    "TIMEOUT": "its time was up: raise launch.slurm.time",
    "OUT_OF_MEMORY": "it took more main memory than it had asked for: raise launch.slurm.memory",
    "NODE_FAIL": "a node failed",
    "PREEMPTED": "others took its place: the same command sends it again",
    "CANCELLED": "somebody cancelled it (scancel)",
}


@dataclass(frozen=True)
class Sent:
    """A job as the store remembers it. `id` is Slurm's, or with `executor: local` the process's."""

    step: str
    executor: str
    id: str
    folder: str
    fingerprint: str
    since: str
    workers: tuple[str, ...] = ()  # ids of the jobs that help it

    @property
    def named(self) -> str:
        return f"{'Slurm' if self.executor == 'slurm' else 'local'} job {self.id}"

    @property
    def log(self) -> Path:
        """What the step says: standard error of the first task."""
        return Path(self.folder) / f"{self.id}_0_log.err"

    @property
    def outcome(self) -> Path:
        return Path(self.folder) / "outcome.json"

    @property
    def asks(self) -> float:
        """Seconds between questions after its state."""
        return ASK if self.executor == "slurm" else 1.0


@dataclass(frozen=True)
class State:
    """What is known of a job: Slurm's name for its state, and why it waits or how it ended, where that is told."""

    name: str
    why: str = ""


# -- sending and finding again ----------------------------------------------------------------------------------------


def send(store: Path, name: str, fingerprint: str, launch: Any, step: Any, command: list[str]) -> Sent:
    """Send the job of a step, and the workers that help it; write it down below `store`.

    Raises:
        AloeError: Slurm refused it.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    slurm: Slurm = launch.slurm
    folder = (store / JOBS / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}").resolve()
    folder.mkdir(parents=True)
    inside = {"via": "here", "processes": launch.processes, "strategy": launch.strategy}
    inside["nodes"] = launch.nodes if step.parallel else 1
    environment: dict[str, str] = {}
    crew = folder / "crew" if step.spread and slurm.workers else None
    if crew is not None:
        crew.mkdir()
        environment[CREW] = str(crew)
    work_of_step = StepJob(command, str(store.parent.resolve()), inside, str(folder / "outcome.json"), environment)
    ids: list[str] = []
    try:
        ids.append(executor(folder, name, launch, step).submit(work_of_step).job_id)
        if crew is not None:
            many = executor(folder / "workers", name, launch, step, workers=True)
            if slurm.executor == "slurm":
                many.parameters["dependency"] = f"after:{ids[0]}"  # not before there is something to do
            ids += [job.job_id.partition("_")[0] for job in many.map_array(work, [str(crew)] * slurm.workers)]
    except (FailedJobError, FailedSubmissionError) as cause:
        _cancel(slurm.executor, tuple(ids))
        raise AloeError(
            f"Slurm refused the job of step {name}: {str(cause).strip()[-600:]}", where="launch.slurm",
            fix="look at the script: aloe plan RECIPE --scripts DIR",
        ) from None  # fmt: skip
    since = datetime.now(UTC).isoformat(timespec="seconds")
    made = Sent(name, slurm.executor, ids[0], str(folder), fingerprint, since, tuple(dict.fromkeys(ids[1:])))
    write_aside(_record(store, name), json.dumps(asdict(made)))
    return made


def running(store: Path, name: str) -> Sent | None:
    """The job of this step that was sent before and hasn't ended; None where there is none."""
    try:
        found = json.loads(_record(store, name).read_text())
        sent = Sent(**{**found, "workers": tuple(found["workers"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    state = None if sent.outcome.exists() else state_of(sent)
    ended = sent.outcome.exists() or (state is not None and (state.name in ENDED or state.name == UNKNOWN))
    return None if ended else sent


def forget(store: Path, sent: Sent, files: bool = True) -> None:
    """The job is no longer of interest. With `files` its script, pickles and logs go too."""
    _record(store, sent.step).unlink(missing_ok=True)
    _cancel(sent.executor, sent.workers)
    if files:
        shutil.rmtree(sent.folder, ignore_errors=True)


def cancel(sent: Sent) -> None:
    """Tell Slurm to end the job and its workers."""
    _cancel(sent.executor, (sent.id, *sent.workers))


def _cancel(kind: str, ids: tuple[str, ...]) -> None:
    if kind == "slurm" and ids:
        subprocess.run(["scancel", *ids], check=False, capture_output=True, timeout=ANSWER)
    for number in ids if kind == "local" else ():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if _is_local(int(number)):
                os.kill(int(number), signal.SIGINT)


def _record(store: Path, step: str) -> Path:
    return store / JOBS / f"{step}.json"


# -- waiting ----------------------------------------------------------------------------------------------------------


def wait(sent: Sent, console: Console, interrupt: str) -> None:
    """Say what the job says until it has ended.

    Args:
        interrupt: what ctrl-C does to the job, `cancel` or `leave`.

    Raises:
        AloeError: it didn't end well: job, reason, log.
        KeyboardInterrupt: after the job was cancelled, or left.
    """
    try:
        _wait(sent, console)
    except KeyboardInterrupt:
        if interrupt == "cancel":
            cancel(sent)
            console.line(f"  {sent.named} is cancelled; checkpoints and finished steps are kept")
        else:
            ends = f"scancel {sent.id}" if sent.executor == "slurm" else f"kill -INT {sent.id}"
            console.line(f"  {sent.named} runs on: the same command waits for it again, `{ends}` ends it")
        raise


def _wait(sent: Sent, console: Console) -> None:
    tail = _Tail(sent.log)
    asked = ended = float("-inf")
    last = State("")
    while not sent.outcome.exists():
        for line in tail.more():
            console.line(line)
        now = time.monotonic()
        if now - asked >= sent.asks:
            asked = now
            state = state_of(sent) or State("", "Slurm doesn't answer; it is asked again")
            if state != last and sent.executor == "slurm":
                told = f"{state.name} ({state.why})" if state.name and state.why else state.name or state.why
                console.line(f"  {sent.named}: {told}")
            last = state
            over = state.name in ENDED or state.name == UNKNOWN
            ended = (now if ended == float("-inf") else ended) if over else float("-inf")
            if over and now - ended >= 2 * sent.asks:  # its last file may be seen late here; a requeued one comes back
                raise _failed(sent, state)
        time.sleep(LOOK)
    for line in tail.more():
        console.line(line)
    outcome = json.loads(sent.outcome.read_text())
    if outcome["code"] != 0:
        raise _failed(sent, State(outcome["state"] or "", ""), outcome["code"])


def _failed(sent: Sent, state: State, code: int | None = None) -> AloeError:
    kept = f"its log is {sent.log}; the same command goes on from finished steps and the last checkpoint"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return AloeError(f"step {sent.step}: {sent.named} was ended by signal {-code} ({name})", fix=kept)
    if code is not None:
        return AloeError(f"step {sent.step}: {sent.named} ended with exit code {code}", fix=f"see above; {kept}")
    reason = MEANT.get(state.name, "")
    told = "; ".join(filter(None, (reason, state.why)))
    return AloeError(f"step {sent.step}: {sent.named} ended: {state.name}{f' ({told})' if told else ''}", fix=kept)


class _Tail:
    """Lines that were added to a file since the last look. What submitit and aloe's own numbering say is left out."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, 0, b""

    def more(self) -> list[str]:
        try:
            with open(self._path, "rb") as log:
                if log.seek(0, os.SEEK_END) < self._at:
                    self._at, self._rest = 0, b""  # begun anew
                log.seek(self._at)
                added = log.read()
        except OSError:
            return []
        self._at += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        texts = [line.decode("utf-8", "replace").rstrip() for line in lines]
        return [text for text in texts if text and not OURS.match(text)]


# -- what Slurm knows -------------------------------------------------------------------------------------------------


def state_of(sent: Sent) -> State | None:
    """State of a job; `UNKNOWN` where Slurm has no such job, None where it can't be asked.

    squeue knows jobs that wait or run. How one ended is told by the accounting (sacct), which not every cluster has,
    else for some minutes by the controller (scontrol).
    """
    if sent.executor == "local":
        return State("RUNNING" if _is_local(int(sent.id)) else "FAILED")
    queued, answered = _ask("squeue", "--noheader", "--jobs", sent.id, "--format", "%T|%r|%N")
    if queued:
        name, why, nodes = (*queued.splitlines()[0].split("|"), "", "")[:3]
        return State(name, f"on {nodes}" if nodes and name == "RUNNING" else "" if why == "None" else why)
    told, _ = _ask(
        "sacct", "--allocations", "--noheader", "--parsable2", "--format", "State,ExitCode", "--jobs", sent.id
    )
    if told:
        name, code = (*told.splitlines()[-1].split("|"), "")[:2]
        return State(name.split()[0], f"exit code {code}" if name == "FAILED" else "")
    told, _ = _ask("scontrol", "--oneliner", "show", "job", sent.id)
    found = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", told))
    if "JobState" in found:
        why = found.get("Reason", "None")
        shown = f"exit code {found.get('ExitCode')}" if found["JobState"] == "FAILED" else "" if why == "None" else why
        return State(found["JobState"], shown)
    return State(UNKNOWN, "Slurm knows no such job") if answered else None


def _ask(*command: str) -> tuple[str, bool]:
    """(output, whether the controller answered). A job that is over is an invalid one to squeue: an answer too."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=False)
    except (OSError, subprocess.SubprocessError):
        return "", False
    return (done.stdout.strip(), True) if done.returncode == 0 else ("", "Invalid job id" in done.stderr)


def _is_local(number: int) -> bool:
    try:
        found = psutil.Process(number)
        return found.status() != psutil.STATUS_ZOMBIE and any("submitit" in part for part in found.cmdline())
    except psutil.Error:
        return False
