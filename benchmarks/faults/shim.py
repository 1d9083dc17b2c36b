"""Breaks what this process asks of the disk: the Python side of `shim.c`, and the forks that are broken.

A script calls `preloaded()` first, which starts it anew with the library loaded before libc. The process then imports
all there is and forks a child for each attempt: a child begins work at once, and its death costs nobody anything.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
LOADED = "ALOE_FAULT_SHIM"
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
COUNT, KILL, FAIL_FROM, FAIL_ONCE = 1, 2, 3, 4


def compiler() -> str | None:
    """A C compiler, where there is one."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compile the library into `folder`."""
    library, cc = folder / "shim.so", compiler()
    if cc is None or sys.platform != "linux":
        raise SystemExit("these faults are injected on Linux with a C compiler (cc)")
    subprocess.run([cc, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def preloaded() -> None:
    """Start this script anew with the library loaded, one thread for arithmetic and equal hashes."""
    if LOADED in os.environ:
        shutil.rmtree(Path(os.environ[LOADED]).parent, ignore_errors=True)  # it is loaded: the file may go
        return
    library = build(Path(tempfile.mkdtemp(prefix="aloe-shim-")))
    more = {
        LOADED: str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
    }  # fmt: skip
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **more})


class Disk:
    """What this process does to the files below one folder."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)  # it was loaded before all others
        os.environ.pop("LD_PRELOAD", None)  # programs that are started from here are left alone
        self._library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        self._library.fault_kill_after.argtypes = [ctypes.c_double]
        for name in ("fault_seen", "fault_failed"):
            getattr(self._library, name).restype = ctypes.c_long
        self._library.fault_last.restype = ctypes.c_char_p

    def _arm(self, below: Path, how: int, n: int = 0, number: int = 0, torn: bool = False) -> None:
        # With a slash at its end, so that neighbours whose names begin alike don't count.
        self._library.fault_arm(f"{below}/".encode(), how, n, number, torn)

    def count(self, below: Path) -> None:
        """Count calls from now on."""
        self._arm(below, COUNT)

    def kill_at(self, below: Path, n: int, torn: bool = False) -> None:
        """End this process at the n-th call; `torn`: if it is a write, half of it is done."""
        self._arm(below, KILL, n, torn=torn)

    def fail_at(self, below: Path, n: int, number: int = errno.ENOSPC, once: bool = False) -> None:
        """Let the n-th call and all that follow fail; with `once`, that one alone."""
        self._arm(below, FAIL_ONCE if once else FAIL_FROM, n, number)

    def kill_after(self, seconds: float) -> None:
        """End this process after that much more processor time: a moment that another load doesn't move."""
        self._library.fault_kill_after(seconds)

    def off(self) -> None:
        """Let everything be as it is."""
        self._library.fault_off()

    @property
    def seen(self) -> int:
        """Calls since it was armed."""
        return int(self._library.fault_seen())

    @property
    def failed(self) -> tuple[int, str]:
        """How many calls failed, and the name of the first."""
        return int(self._library.fault_failed()), self._library.fault_last().decode()


def settled() -> None:
    """Ask git and the installed packages once, not twice in every step of every attempt, and leave what is imported to
    the forks without another look by the garbage collector. None of it has to do with files."""
    from aloe.run import execute

    code, versions = execute.code_version(), execute.library_versions()
    execute.code_version, execute.library_versions = (lambda: code), (lambda: versions)
    gc.collect()
    gc.freeze()


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child; its exit code, negative where a signal ended it (as of `os.waitstatus_to_exitcode`)."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
