"""What must hold of the merge methods for any tensors, as property tests of the pure functions.

Where numbers and weights are chosen so that float32 arithmetic is exact, equality is to the bit; else the tolerance is
that of a few roundings, or a bound computed from the variance of the random masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import aloe.merge as merge
from aloe.merge.sparsify import keep_count, magprune_scale, top_count

Merge = Callable[..., np.ndarray]
ADDING: dict[str, Merge] = {  # the sparsifiers, without election
    "dare_linear": merge.dare_linear,
    "breadcrumbs": merge.breadcrumbs,
    "della_linear": partial(merge.della, elect=False),
}
ELECTING: dict[str, Merge] = {
    "ties": merge.ties,
    "dare_ties": merge.dare_ties,
    "breadcrumbs_ties": partial(merge.breadcrumbs, elect=True),
    "della": merge.della,
}
SPARSE = {**ADDING, **ELECTING}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
WEIGHTS, DENSITIES, KEYS = (0.5, 0.25, 1.0), (0.5, 0.25, 0.75), ("a", "b", "c")

EXAMPLES = settings(max_examples=15, deadline=None)
FEWER = settings(max_examples=8, deadline=None)  # of what runs every method several times
# Nothing near the smallest normal number: scaled down, it would lose bits for a reason that isn't the merge's.
FLOATS = st.floats(-8, 8, width=32, allow_subnormal=False).map(lambda f: f if abs(f) >= 2.0**-60 else 0.0)
EIGHTHS = st.integers(-16, 16).map(lambda i: i / 8)  # sums and products with the weights above are exact
SHAPE = st.sampled_from([(24,), (6, 4), (3, 8), (8, 1), (1, 7), (1,), (2, 3, 4)])


def tensors(count: int, elements: Any = FLOATS) -> Any:
    """Base and `count` models of one shape."""
    return SHAPE.flatmap(lambda shape: hnp.arrays(np.float32, (count + 1, *shape), elements=elements))


def numbers(name: str, seed: int = 0, keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """What the random methods take beside densities; densities are far enough from 0 and 1 for DELLA's epsilon."""
    if name not in RANDOM:
        return {}
    return {"seed": seed, "keys": keys, "tensor": "w"}


# -- one method in terms of another ------------------------------------------------------------------------------------


@EXAMPLES
@given(tensors(3), st.booleans())
def test_with_everything_kept_the_sparsifiers_are_one_method(arrays: np.ndarray, normalize: bool) -> None:
    base, *models = arrays
    ones = (1.0, 1.0, 1.0)
    added = merge.task_arithmetic(base, models, WEIGHTS, normalize=normalize)
    elected = merge.ties(base, models, WEIGHTS, ones, normalize=normalize)
    for name, method in SPARSE.items():
        merged = method(base, models, WEIGHTS, ones, normalize=normalize)
        assert np.array_equal(merged, added if name in ADDING else elected), name


@EXAMPLES
@given(hnp.arrays(np.float32, (2, 5, 3), elements=st.floats(-(2.0**80), 2.0**80, width=32)))
def test_one_model_with_weight_one_and_all_kept_is_that_model_exactly(arrays: np.ndarray) -> None:
    base, model = arrays
    for name, method in SPARSE.items():
        assert np.array_equal(method(base, [model], (1.0,), (1.0,)), model), name
    assert np.array_equal(merge.task_arithmetic(base, [model], (1.0,)), model)
    assert np.array_equal(merge.linear([model], (1.0,)), model)


@EXAMPLES
@given(tensors(3))
def test_lambda_zero_is_the_base(arrays: np.ndarray) -> None:
    base, *models = arrays
    assert np.array_equal(merge.task_arithmetic(base, models, WEIGHTS, lambda_=0), base)
    for name, method in SPARSE.items():
        assert np.array_equal(method(base, models, WEIGHTS, DENSITIES, lambda_=0, **numbers(name)), base), name


@EXAMPLES
@given(tensors(1))
def test_models_that_are_the_base_change_nothing(arrays: np.ndarray) -> None:
    base = arrays[0]
    models = [base, base, base]
    for name, method in SPARSE.items():
        assert np.array_equal(method(base, models, WEIGHTS, DENSITIES, **numbers(name)), base), name
    assert np.array_equal(merge.task_arithmetic(base, models, WEIGHTS), base)
    assert np.array_equal(merge.model_stock(base, models), base)


@FEWER
@given(tensors(3, EIGHTHS), st.permutations(range(3)), st.booleans())
def test_model_order_changes_nothing(arrays: np.ndarray, order: list[int], normalize: bool) -> None:
    base, *models = arrays
    plain = {"rescale": "none", "normalize": normalize}
    for name, method in SPARSE.items():
        there = method(base, models, WEIGHTS, DENSITIES, **plain, **numbers(name))
        turned = ([x[i] for i in order] for x in (models, WEIGHTS, DENSITIES))
        back = method(base, *turned, **plain, **numbers(name, keys=tuple(KEYS[i] for i in order)))
        assert np.array_equal(there, back), name
    turned_models, weights = [models[i] for i in order], [WEIGHTS[i] for i in order]
    assert np.array_equal(merge.linear(models, WEIGHTS), merge.linear(turned_models, weights))
    np.testing.assert_allclose(
        merge.model_stock(base, models), merge.model_stock(base, turned_models), rtol=1e-5, atol=1e-5
    )


@FEWER
@given(tensors(3), st.integers(0, 2), st.sampled_from(["none", "l1", "expectation"]), st.booleans())
def test_a_model_of_weight_zero_changes_nothing(arrays: np.ndarray, which: int, rescale: Any, normalize: bool) -> None:
    base, *models = arrays
    weights = tuple(0.0 if i == which else w for i, w in enumerate(WEIGHTS))
    rest = [i for i in range(3) if i != which]
    for name, method in SPARSE.items():
        more = {"normalize": normalize, "rescale": rescale}
        with_it = method(base, models, weights, DENSITIES, **more, **numbers(name))
        fewer = ([x[i] for i in rest] for x in (models, weights, DENSITIES))
        without = method(base, *fewer, **more, **numbers(name, keys=tuple(KEYS[i] for i in rest)))
        assert np.array_equal(with_it, without), name


@EXAMPLES
@given(tensors(2))
def test_a_model_named_twice_at_half_its_weight_is_that_model(arrays: np.ndarray) -> None:
    base, first, second = arrays
    for method in (merge.ties, merge.breadcrumbs, partial(merge.breadcrumbs, elect=True)):
        once = method(base, [first, second], (0.5, 1.0), (0.5, 0.75))
        twice = method(base, [first, first, second], (0.25, 0.25, 1.0), (0.5, 0.5, 0.75))
        assert np.array_equal(once, twice)


@FEWER
@given(tensors(3), st.integers(-12, 12), st.sampled_from(["none", "l1", "expectation"]))
def test_scaling_by_a_power_of_two_scales_the_merge_exactly(arrays: np.ndarray, power: int, rescale: Any) -> None:
    scale = np.float32(2.0**power)
    # Differences below the smallest normal number over 2**12 would round away when they are scaled down.
    assume(all(np.all((d == 0) | (np.abs(d) > 2.0**-100)) for d in arrays[1:] - arrays[0]))
    base, *models = arrays
    larger = [scale * m for m in models]
    for name, method in SPARSE.items():
        more = {"rescale": rescale, **numbers(name)}
        merged = method(base, models, WEIGHTS, DENSITIES, **more)
        assert np.array_equal(scale * merged, method(scale * base, larger, WEIGHTS, DENSITIES, **more)), name
    assert np.array_equal(scale * merge.slerp(base, models[0], 0.3), merge.slerp(scale * base, larger[0], 0.3))
    for wise in (False, True):
        stock = merge.model_stock(base, models, filter_wise=wise)
        assert np.array_equal(scale * stock, merge.model_stock(scale * base, larger, filter_wise=wise))


# -- what is kept ------------------------------------------------------------------------------------------------------

DISTINCT = st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.permutations(range(1, n + 1)), st.lists(st.sampled_from([-1, 1]), min_size=n, max_size=n))
)
DENSITY = st.integers(1, 99).map(lambda i: i / 100)


@EXAMPLES
@given(DISTINCT, DENSITY)
def test_trimming_keeps_the_count_and_nothing_smaller_than_what_it_drops(
    drawn: tuple[list[int], list[int]], density: float
) -> None:
    delta = (np.array(drawn[0]) * np.array(drawn[1])).astype(np.float32)
    merged = merge.ties(0 * delta, [delta], (1.0,), (density,))
    kept = merged != 0
    assert np.count_nonzero(kept) == keep_count(delta.size, density)
    assert np.array_equal(merged[kept], delta[kept])
    if not kept.all():
        assert np.abs(delta[kept]).min() > np.abs(delta[~kept]).max()


@EXAMPLES
@given(DISTINCT, DENSITY, st.integers(0, 99).map(lambda i: i / 100))
def test_breadcrumbs_keeps_a_band_below_the_outliers(
    drawn: tuple[list[int], list[int]], density: float, gamma: float
) -> None:
    delta = (np.array(drawn[0]) * np.array(drawn[1])).astype(np.float32)
    merged = merge.breadcrumbs(0 * delta, [delta], (1.0,), (density,), gammas=(gamma,))
    count, top = keep_count(delta.size, density), top_count(delta.size, density, gamma)
    by_size = np.sort(np.abs(delta))[::-1]
    assert np.array_equal(np.sort(np.abs(merged[merged != 0]))[::-1], by_size[top : top + count])
    assert top <= gamma * delta.size + 1e-9
    assert top + count <= delta.size


@EXAMPLES
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-2.0, -1.0, 1.0, 2.0])), DENSITY)
def test_equal_magnitudes_are_kept_and_dropped_by_lower_index(delta: np.ndarray, density: float) -> None:
    order = sorted(range(delta.size), key=lambda i: (-abs(delta[i]), i))
    count = keep_count(delta.size, density)
    trimmed = merge.ties(0 * delta, [delta], (1.0,), (density,))
    assert sorted(np.flatnonzero(trimmed)) == sorted(order[:count])
    top = top_count(delta.size, density, 0.1)
    banded = merge.breadcrumbs(0 * delta, [delta], (1.0,), (density,), gammas=(0.1,))
    assert sorted(np.flatnonzero(banded)) == sorted(order[top : top + count])


@EXAMPLES
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS))
def test_magprune_keeps_with_probabilities_that_rise_with_rank_and_average_to_the_density(delta: np.ndarray) -> None:
    q = 1 / magprune_scale(delta, 0.4, 0.15, np.zeros_like(delta), expectation=True).astype(np.float64)
    np.testing.assert_allclose(q.mean(axis=1), 0.4, rtol=1e-6)
    assert q.min() > 0.25 - 1e-6
    assert q.max() < 0.55 + 1e-6
    for row, size in zip(q, np.abs(delta), strict=True):
        order = np.argsort(size, kind="stable")
        assert np.all(np.diff(row[order]) > 0)


@EXAMPLES
@given(tensors(2), st.randoms(use_true_random=False))
def test_an_entry_that_every_model_drops_keeps_its_base(arrays: np.ndarray, random: Any) -> None:
    base, *models = arrays
    masks = [np.array([random.random() < 0.5 for _ in range(base.size)]).reshape(base.shape) for _ in models]
    dropped = ~(masks[0] | masks[1])
    for name in RANDOM:
        merged = SPARSE[name](base, models, (0.6, 0.4), (0.5, 0.5), masks=masks, rescale="l1")
        assert np.array_equal(merged[dropped], base[dropped]), name


# -- random masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "density"), [("dare_linear", 0.53), ("della_linear", 0.5), ("dare_linear", 0.2)])
def test_over_seeds_the_mean_is_task_arithmetic(name: str, density: float) -> None:
    """Unbiased, entry by entry: within five standard errors, which are computed, of 400 fixed seeds."""
    base = np.linspace(-1, 1, 60, dtype=np.float32).reshape(5, 12)
    spread = np.linspace(-1, 1, 60).reshape(5, 12)
    models = [(base + np.sin(7 * spread)).astype(np.float32), (base + np.cos(5 * spread)).astype(np.float32)]
    weights, seeds = (0.6, 0.4), range(400)
    more: dict[str, Any] = {"epsilons": (0.2, 0.2)} if name == "della_linear" else {}
    drawn = [ADDING[name](base, models, weights, (density, density), seed=s, tensor="w", **more) for s in seeds]
    variance = np.zeros(base.shape)
    for weight, model in zip(weights, models, strict=True):
        q = np.full(base.shape, density)
        if name == "della_linear":
            ranks = np.argsort(np.argsort(np.abs(model - base), axis=1), axis=1)
            q = density - 0.2 + 0.4 * ranks / (base.shape[1] - 1)
        variance += weight**2 * (model - base).astype(np.float64) ** 2 * (1 - q) / q
    error = np.sqrt(variance / len(seeds))
    apart = np.abs(np.mean(drawn, axis=0, dtype=np.float64) - merge.task_arithmetic(base, models, weights))
    assert np.all(apart <= 5 * error + 1e-6)
    # ... and as wide as the masks make it: something is dropped, in each model on its own.
    found = np.var(drawn, axis=0, dtype=np.float64).mean() / variance.mean()
    assert found == pytest.approx(1, abs=0.1)


def test_masks_differ_between_seeds_models_and_tensors_and_not_between_calls() -> None:
    base, model = np.zeros((16, 16), dtype=np.float32), np.ones((16, 16), dtype=np.float32)
    for name in RANDOM:
        variants = [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"), (0, "a", "x")]
        drawn = [
            SPARSE[name](base, [model], (1.0,), (0.5,), seed=s, keys=(k,), tensor=t).tobytes() for s, k, t in variants
        ]
        assert len(set(drawn)) == 4, name
        assert drawn[0] == drawn[4], name


# -- averages, arcs and steps ------------------------------------------------------------------------------------------


@EXAMPLES
@given(tensors(1), st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
def test_linear_of_equal_models_is_the_model(arrays: np.ndarray, weights: list[float]) -> None:
    model = arrays[0]
    np.testing.assert_allclose(merge.linear([model] * len(weights), weights), model, rtol=1e-6, atol=1e-37)


@EXAMPLES
@given(tensors(3))
def test_linear_stays_between_the_models(arrays: np.ndarray) -> None:
    merged = merge.linear(list(arrays), (0.2, 0.3, 0.1, 0.4))
    slack = 1e-6 * np.abs(arrays).max(axis=0)
    assert np.all(merged >= arrays.min(axis=0) - slack)
    assert np.all(merged <= arrays.max(axis=0) + slack)


@EXAMPLES
@given(tensors(1), st.floats(0, 1))
def test_slerp_ends_at_its_ends_and_is_symmetric(arrays: np.ndarray, t: float) -> None:
    one, two = arrays
    assert np.array_equal(merge.slerp(one, two, 0.0), one)
    assert np.array_equal(merge.slerp(one, two, 1.0), two)
    # Beyond NEARLY_PARALLEL it is a straight line; up to there no coefficient is above 1 / sin(acos(0.9995)) = 32.
    slack = 1e-5 * float(np.abs(arrays).max())
    np.testing.assert_allclose(merge.slerp(one, two, t), merge.slerp(two, one, 1 - t), rtol=0, atol=slack)


@EXAMPLES
@given(tensors(1), st.floats(0, 1))
def test_slerp_keeps_the_length_of_equally_long_tensors(arrays: np.ndarray, t: float) -> None:
    lengths = [np.linalg.norm(a.astype(np.float64)) for a in arrays]
    assume(min(lengths) > 0.1)
    one, two = ((a / n).astype(np.float32) for a, n in zip(arrays, lengths, strict=True))
    cosine = float(np.sum(one.astype(np.float64) * two))
    assume(abs(cosine) < 0.999)  # above, it keeps to the straight line
    merged = merge.slerp(one, two, t).astype(np.float64)
    assert np.linalg.norm(merged) == pytest.approx(1, abs=2e-5)
    angle = np.arccos(np.clip(np.sum(merged * one) / np.linalg.norm(merged), -1, 1))
    assert angle == pytest.approx(t * np.arccos(cosine), abs=5e-3)


def step(base: np.ndarray, models: list[np.ndarray], merged: np.ndarray) -> float:
    """How far `merged` lies from the base towards the models' average, by least squares."""
    towards = np.mean(models, axis=0, dtype=np.float64) - base
    return float(np.sum((merged.astype(np.float64) - base) * towards) / np.sum(towards * towards))


@EXAMPLES
@given(tensors(1), st.integers(2, 5))
def test_model_stock_of_identical_models_goes_all_the_way(arrays: np.ndarray, count: int) -> None:
    base, model = arrays
    assume(np.abs(model - base).max() > 1e-3 * np.abs(base).max())
    slack = 2e-6 * (np.abs(base) + np.abs(model)).max()
    np.testing.assert_allclose(merge.model_stock(base, [model] * count), model, rtol=0, atol=slack)


@EXAMPLES
@given(tensors(1, EIGHTHS), st.booleans())
def test_model_stock_of_opposing_models_stays_at_the_base(arrays: np.ndarray, wise: bool) -> None:
    base, delta = arrays
    merged = merge.model_stock(base, [base + delta, base - delta, base + delta, base - delta], filter_wise=wise)
    assert np.array_equal(merged, base)


@EXAMPLES
@given(tensors(3))
def test_model_stock_steps_from_the_base_to_the_average_and_no_further(arrays: np.ndarray) -> None:
    base, *models = arrays
    deltas = [(m - base).astype(np.float64).ravel() for m in models]
    assume(min(np.linalg.norm(d) for d in deltas) > 0.1)
    assume(np.linalg.norm(np.mean(deltas, axis=0)) > 0.1)
    pairs = itertools.combinations(deltas, 2)
    c = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    expected = 3 * c / (1 + 2 * c) if c > 0 else 0.0
    found = step(base, models, merge.model_stock(base, models))
    assert found == pytest.approx(expected, abs=1e-4)
    assert -1e-4 <= found <= 1 + 1e-4


def test_model_stock_by_row_is_model_stock_of_each_row() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((9, 17)).astype(np.float32)
    shared = rng.standard_normal((9, 17))
    models = [(base + 0.1 * (shared + rng.standard_normal((9, 17)))).astype(np.float32) for _ in range(3)]
    by_row = merge.model_stock(base, models, filter_wise=True)
    for row in range(9):
        alone = merge.model_stock(base[row], [m[row] for m in models])
        np.testing.assert_allclose(by_row[row], alone, rtol=1e-6)
    assert not np.allclose(by_row, merge.model_stock(base, models), atol=1e-4)


# -- any input ---------------------------------------------------------------------------------------------------------

WIDE = st.builds(lambda sign, power: sign * 2.0**power, st.sampled_from([-1, 0, 1]), st.integers(-20, 60))
TINY = st.sampled_from([1e-42, -1e-45, -0.0])  # what l1 would multiply by more than float32 holds


@FEWER
@given(st.sampled_from([(WIDE, "l1"), (WIDE | TINY, "none"), (WIDE | TINY, "expectation")]), st.booleans(), st.data())
def test_finite_tensors_give_finite_merges(kind: tuple[Any, Any], normalize: bool, data: Any) -> None:
    base, *models = data.draw(tensors(3, kind[0]))
    rescale = kind[1]
    for name, method in SPARSE.items():
        merged = method(
            base, models, WEIGHTS, (0.01, 0.5, 0.99), rescale=rescale, normalize=normalize, **numbers(name), **few(name)
        )
        assert np.isfinite(merged).all(), name
    assert np.isfinite(merge.slerp(base, models[0], 0.3)).all()
    for wise in (False, True):
        assert np.isfinite(merge.model_stock(base, models, filter_wise=wise)).all()


def few(name: str) -> dict[str, Any]:
    return {"epsilons": (0.005, 0.4, 0.01)} if name.startswith("della") else {}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 4), (1, 1)])
def test_scalars_and_empty_tensors_merge(shape: tuple[int, ...]) -> None:
    base, model = np.ones(shape, dtype=np.float32), np.full(shape, 3, dtype=np.float32)
    for name, method in SPARSE.items():
        merged = method(base, [model, model, model], WEIGHTS, DENSITIES, rescale="none", **numbers(name))
        assert merged.shape == shape
        assert np.isfinite(merged).all()
    assert np.array_equal(merge.linear([model, model], (1, 1)), model)
    assert np.array_equal(merge.slerp(base, model, 0.5), np.full(shape, 2))
    for wise in (False, True):
        assert np.array_equal(merge.model_stock(base, [model, model], filter_wise=wise), model)
