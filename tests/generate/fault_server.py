"""A loopback server that speaks OpenAI's protocol and fails on demand: refusals, cut answers, lost connections, hangs.

`FaultServer(answer)` calls `answer(call)` for every request and sends what it returns; without one it answers with
the last message's words. Every call is kept, with its time and how many others were under way. `models` are the names
it lists, or the status that it answers with instead.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Call:
    """One request as it arrived. `number` counts calls to `path`, from 1."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    number: int
    at_once: int
    time: float

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])


@dataclass
class Answer:
    """What is sent. `drop`: nothing, the connection is reset. `stated_length`: longer than the body, so it is cut.
    `drip`: seconds between single bytes. `wait`: seconds before anything is sent, or until the server stops."""

    body: bytes | str | dict[str, Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    stated_length: int | None = None
    drip: float = 0.0
    wait: float = 0.0


def said(text: str | None, *, finish: str | None = "stop", prompt: int = 7, completion: int = 3, **more: Any) -> Answer:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return Answer({"object": "chat.completion", "choices": [choice], "usage": usage})


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    """An error response in OpenAI's shape."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "type": "error"}}, status, named)


def echo(call: Call) -> Answer:
    """The default: the last message, said back."""
    return said(f"echo {call.text}")


class FaultServer:
    """Use as a context manager; `url` is the address for a recipe. `stop` and `start` keep the port."""

    def __init__(self, answer: Callable[[Call], Answer] = echo, models: tuple[str, ...] | int = ("m",)) -> None:
        self.answer, self.models = answer, models
        self.calls: list[Call] = []
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._now = 0
        self._stopping = threading.Event()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Call]:
        """Calls that asked for a reply."""
        return [c for c in self.calls if c.path == "/v1/chat/completions"]

    def __enter__(self) -> FaultServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        outer = self
        self._stopping.clear()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer._list(self)

            def do_POST(self) -> None:
                outer._post(self)

            def log_message(self, *_: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: Any) -> None:
                return  # a client that has gone away is what these tests are about

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on; answers that wait are let go."""
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _list(self, handler: BaseHTTPRequestHandler) -> None:
        if self._stopping.is_set():
            return _drop(handler)
        if isinstance(self.models, int):
            return _send(handler, refused(self.models, "no list"), self._stopping)
        data = [{"id": name, "object": "model"} for name in self.models]
        return _send(handler, Answer({"object": "list", "data": data}), self._stopping)

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            number = sum(c.path == handler.path for c in self.calls) + 1
            headers = {k.lower(): v for k, v in handler.headers.items()}
            call = Call(handler.path, body, headers, number, self._now, time.monotonic())
            self.calls.append(call)
        try:
            if self._stopping.is_set():
                return _drop(handler)
            _send(handler, self.answer(call), self._stopping)
        finally:
            with self._lock:
                self._now -= 1


def _send(handler: BaseHTTPRequestHandler, answer: Answer, stopping: threading.Event) -> None:
    if answer.wait and stopping.wait(answer.wait):
        return _drop(handler)
    if answer.drop:
        return _drop(handler)
    body = json.dumps(answer.body) if isinstance(answer.body, dict) else answer.body
    data = body.encode() if isinstance(body, str) else body
    handler.send_response(answer.status)
    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(answer.stated_length or len(data)))
    handler.end_headers()
    if answer.drip:
        for at in range(len(data)):
            handler.wfile.write(data[at : at + 1])
            handler.wfile.flush()
            if stopping.wait(answer.drip):
                break
    else:
        handler.wfile.write(data)
        handler.wfile.flush()
    if answer.stated_length:
        _drop(handler)


def _drop(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection, as a process that dies does."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
