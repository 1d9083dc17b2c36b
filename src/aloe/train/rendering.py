"""Rows of text to examples, many at a time, and to shorter examples where they don't fit.

Texts are tokenised in batches, on all cores; the ids are those of tokenising them one by one, because the template's
own renderer runs either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tokenizers

from aloe.errors import AloeError
from aloe.models.chat import ChatTemplate
from aloe.records import Message
from aloe.train.masks import dialogue_example, preference_example
from aloe.train.packing import Example, TextRow


class BatchTemplate(ChatTemplate):
    """A chat template that renders twice: first to learn which texts have to be tokenised, then with their ids.

    Between the two, `fetch` tokenises all of them in one call. What the template itself prints is tokenised once.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.__dict__.update(vars(template))
        self._known: dict[str, list[int]] = {}
        self._asked: dict[str, None] | None = None  # an ordered set while learning
        self._pieces: dict[tuple[str, bool], list[int]] = {}
        self._texts: dict[Any, str] = {}
        self._inner = self._contents or _contents_alone(self.tokenizer)

    def learn(self) -> None:
        """From now on ids of contents are empty and the texts are noted; results are to be thrown away."""
        self._known, self._asked, self._texts = {}, {}, {}

    def fetch(self) -> None:
        """Tokenise what was noted; from now on results are real again."""
        texts, self._asked = list(self._asked or ()), None
        try:
            ids = [e.ids for e in self._inner.encode_batch_fast(texts, add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):  # half a character: one by one then, to name the row it stands in
            return
        plain = self._control.keys().isdisjoint  # what isn't plain text is looked at by the template itself
        self._known = {text: found for text, found in zip(texts, ids, strict=True) if plain(found)}

    def content_ids(self, text: str) -> list[int]:
        if self._asked is not None:
            self._asked[text] = None
            return []
        known = self._known.get(text)
        return super().content_ids(text) if known is None else list(known)

    def _piece_ids(self, text: str, *, first: bool) -> list[int]:
        if (text, first) not in self._pieces:
            asked, self._asked = self._asked, None
            try:
                self._pieces[text, first] = super()._piece_ids(text, first=first)
            finally:
                self._asked = asked
        return list(self._pieces[text, first])

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        key = (generation_prompt, *((m["role"], m["content"]) for m in messages))
        if key not in self._texts:
            self._texts[key] = super()._apply(messages, generation_prompt)
        return self._texts[key]


def _contents_alone(tokenizer: Any) -> Any:
    """The tokenizer's own fast part with special tokens off, as `ChatTemplate.content_ids` uses it."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    return inner


class Builder(ABC):
    """Makes examples of one kind of rows."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = BatchTemplate(template)

    @abstractmethod
    def one(self, row: TextRow) -> Example:
        """The example of a row.

        Raises:
            AloeError: nothing to train on or a text that can't be rendered; the row is named.
        """

    @abstractmethod
    def answer(self, example: Example) -> int:
        """Tokens of the longest answer."""

    @abstractmethod
    def starts(self, row: TextRow) -> list[int]:
        """User turns that a shorter conversation may begin with: numbers of messages, ascending."""

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return max(self.template.tokenizer.get_vocab().values()) + 1

    def many(self, rows: Sequence[TextRow]) -> list[Example]:
        """The examples of `rows`, equal to those of `one`."""
        self.template.learn()
        for row in rows:
            try:
                self.one(row)
            except (AloeError, ValueError):
                continue  # an empty answer may be refused here; what is wrong with the row is said below
        self.template.fetch()
        return [self.one(row) for row in rows]

    def shortened(self, row: TextRow, most: int) -> Example | None:
        """The example with its prompt cut on the left until it has `most` tokens at most; None if that can't be.

        Leading turns go first, a question with its answer, while the system's stay. If the last exchange alone is
        too long, its question loses words from the front. Answers are never cut.
        """
        system = [m for m in row.messages[:1] if m["role"] == "system"]
        starts = self.starts(row)
        example = self.one(row)
        for start in starts:
            if start <= len(system):
                continue  # that is the row as it is
            example = self.one(replace(row, messages=system + row.messages[start:]))
            if example.longest <= most:
                return example
        return self._cut(row, system, starts[-1], example, most) if starts else None

    def _cut(self, row: TextRow, system: list[Message], start: int, example: Example, most: int) -> Example | None:
        """As much of the end of the question `start` as fits, from the beginning of a word."""
        text, rest = row.messages[start]["content"], row.messages[start + 1 :]
        encoded = self.template.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        offsets = encoded["offset_mapping"]
        kept = len(offsets)
        while (excess := example.longest - most) > 0:
            kept -= excess
            if kept < 1:
                return None
            shorter = _from_word(text, offsets[len(offsets) - kept][0])
            if not shorter:
                return None
            turn: Message = {"role": "user", "content": shorter}
            example = self.one(replace(row, messages=[*system, turn, *rest]))
        return example


class DialogueBuilder(Builder):
    """Dialogues, with loss on every assistant turn."""

    def one(self, row: TextRow) -> Example:
        return _made(dialogue_example, self.template, row)

    def answer(self, example: Example) -> int:
        """Of the last answer, which is never left out."""
        scored = np.asarray(example.scored)
        context = np.flatnonzero(~scored)
        return len(scored) - 1 - int(context[-1])

    def starts(self, row: TextRow) -> list[int]:
        last = max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=-1)
        return [i for i, m in enumerate(row.messages[:last]) if m["role"] == "user"]


class PairBuilder(Builder):
    """Preference pairs: a prompt and two answers.

    A pair whose answers are the same tokens, though their texts differ, is refused: it would push nothing apart.
    """

    def one(self, row: TextRow) -> Example:
        example = _made(preference_example, self.template, row)
        chosen, rejected = example.tree.branches
        if list(chosen) == list(rejected) and self.template._asked is None:
            raise AloeError(
                "chosen and rejected are the same tokens", where=row.where, fix="delete the row: there's no preference"
            )
        return example

    def answer(self, example: Example) -> int:
        return max(len(b) for b in example.tree.branches)

    def starts(self, row: TextRow) -> list[int]:
        return [i for i, m in enumerate(row.messages) if m["role"] == "user"]


def _made(make: Any, template: ChatTemplate, row: TextRow) -> Example:
    try:
        example: Example = make(template, row)
    except ValueError as cause:
        raise AloeError(
            str(cause).removeprefix(f"{row.key}: "),
            where=row.where,
            fix="begin with a user or system turn, give an answer that isn't empty, or delete the row",
        ) from None
    return example


def _from_word(text: str, at: int) -> str:
    """The text from the first word that begins at or after character `at`; in one long word, from there."""
    if at > 0 and not text[at - 1].isspace():
        spaces = [i for i in range(at, min(len(text), at + 64)) if text[i].isspace()]
        at = spaces[0] if spaces else at
    return text[at:].strip()
