"""Shingles of a text, and the same shingles as 64-bit numbers for many texts at once.

`shingles` is the definition: word 5-grams, or character 5-grams of a text with fewer than five words. `hashed` gives
one number per shingle, computed by numpy over all texts of a chunk: equal shingles have equal numbers in every process
and on every machine, different ones differ but for a chance of about 2^-64 a pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from aloe.data.clean import words

T = TypeVar("T")
NGRAM_WORDS = 5
NGRAM_CHARS = 5

# Kinds of bytes; a token of `clean.words` is a run of one kind, except that every sign stands alone.
_LETTER, _DIGIT, _SIGN, _POINT = 1, 2, 3, 4
_KIND = np.zeros(256, dtype=np.uint8)
_KIND[ord("a") : ord("z") + 1] = _LETTER
_KIND[ord("0") : ord("9") + 1] = _DIGIT
_KIND[list(b"<>=+%|")] = _SIGN
_KIND[list(b".,")] = _POINT  # part of a number between two digits, else nothing

_BASE = 0x9E3779B97F4A7C15  # of the polynomial over a word's bytes; odd, so that it has an inverse modulo 2^64
_LENGTH = np.uint64(0xD6E8FEB86659FD93)
_PLACE = np.array(
    [0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x94D049BB133111EB, 0xBF58476D1CE4E5B9, 0xE7037ED1A0B428DB],
    dtype=np.uint64,
)  # one odd multiplier for each place in a word 5-gram


class Ragged(NamedTuple):
    """Rows of different lengths: row i is `values[offsets[i]:offsets[i + 1]]`. uint64 and int64."""

    values: np.ndarray
    offsets: np.ndarray


def shingles(text: str) -> frozenset[str]:
    """Word 5-grams of a text; character 5-grams when it has fewer than five words."""
    tokens = words(text)
    if len(tokens) >= NGRAM_WORDS:
        return frozenset(" ".join(tokens[i : i + NGRAM_WORDS]) for i in range(len(tokens) - NGRAM_WORDS + 1))
    joined = " ".join(tokens) or text
    return frozenset(joined[i : i + NGRAM_CHARS] for i in range(max(1, len(joined) - NGRAM_CHARS + 1)))


def jaccard(a: frozenset[T], b: frozenset[T]) -> float:
    """|a & b| / |a | b|; two empty sets are equal."""
    common = len(a & b)
    union = len(a) + len(b) - common
    return common / union if union else 1.0


def hashed(texts: Sequence[str]) -> Ragged:
    """One number per shingle of each text, in text order; a word 5-gram that a text repeats is repeated."""
    tokens = _word_hashes(texts)
    counts = np.diff(tokens.offsets)
    sizes = np.maximum(counts - NGRAM_WORDS + 1, 0)
    total = len(tokens.values) - NGRAM_WORDS + 1
    grams = np.zeros(max(total, 0), dtype=np.uint64)
    whole = np.ones(len(tokens.values), dtype=bool)  # whether the 5-gram that starts here ends in the same text
    for k in range(NGRAM_WORDS):
        grams += tokens.values[k : k + len(grams)] * _PLACE[k]
        if k:
            ends = tokens.offsets[1:] - k
            whole[ends[ends >= 0]] = False
    grams = mix(grams)[whole[: len(grams)]]
    short = np.flatnonzero(counts < NGRAM_WORDS)
    if len(short):
        by_letters = [_character_hashes(texts[i]) for i in short.tolist()]
        sizes[short] = [len(found) for found in by_letters]
        is_short = np.zeros(len(texts), dtype=bool)
        is_short[short] = True
        spread = np.repeat(is_short, sizes)
        values = np.empty(len(spread), dtype=np.uint64)
        values[~spread], values[spread] = grams, np.concatenate(by_letters)
        grams = values
    return Ragged(grams, np.concatenate(([0], np.cumsum(sizes))))


def mix(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of `x` (uint64): the finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _word_hashes(texts: Sequence[str]) -> Ragged:
    """One number per token of `clean.words`, found in the bytes of all texts at once.

    A word's number is the polynomial of its bytes at `_BASE` modulo 2^64, read off a running sum over the whole
    buffer, then mixed with its length. Other than plain ASCII is cut into words by `clean.words` first.
    """
    plain = [text.isascii() for text in texts]
    parts = [
        text.encode() if ascii_only else " ".join(words(text)).encode("utf-8", "surrogatepass")
        for text, ascii_only in zip(texts, plain, strict=True)
    ]
    data = np.frombuffer(b"\n" + b"\n".join(parts).lower() + b"\n", dtype=np.uint8)
    bounds = 1 + np.concatenate(([0], np.cumsum([len(part) + 1 for part in parts], dtype=np.int64)))
    kind = _KIND[data]
    points = np.flatnonzero(kind == _POINT)
    kind[points] = np.where((kind[points - 1] == _DIGIT) & (kind[points + 1] == _DIGIT), _DIGIT, 0)
    for i, ascii_only in enumerate(plain):
        if not ascii_only:
            span = slice(bounds[i], bounds[i + 1] - 1)
            kind[span] = data[span] != ord(" ")
    differs = kind[1:] != kind[:-1]
    alone = kind == _SIGN
    inside = kind != 0
    starts = np.flatnonzero(inside[1:] & (differs | alone[1:])) + 1
    ends = np.flatnonzero(inside[:-1] & (differs | alone[:-1])) + 1
    power, inverse = _powers(len(data))
    running = np.cumsum(data * power[: len(data)], dtype=np.uint64)
    value = (running[ends - 1] - running[starts - 1]) * inverse[starts]
    value = mix(value + (ends - starts).astype(np.uint64) * _LENGTH)
    return Ragged(value, np.searchsorted(starts, bounds))


_tables: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.uint64), np.empty(0, np.uint64))


def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """`_BASE` and its inverse modulo 2^64 to the powers 0 ... at least n - 1."""
    global _tables
    tables = _tables
    if len(tables[0]) < n:
        size = max(n, 1 << 16)
        steps = []
        for base in (_BASE, pow(_BASE, -1, 1 << 64)):
            factors = np.full(size, base, dtype=np.uint64)
            factors[0] = 1
            steps.append(np.multiply.accumulate(factors))
        tables = steps[0], steps[1]
        if size <= 1 << 24:  # one giant text must not leave its tables behind
            _tables = tables
    return tables


def _character_hashes(text: str) -> np.ndarray:
    """Numbers of the character 5-grams of a text of few words (which may be a long one), each once."""
    joined = " ".join(words(text)) or text
    found = dict.fromkeys(joined[i : i + NGRAM_CHARS] for i in range(max(1, len(joined) - NGRAM_CHARS + 1)))
    digests = b"".join(hashlib.blake2b(s.encode("utf-8", "surrogatepass"), digest_size=8).digest() for s in found)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
