"""Statistics against scipy, published examples and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from aloe.evaluate.stats import (
    Z95,
    bootstrap_se,
    clustered_se,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    total_variation,
    wilson,
)


@given(st.integers(1, 500), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    expected = reference.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I, method 3
    with pytest.raises(ValueError, match="5 successes in 4 trials"):
        wilson(5, 4)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(a: int, b: int) -> None:
    expected = reference.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_mcnemar_of_many_pairs_does_not_overflow() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0 <= mcnemar(2000, 3000) < 1e-40


def test_holm_golden() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    for raw, new in zip(p, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p)) + 1e-12
    assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)


def test_clustered_se_of_singletons_is_the_ordinary_one() -> None:
    x = [0.0, 1.0, 1.0, 0.5, 0.25]
    assert clustered_se(x) == pytest.approx(reference.sem(x))


def test_clustered_se_golden() -> None:
    # two clusters with sums of deviations -1 and +1 of four items: sqrt(2/1 * 2) / 4
    assert clustered_se([0, 0, 1, 1], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert clustered_se([0, 1, 0, 1], ["a", "a", "b", "b"]) == 0.0
    assert clustered_se([0, 1], ["a", "a"]) == 0.0
    with pytest.raises(ValueError, match="2 values but 1"):
        clustered_se([0, 1], ["a"])


def test_doubling_every_item_in_its_cluster_changes_nothing() -> None:
    x = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert clustered_se(x * 2, list(range(5)) * 2) == pytest.approx(clustered_se(x))


def test_paired_difference_is_the_paired_t_geometry() -> None:
    a, b = [0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]
    found = paired_difference(a, b)
    differences = np.subtract(b, a)
    assert found.difference == pytest.approx(differences.mean())
    assert found.se == pytest.approx(reference.sem(differences))
    assert found.high - found.difference == pytest.approx(Z95 * found.se)
    with pytest.raises(ValueError, match="paired"):
        paired_difference([1], [1, 2])


def test_bootstrap_se_is_the_sd_of_the_replicates() -> None:
    x = list(np.linspace(0, 1, 60))
    found = bootstrap_se(x, seed=1, key="k", replicates=2000)
    assert found == pytest.approx(np.std(x) / math.sqrt(60), rel=0.06)  # lighteval's would be sqrt(2000) smaller
    assert found == bootstrap_se(x, seed=1, key="k", replicates=2000)
    assert bootstrap_se(x, seed=1, key="k", statistic=lambda s: float(np.median(s))) > found


def test_total_variation() -> None:
    assert total_variation({"A": 2}, {"B": 5}) == 1.0
    assert total_variation({"A": 1, "B": 1}, {"A": 10, "B": 10}) == 0.0
    assert total_variation({"A": 4}, {"A": 1, "B": 1, "C": 1, "D": 1}) == 0.75
    assert total_variation({}, {"A": 1}) == 0.0


def test_mean_interval_chooses_by_the_data() -> None:
    assert mean_interval([1.0, 0.0, 1.0]) == (pytest.approx(2 / 3), *wilson(2, 3))
    mean, low, high = mean_interval([1.0, 1.0, 0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b", "c", "c"])
    assert (mean, high) == (pytest.approx(2 / 3), 1.0)
    assert low == pytest.approx(2 / 3 - Z95 * clustered_se([1, 1, 0, 0, 1, 1], ["a", "a", "b", "b", "c", "c"]))
    mean, low, high = mean_interval([2.0, 3.0, 4.0])
    assert (mean, high) == (3.0, pytest.approx(3 + Z95 / math.sqrt(3)))
    with pytest.raises(ValueError):
        mean_interval([])
