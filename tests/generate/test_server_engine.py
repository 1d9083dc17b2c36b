"""The server engine against a server that fails on demand: what is retried, what ends the run, what is never lost."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fault_server import Answer, Call, FaultServer, echo, refused, said

from aloe.errors import AloeError
from aloe.generate.engine import Engine, Reply, Request, Sampling, ScoreRequest, StreamingEngine
from aloe.generate.exchange import health, retry_after
from aloe.generate.server import ServerEngine
from aloe.generate.server_spec import ServerSpec, direct

Open = Callable[..., ServerEngine]


@pytest.fixture
def engines() -> Iterator[Open]:
    """`engines(server, .., field=value)`: an engine over these servers, quick to try again; closed afterwards."""
    opened: list[ServerEngine] = []

    def make(*servers: FaultServer, **fields: Any) -> ServerEngine:
        quick = {"timeout_s": 5.0, "backoff_s": 0.01, "give_up_s": 1.0, "model": "m"}
        spec = ServerSpec(endpoints=[s.url for s in servers], **{**quick, **fields})
        opened.append(ServerEngine(spec, "served"))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def ask(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def requests(count: int, **fields: Any) -> list[Request]:
    return [Request(key=f"k{i}", messages=ask(f"q{i:03d}"), **fields) for i in range(count)]


def refuse(engine: ServerEngine, asked: list[Any] | None = None) -> str:
    with pytest.raises(AloeError) as caught:
        engine.generate(asked or requests(1))
    return str(caught.value)


# -- what is asked and answered -------------------------------------------------------------------------------------


def test_replies_come_in_order_with_their_tokens(engines: Open) -> None:
    with FaultServer() as server:
        engine = engines(server)
        assert isinstance(engine, Engine)
        assert isinstance(engine, StreamingEngine)
        replies = engine.generate(requests(50))
    assert [r.text for r in replies] == [f"echo q{i:03d}" for i in range(50)]
    assert {(r.prompt_tokens, r.completion_tokens, r.finish_reason, r.error) for r in replies} == {(7, 3, "stop", None)}
    assert (engine.usage.requests, engine.usage.retries) == (50, 0)
    assert (engine.usage.prompt_tokens, engine.usage.completion_tokens) == (350, 150)


def test_the_request_is_the_protocols(engines: Open) -> None:
    sampling = Sampling(max_new_tokens=9, temperature=0.5, top_p=0.9, stop=("END",))
    with FaultServer(lambda call: said("one END two", finish="length")) as server:
        # one at a time: the server's list is in the order asked
        engine = engines(server, max_concurrency=1, extra={"chat_template_kwargs": {"enable_thinking": False}})
        asked = [Request(key="k", messages=ask("q"), sampling=sampling, seed=s) for s in (1, 1, 2)]
        replies = engine.generate(asked)
        greedy = engines(server, limit_as="max_completion_tokens").generate(requests(1))
    assert [(r.text, r.finish_reason) for r in replies] == [("one ", "length")] * 3
    first, same, other, last = [c.body for c in server.chats]
    seed = first.pop("seed")
    assert first == {
        "model": "m", "messages": [{"role": "user", "content": "q"}], "max_tokens": 9, "temperature": 0.5, "top_p": 0.9,
        "stop": ["END"], "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert (same["seed"] == seed, other["seed"] == seed, seed < 2**31) == (True, False, True)
    asked_last = {"model": "m", "messages": list(ask("q000")), "max_completion_tokens": 256, "temperature": 0.0}
    assert last == asked_last
    assert greedy[0].error is None


def test_neighbours_share_their_opening(engines: Open) -> None:
    """One at a time, so that the order on the wire is the order asked in."""
    texts = [f"{opening} {i}" for i in range(5) for opening in ("beta " * 60, "alpha " * 60)]
    with FaultServer() as server:
        engines(server, max_concurrency=1).generate(
            [Request(key=str(i), messages=ask(text)) for i, text in enumerate(texts)]
        )
    assert [c.text for c in server.chats] == sorted(texts)


def test_each_reply_is_handed_over_as_it_is_finished_on_the_callers_thread(engines: Open) -> None:
    """The second request is answered only after the first reply was handed over."""
    seen = threading.Event()
    threads, order = set(), []

    def answer(call: Call) -> Answer:
        if call.text == "q001":
            assert seen.wait(10)
        return echo(call)

    def done(index: int, reply: Any) -> None:
        threads.add(threading.get_ident())
        order.append((index, reply.text))
        seen.set()

    with FaultServer(answer) as server:
        engines(server).stream(enumerate(requests(2)), done)
    assert order == [(0, "echo q000"), (1, "echo q001")]
    assert threads == {threading.get_ident()}


def test_the_feed_is_drawn_a_few_ahead_only(engines: Open) -> None:
    drawn: list[int] = []

    def feed() -> Iterator[tuple[int, Request]]:
        for i, request in enumerate(requests(300)):
            drawn.append(i)
            yield i, request

    ahead: list[int] = []
    with FaultServer() as server:
        engines(server, max_concurrency=4).stream(feed(), lambda i, reply: ahead.append(len(drawn) - len(ahead)))
    assert len(ahead) == 300
    assert max(ahead) <= 40


def test_closing_ends_the_thread(engines: Open) -> None:
    before = threading.active_count()
    with FaultServer() as server:
        engine = engines(server)
        engine.generate(requests(2))
        engine.close()
        engine.close()
        assert not [t for t in threading.enumerate() if t.name == "server-engine"]
        assert engine.generate(requests(1))[0].text == "echo q000"  # and it can be used again
    assert threading.active_count() <= before + 3


# -- what passes ----------------------------------------------------------------------------------------------------

PASSING = {
    "500": refused(500),
    "502 of a proxy": refused(502),
    "408": refused(408),
    "truncated JSON": Answer('{"choices": [{"message": {"cont'),
    "no JSON": Answer("<html>busy</html>"),
    "body cut short": Answer('{"choices": [', stated_length=500),
    "connection lost": Answer(drop=True),
    "an error with status 200": Answer({"error": {"message": "overloaded"}}),
    "no text": said(None),
    "aborted": said("half", finish="abort"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_may_pass_is_tried_again(engines: Open, name: str) -> None:
    with FaultServer(lambda call: PASSING[name] if call.number <= 2 else echo(call)) as server:
        engine = engines(server)
        [reply] = engine.generate(requests(1))
    assert reply.text == "echo q000"
    assert (len(server.chats), engine.usage.retries) == (3, 2)


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_stays_is_an_errored_reply_and_the_rest_is_answered(engines: Open, name: str) -> None:
    with FaultServer(lambda call: PASSING[name] if call.text == "q001" else echo(call)) as server:
        replies = engines(server, attempts=3).generate(requests(3))
    assert [r.finish_reason for r in replies] == ["stop", "error", "stop"]
    assert replies[1].text == ""
    assert "in the last of 3 tries" in str(replies[1].error)
    assert sum(c.text == "q001" for c in server.chats) == 3


@pytest.mark.parametrize("answer", [Answer(wait=60.0), Answer("x" * 1000, drip=0.02)], ids=["hangs", "dribbles"])
def test_a_hang_is_a_timeout_then_an_errored_reply(engines: Open, answer: Answer) -> None:
    with FaultServer(lambda call: answer if call.text == "q001" else echo(call)) as server:
        replies = engines(server, timeout_s=0.3, attempts=2).generate(requests(3))
    assert [r.finish_reason for r in replies] == ["stop", "error", "stop"]
    assert "no answer within 0.3 s" in str(replies[1].error)


def test_a_burst_of_429_narrows_the_window_and_loses_nothing(engines: Open) -> None:
    def answer(call: Call) -> Answer:
        return refused(429, "slow down") if call.at_once > 3 else Answer(**{**vars(echo(call)), "wait": 0.05})

    with FaultServer(answer) as server:
        engine = engines(server, max_concurrency=64, attempts=2, give_up_s=30.0)
        replies = engine.generate(requests(80))
        assert engine._exchange is not None
        window = engine._exchange.router.endpoints[0].window
    assert [r.text for r in replies] == [f"echo q{i:03d}" for i in range(80)]
    assert len(server.chats) > 80
    assert window < 16
    assert server.most_at_once < 20  # it found the limit; without one it would have gone to 64


def test_the_window_opens_while_answers_come(engines: Open) -> None:
    with FaultServer(lambda call: Answer(**{**vars(echo(call)), "wait": 0.02})) as server:
        engine = engines(server, max_concurrency=24)
        engine.generate(requests(150))
        assert engine._exchange is not None
        assert engine._exchange.router.endpoints[0].window == 24
    assert 4 < server.most_at_once <= 24


def test_retry_after_is_respected(engines: Open) -> None:
    def answer(call: Call) -> Answer:
        return refused(429, retry_after="0.4") if call.number == 1 else echo(call)

    with FaultServer(answer) as server:
        assert engines(server).generate(requests(1))[0].error is None
    first, second = server.chats
    assert second.time - first.time >= 0.4


def test_a_retry_after_beyond_all_patience_is_said(engines: Open) -> None:
    with FaultServer(lambda call: refused(429, retry_after="86400")) as server:
        said_ = refuse(engines(server))
    assert "asks to wait 86" in said_
    assert server.url in said_


def test_refusals_without_an_end_end_the_run(engines: Open) -> None:
    with FaultServer(lambda call: refused(429, "quota used up", retry_after="0.05")) as server:
        said_ = refuse(engines(server, give_up_s=0.3, timeout_s=0.3))
    assert "quota used up" in said_
    assert "none was answered for 0.3 s" in said_


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("1.5") == 1.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after(None) is None
    assert retry_after("soon") is None


def test_a_prompt_the_server_calls_too_long_is_an_errored_reply(engines: Open) -> None:
    def answer(call: Call) -> Answer:
        return refused(400, "This model's maximum context length is 128 tokens") if call.text == "q001" else echo(call)

    with FaultServer(answer) as server:
        replies = engines(server).generate(requests(3))
    assert [r.finish_reason for r in replies] == ["stop", "error", "stop"]
    assert "maximum context length" in str(replies[1].error)
    assert len(server.chats) == 3  # asking again would not help


# -- several endpoints ----------------------------------------------------------------------------------------------


def test_the_less_loaded_endpoint_gets_more(engines: Open) -> None:
    def slow(call: Call) -> Answer:
        return Answer(**{**vars(echo(call)), "wait": 0.2})

    with FaultServer(slow) as first, FaultServer() as second:
        replies = engines(first, second, max_concurrency=4).generate(requests(60))
    assert all(r.error is None for r in replies)
    assert len(second.chats) > 2 * len(first.chats) > 0
    assert len(first.chats) + len(second.chats) == 60


def test_an_endpoint_that_dies_is_taken_out_and_used_again_when_it_is_back(engines: Open) -> None:
    with FaultServer() as first, FaultServer() as second:
        engine = engines(first, second, give_up_s=30.0)
        first.stop()
        replies = engine.generate(requests(30))
        assert all(r.error is None for r in replies)
        assert not first.chats
        first.start()
        assert engine._exchange is not None
        [out] = [e for e in engine._exchange.router.endpoints if e.url == first.url]
        waited = threading.Event()
        while out.out:
            assert not waited.wait(0.05)
        engine.generate(requests(30))
    assert first.chats


def test_when_all_die_the_run_ends_and_keeps_what_was_finished(engines: Open) -> None:
    with FaultServer() as server:
        kept: list[int] = []

        def done(index: int, reply: Any) -> None:
            assert reply.error is None
            kept.append(index)
            if len(kept) == 10:
                server.stop()

        with pytest.raises(AloeError, match=r"no endpoint could be reached for 0\.5 s") as caught:
            engines(server, give_up_s=0.5, max_concurrency=2).stream(enumerate(requests(200)), done)
    assert server.url in str(caught.value)
    assert len(kept) >= 10


def test_a_server_that_is_not_there_is_one_clear_error(engines: Open) -> None:
    with FaultServer() as server:
        engine = engines(server, give_up_s=0.3)
    assert "start the server or correct its address" in refuse(engine)


def test_a_server_that_fails_everything_ends_the_run(engines: Open) -> None:
    with FaultServer(lambda call: refused(500, "out of memory")) as server:
        said_ = refuse(engines(server, attempts=1), requests(100))
    assert "in a row failed" in said_
    assert "out of memory" in said_
    assert len(server.chats) < 100


def test_a_row_of_bad_requests_does_not(engines: Open) -> None:
    def answer(call: Call) -> Answer:
        return refused(500) if call.text.startswith("q") else echo(call)

    with FaultServer(answer) as server:
        replies = engines(server, attempts=1).generate(requests(45))
    assert all(r.finish_reason == "error" for r in replies)
    assert len(server.chats) == 45 + 2  # a trivial request after every twentieth


# -- what ends the run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422, 301])
def test_what_no_retry_mends_is_one_error_naming_the_endpoint(engines: Open, status: int) -> None:
    with FaultServer(lambda call: refused(status, "the reason")) as server:
        said_ = refuse(engines(server))
    assert str(status) in said_
    assert server.url in said_
    assert "the reason" in said_
    assert "fix:" in said_
    assert len(server.chats) == 1


def test_a_wrong_model_name_lists_the_right_ones_before_anything_is_asked(engines: Open) -> None:
    with FaultServer(models=("llama-3.1-70b", "qwen-72b")) as server:
        said_ = refuse(engines(server, model="llama-3-70b"))
        assert "no model 'llama-3-70b'; did you mean 'llama-3.1-70b'?" in said_
        assert "it lists llama-3.1-70b, qwen-72b" in said_
        assert not server.calls
        assert engines(server, model="folder", listed=False).generate(requests(1))[0].error is None


@pytest.mark.parametrize("status", [404, 405, 500])
def test_a_server_without_a_list_of_models_is_asked_straight(engines: Open, status: int) -> None:
    """500: what `transformers serve` says of its list on a machine without a hub cache."""
    with FaultServer(models=status) as server:
        assert engines(server).generate(requests(1))[0].error is None


def test_a_server_that_is_still_loading_is_waited_for(engines: Open) -> None:
    with FaultServer(models=503) as server:
        timer = threading.Timer(0.4, setattr, (server, "models", ("m",)))
        timer.start()
        assert engines(server, give_up_s=10.0).generate(requests(1))[0].error is None
        timer.join()


@pytest.mark.parametrize("body", [{"text": "hello"}, {"choices": []}, {"choices": [{"text": "old"}]}, "[1]"])
def test_another_protocol_is_an_error(engines: Open, body: Any) -> None:
    with FaultServer(lambda call: Answer(body)) as server:
        said_ = refuse(engines(server))
    assert "without `choices" in said_
    assert len(server.chats) == 4  # `attempts` of them: one alone may be an accident on the way


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    engines: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-very-secret-1234"
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MY_KEY", secret)
    with FaultServer(lambda call: refused(401, f"bad key {call.headers['authorization']}")) as server:
        engine = engines(server, key_env="MY_KEY")
        said_ = refuse(engine)
        assert server.chats[0].headers["authorization"] == f"Bearer {secret}"
        assert "MY_KEY" in said_
        assert secret not in said_ + repr(engine.spec) + repr(vars(engine)) + engine.model_digest
        monkeypatch.delenv("MY_KEY")
        assert "MY_KEY" in refuse(engines(server, key_env="MY_KEY"))
    assert "chat/completions" in caplog.text  # httpx does log, the key apart
    assert secret not in caplog.text


# -- what a server can do -------------------------------------------------------------------------------------------


def test_a_prefill_as_an_instruction_is_cut_from_the_reply(engines: Open) -> None:
    texts = {"a": "Let me think. It is A.", "b": "  Let me think. It is A.", "c": "It is A."}
    with FaultServer(lambda call: said(texts[call.text[0]])) as server:
        asked = [Request(key=k, messages=ask(k), prefill="Let me think. ") for k in texts]
        replies = engines(server).generate(asked)
    assert [r.text for r in replies] == ["It is A."] * 3
    assert all("Begin your reply with exactly these words" in c.text for c in server.chats)
    assert all(c.text.endswith("Let me think.") for c in server.chats)


def counts(*, honest: bool) -> Callable[[Call], Answer]:
    """A server that counts words as tokens, with three for every turn's opening and one for its end."""

    def answer(call: Call) -> Answer:
        messages = call.body["messages"]
        tokens = sum(len(m["content"].split()) + 4 for m in messages)
        opened = honest and call.body.get("continue_final_message")
        return said("and on.", prompt=tokens - 1 if opened else tokens + 3)

    return answer


def test_a_prefill_continues_the_turn_where_the_server_does(engines: Open) -> None:
    with FaultServer(counts(honest=True)) as server:
        engine = engines(server, prefill="continue")
        assert engine.generate(requests(1))[0].text == "and on."  # nothing to check without a prefill
        assert len(server.chats) == 1
        engine.generate(requests(3, prefill="Let me"))
    body = server.chats[-1].body
    assert body["messages"][-1] == {"role": "assistant", "content": "Let me"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert sum(c.body["max_tokens"] == 1 for c in server.chats) == 2  # the check, once


def test_a_server_that_opens_a_new_turn_instead_is_found_out(engines: Open) -> None:
    with FaultServer(counts(honest=False)) as server:
        said_ = refuse(engines(server, prefill="continue"), requests(1, prefill="Let me"))
    assert "doesn't continue a turn" in said_
    assert "prefill: instruct" in said_


SCHEMA = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer"}}}


def test_structured_output_is_asked_for_and_checked(engines: Open) -> None:
    replies = {1: "five", 2: '{"grade": 5}', 3: '{"score": 5}'}
    with FaultServer(lambda call: said(replies[call.number])) as server:
        engine = engines(server, structured=True)
        [reply] = engine.generate(requests(1, schema=SCHEMA))
    assert reply.text == '{"score": 5}'
    assert engine.usage.retries == 2
    assert server.chats[0].body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_structured_output_the_server_ignores_is_an_errored_reply(engines: Open) -> None:
    with FaultServer(lambda call: said("five")) as server:
        [reply] = engines(server, structured=True).generate(requests(1, schema=SCHEMA))
    assert "no JSON though a schema was sent" in str(reply.error)


def test_a_schema_is_never_ignored_silently(engines: Open) -> None:
    with FaultServer() as server:
        assert "structured: true" in refuse(engines(server), requests(1, schema=SCHEMA))
        assert not server.calls


def first_token(**listed: float) -> Answer:
    tops = [{"token": t, "logprob": v} for t, v in listed.items()]
    return said("A", logprobs={"content": [{"token": "A", "logprob": tops[0]["logprob"], "top_logprobs": tops}]})


def score(engine: ServerEngine, **fields: Any) -> Any:
    [found] = engine.loglikelihood([ScoreRequest(**{"key": "s", "messages": ask("q"), **fields})])
    return found


def test_one_token_continuations_are_scored_by_the_first_token(engines: Open) -> None:
    with FaultServer(lambda call: first_token(A=-0.5, B=-1.5, C=-3.0)) as server:
        found = score(engines(server, scores="first_token"), continuations=("B", "A"))
    assert (found.logprobs, found.greedy, found.token_counts) == ((-1.5, -0.5), (False, True), (1, 1))
    assert (found.error, found.at_most, found.prompt_tokens) == (None, (), 7)
    body = server.chats[0].body
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_what_is_not_listed_is_bounded_and_says_so(engines: Open) -> None:
    with FaultServer(lambda call: first_token(A=-0.1, B=-2.5, C=-7.0)) as server:
        engine = engines(server, scores="first_token")
        found = score(engine, continuations=("A", "6"))
        assert found.at_most == (False, True)
        assert found.logprobs == (-0.1, -7.0)  # no likelier than the last that is listed
        server.answer = lambda call: first_token(A=-0.01, B=-4.7)
        left = 1 - math.exp(-0.01) - math.exp(-4.7)
        found = score(engine, continuations=("A", "6"))
        assert found.logprobs == (-0.01, pytest.approx(math.log(left), abs=0.02))  # nor than what is left over
        assert "among the 2 likeliest" in score(engine, continuations=("5", "6")).error
        assert "may be several tokens" in score(engine, continuations=("A", "10")).error


def test_scores_that_a_server_has_not_are_one_clear_error(engines: Open) -> None:
    with FaultServer(lambda call: said("A")) as server:
        with pytest.raises(AloeError, match="no log-probabilities"):
            score(engines(server), continuations=("A",))
        assert not server.calls
        engine = engines(server, scores="first_token")
        with pytest.raises(AloeError, match="whole turns"):
            score(engine, continuations=("A",), end_turn=True)
        with pytest.raises(AloeError, match="follows a prefill"):
            score(engine, continuations=("A",), prefill="Answer: ")
        with pytest.raises(AloeError, match="top_logprobs"):
            score(engine, continuations=("A",))


def test_replies_carry_their_logprob_where_the_server_has_it(engines: Open) -> None:
    tokens = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}
    with FaultServer(lambda call: said("ab", logprobs=tokens)) as server:
        [reply] = engines(server, scores="first_token").generate(requests(1))
    assert isinstance(reply, Reply)
    assert reply.logprob == -0.75
    assert server.chats[0].body["logprobs"] is True


def test_the_short_form_is_an_address_and_a_model() -> None:
    spec = direct("http://127.0.0.1:8000/v1/#org/model")
    assert (spec.endpoints, spec.model) == (["http://127.0.0.1:8000/v1"], "org/model")
    with pytest.raises(AloeError, match="names no model"):
        direct("http://127.0.0.1:8000/v1")


def test_health_says_what_each_endpoint_is_up_to() -> None:
    with FaultServer() as server, FaultServer() as away, FaultServer(models=("other",)) as other:
        away.stop()
        spec = ServerSpec(endpoints=[server.url, away.url, other.url], model="m")
        here, gone, wrong = health(spec, seconds=2.0)
        assert not server.chats
    assert here.endswith("[available]")
    assert "out of reach" in gone
    assert "lists no m: other" in wrong
