"""Comparing rows by hashed shingles: the same numbers as sets of numbers give, by pairs and all at once."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.shingles import hashed, shingles
from aloe.data.similar import KEPT, Shelf, _common, _jaccard, sign

# Rows as runs of shared sentences (ranges of numbers) and numbers of their own.
ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([(0, 30), (100, 9), (200, 50), (225, 40)]), max_size=3),
        st.sets(st.integers(0, 60), min_size=1, max_size=12),
    ).map(lambda row: sorted({k for start, size in row[0] for k in range(start, start + size)} | row[1])),
    min_size=2,
    max_size=12,
)


def spread(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Values of `KEPT` bits, ascending in each row, and the rows' sizes."""
    factor = (1 << KEPT) // 1000
    return np.array([k * factor for row in rows for k in row], dtype=np.uint64), np.array([len(row) for row in rows])


@settings(deadline=None)
@given(ROWS)
def test_all_at_once_and_pair_by_pair_equal_sets(rows: list[list[int]]) -> None:
    values, sizes = spread(rows)
    pairs = np.array(list(combinations(range(len(rows)), 2)))
    common = _common(values, sizes)
    similarity = _jaccard(values, sizes, pairs[:, 0], pairs[:, 1])
    for (a, b), found in zip(pairs.tolist(), similarity.tolist(), strict=True):
        both, either = len(set(rows[a]) & set(rows[b])), len(set(rows[a]) | set(rows[b]))
        assert common[a, b] == common[b, a] == both
        assert found == both / either


def test_signed_sets_are_distinct_and_ascending() -> None:
    texts = ["a b c d e f a b c d e f a b c d e", "flu", "one two three four five six"]
    sets = sign(texts, 32, 4).sets
    for k, text in enumerate(texts):
        row = sets.values[sets.offsets[k] : sets.offsets[k + 1]]
        assert len(row) == len(shingles(text))
        assert (row[1:] > row[:-1]).all()
    assert set((hashed(texts).values >> np.uint64(64 - KEPT)).tolist()) == set(sets.values.tolist())


def test_equal_sets_have_equal_digests_and_others_not() -> None:
    digest = sign(["a b c d e f", "A, b; c d e (f)!", "a b c d e f a b c d e f", "f e d c b a"], 32, 4).digest.tolist()
    assert digest[0] == digest[1]
    assert len(set(digest)) == 3


def test_shelf_gives_back_what_was_written(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    parts = [np.arange(k, k + 5 + k, dtype=np.uint64) for k in range(20)]
    starts = np.array([shelf.write(part) for part in parts])
    sizes = np.array([len(part) for part in parts])
    some = np.array([3, 4, 17])
    assert shelf.read(starts[some], sizes[some]).tolist() == [*parts[3], *parts[4], *parts[17]]
    assert shelf.read(starts[:0], sizes[:0]).tolist() == []
    assert list(tmp_path.iterdir()) == []  # it has no name
    shelf.close()
