"""What runs inside a Slurm job: `aloe run` of one step on the first node, `aloe join` on the others.

submitit pickles a `StepJob`, starts one task a node, and sends a job back to the queue that is preempted or out of
time. The command runs in a session of its own: Slurm's signals come here alone, and this ends it in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aloe.run.store import write_aside
from aloe.run.torchrun import RUN

GRACE = 25  # seconds for a command to end by itself; Slurm kills 30 s after its first signal by default
PORTS = range(20_000, 30_000)  # below those that systems hand out by themselves
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass
class StepJob:
    """A step's job; called in every task. `command` is all of `aloe run` but `launch`; `root` is `OUT/<family>`,
    `outcome` a file for how the first task ended."""

    command: list[str]
    root: str
    launch: dict[str, Any]
    outcome: str
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> int:
        """Run until the command ends; its exit code."""
        import submitit
        from submitit.core.utils import UncompletedJobError

        place = submitit.JobEnvironment()
        launch, more = dict(self.launch), dict(self.environment)
        if place.num_tasks > 1:
            launch["rendezvous"] = f"{place.hostnames[0]}:{port(place.job_id)}"
            more[RUN] = f"{place.job_id}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        first = place.global_rank == 0
        lead = [*self.command, "--set", f"launch={json.dumps(launch)}"]
        outcome = {"job": place.job_id}
        self._child = child = start(lead if first else [sys.executable, "-m", "aloe", "join", self.root], more)
        stopped = on_stop(child)
        try:
            code = child.wait()
        except UncompletedJobError:  # raised by submitit when the job may not go back to the queue once more
            end(child)
            write_aside(Path(self.outcome), json.dumps({**outcome, "code": None, "state": "TIMEOUT"}))
            raise
        finally:
            end(child)
        while stopped:
            signal.pause()  # Slurm ends the job, or puts it back in the queue: leaving before could count as an end
        if first:
            write_aside(Path(self.outcome), json.dumps({**outcome, "code": code, "state": None}))
        return code

    def checkpoint(self) -> Any:
        """Called by submitit on the first node before the job goes back to the queue: the step ends in order, and the
        same call goes on from its last checkpoint."""
        from submitit.core.utils import DelayedSubmission

        end(self._child)
        return DelayedSubmission(StepJob(self.command, self.root, self.launch, self.outcome, self.environment))


def work(folder: str) -> int:
    """A job that helps a curation until it is let go (`aloe.data.crew`)."""
    child = start([sys.executable, "-m", "aloe.data.crew", folder], {})
    on_stop(child)
    try:
        return child.wait()
    finally:
        end(child)


def on_stop(child: subprocess.Popen[bytes]) -> list[int]:
    """At SIGTERM, which comes before a cancelled or preempted job is killed, press ctrl-C. The list then holds it."""
    seen: list[int] = []

    def stop(number: int, frame: Any) -> None:
        seen.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGINT)

    signal.signal(signal.SIGTERM, stop)
    return seen


def port(job: str) -> int:
    """Where the nodes of a job meet: another port for another job, as two may share a node."""
    return PORTS[int(job.partition("_")[0]) % len(PORTS)]


def start(command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own that ends when this process does, however that ends."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is not None:
            libc.prctl(DEATH_SIGNAL, signal.SIGINT)

    return subprocess.Popen(
        command, env={**os.environ, **more}, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=tie
    )


def end(child: subprocess.Popen[bytes]) -> None:
    """End a command in order, by force after `GRACE`.

    A signal handler calls this while `child.wait()` stands still below it with the lock that all of `Popen` asks for:
    so the process is looked at from outside.
    """
    if not is_there(child.pid):
        return
    os.kill(child.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE
    while is_there(child.pid):
        time.sleep(0.1)
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)


def is_there(number: int) -> bool:
    """Whether a child runs; one that has ended and isn't reaped doesn't."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
