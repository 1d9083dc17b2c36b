"""What a chat template may spend: units of work and characters, counted in each thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import SecurityError

MAX_TEXT = 32 << 20  # characters of a text that a template makes: longer than any context
WORK = 1_000_000  # units that one rendering may spend; a conversation of 1000 turns takes tens of thousands


class TooMuch(SecurityError):
    """A template would take too long, or make too long a text."""


class Budget(threading.local):
    """What is left to spend of one rendering, in each thread."""

    left = 0

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooMuch(f"it takes more than {WORK:,} steps")

    def fits(self, size: int) -> None:
        """Refuse a text or list of this many characters or entries, and count the making of it."""
        if size > MAX_TEXT:
            raise TooMuch(f"it would make a text of more than {MAX_TEXT >> 20} million characters")
        self.spend(1 + size // 1024)

    def weigh(self, value: Any) -> int:
        """Characters that a value has written out, about. Lists may share entries: each counts where it stands."""
        if isinstance(value, str):
            return len(value)
        total, todo = 0, [value]
        while todo:
            item = todo.pop()
            if isinstance(item, str | bytes):
                total += len(item) + 2
            elif isinstance(item, Mapping):
                todo += [*item.keys(), *item.values()]
                self.spend(1 + len(item) // 8)
            elif isinstance(item, list | tuple | set | frozenset):
                todo += item
                self.spend(1 + len(item) // 8)
            total += 2
            if total > MAX_TEXT or len(todo) > MAX_TEXT:
                raise TooMuch(f"it would make a value of more than {MAX_TEXT >> 20} million entries")
        return total
