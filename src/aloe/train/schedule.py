"""At which learning rate, and in which stages, a run goes through its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant"]


def lr_factor(step: int, steps: int, warmup: int, schedule: ScheduleName) -> float:
    """Factor on the learning rate of step `step` (from 0) of `steps`.

    Warm-up rises linearly and reaches 1 at step `warmup`; its first step is 1/(warmup + 1) of the rate and not zero,
    which would waste a batch. Cosine and linear then fall towards 0, which they would reach one step after the last.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def warmup_of(steps: int, asked: int | None) -> int:
    """Warm-up steps: as asked, else the 100 of the Aloe Beta recipe or a tenth of a run that is shorter than 1,000."""
    return min(100, steps // 10) if asked is None else asked


@dataclass(frozen=True)
class Chunk:
    """A part of a run with a schedule of its own: `rows` rows from position `first_row`, `steps` from `first_step`."""

    index: int
    first_row: int
    rows: int
    first_step: int
    steps: int
    warmup: int

    def batches(self, batch: int, from_step: int = 0) -> Iterator[tuple[int, int, int]]:
        """(step, first position, end position) of each global batch, from step `from_step` of the run on."""
        for at in range(max(0, from_step - self.first_step), self.steps):
            start = self.first_row + at * batch
            yield self.first_step + at, start, min(start + batch, self.first_row + self.rows)


def chunks(rows: int, batch: int, count: int, warmup_steps: int | None) -> list[Chunk]:
    """`rows` cut into `count` runs of rows as equal as can be (the first ones get the remainder), each in batches."""
    found: list[Chunk] = []
    row = step = 0
    for index in range(min(count, rows)):
        size = rows // count + (index < rows % count)
        steps = math.ceil(size / batch)
        found.append(Chunk(index, row, size, step, steps, warmup_of(steps, warmup_steps)))
        row, step = row + size, step + steps
    return found
