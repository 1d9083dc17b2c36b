"""From a row of text to token ids and the tokens that are trained on. Spans come from the chat template's renderer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from aloe.errors import AloeError
from aloe.models.chat import ChatTemplate
from aloe.models.packed import Tree
from aloe.train.packing import Example, PackedRow, TextRow

OPEN, CLOSE = "⟦", "⟧"
BAR = 60  # characters of the longest packed row's bar


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


# -- what a run trains on, shown before it begins ---------------------------------------------------------------------


def preview(tokenizer: Any, examples: Sequence[Example], count: int = 3) -> str:
    """The first rows in training order as text, rendered with their masks."""
    head = f"Trained tokens stand in {OPEN}double brackets{CLOSE}; everything else is context.\n"
    blocks = [
        f"\n=== {e.key}: {e.tokens} tokens, {e.trained} trained\n{show(tokenizer, e)}\n" for e in examples[:count]
    ]
    return head + "".join(blocks)


def show(tokenizer: Any, example: Example) -> str:
    """The example as text with the trained tokens in ⟦double brackets⟧; each branch starts on a line of its own."""
    text = ""
    for b, runs in groupby(_runs(tokenizer, example), key=lambda run: run["branch"]):
        text += f"\n--- branch {b}\n" if b else ""
        text += "".join(f"{OPEN}{r['text']}{CLOSE}" if r["trained"] else r["text"] for r in runs)
    return text


def preview_json(
    tokenizer: Any, examples: Sequence[Example], packed_rows: Sequence[PackedRow], shown: Sequence[int] | None = None
) -> dict[str, Any]:
    """Three rendered rows and the first three packed rows, as JSON-able values.

    Args:
        examples: what the packed rows' members are indices of.
        shown: which examples to render; by default the first members of the packed rows.

    Returns:
        `{"rows": [{"key", "tokens", "trained", "parts": [{"branch", "text", "trained"}]}], "packing": [{"length",
        "padding", "members": [{"key", "tokens", "trained"}]}]}`; branch 0 is the prompt, or the whole dialogue.
    """
    members = [i for row in packed_rows for i in row.members]
    rows = [examples[i] for i in (members if shown is None else shown)[:3]]
    return {
        "rows": [{**_counts(e), "parts": list(_runs(tokenizer, e))} for e in rows],
        "packing": [
            {
                "length": len(row.layout.ids),
                "padding": row.padding,
                "members": [_counts(examples[i]) for i in row.members],
            }
            for row in packed_rows[:3]
        ],
    }


def preview_ansi(
    tokenizer: Any,
    examples: Sequence[Example],
    packed_rows: Sequence[PackedRow],
    shown: Sequence[int] | None = None,
    *,
    colour: bool = True,
) -> str:
    """`preview_json` for a terminal: trained tokens in colour, and a bar that shows how rows fill each packed row.

    Characters that would steer the terminal, or turn the direction of writing, are written out as escapes. Without
    `colour` trained tokens stand in ⟦double brackets⟧.
    """
    found = preview_json(tokenizer, examples, packed_rows, shown)
    text = Text()
    for row in found["rows"]:
        text.append(f"{_visible(row['key'])}: {row['tokens']} tokens, {row['trained']} trained\n", style="bold")
        branch = 0
        for part in row["parts"]:
            if part["branch"] != branch:
                branch = part["branch"]
                text.append(f"\n--- branch {branch}\n", style="dim")
            written = _visible(part["text"])
            if part["trained"]:
                text.append(written if colour else f"{OPEN}{written}{CLOSE}", style="black on green")
            else:
                text.append(written)
        text.append("\n\n")
    longest = max((row["length"] for row in found["packing"]), default=1)
    for row in found["packing"]:
        at, end = 0, 0
        for i, member in enumerate(row["members"]):
            at += member["tokens"]
            cells = max(1, round(BAR * at / longest) - end)
            end += cells
            text.append("█▓"[i % 2] * cells, style=("cyan", "blue")[i % 2])
        text.append("·" * max(0, BAR - end), style="dim")
        text.append(f" {len(row['members'])} rows, {row['length']} tokens, {row['padding']} padding\n")
    console = Console(
        file=StringIO(), force_terminal=colour, color_system="standard" if colour else None, no_color=not colour
    )
    with console.capture() as capture:
        console.print(text, soft_wrap=True, end="")
    return capture.get()


def _counts(example: Example) -> dict[str, Any]:
    return {"key": example.key, "tokens": example.tokens, "trained": example.trained}


def _runs(tokenizer: Any, example: Example) -> Iterator[dict[str, Any]]:
    """Stretches of a branch (0: the prefix) that are trained on, or not, as text."""
    at = 0
    for b, tokens in enumerate((example.tree.prefix, *example.tree.branches)):
        flags = example.scored[at : at + len(tokens)]
        at += len(tokens)
        for trained, run in groupby(zip(tokens, flags, strict=True), key=lambda pair: bool(pair[1])):
            yield {"branch": b, "text": tokenizer.decode([int(token) for token, _ in run]), "trained": trained}


def _visible(text: str) -> str:
    """Control, format and private-use characters as escapes; line breaks stay."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs") else ascii(c)[1:-1] for c in text
    )
