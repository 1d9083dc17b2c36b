"""The declared shapes of a row, and how each becomes a record. Pure: a dict in, a record out, or a `Misfit`.

A shape is recognised by the columns of a file's first row; every row must then fit it. What doesn't fit is refused
with a reason, never bent into shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from aloe.data.clean import key_text
from aloe.data.options import (
    OPTION_COLUMNS,
    Misfit,
    columns_options,
    parsed,
    read_options,
    resolve_answer,
    whole_number,
)
from aloe.data.scenario_rows import scenario
from aloe.errors import AloeError
from aloe.records import AttackPrompt, Dialogue, Message, Preference, Question, Row, Scenario, row_id
from aloe.turns import is_transcript, transcript_turns, turn_of

ANSWER_COLUMNS = ("answer_idx", "answer_index", "cop", "answer")  # the first that a row has counts
COLUMNS = (  # names that a declared mapping can map to
    "id", "source", "licence", "split", "topic", "question", "options", "choices", *"ABCDEFGH", "answer", "answer_idx",
    "context", "explanation", "instruction", "input", "output", "messages", "conversations", "prompt", "chosen",
    "rejected", "completions", "dialogue", "note", "section", "request", "safe_response", "label",
)  # fmt: skip
# Names in `meta` that later stages act on: a column of the file that happens to be called so must not pass for them.
_RESERVED = frozenset({"form", "slots", "template"})


@dataclass(frozen=True)
class Defaults:
    """What fills in for a row that states no source or licence. `licence` wins over the row's own when it is set,
    `published` is what a preset knows and the row's own wins over it; `repair` allows the repair of mangled
    multiple-choice answers; `content_ids` makes ids from content and keeps the row's own as `meta["original_id"]`."""

    source: str
    licence: str | None = None
    repair: bool = True
    content_ids: bool = False
    published: str = "unknown"


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
        rest = {_meta_name(k, v): plain(v) for k, v in self.row.items() if k not in self.used and v is not None}
        meta = {**rest, **extra, **(own if isinstance(own, Mapping) else {})}
        licence = defaults.licence or self.row.get("licence") or self.row.get("license") or defaults.published
        given = str(self.row["id"]) if self.row.get("id") is not None else ""
        if given and defaults.content_ids:
            meta = {"original_id": given, **meta}
        return {
            "id": row_id(plain(self.row)) if not given or defaults.content_ids else given,
            "source": str(self.row.get("source") or defaults.source),
            "licence": str(licence).strip().lower(),
            "meta": meta,
        }


def _meta_name(column: str, value: Any) -> str:
    taken = column in _RESERVED or (column == "question" and isinstance(value, Mapping))
    return f"column_{column}" if taken else column


def plain(value: Any) -> Any:
    """JSON-able copy of a cell: dates and the like become text, bytes (an image) their size and digest."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes {hashlib.blake2b(value, digest_size=8).hexdigest()}>"
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


# ---------------------------------------------------------------------------------------------- questions


def _options_of(taker: Taker) -> tuple[dict[str, str], bool]:
    value = taker.take("options", "choices")
    if value is not None:
        return read_options(value)
    for names in OPTION_COLUMNS:
        if names[0] in taker.row:
            taker.used.update(names)
            return columns_options(taker.row, names), True
    raise Misfit("no_options", "the row has no options")


def _answer_of(taker: Taker, options: dict[str, str], lettered: bool, repair: bool) -> tuple[str, str | None, Any]:
    """(letter, repair pattern, the value as it stands) of a row's answer."""
    column = next((c for c in ANSWER_COLUMNS if taker.row.get(c) is not None), "answer")
    value = taker.take(column)
    count = max(len(options), *(sum(n in taker.row for n in names) for names in OPTION_COLUMNS))  # blank ones, too
    if column == "cop" and whole_number(value) == count:
        raise AloeError(
            f"cop is {value} of {count} options: this file counts them from 1, not from 0",
            fix="name its preset (medmcqa_original, careqa), or map another column to `answer`",
        )
    listed = parsed(taker.row.get("options", taker.row.get("choices")))
    if lettered and isinstance(listed, list) and isinstance(value, str) and listed.count(value) == 1:
        return ascii_uppercase[listed.index(value)], None, value  # "A. Iron", as it stands in the list
    return *resolve_answer(value, options, lettered=lettered, repair=repair), value


def _question(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    stem = taker.need("empty_question", "question")
    options, lettered = _options_of(taker)
    letter, pattern, value = _answer_of(taker, options, lettered, defaults.repair)
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


def messages_of(value: Any) -> list[Message]:
    """Messages from `[{role, content}]` or ShareGPT `[{from, value}]`, roles mapped to system, user, assistant."""
    value = parsed(value)
    if not isinstance(value, list) or not value:
        raise Misfit("no_messages", "the conversation is missing or empty")
    return [_message(turn) for turn in value]


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Misfit("bad_message", f"a turn should be a map, found {type(turn).__name__}")
    role, text = turn_of(turn)
    if role is None:
        named = turn.get("role", turn.get("from"))
        raise Misfit("unknown_role", f"role {named!r} is not one of system, user, assistant (human, gpt)")
    if not isinstance(text, str) or not text.strip():
        raise Misfit("empty_turn", f"a turn of {role} is blank")
    return {"role": role, "content": text}


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


def as_task(taker: Taker, defaults: Defaults, task: str, user: str, answer: str, **slots: str) -> Dialogue:
    """One exchange whose texts a template of `task` will frame; `slots` are further texts for that template."""
    extra = {"form": task, "slots": slots} if slots else {"form": task}
    return Dialogue(messages=_exchange(user, answer), **taker.base(defaults, **extra))


def _dialogue_to_note(row: Mapping[str, Any], defaults: Defaults) -> Row:
    taker = Taker(row)
    section = taker.text("section").strip()
    return as_task(
        taker, defaults, "dialogue_to_note", taker.need("empty_dialogue", "dialogue"), taker.need("empty_note", "note"),
        **({"section": section} if section else {}),
    )  # fmt: skip


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
    prompt = parsed(taker.take("prompt", "question", "instruction", "messages", "conversations"))
    if isinstance(prompt, str):
        context: list[Message] = [{"role": "user", "content": prompt}] if prompt.strip() else []
    else:
        context = messages_of(prompt) if prompt else []
    if len(chosen) > 1 or len(rejected) > 1 or not context:  # whole conversations: what they share is the prompt
        shared = chosen[:-1]
        if shared != rejected[:-1]:
            raise Misfit("prompts_differ", "chosen and rejected do not continue the same conversation")
        if context and not _is_prompt_of(context, shared):
            raise Misfit("prompts_differ", "the prompt is not what chosen and rejected continue")
        context, chosen, rejected = shared, chosen[-1:], rejected[-1:]
    if row.get("messages") == row.get("chosen"):
        taker.used.add("messages")  # UltraFeedback repeats the chosen conversation there
    if not context:
        raise Misfit("empty_prompt", "a prompt and one chosen and one rejected answer are needed")
    if any(m[0]["role"] != "assistant" for m in (chosen, rejected)):
        raise Misfit("wrong_last_turn", "chosen and rejected must be the assistant's")
    return preference(context, chosen[0]["content"], rejected[0]["content"], taker.base(defaults))


def preference(prompt: list[Message], chosen: str, rejected: str, base: dict[str, Any]) -> Preference:
    """A pair from its parts; equal answers and a prompt that doesn't end with the user are misfits."""
    if chosen == rejected:
        raise Misfit("chosen_is_rejected", "chosen and rejected are the same text")
    return Preference(prompt=_alternating(prompt, "user"), chosen=chosen, rejected=rejected, **base)


def _is_prompt_of(prompt: list[Message], shared: list[Message]) -> bool:
    """Whether a stated prompt is the shared beginning, or (UltraFeedback) one of its user turns."""
    if prompt == shared:
        return True
    users = [m["content"].strip() for m in shared if m["role"] == "user"]
    return len(prompt) == 1 and prompt[0]["content"].strip() in (users[:1] + users[-1:])


def ranked(taker: Taker, defaults: Defaults, score: str = "overall_score") -> Preference:
    """UltraFeedback: an instruction and several scored completions; the best against the worst, ties by order."""
    prompt = taker.need("empty_prompt", "instruction")
    found = parsed(taker.take("completions"))
    if not isinstance(found, list) or not all(isinstance(c, Mapping) for c in found):
        raise Misfit("bad_completions", "completions should be a list of maps")
    scored = [(c, s) for c in found if (s := _score(c.get(score))) is not None and isinstance(c.get("response"), str)]
    scored = [(c, s) for c, s in scored if c["response"].strip()]
    if len(scored) < 2:
        raise Misfit("too_few_completions", f"{len(scored)} completion(s) with a response and {score}")
    (best, high), (worst, low) = max(scored, key=lambda x: x[1]), min(scored, key=lambda x: x[1])
    if high == low:
        raise Misfit("no_preference", f"all completions have {score} {high:g}")
    about = {"score_chosen": high, "score_rejected": low, "score": score}
    models = {f"{k}_model": str(c["model"]) for k, c in (("chosen", best), ("rejected", worst)) if c.get("model")}
    base = taker.base(defaults, **about, **models)
    return preference([{"role": "user", "content": prompt}], best["response"], worst["response"], base)


def _score(value: Any) -> float | None:
    """A score as a number; "N/A", a missing or a not finite one is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") and not isinstance(value, bool) else None


def _parsed_turns(value: Any) -> list[Message]:
    """An answer as turns: a text, a message, a list of messages, or a "Human: ... Assistant: ..." transcript."""
    if isinstance(value, Mapping):
        return [_message(value)]
    if isinstance(value, list):
        return messages_of(value)
    if not isinstance(value, str) or not value.strip():
        raise Misfit("empty_answer", "chosen or rejected is missing or blank")
    if not is_transcript(value):
        return [{"role": "assistant", "content": value}]
    return [_message(turn) for turn in transcript_turns(value)]


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


SHAPES: tuple[Shape, ...] = (  # first fit wins: the more specific stand first
    Shape("styled attack", AttackPrompt, lambda c: {"base_id", "style", "request", "prompt"} <= c, _attack_record),
    Shape("scenario", Scenario, lambda c: {"turns", "category", "severity"} <= c,
          lambda row, defaults: scenario(Taker(row), defaults)),
    Shape("preference", Preference, lambda c: {"chosen", "rejected"} <= c, _preference),
    Shape(
        "multiple choice", Question,
        lambda c: "question" in c and _has(c, *ANSWER_COLUMNS)
        and (_has(c, "options", "choices") or {"A", "B"} <= c or {"opa", "opb"} <= c),
        _question,
    ),
    Shape("conversation", Dialogue, lambda c: _has(c, "messages", "conversations"), _conversation),
    Shape("attack", AttackPrompt, lambda c: "request" in c or {"prompt", "label"} <= c, _attack),
    Shape("ranked completions", Preference, lambda c: {"instruction", "completions"} <= c,
          lambda row, defaults: ranked(Taker(row), defaults)),
    Shape("dialogue and note", Dialogue, lambda c: {"dialogue", "note"} <= c, _dialogue_to_note),
    Shape(
        "instruction", Dialogue,
        lambda c: "instruction" in c and _has(c, "output", "answer", "response"), _instruction,
    ),
    Shape("question and answer", Dialogue, lambda c: {"question", "answer"} <= c, _question_answer),
)  # fmt: skip
