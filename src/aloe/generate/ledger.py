"""A request ledger: no finished reply is lost to a kill, and no call is made twice.

SQLite, one row per finished request, keyed by the digest of (model, template, messages, sampling, seed, key). It
wraps any engine and is one itself. Errors are not kept: a failed request is asked again next time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from aloe.digests import digest_json
from aloe.generate.engine import Engine, Reply, Request, Score, ScoreRequest, Tick

CHUNK = 16  # replies asked for and written at once where the engine states no batch: what a kill can cost at most


class LedgerEngine:
    """`engine` with a memory at `path`. Counts of `hits` and `calls` say how much was remembered."""

    def __init__(self, engine: Engine, path: Path, precision: str = "") -> None:
        self.engine, self.precision = engine, precision
        self.name, self.model_digest, self.template_digest = engine.name, engine.model_digest, engine.template_digest
        self.hits = self.calls = 0
        self._chunk = int(getattr(engine, "max_batch", CHUNK))  # whole batches: a half-empty one costs the same
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def close(self) -> None:
        """Close the database file."""
        self._db.close()

    def _key(self, request: Request | ScoreRequest) -> str:
        parts = asdict(request)
        if isinstance(request, Request) and request.sampling.temperature == 0:
            # A greedy reply depends on neither the seed nor what the request is called.
            parts.pop("seed")
            parts.pop("key")
        if isinstance(request, ScoreRequest):
            parts.pop("key")
        kind = type(request).__name__
        return digest_json([kind, self.model_digest, self.template_digest, self.precision, parts])

    def _get(self, keys: Sequence[str]) -> dict[str, dict[str, object]]:
        found = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            for key, value in self._db.execute(f"SELECT key, value FROM replies WHERE key IN ({marks})", part):
                found[key] = json.loads(value)
        return found

    def _put(self, rows: list[tuple[str, str]]) -> None:
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)

    def generate(self, requests: Sequence[Request], tick: Tick | None = None) -> list[Reply]:
        """Replies in order; only requests never answered before reach the engine."""
        keys = [self._key(r) for r in requests]
        known = self._get(keys)
        replies = {
            i: replace(Reply(**known[k]), key=r.key)  # type: ignore[arg-type]
            for i, (k, r) in enumerate(zip(keys, requests, strict=True))
            if k in known
        }
        open_ = [i for i in range(len(requests)) if i not in replies]
        self.hits, self.calls = self.hits + len(replies), self.calls + len(open_)
        if tick and replies:
            tick(len(replies), 0)
        # The engine batches best when it sees neighbours together, so chunks follow length order of the prompts.
        open_.sort(key=lambda i: (json.dumps(requests[i].messages)[:200], i))
        for start in range(0, len(open_), self._chunk):
            part = open_[start : start + self._chunk]
            fresh = self.engine.generate([requests[i] for i in part], tick)
            replies.update(zip(part, fresh, strict=True))
            self._put([(keys[i], json.dumps(asdict(r))) for i, r in zip(part, fresh, strict=True) if r.error is None])
        return [replies[i] for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[ScoreRequest], tick: Tick | None = None) -> list[Score]:
        """Scores in order, remembered like replies."""
        keys = [self._key(r) for r in requests]
        known = self._get(keys)
        scores = {i: _score(known[k], r.key) for i, (k, r) in enumerate(zip(keys, requests, strict=True)) if k in known}
        open_ = [i for i in range(len(requests)) if i not in scores]
        self.hits, self.calls = self.hits + len(scores), self.calls + len(open_)
        if tick and scores:
            tick(len(scores), 0)
        for start in range(0, len(open_), CHUNK * 4):
            part = open_[start : start + CHUNK * 4]
            fresh = self.engine.loglikelihood([requests[i] for i in part], tick)
            scores.update(zip(part, fresh, strict=True))
            self._put([(keys[i], json.dumps(asdict(s))) for i, s in zip(part, fresh, strict=True) if s.error is None])
        return [scores[i] for i in range(len(requests))]


def _score(value: dict[str, object], key: str) -> Score:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Score(**{**fields, "key": key})  # type: ignore[arg-type]
