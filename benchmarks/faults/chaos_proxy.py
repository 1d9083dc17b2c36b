"""A proxy on loopback that ill-treats what passes through it, and the servers behind it: the other side of `chaos.py`.

    python benchmarks/faults/chaos_proxy.py PORTS.json [--share S] [--seed N] [--count N]

Starts COUNT pairs of a server and a proxy in front of it, each pair in a process of its own, writes the proxies' ports
and processes into PORTS.json and runs until it is ended. A server answers a chat completion with words that follow from
what was asked alone, so that the asker can tell a wrong answer. The proxy reads one request, draws a fault by a keyed
generator, and spoils the request or the answer so.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import multiprocessing
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

LATENCY_S, LONG_S = 0.05, 30.0  # mean of the delays; longer than an asker of the benchmark waits
FAULTS = (
    "reset before the answer", "reset in the answer", "429 with Retry-After", "429 without", "503", "500", "502",
    "cut JSON", "cut body", "other JSON", "content of another type", "usage of another type", "HTML", "empty body",
    "other content type", "other charset", "broken gzip", "error with status 200", "half-open", "dribbled", "slow",
    "endless header",
)  # fmt: skip


def answer_to(text: str) -> str:
    """What the server says to `text`."""
    return f"answer {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


# -- the server -----------------------------------------------------------------------------------------------------


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes] | None:
    """(first line, headers in small letters, body); None at the end of a connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return head[0], headers, body


def _response(status: str, body: bytes, kind: str = "application/json", **more: str) -> bytes:
    named = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        **{k.replace("_", "-"): v for k, v in more.items()},
    }
    return (
        f"HTTP/1.1 {status}\r\n{''.join(f'{k}: {v}{chr(13)}{chr(10)}' for k, v in named.items())}\r\n".encode() + body
    )


def reply_to(line: str, body: bytes) -> bytes:
    """The server's response to a request."""
    if line.startswith("GET"):
        return _response("200 OK", json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())
    asked = str(json.loads(body)["messages"][-1]["content"])
    choice = {"index": 0, "message": {"role": "assistant", "content": answer_to(asked)}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return _response("200 OK", json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode())


# -- the proxy ------------------------------------------------------------------------------------------------------


class Proxy:
    """One proxy with its server; `share` of the answers are spoiled, each by a fault of its own drawing."""

    def __init__(self, share: float, seed: int, latency_s: float) -> None:
        self.share, self.latency_s = share, latency_s
        self._draw = np.random.Generator(np.random.Philox(seed))
        self.upstream = 0

    async def serve(self) -> int:
        """Start both; the proxy's port."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=512)
        self.upstream = server.sockets[0].getsockname()[1]
        proxy = await asyncio.start_server(self._pass, "127.0.0.1", 0, backlog=512)
        self._running = [server, proxy]
        return int(proxy.sockets[0].getsockname()[1])

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (asked := await _request(reader)) is not None:
            writer.write(reply_to(asked[0], asked[2]))
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connections are kept open, as servers do, until a fault ends one."""
        try:
            while (asked := await _request(reader)) is not None:
                line, _, body = asked
                spoiled = line.startswith("POST") and self._draw.random() < self.share
                fault = str(self._draw.choice(FAULTS)) if spoiled else ""
                if self.latency_s:
                    await asyncio.sleep(float(self._draw.exponential(self.latency_s)))
                if not await self._spoil(fault, line, body, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the asker has gone: it may
        finally:
            writer.close()

    async def _ask_server(self, line: str, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(f"{line}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        return answer

    async def _spoil(
        self, fault: str, line: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer in this way; whether the connection goes on."""
        if fault == "reset before the answer":
            return _reset(writer)
        if fault in SENT:
            writer.write(SENT[fault])
            await writer.drain()
            return True
        if fault == "half-open":
            await asyncio.wait_for(reader.read(1), LONG_S)  # says nothing more, and hears only that the asker leaves
            return False
        answer = await self._ask_server(line, body)
        head, _, content = answer.partition(b"\r\n\r\n")
        if fault in ("cut body", "reset in the answer"):
            writer.write(answer[: len(head) + 4 + len(content) // 2])
            await writer.drain()
            return _reset(writer) if fault == "reset in the answer" else False
        if fault == "dribbled":
            for at in range(0, len(answer), 16):
                writer.write(answer[at : at + 16])
                await writer.drain()
                await asyncio.sleep(0.005)
            return True
        if fault == "slow":
            await asyncio.sleep(20 * LATENCY_S)
        writer.write(_changed(fault, content) if fault in CHANGED else answer)
        await writer.drain()
        return True


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End the connection as a process that dies does."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


SLOW_DOWN = b'{"error": {"message": "slow down"}}'
SENT = {
    "429 with Retry-After": _response("429 Too Many Requests", SLOW_DOWN, Retry_After="0.2"),
    "429 without": _response("429 Too Many Requests", SLOW_DOWN),
    "503": _response("503 Service Unavailable", b"loading", "text/plain"),
    "500": _response("500 Internal Server Error", b'{"error": {"message": "no"}}'),
    "502": _response("502 Bad Gateway", b"<html>bad gateway</html>", "text/html"),
    "HTML": _response("200 OK", b"<html><body>Log in</body></html>", "text/html"),
    "empty body": _response("200 OK", b""),
    "error with status 200": _response("200 OK", b'{"error": {"message": "overloaded"}}'),
    "other JSON": _response("200 OK", b'{"choices": {"message": "none"}, "usage": []}'),
    "endless header": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n",
}  # fmt: skip
CHANGED = (
    "cut JSON", "content of another type", "usage of another type", "other content type", "other charset", "broken gzip"
)  # fmt: skip


def _changed(fault: str, content: bytes) -> bytes:
    """A whole response of which something is wrong. The two `other ...` ones hold the right answer."""
    payload: Any = json.loads(content)
    if fault == "cut JSON":
        return _response("200 OK", content[: len(content) // 2])
    if fault == "content of another type":
        payload["choices"][0]["message"]["content"] = [{"type": "text", "text": 7}]
        return _response("200 OK", json.dumps(payload).encode())
    if fault == "usage of another type":
        payload["usage"] = {"prompt_tokens": "many", "completion_tokens": -3.5}
        return _response("200 OK", json.dumps(payload).encode())
    if fault == "broken gzip":
        return _response("200 OK", gzip.compress(content)[:-12], Content_Encoding="gzip")
    kind = "text/html" if fault == "other content type" else "application/json; charset=utf-16"
    return _response("200 OK", content, kind)


# -- processes ------------------------------------------------------------------------------------------------------


def _one(share: float, seed: int, latency_s: float, told: Any) -> None:
    parent = os.getppid()

    def end_with_it() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=end_with_it, daemon=True).start()

    async def forever() -> None:
        told.send(await Proxy(share, seed, latency_s).serve())
        await asyncio.Event().wait()

    asyncio.run(forever())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ports", type=Path)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--latency", type=float, default=LATENCY_S)
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    found = []
    for number in range(args.count):
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=_one, args=(args.share, args.seed + number, args.latency, there), daemon=True
        )
        child.start()
        found.append({"port": here.recv(), "process": child.pid})
    aside = args.ports.with_suffix(".part")
    aside.write_text(json.dumps(found))
    os.replace(aside, args.ports)
    sys.stdin.read()  # ends with whoever started it


if __name__ == "__main__":
    main()
