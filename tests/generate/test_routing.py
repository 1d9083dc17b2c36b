"""Routing by itself: windows that open and close, endpoints that go and come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.errors import AloeError
from aloe.generate.routing import FIRST_WINDOW, STRIKES, Endpoint, Router


async def well(url: str) -> str | None:
    return None


async def ill(url: str) -> str | None:
    return f"{url} is away"


def router(*urls: str, probe: Any = well, **fields: Any) -> Router:
    values = {"most": 8, "give_up_s": 0.2, "backoff": 0.01} | fields
    return Router(list(urls), probe=probe, clock=asyncio.get_running_loop().time, **values)


def test_the_window_doubles_while_full_then_grows_by_one_a_round() -> None:
    endpoint = Endpoint("u", most=64, in_flight=4)
    for _ in range(4):
        endpoint.succeed()
        endpoint.in_flight = int(endpoint.window)
    assert endpoint.window == 2 * FIRST_WINDOW  # slow start: one for every answer
    assert endpoint.cut(started=1.0, now=2.0)
    assert endpoint.window == FIRST_WINDOW
    endpoint.in_flight = 4
    for _ in range(4):
        endpoint.succeed()
    assert endpoint.window == pytest.approx(FIRST_WINDOW + 1, abs=0.2)


def test_an_idle_window_does_not_grow() -> None:
    endpoint = Endpoint("u", most=64, in_flight=1)
    for _ in range(100):
        endpoint.succeed()
    assert endpoint.window == FIRST_WINDOW


def test_requests_that_were_under_way_together_cut_once() -> None:
    endpoint = Endpoint("u", most=64, window=32)
    assert [endpoint.cut(started=1.0, now=2.0), endpoint.cut(1.5, 2.1), endpoint.cut(2.05, 3.0)] == [True, False, True]
    assert endpoint.window == 8


@given(st.lists(st.sampled_from(["answer", "refuse", "start", "end"]), max_size=200), st.integers(1, 40))
def test_the_window_stays_within_its_bounds(events: list[str], most: int) -> None:
    endpoint = Endpoint("u", most=most)
    for now, event in enumerate(events):
        if event == "answer":
            endpoint.succeed()
        elif event == "refuse":
            endpoint.refuse(now - 1, now, None, 0.5)
        elif event == "start" and endpoint.open(1e9):
            endpoint.in_flight += 1
        elif event == "end" and endpoint.in_flight:
            endpoint.in_flight -= 1
        assert 1 <= endpoint.window <= most
        assert endpoint.in_flight <= most


def test_pauses_grow_with_refusals_and_end_with_an_answer() -> None:
    endpoint = Endpoint("u", most=64)
    pauses = []
    for now in (0.0, 100.0, 200.0, 300.0):
        endpoint.refuse(now, now, None, 1.0)
        pauses.append(endpoint.free_at - now)
    assert all(0.75 * 2**i <= pause <= 1.25 * 2**i for i, pause in enumerate(pauses))
    endpoint.succeed()
    endpoint.refuse(400.0, 400.0, None, 1.0)
    assert endpoint.free_at - 400.0 <= 1.25


def test_places_go_to_the_least_loaded_in_turn() -> None:
    async def run() -> list[str]:
        chooser = router("a", "b")
        taken = [await chooser.acquire() for _ in range(4)]
        chooser.release(taken[0])
        chooser.release(taken[2])
        taken += [await chooser.acquire(), await chooser.acquire()]
        await chooser.close()
        return [e.url for e in taken]

    assert sorted(asyncio.run(run())[:4]) == ["a", "a", "b", "b"]
    assert asyncio.run(run())[4:] == ["a", "a"]


def test_waiters_are_served_in_the_order_they_came() -> None:
    async def run() -> list[int]:
        chooser = router("a", most=1)
        served: list[int] = []

        async def one(number: int) -> None:
            endpoint = await chooser.acquire()
            served.append(number)
            await asyncio.sleep(0)
            chooser.release(endpoint)

        await asyncio.gather(*map(one, range(30)))
        return served

    assert asyncio.run(run()) == list(range(30))


def test_an_endpoint_is_taken_out_after_strikes_in_a_row_and_comes_back_small() -> None:
    async def run() -> None:
        chooser = router("a", "b")
        a = chooser.endpoints[0]
        for _ in range(STRIKES - 1):
            chooser.strike(a, 0.0, "lost")
        chooser.succeed(a)
        for _ in range(STRIKES - 1):
            chooser.strike(a, 0.0, "lost")
        assert not a.out
        chooser.strike(a, 0.0, "lost")
        assert a.out
        assert {(await chooser.acquire()).url for _ in range(3)} == {"b"}
        while a.out:
            await asyncio.sleep(0.02)
        assert a.window == 1.0
        await chooser.close()

    asyncio.run(run())


def test_darkness_is_waited_out_for_so_long() -> None:
    async def run() -> None:
        chooser = router("a", "b", probe=ill)
        for endpoint in chooser.endpoints:
            chooser.take_out(endpoint, "refused")
        try:
            await chooser.acquire()
        finally:
            await chooser.close()

    with pytest.raises(AloeError, match=r"for 0\.2 s"):
        asyncio.run(run())
