"""The server engine and its ledger behind a proxy that spoils a third of all answers, and over a pool that loses one.

    python benchmarks/faults/chaos.py [--quick] [--requests N] [--out FILE]

Two parts. *One endpoint*: `--requests` different requests through a proxy (`chaos_proxy.py`) that adds latency, resets
connections before and in the answer, refuses (429 with and without Retry-After, 503), fails (500, 502), cuts bodies and
JSON, sends other JSON, HTML, empty, broken and mislabelled bodies, and leaves sockets half open. *Four endpoints*: the
same number through four such proxies with fewer faults, one of which is killed (SIGKILL) after a third of the replies.

Each request must have been answered with exactly what the server says to it, or reported as errored; each answered one
lies in the ledger once, and no other; asking again asks for the errored ones alone, with faults off, and leaves none.
Resident memory is read after the first tenth and at the end.

The last line printed is one JSON object. Exit code 1 if a reply was lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from chaos_proxy import FAULTS, answer_to

from aloe import __version__
from aloe.errors import AloeError
from aloe.generate.engine import Request
from aloe.generate.ledger import LedgerEngine
from aloe.generate.server import ServerEngine
from aloe.generate.server_spec import ServerSpec

Found = dict[str, Any]
TIMEOUT_S = 5.0


@contextmanager
def proxies(folder: Path, count: int, share: float, seed: int, latency: float) -> Iterator[list[Found]]:
    """Ports and processes of `count` proxies with their servers."""
    ports = folder / f"ports-{seed}-{share}.json"
    command = [sys.executable, str(Path(__file__).with_name("chaos_proxy.py")), str(ports), "--count", str(count),
               "--share", str(share), "--seed", str(seed), "--latency", str(latency)]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        while not ports.exists():
            if process.poll() is not None:
                raise SystemExit("the proxies didn't start")
            time.sleep(0.02)
        yield json.loads(ports.read_text())
    finally:
        process.kill()
        process.wait()


def engine(found: list[Found], ledger: Path, **fields: Any) -> LedgerEngine:
    """A ledger over a server engine over these endpoints."""
    spec = ServerSpec(
        endpoints=[f"http://127.0.0.1:{p['port']}/v1" for p in found], model="m",
        **{"timeout_s": TIMEOUT_S, "backoff_s": 0.02, "give_up_s": 60.0, **fields},
    )  # fmt: skip
    return LedgerEngine(ServerEngine(spec, "served"), ledger)


def requests(count: int) -> list[Request]:
    return [Request(key=f"k{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(count)]


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def ask(asked: list[Request], served: LedgerEngine, after: dict[int, Any]) -> tuple[list[Any], Found]:
    """All replies, and figures; `after[n]()` is called when n replies have come."""
    came, memory, begun = [0], {}, time.monotonic()
    tenth = max(1, len(asked) // 10)

    def tick(finished: int, tokens: int) -> None:
        for _ in range(finished):
            came[0] += 1
            if came[0] in after:
                after[came[0]]()
            if came[0] == tenth:
                memory["tenth"] = resident()

    replies = served.generate(asked, tick)
    memory["end"] = resident()
    usage = served.engine.usage  # type: ignore[attr-defined]
    return replies, {
        "seconds": time.monotonic() - begun, "requests_sent": usage.requests, "tries_that_failed": usage.retries,
        "resident_bytes_after_a_tenth": memory.get("tenth", 0), "resident_bytes_at_the_end": memory["end"],
        "ticks": came[0],
    }  # fmt: skip


def checked(asked: list[Request], replies: list[Any], ledger: Path) -> Found:
    """Whether each request was answered once, rightly, or reported."""
    right = [answer_to(r.messages[-1]["content"]) for r in asked]
    answered = [i for i, r in enumerate(replies) if r.error is None]
    with closing(sqlite3.connect(ledger)) as db:
        rows = [json.loads(value) for (value,) in db.execute("SELECT value FROM replies")]
        claims = db.execute("SELECT count(*) FROM claims").fetchone()[0]
    texts = Counter(row["text"] for row in rows)
    return {
        "requests": len(asked), "answered": len(answered), "errored": len(asked) - len(answered),
        "lost": sum(r.key != a.key for r, a in zip(replies, asked, strict=True)) + len(asked) - len(replies),
        "wrong": sum(replies[i].text != right[i] for i in answered),
        "in_the_ledger": len(rows), "twice_in_the_ledger": sum(n - 1 for n in texts.values()),
        "answered_and_not_in_the_ledger": len({right[i] for i in answered} - texts.keys()),
        "in_the_ledger_and_not_answered": len(texts.keys() - {right[i] for i in answered}),
        "claims_left": claims,
        "reported": dict(Counter(str(r.error).split("(")[0].split(":")[0].strip()[:60] for r in replies if r.error)),
    }  # fmt: skip


def part(folder: Path, name: str, count: int, endpoints: int, share: float, latency: float, dies: bool) -> Found:
    """Ask through the proxies, check, and ask again for what was errored."""
    asked, ledger = requests(count), folder / f"{name}.sqlite"
    with proxies(folder, endpoints, share, 5, latency) as found:
        served = engine(found, ledger)
        kill = {count // 3: lambda: os.kill(found[-1]["process"], signal.SIGKILL)} if dies else {}
        try:
            replies, figures = ask(asked, served, kill)
        except AloeError as cause:
            return {"ended": str(cause), "failed": True}
        finally:
            served.close()
    state = checked(asked, replies, ledger)
    with proxies(folder, 1, 0.0, 6, 0.0) as found:
        served = engine(found, ledger)
        try:
            again, second = ask(asked, served, {})
        finally:
            served.close()
    after = checked(asked, again, ledger)
    failed = any(state[k] or after[k] for k in (
        "lost", "wrong", "twice_in_the_ledger", "answered_and_not_in_the_ledger", "in_the_ledger_and_not_answered",
        "claims_left",
    ))  # fmt: skip
    failed |= after["errored"] > 0 or second["requests_sent"] != state["errored"] or figures["ticks"] != count
    return {
        "endpoints": endpoints, "share_of_answers_spoiled": share, "mean_latency_s": latency, **state, **figures,
        "asked_again": second["requests_sent"], "errored_then": after["errored"], "failed": failed,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="150 requests in each part")
    args = parser.parse_args()
    count = 150 if args.quick else args.requests
    from aloe.run.execute import library_versions, machine

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = {
            "one endpoint": part(folder, "one", count, 1, 0.3, 0.02, dies=False),
            "four endpoints, one dies": part(folder, "four", count, 4, 0.1, 0.02, dies=True),
        }
    result = {
        "name": "chaos", "unit": "requests", "faults": list(FAULTS),
        "attempts": ServerSpec.model_fields["attempts"].default,
        "machine": machine(), "aloe": __version__, "versions": library_versions(), **found,
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if any(p["failed"] for p in found.values()):
        sys.exit("a reply was lost, doubled or wrong, or the run ended")


if __name__ == "__main__":
    main()
