"""Rows with known near-duplicates, for `dedup.py`: real medical rows, or any number made from them.

    python benchmarks/near_duplicates.py real OUT            # MedQuAD, doctor_forum and medical_mcq as they are
    python benchmarks/near_duplicates.py made OUT --rows N   # N rows by keyed perturbation

Writes OUT/rows.jsonl ({id, text} a line) and OUT/truth.npy (int64: the number of each row's duplicate cluster). Texts
are lower-case ASCII words and numbers with single spaces, five at least, so that every tool cuts them into the same
words whatever its own tokeniser does with other signs.

Truth is *measured exact Jaccard similarity* of word 5-gram sets, 0.72 and over, closed over chains:
- `real`: over all pairs, by an exact join (prefix filter), nothing sampled or hashed.
- `made`: over all pairs within a family. A family is a base and rows made from it; bases are unlike each other by
  construction: a base is a real row with a word in every two to five replaced, so that of two bases from one row hardly
  a 5-gram is common. A family's other rows are exact copies or have words
  replaced, dropped, added at the end or cut off, to a similarity drawn from 0.4 to 1; those that measure under the
  threshold are near misses, not duplicates. One family in a set has a row in five hundred (2,000 of a million).

The draws are keyed by the number of the block of families, so a smaller set is made in the same way and of the same
stuff as a larger one, and any number of processes makes the same rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from aloe.keyed import rng

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = ("medquad", "doctor_forum", "medical_mcq")
THRESHOLD = 0.72
NGRAM = 5
SEED = 11
FAMILIES = 500  # in a block
SIZES = np.array([1, 2, 3, 4, 6, 8, 12, 20, 40])  # of families, and how often each comes
SHARES = np.array([0.78, 0.12, 0.05, 0.02, 0.012, 0.008, 0.005, 0.003, 0.002])
GIANT = 500  # the giant family has a row in so many
_WORD = re.compile(r"[a-z]+|[0-9]+")

Tokens = np.ndarray  # int32: numbers of words


def real_texts(data: Path = DATA) -> list[str]:
    """The three files' rows: question and options, or question and answer, as words."""
    texts = []
    for name in FILES:
        with gzip.open(data / "train" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as handle:
            for line in handle:
                row = json.loads(line)
                options = row.get("options") or {}
                parts = [row["question"], *(options.values() or [row["answer"]])]
                words = _WORD.findall(" ".join(parts).lower())
                if len(words) >= NGRAM:
                    texts.append(" ".join(words))
    return texts


def grams(tokens: Sequence[int]) -> frozenset[tuple[int, ...]]:
    """Word 5-grams."""
    return frozenset(zip(*(tokens[k:] for k in range(NGRAM)), strict=False))


def jaccard(a: frozenset[tuple[int, ...]], b: frozenset[tuple[int, ...]]) -> float:
    """|a & b| / |a | b|."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def components(n: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number of each row's cluster: its smallest row."""
    parent = list(range(n))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in edges:
        a, b = sorted((find(a), find(b)))
        parent[b] = a
    return np.array([find(i) for i in range(n)], dtype=np.int64)


# ---------------------------------------------------------------------------------------------- real


def exact_join(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """All pairs at or over the threshold: two sets that similar share one of the `n - ceil(t n) + 1` rarest shingles of
    each (prefix filter, Chaudhuri et al. 2006), so only rows that do are compared."""
    numbers: dict[tuple[str, ...], int] = {}
    sets = []
    for text in texts:
        words = text.split()
        found = {numbers.setdefault(g, len(numbers)) for g in zip(*(words[k:] for k in range(NGRAM)), strict=False)}
        sets.append(found)
    counts = Counter(s for found in sets for s in found)
    holders: dict[int, list[int]] = defaultdict(list)
    pairs = []
    for i in sorted(range(len(sets)), key=lambda i: (len(sets[i]), i)):
        mine = sets[i]
        prefix = len(mine) - int(np.ceil(threshold * len(mine) - 1e-9)) + 1
        rarest = sorted(mine, key=lambda s: (counts[s], s))[:prefix]
        for j in {j for s in rarest for j in holders[s]}:
            other = sets[j]
            if len(other) >= threshold * len(mine):
                common = len(mine & other)
                if common / (len(mine) + len(other) - common) >= threshold:
                    pairs.append((i, j))
        for s in rarest:
            holders[s].append(i)
    return pairs


# ---------------------------------------------------------------------------------------------- made

_corpus: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # words, all rows' tokens, where each row starts


def load_corpus(data: Path = DATA) -> None:
    """Read the real rows as numbers of words; once in each process."""
    global _corpus
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(w, len(numbers)) for w in text.split()] for text in real_texts(data)]
    starts = np.cumsum([0, *map(len, rows)])
    tokens = np.fromiter((t for row in rows for t in row), dtype=np.int32, count=int(starts[-1]))
    _corpus = np.array(list(numbers), dtype=object), tokens, starts


def base(draw: np.random.Generator, tokens: np.ndarray, starts: np.ndarray) -> Tokens:
    """A real row with one word in every run of two to five replaced by one from anywhere in the corpus."""
    row = int(draw.integers(0, len(starts) - 1))
    found = tokens[starts[row] : starts[row + 1]].copy()
    run = int(draw.integers(2, 6))
    places = np.arange(0, len(found), run)
    places = np.minimum(places + draw.integers(0, run, len(places)), len(found) - 1)
    found[places] = tokens[draw.integers(0, len(tokens), len(places))]
    return found


def variant(draw: np.random.Generator, one: Tokens, corpus: np.ndarray, low: float = 0.4) -> Tokens:
    """`one`, copied (one in seven) or changed to a similarity of about a draw from `low` to 1."""
    if draw.random() < 1 / 7:
        return one
    shingles = max(len(one) - NGRAM + 1, 1)
    target = draw.uniform(low, 1.0)
    lost = shingles * (1 - target) / (1 + target)  # of each side's shingles, when words are replaced
    kind = int(draw.integers(0, 4))
    if kind == 0:  # replace single words: each breaks up to five shingles
        places = draw.integers(0, len(one), max(1, round(lost / NGRAM)))
        found = one.copy()
        found[places] = corpus[draw.integers(0, len(corpus), len(places))]
        return found
    if kind == 1:  # drop single words: each breaks five and makes four
        places = draw.integers(0, len(one), max(1, round(lost / NGRAM)))
        found = np.delete(one, places)
        return found if len(found) >= NGRAM else one
    if kind == 2:  # text added at the end
        extra = max(1, round(shingles * (1 / target - 1)))
        at = int(draw.integers(0, max(1, len(corpus) - extra)))
        return np.concatenate((one, corpus[at : at + extra]))
    cut = max(1, round(shingles * (1 - target)))  # the end cut off
    return one[: max(NGRAM, len(one) - cut)]


def family(draw: np.random.Generator, size: int, low: float = 0.4) -> tuple[list[Tokens], np.ndarray]:
    """Rows made from one base, and the cluster of each by measured similarity."""
    assert _corpus is not None
    _, tokens, starts = _corpus
    first = base(draw, tokens, starts)
    while size > 1 and len(first) < 25 and low > 0.5:  # a giant family of a tiny row would be copies only
        first = base(draw, tokens, starts)
    rows = [first, *(variant(draw, first, tokens, low) for _ in range(size - 1))]
    if size == 1:
        return rows, np.zeros(1, dtype=np.int64)
    sets = [grams(row.tolist()) for row in rows]
    close = [(0, i) for i in range(1, size) if jaccard(sets[0], sets[i]) >= THRESHOLD]
    far = sorted(set(range(1, size)) - {i for _, i in close})
    for i in far:  # a near miss of the base may still be a duplicate of another of its rows
        close += [(i, j) for j in range(1, size) if i != j and jaccard(sets[i], sets[j]) >= THRESHOLD]
    return rows, components(size, close)


Made = tuple[list[str], list[int]]  # a family: its texts, and the cluster of each, counted from 0


def block(number: int) -> list[Made]:
    """The families of one block."""
    draw = rng(SEED, "near-duplicates", number)
    return [written(*family(draw, size)) for size in draw.choice(SIZES, FAMILIES, p=SHARES / SHARES.sum()).tolist()]


def written(rows: Sequence[Tokens], label: np.ndarray) -> Made:
    """Numbers of words as words."""
    assert _corpus is not None
    return [" ".join(_corpus[0][row]) for row in rows], label.tolist()


def families(rows: int, processes: int) -> Iterator[Made]:
    """The giant family, then the others without end."""
    load_corpus()
    yield written(*family(rng(SEED, "near-duplicates-giant"), max(2, rows // GIANT), low=0.74))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for wave in count(step=4 * processes):
            for made in pool.imap(block, range(wave, wave + 4 * processes)):
                yield from made


def make(out: Path, rows: int, processes: int = 1) -> None:
    """Write `rows` made rows in a keyed order. A family that no longer fits is passed over."""
    texts: list[str] = []
    labels: list[int] = []
    for some, label in families(rows, processes):
        if len(texts) + len(some) <= rows:
            labels += [k + len(texts) for k in label]
            texts += some
        if len(texts) == rows:
            break
    write(out, texts, np.array(labels), rng(SEED, "near-duplicates-order").permutation(rows))


def real(out: Path) -> None:
    """Write the real rows in the order of the files."""
    texts = real_texts()
    write(out, texts, components(len(texts), exact_join(texts)), np.arange(len(texts)))


def write(out: Path, texts: Sequence[str], labels: np.ndarray, order: np.ndarray) -> None:
    """rows.jsonl and truth.npy; ids are places in the file."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "rows.jsonl", "w", encoding="utf-8") as handle:
        for k, i in enumerate(order.tolist()):
            handle.write(json.dumps({"id": f"{k:07}", "text": texts[i]}) + "\n")
    np.save(out / "truth.npy", labels[order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("real", "made"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.what == "real":
        real(args.out)
    else:
        make(args.out, args.rows, args.processes)
    truth = np.load(args.out / "truth.npy")
    clusters = len(np.unique(truth))
    print(json.dumps({"rows": len(truth), "clusters": clusters, "duplicates": len(truth) - clusters}))


if __name__ == "__main__":
    main()
