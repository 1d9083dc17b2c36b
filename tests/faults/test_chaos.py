"""The short form of `benchmarks/faults/chaos.py`: 300 requests through proxies that spoil answers, one of four dies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_every_request_is_answered_once_or_reported(broken: Callable[..., dict[str, Any]]) -> None:
    found = broken("chaos.py", "--quick")
    for name in ("one endpoint", "four endpoints, one dies"):
        part = found[name]
        assert part["answered"] + part["errored"] == part["requests"] == 150
        assert (part["lost"], part["wrong"], part["twice_in_the_ledger"]) == (0, 0, 0)
        assert part["in_the_ledger"] == part["answered"]
        assert part["requests_sent"] > part["requests"]  # else nothing was spoiled
        assert part["errored_then"] == 0
