"""The short form of `benchmarks/faults/surroundings.py`: no room, no rights, a jumping clock, a pause, another run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.usefixtures("needs_shim")
def test_what_breaks_around_a_run_is_one_error_and_loses_nothing(broken: Callable[..., dict[str, Any]]) -> None:
    found = broken("surroundings.py", "--quick")["surroundings"]
    parts = {name: part for name, part in found.items() if isinstance(part, dict)}
    assert len(parts) >= 10
    assert [name for name, part in parts.items() if part["wrong"]] == []
    full = found["ENOSPC from a call on"]
    assert full["ended"]["error"] > 0.8 * full["calls_failed"]
    assert "broken" not in full["ended"]
    assert "process" in found["a pause, a second run, a killed one"]["said_to_the_second_run"]
