"""The local engine: exact log-likelihoods, replies that don't depend on the batch, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.errors import AloeError
from aloe.generate.engine import Engine, Request, Sampling, ScoreRequest
from aloe.generate.ledger import LedgerEngine
from aloe.generate.local import LocalEngine
from aloe.generate.mock import MockEngine
from aloe.models.load import Loaded, load

STEM = "Which option is right about a headache and a fever that started last week?"
OPTIONS = ["Rest", "Water", "Urgent care", "Nothing at all"]


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path) -> Loaded:
    return load(tiny_model_folder)


@pytest.fixture(scope="module")
def engine(loaded: Loaded) -> LocalEngine:
    return LocalEngine(loaded, "tiny", "digest", max_batch=4)


def ask(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def orders() -> list[ScoreRequest]:
    requests = []
    for turn in range(4):
        turned = OPTIONS[turn:] + OPTIONS[:turn]
        lines = "\n".join(f"{letter}. {o}" for letter, o in zip("ABCD", turned, strict=True))
        requests.append(
            ScoreRequest(
                key=f"r{turn}", messages=ask(f"{STEM}\n\n{lines}"), continuations=("A", "B", "C"), prefill="Answer"
            )
        )
    return requests


def naive(loaded: Loaded, request: ScoreRequest) -> list[float]:
    template = loaded.template
    context = template.prompt_ids(request.messages, request.prefill)
    scores = []
    for continuation in request.continuations:
        tail = template.content_ids(continuation) + (list(template.end_of_turn) if request.end_turn else [])
        with torch.inference_mode():
            logprobs = torch.log_softmax(loaded.model(torch.tensor([context + tail])).logits[0].float(), dim=-1)
        scores.append(sum(float(logprobs[len(context) - 1 + j, t]) for j, t in enumerate(tail)))
    return scores


def test_it_is_an_engine(engine: LocalEngine) -> None:
    assert isinstance(engine, Engine)
    assert isinstance(MockEngine(), Engine)


def test_loglikelihoods_equal_one_by_one_forward_passes(loaded: Loaded, engine: LocalEngine) -> None:
    requests = [
        *orders(),
        ScoreRequest(key="long", messages=ask("Name one."), continuations=("Rest and water", "Nothing"), end_turn=True),
        ScoreRequest(key="short", messages=ask("x"), continuations=("y",)),
    ]
    for request, score in zip(requests, engine.loglikelihood(requests), strict=True):
        assert score.key == request.key
        assert score.logprobs == pytest.approx(naive(loaded, request), abs=1e-4)


def test_loglikelihoods_do_not_depend_on_the_batch(loaded: Loaded, engine: LocalEngine) -> None:
    small = LocalEngine(loaded, "tiny", "digest", batch_tokens=1)
    for one, many in zip(small.loglikelihood(orders()), engine.loglikelihood(orders()), strict=True):
        assert one.logprobs == pytest.approx(many.logprobs, abs=1e-4)


def test_replies_do_not_depend_on_the_batch_or_its_order(engine: LocalEngine) -> None:
    requests = [
        Request(
            key=f"k{i}",
            messages=ask(f"{STEM} {'More words. ' * i}"),
            seed=5,
            sampling=Sampling(max_new_tokens=12, temperature=0.9 * (i % 2), top_p=0.95),
        )
        for i in range(6)
    ]
    together = engine.generate(requests)
    alone = [engine.generate([r])[0] for r in requests]
    backwards = engine.generate(requests[::-1])[::-1]
    assert [r.text for r in together] == [r.text for r in alone] == [r.text for r in backwards]
    assert [r.logprob for r in together] == pytest.approx([r.logprob for r in alone], abs=1e-3)


def test_greedy_generation_equals_transformers(loaded: Loaded, engine: LocalEngine) -> None:
    request = Request(key="g", messages=ask(STEM), sampling=Sampling(max_new_tokens=16))
    prompt = loaded.template.prompt_ids(request.messages)
    expected = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :]
    assert engine.generate([request])[0].text == loaded.tokenizer.decode(expected, skip_special_tokens=True)


def test_seed_and_key_choose_the_sample(engine: LocalEngine) -> None:
    def sample(key: str, seed: int) -> str:
        sampling = Sampling(max_new_tokens=16, temperature=1.5)
        return engine.generate([Request(key=key, messages=ask(STEM), seed=seed, sampling=sampling)])[0].text

    assert sample("a", 1) == sample("a", 1)
    assert len({sample("a", 1), sample("a", 2), sample("b", 1)}) == 3


def test_reply_counts_and_finish_reason(engine: LocalEngine) -> None:
    [reply] = engine.generate([Request(key="k", messages=ask(STEM), sampling=Sampling(max_new_tokens=3))])
    assert reply.completion_tokens <= 3
    assert reply.finish_reason in ("stop", "length")
    assert reply.prompt_tokens == len(engine.loaded.template.prompt_ids(ask(STEM)))


def test_a_prompt_beyond_the_window_is_an_errored_reply_and_the_rest_is_answered(engine: LocalEngine) -> None:
    requests = [
        Request(key="long", messages=ask("word " * 5000), sampling=Sampling(max_new_tokens=2)),
        Request(key="short", messages=ask("word"), sampling=Sampling(max_new_tokens=2)),
    ]
    long, short = engine.generate(requests)
    assert long.finish_reason == "error"
    assert "window" in str(long.error)
    assert short.error is None


def test_nan_logits_are_an_error_that_names_the_model(tiny_model_folder: Path) -> None:
    broken = load(tiny_model_folder)
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(float("nan"))
    engine = LocalEngine(broken, "broken", "d")
    with pytest.raises(AloeError, match="model broken gives NaN"):
        engine.loglikelihood(orders())
    with pytest.raises(AloeError, match="model broken gives NaN"):
        engine.generate([Request(key="k", messages=ask("x"))])


def test_a_schema_is_refused_rather_than_ignored(engine: LocalEngine) -> None:
    with pytest.raises(AloeError, match="can't be held to a JSON schema"):
        engine.generate([Request(key="k", messages=ask("x"), schema={"type": "object"})])


def test_every_reply_and_score_is_reported_as_it_is_finished(engine: LocalEngine) -> None:
    seen: list[tuple[int, Any]] = []
    asked = [Request(key=str(i), messages=ask(f"{i}"), sampling=Sampling(max_new_tokens=2)) for i in range(6)]
    replies = engine.generate(asked, done=lambda i, reply: seen.append((i, reply)))
    assert dict(seen) == dict(enumerate(replies))
    seen.clear()
    scores = engine.loglikelihood(orders(), done=lambda i, score: seen.append((i, score)))
    assert dict(seen) == dict(enumerate(scores))


# -- the ledger ---------------------------------------------------------------------------------------------------


def test_the_ledger_makes_no_call_twice(tmp_path: Path) -> None:
    mock = MockEngine()
    requests = [Request(key=str(i), messages=ask(f"q{i}")) for i in range(5)]
    first = LedgerEngine(mock, tmp_path / "l.sqlite").generate(requests)
    again = LedgerEngine(mock, tmp_path / "l.sqlite")
    assert again.generate(requests) == first
    assert (again.hits, again.calls, len(mock.requests)) == (5, 0, 5)
    scored = [ScoreRequest(key="s", messages=ask("q"), continuations=("a", "b"))]
    assert again.loglikelihood(scored) == again.loglikelihood(scored)
    assert len(mock.scored) == 1


def test_a_killed_run_loses_no_finished_reply(tmp_path: Path) -> None:
    def reply(request: Request) -> str:
        if request.key == "20":
            raise KeyboardInterrupt
        return f"answer {request.key}"

    requests = [Request(key=f"{i:02d}", messages=ask(f"question {i:02d}")) for i in range(40)]
    with pytest.raises(KeyboardInterrupt):
        LedgerEngine(MockEngine(reply), tmp_path / "l.sqlite").generate(requests)
    after = LedgerEngine(MockEngine(lambda r: f"answer {r.key}"), tmp_path / "l.sqlite")
    replies = after.generate(requests)
    assert [r.text for r in replies] == [f"answer {i:02d}" for i in range(40)]
    assert after.hits == 20  # every reply that was finished before the interrupt


def test_errors_are_asked_again(tmp_path: Path) -> None:
    failing: list[Any] = [True]

    def reply(request: Request) -> str:
        if failing[0]:
            raise TimeoutError("no answer")
        return "fine"

    request = [Request(key="k", messages=ask("q"))]
    engine = LedgerEngine(MockEngine(reply), tmp_path / "l.sqlite")
    assert engine.generate(request)[0].error == "TimeoutError: no answer"
    failing[0] = False
    assert engine.generate(request)[0].text == "fine"


def test_model_template_seed_and_sampling_are_part_of_the_key(tmp_path: Path) -> None:
    mock = MockEngine()
    engine = LedgerEngine(mock, tmp_path / "l.sqlite")
    hot = Sampling(temperature=1.0)
    variants = [
        Request(key="k", messages=ask("q"), sampling=hot, seed=1),
        Request(key="k", messages=ask("q"), sampling=hot, seed=2),
        Request(key="j", messages=ask("q"), sampling=hot, seed=1),
        Request(key="k", messages=ask("q")),
    ]
    for request in variants:
        engine.generate([request])
    LedgerEngine(MockEngine(name="other"), tmp_path / "l.sqlite").generate(variants[:1])
    assert len(mock.requests) == 4
    # Greedy replies are the same whatever the request is called.
    engine.generate([Request(key="renamed", messages=ask("q"), seed=9)])
    assert len(mock.requests) == 4
