"""A stream of requests through the ledger: what is stored is answered at once, the rest goes to the engine as it is
drawn. The feed may depend on the replies (a question's next members), so nothing is drawn ahead of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aloe.generate.engine import Done, Request, ScoreRequest, StreamingEngine, Tick

if TYPE_CHECKING:
    from aloe.generate.ledger import LedgerEngine

POLL_S = 0.2  # seconds between looks at what another process is computing
Numbered = tuple[int, Any]


class LedgerStream:
    """One call of `LedgerEngine.stream`: an iterator over the requests that the engine must answer itself.

    Like the feed, it may yield again after it was empty: a reply can open more.
    """

    def __init__(
        self,
        ledger: LedgerEngine,
        feed: Iterable[Numbered],
        done: Done,
        tick: Tick | None,
        restore: Callable[[Request | ScoreRequest, str], Any],
    ) -> None:
        self.ledger, self.store, self.feed = ledger, ledger.store, iter(feed)
        self.done, self.tick, self.restore = done, tick, restore
        self.flight: dict[str, list[Numbered]] = {}  # key under way here: twins that wait for the same reply
        self.keys: dict[int, str] = {}
        self.busy: list[Numbered] = []  # another process is at these
        self.again: list[Numbered] = []  # looked at before, to be looked at once more

    def run(self, engine: StreamingEngine) -> None:
        """Until the feed is empty and nothing is under way, here or elsewhere."""
        try:
            while True:
                engine.stream(self, self.keep, self.tick)
                if not self.busy:
                    return
                time.sleep(POLL_S)
                self.again, self.busy = self.busy, []
        finally:
            self.store.release(list(self.flight))

    def __iter__(self) -> Iterator[Numbered]:
        return self

    def __next__(self) -> Numbered:
        while True:
            number, request = self.again.pop(0) if self.again else next(self.feed)
            key = self.ledger.key_of(request)
            if key in self.flight:
                self.flight[key].append((number, request))
                continue
            mine, finished = self.store.take([key])
            if key in finished:
                self._recall(number, self.restore(request, finished[key]))
            elif key in mine:
                self.flight[key], self.keys[number] = [], key
                return number, request
            else:
                self.busy.append((number, request))

    def keep(self, number: int, result: Any) -> None:
        """Store a reply of the engine and hand it on, to those who asked the same as well."""
        key = self.keys.pop(number)
        self.ledger.keep((key, result))
        twins = self.flight.pop(key)
        self.done(number, result)
        for twin, request in twins:
            self._recall(twin, replace(result, key=request.key))

    def _recall(self, number: int, result: Any) -> None:
        self.ledger.hits += 1
        if self.tick:
            self.tick(1, 0)
        self.done(number, result)
