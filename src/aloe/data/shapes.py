"""The declared shapes of a row, and how each becomes a record. Pure: a dict in, a record out, or a `Misfit`.

A shape is recognised by the columns of a file's first row; every row must then fit it. What doesn't fit is refused
with a reason, never bent into shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from aloe.data.clean import key_text, repair_answer
from aloe.records import AttackPrompt, Dialogue, Message, Preference, Question, Row, row_id


class Misfit(Exception):
    """A row that doesn't fit its shape: a reason for the ledger and a detail for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Defaults:
    """What fills in for a row that states no source or licence. `licence` wins over the row's own when it is set;
    `repair` allows the repair of mangled multiple-choice answers; `content_ids` makes ids from content and keeps the
    row's own as `meta["original_id"]`."""

    source: str
    licence: str | None = None
    repair: bool = True
    content_ids: bool = False


@dataclass
class Taker:
    """Hands out a row's columns and remembers which were used: the rest goes to `meta`."""

    row: Mapping[str, Any]
    used: set[str] = field(default_factory=lambda: {"id", "source", "licence", "license", "meta"})

    def take(self, *names: str, default: Any = None) -> Any:
        """Value of the first of `names` that the row has (None counts as absent)."""
        for name in names:
            if self.row.get(name) is not None:
                self.used.add(name)
                return self.row[name]
        self.used.update(names)
        return default

    def text(self, *names: str) -> str:
        """`take` as text; a list of texts (PubMedQA contexts) is joined by line breaks."""
        value = self.take(*names, default="")
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return "\n".join(value)
        if isinstance(value, Mapping | list):
            raise Misfit("not_text", f"{names[0]} should be text, found {type(value).__name__}")
        return str(value)

    def need(self, reason: str, *names: str) -> str:
        """`text`, which must not be blank."""
        value = self.text(*names)
        if not value.strip():
            raise Misfit(reason, f"{names[0]} is missing or blank")
        return value

    def base(self, defaults: Defaults, **extra: Any) -> dict[str, Any]:
        """The fields every record has. Columns not taken, then the row's own `meta`, end up in `meta`."""
        own = self.row.get("meta")
        rest = {k: _plain(v) for k, v in self.row.items() if k not in self.used and v is not None}
        meta = {**rest, **extra, **(own if isinstance(own, Mapping) else {})}
        licence = defaults.licence or self.row.get("licence") or self.row.get("license") or "unknown"
        given = str(self.row["id"]) if self.row.get("id") is not None else ""
        if given and defaults.content_ids:
            meta = {"original_id": given, **meta}
        return {
            "id": row_id(_plain(self.row)) if not given or defaults.content_ids else given,
            "source": str(self.row.get("source") or defaults.source),
            "licence": str(licence).strip().lower(),
            "meta": meta,
        }


def _plain(value: Any) -> Any:
    """JSON-able copy of a cell: dates, bytes and the like become text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


# ---------------------------------------------------------------------------------------------- questions

_OPTION_COLUMNS = (tuple("ABCDEFGH"), ("opa", "opb", "opc", "opd", "ope"))


def _options_of(taker: Taker) -> dict[str, str]:
    value = _parsed(taker.take("options", "choices"))
    if value is None:
        return _options_from_columns(taker)
    if isinstance(value, Mapping):
        options = {str(k).strip().upper(): v for k, v in value.items() if v is not None}
        if any(len(k) != 1 or k not in ascii_uppercase for k in options):
            raise Misfit("bad_option_letters", f"options are named {sorted(value)}, expected letters A, B, ...")
        pairs: Iterable[tuple[str, Any]] = sorted(options.items())
    elif isinstance(value, list) and len(value) <= len(ascii_uppercase):
        pairs = zip(ascii_uppercase, value, strict=False)
    else:
        raise Misfit("bad_options", f"options should be a map or a list, found {type(value).__name__}")
    return _checked(dict(pairs))


def _options_from_columns(taker: Taker) -> dict[str, str]:
    for names in _OPTION_COLUMNS:
        if names[0] in taker.row:
            values = [taker.take(n) for n in names]
            return _checked(
                {letter: v for letter, v in zip(ascii_uppercase, values, strict=False) if v is not None and v != ""}
            )
    raise Misfit("no_options", "the row has no options")


def _checked(options: dict[str, Any]) -> dict[str, str]:
    texts = {k: str(v) for k, v in options.items() if not isinstance(v, Mapping | list)}
    if len(texts) < len(options):
        raise Misfit("bad_options", "an option is not text")
    if len(texts) < 2:
        raise Misfit("too_few_options", f"{len(texts)} option(s); a question needs two or more")
    if blank := [k for k, v in texts.items() if not v.strip()]:
        raise Misfit("empty_option", f"option {blank[0]} is blank")
    return texts


def _parsed(value: Any) -> Any:
    """Nested values written as JSON text (CSV files) are read; anything else comes back as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as cause:
            raise Misfit("bad_json", f"a nested value is not valid JSON ({cause.msg})") from None
    return value


def resolve_answer(
    value: Any, options: dict[str, str], *, lettered: bool = True, repair: bool = True
) -> tuple[str, str | None]:
    """(letter, repair pattern or None) for an answer given as a letter, a 0-based index or an option's text.

    `lettered` says that the row itself names its options by letters; in a list of options a letter may also be a
    text (blood group "B"), so there the two readings must agree.
    """
    letters = sorted(options)
    if isinstance(value, bool) or value is None:
        raise Misfit("no_answer", f"the answer is {value!r}")
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        if not 0 <= value < len(letters):
            raise Misfit("answer_not_in_options", f"index {int(value)} is outside 0..{len(letters) - 1} (0-based)")
        return letters[int(value)], None
    text = str(value).strip()
    same = [k for k, v in options.items() if v.strip() == text]
    as_letter = text.upper() if text.upper() in options else None
    if as_letter and not lettered and same and same != [as_letter]:
        raise Misfit("ambiguous_answer", f"{text!r} is the letter of one option and the text of {same[0]}")
    if as_letter:
        return as_letter, None
    if len(same) == 1:
        return same[0], None
    if repair and (found := repair_answer(text, options)):
        return found
    raise Misfit("answer_not_in_options", f"answer {text[:60]!r} is none of {', '.join(letters)}")


def _question(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    stem = taker.need("empty_question", "question")
    options = _options_of(taker)
    value = taker.take("answer_idx", "answer_index", "cop", "answer")
    lettered = not isinstance(_parsed(row.get("options", row.get("choices"))), list)
    letter, pattern = resolve_answer(value, options, lettered=lettered, repair=defaults.repair)
    beside = row.get("answer")  # MedQA carries the answer's text beside its letter: they must agree
    if (
        isinstance(beside, str)
        and beside is not value
        and key_text(beside) not in (key_text(options[letter]), letter.casefold())
    ):
        raise Misfit("ambiguous_answer", f"answer {beside[:60]!r} is not the text of option {letter}")
    taker.used.add("answer")
    extra = {"repaired_answer": {"from": str(value), "pattern": pattern}} if pattern else {}
    context, explanation = taker.text("context"), taker.text("explanation", "exp", "rationale")
    base = taker.base(defaults, **extra)
    return Question(question=stem, options=options, answer=letter, context=context, explanation=explanation, **base)


# ---------------------------------------------------------------------------------------------- conversations

_ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
          "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "system": "system"}  # fmt: skip


def messages_of(value: Any) -> list[Message]:
    """Messages from `[{role, content}]` or ShareGPT `[{from, value}]`, roles mapped to system, user, assistant."""
    value = _parsed(value)
    if not isinstance(value, list) or not value:
        raise Misfit("no_messages", "the conversation is missing or empty")
    return [_message(turn) for turn in value]


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Misfit("bad_message", f"a turn should be a map, found {type(turn).__name__}")
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if str(role).lower() not in _ROLES:
        raise Misfit("unknown_role", f"role {role!r} is not one of system, user, assistant (human, gpt)")
    if not isinstance(text, str) or not text.strip():
        raise Misfit("empty_turn", f"a turn of {role} is blank")
    return {"role": _ROLES[str(role).lower()], "content": text}


def _alternating(messages: list[Message], last: str) -> list[Message]:
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2):
        raise Misfit("turns_do_not_alternate", "turns must alternate user, assistant, starting with user")
    if not turns or turns[-1]["role"] != last:
        raise Misfit("wrong_last_turn", f"the last turn must be the {last}'s")
    return messages


def _conversation(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    messages = _alternating(messages_of(taker.take("messages", "conversations")), "assistant")
    return Dialogue(messages=messages, **taker.base(defaults))


def _exchange(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _question_answer(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    messages = _exchange(taker.need("empty_question", "question"), taker.need("empty_answer", "answer"))
    return Dialogue(messages=messages, **taker.base(defaults, form="question_answer"))


def _instruction(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    prompt, extra = taker.need("empty_instruction", "instruction"), taker.text("input")
    if extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    answer = taker.need("empty_answer", "output", "answer", "response")
    return Dialogue(messages=_exchange(prompt, answer), **taker.base(defaults, form="instruction"))


# ---------------------------------------------------------------------------------------------- preferences, attacks


def _preference(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    chosen, rejected = _parsed_turns(taker.take("chosen")), _parsed_turns(taker.take("rejected"))
    prompt = _parsed(taker.take("prompt", "question", "instruction", "messages", "conversations"))
    if isinstance(prompt, str):
        context: list[Message] = [{"role": "user", "content": prompt}] if prompt.strip() else []
    else:
        context = messages_of(prompt) if prompt else []
    if not context:  # the whole conversation stands in chosen and rejected: what they share is the prompt
        if chosen[:-1] != rejected[:-1]:
            raise Misfit("prompts_differ", "chosen and rejected do not continue the same conversation")
        context, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    if not context or len(chosen) != 1 or len(rejected) != 1:
        raise Misfit("empty_prompt", "a prompt and one chosen and one rejected answer are needed")
    texts = chosen[0]["content"], rejected[0]["content"]
    if any(m[0]["role"] != "assistant" for m in (chosen, rejected)):
        raise Misfit("wrong_last_turn", "chosen and rejected must be the assistant's")
    if texts[0] == texts[1]:
        raise Misfit("chosen_is_rejected", "chosen and rejected are the same text")
    return Preference(prompt=_alternating(context, "user"), chosen=texts[0], rejected=texts[1], **taker.base(defaults))


def _parsed_turns(value: Any) -> list[Message]:
    """An answer as turns: a text, a message, a list of messages, or a "Human: ... Assistant: ..." transcript."""
    if isinstance(value, Mapping):
        return [_message(value)]
    if isinstance(value, list):
        return messages_of(value)
    if not isinstance(value, str) or not value.strip():
        raise Misfit("empty_answer", "chosen or rejected is missing or blank")
    if not value.startswith("\n\nHuman:"):
        return [{"role": "assistant", "content": value}]
    pieces = value.replace("\n\nAssistant:", "\n\nHuman:\0").split("\n\nHuman:")[1:]
    return [_message({"role": "gpt" if p[:1] == "\0" else "human", "content": p.lstrip("\0").strip()}) for p in pieces]


def _attack(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    label = row.get("label") if "request" not in row else None
    request = taker.need("empty_request", "request", "prompt")
    benign = label == "safe" or (label is None and "answer" in row and "safe_response" not in row)
    topic = taker.text("topic", "category") or "unspecified"
    answer, split = taker.text("safe_response", "answer"), taker.text("split") or "test"
    base = taker.base(defaults)
    return AttackPrompt(
        base_id=base["id"], topic=topic, style="plain", request=request, answer=answer, benign=benign, split=split,
        prompt=[{"role": "user", "content": request}], **base,
    )  # fmt: skip


def _attack_record(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    fields: dict[str, Any] = {n: taker.need(f"empty_{n}", n) for n in ("base_id", "topic", "style", "request", "split")}
    prompt, benign = messages_of(taker.take("prompt")), bool(taker.take("benign", default=False))
    answer = taker.text("answer")
    return AttackPrompt(prompt=prompt, answer=answer, benign=benign, **fields, **taker.base(defaults))


# ---------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Shape:
    """`fits` looks at column names; `build` makes the record or raises `Misfit`."""

    name: str
    makes: type[Row]
    fits: Callable[[set[str]], bool]
    build: Callable[[Mapping[str, Any], Defaults], Row]


def _has(columns: set[str], *names: str) -> bool:
    return any(n in columns for n in names)


_ANSWERS = ("answer", "answer_idx", "answer_index", "cop")
SHAPES: tuple[Shape, ...] = (  # first fit wins: the more specific stand first
    Shape("styled attack", AttackPrompt, lambda c: {"base_id", "style", "request", "prompt"} <= c, _attack_record),
    Shape("preference", Preference, lambda c: {"chosen", "rejected"} <= c, _preference),
    Shape(
        "multiple choice", Question,
        lambda c: "question" in c and _has(c, *_ANSWERS)
        and (_has(c, "options", "choices") or {"A", "B"} <= c or {"opa", "opb"} <= c),
        _question,
    ),
    Shape("conversation", Dialogue, lambda c: _has(c, "messages", "conversations"), _conversation),
    Shape("attack", AttackPrompt, lambda c: "request" in c or {"prompt", "label"} <= c, _attack),
    Shape(
        "instruction", Dialogue,
        lambda c: "instruction" in c and _has(c, "output", "answer", "response"), _instruction,
    ),
    Shape("question and answer", Dialogue, lambda c: {"question", "answer"} <= c, _question_answer),
)  # fmt: skip
