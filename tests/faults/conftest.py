"""Runs a script of `benchmarks/faults` in its short form and gives what it printed last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "faults"


@pytest.fixture
def broken() -> Callable[..., dict[str, Any]]:
    """`broken("kill.py", "--kills", "12")`: its JSON; the test fails with its output where the script finds a loss."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, str(SCRIPTS / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, (done.stderr + done.stdout)[-6000:]
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    return run


@pytest.fixture(scope="session")
def needs_shim() -> None:
    """Faults of the disk are injected by a small C library."""
    sys.path.insert(0, str(SCRIPTS))
    from shim import compiler

    if compiler() is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no Linux")
