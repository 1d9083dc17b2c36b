"""What a stranger's tokenizer.json may not do: fill memory at the first text, or stand for more than the file holds.

The `tokenizers` library parses these files, runs their expressions under a limit of its own, and raises a panic, which
is no `Exception`, or ends the process where memory runs out. So three things are counted before it sees them: by how
much normalizers and decoders can make a text grow (Replace, one after the other, doubles it each time), how many
tokens a template puts around a text, and how far ids lie from the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.json_file import read_object

FILE = "tokenizer.json"
MAX_BYTES = 256 << 20  # the largest in use have about 35 MB
MAX_GROWTH = 4096  # times that normalizers, or decoders, may lengthen a text; those in use stay below 10
MAX_AROUND = 4096  # tokens that a template may put around a text; those in use put one to three
MAX_ID = 1 << 24  # ids beyond the number of tokens; those in use leave gaps of some hundreds
MAX_DEPTH = 100
FIX = "use a tokenizer that transformers has saved; nobody needs one like this"


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder's tokenizer.json, if there is one, that could fill memory.

    Raises:
        AloeError: it is no JSON object, over `MAX_BYTES`, or one of the above.
    """
    path = folder / FILE
    if not path.exists():
        return
    found, where = read_object(path, MAX_BYTES), str(path)
    for part in ("normalizer", "decoder"):
        growth = _growth(found.get(part), where)
        if growth > MAX_GROWTH:
            raise AloeError(f"the {part} can make a text over {MAX_GROWTH:,} times as long", where=where, fix=FIX)
    if (around := _around(found.get("post_processor"), where)) > MAX_AROUND:
        what = f"the post-processor puts {around:,} tokens around every text; at most {MAX_AROUND:,} are read"
        raise AloeError(what, where=where, fix=FIX)
    ids = list(_ids(found))
    if ids and (max(ids) > len(ids) + MAX_ID or min(ids) < 0):
        what = f"token ids go from {min(ids):,} to {max(ids):,}, and there are {len(ids):,} tokens"
        raise AloeError(what, where=where, fix=FIX)


def is_panic(cause: BaseException) -> bool:
    """Whether the Rust code of `tokenizers` gave up: its panic is no `Exception`."""
    return type(cause).__name__ == "PanicException"


def panicked(cause: BaseException) -> AloeError:
    """What a user is told of a panic that came while texts were tokenized."""
    what = f"a library's Rust code gave up on a text ({' '.join(str(cause).split())[:200]})"
    fix = "use the tokenizer that the model was published with; what is finished is kept"
    return AloeError(what, where="a tokenizer", fix=fix)


def _inner(value: Any) -> list[Any]:
    """The parts of a sequence of normalizers, decoders or processors."""
    for name in ("normalizers", "decoders", "pretokenizers", "processors"):
        if isinstance(value.get(name), list):
            return list(value[name])
    return []


def _growth(value: Any, where: str, depth: int = 0) -> float:
    """By how much a text can grow at most, in characters."""
    if depth > MAX_DEPTH:
        raise AloeError(f"nested more than {MAX_DEPTH} deep", where=where, fix=FIX)
    if not isinstance(value, dict):
        return 1.0
    grown = 1.0
    for part in _inner(value):
        grown *= _growth(part, where, depth + 1)
        if grown > MAX_GROWTH:
            return grown
    content = value.get("content")
    if value.get("type") == "Replace" and isinstance(content, str):
        pattern = value.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        # An expression may match between any two characters; so does an empty text.
        plain = isinstance(text, str) and text
        grown *= max(1.0, len(content) / len(text)) if plain else 1.0 + len(content)  # type: ignore[arg-type]
    return grown


def _around(value: Any, where: str, depth: int = 0) -> int:
    """Tokens that a post-processor puts around one text, or two."""
    if depth > MAX_DEPTH:
        raise AloeError(f"nested more than {MAX_DEPTH} deep", where=where, fix=FIX)
    if not isinstance(value, dict):
        return 0
    total = sum(_around(part, where, depth + 1) for part in _inner(value))
    told = value.get("special_tokens")
    ids = {
        str(name): len(entry["ids"])
        for name, entry in (told.items() if isinstance(told, dict) else ())
        if isinstance(entry, dict) and isinstance(entry.get("ids"), list)
    }
    most = 0
    for side in ("single", "pair"):
        pieces = value.get(side)
        for piece in pieces if isinstance(pieces, list) else ():
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = special.get("id") if isinstance(special, dict) else None
            most += ids.get(str(name), 1)
    return total + most


def _ids(found: dict[str, Any]) -> Iterator[int]:
    model = found.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    for at in vocab.values() if isinstance(vocab, dict) else range(len(vocab)) if isinstance(vocab, list) else ():
        if isinstance(at, int):
            yield at
    added = found.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            yield token["id"]
