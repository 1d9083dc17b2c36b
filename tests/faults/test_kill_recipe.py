"""The short form of `benchmarks/faults/kill.py`: curation, writing and training through twelve kills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.usefixtures("needs_shim")
def test_twelve_kills_over_four_steps_change_nothing(broken: Callable[..., dict[str, Any]]) -> None:
    steps = ["corpus", "reasoning", "general", "sft_general"]
    found = broken("kill.py", "--kills", "12", "--a-step", "3", "--steps", *steps)["kill"]
    assert found["kills"] >= 12
    assert set(found["kills_by_step"]) == set(steps)
    assert found["differences"] == []
    assert found["files_of_equal_bytes"] > 0
    assert found["temporary_files_left_at_the_end"] == 0
    assert found["optimizer_steps_repeated_after_a_kill"]["most"] <= found["optimizer_steps_between_checkpoints"]
    assert found["most_bytes_left_by_a_kill"] < 1e9
