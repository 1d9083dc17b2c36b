"""A request ledger: no finished reply is lost to a kill, and no call is made twice.

One row per finished request, keyed by the digest of (model, template, messages, sampling, seed, key), in the file of
`reply_store.py`. It wraps any engine and is one itself. A reply is stored when the engine reports it, not when its
batch ends. Scores of a local engine are stored block by block, all or none: what stands beside a request in a batch
moves the last digits of its score, so a run that was killed has to go on with the blocks that an undisturbed one has.
Errors are not kept: a failed request is asked again next time. Processes that share a file share the
work: what another one is computing is waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.generate.engine import (
    Done,
    Engine,
    Reply,
    ReportingEngine,
    Request,
    Score,
    ScoreRequest,
    StreamingEngine,
    Tick,
    prefix_key,
)
from aloe.generate.ledger_stream import POLL_S, LedgerStream
from aloe.generate.reply_store import ReplyStore

CHUNK = 16  # requests handed to an engine at once where it states no batch
CLAIMED = 32  # requests claimed at once for an engine that draws them one by one
SCORED = 128  # scores that a local engine computes and the ledger stores together: what a kill may lose
# Fields that requests and scores got later. While unset they leave keys and stored rows as they always were.
ADDED = ("schema", "at_most", "text")


class LedgerEngine:
    """`engine` with a memory at `path`. Counts of `hits` and `calls` say how much was remembered."""

    def __init__(self, engine: Engine, path: Path, precision: str = "") -> None:
        self.engine, self.precision = engine, precision
        self.name, self.model_digest, self.template_digest = engine.name, engine.model_digest, engine.template_digest
        self.hits = self.calls = 0
        self._chunk = int(getattr(engine, "max_batch", CHUNK))  # whole batches: a half-empty one costs the same
        self.store = ReplyStore(path)

    def close(self) -> None:
        """Close the file and, where it holds connections, the engine."""
        self.store.close()
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()

    def generate(self, requests: Sequence[Request], tick: Tick | None = None) -> list[Reply]:
        """Replies in order; only requests never answered before reach the engine."""
        # The engine batches best when it sees neighbours together, so chunks follow length order of the prompts.
        order = lambda i: (json.dumps(requests[i].messages)[:200], i)  # noqa: E731
        return _Call(self, requests, tick, _reply, self.engine.generate, self._chunk).run(order)

    def loglikelihood(self, requests: Sequence[ScoreRequest], tick: Tick | None = None) -> list[Score]:
        """Scores in order, remembered like replies."""
        call = _Call(self, requests, tick, _score, self.engine.loglikelihood, SCORED, whole=True)
        # The whole text orders them: requests that open alike stand side by side in a block.
        return call.run(lambda i: (prefix_key(requests[i]), i))

    def stream(self, feed: Iterable[tuple[int, Request | ScoreRequest]], done: Done, tick: Tick | None = None) -> None:
        """Answer what `feed` yields, `done` being told of every reply as soon as it is there.

        A streaming engine draws from the feed itself, so what it keeps from one request to the next (the prefix of a
        question's members) stays of use; another one is asked for all that is open, again and again.
        """
        if isinstance(self.engine, StreamingEngine):
            LedgerStream(self, feed, done, tick, self._restored).run(self.engine)
            return
        source = iter(feed)
        while open_ := list(source):
            written = [(i, request) for i, request in open_ if isinstance(request, Request)]
            for (i, _), reply in zip(written, self.generate([r for _, r in written], tick), strict=True):
                done(i, reply)
            scored = [(i, request) for i, request in open_ if isinstance(request, ScoreRequest)]
            for (i, _), score in zip(scored, self.loglikelihood([r for _, r in scored], tick), strict=True):
                done(i, score)

    def _restored(self, request: Request | ScoreRequest, value: str) -> Any:
        return (_reply if isinstance(request, Request) else _score)(value, request.key, self.store.path)

    def keep(self, *finished: tuple[str, Reply | Score]) -> None:
        """Store what the engine has just finished, by key, in one commit; an error is not kept, and its key is free."""
        self.calls += len(finished)
        kept = [(key, json.dumps(_set(asdict(result)))) for key, result in finished if result.error is None]
        if kept:
            self.store.put(kept)
        self.store.release([key for key, result in finished if result.error is not None])

    def key_of(self, request: Request | ScoreRequest) -> str:
        """The request's key in the file."""
        parts = asdict(request)
        if isinstance(request, Request) and request.sampling.temperature == 0:
            # A greedy reply depends on neither the seed nor what the request is called.
            parts.pop("seed")
            parts.pop("key")
        if isinstance(request, ScoreRequest):
            parts.pop("key")
        kind = type(request).__name__
        return digest_json([kind, self.model_digest, self.template_digest, self.precision, _set(parts)])


class _Call:
    """One call of the ledger: what is known, what is asked now, what another process is at."""

    def __init__(
        self,
        ledger: LedgerEngine,
        requests: Sequence[Any],
        tick: Tick | None,
        restore: Callable[[str, Any, Path], Any],
        ask: Callable[..., list[Any]],
        chunk: int,
        whole: bool = False,
    ) -> None:
        self.ledger, self.store, self.engine = ledger, ledger.store, ledger.engine
        self.requests, self.tick, self.restore, self.ask, self.chunk = requests, tick, restore, ask, chunk
        # A server answers each request by itself; only where requests share a computation are they kept together.
        self.whole = whole and (
            isinstance(self.engine, ReportingEngine) or not isinstance(self.engine, StreamingEngine)
        )
        self.keys = [ledger.key_of(r) for r in requests]
        self.results: dict[int, Any] = {}

    def run(self, order: Callable[[int], Any]) -> list[Any]:
        self._recall(range(len(self.keys)), self.store.get(self.keys))
        first = {self.keys[i]: i for i in reversed(range(len(self.keys))) if i not in self.results}
        # A request that stands there twice is asked once.
        twins = [i for i in range(len(self.keys)) if i not in self.results and first[self.keys[i]] != i]
        open_ = sorted(first.values(), key=order)
        try:
            while open_:
                streamed = isinstance(self.engine, StreamingEngine) and not self.whole
                open_ = self._stream(open_) if streamed else self._chunks(open_)
                if open_:  # another process is at these: soon they are finished, or it is dead, or it gave up
                    time.sleep(POLL_S)
        finally:
            self.store.release([self.keys[i] for i in first.values()])
        for i in twins:
            self.results[i] = replace(self.results[first[self.keys[i]]], key=self.requests[i].key)
        self._count(len(twins))
        return [self.results[i] for i in range(len(self.keys))]

    def _recall(self, indices: Sequence[int], known: dict[str, str]) -> None:
        """Results from stored values."""
        found = [i for i in indices if self.keys[i] in known]
        for i in found:
            self.results[i] = self.restore(known[self.keys[i]], self.requests[i].key, self.store.path)
        self._count(len(found))

    def _count(self, hits: int) -> None:
        self.ledger.hits += hits
        if self.tick and hits:
            self.tick(hits, 0)

    def _take(self, part: Sequence[int]) -> tuple[list[int], list[int]]:
        """(those of `part` to ask now, those another process is at); what was finished meanwhile is recalled."""
        mine, finished = self.store.take([self.keys[i] for i in part])
        self._recall(part, finished)
        rest = [i for i in part if self.keys[i] not in finished]
        return [i for i in rest if self.keys[i] in mine], [i for i in rest if self.keys[i] not in mine]

    def _keep(self, i: int, result: Any) -> None:
        self._keep_all([i], [result])

    def _keep_all(self, indices: Sequence[int], results: Sequence[Any]) -> None:
        self.results |= zip(indices, results, strict=True)
        self.ledger.keep(*((self.keys[i], result) for i, result in zip(indices, results, strict=True)))

    def _chunks(self, open_: Sequence[int]) -> list[int]:
        busy = []
        for start in range(0, len(open_), self.chunk):
            mine, theirs = self._take(open_[start : start + self.chunk])
            busy += theirs
            if not mine:
                continue
            asked = [self.requests[i] for i in mine]
            if isinstance(self.engine, ReportingEngine) and not self.whole:
                fresh = self.ask(asked, self.tick, done=lambda at, result, mine=mine: self._keep(mine[at], result))
            else:
                fresh = self.ask(asked, self.tick)
            left = [(i, result) for i, result in zip(mine, fresh, strict=True) if i not in self.results]
            self._keep_all([i for i, _ in left], [result for _, result in left])
        return busy

    def _stream(self, open_: Sequence[int]) -> list[int]:
        assert isinstance(self.engine, StreamingEngine)
        busy: list[int] = []

        def feed() -> Iterator[tuple[int, Any]]:
            # The whole text orders them here: a server's prefix cache holds more than one batch.
            line = sorted(open_, key=lambda i: (prefix_key(self.requests[i]), i))
            for start in range(0, len(line), CLAIMED):
                mine, theirs = self._take(line[start : start + CLAIMED])
                busy.extend(theirs)
                yield from ((i, self.requests[i]) for i in mine)

        self.engine.stream(feed(), self._keep, self.tick)
        return busy


def _set(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name not in ADDED or value}


def _reply(text: str, key: str, path: Path) -> Reply:
    return Reply(**{**_stored(text, path), "key": key})


def _score(text: str, key: str, path: Path) -> Score:
    stored = _stored(text, path)
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return Score(**{**fields, "key": key})


def _stored(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise AloeError(
            "the request ledger holds a reply that is no JSON",
            where=str(path),
            fix="move the file (and those of its name that end in -wal and -shm) away: replies are asked for again",
        )
    return value
