"""Mixing: exact shares, no repeats, nothing that depends on the order of rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.data.mix import largest_total, mix, quotas
from aloe.errors import AloeError
from aloe.records import Dialogue


def rows(source: str, count: int) -> list[Dialogue]:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    return [Dialogue(id=f"{source}:{i}", source=source, licence="mit", messages=turns) for i in range(count)]


def test_quotas_by_largest_remainder() -> None:
    assert quotas({"a": 0.6, "b": 0.2, "c": 0.2}, 10) == {"a": 6, "b": 2, "c": 2}
    assert quotas({"a": 1, "b": 1, "c": 1}, 10) == {"a": 4, "b": 3, "c": 3}
    assert quotas({"a": 0.5, "b": 0.3, "c": 0.2}, 9) == {"a": 4, "b": 3, "c": 2}
    assert quotas({"a": 3, "b": 1}, 0) == {"a": 0, "b": 0}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1),
    st.integers(0, 10_000),
)
def test_quotas_sum_and_stay_within_one_row(weights: dict[str, float], total: int) -> None:
    counts = quotas(weights, total)
    assert sum(counts.values()) == total
    scale = sum(weights.values())
    assert all(abs(counts[k] - w / scale * total) < 1 + 1e-6 for k, w in weights.items())


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 60), st.floats(0.1, 10)), min_size=1),
)
def test_largest_total_fits_and_one_more_does_not(groups: dict[str, tuple[int, float]]) -> None:
    sizes, weights = {k: v[0] for k, v in groups.items()}, {k: v[1] for k, v in groups.items()}
    total = largest_total(sizes, weights)
    assert all(count <= sizes[k] for k, count in quotas(weights, total).items())
    assert any(count > sizes[k] for k, count in quotas(weights, total + 1).items())


def test_shares_are_exact_and_rows_distinct() -> None:
    mixed = mix({"a": rows("a", 50), "b": rows("b", 50)}, {"a": 3, "b": 1}, 40, seed=1)
    assert sum(r.source == "a" for r in mixed) == 30
    assert len({r.id for r in mixed}) == 40
    assert mixed != sorted(mixed, key=lambda r: r.id)


def test_default_takes_all_or_what_the_weights_allow() -> None:
    groups = {"a": rows("a", 10), "b": rows("b", 40)}
    assert len(mix(groups, None, None, seed=1)) == 50
    assert sorted(r.source for r in mix(groups, {"a": 1, "b": 1}, None, seed=1)) == ["a"] * 10 + ["b"] * 10
    assert sorted(r.source for r in mix(groups, None, 10, seed=1)) == ["a"] * 2 + ["b"] * 8
    assert len(mix({**groups, "c": []}, None, None, seed=1)) == 50


def test_order_of_rows_and_sources_changes_nothing() -> None:
    groups = {"a": rows("a", 20), "b": rows("b", 20)}
    turned = {"b": groups["b"][::-1], "a": groups["a"][::-1]}
    assert mix(groups, {"a": 1, "b": 2}, 15, seed=1) == mix(turned, {"b": 2, "a": 1}, 15, seed=1)
    assert mix(groups, None, 15, seed=1) != mix(groups, None, 15, seed=2)


def test_too_many_rows() -> None:
    with pytest.raises(AloeError, match="10 rows of a, which has 5") as error:
        mix({"a": rows("a", 5), "b": rows("b", 50)}, {"a": 1, "b": 1}, 20, seed=1)
    assert "ask for 10 rows or fewer" in str(error.value)
