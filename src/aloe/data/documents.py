"""What deduplication looks at of a row, and the order in which rows are preferred."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aloe.data.clean import key_text
from aloe.data.reader import question_of
from aloe.records import Dialogue, Row

_REFERS_TO_OPTIONS = {"all", "none", "both", "neither", "any", "either"}


@dataclass(frozen=True)
class Document:
    """What deduplication looks at. `texts` maps a signature's name to the text it covers; rows meet only within the
    same (family, name). `scope` must be equal for two rows to be near-duplicates (the context they refer to)."""

    id: str
    family: str  # "mcq", "qa" or "dialogue"
    exact: str
    texts: Mapping[str, str]
    gold: str = ""
    scope: str = ""
    priority: int = 0  # of the source: lower survives
    length: int = 0  # characters: longer survives
    quality: float = 0.0  # higher survives; decides after priority, before length


def document(record: Row, priority: int = 0, quality: float = 0.0) -> Document:
    """The document of a question or dialogue. A dialogue made from a question counts as that question."""
    question = question_of(record)
    if question is not None:
        options = " ".join(sorted(key_text(text) for text in question.options.values()))
        stem, scope = key_text(question.question), key_text(question.context)
        full = f"{stem} {options}"
        size = sum(map(len, (question.question, question.explanation, *question.options.values())))
        return Document(
            id=record.id, family="mcq", exact=f"{scope}\x1f{stem}\x1f{options}", texts={"stem": stem, "full": full},
            gold=key_text(question.options[question.answer]), scope=scope, priority=priority, length=size,
            quality=quality,
        )  # fmt: skip
    if not isinstance(record, Dialogue):
        raise TypeError(f"deduplication takes questions and dialogues, not {type(record).__name__}")
    turns = [m for m in record.messages if m["role"] != "system"]
    size = sum(len(m["content"]) for m in record.messages)
    if len(turns) == 2:
        said = [key_text(m["content"]) for m in turns]
        return Document(
            id=record.id, family="qa", exact="\x1f".join(said), texts={"full": " ".join(said)},
            priority=priority, length=size, quality=quality,
        )  # fmt: skip
    tagged = " ".join(f"{m['role']} {key_text(m['content'])}" for m in turns)
    return Document(
        id=record.id, family="dialogue", exact=tagged, texts={"full": tagged}, priority=priority, length=size,
        quality=quality,
    )  # fmt: skip


def survivor_key(doc: Document) -> tuple[int, float, int, str]:
    """Sort key: the smallest survives. Source priority, then quality, then length, ties by row id."""
    return doc.priority, -doc.quality, -doc.length, doc.id


def digest(text: str) -> bytes:
    """128 bits of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def stands_by(doc: Document, name: str) -> bool:
    """Whether the row may be found by this signature. On the stem alone the answer must mean the same without its
    options (not "all of the above", not "both A and C")."""
    return name != "stem" or not _REFERS_TO_OPTIONS & set(doc.gold.split())


def group_number(doc: Document) -> int:
    """A number of 64 bits; two rows may only count as the same if it is equal: equal context and gold answer."""
    if not doc.gold and not doc.scope:
        return 0
    return int.from_bytes(digest(f"{doc.scope}\x1f{doc.gold}")[:8], "little")


def in_order(numbers: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """Row numbers by the columns of `numbers`, ties by id."""
    order = np.lexsort(numbers.T[::-1])
    placed = numbers[order]
    cuts = np.flatnonzero((placed[1:] != placed[:-1]).any(axis=1)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(order)], strict=True):
        if end - start > 1:
            order[start:end] = sorted(order[start:end].tolist(), key=ids.__getitem__)
    return order
