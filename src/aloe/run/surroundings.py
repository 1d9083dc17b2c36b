"""What the machine can do to a run: a full or lost disk, rights taken away, no memory. Each becomes one error that says
what happened and what to do; a mistake of ours keeps its traceback.

Libraries in Rust and C++ (safetensors, tokenizers, Arrow) don't always raise `OSError`, but their texts carry the
system's error number.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aloe.errors import AloeError

KEPT = "then run the same command: finished steps are kept"
NUMBER = re.compile(r"\((?:os )?error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
TOLD: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", f"free some space, {KEPT}"),
    errno.EDQUOT: ("this user's share of the disk is used up", f"remove something or ask for more, {KEPT}"),
    errno.EROFS: ("the file system is read-only", f"mount it for writing or choose another --out, {KEPT}"),
    errno.EACCES: ("this user may not do that", f"give this user the right to read and write there, {KEPT}"),
    errno.EPERM: ("this user may not do that", f"give this user the right to read and write there, {KEPT}"),
    errno.EIO: ("the disk failed", f"look at the system's log and save what is there; on another disk, {KEPT[5:]}"),
    errno.EFBIG: ("a file would be larger than is allowed", f"raise the limit (ulimit -f) or use another disk, {KEPT}"),
    errno.EMFILE: ("too many files are open", f"raise the limit (ulimit -n), {KEPT}"),
    errno.ENFILE: ("too many files are open on this machine", f"end other programs, {KEPT}"),
    errno.ESTALE: ("the network disk has lost this file", f"mount it again, {KEPT}"),
    errno.ENOTCONN: ("the network disk is gone", f"mount it again, {KEPT}"),
    errno.ENODEV: ("the disk is gone", f"mount it again, {KEPT}"),
    errno.ENOMEM: ("the machine has no memory left", f"end other programs or use smaller batches, {KEPT}"),
}
NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|std::bad_alloc", re.IGNORECASE)


def mishap(cause: BaseException, root: Path) -> AloeError | None:
    """The user's error behind an exception; None if it is none that the machine's state explains. `root` is where the
    run writes."""
    if isinstance(cause, AloeError):
        return None
    number = _number(cause)
    if number in TOLD:
        what, fix = TOLD[number]
        path = getattr(cause, "filename", None)
        return AloeError(f"{what} ({_short(cause)})", where=str(path or root), fix=fix)
    if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and NO_MEMORY.search(str(cause))):
        what, fix = TOLD[errno.ENOMEM]
        return AloeError(f"{what} ({_short(cause)})", where=str(root), fix=fix)
    if isinstance(cause, FileNotFoundError) and not root.exists():
        return AloeError("the folder was removed while it was written to", where=str(root), fix="run the same command")
    return None


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn what the machine did into one error.

    Raises:
        AloeError: see `TOLD`.
    """
    try:
        yield
    except Exception as cause:
        told = mishap(cause, root)
        if told is None:
            raise
        raise told from None


def _number(cause: BaseException) -> int:
    """The system's error number; 0 where there is none. Rust writes it into the text."""
    if isinstance(cause, OSError) and cause.errno:
        return cause.errno
    found = NUMBER.search(str(cause))
    return int(found[1] or found[2]) if found else 0


def _short(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__
