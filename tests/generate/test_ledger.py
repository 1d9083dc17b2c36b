"""The request ledger: kill -9 loses nothing finished, nothing is asked twice, processes share the work."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_server import Answer, FaultServer, echo

from aloe.errors import AloeError
from aloe.generate import reply_store
from aloe.generate.engine import Done, Reply, Request, Sampling, Score, ScoreRequest, Tick
from aloe.generate.ledger import SCORED, LedgerEngine
from aloe.generate.mock import MockEngine
from aloe.generate.reply_store import ReplyStore
from aloe.generate.server import ServerEngine
from aloe.generate.server_spec import ServerSpec

HERE = Path(__file__).parent


def ask(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def requests(count: int, **fields: Any) -> list[Request]:
    return [Request(key=f"k{i:03d}", messages=ask(f"q{i:03d}"), **fields) for i in range(count)]


# -- keys and rows --------------------------------------------------------------------------------------------------


def test_keys_of_stored_replies_stay_what_they_were(tmp_path: Path) -> None:
    """Users' ledgers hold these: golden values of the first release."""
    ledger = LedgerEngine(MockEngine(), tmp_path / "l.sqlite", "float32")
    messages = ask("Which option is right?")
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=12, stop=("\n",))
    sampled = Request(key="a", messages=messages, seed=3, prefill="Let me", sampling=sampling)
    scored = ScoreRequest(key="s", messages=messages, continuations=("A", "B"), prefill="Answer: ", end_turn=True)
    assert ledger.key_of(Request(key="a", messages=messages)) == "ab4641f6ffd3e29311367c82a02d109d"
    assert ledger.key_of(sampled) == "a6d600b6f918c2a6c57393fc2c0fcc31"
    assert ledger.key_of(scored) == "466e759b23f15fe6b47d3188e471ba64"


def test_a_schema_is_part_of_the_key(tmp_path: Path) -> None:
    ledger = LedgerEngine(MockEngine(), tmp_path / "l.sqlite")
    schemas = [None, {"type": "object"}, {"type": "array"}]
    assert len({ledger.key_of(Request(key="a", messages=ask("q"), schema=s)) for s in schemas}) == 3


def test_a_file_of_the_first_release_is_read(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    reply = {
        "key": "a", "text": "old", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "logprob": -1.0,
        "error": None,
    }  # fmt: skip
    db.execute("INSERT INTO replies VALUES (?, ?)", ("ab4641f6ffd3e29311367c82a02d109d", json.dumps(reply)))
    db.commit()
    db.close()
    ledger = LedgerEngine(MockEngine(), path, "float32")
    assert ledger.generate([Request(key="b", messages=ask("Which option is right?"))])[0].text == "old"
    assert ledger.hits == 1
    ledger.close()


def test_bounds_of_scores_are_remembered(tmp_path: Path) -> None:
    class Bounded(MockEngine):
        def loglikelihood(self, requests: Any, tick: Tick | None = None, done: Done | None = None) -> list[Score]:
            return [
                Score(key=r.key, logprobs=(-1.0, -9.0), token_counts=(1, 1), greedy=(True, False), prompt_tokens=3,
                      at_most=(False, True))
                for r in requests
            ]  # fmt: skip

    asked = [ScoreRequest(key="s", messages=ask("q"), continuations=("A", "B"))]
    first = LedgerEngine(Bounded(), tmp_path / "l.sqlite").loglikelihood(asked)
    again = LedgerEngine(MockEngine(), tmp_path / "l.sqlite")
    assert again.loglikelihood(asked) == first
    assert first[0].at_most == (False, True)


class Neighbourly(MockEngine):
    """Scores that depend on what stands beside a request, as a batch's rounding does; killed in the third block."""

    reports = True

    def __init__(self, kill: bool) -> None:
        super().__init__()
        self.kill, self.blocks = kill, 0

    def loglikelihood(
        self, requests: Sequence[ScoreRequest], tick: Tick | None = None, done: Done | None = None
    ) -> list[Score]:
        assert done is None  # told one by one, a kill would leave part of a block
        self.blocks += 1
        if self.kill and self.blocks == 3:
            raise KeyboardInterrupt
        beside = sum(int(r.messages[0]["content"][1:]) for r in requests)
        return [
            Score(key=r.key, logprobs=(-float(beside),), token_counts=(1,), greedy=(True,), prompt_tokens=3)
            for r in requests
        ]


def test_a_killed_run_goes_on_with_the_blocks_of_an_undisturbed_one(tmp_path: Path) -> None:
    asked = [ScoreRequest(key=r.key, messages=r.messages, continuations=("A",)) for r in requests(3 * SCORED + 50)]
    undisturbed = LedgerEngine(Neighbourly(kill=False), tmp_path / "whole.sqlite").loglikelihood(asked)
    with pytest.raises(KeyboardInterrupt):
        LedgerEngine(Neighbourly(kill=True), tmp_path / "l.sqlite").loglikelihood(asked)
    again = LedgerEngine(Neighbourly(kill=False), tmp_path / "l.sqlite")
    assert again.loglikelihood(asked) == undisturbed
    assert (again.hits, again.calls) == (2 * SCORED, SCORED + 50)


def test_a_request_that_stands_there_twice_is_asked_once(tmp_path: Path) -> None:
    mock = MockEngine()
    asked = [Request(key=k, messages=ask(text)) for k, text in (("a", "x"), ("b", "y"), ("c", "x"))]
    ledger = LedgerEngine(mock, tmp_path / "l.sqlite")
    replies = ledger.generate(asked)
    assert [r.key for r in replies] == ["a", "b", "c"]
    assert replies[0].text == replies[2].text
    assert (len(mock.requests), ledger.calls, ledger.hits) == (2, 2, 1)


def test_an_engine_that_reports_nothing_works_too(tmp_path: Path) -> None:
    class Silent:
        name, model_digest, template_digest = "silent", "m", "t"

        def generate(self, requests: Any, tick: Tick | None = None) -> list[Reply]:
            return MockEngine().generate(requests, tick)

        def loglikelihood(self, requests: Any, tick: Tick | None = None) -> list[Score]:
            return MockEngine().loglikelihood(requests, tick)

    ledger = LedgerEngine(Silent(), tmp_path / "l.sqlite")
    first = ledger.generate(requests(40))
    assert LedgerEngine(Silent(), tmp_path / "l.sqlite").generate(requests(40)) == first
    assert ledger.calls == 40


def test_ticks_add_up(tmp_path: Path) -> None:
    path, seen = tmp_path / "l.sqlite", [0]

    def tick(count: int, tokens: int) -> None:
        seen[0] += count

    LedgerEngine(MockEngine(), path).generate(requests(10), tick)
    assert seen == [10]
    LedgerEngine(MockEngine(), path).generate(requests(25), tick)
    assert seen == [35]


# -- damage ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_ledger_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(AloeError, match="the request ledger is damaged") as caught:
        LedgerEngine(MockEngine(), path)
    assert str(path) in str(caught.value)
    assert "move the file" in str(caught.value)


def test_a_file_damaged_in_the_middle_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    ledger = LedgerEngine(MockEngine(lambda r: "word " * 50), path)
    ledger.generate(requests(200))
    ledger.close()
    data = bytearray(path.read_bytes())
    data[4096 : len(data) - 4096] = b"\x55" * (len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(AloeError, match="the request ledger is damaged"):
        LedgerEngine(MockEngine(), path).generate(requests(200))


def test_a_row_that_is_no_json_is_one_clear_error(tmp_path: Path) -> None:
    ledger = LedgerEngine(MockEngine(), tmp_path / "l.sqlite")
    ledger.generate(requests(1))
    ledger.store._db.execute("UPDATE replies SET value = '{\"key'")
    with pytest.raises(AloeError, match="no JSON"):
        ledger.generate(requests(1))


# -- kill -9 --------------------------------------------------------------------------------------------------------

WORKER = """
import os, sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
from aloe.generate.engine import Reply
from aloe.generate.ledger import SCORED, LedgerEngine
from test_ledger import SlowEngine, requests

engine = LedgerEngine(SlowEngine(Path({log!r}), {pause}), Path({path!r}))
replies = engine.generate(requests({count}))
assert [r.text for r in replies] == [f"answer {{r.key}}" for r in replies], replies
assert not any(r.error for r in replies)
engine.close()
print(engine.calls)
"""


class SlowEngine:
    """Answers after a pause and writes down every call it begins and every reply it handed over."""

    reports = True
    max_batch = 8
    name, model_digest, template_digest = "slow", "m", "t"

    def __init__(self, log: Path, pause: float) -> None:
        self.log, self.pause = log, pause

    def _note(self, what: str, key: str) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{what} {key}\n".encode())
        os.close(descriptor)

    def generate(self, requests: Any, tick: Tick | None = None, done: Done | None = None) -> list[Reply]:
        replies = []
        for i, request in enumerate(requests):
            self._note("call", request.key)
            time.sleep(self.pause)
            reply = Reply(
                key=request.key,
                text=f"answer {request.key}",
                finish_reason="stop",
                prompt_tokens=1,
                completion_tokens=1,
            )
            replies.append(reply)
            assert done is not None
            done(i, reply)
            self._note("done", request.key)
        return replies

    def loglikelihood(self, requests: Any, tick: Tick | None = None, done: Done | None = None) -> list[Score]:
        raise NotImplementedError


def worker(path: Path, log: Path, count: int, pause: float, network: bool = False) -> subprocess.Popen[str]:
    code = WORKER.format(here=str(HERE), log=str(log), pause=pause, path=str(path), count=count)
    if network:
        code = "from aloe.generate import reply_store\nreply_store.network_kind = lambda folder: 'nfs4'\n" + code
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def noted(log: Path, what: str) -> Counter[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(what))


def stored(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute("SELECT COUNT(*) FROM replies").fetchone()[0])
    finally:
        db.close()


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_kill_9_at_random_moments_loses_no_finished_reply(tmp_path: Path) -> None:
    path, log, count = tmp_path / "l.sqlite", tmp_path / "log", 120
    chance = random.Random(11)
    for _ in range(4):
        process, before = worker(path, log, count, 0.004), sum(noted(log, "call").values())
        reached = before + chance.randrange(2, 25)
        wait_for(lambda reached=reached: sum(noted(log, "call").values()) >= reached, process)
        time.sleep(chance.random() * 0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # What was handed over is there: a kill costs at most the one call that was under way.
        assert stored(path) >= len(noted(log, "done"))
        assert set(noted(log, "done").values()) == {1}
    finished, calls = stored(path), sum(noted(log, "call").values())
    assert 0 < finished < count
    last = worker(path, log, count, 0.0)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert int(out) == count - finished == sum(noted(log, "call").values()) - calls  # exactly the missing ones
    assert calls - finished <= 4  # one for each kill


@pytest.mark.parametrize("network", [False, True])
def test_two_processes_share_a_ledger_and_no_call_is_made_twice(tmp_path: Path, network: bool) -> None:
    path, log, count = tmp_path / "l.sqlite", tmp_path / "log", 150
    pair = [worker(path, log, count, 0.004, network) for _ in range(2)]
    made = []
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        made.append(int(out))
    assert set(noted(log, "call").values()) == {1}
    assert sum(made) == count == stored(path)
    assert min(made) > 0  # they shared the work


def test_a_network_folder_gets_a_rollback_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a file that was begun on a local disk, with what it holds."""
    path = tmp_path / "l.sqlite"
    local = ReplyStore(path)
    local.put([("a", "1")])
    assert local._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    local.close()
    monkeypatch.setattr(reply_store, "network_kind", lambda folder: "nfs4" if folder == tmp_path else None)
    first, second = ReplyStore(path), ReplyStore(path)
    for store in (first, second):
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    second.put([("b", "2")])
    assert first.get(["a", "b"]) == {"a": "1", "b": "2"}
    assert not list(tmp_path.glob("*-wal")) + list(tmp_path.glob("*-shm"))
    second.close()
    first._db = Unlocked()
    with pytest.raises(AloeError, match="can't be kept on this nfs4 folder: locking protocol") as caught:
        first.get(["a"])
    assert "local disk" in (caught.value.fix or "")


class Unlocked:
    """A connection over a folder whose locks don't work."""

    def execute(self, *_: Any) -> Any:
        raise sqlite3.OperationalError("locking protocol")


def test_what_a_killed_process_had_claimed_is_taken_over(tmp_path: Path) -> None:
    path, log = tmp_path / "l.sqlite", tmp_path / "log"
    process = worker(path, log, 8, 600.0)
    wait_for(lambda: noted(log, "call"), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ledger = LedgerEngine(SlowEngine(log, 0.0), path)
    begin = time.monotonic()
    assert len(ledger.generate(requests(8))) == 8
    assert time.monotonic() - begin < reply_store.EXPIRY_S / 2  # its process is gone: nobody waits for the heartbeat
    ledger.close()


def test_a_claim_of_a_living_process_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    other = ReplyStore(path)
    mock = MockEngine()
    ledger = LedgerEngine(mock, path)
    asked = requests(3)
    keys = [ledger.key_of(r) for r in asked]
    assert other.take(keys[:2])[0] == set(keys[:2])
    reply = {"key": "x", "text": "theirs", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}

    def finish() -> None:
        db = sqlite3.connect(path)  # SQLite's connections stay with their thread
        db.execute("INSERT INTO replies VALUES (?, ?)", (keys[0], json.dumps(reply)))
        db.commit()
        db.close()

    threading.Timer(0.3, finish).start()
    threading.Timer(0.6, lambda: give_up(path, other.owner, keys[1])).start()
    replies = ledger.generate(asked)
    assert [r.text for r in replies] == ["theirs", "[mock] q001", "[mock] q002"]
    assert [r.key for r in mock.requests] == ["k002", "k001"]  # the second only when the other gave it up


def give_up(path: Path, owner: str, key: str) -> None:
    db = sqlite3.connect(path)
    db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, owner))
    db.commit()
    db.close()


def test_a_silent_owner_is_taken_for_dead(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    first, second = ReplyStore(path), ReplyStore(path)
    assert first.take(["a", "b"]) == ({"a", "b"}, {})
    assert second.take(["a"]) == (set(), {})
    second._db.execute("UPDATE owners SET beat = beat - ? WHERE owner = ?", (reply_store.EXPIRY_S + 1, first.owner))
    assert second.take(["a"]) == ({"a"}, {})
    first.close()
    second.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)
    assert db.execute("SELECT COUNT(*) FROM owners").fetchone() == (0,)


def test_claims_are_given_back_when_the_work_is_interrupted(tmp_path: Path) -> None:
    def reply(request: Request) -> str:
        if request.key == "k005":
            raise KeyboardInterrupt
        return "fine"

    ledger = LedgerEngine(MockEngine(reply), tmp_path / "l.sqlite")
    with pytest.raises(KeyboardInterrupt):
        ledger.generate(requests(10))
    assert ReplyStore(tmp_path / "l.sqlite").take([ledger.key_of(r) for r in requests(10)[5:]])[0] != set()


# -- with a server --------------------------------------------------------------------------------------------------

SERVED = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from aloe.generate.ledger import SCORED, LedgerEngine
from aloe.generate.server import ServerEngine
from aloe.generate.server_spec import ServerSpec
from test_ledger import requests

spec = ServerSpec(endpoints=[{url!r}], model="m", max_concurrency=4, backoff_s=0.01)
engine = LedgerEngine(ServerEngine(spec, "served"), Path({path!r}), "server")
replies = engine.generate(requests({count}))
assert [r.text for r in replies] == [f"echo q{{i:03d}}" for i in range({count})]
engine.close()
print(engine.calls)
"""


def served(url: str, path: Path, count: int) -> subprocess.Popen[str]:
    code = SERVED.format(here=str(HERE), url=url, path=str(path), count=count)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_9_while_a_server_answers(tmp_path: Path) -> None:
    path, count = tmp_path / "l.sqlite", 100
    with FaultServer(lambda call: Answer(**{**vars(echo(call)), "wait": 0.02})) as server:
        process = served(server.url, path, count)
        wait_for(lambda: len(server.chats) >= 40, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.1)
        finished, called = stored(path), len(server.chats)
        assert called - 8 <= finished < count  # all but what was on its way to four places and back
        again = served(server.url, path, count)
        out, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
        assert int(out) == count - finished == len(server.chats) - called
        server.stop()
        # A third run asks nothing, so it needs no server.
        third = served(server.url, path, count)
        out, err = third.communicate(timeout=60)
        assert (third.returncode, out.strip()) == (0, "0"), err


def test_what_was_finished_before_an_error_is_kept(tmp_path: Path) -> None:
    from fault_server import refused

    with FaultServer(lambda call: refused(401) if call.number > 20 else echo(call)) as server:
        spec = ServerSpec(endpoints=[server.url], model="m", max_concurrency=1)
        ledger = LedgerEngine(ServerEngine(spec, "served"), tmp_path / "l.sqlite")
        with pytest.raises(AloeError, match="401"):
            ledger.generate(requests(60))
        assert stored(tmp_path / "l.sqlite") == 20
        server.answer = echo
        assert len(ledger.generate(requests(60))) == 60
        assert len(server.chats) == 21 + 40
        ledger.close()


def test_requests_are_claimed_as_they_are_drawn(tmp_path: Path) -> None:
    """A process beside this one finds work left: not all is claimed at once."""
    claimed: list[int] = []

    class Drawing(MockEngine):
        def stream(self, feed: Iterable[tuple[int, Any]], done: Done, tick: Tick | None = None) -> None:
            for i, request in feed:
                db = sqlite3.connect(tmp_path / "l.sqlite")
                claimed.append(db.execute("SELECT COUNT(*) FROM claims").fetchone()[0])
                db.close()
                done(i, self.generate([request])[0])

    ledger = LedgerEngine(Drawing(), tmp_path / "l.sqlite")
    ledger.generate(requests(200))
    assert max(claimed) <= 32
    assert ledger.calls == 200
