"""Which training rows share words with which benchmark items? The lexical index behind decontamination.

One index holds the items of all benchmarks, and one pass over the training rows searches it. A pair is a candidate by
`exact_stem` (equal normalised stems), by `ngram` (a shared word n-gram, n = 13, down to 8 for short stems, Brown et
al. 2020, arXiv 2005.14165, appendix C), or by `words`: the row holds half of the item's content, counted by the
inverse document frequency of its words. The last finds reworded copies, whose n-grams are all broken; prefix filtering
(Bayardo et al. 2007, "Scaling up all pairs similarity search") keeps it exact without comparing all pairs.

Candidates only: `decontaminate.py` decides which of them are hits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import sparse

MAX_N, MIN_N = 13, 8
BOILERPLATE = 32  # items: an n-gram that more of them share says nothing about one of them
HELD = 0.5  # share of an item's content (idf of stem + answer) that makes a row a candidate by `words`
HELD_IN_TEXT = 0.7  # share of the stem's content that free text must hold besides: all its words are counted
REST = 0.3  # share of an item's content left to its common words, which are not searched by
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd multiplier of the rolling hash, modulo 2^64
TIERS = ("words", "ngram", "exact_stem")  # weakest evidence first

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

# Function words and the frame of an exam question: no part of what is asked. Negations stay (they turn a question).
FRAME = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can could did do does for from had has have he her him his how i if in into "
        "is it its itself may me might must my of on or our she should so some such than that the their them then "
        "there these they this those to was we were what when where which who whom whose why will with would you your "
        "about after also among any being both during each either here more most only other over same very one all "
        "following likely true correct best statement statements option options answer question patient",
    )
)
_UNITS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
NUMBERS = {w: str(n) for n, w in enumerate(_UNITS)} | {w: str(n) for n, w in zip(range(20, 100, 10), _TENS)}
_ENDING = re.compile(r"(?:ations?|ions?|ing|ied|ies|ed|es|ly|al|y|e|(?<!s)s)$")


@dataclass(frozen=True)
class Item:
    """A training row or benchmark item as decontamination sees it, in normalised text.

    `question` is stem + sorted options; `options` is empty and `gold` "" for free text; `text` is all the row says.
    """

    id: str
    source: str
    stem: str
    question: str
    text: str
    options: tuple[str, ...] = ()
    gold: str = ""


@lru_cache(maxsize=1 << 17)
def fold(word: str) -> str:
    """A word without what rewording changes first: number words become digits, British and American spelling meet,
    endings go (a light stemmer: at least four letters stay)."""
    if word in NUMBERS:
        return NUMBERS[word]
    if len(word) < 5 or not word.isalpha():
        return word
    word = word.replace("ae", "e").replace("oe", "e")
    short = _ENDING.sub("", word)
    return short if len(short) >= 4 else word


def content(text: str) -> list[str]:
    """Folded content words of normalised text, in order."""
    return [fold(w) for w in text.split() if w not in FRAME]


def ngram_size(length: int) -> int:
    """n for a stem of `length` words: half of them within 8..13, so that changing one word anywhere leaves an n-gram
    of a stem of 17 to 27 words intact."""
    return min(MAX_N, max(MIN_N, length // 2))


@dataclass(frozen=True)
class Candidates:
    """Pairs of a chunk, sorted by (row, item): indices, index into `TIERS`."""

    rows: Ints
    items: Ints
    tiers: Ints


class Index:
    """The items of all benchmarks. `weights[fold]` is the idf of a folded word over the items; a word that no item
    has weighs `unknown`."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self._stems: dict[str, list[int]] = {}
        for j, other in enumerate(items):
            if other.stem:
                self._stems.setdefault(other.stem, []).append(j)
        self._grams = _NgramTables(items)
        self._words = _WordTable(items)
        self.weights: Mapping[str, float] = self._words.weights
        self.unknown = self._words.unknown

    def search(self, rows: Sequence[Item]) -> Candidates:
        """Candidates of a chunk of rows; row numbers count from the start of the chunk."""
        text = _Chunk(rows)
        found = [(self._exact(rows), 2), (self._grams.search(text), 1), (self._words.search(text), 0)]
        size = max(1, len(self.items))
        keys = np.concatenate([pairs[:, 0] * size + pairs[:, 1] for pairs, _ in found])
        tiers = np.concatenate([np.full(len(pairs), tier, dtype=np.int64) for pairs, tier in found])
        order = np.lexsort((-tiers, keys))
        keys, tiers = keys[order], tiers[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        keys, tiers = keys[first], tiers[first]
        return Candidates(keys // size, keys % size, tiers)

    def _exact(self, rows: Sequence[Item]) -> Ints:
        return _pairs((i, j) for i, row in enumerate(rows) for j in self._stems.get(row.stem, ()))


def _pairs(found: Iterable[tuple[int, int]]) -> Ints:
    return np.array(list(found), dtype=np.int64).reshape(-1, 2)


class _Chunk:
    """Words of a chunk of rows as numbers: `ids` (local to the chunk, a 0 after each row) and each word's row."""

    def __init__(self, rows: Sequence[Item]) -> None:
        local: dict[str, int] = {"": 0}
        ids: list[int] = []
        ends = np.zeros(len(rows), dtype=np.int64)
        for i, row in enumerate(rows):
            ids += [local.setdefault(w, len(local)) for w in row.text.split()]
            ids.append(0)
            ends[i] = len(ids)
        self.ids = np.array(ids, dtype=np.int64)
        self.row_of = np.repeat(np.arange(len(rows)), np.diff(ends, prepend=0))
        self.words, self.size = list(local), len(rows)
        self.asks = np.array([bool(row.options) for row in rows], dtype=bool)


# ---------------------------------------------------------------------------------------------- n-grams


class _NgramTables:
    """Per n: sorted hashes of the items' n-grams and the items that hold each. A hash collision (64 bits) makes a
    false candidate, which confirmation then refuses."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._vocabulary: dict[str, int] = {}
        grouped: dict[int, tuple[list[int], list[Ints]]] = {}
        for j, other in enumerate(items):
            tokens = [self._vocabulary.setdefault(w, len(self._vocabulary) + 1) for w in _probe(other)]
            owners, texts = grouped.setdefault(ngram_size(len(tokens)), ([], []))
            owners.append(j)
            texts.append(np.array(tokens, dtype=np.int64))
        draws = np.random.Generator(np.random.Philox(key=0))
        self._values = draws.integers(1, 2**63, len(self._vocabulary) + 1, dtype=np.uint64)
        self._tables = {n: self._table(n, *group) for n, group in grouped.items()}

    def _table(self, n: int, owners: list[int], texts: list[Ints]) -> tuple[Hashes, Ints, Ints, npt.NDArray[np.bool_]]:
        hashes = [roll(self._values[t], n) for t in texts]
        keys = np.concatenate(hashes)
        held = np.repeat(np.array(owners, dtype=np.int64), [len(h) for h in hashes])
        pairs = np.unique(np.stack([keys, held.astype(np.uint64)], axis=1), axis=0)
        keys, starts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        keep = counts <= BOILERPLATE
        rows = [pairs[s : s + c, 1] for s, c in zip(starts[keep].tolist(), counts[keep].tolist())]
        keys, counts = keys[keep], counts[keep]
        flat = np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, np.int64)
        bits = max(12, (len(keys) * 16).bit_length())
        seen = np.zeros(1 << bits, dtype=bool)
        seen[(keys >> np.uint64(64 - bits)).astype(np.int64)] = True
        return keys, np.concatenate([[0], np.cumsum(counts)]), flat, seen

    def search(self, text: _Chunk) -> Ints:
        """(row, item) of every shared n-gram, with repeats."""
        known = np.array([self._vocabulary.get(w, 0) for w in text.words], dtype=np.int64)
        values = self._values[known[text.ids]]
        values[known[text.ids] == 0] = 0
        found: list[Ints] = []
        rolling = values.copy()
        for n in range(1, MAX_N + 1):
            if n > 1:
                rolling = rolling[:-1] * _BASE + values[n - 1 :]
            if n in self._tables and len(rolling):
                found.append(self._matches(self._tables[n], rolling, text.row_of))
        return np.concatenate(found) if found else _pairs(())

    def _matches(self, table: tuple[Hashes, Ints, Ints, npt.NDArray[np.bool_]], rolling: Hashes, row_of: Ints) -> Ints:
        keys, starts, items, seen = table
        shift = np.uint64(65 - len(seen).bit_length())
        places = np.flatnonzero(seen[(rolling >> shift).astype(np.int64)])
        at = np.searchsorted(keys, rolling[places])
        at[at == len(keys)] = 0
        good = keys[at] == rolling[places] if len(keys) else np.zeros(0, dtype=bool)
        places, at = places[good], at[good]
        return np.stack([np.repeat(row_of[places], starts[at + 1] - starts[at]), _spans(items, starts, at)], axis=1)


def _probe(other: Item) -> list[str]:
    """Words whose n-grams stand for an item: its stem, with its options where the stem is too short."""
    stem = other.stem.split()
    return stem if len(stem) >= MIN_N else other.question.split()


def roll(values: Hashes, n: int) -> Hashes:
    """Rolling polynomial hash (modulo 2^64) of every window of n word values."""
    if len(values) < n:
        return np.zeros(0, dtype=np.uint64)
    total = values.copy()
    for k in range(1, n):
        total = total[:-1] * _BASE + values[k:]
    return total


def _spans(values: Ints, starts: Ints, at: Ints) -> Ints:
    """values[starts[a]:starts[a + 1]] for every a in `at`, end to end."""
    counts = starts[at + 1] - starts[at]
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return values[np.repeat(starts[at], counts) + offsets]


# ---------------------------------------------------------------------------------------------- words


class _WordTable:
    """Items as bags of folded content words weighted by idf, and an inverted index on the rarest of them."""

    def __init__(self, items: Sequence[Item]) -> None:
        stems = [set(content(other.stem)) for other in items]
        bags = [sorted(stem | set(content(other.gold))) for stem, other in zip(stems, items)]
        counts: dict[str, int] = {}
        for bag in bags:
            for word in bag:
                counts[word] = counts.get(word, 0) + 1
        self.weights = {w: float(np.log1p(len(items) / c)) for w, c in counts.items()}
        self.unknown = float(np.log1p(len(items)))
        self._vocabulary = {w: k for k, w in enumerate(counts)}
        self._weight = np.array(list(self.weights.values()), dtype=np.float64)
        self._starts = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])]).astype(np.int64)
        self._flat = np.array([self._vocabulary[w] for bag in bags for w in bag], dtype=np.int64)
        self._in_stem = np.array([w in stem for bag, stem in zip(bags, stems) for w in bag], dtype=np.float64)
        self._asks = np.array([bool(other.options) for other in items], dtype=bool)
        self._owners = np.repeat(np.arange(len(items)), np.diff(self._starts))
        mass = self._weight[self._flat]
        self._total = np.bincount(self._owners, weights=mass, minlength=len(items))
        self._stem_total = np.bincount(self._owners, weights=mass * self._in_stem, minlength=len(items))
        self._postings = self._rarest(mass)

    def _rarest(self, mass: Floats) -> sparse.csr_array:
        """Word x item: share of the item's content, for its rarest words up to 1 - REST of it. A row that holds HELD
        of all holds at least HELD - REST in these."""
        order = np.lexsort((self._flat, -mass, self._owners))
        before = np.append(np.cumsum(mass[order]) - mass[order], 0.0)
        first = np.repeat(before[self._starts[:-1]], np.diff(self._starts))
        wanted = (1 - REST) * self._total[self._owners[order]]
        searched = order[before[:-1] - first < wanted + 1e-6]  # a word too many costs time, one too few a candidate
        owners = self._owners[searched]
        shape = (len(self._vocabulary), len(self._total))
        return sparse.csr_array((mass[searched] / self._total[owners], (self._flat[searched], owners)), shape=shape)

    def search(self, text: _Chunk) -> Ints:
        """(row, item) where the row's words hold at least HELD of the item's content, and, unless both are questions,
        HELD_IN_TEXT of its stem's."""
        if not self._vocabulary:
            return _pairs(())
        known = np.array(
            [-1 if w in FRAME or not w else self._vocabulary.get(fold(w), -1) for w in text.words], dtype=np.int64
        )
        ids = known[text.ids]
        used = ids >= 0
        width = len(self._vocabulary)
        held = np.unique(text.row_of[used] * width + ids[used])
        rows = sparse.csr_array((np.ones(len(held)), (held // width, held % width)), shape=(text.size, width))
        near = (rows @ self._postings).tocoo()
        enough = near.data >= HELD - REST - 1e-9
        pairs = np.stack([near.coords[0][enough], near.coords[1][enough]], axis=1).astype(np.int64)
        whole, stem = self._shares(pairs, held, width)
        questions = text.asks[pairs[:, 0]] & self._asks[pairs[:, 1]]
        return pairs[(whole >= HELD - 1e-9) & (questions | (stem >= HELD_IN_TEXT - 1e-9))]

    def _shares(self, pairs: Ints, held: Ints, width: int) -> tuple[Floats, Floats]:
        """For every pair, the share of the item's content that the row holds: of stem + answer, and of the stem."""
        counts = np.diff(self._starts)[pairs[:, 1]]
        places = _spans(np.arange(len(self._flat)), self._starts, pairs[:, 1])
        words = self._flat[places]
        keys = np.repeat(pairs[:, 0], counts) * width + words
        at = np.minimum(np.searchsorted(held, keys), max(0, len(held) - 1))
        mass = np.where(held[at] == keys, self._weight[words], 0.0) if len(held) else np.zeros(len(keys))
        owner = np.repeat(np.arange(len(pairs)), counts)
        whole = np.bincount(owner, weights=mass, minlength=len(pairs))
        stem = np.bincount(owner, weights=mass * self._in_stem[places], minlength=len(pairs))
        totals, stems = self._total[pairs[:, 1]], self._stem_total[pairs[:, 1]]
        return whole / np.where(totals > 0, totals, 1.0), stem / np.where(stems > 0, stems, 1.0)
