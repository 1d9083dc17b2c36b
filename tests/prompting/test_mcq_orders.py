"""Showing a question and mapping letters back."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.prompting.mcq import (
    format_question,
    letters_of,
    member_orders,
    original_letter,
    rotations,
    shown_letter,
    shown_options,
)

OPTIONS = {"A": "Aspirin", "B": "Furosemide", "C": "Metformin", "D": "Warfarin"}


def test_a_question_is_shown_with_its_context_first() -> None:
    assert format_question("Which?", {"B": "two", "A": "one"}) == "Which?\n\nA. one\nB. two"
    assert format_question("Which?", {"A": "one", "B": "two"}, "A case. ") == "A case.\n\nWhich?\n\nA. one\nB. two"


def test_rotations_put_every_option_in_every_slot_once() -> None:
    orders = rotations(letters_of(OPTIONS))
    assert orders[0] == ("A", "B", "C", "D")
    assert all(Counter(column) == Counter("ABCD") for column in zip(*orders, strict=True))


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 5), st.text(max_size=5))
def test_member_orders_are_distinct_while_they_can_be_and_cyclic_first(
    n: int, members: int, seed: int, key: str
) -> None:
    orders = member_orders(n, members, seed, key)
    assert len(orders) == members
    assert len(set(orders)) == min(members, math.factorial(n))
    assert orders[:n] == [tuple((s + r) % n for s in range(n)) for r in range(min(n, members))]
    assert all(sorted(order) == list(range(n)) for order in orders)


@given(st.integers(2, 6), st.integers(1, 4))
def test_after_every_block_of_n_members_each_option_visited_each_slot_equally(n: int, blocks: int) -> None:
    orders = member_orders(n, n * blocks, 1, "q")
    for column in zip(*orders, strict=True):
        assert set(Counter(column).values()) == {blocks}


def test_orders_are_keyed_by_question_and_seed_alone() -> None:
    assert member_orders(4, 12, 3, "q1") == member_orders(4, 12, 3, "q1")
    assert member_orders(4, 12, 3, "q1") != member_orders(4, 12, 3, "q2")
    assert member_orders(4, 12, 3, "q1")[:8] == member_orders(4, 8, 3, "q1")


@given(st.permutations("ABCD"))
def test_a_shown_letter_maps_back_to_the_option_that_stood_there(order: list[str]) -> None:
    shown = shown_options(OPTIONS, order)
    for slot, text in shown.items():
        original = original_letter(slot, order)
        assert OPTIONS[original] == text
        assert shown_letter(original, order) == slot


def test_an_order_must_name_every_option() -> None:
    with pytest.raises(ValueError):
        shown_options(OPTIONS, ("A", "B"))
