"""One HTTP exchange with a server: a place at an endpoint, the request, what its answer means, and another try.

stamina does the retrying: growing, jittered waits for failures that count (timeouts, 5xx, lost connections, cut
answers) up to `attempts`; refusals (429, 503) and unreachable endpoints don't count, since the router paces them, but
end in an error when nothing at all was answered for `give_up_s`. The API key is in the client's header only, and
is cut out of whatever a server says.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import stamina

from aloe.errors import AloeError
from aloe.generate import wire
from aloe.generate.awake import AwakeClock
from aloe.generate.routing import Endpoint, Router
from aloe.generate.server_spec import ServerSpec

CONNECT_S = 10.0
LONGEST_WAIT = 20.0  # seconds between the tries of one request
NOT_READY = (429, 502, 503, 504)  # a server that is loading or full, a proxy in front of one that is gone
LARGEST = 64 << 20  # bytes of an answer; log-probabilities of a long prompt take a few million
SOON = 0.01  # seconds: the router paces a request that was refused
T = TypeVar("T")

# Retries are routine here; a library that prints each one to stderr when nobody set up logging drowns the rest.
logging.getLogger("stamina").addHandler(logging.NullHandler())


class Counted(Exception):
    """A try failed in a way that may pass; it counts."""


class Pushed(Exception):
    """The server said "not now", or can't be reached; it doesn't count."""


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status_code: int
    headers: httpx.Headers
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300

    @property
    def text(self) -> str:
        """For people; a page in another encoding shows marks."""
        return self.content.decode(errors="replace")


async def _whole(response: httpx.Response) -> Answer:
    """Read a response, as far as one can be sensible: a server gone wild, or a compressed bomb, must not fill memory.

    Raises:
        Counted: it is longer than `LARGEST`.
    """
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise Counted(f"the answer is longer than {LARGEST >> 20} MiB")
    return Answer(response.status_code, response.headers, b"".join(parts))


class Usage:
    """What the server was asked for, tries that failed included. `unreported`: answers that stated no tokens."""

    def __init__(self) -> None:
        self.requests = self.retries = self.prompt_tokens = self.completion_tokens = self.unreported = 0

    def add(self, payload: Any) -> None:
        """Count an answer's tokens."""
        prompt, completion = wire.usage(payload)
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.unreported += prompt == 0


class Exchange:
    """Connections to the endpoints of one server. Lives on one event loop."""

    def __init__(self, spec: ServerSpec, usage: Usage) -> None:
        self.spec, self.usage = spec, usage
        self._key = spec.key()
        limit = httpx.Timeout(spec.timeout_s, connect=min(CONNECT_S, spec.timeout_s), pool=None)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=limit,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy is for the world outside; it would be asked for this machine's own ports in vain.
            trust_env=not all(_is_loopback(url) for url in spec.endpoints),
        )
        clock = AwakeClock()
        self.router = Router(spec.endpoints, spec.max_concurrency, spec.give_up_s, spec.backoff_s, self._probe, clock)
        self._watch = asyncio.get_running_loop().create_task(clock.keep())
        self._understood: set[str] = set()  # paths that answered in OpenAI's shape
        self._strange: Counter[str] = Counter()  # answers in another shape, by path
        self._lock = asyncio.Lock()
        self._is_ready = self._prefill_checked = False
        self._ended: AloeError | None = None

    def begin(self) -> None:
        """Work starts (again): what ended it before may have been mended."""
        self._ended = None
        self.router.begin()

    def end(self, cause: AloeError) -> None:
        """Send nothing more: requests that wait for a place would only repeat the error."""
        self._ended = self._ended or cause

    async def close(self) -> None:
        """End probes and connections."""
        self._watch.cancel()
        await self.router.close()
        await self._client.aclose()

    # -- before the first request -------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Once: ask every endpoint for its models, where the recipe says that it lists them. One that can't be
        reached is left to the router's probes.

        Raises:
            AloeError: an endpoint doesn't list the model (the error lists what it has), or wants another key.
        """
        async with self._lock:
            if not self._is_ready and self.spec.listed:
                await asyncio.gather(*map(self._check_model, self.router.endpoints))
            self._is_ready = True

    async def _check_model(self, endpoint: Endpoint) -> None:
        try:
            names = await self.models(endpoint.url)
        except (Pushed, Counted) as cause:
            self.router.take_out(endpoint, str(cause))
            return
        if names and self.spec.model not in names:
            close = difflib.get_close_matches(self.spec.model, names, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise AloeError(
                f"the server has no model {self.spec.model!r}{hint}",
                where=endpoint.url,
                fix=f"it lists {', '.join(sorted(names)[:12])}; for a server that serves what it doesn't list "
                "(`transformers serve` with a folder), set listed: false",
            )

    async def models(self, url: str) -> list[str] | None:
        """Names under /models; None where the server has no such list, or none that works.

        Raises:
            Pushed: it can't be reached, or isn't ready.
            AloeError: it refuses the key.
        """
        try:
            response = await self._client.get(f"{url}/models", timeout=min(CONNECT_S, self.spec.timeout_s))
        except httpx.RequestError as cause:
            raise Pushed(_named(cause)) from None
        if response.status_code in (401, 403):
            raise self._wrong_key(url, response)
        if response.status_code in NOT_READY:
            raise Pushed(f"HTTP {response.status_code} from /models")
        try:
            return [str(entry["id"]) for entry in response.json()["data"]] if response.is_success else None
        except (ValueError, TypeError, KeyError):
            return None

    async def _probe(self, url: str) -> str | None:
        try:
            await self.models(url)
        except (Pushed, Counted) as cause:
            return str(cause)
        except AloeError:  # it answers; what it says is told to the next request
            return None
        return None

    async def check_prefill(self) -> None:
        """Once: see by the prompt's token count that the server really leaves the last turn open.

        One token put into the open turn makes the prompt one longer. A server that closes the turn (or ignores the
        flags) adds its end-of-turn and the next turn's opening as well. Where tokens aren't counted, the recipe's
        word is taken.
        """
        async with self._lock:
            if self._prefill_checked:
                return
            base = {"model": self.spec.model, self.spec.limit_as: 1, "temperature": 0.0}
            asked: list[dict[str, str]] = [{"role": "user", "content": "Say A."}]
            begun = [*asked, {"role": "assistant", "content": "A"}]
            flags = {"continue_final_message": True, "add_generation_prompt": False}
            plain = await self._count(base | {"messages": asked})
            opened = await self._count(base | {"messages": begun} | flags)
            if plain and opened and opened - plain != 1:
                closed = await self._count(base | {"messages": begun})
                if not plain < opened < closed:
                    raise AloeError(
                        "the server doesn't continue a turn that was begun for it, though prefill: continue says so",
                        where=self.spec.endpoints[0],
                        fix="use prefill: instruct, or name a `template` if it has /completions (docs/servers.md)",
                    )
            self._prefill_checked = True

    async def _count(self, body: dict[str, Any]) -> int:
        return await self.ask("/chat/completions", body | self.spec.extra, lambda p: wire.usage(p)[0])

    # -- a request ----------------------------------------------------------------------------------------------

    async def ask(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer, tried again while that makes sense.

        Raises:
            Counted, wire.Garbled: the last of `attempts` tries failed.
            wire.Unanswerable: the server will not answer this request.
            AloeError: it will not answer any.
        """
        failed = 0

        def again(cause: Exception) -> bool | float:
            nonlocal failed
            if isinstance(cause, Pushed):
                return SOON
            if not isinstance(cause, Counted | wire.Garbled):
                return False
            failed += 1
            self.usage.retries += failed < self.spec.attempts
            return failed < self.spec.attempts

        async for attempt in stamina.retry_context(
            on=again, attempts=None, timeout=None, wait_initial=self.spec.backoff_s, wait_max=LONGEST_WAIT,
            wait_jitter=self.spec.backoff_s,
        ):  # fmt: skip
            with attempt:
                return await self._try(path, body, read)
        raise AssertionError("stamina ends in a return or an exception")

    async def _try(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        endpoint = await self.router.acquire()
        if self._ended is not None:
            self.router.release(endpoint)
            raise self._ended
        started = self.router.clock()
        self.usage.requests += 1
        try:
            response = await self._send(endpoint, started, path, body)
            self._judge(endpoint, started, path, response)
            payload = wire.decoded(response.content)
            self.usage.add(payload)
            self.router.succeed(endpoint)
        except AloeError as cause:
            self.end(cause)  # before the place is free for a request that would only hear the same
            raise
        finally:
            self.router.release(endpoint)
        try:
            found = read(payload)
        except wire.WrongShape as cause:
            raise self._other_shape(endpoint, path, str(cause)) from None
        except (AttributeError, TypeError, KeyError, IndexError, ValueError, OverflowError) as cause:
            said = f"JSON whose fields have other types than OpenAI's ({type(cause).__name__}: {cause})"
            raise self._other_shape(endpoint, path, said) from None
        self._understood.add(path)
        return found

    def _other_shape(self, endpoint: Endpoint, path: str, said: str) -> Exception:
        """An answer in another shape is an accident on the way where others were understood, else another protocol."""
        self._strange[path] += 1
        if path in self._understood or self._strange[path] < self.spec.attempts:
            return Counted(f"the answer is {said}")
        return AloeError(
            f"the server answers {path} with {said}",
            where=endpoint.url,
            fix="check that the address is an OpenAI-compatible one (it usually ends in /v1) and that what the "
            "recipe declares of it is so",
        )

    async def _send(self, endpoint: Endpoint, started: float, path: str, body: dict[str, Any]) -> Answer:
        router, limit = self.router, self.spec.timeout_s
        try:
            async with asyncio.timeout(limit):  # the whole exchange: a server that dribbles must not hold it open
                async with self._client.stream("POST", endpoint.url + path, json=body) as response:
                    return await _whole(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as cause:
            router.take_out(endpoint, _named(cause))
            self._refuse_stall(endpoint, f"can't be reached ({_named(cause)})")
            raise Pushed(f"{endpoint.url} can't be reached: {_named(cause)}") from None
        except (TimeoutError, httpx.TimeoutException):
            router.strike(endpoint, started, f"no answer within {limit:g} s")
            raise Counted(f"no answer within {limit:g} s") from None
        except httpx.RequestError as cause:
            router.strike(endpoint, started, _named(cause))
            raise Counted(f"the connection was lost: {_named(cause)}") from None

    def _judge(self, endpoint: Endpoint, started: float, path: str, response: Answer) -> None:
        """Raise what a status means; return for success."""
        status = response.status_code
        if response.is_success:
            return
        said = self._said(response)
        if status in (429, 503):
            now = self.router.clock()
            endpoint.refuse(started, now, retry_after(response.headers.get("retry-after")), self.spec.backoff_s)
            self._refuse_stall(endpoint, f"refuses every request (HTTP {status}: {said})")
            raise Pushed(f"HTTP {status}: {said}")
        if status in (408, 425) or status >= 500:
            if status in (502, 504):  # a proxy in front of a server that is gone
                self.router.strike(endpoint, started, f"HTTP {status}: {said}")
            raise Counted(f"HTTP {status}: {said}")
        if status in (401, 403):
            raise self._wrong_key(endpoint.url, response)
        if status in (400, 413, 422) and wire.NEVER.search(said):
            raise wire.Unanswerable(f"HTTP {status}: {said}")
        raise AloeError(f"HTTP {status} for {path}: {said}", where=endpoint.url, fix=_fix(status, self.spec))

    def _refuse_stall(self, endpoint: Endpoint, how: str) -> None:
        """Refusals don't count as tries, so a server that does nothing else must end the run somewhere."""
        patience = max(self.spec.give_up_s, self.spec.timeout_s)  # longer than an answer that is on its way may take
        if self.router.clock() - self.router.last_answer > patience:
            raise AloeError(
                f"the server {how}, and none was answered for {patience:g} s",
                where=endpoint.url,
                fix="see what ails it (a quota?) or raise give_up_s, then run the same command: finished replies are "
                "kept",
            )

    def _wrong_key(self, url: str, response: Answer | httpx.Response) -> AloeError:
        name = self.spec.key_env
        return AloeError(
            f"HTTP {response.status_code}: the server refuses "
            + (f"the key in {name}" if name else "requests without a key")
            + f" ({self._said(response)})",
            where=url,
            fix=f"put a valid key for {self.spec.model} into {name}"
            if name
            else "name the environment variable that holds its key in key_env",
        )

    def _said(self, response: Answer | httpx.Response) -> str:
        said = wire.stated_error(response.text)
        return said.replace(self._key, "[key]") if self._key else said


def retry_after(value: str | None) -> float | None:
    """Seconds in a Retry-After header: a number, or a date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _fix(status: int, spec: ServerSpec) -> str:
    if status == 404:
        return f"check the address (it usually ends in /v1) and that the server has the model {spec.model!r}"
    if 300 <= status < 400:
        return "write the address that it redirects to into the recipe"
    return "the server doesn't take this request: check `extra`, `prefill`, `scores` and the model's name in the recipe"


def _named(cause: Exception) -> str:
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


async def _health(spec: ServerSpec, seconds: float) -> list[str]:
    async with httpx.AsyncClient(timeout=seconds, trust_env=not all(map(_is_loopback, spec.endpoints))) as client:
        return list(await asyncio.gather(*(_state(client, spec, url) for url in spec.endpoints)))


async def _state(client: httpx.AsyncClient, spec: ServerSpec, url: str) -> str:
    key = spec.key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = await client.get(f"{url}/models", headers=headers)
        names = [str(entry["id"]) for entry in response.json()["data"]] if response.is_success else None
    except httpx.RequestError as cause:
        return f"{url}  [out of reach: {_named(cause)}]"
    except (ValueError, TypeError, KeyError):
        names = None
    if names is None:
        return f"{url}  [answers HTTP {response.status_code}, lists no models]"
    state = "available" if spec.model in names else f"lists no {spec.model}: {', '.join(names[:6]) or 'nothing'}"
    return f"{url}  [{state}]"


def health(spec: ServerSpec, seconds: float = 2.0) -> list[str]:
    """One line per endpoint: whether it answers and lists the model. For `aloe doctor`; no request is sent."""
    return asyncio.run(_health(spec, seconds))
