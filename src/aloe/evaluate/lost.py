"""Items that a failing server lost, which another run may get: told apart from those that no run will answer.

A request that a server will never answer (too long for the model, filtered) makes an errored item, which is left out
and counted. One whose every try failed (lost connections, timeouts, HTTP 5xx) is lost for now. A few are counted as
errored; with more the benchmark isn't finished, or scores of what a dying server still said would stand as done.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aloe.contract import Context
from aloe.errors import AloeError
from aloe.evaluate.measured import Measured
from aloe.generate.engine import Tick

LOST_SHARE = 0.05  # of a benchmark's items that may be lost
LOST_ITEMS = 1  # that may be lost whatever their share
_TRIED = re.compile(r" \(in the last of \d+ tries\)$")  # how `ServerEngine` ends the error of a request it gave up


def is_lost(error: str) -> bool:
    """Whether an item's error is one that another run may not meet."""
    return _TRIED.search(error) is not None


def refuse_lost(found: Sequence[Measured], benchmark: str, model: str) -> None:
    """Stop where a server lost more than `LOST_SHARE` of a benchmark's items.

    Raises:
        AloeError: with how many were lost, how, and what is kept: every finished reply lies in the request ledger, and
            the next run asks for the others only.
    """
    for measured in found:
        errors = [str(i.meta.get("error") or "") for i in measured.items if i.outcome == "errored"]
        lost = [error for error in errors if is_lost(error)]
        n = len(measured.items)
        if len(lost) > max(LOST_ITEMS, LOST_SHARE * n):
            (cause, times), *others = Counter(_TRIED.sub("", error) for error in lost).most_common()
            more = f", and {len(others)} other causes" if others else ""
            raise AloeError(
                f"{len(lost)} of {n} items of {benchmark} were lost: {cause} ({times} times{more}); "
                f"the other {n - len(lost)} are kept",
                where=f"model {model}",
                fix="see what ails the server, or raise its timeout_s or attempts; the same command then asks for "
                "the lost ones only",
            )


def interrupted(cause: AloeError, label: str, finished: int, total: int, unit: str) -> AloeError:
    """The error that ended a benchmark, with what was finished before it."""
    if not finished:
        return cause
    what = f"{cause.what} ({label}: {finished} of {total} {unit} were finished before, and are kept)"
    return AloeError(what, where=cause.where, fix=cause.fix)


@contextmanager
def ticking(ctx: Context, label: str, total: int, unit: str) -> Iterator[Tick]:
    """A step's progress bar as the callback that engines call. An error inside says how much was finished."""
    finished = 0

    def tick(done: int, tokens: int) -> None:
        nonlocal finished
        finished += done
        bar.advance(done)

    with ctx.progress(label, total, unit) as bar:
        try:
            yield tick
        except AloeError as cause:
            raise interrupted(cause, label, finished, total, unit) from None
