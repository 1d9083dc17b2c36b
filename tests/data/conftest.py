"""A context for steps of the data room: files and starter sets only, ledger checked as it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aloe.data.starter import is_starter, starter_path
from aloe.digests import digest_file, digest_text


class RowsContext:
    """What `curate` may touch. Step names resolve through `steps`."""

    def __init__(self, out: Path, seed: int = 7) -> None:
        self.out, self.seed = out, seed
        self.family, self.name, self.licence, self.cache = "family", "corpus", "cc0-1.0", out.parent / "cache"
        self.steps: dict[str, Path] = {}
        self.stages: dict[str, tuple[int, int, dict[str, int]]] = {}
        self.engines: dict[str, Any] = {}
        self.lines: list[str] = []
        out.mkdir(parents=True)

    def licence_of(self, ref: str) -> str:
        sidecar = Path(f"{ref}.license")
        return sidecar.read_text() if sidecar.exists() else "unknown"

    def path(self, ref: str) -> Path:
        return self.steps.get(ref) or (starter_path(ref) if is_starter(ref) else Path(ref))

    def digest(self, ref: str) -> str:
        return digest_text(f"{ref}|{digest_file(self.path(ref))}" if self.path(ref).is_file() else ref)

    def engine(self, ref: str) -> Any:
        return self.engines[ref]

    def log(self, message: str) -> None:
        self.lines.append(message)

    def ledger(self, stage: str, *, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        assert rows_in == kept + sum(dropped.values()), stage
        self.stages[stage] = (rows_in, kept, dropped)


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Any]:
    """`make_context(name, seed=7)`: a context whose output folder is new."""
    return lambda name="out", seed=7: RowsContext(tmp_path / name, seed)
