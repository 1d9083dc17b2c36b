"""Reading answers: a golden corpus of messy replies, and properties that hold for any of them."""

from __future__ import annotations

import json
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from aloe.prompting.extract import after_reasoning, extract
from aloe.prompting.mcq import shown_options

CORPUS = [
    json.loads(line) for line in (Path(__file__).parent / "extraction_corpus.jsonl").read_text("utf-8").splitlines()
]
OPTIONS = {"A": "Aspirin", "B": "Furosemide", "C": "Metformin", "D": "Warfarin"}


def test_the_corpus_is_large_and_its_texts_are_distinct() -> None:
    assert len(CORPUS) >= 200
    assert len({(row["text"], row["truncated"], str(row["options"])) for row in CORPUS}) == len(CORPUS)
    assert {row["expected"] for row in CORPUS} == {"A", "B", "C", "D", "E", None}


@pytest.mark.parametrize("row", CORPUS, ids=lambda row: f"{row['id']}-{row['note'].replace(' ', '-')}")
def test_every_reply_of_the_corpus_is_read_as_a_person_would(row: dict[str, Any]) -> None:
    found = extract(row["text"], row["options"], truncated=row["truncated"])
    assert (found.letter, found.conflict) == (row["expected"], row["conflict"])


@pytest.mark.parametrize("order", list(permutations("ABCD")))
def test_the_last_bracket_in_the_text_wins_under_any_order_of_the_options(order: tuple[str, ...]) -> None:
    # prompt_engine (2025-04) looked for letters in the order the options were shuffled in, and returned B
    shown = shown_options(OPTIONS, order)
    assert extract("[B] is wrong, so [C]", shown).letter == "C"
    assert extract("[B] is wrong, so [C]", dict(reversed(shown.items()))).letter == "C"


def test_a_plain_answer_line_parses() -> None:
    found = extract("Answer: B", OPTIONS)
    assert (found.letter, found.rule, found.conflict) == ("B", "phrase", False)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"answer": "B"}', "structured"),
        ("\\boxed{B}", "boxed"),
        ("The answer is B", "phrase"),
        ("[B], I think", "bracket"),
        ("It acts fastest.\nB", "trailing"),
        ("B. Furosemide, for its speed.", "leading"),
        ("Furosemide, for its speed.", "option_text"),
        ("No idea.", "none"),
    ],
)
def test_the_rule_that_decided_is_named(text: str, rule: str) -> None:
    assert extract(text, OPTIONS).rule == rule


def test_a_letter_outside_the_options_is_never_returned() -> None:
    two = {"A": "yes", "B": "no"}
    assert extract("Answer: C", two).letter is None
    assert extract("\\boxed{D}", two).letter is None


def test_reasoning_is_cut_off() -> None:
    assert after_reasoning("<think>A</think> B") == " B"
    assert after_reasoning("<think>A") == ""
    assert after_reasoning("x</think>y</think> z") == " z"


def test_truncated_replies_give_no_weak_answer() -> None:
    text = "Let us weigh them. First, aspirin inhibits platelets, which"
    assert extract(text, OPTIONS).letter == "A"
    assert extract(text, OPTIONS, truncated=True).letter is None


@pytest.mark.parametrize(
    "piece", ["the answer is option ", "the answer is B? ", "Answer: A, B, C ", "aspirin not ", "((", "Answer:\n", "\n"]
)
def test_degenerate_repetition_is_read_in_linear_time(piece: str) -> None:
    start = time.perf_counter()
    extract(piece * (40_000 // len(piece)), OPTIONS)
    assert time.perf_counter() - start < 3
