"""From a row of text to token ids and the tokens that are trained on. Spans come from the chat template's renderer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from aloe.errors import AloeError
from aloe.models.chat import ChatTemplate
from aloe.models.packed import Tree
from aloe.train.packing import Example, TextRow

OPEN, CLOSE = "⟦", "⟧"


def dialogue_example(template: ChatTemplate, row: TextRow) -> Example:
    """A dialogue with loss on every assistant turn, end of turn included. What follows the last one is left off."""
    rendered = _placed(row, lambda: template.render(row.messages))
    end = rendered.spans[-1][1]
    return Example(row.key, Tree(rendered.ids[:end]), rendered.mask()[:end], row.licence)


def preference_example(template: ChatTemplate, row: TextRow) -> Example:
    """A prompt with two branches, chosen then rejected, each ending with the end of turn; both are scored."""
    prompt = _placed(row, lambda: template.prompt_ids(row.messages))
    branches = [template.completion_ids(row.chosen), template.completion_ids(row.rejected)]
    scored = [False] * len(prompt) + [True] * sum(len(b) for b in branches)
    return Example(row.key, Tree(prompt, branches), scored, row.licence)


def _placed(row: TextRow, make: Any) -> Any:
    """Name the row in an error of the template, which knows only the model."""
    try:
        return make()
    except AloeError as cause:
        raise AloeError(f"{cause.what} ({cause.where})", where=row.where, fix=cause.fix) from None


def show(tokenizer: Any, example: Example) -> str:
    """The example as text with the trained tokens in ⟦double brackets⟧; each branch starts on a line of its own."""
    parts, at = [], 0
    for b, tokens in enumerate((example.tree.prefix, *example.tree.branches)):
        flags = example.scored[at : at + len(tokens)]
        name = "" if b == 0 else f"\n--- branch {b}\n"
        parts.append(name + _marked(tokenizer, tokens, flags))
        at += len(tokens)
    return "".join(parts)


def _marked(tokenizer: Any, tokens: Sequence[int], flags: Sequence[bool]) -> str:
    text = ""
    for trained, run in groupby(zip(tokens, flags, strict=True), key=lambda pair: pair[1]):
        piece = tokenizer.decode([token for token, _ in run])
        text += f"{OPEN}{piece}{CLOSE}" if trained else piece
    return text


def preview(tokenizer: Any, examples: Sequence[Example], count: int = 3) -> str:
    """The first rows in training order, rendered with their masks."""
    head = f"Trained tokens stand in {OPEN}double brackets{CLOSE}; everything else is context.\n"
    blocks = [
        f"\n=== {e.key}: {e.tokens} tokens, {e.trained} trained\n{show(tokenizer, e)}\n" for e in examples[:count]
    ]
    return head + "".join(blocks)
