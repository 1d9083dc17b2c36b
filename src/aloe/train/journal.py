"""What a run writes line by line while it goes on, and takes along in its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """JSON Lines files under `out`, each line flushed, as a run is watched while it goes on.

    The lines are kept in memory too: the output folder of a run that dies is gone, so a checkpoint carries what had
    been written, and a run that goes on writes it again first. Only one process of a team has a journal that writes.
    """

    def __init__(self, out: Path, *, writes: bool = True) -> None:
        self._out, self._writes = out, writes
        self._lines: dict[str, list[dict[str, Any]]] = {}

    def add(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to the file `name` (`metrics.jsonl`, `logs/timing.jsonl`)."""
        self._lines.setdefault(name, []).append(dict(line))
        if self._writes:
            path = self._out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """All lines of a file, also those of a run that this one goes on with."""
        return self._lines.get(name, [])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: list(lines) for name, lines in self._lines.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Begin with the lines of `state`; what this journal had is replaced."""
        for name in self._lines:
            if self._writes:
                (self._out / name).unlink(missing_ok=True)
        self._lines = {}
        for name, lines in state.items():
            for line in lines:
                self.add(name, line)
