"""Layout, mask and packing: what shares a row must not be seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aloe.models.load import load
from aloe.models.packed import Tree, best_fit, common_prefix, lay_out


def test_packed_logits_equal_separate_logits(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder).model
    trees = [Tree([5, 6, 7, 8], [[9, 10], [11, 12, 13]]), Tree([20, 21], []), Tree([30], [[31], [31, 32]])]
    layout = lay_out(trees, 20, pad_id=0)
    with torch.inference_mode():
        packed = model(
            input_ids=torch.from_numpy(layout.ids)[None],
            position_ids=torch.from_numpy(layout.positions)[None],
            attention_mask=torch.from_numpy(layout.mask())[None, None],
        ).logits[0]
        for t, tree in enumerate(trees):
            for b, branch in enumerate([[], *tree.branches]):
                alone = model(input_ids=torch.tensor([[*tree.prefix, *branch]])).logits[0]
                at, size = layout.starts[t][b], len(branch) if b else len(tree.prefix)
                torch.testing.assert_close(packed[at : at + size], alone[len(alone) - size :], atol=1e-5, rtol=0)


def test_mask_hides_other_trees_other_branches_and_the_future() -> None:
    layout = lay_out([Tree([1, 2], [[3], [4]]), Tree([5])], 6, pad_id=0)
    seen = [[k for k in range(6) if layout.mask()[q, k]] for q in range(6)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [4], [5]]
    assert layout.positions.tolist() == [0, 1, 2, 2, 0, 0]


def test_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        lay_out([Tree([1, 2, 3])], 2, pad_id=0)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 90))
def test_best_fit_loses_nothing_overfills_nothing_and_is_the_greedy_rule(lengths: list[int], capacity: int) -> None:
    bins = best_fit(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= capacity for b in bins)
    # The definition, written slowly: the fullest bin that still fits, the earliest of equals by space left.
    slow: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [s for s in slow if s >= lengths[i]]
        if fitting:
            slow[slow.index(min(fitting))] -= lengths[i]
        else:
            slow.append(capacity - lengths[i])
    assert sorted(slow) == sorted(capacity - sum(lengths[i] for i in b) for b in bins)


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[1], [2]]) == 0
