"""Learning rate, exact shares and the order of rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.errors import AloeError
from aloe.train.schedule import draw, lr_factor, quotas, stream, warmup_of


def test_learning_rate_rises_to_the_peak_and_falls() -> None:
    cosine = [lr_factor(i, 14, 4, "cosine") for i in range(14)]
    assert cosine[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine[9] == pytest.approx(0.5)
    assert cosine == sorted(cosine[:5]) + sorted(cosine[5:], reverse=True)
    assert cosine[-1] > 0
    assert [lr_factor(i, 4, 0, "linear") for i in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {lr_factor(i, 9, 0, "constant") for i in range(9)} == {1.0}


def test_default_warmup_is_a_tenth_of_a_short_run() -> None:
    assert [warmup_of(n, None) for n in (5, 40, 5000)] == [0, 4, 100]
    assert warmup_of(5, 100) == 100


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


def test_draw_depends_on_keys_not_on_their_order() -> None:
    keys = [f"r{i}" for i in range(50)]
    drawn = {keys[i] for i in draw(keys, 10, 7, "sft rows")}
    back = keys[::-1]
    assert {back[i] for i in draw(back, 10, 7, "sft rows")} == drawn
    assert {keys[i] for i in draw(keys, 10, 8, "sft rows")} != drawn


def test_stream_shuffles_each_epoch_anew() -> None:
    keys = [f"r{i}" for i in range(20)]
    order = stream(keys, 2.5, 7, "sft order")
    assert len(order) == 50
    assert sorted(order[:20]) == sorted(order[20:40]) == list(range(20))
    assert order[:20] != order[20:40]
    assert stream(keys, 2, 7, "sft order") == order[:40]
    assert len(stream(keys, 0.01, 7, "sft order")) == 1
