"""The options of a multiple-choice question and which of them is the answer, in every form that sets publish them.

Options: a map by letter, a list, columns (`A`..`H`, `opa`.., `op1`..), letters and texts side by side, or one text in
which every option carries its letter. Answers: a letter, a 0-based index, an option's text. Two readings that disagree
are a misfit: nothing is guessed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from aloe.data.clean import repair_answer


class Misfit(Exception):
    """A row that doesn't fit its shape: a reason for the ledger and a detail for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class CsvIndex(int):
    """A number read from a CSV cell, where a text and an index look the same; as text it is what stood there."""

    text: str

    def __new__(cls, text: str) -> CsvIndex:
        """The number that `text` writes."""
        self = super().__new__(cls, int(text))
        self.text = text
        return self

    def __str__(self) -> str:
        return self.text


OPTION_COLUMNS = (tuple("ABCDEFGH"), ("opa", "opb", "opc", "opd", "ope"))
_LITERAL_LIMIT = 100_000  # characters of a Python literal that is parsed


def parsed(value: Any) -> Any:
    """Nested values written as text (CSV files) are read, as JSON or as a Python literal (what pandas writes);
    anything else comes back as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as cause:
        if len(value) <= _LITERAL_LIMIT and re.match(r"\s*(\{\s*['\"\d]|\[\s*['\"{\d])", value):
            try:
                return ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                pass
        said = cause.msg if isinstance(cause, json.JSONDecodeError) else type(cause).__name__
        raise Misfit("bad_json", f"a nested value is not valid JSON ({said})") from None


# ---------------------------------------------------------------------------------------------- options


def read_options(value: Any) -> tuple[dict[str, str], bool]:
    """(options by letter, whether the row itself names them by letters) from what stands in an options column."""
    value = parsed(value)
    if isinstance(value, str):
        return checked(_lettered_text(value)), True
    if isinstance(value, Mapping):
        pair = next((p for p in _PAIRS if set(p) <= set(value)), None)
        if pair:
            return _labelled(_column(value, pair[0]), _column(value, pair[1]))
        return checked(_by_letter(value.items())), True
    if not isinstance(value, list | tuple):
        raise Misfit("bad_options", f"options should be a map or a list, found {type(value).__name__}")
    if value and all(isinstance(v, Mapping) for v in value):
        pair = next((p for p in _PAIRS if all(set(p) <= set(v) for v in value)), None)
        if pair:
            return _labelled([v[pair[0]] for v in value], [v[pair[1]] for v in value])
    if len(value) > len(ascii_uppercase):
        raise Misfit("bad_options", f"{len(value)} options; there are letters for {len(ascii_uppercase)}")
    stripped = _own_letters(value)
    texts = checked(dict(zip(ascii_uppercase, stripped or value, strict=False)))
    return texts, stripped is not None


_PAIRS = (("key", "value"), ("label", "text"))  # bigbio and ARC: letters beside texts


def _column(value: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(value[name], list | tuple):
        raise Misfit("bad_options", f"options hold {name}, which should be a list")
    return list(value[name])


def _labelled(labels: Sequence[Any], texts: Sequence[Any]) -> tuple[dict[str, str], bool]:
    if len(labels) != len(texts):
        raise Misfit("bad_options", f"{len(labels)} option letters, {len(texts)} option texts")
    return checked(_by_letter(zip(labels, texts, strict=True))), True


def _by_letter(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in pairs:
        letter = str(name).strip().upper()
        if len(letter) != 1 or letter not in ascii_uppercase:
            raise Misfit("bad_option_letters", f"an option is named {str(name)[:20]!r}, expected letters A, B, ...")
        if letter in found:
            raise Misfit("bad_option_letters", f"two options are named {letter}")
        if text is not None:
            found[letter] = text
    return dict(sorted(found.items()))


def columns_options(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Options that stand in columns of their own, in the order of `names`; the last ones may be absent or blank."""
    values = [row.get(n) for n in names]
    return checked({k: v for k, v in zip(ascii_uppercase, values, strict=False) if v is not None and v != ""})


def checked(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as texts: two or more, none blank or nested."""
    if any(isinstance(v, Mapping | list | tuple) for v in options.values()):
        raise Misfit("bad_options", "an option is not text")
    if len(options) < 2:
        raise Misfit("too_few_options", f"{len(options)} option(s); a question needs two or more")
    for letter, text in options.items():
        if text is None or text != text or not str(text).strip():  # a missing number is not equal to itself
            raise Misfit("empty_option", f"option {letter} is blank")
    return {k: str(v) for k, v in options.items()}


# Styles in which a text names its options. Only a closing bracket is sure enough to stand inside a line: "hepatitis B."
# ends a sentence.
_STYLES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (r"(?:^|(?<=\s))\(([A-Za-z])\)\s*", r"(?:^|(?<=\s))([A-Za-z])\)\s*", r"^\s*([A-Za-z])[.:]\s+")
)


def _lettered_text(text: str) -> dict[str, str]:
    """Options out of one text ("A) x B) y", or lines "A. x"). Every letter from A on must stand once, in order."""
    for style in _STYLES:
        marks = list(style.finditer(text))
        if not marks or text[: marks[0].start()].strip():
            continue
        letters = "".join(m[1] for m in marks)
        if len(letters) < 2 or not (ascii_uppercase.startswith(letters) or ascii_lowercase.startswith(letters)):
            break
        ends = [m.start() for m in marks[1:]] + [len(text)]
        return {
            m[1].upper(): text[m.end() : end].strip().rstrip(";,").rstrip() for m, end in zip(marks, ends, strict=True)
        }
    raise Misfit("bad_options", "options are one text that can't be split for certain")


def _own_letters(values: Sequence[Any]) -> list[str] | None:
    """A list's texts without the letters they carry ("A. x", "B. y"); None unless every one carries its own."""
    for style in (r"\(([A-Z])\)\s*(\S.*)", r"([A-Z])[).:]\s+(\S.*)"):
        found = [re.fullmatch(style, v.strip(), re.DOTALL) if isinstance(v, str) else None for v in values]
        if values and all(m and m[1] == letter for m, letter in zip(found, ascii_uppercase, strict=False)):
            return [m[2] for m in found if m]
    return None


# ---------------------------------------------------------------------------------------------- answers


def resolve_answer(
    value: Any, options: Mapping[str, str], *, lettered: bool = True, repair: bool = True
) -> tuple[str, str | None]:
    """(letter, repair pattern or None) for an answer given as a letter, a 0-based index or an option's text.

    `lettered` says that the row itself names its options by letters; in a list of options a letter may also be a
    text (blood group "B"), so there the two readings must agree.
    """
    letters = sorted(options)
    if isinstance(value, bool) or value is None or value != value:
        raise Misfit("no_answer", f"the answer is {value!r}")
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return _indexed(value, options, letters), None
    text = str(value).strip()
    same = [k for k, v in options.items() if v.strip() == text]
    as_letter = text.upper() if text.upper() in options else None
    if as_letter and not lettered and same and same != [as_letter]:
        raise Misfit("ambiguous_answer", f"{text!r} is the letter of one option and the text of {same[0]}")
    if as_letter:
        return as_letter, None
    same = same or [k for k, v in options.items() if _folded(v) == _folded(text)]
    if len(same) == 1:
        return same[0], None
    if repair and (found := repair_answer(text, dict(options))):
        return found
    raise Misfit("answer_not_in_options", f"answer {text[:60]!r} is none of {', '.join(letters)}")


def _indexed(value: float, options: Mapping[str, str], letters: Sequence[str]) -> str:
    inside = 0 <= value < len(letters)
    if isinstance(value, CsvIndex):  # a CSV cell "2" may be an index or the text of an option
        same = [k for k, v in options.items() if v.strip() == value.text]
        if len(same) == 1 and (not inside or letters[int(value)] == same[0]):
            return same[0]
        if same:
            raise Misfit("ambiguous_answer", f"{value.text} is the index of one option and the text of {same[0]}")
    if not inside:
        raise Misfit("answer_not_in_options", f"index {int(value)} is outside 0..{len(letters) - 1} (0-based)")
    return letters[int(value)]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def whole_number(value: Any) -> int | None:
    """An integer from a number or its text ("3", 3, 3.0); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, int):
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value) else None
