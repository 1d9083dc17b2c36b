"""Answers in other shapes than OpenAI's: an accident among good ones, the end of a run where all are so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
from fault_server import Answer, Call, FaultServer, echo, said

from aloe.errors import AloeError
from aloe.generate import exchange
from aloe.generate.engine import Request
from aloe.generate.server import ServerEngine
from aloe.generate.server_spec import ServerSpec

STRANGE = {
    "other JSON": Answer({"answer": 3}),
    "a list": Answer("[1, 2]"),
    "choices of another type": Answer({"choices": {"message": "x"}}),
    "content of another type": said([{"type": "text"}]),  # type: ignore[arg-type]
    "log-probabilities of another type": said("x", logprobs=[1, 2]),
}


def answered(server: FaultServer, count: int, **fields: Any) -> list[Any]:
    quick = {"timeout_s": 5.0, "backoff_s": 0.01, "give_up_s": 1.0, "max_concurrency": 1}
    engine = ServerEngine(ServerSpec(endpoints=[server.url], model="m", **{**quick, **fields}), "served")
    try:
        asked = [Request(key=f"k{i}", messages=({"role": "user", "content": f"q{i}"},)) for i in range(count)]
        return engine.generate(asked)
    finally:
        engine.close()


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_answer_among_good_ones_is_tried_again(name: str) -> None:
    with FaultServer(lambda call: STRANGE[name] if call.number % 3 == 2 else echo(call)) as server:
        replies = answered(server, 6)
    assert [r.text for r in replies] == [f"echo q{i}" for i in range(6)]


@pytest.mark.parametrize("name", STRANGE)
def test_nothing_but_strange_answers_ends_the_run(name: str) -> None:
    with FaultServer(lambda call: STRANGE[name]) as server, pytest.raises(AloeError) as caught:
        answered(server, 30)
    assert "OpenAI-compatible" in str(caught.value.fix)
    assert len(server.chats) <= 2 * ServerSpec.model_fields["attempts"].default


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "LARGEST", 1 << 20)

    def huge(call: Call) -> Answer:
        return Answer(b"x" * (3 << 20)) if call.text == "q1" else echo(call)

    with FaultServer(huge) as server:
        replies = answered(server, 3, attempts=2)
    assert [r.finish_reason for r in replies] == ["stop", "error", "stop"]
    assert "longer than 1 MiB" in str(replies[1].error)


def test_a_header_that_names_another_alphabet_changes_nothing() -> None:
    def odd(call: Call) -> Answer:
        return Answer(echo(call).body, headers={"Content-Type": "application/json; charset=utf-16"})

    with FaultServer(odd) as server:
        assert answered(server, 1)[0].text == "echo q0"
