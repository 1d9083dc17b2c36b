"""What a run says of its progress where there is no terminal."""

from __future__ import annotations

import pytest

from aloe.run import progress
from aloe.run.progress import Console


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Lines(Console):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def told(clock: Clock, total: int, unit: str, *moves: tuple[float, int]) -> list[str]:
    console = Lines()
    console.rich._force_terminal = False
    with console.progress("work", total, unit) as bar:
        for seconds, count in moves:
            clock.now += seconds
            bar.advance(count, loss=0.5)
    return console.said


def test_time_left_is_told_once_some_of_the_work_is_done(clock: Clock) -> None:
    """The first unit's time is that of loading and compiling: 2,304 of 538 million bytes were "29 days" left."""
    assert told(clock, 538_000_000, "B", (10.0, 2304), (10.0, 268_997_696), (1.0, 5)) == [
        "  work  0/538 MB  loss 0.5",
        "  work  269/538 MB  loss 0.5  ETA 20 s",
    ]


def test_rows_are_counted_as_rows(clock: Clock) -> None:
    assert told(clock, 36, "rows", (12.0, 1), (0.5, 1), (11.5, 16)) == [
        "  work  1/36 rows  loss 0.5  ETA 420 s",
        "  work  18/36 rows  loss 0.5  ETA 24 s",
    ]
