"""The order of training: a permutation without a list, exact shares everywhere, any place at once."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from aloe.errors import AloeError
from aloe.keyed import key64
from aloe.train.order import SMALL, Order, permuted, quotas

# -- the keyed permutation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, 1, key64(7, "sft order"), 2**64 - 1])
def test_every_size_is_a_bijection(key: int) -> None:
    for size in range(1, 400):
        assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size)), size


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 200_000) | st.sampled_from([SMALL - 1, SMALL, 1 << 16, (1 << 16) + 1]), key=st.integers(0))
def test_large_sizes_are_bijections(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(data=st.data(), size=st.integers(1, 1 << 40), key=st.integers(0, 2**63 - 1))
def test_one_place_is_the_same_alone_and_among_others(data: st.DataObject, size: int, key: int) -> None:
    """Sizes that could never be held: an index is computed by itself, and no two collide."""
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40, unique=True))
    found = permuted(np.array(index), size, key)
    assert found.tolist() == [int(permuted(i, size, key)) for i in index]
    assert len(set(found.tolist())) == len(index)
    assert 0 <= found.min() <= found.max() < size


def test_shapes_and_bounds() -> None:
    assert permuted(np.arange(6).reshape(2, 3), 6, 1).shape == (2, 3)
    assert permuted(np.array([], dtype=np.int64), 6, 1).shape == (0,)
    for wrong in ([6], [-1]):
        with pytest.raises(IndexError):
            permuted(wrong, 6, 1)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_a_few_rows_are_equally_likely(size: int) -> None:
    """Chi-square over keys on all n! orders. Keys are fixed, so this fails always or never."""
    draws = 40 * math.factorial(size)
    seen = Counter(tuple(permuted(np.arange(size), size, key64(1, "chi", k)).tolist()) for k in range(draws))
    expected = draws / math.factorial(size)
    statistic = sum((seen[p] - expected) ** 2 / expected for p in permutations(range(size)))
    assert chi2.sf(statistic, math.factorial(size) - 1) > 1e-3


@pytest.mark.parametrize("size", [7, 18])
def test_two_neighbours_go_to_all_pairs_of_places_equally_often(size: int) -> None:
    draws = 20 * size * (size - 1)
    seen = np.zeros((size, size))
    for k in range(draws):
        seen[tuple(permuted([size // 2, size // 2 + 1], size, key64(2, "pairs", k)))] += 1
    apart = ~np.eye(size, dtype=bool)
    expected = draws / (size * (size - 1))
    assert not seen[~apart].any()
    assert chi2.sf(((seen[apart] - expected) ** 2 / expected).sum(), size * (size - 1) - 1) > 1e-3


@pytest.mark.parametrize("size", [SMALL - 1, 100_003])
def test_places_are_uncorrelated_with_indices_and_with_their_neighbours(size: int) -> None:
    for key in range(5):
        found = permuted(np.arange(size), size, key64(3, "correlation", key)).astype(float)
        for lag in (1, 2, 64, math.isqrt(size), math.isqrt(size) + 1):
            assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 4.5 / math.sqrt(size)
        assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 4.5 / math.sqrt(size)
        steps = np.bincount(((found[1:] - found[:-1]) % size * 16 // size).astype(int), minlength=16)
        assert chi2.sf(((steps - size / 16) ** 2 / (size / 16)).sum(), 15) > 1e-4
        rises = np.count_nonzero(found[1:] > found[:-1])
        assert abs(rises - size / 2) < 5 * math.sqrt(size / 12)  # as of a random permutation


def test_keys_give_unrelated_orders() -> None:
    first, second = (permuted(np.arange(5000), 5000, key) for key in (1, 2))
    assert np.count_nonzero(first == second) < 10  # one in the mean
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


# -- shares ---------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(20, 500), min_size=1, max_size=4),
    data=st.data(),
    most=st.none() | st.integers(20, 300),
)
def test_quotas_keep_shares_and_never_draw_twice(sizes: list[int], data: st.DataObject, most: int | None) -> None:
    weights = data.draw(st.lists(st.floats(0.5, 2), min_size=len(sizes), max_size=len(sizes)))
    rows = quotas(sizes, weights, most)
    total = sum(rows)
    assert all(0 < n <= size for n, size in zip(rows, sizes, strict=True))
    assert most is None or total <= most
    for n, weight in zip(rows, weights, strict=True):
        assert abs(n - total * weight / sum(weights)) < 1 + 1e-6


def test_quotas_by_example() -> None:
    assert quotas([1000, 100], [0.8, 0.2], None) == [400, 100]
    assert quotas([1000, 100], [4, 1], 10) == [8, 2]
    assert quotas([77], [1.0], None) == [77]
    with pytest.raises(AloeError, match="can't be kept"):
        quotas([100, 100], [0.99, 0.01], 10)


# -- the order of a run ---------------------------------------------------------------------------------------------


@st.composite
def orders(draw: st.DrawFn) -> Order:
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    quota = [draw(st.integers(1, n)) for n in sizes]
    return Order(sizes, quota, draw(st.floats(0.05, 7)), draw(st.integers(0, 99)), "test order")


def source_of(order: Order, index: int) -> int:
    return int(np.searchsorted(np.cumsum(order.sizes), index, side="right"))


@settings(max_examples=30, deadline=None)
@given(order=orders(), data=st.data())
def test_seeking_equals_going_through(order: Order, data: st.DataObject) -> None:
    whole = list(order)
    assert whole == [i for at in range(0, len(order), 11) for i in order[at : at + 11]]
    assert len(whole) == len(order) == max(1, round(order.pass_rows * order.epochs))
    start, stop = (data.draw(st.integers(-len(order), len(order))) for _ in range(2))
    assert order[start:stop] == whole[start:stop]
    assert order[::-3] == whole[::-3]
    at = data.draw(st.integers(-len(order), len(order) - 1))
    assert order[at] == whole[at]
    with pytest.raises(IndexError):
        order[len(order)]


@settings(max_examples=30, deadline=None)
@given(order=orders())
def test_shares_are_exact_in_every_pass_and_close_in_every_stretch(order: Order) -> None:
    sources = [source_of(order, i) for i in order]
    for begin in range(0, len(order) - order.pass_rows + 1, order.pass_rows):
        counts = Counter(sources[begin : begin + order.pass_rows])
        assert [counts[s] for s in range(len(order.sizes))] == list(order.quota)
    slack = 1 + math.ceil(math.log2(len(order.sizes) + 1))  # a row for every time the sources were halved, and one
    for length in (1, 5, 16):
        for begin in range(max(0, len(sources) - length)):
            stretch = sources[begin : begin + length]
            for s, q in enumerate(order.quota):
                assert abs(stretch.count(s) - length * q / order.pass_rows) <= 2 * slack


@settings(max_examples=30, deadline=None)
@given(order=orders())
def test_no_row_comes_again_before_all_of_its_source_have_come(order: Order) -> None:
    taken: dict[int, list[int]] = {}
    for index in order:
        taken.setdefault(source_of(order, index), []).append(index)
    for s, rows in taken.items():
        n = order.sizes[s]
        own = set(range(sum(order.sizes[:s]), sum(order.sizes[: s + 1])))
        for begin in range(0, len(rows), n):
            cycle = rows[begin : begin + n]
            assert len(set(cycle)) == len(cycle)
            assert set(cycle) <= own
            assert len(cycle) < n or set(cycle) == own
    assert order.taken() == [len(taken.get(s, [])) for s in range(len(order.sizes))]
    assert order.counts().tolist() == np.bincount(list(order), minlength=sum(order.sizes)).tolist()


def test_rows_over_a_share_come_in_later_passes() -> None:
    order = Order([90, 10], quotas([90, 10], [0.75, 0.25], None), 3, 7, "mix")
    assert order.quota == (30, 10)
    passes = [set(order[i * 40 : (i + 1) * 40]) for i in range(3)]
    assert set.union(*passes) == set(range(100))
    assert not {i for i in passes[0] & passes[1] if i < 90}
    assert all(set(range(90, 100)) <= p for p in passes)


def test_passes_seeds_and_purposes_shuffle_anew() -> None:
    order = Order([200], [200], 2, 7, "sft order")
    others = [Order([200], [200], 2, 8, "sft order"), Order([200], [200], 2, 7, "dpo order")]
    lists = [order[:200], order[200:], *(o[:200] for o in others)]
    for a in range(4):
        for b in range(a):
            assert sum(x == y for x, y in zip(lists[a], lists[b], strict=True)) < 10
    assert list(Order([200], [200], 2, 7, "sft order")) == list(order)


def test_more_epochs_go_on_where_fewer_end() -> None:
    short, long = (Order([50, 20], [25, 10], epochs, 7, "x") for epochs in (1.5, 6))
    assert long[: len(short)] == list(short)


def test_a_run_of_millions_costs_a_batch_what_a_small_one_does() -> None:
    order = Order([2_000_000, 300_000], [1_200_000, 300_000], 1000, 7, "large")
    order[:128]
    tracemalloc.start()
    began = time.perf_counter()
    batch = order[len(order) - 128 :]
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(batch)) == 128
    assert peak < 200_000
    assert seconds < 0.5  # about a millisecond; the machine may be busy


def test_a_pass_that_its_sources_cannot_give_is_refused() -> None:
    for quota in ([3], [0], [1, 1]):
        with pytest.raises(ValueError, match="can't be taken"):
            Order([2], quota, 1, 7, "x")
