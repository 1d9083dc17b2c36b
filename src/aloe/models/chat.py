"""One chat-template object for the whole recipe, with a digest.

Training masks, prompts for generation and likelihoods all come from here, so the tokens a model is trained on are
the tokens it is asked with. Spans come from the renderer, never from searching the text: message contents are put in
after the template is split at placeholders, and they are tokenised with special tokens disabled. A reply that holds
the template's own markers therefore stays plain text and can't end a turn or open another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aloe.digests import digest_json, digest_text
from aloe.errors import AloeError
from aloe.records import Message

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters around a placeholder's number


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


class ChatTemplate:
    """Renders messages to ids and spans with a Hugging Face tokenizer's own chat template.

    Args:
        tokenizer: a fast tokenizer with a `chat_template`.
        where: named in errors (the model folder).

    Raises:
        AloeError: no template, no end-of-turn token, or a template that rewrites message contents.
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
        self._split = lru_cache(maxsize=256)(self._split_template)
        self.end_of_turn = self._find_end_of_turn()
        self.digest = digest_json(
            {
                "template": source,
                "tokenizer": digest_text(tokenizer.backend_tokenizer.to_str()),
                "end_of_turn": list(self.end_of_turn),
            }
        )

    # -- public -------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Ids of a whole conversation and its assistant spans."""
        pieces = self._pieces(messages, generation_prompt=False)
        ids: list[int] = []
        spans = []
        for i, message in enumerate(messages):
            ids += self._encode(pieces[i])
            start = len(ids)
            ids += self.content_ids(message["content"])
            if message["role"] == "assistant":
                after = self._encode(pieces[i + 1])
                if tuple(after[: len(self.end_of_turn)]) != self.end_of_turn:
                    raise AloeError("the template doesn't end this assistant turn as it ends others", where=self.where)
                spans.append((start, len(ids) + len(self.end_of_turn)))
        return Rendered(ids + self._encode(pieces[-1]), spans)

    def prompt_ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Ids up to where the assistant starts to write; `prefill` is the start of its own turn."""
        pieces = self._pieces(messages, generation_prompt=True)
        ids: list[int] = []
        for piece, message in zip(pieces, messages, strict=False):
            ids += self._encode(piece) + self.content_ids(message["content"])
        return ids + self._encode(pieces[-1]) + (self.content_ids(prefill) if prefill else [])

    def completion_ids(self, text: str) -> list[int]:
        """Ids of an assistant's text with its end of turn, as they follow `prompt_ids`."""
        return self.content_ids(text) + list(self.end_of_turn)

    def content_ids(self, text: str) -> list[int]:
        """Ids of a message's content: special tokens in it are plain text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    # -- template -----------------------------------------------------------------------------------------------

    def _pieces(self, messages: Sequence[Message], *, generation_prompt: bool) -> tuple[str, ...]:
        pieces = self._split(tuple(m["role"] for m in messages), generation_prompt)
        joined = "".join(p + m["content"] for p, m in zip(pieces, messages, strict=False)) + pieces[-1]
        if joined != self._apply(messages, generation_prompt):
            raise AloeError(
                "the chat template rewrites message contents, so the trained tokens can't be placed exactly",
                where=self.where,
                fix="strip white space around the contents; if it still fails, use a template that prints them as is",
            )
        return pieces

    def _split_template(self, roles: tuple[str, ...], generation_prompt: bool) -> tuple[str, ...]:
        """The template's own text before, between and after the contents of messages with these roles."""
        marks = [f"{_OPEN}{i}{_CLOSE}" for i in range(len(roles))]
        text = self._apply([{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)], generation_prompt)
        pieces: list[str] = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                raise AloeError(f"the chat template leaves out a {roles[len(pieces)]!r} message", where=self.where)
            pieces.append(before)
        return (*pieces, text)

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except Exception as cause:  # jinja raises its own kinds for a template's raise_exception()
            roles = ", ".join(m["role"] for m in messages)
            raise AloeError(f"the chat template refuses the roles {roles}: {cause}", where=self.where) from None

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _find_end_of_turn(self) -> tuple[int, ...]:
        after = self._encode(self._split(("user", "assistant"), False)[-1])
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for i, token in enumerate(after):
            if token in special:
                return tuple(after[: i + 1])
        raise AloeError(
            "the chat template doesn't close an assistant turn with a special token",
            where=self.where,
            fix="end the assistant turn with the end-of-sequence token in the template",
        )
