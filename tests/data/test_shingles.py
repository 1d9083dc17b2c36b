"""Hashed shingles are the shingles of the definition, in every text."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.clean import words
from aloe.data.shingles import Ragged, hashed, jaccard, shingles

# Text with everything that words are cut at: digits, points, signs, letters of other scripts, marks, lone surrogates.
PIECES = st.sampled_from(
    [*"aZ09.,<>=+%|_-?! \n\t\x00", "1.5", "2,000.10", "5mg", "naïve", "≥", "±", "µ", "ﬁ", "½", "ß", "٣", "٣.5", "É",
     "\ud800", "word", "the", "of", " ", " ", "  "]
)  # fmt: skip
TEXTS = st.lists(st.lists(PIECES, max_size=40).map("".join), max_size=8)


def rows(found: Ragged) -> list[list[int]]:
    return [found.values[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


def counted(text: str) -> int:
    """Numbers that a text gets: word 5-grams with repeats, character 5-grams without."""
    n = len(words(text))
    return n - 4 if n >= 5 else len(shingles(text))


def test_short_texts_use_characters() -> None:
    assert shingles("flu shot") == {"flu s", "lu sh", "u sho", " shot"}
    assert shingles("one two three four five") == {"one two three four five"}
    assert shingles("") == {""}


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_hashed_shingles_are_the_shingles(texts: list[str]) -> None:
    found = rows(hashed(texts))
    assert [len(row) for row in found] == [counted(t) for t in texts]
    for a, x in zip(found, texts, strict=True):
        for b, y in zip(found, texts, strict=True):
            assert jaccard(frozenset(a), frozenset(b)) == jaccard(shingles(x), shingles(y))


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_a_text_has_its_numbers_whatever_stands_beside_it(texts: list[str]) -> None:
    assert rows(hashed(texts)) == [rows(hashed([t]))[0] for t in texts]


def test_different_words_have_different_numbers() -> None:
    """Every word of one to three letters, and digits: 28,000 texts, no two alike."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [a + b for a in letters for b in letters]
    names = [*letters, *pairs, *(a + b for a in letters for b in pairs), *map(str, range(10_000))]
    found = hashed([f"{n} one two three four" for n in names])
    assert len(set(found.values.tolist())) == len(names) == len(found.values)


def test_order_of_words_matters() -> None:
    texts = ["one two three four five", "two one three four five", "onetwo three four five six", "one two three four"]
    assert len(set(hashed(texts[:3]).values.tolist())) == 3


def test_numbers_are_pinned() -> None:
    """They are part of the scheme: a change shows in every stored signature."""
    found = hashed(["The quick brown fox jumps, over 2.5 dogs", "flu"])
    assert found.values.dtype == np.uint64
    assert found.values.tolist() == [
        8337109072269913515,
        15655894067331318529,
        17575400636946723670,
        12528269992929425816,
        17121640559783894574,
    ]


def test_one_very_long_word_and_many_words() -> None:
    found = hashed(["x" * 1_000_000, "a b c d e " * 50_000])
    assert len(found.values) == 1 + 249_996
    assert len(set(found.values.tolist())) == 1 + 5
