"""Several sequences, and several branches after one prefix, in one row: layout and exact mask.

A *tree* is a prefix and its branches: a plain training row is a tree without branches, a preference pair is a prompt
with two, the letters of a question under four orders are a stem with four. Trees are laid side by side; positions
restart at each tree and each branch goes on from its prefix, so every token sees exactly what it would see alone.
Prompt sharing for DPO: "prefix sharing" (Wang & Hegde 2024, arXiv 2410.20305).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tree:
    """A prefix (token ids) and what may follow it, each independent of the others."""

    prefix: Sequence[int]
    branches: Sequence[Sequence[int]] = ()

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(b) for b in self.branches)


@dataclass(frozen=True)
class Layout:
    """One row of `length` tokens: ids, positions, which tree (0-based, -1 for padding) and branch (0 = prefix).

    `starts[t][b]` is where branch b of tree t begins; `starts[t][0]` is the prefix.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    tree: npt.NDArray[np.int64]
    branch: npt.NDArray[np.int64]
    starts: list[list[int]]

    def mask(self) -> npt.NDArray[np.bool_]:
        """[query, key] True where the query may look: same tree, key in the prefix or the same branch, not later.

        A padding token sees itself only, which keeps softmax finite."""
        index = np.arange(len(self.ids))
        same_tree = self.tree[:, None] == self.tree[None, :]
        visible = (self.branch[None, :] == 0) | (self.branch[:, None] == self.branch[None, :])
        allowed = same_tree & visible & (index[None, :] <= index[:, None]) & (self.tree[:, None] >= 0)
        np.fill_diagonal(allowed, True)
        return allowed


def lay_out(trees: Sequence[Tree], length: int, pad_id: int) -> Layout:
    """Lay trees side by side in one row of `length` tokens."""
    used = sum(len(t) for t in trees)
    if used > length:
        raise ValueError(f"{used} tokens don't fit into a row of {length}")
    ids = np.full(length, pad_id, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    tree = np.full(length, -1, dtype=np.int64)
    branch = np.zeros(length, dtype=np.int64)
    starts: list[list[int]] = []
    at = 0
    for t, item in enumerate(trees):
        starts.append([])
        for b, tokens in enumerate((item.prefix, *item.branches)):
            end = at + len(tokens)
            first = 0 if b == 0 else len(item.prefix)
            ids[at:end] = tokens
            positions[at:end] = np.arange(first, first + len(tokens))
            tree[at:end], branch[at:end] = t, b
            starts[-1].append(at)
            at = end
    return Layout(ids, positions, tree, branch, starts)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` grouped so that no group's sum exceeds `capacity`.

    Ties by lower index, so the grouping depends on the lengths alone. O(n log n + n x open bins of one length).
    """
    from bisect import bisect_left, insort

    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, bin), sorted: the tightest bin that still fits is a bisection away
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[i]
        if need > capacity:
            raise ValueError(f"a sequence of {need} tokens doesn't fit into {capacity}")
        at = bisect_left(room, (need, -1))
        if at == len(room):
            bins.append([i])
            insort(room, (capacity - need, len(bins) - 1))
        else:
            space, chosen = room.pop(at)
            bins[chosen].append(i)
            insort(room, (space - need, chosen))
    return bins


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all rows share."""
    shortest = min(len(r) for r in rows)
    first = rows[0]
    for i in range(shortest):
        if any(r[i] != first[i] for r in rows):
            return i
    return shortest
