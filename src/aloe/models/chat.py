"""One chat-template object for the whole recipe, with a digest.

Training masks, prompts for generation and likelihoods all come from here, so the tokens a model is trained on are
the tokens it is asked with. Spans come from the renderer, never from searching the text: message contents are put in
after the template is split at placeholders, and they are tokenised with control tokens disabled. A reply that holds
the template's own markers therefore stays plain text and can't end a turn or open another.

Two kinds of tokens meet at the edge of a content, the template's and the content's own. A single space before it is
tokenised with it ("Ġword", "▁word"), as it is when the text is tokenised whole; nothing else is joined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aloe.digests import digest_json, digest_text
from aloe.errors import AloeError
from aloe.models.sandbox import BoundedTemplate
from aloe.records import Message

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters around a placeholder's number
# What a template that prints today's date prints instead (Llama 3.1's own fallback): a prompt that changes over night
# would be none that the model was trained with, and no run could be repeated.
PINNED = datetime(2024, 7, 26)
_DICE = re.compile(r"\|\s*random\b|\blipsum\b")  # the random parts of Jinja's vocabulary
_TODAY = re.compile(r"""strftime_now\(\s*(["'])([^"'\\{}]*)\1\s*\)""")


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation and the half-open token spans of its assistant turns (end-of-turn included)."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def mask(self) -> list[bool]:
        """True where a token is trained on."""
        flags = [False] * len(self.ids)
        for start, end in self.spans:
            flags[start:end] = [True] * (end - start)
        return flags


@dataclass(frozen=True)
class _Split:
    """The template's own text around the contents of messages with certain roles.

    `order`: the messages' numbers as their contents stand in the text (Mistral's prints the system's before the last
    user's); `pieces[k]` comes before the k-th content of that order, `pieces[-1]` after the last.
    """

    order: tuple[int, ...]
    pieces: tuple[str, ...]

    def filled(self, contents: Sequence[str]) -> str:
        """The text with `contents` (in the order of the text) put in."""
        return "".join(p + c for p, c in zip(self.pieces, contents, strict=False)) + self.pieces[-1]


class ChatTemplate:
    """Renders messages to ids and spans with a Hugging Face tokenizer's own chat template.

    Args:
        tokenizer: a fast tokenizer with a `chat_template`.
        where: named in errors (the model folder).

    Attributes:
        end_of_turn: ids that close an assistant's turn.
        opening: what the template writes before an assistant's text after the prompt for it has ended (Mistral: a
            space). It belongs to the completion, since the model must write it.
        pinned_date: the date printed in place of today's; None for a template that prints no date.
        folds_system: whether the template has no place for a system message (Gemma, Mistral 7B v0.1). Its text then
            opens the first user message of a prompt; a dialogue to train on must be written so.
        digest: of the template, the tokenizer and all that was decided here.

    Raises:
        AloeError: no template, one that throws dice, no end-of-turn token; on rendering, a template that rewrites
            contents beyond trimming them, or a text that isn't Unicode.
    """

    def __init__(self, tokenizer: Any, where: str = "tokenizer") -> None:
        self.tokenizer, self.where = tokenizer, where
        source = tokenizer.chat_template
        if not isinstance(source, str) or not source.strip():
            raise AloeError(
                "the model has no chat template",
                where=where,
                fix="use an instruct model, or put a chat_template.jinja into the folder (the instruct sibling's, say)",
            )
        if dice := _DICE.search(source):
            raise AloeError(
                f"the chat template draws at random ({dice[0].strip('| ')}), so no prompt would be the same twice",
                where=where,
                fix="write the text out in chat_template.jinja",
            )
        self._source = _TODAY.sub(lambda call: call[1] + PINNED.strftime(call[2]) + call[1], source)
        self.pinned_date = PINNED.strftime("%Y-%m-%d") if self._source != source else None
        if re.search(r"strftime_now\s*\(", self._source):
            raise AloeError(
                "the chat template prints today's date in a form that can't be pinned, so prompts change over night",
                where=where,
                fix="write the date out in chat_template.jinja",
            )
        self._template = BoundedTemplate(self._source, PINNED, where)
        backend = tokenizer.backend_tokenizer.to_str()
        self._control = _control_tokens(tokenizer, source)
        self._contents = _contents_tokenizer(backend, set(self._control.values()))
        self._splits: dict[tuple[tuple[str, ...], bool], _Split] = {}
        self.end_of_turn = self._find_end_of_turn()
        self.opening, self._unasked = self._find_opening()
        self.folds_system = not self._shows_system()
        decided = {
            "opening": self.opening,
            "date": self.pinned_date,
            "contents": "inner" if self._contents else "",
            "system": "first user message" if self.folds_system else "",
        }
        self.digest = digest_json(
            {"template": source, "tokenizer": digest_text(backend), "end_of_turn": list(self.end_of_turn)}
            | {name: value for name, value in decided.items() if value}
        )

    # -- public -------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Ids of a whole conversation and its assistant spans."""
        self._check_asked()
        ids: list[int] = []
        spans = []
        split, contents = self._fill(messages, generation_prompt=False)
        for k, (i, start, end) in enumerate(self._lay(split, contents, messages, ids)):
            if messages[i]["role"] == "assistant":
                after = self._piece_ids(split.pieces[k + 1], first=False)
                if tuple(after[: len(self.end_of_turn)]) != self.end_of_turn:
                    raise AloeError("the template doesn't end this assistant turn as it ends others", where=self.where)
                spans.append((start, end + len(self.end_of_turn)))
        return Rendered(ids + self._piece_ids(split.pieces[-1], first=False), spans)

    def prompt_ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Ids up to where the assistant starts to write; `prefill` is the start of its own turn."""
        ids: list[int] = []
        messages = self._with_system_shown(messages)
        split, contents = self._fill(messages, generation_prompt=True)
        for _ in self._lay(split, contents, messages, ids):
            pass
        ids += self._piece_ids(split.pieces[-1], first=not messages)
        return ids + (self._opened(self.opening, self._written(prefill + "x")[:-1]) if prefill else [])

    def completion_ids(self, text: str, end: bool = True) -> list[int]:
        """Ids of an assistant's text as they follow `prompt_ids`, with its `end` of turn: what `render` trains on."""
        self._check_asked()
        return self._opened(self.opening, self._written(text)) + (list(self.end_of_turn) if end else [])

    def continuation_ids(self, text: str, prefill: str = "", *, end: bool = False) -> list[int]:
        """Ids of what follows `prompt_ids(messages, prefill)`: a whole answer, or the rest of one that was begun."""
        if not prefill:
            return self.completion_ids(text, end=end)
        return self.content_ids(text) + (list(self.end_of_turn) if end else [])

    def content_ids(self, text: str) -> list[int]:
        """Ids of a text inside a message: control tokens in it are plain text, and no space is put before it."""
        try:
            if self._contents is not None:
                ids = self._contents.encode(text, add_special_tokens=False).ids
            else:
                ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        except (TypeError, UnicodeEncodeError):
            raise AloeError(
                f"half a character (a lone surrogate) stands in {text[:60]!a}",
                where=self.where,
                fix="decode the source as UTF-8 or UTF-16, whichever it is, or drop the row",
            ) from None
        if not self._control.keys().isdisjoint(ids):  # a Unigram model can spell them; what is unknown is no marker
            names = sorted({self._control[i] for i in ids if i in self._control and i != self.tokenizer.unk_token_id})
            if not names:
                return list(ids)
            raise AloeError(f"the tokenizer can't write {', '.join(names)} as plain text", where=self.where)
        return list(ids)

    # -- text ---------------------------------------------------------------------------------------------------

    def _fill(self, messages: Sequence[Message], *, generation_prompt: bool) -> tuple[_Split, list[str]]:
        """The split for these messages and their contents as the template writes them, in the order of its text."""
        split = self._split(tuple(m["role"] for m in messages), generation_prompt)
        raw = [messages[i]["content"] for i in split.order]
        text = self._apply(messages, generation_prompt)
        if split.filled(raw) == text:
            return split, raw
        trimmed = _match(split.pieces, raw, text)
        if trimmed is None:
            raise AloeError(
                "the chat template rewrites message contents, so the trained tokens can't be placed exactly",
                where=self.where,
                fix="use a template that prints contents as they are, or trims white space around them",
            )
        return split, trimmed

    def _written(self, text: str) -> str:
        """An assistant's text as the template writes it: as it is, or without the white space around it."""
        _, contents = self._fill(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}], generation_prompt=False
        )
        return contents[-1]

    def _split(self, roles: tuple[str, ...], generation_prompt: bool) -> _Split:
        key = (roles, generation_prompt)
        if key not in self._splits:
            if len(self._splits) >= 4096:  # dialogues of many lengths; each split is small
                self._splits.clear()
            self._splits[key] = self._split_template(roles, generation_prompt)
        return self._splits[key]

    def _split_template(self, roles: tuple[str, ...], generation_prompt: bool) -> _Split:
        marks = [f"{_OPEN}{i}{_CLOSE}" for i in range(len(roles))]
        text = self._apply([{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)], generation_prompt)
        for role, mark in zip(roles, marks, strict=True):
            if mark not in text:
                raise AloeError(
                    f"the chat template leaves out a {role!r} message",
                    where=self.where,
                    fix="put its text into the first user message" if role == "system" else None,
                )
        found = [int(number) for number in re.findall(f"{_OPEN}(\\d+){_CLOSE}", text)]
        if len(found) > len(set(found)):
            raise AloeError("the chat template prints a message twice", where=self.where)
        return _Split(tuple(found), tuple(re.split(f"{_OPEN}\\d+{_CLOSE}", text)))

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        try:
            if not messages:
                raise ValueError("an empty conversation")
            return self._template.render(
                messages=[dict(m) for m in messages], tools=None, documents=None,
                add_generation_prompt=generation_prompt, **self.tokenizer.special_tokens_map,
            )  # fmt: skip
        except AloeError:
            raise
        except Exception as cause:  # jinja raises its own kinds for a template's raise_exception()
            roles = ", ".join(m["role"] for m in messages)
            raise AloeError(f"the chat template refuses the roles {roles}: {cause}", where=self.where) from None

    # -- tokens -------------------------------------------------------------------------------------------------

    def _lay(
        self, split: _Split, contents: Sequence[str], messages: Sequence[Message], ids: list[int]
    ) -> Iterator[tuple[int, int, int]]:
        """Append all but the last piece to `ids`; yields (message, start, end) of every content with its opening."""
        for i, piece, content in zip(split.order, split.pieces, contents, strict=False):
            lead = " " if piece.endswith(" ") else ""
            if messages[i]["role"] == "assistant":  # where the prompt ends is the template's word, not ours
                lead = self.opening if piece.endswith(self.opening) else ""
            ids += self._piece_ids(piece.removesuffix(lead), first=not ids)
            start = len(ids)
            ids += self._opened(lead, content)
            yield i, start, len(ids)

    def _opened(self, lead: str, content: str) -> list[int]:
        """Ids of a content after `lead`, whose last space is tokenised with it."""
        if lead.endswith(" "):
            return self._piece_ids(lead[:-1], first=False) + self.content_ids(" " + content)
        return self._piece_ids(lead, first=False) + self.content_ids(content)

    def _piece_ids(self, text: str, *, first: bool) -> list[int]:
        """Ids of the template's own text, control tokens and all; one that goes on after a content gets no space."""
        if not text:
            return []
        if first or self._contents is None:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        cut = min((at for token in self._control.values() if (at := text.find(token)) >= 0), default=len(text))
        return (self.content_ids(text[:cut]) if cut else []) + self._piece_ids(text[cut:], first=True)

    def _find_end_of_turn(self) -> tuple[int, ...]:
        after = self._piece_ids(self._split(("user", "assistant"), False).pieces[-1], first=False)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for i, token in enumerate(after):
            if token in special:
                return tuple(after[: i + 1])
        raise AloeError(
            "the chat template doesn't close an assistant turn with a special token",
            where=self.where,
            fix="end the assistant turn with the end-of-sequence token in the template",
        )

    def _find_opening(self) -> tuple[str, str]:
        """What a dialogue has between the prompt for an answer and the answer; and why there is no saying, if so."""
        asked = self._split(("user",), True).pieces[-1]
        written = self._split(("user", "assistant"), False).pieces[1]
        if written.startswith(asked):
            return written[len(asked) :], ""
        return "", f"asks for an answer with {asked[-40:]!r}, but writes answers after {written[-40:]!r}"

    def _shows_system(self) -> bool:
        """Whether a prompt may open with a system message: not where the template refuses it or leaves it out."""
        try:
            self._split(("system", "user"), True)
        except AloeError:
            return False
        return True

    def _with_system_shown(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages of a prompt as this template can show them."""
        if not self.folds_system or not messages or messages[0]["role"] != "system":
            return messages
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise AloeError(
                "the chat template has no place for a system message, and no user message follows it to hold its text",
                where=self.where,
                fix="begin with a user message, or use a model whose template takes a system message",
            )
        text = "\n\n".join(m["content"] for m in messages[:2] if m["content"].strip())
        return [{**messages[1], "content": text}, *messages[2:]]

    def _check_asked(self) -> None:
        if self._unasked:
            raise AloeError(
                f"the chat template {self._unasked}: trained answers would follow another prompt than asked ones",
                where=self.where,
                fix="make add_generation_prompt print what stands before an assistant's text",
            )


def _control_tokens(tokenizer: Any, source: str) -> dict[int, str]:
    """Added tokens that only the template may write, by id: special ones, and others that its source names.

    Other added tokens are ordinary vocabulary."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: t.content for i, t in added if t.special or t.content in source}


def _contents_tokenizer(backend: str, control: set[str]) -> Any:
    """The tokenizer for contents where it isn't the ordinary one with special tokens off; else None.

    It puts no space before a text (as SentencePiece does before every text it is given, but contents stand in the
    middle of one) and knows no control token that isn't marked special.
    """
    signs = ('"Prepend"', '"prepend_scheme"', '"add_prefix_space":true', '"special":false')
    if not any(sign in backend for sign in signs):  # spares most tokenizers the reading of their JSON
        return None
    from tokenizers import Tokenizer

    state = json.loads(backend)
    plain = [t for t in state["added_tokens"] if t["special"] or t["content"] not in control]
    parts = {name: _without_prefix(state[name]) for name in ("normalizer", "pre_tokenizer")}
    if len(plain) == len(state["added_tokens"]) and all(state[name] == part for name, part in parts.items()):
        return None
    inner = Tokenizer.from_str(json.dumps({**state, **parts, "added_tokens": plain}))
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    return inner


def _without_prefix(part: Any) -> Any:
    """A normaliser or pre-tokeniser of a tokenizer's JSON, with all that puts a space before the text left out."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        kept = [_without_prefix(p) for p in part[name] if p["type"] != "Prepend"]
        return {**part, name: kept}
    if part["type"] == "Prepend":
        return None
    return (
        part
        | ({"prepend_scheme": "never"} if part.get("prepend_scheme", "never") != "never" else {})
        | ({"add_prefix_space": False} if part.get("add_prefix_space") else {})
    )


def _match(pieces: Sequence[str], raw: Sequence[str], text: str) -> list[str] | None:
    """Contents, each as given or trimmed, with which the template's pieces make up `text`; None if there are none."""

    def after(k: int, at: int) -> list[str] | None:
        for content in dict.fromkeys(form for form in _forms(raw[k])):
            end = at + len(content)
            if not text.startswith(content + pieces[k + 1], at):
                continue
            if k + 1 == len(raw):
                if end + len(pieces[-1]) == len(text):
                    return [content]
            elif (rest := after(k + 1, end + len(pieces[k + 1]))) is not None:
                return [content, *rest]
        return None

    return after(0, len(pieces[0])) if text.startswith(pieces[0]) else None


def _forms(text: str) -> Iterator[str]:
    yield text
    for chars in (None, "\n"):
        yield from (text.strip(chars), text.lstrip(chars), text.rstrip(chars))
