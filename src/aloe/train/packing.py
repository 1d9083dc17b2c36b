"""Training rows as token trees, and trees packed into rows that a model takes in one forward pass.

A dialogue is a tree without branches; a preference pair is a prompt with two branches, chosen and rejected, so the
prompt is computed once. The mask keeps trees and branches apart and positions go on from the prompt, hence every
log-probability equals the one of a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aloe.errors import AloeError
from aloe.models.packed import Layout, Tree, best_fit, lay_out
from aloe.records import Message, row_id
from aloe.rows import read_dicts
from aloe.turns import is_transcript, transcript_turns, turn_of

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, eq=False)  # arrays have no single equality
class Example:
    """One training row as tokens. `scored` has a flag for each token of the tree (prefix, then its branches).

    Tokens and flags are lists, or numpy arrays as a token store gives them.

    Raises:
        ValueError: the flags don't fit the tree, no token is scored, or one is scored that nothing predicts.
    """

    key: str  # source and id of the row: names it in errors and keys its place in the shuffled order
    tree: Tree
    scored: Sequence[bool]
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if len(self.scored) != len(self.tree):
            raise ValueError(f"{self.key}: {len(self.scored)} flags for {len(self.tree)} tokens")
        if not self.trained:
            raise ValueError(f"{self.key}: no token to train on")
        if not len(self.tree.prefix) or self.scored[0]:
            raise ValueError(f"{self.key}: nothing comes before the first scored token")

    @property
    def tokens(self) -> int:
        """Tokens of the tree, a shared prompt counted once."""
        return len(self.tree)

    @property
    def trained(self) -> int:
        """Tokens scored."""
        return int(np.count_nonzero(self.scored)) if isinstance(self.scored, np.ndarray) else sum(self.scored)

    @property
    def longest(self) -> int:
        """Tokens of the longest path, which is what the model's positions must hold."""
        return len(self.tree.prefix) + max((len(b) for b in self.tree.branches), default=0)


@dataclass(frozen=True)
class PackedRow:
    """Several trees in one row. For each of the n scored tokens: `sources` is the position whose hidden state predicts
    it, `targets` its id, `sequence` the answer it belongs to (dialogue t: t; pair t: 2t chosen, 2t+1 rejected)."""

    layout: Layout
    members: list[int]
    sources: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    sequences: int

    @property
    def padding(self) -> int:
        """Positions that hold no token."""
        return int((self.layout.tree < 0).sum())


def pack(
    examples: Sequence[Example], indices: Sequence[int], width: int, pad_id: int, multiple: int = 1
) -> list[PackedRow]:
    """Pack `examples[i] for i in indices` into rows of at most `width` tokens, best fit decreasing.

    An example longer than `width` gets a row of its own: `width` is a matter of speed and memory, and what is too long
    to train on was dropped before. A row ends with its last token, rounded up to `multiple` positions.
    """
    rows = {i: examples[i] for i in indices}  # read once each: a token store makes a new one every time
    bins = grouped([rows[i].tokens for i in indices], width)
    return [_packed_row(rows, [indices[j] for j in group], pad_id, multiple) for group in bins]


def grouped(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which examples of these lengths share a packed row: places in `lengths`, each once (see `pack`)."""
    alone = [[j] for j, n in enumerate(lengths) if n > width]
    packed = [j for j, n in enumerate(lengths) if n <= width]
    return alone + [[packed[j] for j in group] for group in best_fit([lengths[j] for j in packed], width)]


def lengths_of(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Tokens of each example [n]; a token store knows them without reading any."""
    known = getattr(examples, "tokens", None)
    return known if known is not None else np.array([e.tokens for e in examples], dtype=np.int64)


def _packed_row(examples: Mapping[int, Example], members: list[int], pad_id: int, multiple: int) -> PackedRow:
    used = sum(examples[i].tokens for i in members)
    layout = lay_out([examples[i].tree for i in members], -(-used // multiple) * multiple, pad_id)
    sources, positions, sequence, count = [], [], [], 0
    for starts, index in zip(layout.starts, members, strict=True):
        tree = examples[index].tree
        scored = starts[0] + np.flatnonzero(np.asarray(examples[index].scored))
        branch = layout.branch[scored]
        first = np.isin(scored, starts[1:])  # a branch's first token is predicted by the prefix's last
        sources.append(np.where(first, starts[0] + len(tree.prefix) - 1, scored - 1))
        positions.append(scored)
        sequence.append(count + np.maximum(branch - 1, 0))
        count += max(1, len(tree.branches))
    where = np.concatenate(positions)
    return PackedRow(layout, members, np.concatenate(sources), layout.ids[where], np.concatenate(sequence), count)


Unfit = Callable[[str, int, str], None]
PAIR = "prompt (text or messages), chosen and rejected (texts, or conversations that share all but the last turn)"


@dataclass(frozen=True)
class TextRow:
    """A row of data before tokenising: `where` is file and row; `chosen` and `rejected` are empty for a dialogue."""

    key: str
    where: str
    licence: str
    messages: list[Message]
    chosen: str = ""
    rejected: str = ""


def read_dialogues(path: Path, unfit: Unfit | None = None) -> Iterator[TextRow]:
    """Rows `{messages: [{role, content}, ...]}` of a Parquet or JSON Lines file. A row that doesn't fit is an error,
    also with `unfit`: dialogues come from `curate`, which has dropped what can't be used."""
    for number, row in read_dicts(path):
        where = f"{path}:{number}"
        if "messages" not in row:
            raise _unreadable(where, "messages", "messages: [{role, content}, ...]", row)
        messages = _messages(row["messages"], where, "messages")
        if not any(m["role"] == "assistant" for m in messages):
            raise AloeError("no assistant turn to train on", where=where, fix="delete the row or add the answer")
        yield TextRow(_key(row), where, str(row.get("licence") or "unknown"), messages)


def read_preferences(path: Path, unfit: Unfit | None = None) -> Iterator[TextRow]:
    """Preference rows of a Parquet or JSON Lines file.

    `{prompt: text or messages, chosen: text, rejected: text}`, or `chosen` and `rejected` as whole conversations that
    differ in their last, assistant, turn (the shape of `argilla/dpo-mix-7k` and the like; `prompt` may be left out).
    The prompt may be called `messages` or `conversations`, a turn may be ShareGPT's `{from, value}`, and a conversation
    one text as in `Anthropic/hh-rlhf`, "\\n\\nHuman: ... \\n\\nAssistant: ...".

    Args:
        unfit: is told the key, the row's number and what is wrong of a row that has the fields and is no pair (a blank
            turn, sides that don't share their conversation). Without it the first such row is an error.
    """
    for number, row in read_dicts(path):
        where = f"{path}:{number}"
        for name in ("chosen", "rejected"):
            if name not in row:
                raise _unreadable(where, name, PAIR, row)
        row = _spelled(row)
        together = isinstance(row["chosen"], list) and isinstance(row["rejected"], list)
        if "prompt" not in row and not together:
            raise _unreadable(where, "prompt", PAIR, row)
        try:
            yield _pair(_from_conversations(row, where) if together else row, where)
        except AloeError as cause:
            if unfit is None:
                raise
            unfit(_key(row), number, cause.what)


def _pair(row: dict[str, Any], where: str) -> TextRow:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = _messages(prompt, where, "prompt")
    if messages[-1]["role"] == "assistant":
        raise AloeError(
            "the prompt ends with an assistant turn, and the answer would be a second one",
            where=where,
            fix="end the prompt with the user's turn; put the answers into chosen and rejected",
        )
    for name in ("chosen", "rejected"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise AloeError(f"{name} must be a text that isn't empty", where=where, fix=f"the shape is {PAIR}")
    if row["chosen"] == row["rejected"]:
        raise AloeError("chosen and rejected are the same text", where=where, fix="delete the row")
    return TextRow(_key(row), where, str(row.get("licence") or "unknown"), messages, row["chosen"], row["rejected"])


def _spelled(row: dict[str, Any]) -> dict[str, Any]:
    """The row with prompt and sides as texts or lists of `{role, content}`, and its own id if it has none."""
    made: dict[str, Any] = {**row, "id": row.get("id") or row_id(row)}
    other = next((name for name in ("messages", "conversations") if name in row), None)
    if "prompt" not in row and other is not None:
        made["prompt"] = row[other]
    for name in ("prompt", "chosen", "rejected"):
        value = made.get(name)
        if isinstance(value, str) and is_transcript(value):
            made[name] = transcript_turns(value)
        elif isinstance(value, list):
            made[name] = [_turn(turn) for turn in value]
        elif isinstance(value, dict):  # an answer as its one turn
            role, text = turn_of(value)
            made[name] = text if role == "assistant" else [_turn(value)]
    return made


def _turn(turn: Any) -> Any:
    """`{role, content}` by our names of roles; what isn't a turn is left for `_messages` to refuse."""
    if not isinstance(turn, dict):
        return turn
    role, text = turn_of(turn)
    return {"role": role or turn.get("role", turn.get("from")), "content": text}


def _from_conversations(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row whose two sides are whole conversations, as prompt and two answers."""
    chosen, rejected = (_messages(row[name], where, name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise AloeError(
            "chosen and rejected don't share the conversation before their last turn",
            where=where,
            fix="delete the row, or give both sides the same turns up to the answer",
        )
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            raise AloeError(
                f"{name} ends with the role {side[-1]['role']!r}", where=where, fix="end it with the answer"
            )
    sides = {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
    return {**row, "prompt": chosen[:-1], **sides}


def _key(row: dict[str, Any]) -> str:
    """Source and id, not the file's path: the order of training must not depend on where a file lies."""
    name = str(row.get("id") or row_id(row))
    return f"{row['source']}/{name}" if row.get("source") else name


def _messages(value: Any, where: str, name: str) -> list[Message]:
    fix = "write [{role: system | user | assistant, content: text}, ...]"
    if not isinstance(value, list) or not value:
        raise AloeError(f"{name} must be a list of messages", where=where, fix=fix)
    for i, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise AloeError(f"{name}[{i}] has the role {role!r}", where=where, fix=fix)
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise AloeError(f"{name}[{i}] has no content", where=where, fix=fix)
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _unreadable(where: str, missing: str, shape: str, row: dict[str, Any]) -> AloeError:
    return AloeError(
        f"no field {missing!r}; this row has {', '.join(sorted(row)) or 'no fields'}",
        where=where,
        fix=f"training reads rows with {shape}; bring other shapes into this one first",
    )
