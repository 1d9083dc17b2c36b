"""Log-likelihoods and exact prefills over the wire: a server with a tiny real model gives the local engine's values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_server import Answer, Call, FaultServer

from aloe.generate.engine import Request, Sampling, ScoreRequest
from aloe.generate.local import LocalEngine
from aloe.generate.server import ServerEngine, open_server
from aloe.generate.server_spec import ServerSpec
from aloe.models.load import Loaded, load

STEM = "Which option is right about a headache and a fever that started last week?"


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path) -> Loaded:
    return load(tiny_model_folder)


def ask(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


class TinyServer(FaultServer):
    """Completions of token ids by a real model, in the shapes of OpenAI (echo) and of vLLM (prompt_logprobs)."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(self.complete)
        self.loaded = loaded

    @torch.inference_mode()
    def complete(self, call: Call) -> Answer:
        assert call.path == "/v1/completions"
        ids, tokenizer = list(call.body["prompt"]), self.loaded.tokenizer
        rows = torch.log_softmax(self.loaded.model(torch.tensor([ids])).logits[0].float(), dim=-1)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if call.body.get("echo"):
            values = [None] + [float(rows[i - 1, t]) for i, t in enumerate(ids) if i]
            tops = [None] + [{"best": float(rows[i - 1].max())} for i in range(1, len(ids))]
            extra = {"best": float(rows[-1].max())}
            choice["logprobs"] = {"token_logprobs": [*values, extra["best"]], "top_logprobs": [*tops, extra]}
            choice["text"] = ""
        elif "prompt_logprobs" in call.body:
            listed: list[Any] = [None]
            for i, token in enumerate(ids[1:], 1):
                best = int(rows[i - 1].argmax())
                listed.append({str(t): {"logprob": float(rows[i - 1, t]), "rank": 1} for t in {token, best}})
            choice |= {"text": "", "prompt_logprobs": listed}
        else:
            new = self.loaded.model.generate(
                torch.tensor([ids]), max_new_tokens=call.body["max_tokens"], do_sample=False
            )[0, len(ids) :]
            choice["text"] = tokenizer.decode(new, skip_special_tokens=False)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return Answer({"object": "text_completion", "choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def server(loaded: Loaded) -> Iterator[TinyServer]:
    with TinyServer(loaded) as running:
        yield running


def over(server: TinyServer, folder: Path, scores: str) -> ServerEngine:
    spec = ServerSpec(endpoints=[server.url], model="m", template=str(folder), scores=scores, timeout_s=60)  # type: ignore[arg-type]
    return open_server(spec, "served", template_folder=folder)


@pytest.mark.parametrize("scores", ["echo", "prompt_logprobs"])
def test_scores_equal_the_local_engines(
    loaded: Loaded, server: TinyServer, tiny_model_folder: Path, scores: str
) -> None:
    requests = [
        ScoreRequest(key="letters", messages=ask(STEM), continuations=("A", "B", "C"), prefill="Answer: "),
        ScoreRequest(key="long", messages=ask(STEM), continuations=("Rest and water", "No"), end_turn=True),
        ScoreRequest(key="plain", messages=ask("x"), continuations=("y", "a longer one <|im_end|> in text")),
    ]
    engine = over(server, tiny_model_folder, scores)
    expected = LocalEngine(loaded, "tiny", "d").loglikelihood(requests)
    for found, local in zip(engine.loglikelihood(requests), expected, strict=True):
        assert found.logprobs == pytest.approx(local.logprobs, abs=1e-4)
        assert (found.key, found.token_counts, found.greedy) == (local.key, local.token_counts, local.greedy)
        assert (found.prompt_tokens, found.error, found.at_most) == (local.prompt_tokens, None, ())
    assert engine.template_digest == loaded.template.digest
    engine.close()


def test_replies_after_a_prefill_equal_the_local_engines(
    loaded: Loaded, server: TinyServer, tiny_model_folder: Path
) -> None:
    sampling = Sampling(max_new_tokens=12)
    requests = [Request(key=p, messages=ask(STEM), sampling=sampling, prefill=p) for p in ("", "Let me", "Answer: ")]
    engine = over(server, tiny_model_folder, "none")
    expected = LocalEngine(loaded, "tiny", "d").generate(requests)
    assert [r.text for r in engine.generate(requests)] == [r.text for r in expected]
    engine.close()
