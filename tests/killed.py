"""Runs that die by SIGKILL from within, each a fork of one process that has imported all there is. For the scripts that
tests of resuming run (`train/kill_script.py`, `hardening/kill_loop.py`)."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from aloe.models.load import load


def prepare(model: Path) -> None:
    """Import what transformers imports late: it is then there for every child."""
    load(model)
    __import__("accelerate")


def die() -> NoReturn:
    """End this process as the machine's out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process outlived SIGKILL")


def forked(work: Callable[[], object]) -> int:
    """Exit status of `work` in a child."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    return os.waitpid(pid, 0)[1]


def must_end(work: Callable[[], object], what: str) -> None:
    """Run `work` in a child; exit where it fails."""
    if forked(work) != 0:
        raise SystemExit(f"{what} failed")


def must_die(work: Callable[[], object], where: str) -> None:
    """Run `work` in a child; exit where it doesn't die by SIGKILL."""
    status = forked(work)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise SystemExit(f"a run was to die at {where} and ended with {status}")
