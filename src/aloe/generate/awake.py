"""A monotonic clock that stands still while this process does: stopped by its user, or asleep with the laptop.

Patience is counted in seconds in which a server could have answered. Without this, a process that slept for an hour
would wake, find that nothing was answered for an hour, and give up on a server that is well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK = 1.0  # seconds between looks
LONGEST = 10.0  # seconds without a look that a busy machine may cause; more is sleep


class AwakeClock:
    """Seconds awake. Call it, and let `keep` run on the event loop so that it is looked at.

    Args:
        now: the clock behind it, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last, self._slept = now, now(), 0.0

    def __call__(self) -> float:
        now = self._now()
        if now - self._last > LONGEST:
            self._slept += now - self._last
        self._last = now
        return now - self._slept

    async def keep(self) -> None:
        """Look at the clock for as long as the loop runs."""
        while True:
            self()
            await asyncio.sleep(TICK)
