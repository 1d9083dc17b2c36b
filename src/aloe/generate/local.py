"""The local engine: a transformers model on this machine, batched, with every shared prefix computed once.

`writing.py` writes replies, `scoring.py` scores continuations; this is the engine they make together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from aloe.generate.engine import Done, Reply, Request, Score, ScoreRequest, Tick
from aloe.generate.ledger import SCORED
from aloe.generate.scoring import Scorer
from aloe.generate.writing import LocalUsage, Writer
from aloe.models.load import Loaded


class LocalEngine:
    """Engine over a loaded checkpoint.

    Args:
        loaded: model, tokenizer and template.
        name: what reports call it.
        model_digest: content digest of the weights.
        max_batch: replies written side by side.
        batch_tokens: tokens laid out in one forward pass for log-likelihoods; by device where not given.
        cache_bytes: bound on the keys and values held while writing; where not given 1 GiB on a CPU, half of what is
            free on a GPU.
    """

    reports = True

    def __init__(
        self,
        loaded: Loaded,
        name: str,
        model_digest: str,
        *,
        max_batch: int = 32,
        batch_tokens: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.loaded, self.name, self.model_digest = loaded, name, model_digest
        self.template_digest = loaded.template.digest
        window = getattr(loaded.model.config, "max_position_embeddings", None)
        self.context = int(window) if window else 1 << 30
        self.max_batch = max_batch
        self.writer = Writer(loaded, name, context=self.context, max_batch=max_batch, cache_bytes=cache_bytes)
        self.scorer = Scorer(loaded, name, context=self.context, batch_tokens=batch_tokens)

    def generate(self, requests: Sequence[Request], tick: Tick | None = None, done: Done | None = None) -> list[Reply]:
        """One reply per request, in order."""
        return self.writer.generate(requests, tick, done)

    def stream(self, feed: Iterable[tuple[int, Request | ScoreRequest]], done: Done, tick: Tick | None = None) -> None:
        """Answer what `feed` yields (requests of one kind), drawn ahead in a few batches."""
        source = iter(feed)
        first = next(source, None)
        if first is None:
            return
        if isinstance(first[1], Request):
            self.writer.stream(_Pushed(first, source), done, tick)
            return
        while first is not None:
            self._score_block([first, *islice(source, SCORED - 1)], done, tick)
            first = next(source, None)

    def _score_block(self, block: Sequence[tuple[int, Any]], done: Done, tick: Tick | None) -> None:
        self.loglikelihood([request for _, request in block], tick, lambda at, score: done(block[at][0], score))

    @property
    def usage(self) -> LocalUsage:
        """What writing replies has computed so far."""
        return self.writer.usage

    def loglikelihood(
        self, requests: Sequence[ScoreRequest], tick: Tick | None = None, done: Done | None = None
    ) -> list[Score]:
        """Scores, in order of the requests."""
        return self.scorer.loglikelihood(requests, tick, done)


class _Pushed:
    """An iterator with one item put back in front; unlike a generator it may yield again after it was empty."""

    def __init__(self, first: Any, rest: Iterator[Any]) -> None:
        self._first, self._rest = [first], rest

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._first.pop() if self._first else next(self._rest)


def make_engine(loaded: Loaded, name: str, model_digest: str, **options: Any) -> LocalEngine:
    """A local engine; the seam where another backend is chosen."""
    return LocalEngine(loaded, name, model_digest, **options)
