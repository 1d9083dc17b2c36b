"""Which endpoint a request goes to, and how many each may hold: least-loaded routing with adaptive windows.

A window opens by doubling, then by one a round, while it is full and answers come; a refusal (429, 503) or a timeout
halves it, once for all requests that were under way together (additive increase, multiplicative decrease: Chiu & Jain
1989; slow start: Jacobson 1988). An endpoint that can't be reached is taken out and probed until it answers. Times
are seconds of a monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aloe.errors import AloeError

FIRST_WINDOW = 4
STRIKES = 3  # lost connections or timeouts in a row, without an answer between, that take an endpoint out
LONGEST_PAUSE = 20.0  # seconds between refusals without a Retry-After
PROBES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds between probes of an endpoint that is out; the last repeats

Clock = Callable[[], float]
Probe = Callable[[str], Awaitable[str | None]]  # None: it answers; else why not


@dataclass
class Endpoint:
    """One address and what was learnt about it. `window` is how many requests it may hold now, at most `most`."""

    url: str
    most: int
    window: float = FIRST_WINDOW
    in_flight: int = 0
    doubling: bool = True
    cut_at: float = -math.inf
    free_at: float = -math.inf
    refusals: int = 0
    strikes: int = 0
    out: bool = False
    cause: str = ""
    answered: int = 0

    def __post_init__(self) -> None:
        self.window = min(self.window, self.most)

    def open(self, now: float) -> bool:
        """Whether it may take one more request now."""
        return not self.out and now >= self.free_at and self.in_flight < int(self.window)

    def succeed(self) -> None:
        """An answer came. The window grows only while it is full: an idle one says nothing about what would fit."""
        full = self.in_flight >= int(self.window)
        self.answered += 1
        self.strikes = self.refusals = 0
        if full:
            self.window = min(self.most, self.window + (1 if self.doubling else 1 / self.window))

    def cut(self, started: float, now: float) -> bool:
        """Halve the window, once for all requests that started before the last cut; says whether it did."""
        if started < self.cut_at:
            return False
        self.window, self.doubling, self.cut_at = max(1.0, self.window / 2), False, now
        return True

    def refuse(self, started: float, now: float, wait: float | None, backoff: float) -> None:
        """It said "not now" (429, 503): fewer at a time, and none before `wait` seconds (else growing pauses)."""
        if self.cut(started, now):
            self.refusals += 1
        if wait is None:
            wait = min(LONGEST_PAUSE, backoff * 2 ** min(self.refusals - 1, 10)) * random.uniform(0.75, 1.25)
        self.free_at = max(self.free_at, now + wait)


class Router:
    """Hands out places at endpoints, first come first served, each at the least loaded one.

    Args:
        urls: base addresses.
        most: requests an endpoint may ever hold at once.
        give_up_s: seconds without any reachable endpoint after which waiting becomes an error.
        backoff: first pause after a refusal that names none.
        probe: asks an endpoint that is out whether it is back.
    """

    def __init__(
        self, urls: list[str], most: int, give_up_s: float, backoff: float, probe: Probe, clock: Clock
    ) -> None:
        self.endpoints = [Endpoint(url, most) for url in urls]
        self.give_up_s, self.backoff, self.probe, self.clock = give_up_s, backoff, probe, clock
        self.last_answer = clock()
        self._dark_since: float | None = None
        self._turn = asyncio.Lock()  # fair: waiters are served in the order they came
        self._changed = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()

    @property
    def capacity(self) -> int:
        """Requests that all endpoints in service may hold now."""
        return sum(int(e.window) for e in self.endpoints if not e.out)

    def begin(self) -> None:
        """Work starts again after a time without any: that time says nothing about the endpoints."""
        self.last_answer = self.clock()
        self._dark_since = None if self._dark_since is None else self.last_answer

    async def acquire(self) -> Endpoint:
        """A place at the least loaded endpoint, when there is one.

        Raises:
            AloeError: every endpoint has been out of reach, or asks to be left alone, for longer than `give_up_s`.
        """
        async with self._turn:
            while True:
                now = self.clock()
                free = [e for e in self.endpoints if e.open(now)]
                if free:
                    chosen = min(free, key=lambda e: (e.in_flight / e.window, e.answered))
                    chosen.in_flight += 1
                    return chosen
                self._refuse_darkness(now)
                self._changed.clear()
                pauses = [e.free_at - now for e in self.endpoints if not e.out and e.free_at > now]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min([0.5, *pauses]))

    def release(self, endpoint: Endpoint) -> None:
        """Give a place back."""
        endpoint.in_flight -= 1
        self._changed.set()

    def succeed(self, endpoint: Endpoint) -> None:
        """An answer came from it (called while its place is still held)."""
        endpoint.succeed()
        self.last_answer = self.clock()

    def strike(self, endpoint: Endpoint, started: float, cause: str) -> None:
        """A timeout or a lost connection: fewer at a time, and out after `STRIKES` in a row."""
        endpoint.cut(started, self.clock())
        endpoint.strikes += 1
        if endpoint.strikes >= STRIKES:
            self.take_out(endpoint, cause)

    def take_out(self, endpoint: Endpoint, cause: str) -> None:
        """Send it nothing until a probe is answered."""
        endpoint.cause = cause
        if endpoint.out:
            return
        endpoint.out = True
        if all(e.out for e in self.endpoints):
            self._dark_since = self.clock()
        task = asyncio.get_running_loop().create_task(self._watch(endpoint))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def close(self) -> None:
        """End the probes."""
        for task in list(self._probes):
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)

    async def _watch(self, endpoint: Endpoint) -> None:
        count = 0
        while True:
            await asyncio.sleep(PROBES[min(count, len(PROBES) - 1)])
            count += 1
            cause = await self.probe(endpoint.url)
            if cause is None:
                break
            endpoint.cause = cause
        # Back with one request at a time: what broke it may have been us.
        endpoint.out, endpoint.strikes, endpoint.window, endpoint.doubling = False, 0, 1.0, True
        self._dark_since = None
        self._changed.set()

    def _refuse_darkness(self, now: float) -> None:
        if self._dark_since is not None and now - self._dark_since > self.give_up_s:
            causes = "; ".join(f"{e.url}: {e.cause}" for e in self.endpoints)
            raise AloeError(
                f"no endpoint could be reached for {self.give_up_s:g} s ({causes})",
                where=self.endpoints[0].url,
                fix="start the server or correct its address, then run the same command: finished replies are kept",
            )
        waits = [e.free_at - now for e in self.endpoints if not e.out]
        if waits and min(waits) > self.give_up_s:
            raise AloeError(
                f"the server asks to wait {min(waits):.0f} s (Retry-After)",
                where=self.endpoints[0].url,
                fix="run the same command later: finished replies are kept; or raise give_up_s",
            )
