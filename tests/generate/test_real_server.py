"""The server engine against a real server on this machine: `transformers serve` with the packaged model."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aloe.errors import AloeError
from aloe.generate.engine import Request, Sampling, ScoreRequest
from aloe.generate.ledger import LedgerEngine
from aloe.generate.server import ServerEngine
from aloe.generate.server_spec import ServerSpec
from aloe.models.sources import materialise, resolve

pytestmark = pytest.mark.model
START_S = 240.0  # to load the model on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSpec]:
    """A running server; the model's name there is its folder. Skips where it can't start."""
    for need in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(need) is None:
            pytest.skip(f"`transformers serve` needs {need}: pip install -e .[dev]")
    try:
        folder = materialise(resolve("smollm2-135m-instruct"))
    except AloeError as cause:
        pytest.skip(str(cause))
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(log, "wb") as handle:
        # In this process group, so that what ends the tests from outside ends the server too.
        process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + START_S
        while not listening(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"`transformers serve` did not start: {log.read_text(errors='replace')[-800:]}")
            time.sleep(0.25)
        yield ServerSpec(
            endpoints=[f"http://127.0.0.1:{port}/v1"], model=str(folder), listed=False, timeout_s=240, max_concurrency=2
        )
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def requests() -> list[Request]:
    questions = ("What is the capital of France?", "Name a colour.", "Is water wet?")
    sampling = Sampling(max_new_tokens=12)
    return [Request(key=q, messages=({"role": "user", "content": q},), sampling=sampling) for q in questions]


def test_replies_of_a_real_server_are_kept_and_asked_for_once(served: ServerSpec, tmp_path: Path) -> None:
    ledger = LedgerEngine(ServerEngine(served, "served"), tmp_path / "l.sqlite", "server")
    replies = ledger.generate(requests())
    ledger.close()
    assert all(r.error is None and r.text.strip() for r in replies)
    assert "Paris" in replies[0].text
    assert all(10 < r.prompt_tokens < 100 and 0 < r.completion_tokens <= 12 for r in replies)
    assert {r.finish_reason for r in replies} <= {"stop", "length"}
    again = LedgerEngine(ServerEngine(served, "served"), tmp_path / "l.sqlite", "server")
    assert again.generate(requests()) == replies
    assert (again.hits, again.calls) == (3, 0)
    again.close()


def test_a_prefill_reaches_a_real_server_as_an_instruction(served: ServerSpec) -> None:
    engine = ServerEngine(served, "served")
    question = ({"role": "user", "content": "What is the capital of France?"},)
    sampling = Sampling(max_new_tokens=16)
    [reply] = engine.generate([Request(key="p", messages=question, prefill="The capital of France", sampling=sampling)])
    assert reply.error is None
    assert reply.text.strip()
    assert not reply.text.startswith("The capital of France")
    engine.close()


def test_a_real_server_refuses_a_wrong_model_name(served: ServerSpec) -> None:
    engine = ServerEngine(served.model_copy(update={"model": "no-such-model"}), "served")
    with pytest.raises(AloeError, match=r"HTTP 400.*pinned") as caught:
        engine.generate(requests()[:1])
    assert served.endpoints[0] in str(caught.value)
    engine.close()


def test_a_prefill_that_a_real_server_can_not_continue_is_an_error(served: ServerSpec) -> None:
    engine = ServerEngine(served.model_copy(update={"prefill": "continue"}), "served")
    with pytest.raises(AloeError, match=r"HTTP 422.*continue_final_message"):
        engine.generate([Request(key="p", messages=requests()[0].messages, prefill="Let me")])
    engine.close()


def test_scores_that_a_real_server_has_not_are_an_error(served: ServerSpec) -> None:
    engine = ServerEngine(served.model_copy(update={"scores": "first_token"}), "served")
    with pytest.raises(AloeError, match="top_logprobs"):
        engine.loglikelihood([ScoreRequest(key="s", messages=requests()[0].messages, continuations=("A", "B"))])
    engine.close()
