"""Progress a person can read: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from aloe.terminal import console

EVERY = 10.0  # seconds between plain lines
TOLD_FROM = 0.01  # share of the work from which the time left is told: before, it is that of loading and compiling
BYTES = "B"  # the unit whose counts are shown as MB


class Progress(Protocol):
    """What a step advances."""

    def advance(self, count: int = 1, **figures: float | str) -> None: ...


def _figures(figures: dict[str, float | str]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())


class _Plain:
    def __init__(self, console: Console, label: str, total: int, unit: str) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done = 0
        self.start = self.last = time.monotonic()
        self.latest: dict[str, float | str] = {}

    def advance(self, count: int = 1, **figures: float | str) -> None:
        self.done += count
        self.latest.update(figures)
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            parts = [f"  {self.label}", self._amount(), _figures(self.latest)]
            if self.done >= max(TOLD_FROM * self.total, 1):
                left = (now - self.start) / self.done * max(self.total - self.done, 0)
                parts.append(f"ETA {left:.0f} s")
            self.console.line("  ".join(part for part in parts if part.strip()))

    def _amount(self) -> str:
        if self.unit == BYTES:
            return f"{self.done / 1e6:.0f}/{self.total / 1e6:.0f} MB"
        return f"{self.done}/{self.total} {self.unit}"


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task
        self.latest: dict[str, float | str] = {}

    def advance(self, count: int = 1, **figures: float | str) -> None:
        self.latest.update(figures)
        self.bar.update(self.task, advance=count, figures=_figures(self.latest))


class Console:
    """Where a run speaks. `quiet` keeps errors only."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.rich = console(sys.stderr)

    def line(self, text: str) -> None:
        """One line of plain text."""
        if not self.quiet:
            self.rich.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Progress]:
        """A bar for `total` units; plain lines when the output is no terminal."""
        if self.quiet or not self.rich.is_terminal:
            yield _Plain(self, label, total, unit)
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            *((DownloadColumn(),) if unit == BYTES else (MofNCompleteColumn(), TextColumn(unit))),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.rich, transient=True) as bar:
            yield _Bar(bar, bar.add_task(label, total=total, figures=""))
