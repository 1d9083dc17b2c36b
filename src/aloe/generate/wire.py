"""OpenAI's request and response shapes: what is sent for a request, and what is read from an answer. No I/O here.

Chat completions carry messages; completions carry the token ids of a local template. An answer that is no such thing
is `WrongShape`, one that was cut or is empty of sense is `Garbled`, one the server will never give `Unanswerable`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aloe.generate.engine import FinishReason, Reply, Request, Score, ScoreRequest
from aloe.generate.server_spec import ServerSpec
from aloe.keyed import key64

ROUNDING = 1e-5  # what servers' rounded log-probabilities may hide of the probability left over
TOP = 20  # the most likely tokens that OpenAI's API lists at a position
INSTRUCT = "\n\nBegin your reply with exactly these words and go on from there:\n"
NEVER = re.compile(
    r"context.{0,12}(length|size|window)|maximum (context|model|input|prompt)|max_model_len|too many tokens"
    r"|(prompt|input) is too long|longer than the (model|maximum)|content.?(filter|management)",
    re.IGNORECASE,
)


class WrongShape(Exception):
    """The server speaks another protocol: no retry will help, nor will the next request."""


class Garbled(Exception):
    """The answer was cut, isn't JSON or breaks the asked-for schema: worth another try."""


class Unanswerable(Exception):
    """The server will not answer this request, whoever asks again; others it may."""


# -- requests -------------------------------------------------------------------------------------------------------


def chat_body(spec: ServerSpec, request: Request | ScoreRequest) -> dict[str, Any]:
    """Body of a chat completion. A prefill goes as the open last turn, or as an instruction, as the spec says."""
    messages = [dict(m) for m in request.messages]
    body: dict[str, Any] = {"model": spec.model, "messages": messages}
    if request.prefill and spec.prefill_mode == "continue":
        messages.append({"role": "assistant", "content": request.prefill})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif request.prefill:
        if not messages or messages[-1]["role"] != "user":
            messages.append({"role": "user", "content": ""})
        messages[-1]["content"] = (messages[-1]["content"] + INSTRUCT + request.prefill).strip()
    if isinstance(request, ScoreRequest):
        body |= {spec.limit_as: 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP}
    else:
        body |= _sampling(spec, request, ())
        if request.schema is not None:
            shape = {"name": "reply", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        if spec.scores == "first_token":
            body["logprobs"] = True
    return body | spec.extra


def completion_body(spec: ServerSpec, request: Request, ids: Sequence[int], end: str) -> dict[str, Any]:
    """Body of a completion after the token ids of a rendered prompt; `end` is the template's end of turn as text."""
    body = {"model": spec.model, "prompt": list(ids), **_sampling(spec, request, (end,) if end else ())}
    if spec.scores != "none":
        body["logprobs"] = 1
    return body | spec.extra


def score_body(spec: ServerSpec, ids: Sequence[int]) -> dict[str, Any]:
    """Body that has the server score `ids`. One token is drawn as well, since not every server takes 0."""
    body: dict[str, Any] = {"model": spec.model, "prompt": list(ids), spec.limit_as: 1, "temperature": 0.0}
    body |= {"echo": True, "logprobs": 1} if spec.scores == "echo" else {"prompt_logprobs": 1}
    return body | spec.extra


def _sampling(spec: ServerSpec, request: Request, more_stops: tuple[str, ...]) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {spec.limit_as: sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        # 31 bits: servers differ in what they take. A server keeps its promise about a seed as well as it can.
        body |= {"top_p": sampling.top_p, "seed": key64(request.seed, "sample", request.key) % (1 << 31)}
    stops = [*sampling.stop, *more_stops]
    return body | {"stop": stops} if stops else body


# -- answers --------------------------------------------------------------------------------------------------------


def decoded(body: bytes) -> Any:
    """The JSON of a response body: UTF-8 (RFC 8259, section 8.1), whatever a header calls it."""
    try:
        return json.loads(body)
    except RecursionError:
        raise Garbled("the answer is JSON nested too deeply") from None
    except ValueError:
        end = body[-40:].decode(errors="replace")
        raise Garbled(f"the answer is no whole JSON ({len(body)} bytes, ending in {end!r})") from None


def read_chat(payload: Any, spec: ServerSpec, request: Request) -> Reply:
    """The reply in a chat completion's answer."""
    choice = _choice(payload, "message")
    text = choice["message"].get("content")
    if not isinstance(text, str | None):
        raise WrongShape("JSON whose `choices[0].message.content` is no text")
    finish = _finish(choice.get("finish_reason"))
    if text is None:
        if finish != "length":
            raise Garbled("the answer holds no text")
        text = ""  # all of the allowance went into reasoning that the server keeps to itself
    if request.prefill and spec.prefill_mode == "instruct":
        text = _without(request.prefill, text)
    for mark in request.sampling.stop:
        text = text.split(mark)[0]
    if request.schema is not None and finish == "stop":
        _check_structure(text, request.schema)
    entries = (choice.get("logprobs") or {}).get("content") or []
    prompt, completion = usage(payload)
    return Reply(
        key=request.key, text=text, finish_reason=finish, prompt_tokens=prompt, completion_tokens=completion,
        logprob=math.fsum(_number(e, "logprob") for e in entries),
    )  # fmt: skip


def read_completion(payload: Any, request: Request, end: str) -> Reply:
    """The reply in a completion's answer."""
    choice = _choice(payload, "text")
    text = str(choice["text"])
    for mark in (*request.sampling.stop, *([end] if end else [])):
        text = text.split(mark)[0]
    values = (choice.get("logprobs") or {}).get("token_logprobs") or []
    prompt, completion = usage(payload)
    return Reply(
        key=request.key, text=text, finish_reason=_finish(choice.get("finish_reason")), prompt_tokens=prompt,
        completion_tokens=completion, logprob=math.fsum(v for v in values if isinstance(v, int | float)),
    )  # fmt: skip


def read_first_token(payload: Any, request: ScoreRequest) -> Score:
    """Scores of one-token continuations by the listed likeliest first tokens.

    One that isn't listed is at most as likely as the last listed and as what the listed leave over; it gets that
    bound and is marked in `at_most`.

    Raises:
        Unanswerable: none is listed, or one that isn't listed may be longer than a token.
    """
    entries = ((_choice(payload, "message").get("logprobs") or {}).get("content")) or []
    listed = entries[0].get("top_logprobs") if entries else None
    if not listed:
        raise WrongShape("a chat completion without `logprobs.content[0].top_logprobs`")
    known: dict[str, float] = {}
    for entry in listed:
        known[str(entry["token"])] = max(_number(entry, "logprob"), known.get(str(entry["token"]), -math.inf))
    missing = [c for c in request.continuations if c not in known]
    if len(missing) == len(request.continuations):
        raise Unanswerable(f"none of {list(request.continuations)} is among the {len(known)} likeliest first tokens")
    if long := [c for c in missing if len(c) > 1]:
        raise Unanswerable(f"{long[0]!r} isn't among the {len(known)} likeliest first tokens and may be several tokens")
    left = max(0.0, 1.0 - math.fsum(math.exp(v) for v in known.values())) + ROUNDING
    bound = min(*known.values(), math.log(left))
    prompt, _ = usage(payload)
    return Score(
        key=request.key,
        logprobs=tuple(known.get(c, bound) for c in request.continuations),
        token_counts=tuple(1 for _ in request.continuations),
        greedy=tuple(known.get(c, -math.inf) == max(known.values()) for c in request.continuations),
        prompt_tokens=prompt,
        at_most=tuple(c not in known for c in request.continuations) if missing else (),
    )


def read_tail(payload: Any, spec: ServerSpec, tail: Sequence[int], total: int) -> tuple[float, bool]:
    """(summed log-probability, greedy) of the last `tail` of `total` echoed prompt tokens.

    The text forms of tokens are not looked at: positions are, since the ids were ours.
    """
    choice = _choice(payload, None)
    first = total - len(tail)
    if spec.scores == "echo":
        found = choice.get("logprobs") or {}
        values, tops = found.get("token_logprobs"), found.get("top_logprobs")
        if not values or not tops or min(len(values), len(tops)) < total:
            raise WrongShape("a completion without the echoed `logprobs.token_logprobs` and `top_logprobs`")
        pairs = [(values[i], max(tops[i].values(), default=-math.inf)) for i in range(first, total)]
    else:
        listed = choice.get("prompt_logprobs", payload.get("prompt_logprobs"))
        if not listed or len(listed) != total:
            raise WrongShape("a completion without `prompt_logprobs` of every prompt token")
        pairs = []
        for token, at in zip(tail, listed[first:], strict=True):
            by_id = {int(k): _number(v, "logprob") for k, v in (at or {}).items()}
            if token not in by_id:
                raise WrongShape(f"`prompt_logprobs` without the prompt's own token {token}")
            pairs.append((by_id[token], max(by_id.values())))
    if any(not isinstance(v, int | float) or not math.isfinite(v) for v, _ in pairs):
        raise WrongShape("log-probabilities that are no numbers")
    return math.fsum(v for v, _ in pairs), all(v >= best for v, best in pairs)


def usage(payload: Any) -> tuple[int, int]:
    """(prompt tokens, completion tokens) as the server counts them; zeros where it doesn't."""
    stated = payload.get("usage") if isinstance(payload, dict) else None
    if not isinstance(stated, dict):
        return 0, 0
    prompt, completion = (stated.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return tuple(n if isinstance(n, int) and n > 0 else 0 for n in (prompt, completion))  # type: ignore[return-value]


def stated_error(text: str) -> str:
    """What a server says in an error response, in one line."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    while isinstance(value, dict) and (inner := [value[k] for k in ("error", "message", "detail") if value.get(k)]):
        value = inner[0]
    return " ".join(str(value).split())[:300]


def _choice(payload: Any, holds: str | None) -> Any:
    """The first choice; `holds` names what must be in it."""
    if isinstance(payload, dict) and payload.get("error"):
        raise Garbled(f"the answer is an error: {stated_error(json.dumps(payload))}")
    choices = payload.get("choices") if isinstance(payload, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise WrongShape("JSON without `choices`")
    if holds is not None and not isinstance(choices[0].get(holds), dict if holds == "message" else str):
        raise WrongShape(f"JSON without `choices[0].{holds}`")
    return choices[0]


def _finish(stated: Any) -> FinishReason:
    """OpenAI's reasons as ours. A reply that a filter or an abort cut short is no answer."""
    if stated == "length":
        return "length"
    if stated in (None, "stop", "eos", "eos_token", "stop_sequence", "end_turn"):
        return "stop"
    if stated == "content_filter":
        raise Unanswerable("the server's content filter cut the reply")
    raise Garbled(f"the reply ended for the reason {stated!r}")


def _without(prefill: str, text: str) -> str:
    """The text after the prefill it was asked to begin with; all of it where it began otherwise."""
    begun, start = text.lstrip(), prefill.strip()
    if not begun.startswith(start):
        return text
    rest = begun[len(start) :]
    return rest.removeprefix(prefill[len(prefill.rstrip()) :])


def _check_structure(text: str, schema: Mapping[str, Any]) -> None:
    """What every schema of ours says at its top: JSON of that type with the required keys."""
    try:
        value = json.loads(text)
    except ValueError:
        raise Garbled(f"the reply is no JSON though a schema was sent: {text[:60]!r}") from None
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool}
    kind = kinds.get(str(schema.get("type")))
    if kind is not None and not isinstance(value, kind):
        raise Garbled(f"the reply is no {schema['type']} though the schema asks for one")
    lacking = [k for k in schema.get("required", ()) if isinstance(value, dict) and k not in value]
    if lacking:
        raise Garbled(f"the reply lacks {', '.join(lacking)}, which the schema requires")


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    if not isinstance(value, int | float):
        raise WrongShape(f"a token without the number {name!r}")
    return float(value)
