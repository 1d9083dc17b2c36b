"""A step's surroundings without the machinery: folders, collected logs, ledgers and progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.contract import Hardware
from aloe.digests import digest_file, digest_tree, files_in


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A model this small only waits for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Bar:
    def __init__(self) -> None:
        self.done = 0
        self.figures: dict[str, float | str] = {}

    def advance(self, count: int = 1, **figures: float | str) -> None:
        self.done += count
        self.figures |= figures


class FakeContext:
    """What `aloe.contract.Context` promises, as far as training needs it. References are paths."""

    family, name, licence = "tiny", "step", "cc0-1.0"

    def __init__(self, out: Path, cache: Path, seed: int = 7) -> None:
        out.mkdir(parents=True)
        self.out, self.cache, self.seed = out, cache, seed
        self.hardware = Hardware()
        self.removable: list[Path] = []
        self.logs: list[str] = []
        self.ledgers: list[dict[str, Any]] = []
        self.tokens: dict[str, int] = {}
        self.bars: dict[str, Bar] = {}

    def licence_of(self, ref: str) -> str:
        sidecar = Path(f"{ref}.license")
        return sidecar.read_text() if sidecar.exists() else "unknown"

    def path(self, ref: str) -> Path:
        return Path(ref)

    def digest(self, ref: str) -> str:
        path = Path(ref)
        if path.is_file():
            return digest_file(path)
        return digest_tree({str(p.relative_to(path)): digest_file(p) for p in files_in(path)})

    def done_with(self, folder: Path) -> None:
        self.removable.append(folder)

    def log(self, message: str) -> None:
        self.logs.append(message)

    def ledger(self, stage: str, *, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        assert rows_in == kept + sum(dropped.values())
        self.ledgers.append({"stage": stage, "rows_in": rows_in, "kept": kept, "dropped": dropped})

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        bar = self.bars[label] = Bar()
        yield bar
        assert bar.done == total, f"{label}: {bar.done} of {total} {unit}"

    def count_tokens(self, **tokens: int) -> None:
        for name, count in tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count


@pytest.fixture
def make_context(tmp_path: Path) -> Any:
    """`make_context(name, seed=7)`: a fresh out folder, one cache for the test."""
    return lambda name="out", seed=7: FakeContext(tmp_path / name, tmp_path / "cache", seed)
