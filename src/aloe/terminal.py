"""Text that others wrote, on a terminal: shown without what a terminal would obey.

A model's reply, a row of a data set, the name of a file in somebody's release: each may hold escape sequences that move
the cursor, rename the window, write to the clipboard (OSC 52) or hide an address behind a link (OSC 8), a carriage
return that overwrites the line before it, or marks that turn the direction of writing. `neutral` is the one function
that takes them out. The commands put it around their output streams, so that nothing reaches a terminal or a log past
it; only what `console` itself adds for colours and bars does.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but tab and line feed, DEL and the second set (0x9b is ESC [ in one character), and the marks that
# turn the direction of writing (the "trojan source" characters).
UNSEEN_CODES = (
    *(c for c in range(32) if c not in (9, 10)), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A),
)  # fmt: skip
UNSEEN = dict.fromkeys(UNSEEN_CODES, "\N{REPLACEMENT CHARACTER}")
_ESCAPED = {code: f"\\u{code:04x}" for code in UNSEEN_CODES}
_IN_A_LINE = UNSEEN | dict.fromkeys((9, 10, 0x2028, 0x2029), " ")


def neutral(text: str) -> str:
    """A text whose control characters and marks that turn the direction of writing became U+FFFD."""
    return text.translate(UNSEEN)


def one_line(text: str) -> str:
    """`neutral`, and without line breaks: a file's name can't write a line of ours."""
    return text.translate(_IN_A_LINE)


def json_text(value: Any, **settings: Any) -> str:
    """JSON with other scripts readable, whose unseen characters are escaped: the same value to whoever parses it."""
    return json.dumps(value, ensure_ascii=False, **settings).translate(_ESCAPED)


class _Guarded:
    """A text stream that shows what is written to it `neutral`; in all else the stream it stands before."""

    def __init__(self, stream: TextIO) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        self.behind.write(neutral(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def guard_streams() -> None:
    """From here on what this process writes to its standard streams is neutral, by whichever library it is written."""
    if not isinstance(sys.stdout, _Guarded):
        sys.stdout = cast("TextIO", _Guarded(sys.stdout))
    if not isinstance(sys.stderr, _Guarded):
        sys.stderr = cast("TextIO", _Guarded(sys.stderr))


def console(stream: TextIO, **settings: Any) -> Console:
    """A rich console on a stream: its own colours and bars pass, control characters of texts don't, and `[...]` in a
    text is no markup (which could hide a link's address, or fail)."""
    from rich.console import Console
    from rich.segment import Segment

    class _Console(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for part in super().render(renderable, options):
                yield part if part.control else Segment(neutral(part.text), part.style)

    behind = stream.behind if isinstance(stream, _Guarded) else stream
    return _Console(file=behind, **{"highlight": False, "markup": False, "emoji": False, **settings})
