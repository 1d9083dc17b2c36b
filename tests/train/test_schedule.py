"""Learning rate and chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.train.schedule import chunks, lr_factor, warmup_of


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
    rows=st.integers(1, 5000),
    batch=st.integers(1, 300),
    count=st.integers(1, 9),
    start=st.integers(0, 40),
)
def test_chunks_cover_the_run_once_and_can_be_entered_anywhere(rows: int, batch: int, count: int, start: int) -> None:
    found = chunks(rows, batch, count, None)
    assert len(found) == min(count, rows)
    assert max(c.rows for c in found) - min(c.rows for c in found) <= 1
    batches = [b for c in found for b in c.batches(batch)]
    assert [step for step, _, _ in batches] == list(range(sum(c.steps for c in found)))
    assert [p for _, first, end in batches for p in range(first, end)] == list(range(rows))
    assert [b for c in found for b in c.batches(batch, start)] == batches[start:]


def test_each_chunk_has_a_warmup_of_its_own() -> None:
    assert [(c.first_step, c.steps, c.warmup) for c in chunks(1000, 10, 2, None)] == [(0, 50, 5), (50, 50, 5)]
