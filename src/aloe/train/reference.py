"""The reference model's log-probabilities, computed once and kept.

A cache file holds one shard of pairs and is named after what its numbers depend on and nothing else: the reference's
weights, the shard's token ids (as they are after truncation) and the precision. So sweeps of learning rate, beta or
loss reuse it, and an interrupted run goes on at the shard it was in. Sentinels (each shard's first pair, computed
again) guard against a file that belongs to other numbers.

Several processes do it together, the same way whatever holds the model: rows are dealt out as in training, every
process makes the same number of passes, and all get all values. Shards are packed one by one, so that a value doesn't
depend on the number of processes or on what was in the cache. Only rank 0 reads and writes files.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.train.logprobs import row_logprobs, sequence_sums
from aloe.train.packing import Example, PackedRow, pack

Floats = npt.NDArray[np.float64]
Logprobs = Callable[[PackedRow], torch.Tensor]
Advance = Callable[[int], None]
Compute = Callable[[Sequence[Example], Advance], Floats]
T = TypeVar("T")
SHARD = 128  # pairs in a file: what a killed run may lose, for each process
STALE = 3600.0  # seconds after which a half-written file is nobody's any more
VERSION = 1  # bump when the numbers in a file change meaning
# Another packing or machine rounds otherwise; a wrong model or a wrong pair is off by whole nats.
TOLERANCE = {"float32": 1e-5, "bf16_autocast": 2e-2, "bf16_stochastic": 2e-2}


class Team(Protocol):
    """What is asked of the processes of a run (`parallel.Team`)."""

    rank: int
    world: int

    def share(self, rows: Sequence[PackedRow]) -> list[tuple[PackedRow, float]]: ...

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]: ...

    def broadcast(self, value: T) -> T: ...


class Alone:
    """A team of one process."""

    rank, world = 0, 1

    def share(self, rows: Sequence[PackedRow]) -> list[tuple[PackedRow, float]]:
        """All rows."""
        return [(row, 1.0) for row in rows]

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What is there already."""
        return values

    def broadcast(self, value: T) -> T:
        """The same value."""
        return value


def pair_logprobs(
    policy: Any,
    pairs: Sequence[Example],
    advance: Advance = lambda pairs: None,
    *,
    width: int,
    precision: str = "float32",
    multiple: int = 1,
    team: Team | None = None,
    off: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Floats:
    """Summed log-probabilities [pairs, 2] (chosen, rejected) in nats, for every process; no gradients.

    All processes call it with the same pairs.

    Args:
        policy: gives a packed row's log-probabilities [scored] (the trainer's `Policy`); or a transformers causal LM,
            which is then run in `precision`.
        advance: told pairs done.
        width: tokens in a packed row.
        multiple: rows are rounded up to that many positions.
        off: entered around the passes; a LoRA run's reference is its model with the adapters off.
    """
    team = team or Alone()
    logprobs = _logprobs(policy, precision)
    if hasattr(policy, "get_output_embeddings") and policy.device.type == "cuda":
        multiple = 8
    found = np.full((len(pairs), 2), np.nan)
    with torch.no_grad(), off():
        for start in range(0, len(pairs), SHARD * team.world):
            rows: list[tuple[int, PackedRow]] = []  # with the number of its shard's first pair
            for first in range(start, min(start + SHARD * team.world, len(pairs)), SHARD):
                shard = pairs[first : first + SHARD]
                rows += [(first, row) for row in pack(shard, range(len(shard)), width, 0, multiple)]
            place = {id(row): first for first, row in rows}
            values = [np.empty((0, 3))]
            for row, factor in team.share([row for _, row in rows]):
                sums = sequence_sums(row, logprobs(row)).view(-1, 2).cpu().numpy()
                if factor:
                    numbers = place[id(row)] + np.array(row.members, dtype=np.float64)
                    values.append(np.column_stack([numbers, sums]))
                    advance(len(row.members) if team.world == 1 else 0)
            complete = team.gather(np.concatenate(values))
            found[complete[:, 0].astype(np.int64)] = complete[:, 1:]
            advance(len(complete) if team.world > 1 else 0)
    return found


def _logprobs(policy: Any, precision: str) -> Logprobs:
    if not hasattr(policy, "get_output_embeddings"):
        return policy  # type: ignore[no-any-return]
    return lambda row: row_logprobs(policy, row, bf16=precision == "bf16_autocast")


def shard_key(weights: str, pairs: Sequence[Example], precision: str) -> str:
    """Digest of the reference's weights, the pairs' token ids with their boundaries, and the precision."""
    state = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        for tokens in (pair.tree.prefix, *pair.tree.branches):
            state.update(len(tokens).to_bytes(8, "big") + np.asarray(tokens, dtype="<i8").tobytes())
    return digest_json({"version": VERSION, "weights": weights, "pairs": state.hexdigest(), "precision": precision})


def cached_logprobs(
    cache: Path,
    weights: str,
    pairs: Sequence[Example],
    precision: str,
    compute: Compute,
    *,
    advance: Advance,
    log: Callable[[str], None],
    team: Team | None = None,
) -> tuple[Floats, int]:
    """Log-probabilities [pairs, 2] of the reference with weight digest `weights`, and how many came from the cache.

    Args:
        compute: gives [n, 2] for n pairs, on every process (`pair_logprobs`); called for the sentinels and for what
            is missing, by all processes at once.
        advance: told how many pairs are done.
        log: told when a file is refused.

    Raises:
        AloeError: the reference gives NaN or an infinity; the pairs are named.
    """
    team = team or Alone()
    store = _Store(cache / "reference", weights, precision, log) if team.rank == 0 else None
    shards = [slice(at, at + SHARD) for at in range(0, len(pairs), SHARD)]
    stored = team.broadcast([store.read(pairs[shard]) for shard in shards] if store else [])
    found = {k: values for k, values in enumerate(stored) if values is not None}
    if found:
        sentinels = compute([pairs[shards[k].start] for k in found], lambda pairs: None)
        for k, sentinel in zip(list(found), sentinels, strict=True):
            if np.allclose(found[k][0], sentinel, rtol=TOLERANCE[precision], atol=1e-3):
                advance(len(found[k]))
                continue
            del found[k]
            if store:
                store.refuse(pairs[shards[k]], "doesn't hold what the reference gives now")
    reused = sum(map(len, found.values()))
    missing = [k for k in range(len(shards)) if k not in found]
    for first in range(0, len(missing), team.world):
        group = missing[first : first + team.world]
        members = [pair for k in group for pair in pairs[shards[k]]]
        values = compute(members, advance)
        _check_finite(values, members)
        ends = np.cumsum([len(pairs[shards[k]]) for k in group])[:-1]
        for k, part in zip(group, np.split(values, ends), strict=True):
            found[k] = part
            if store:
                store.write(pairs[shards[k]], part)
    return np.concatenate([found[k] for k in range(len(shards))]), reused


def _check_finite(values: Floats, pairs: Sequence[Example]) -> None:
    bad = [pairs[i].key for i in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()]
    if bad:
        raise AloeError(
            f"the reference gives NaN or infinite log-probabilities for {len(bad)} pairs, {', '.join(bad[:8])}",
            where="reference",
            fix="look at the model with which this stage starts: the step that made it has diverged",
        )


class _Store:
    """The folder of shards, as rank 0 sees it."""

    def __init__(self, folder: Path, weights: str, precision: str, log: Callable[[str], None]) -> None:
        self._folder, self._weights, self._precision, self._log = folder, weights, precision, log
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.partial"):  # by a killed run: its process is in the name
            owner = left.name.partition("-")[0]
            try:
                abandoned = owner.isdigit() and not psutil.pid_exists(int(owner))
                if abandoned or time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
            except FileNotFoundError:
                pass

    def _path(self, shard: Sequence[Example]) -> Path:
        return self._folder / f"{shard_key(self._weights, shard, self._precision)}.safetensors"

    def read(self, shard: Sequence[Example]) -> Floats | None:
        """The file's values [pairs, 2]; None if there is no file or it is damaged."""
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            values: Floats = load_file(path)["logprobs"]
        except (SafetensorError, KeyError, OSError) as cause:
            self.refuse(shard, f"can't be read ({type(cause).__name__})")
            return None
        if values.shape != (len(shard), 2) or not np.isfinite(values).all():
            self.refuse(shard, "doesn't hold two numbers for each pair")
            return None
        return values

    def refuse(self, shard: Sequence[Example], why: str) -> None:
        """Say that this shard's file won't be used."""
        self._log(f"reference cache {self._path(shard).name} {why}; computing it again")

    def write(self, shard: Sequence[Example], values: Floats) -> None:
        """Write aside and rename, so that a reader never meets half a file."""
        handle, aside = tempfile.mkstemp(dir=self._folder, prefix=f"{os.getpid()}-", suffix=".partial")
        os.close(handle)
        try:
            save_file({"logprobs": np.ascontiguousarray(values)}, aside)
            with open(aside, "rb") as written:
                os.fsync(written.fileno())
            os.replace(aside, self._path(shard))
        finally:
            Path(aside).unlink(missing_ok=True)
