"""LSH: how surely a pair is found, and how the search is bounded."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from aloe.data import minhash
from aloe.data.minhash import PERMUTATIONS, Piece, Search, band_keys, bands_for, close, signatures, sketches
from aloe.data.shingles import Ragged, hashed
from aloe.keyed import rng


def sets(*rows: np.ndarray) -> Ragged:
    return Ragged(np.concatenate(rows).astype(np.uint64), np.cumsum([0, *map(len, rows)]))


def overlapping(jaccard: float, pairs: int, size: int = 100) -> Ragged:
    """Rows 2k and 2k + 1 have about this Jaccard similarity, all others none."""
    draw = rng(1, "minhash-test")
    common = round(2 * size * jaccard / (1 + jaccard))
    rows = []
    for _ in range(pairs):
        numbers = draw.integers(0, 2**63, 2 * size - common)
        rows += [numbers[:size], numbers[size - common :]]
    return sets(*rows)


def search(found: Ragged, threshold: float, known: minhash.Known = lambda rows: rows, groups: int = 1) -> Search:
    signature = signatures(found)
    bands, rows = bands_for(threshold)
    some = (np.arange(len(signature)) % groups).astype(np.uint32)
    return Search(band_keys(signature, bands, rows), some, sketches(signature), threshold, known)


def all_pairs(of: Search) -> set[tuple[int, int]]:
    """Every pair that is to be compared."""
    found: set[tuple[int, int]] = set()
    for some in of.candidates():
        if isinstance(some, Piece):
            found |= set(combinations(some.rows.tolist(), 2))
        else:
            found |= set(zip(some.a.tolist(), some.b.tolist(), strict=True))
    return found


def test_bands_miss_less_than_one_in_a_thousand_at_the_threshold() -> None:
    for threshold in (0.5, 0.72, 0.77, 0.95):
        bands, rows = bands_for(threshold)
        assert bands * rows <= PERMUTATIONS
        assert (1 - threshold**rows) ** bands <= 1e-3


@pytest.mark.parametrize("threshold", [0.72, 0.77])
def test_pairs_at_the_threshold_are_found_and_no_others(threshold: float) -> None:
    """600 pairs: at 0.001 a pair, three or more missed has a chance of two in a hundred thousand times the bound."""
    pairs = all_pairs(search(overlapping(threshold, 600), threshold))
    wanted = {(2 * k, 2 * k + 1) for k in range(600)}
    assert len(pairs & wanted) >= 597
    assert not pairs - wanted


def test_pairs_far_below_are_weeded_out() -> None:
    found = overlapping(0.35, 600)
    keys = search(found, 0.72)
    meet = {(2 * k, 2 * k + 1) for k in range(600) if (keys.keys[2 * k] == keys.keys[2 * k + 1]).any()}
    assert len(meet) > 150  # many share a band
    assert len(all_pairs(keys)) <= 2


def test_estimate_agrees_with_the_similarity() -> None:
    """A pair passes at a threshold four standard errors above its similarity half the time, and hardly ever later."""
    sketch = sketches(signatures(overlapping(0.6, 400)))
    even, odd = np.arange(0, 800, 2), np.arange(1, 800, 2)
    passed = [close(sketch, even, odd, t).mean() for t in (0.6, 0.75, 0.77, 0.8, 0.9)]
    assert passed == sorted(passed, reverse=True)
    assert passed[0] == 1.0
    assert 0.3 < passed[2] < 0.7
    assert passed[4] == 0.0


def test_rows_of_two_groups_never_meet() -> None:
    found = overlapping(0.9, 50)
    assert len(all_pairs(search(found, 0.72))) == 50
    assert all_pairs(search(found, 0.72, groups=2)) == set()


def test_a_large_bucket_is_cut_and_what_is_known_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "LIMIT", 100)
    one = np.arange(100)
    found = sets(*(one for _ in range(minhash.LIMIT + 100)))
    apart = search(found, 0.72)
    pieces = list(apart.candidates())
    assert apart.large == apart.keys.shape[1]
    assert {len(p.rows) for p in pieces if isinstance(p, Piece)} == {100}
    assert len(pieces) == 2 * apart.large
    together = search(found, 0.72, known=np.zeros_like)
    assert list(together.candidates()) == []


def test_cutting_loses_no_pair_that_stays_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty pairs in one big bucket of every band: rows with more bands in common stand together when it is cut."""
    found = overlapping(0.95, 50)
    wanted = {(2 * k, 2 * k + 1) for k in range(50)}
    boilerplate = np.arange(250)
    rows = [np.concatenate((boilerplate, found.values[a:b])) for a, b in zip(found.offsets, found.offsets[1:])]
    assert wanted <= all_pairs(search(sets(*rows), 0.72))
    monkeypatch.setattr(minhash, "SMALL", 4)
    monkeypatch.setattr(minhash, "LIMIT", 10)
    cut = search(sets(*rows), 0.72)
    assert len(wanted & all_pairs(cut)) >= 49
    assert cut.large > 0


def test_signatures_do_not_depend_on_repeats_or_order() -> None:
    row = np.arange(50)
    found = signatures(sets(row, row[::-1], np.concatenate((row, row))))
    assert (found == found[0]).all()


def test_signatures_are_pinned() -> None:
    """A change of the library's scheme would change artifacts silently; then `version` must be bumped."""
    first = signatures(hashed(["the quick brown fox jumps over the lazy dog"]))
    assert first.shape == (1, PERMUTATIONS)
    assert first.dtype == np.uint32
    assert first[0, :3].tolist() == [3333991700, 3236436447, 3224781257]
    assert signatures(hashed([])).shape == (0, PERMUTATIONS)
