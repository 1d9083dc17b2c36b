"""Randomness by key, not by sequence.

A stream is named by (seed, purpose, item). The draw for an item is therefore the same whatever the batch size,
worker count, order of work or resume point, which a shared sequential generator can't promise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def key64(seed: int, purpose: str, item: str | int = "") -> int:
    """A 63-bit integer key for (seed, purpose, item); usable as a torch seed."""
    text = f"{seed}\x1f{purpose}\x1f{item}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def rng(seed: int, purpose: str, item: str | int = "") -> np.random.Generator:
    """A numpy generator (Philox4x64) for this key alone."""
    text = f"{seed}\x1f{purpose}\x1f{item}".encode()
    words = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def shuffled(rows: Sequence[T], seed: int, purpose: str, ids: Sequence[str]) -> list[T]:
    """`rows` in an order that depends on (seed, purpose) and each row's id only, not on the order they came in."""
    order = sorted(range(len(rows)), key=lambda i: (key64(seed, purpose, ids[i]), ids[i]))
    return [rows[i] for i in order]
