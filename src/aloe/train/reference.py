"""The reference model's log-probabilities, computed once and kept.

A cache file holds one shard of pairs and is named after what its numbers depend on and nothing else: the reference's
weights, the shard's token ids and the precision. So sweeps of learning rate, beta or loss reuse it, and an
interrupted run goes on at the shard it was in. A sentinel (the shard's first pair, computed again) guards against a
file that belongs to other numbers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from aloe.digests import digest_json
from aloe.train.logprobs import row_logprobs, sequence_sums
from aloe.train.packing import Example, pack

Floats = npt.NDArray[np.float64]
Advance = Callable[[int], None]
Compute = Callable[[Sequence[Example], Advance], Floats]
SHARD = 128  # pairs in a file: what a killed run may lose
VERSION = 1  # bump when the numbers in a file change meaning
# Another packing or machine rounds otherwise; a wrong model or a wrong pair is off by whole nats.
TOLERANCE = {"float32": 1e-5, "bf16_autocast": 2e-2}


def pair_logprobs(
    model: Any, pairs: Sequence[Example], advance: Advance = lambda pairs: None, *, precision: str, width: int
) -> Floats:
    """Summed log-probabilities [pairs, 2] (chosen, rejected), in nats; no gradients. `advance` is told pairs done."""
    found = np.full((len(pairs), 2), np.nan)
    with torch.no_grad():
        for row in pack(pairs, range(len(pairs)), width, pad_id=0, multiple=8 if model.device.type == "cuda" else 1):
            sums = sequence_sums(row, row_logprobs(model, row, bf16=precision == "bf16_autocast"))
            found[row.members] = sums.view(-1, 2).cpu().numpy()
            advance(len(row.members))
    return found


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
) -> tuple[Floats, int]:
    """Log-probabilities [pairs, 2] of the reference with weight digest `weights`, and how many came from the cache.

    Args:
        compute: gives [n, 2] for n pairs; called for the sentinels and for what is missing.
        advance: told how many pairs are done.
        log: told when a file is refused.
    """
    folder = cache / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    found, reused = [], 0
    for start in range(0, len(pairs), SHARD):
        shard = pairs[start : start + SHARD]
        path = folder / f"{shard_key(weights, shard, precision)}.safetensors"
        values = _read(path, shard, precision, compute, log)
        if values is None:
            values = compute(shard, advance)
            _write(path, values)
        else:
            reused += len(shard)
            advance(len(shard))
        found.append(values)
    return np.concatenate(found), reused


def _read(
    path: Path,
    shard: Sequence[Example],
    precision: str,
    compute: Compute,
    log: Callable[[str], None],
) -> Floats | None:
    """The file's values; None if there is no file, it is damaged, or its sentinel is not what the model gives now."""
    if not path.exists():
        return None
    try:
        values: Floats = load_file(path)["logprobs"]
    except (SafetensorError, KeyError, OSError) as cause:
        log(f"reference cache {path.name} can't be read ({type(cause).__name__}); computing it again")
        return None
    sentinel = compute(shard[:1], lambda pairs: None)
    fits = values.shape == (len(shard), 2) and bool(np.isfinite(values).all())
    if fits and np.allclose(values[:1], sentinel, rtol=TOLERANCE[precision], atol=1e-3):
        return values
    log(f"reference cache {path.name} doesn't hold what the reference gives now; computing it again")
    return None


def _write(path: Path, values: Floats) -> None:
    """Write aside and rename, so that a reader never meets half a file."""
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    os.close(handle)
    try:
        save_file({"logprobs": np.ascontiguousarray(values)}, aside)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)
