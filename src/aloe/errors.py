"""One kind of error for everything a user can mend.

`AloeError` carries three things a reader needs: *where* (file, row, field), *what* went wrong and *how to fix it*.
The command line prints exactly that, without a traceback, and exits with 2. Anything else that escapes is our bug
and keeps its traceback.
"""

from __future__ import annotations

from aloe.terminal import neutral, one_line


class AloeError(Exception):
    """A mistake in the user's input or surroundings.

    Args:
        what: the cause, one sentence.
        where: file, `file:line`, row id or field the cause sits in.
        fix: what to do about it, one sentence.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        # It quotes what a server or a file said, and a file may be called anything.
        head = f"{one_line(self.where)}: {self.what}" if self.where else self.what
        return neutral(f"{head}\n  fix: {self.fix}" if self.fix else head)
