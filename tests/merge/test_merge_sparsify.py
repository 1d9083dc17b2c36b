from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aloe.merge import consensus, sparsify
from aloe.merge.sparsify import AbsoluteSum, Blocks, keep_count

# Few distinct values, so that ties at the threshold are common; subnormals and both zeros are in.
VALUES = st.sampled_from([0.0, -0.0, 0.5, -0.5, 0.25, 1e-42, -1e-42, 3.0, -3.0, 2.5e-8])
ARRAYS = hnp.arrays(np.float32, st.integers(1, 60), elements=VALUES)


def cut(values: np.ndarray, step: int) -> Blocks:
    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        return ((at, values[at : at + step]) for at in range(0, values.size, step))

    return blocks


@pytest.mark.parametrize(
    ("size", "density", "kept"),
    [(8, 0.5, 4), (100, 0.29, 29), (10, 0.7, 7), (10, 0.3, 3), (7, 0.5, 3), (5, 0.1, 1), (1, 0.001, 1), (9, 1.0, 9)],
)
def test_keep_count_is_the_floor_of_the_decimal_product_and_at_least_one(size: int, density: float, kept: int) -> None:
    assert keep_count(size, density) == kept


@settings(max_examples=60, deadline=None)
@given(ARRAYS, st.floats(0.01, 0.99), st.integers(1, 70))
def test_magnitude_keeps_the_largest_and_breaks_ties_by_lower_index(
    values: np.ndarray, density: float, step: int
) -> None:
    order = sorted(range(values.size), key=lambda i: (-abs(float(values[i])), i))
    expected = np.zeros(values.size, dtype=bool)
    expected[order[: keep_count(values.size, density)]] = True
    mask = sparsify.magnitude(cut(values, step), values.size, density)
    found = np.concatenate([mask(block, at) for at, block in cut(values, step)()])
    assert np.array_equal(found, expected)


def test_magnitude_on_continuous_values_agrees_with_a_sort() -> None:
    values = np.random.default_rng(0).standard_normal(30_001).astype(np.float32)
    mask = sparsify.magnitude(cut(values, 4096), values.size, 0.37)(values, 0)
    threshold = np.sort(np.abs(values))[::-1][keep_count(values.size, 0.37) - 1]
    assert np.array_equal(mask, np.abs(values) >= threshold)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    st.integers(1, 50),
)
def test_absolute_sum_is_exact(values: np.ndarray, step: int) -> None:
    total = AbsoluteSum()
    for _, block in cut(values, step)():
        total.add(block)
    assert Fraction(total.units, 2**149) == sum(Fraction(abs(float(v))) for v in values)


def test_bernoulli_keeps_what_is_drawn_below_the_density() -> None:
    numbers = np.array([0.0, 0.3, 0.5, 0.9], dtype=np.float32)
    mask = sparsify.bernoulli(lambda start, stop: numbers[start:stop], 0.5)
    assert mask(np.ones(3, dtype=np.float32), 1).tolist() == [True, False, False]
    assert mask(np.ones(2, dtype=np.float32), 0).tolist() == [True, True]


def test_rescale_factors() -> None:
    values = np.array([1, -3, 4, 0], dtype=np.float32)
    keep = sparsify.fixed([1, 1, 0, 1])
    assert sparsify.rescale_factor("none", 0.5, cut(values, 2), keep) == 1
    assert sparsify.rescale_factor("expectation", 0.4, cut(values, 2), keep) == 2.5
    assert sparsify.rescale_factor("l1", 0.5, cut(values, 3), keep) == 2
    assert sparsify.rescale_factor("l1", 0.5, cut(values, 3), None) == 1
    assert sparsify.rescale_factor("l1", 0.5, cut(values, 3), sparsify.fixed([0, 0, 0, 1])) == 1


def test_zero_elects_plus() -> None:
    assert consensus.elect([np.float32([1, 0, -2]), np.float32([-1, 0, 1])]).tolist() == [True, True, False]


def test_a_zero_entry_never_agrees_and_never_enters_the_divisor() -> None:
    weighted = [np.float32([0, 0.6, -0.6]), np.float32([0.4, -0.2, 0])]
    positive = consensus.elect(weighted)
    total, agreeing = consensus.masked_sum(weighted, [0.6, 0.4], positive, normalize=True)
    assert np.allclose(total, [1, 1, -1])
    assert agreeing == 3


def test_where_nobody_agrees_the_sum_is_zero() -> None:
    zeros = [np.zeros(2, dtype=np.float32)] * 2
    total, agreeing = consensus.masked_sum(zeros, [1, 1], consensus.elect(zeros), normalize=True)
    assert total.tolist() == [0, 0]
    assert agreeing == 0


def test_without_an_election_the_divisor_is_the_sum_of_all_weights() -> None:
    weighted = [np.float32([1, 0]), np.float32([3, 2])]
    assert consensus.masked_sum(weighted, [1, 3], None, normalize=True)[0].tolist() == [1, 0.5]
    assert consensus.masked_sum(weighted, [1, 3], None, normalize=False)[0].tolist() == [4, 2]
