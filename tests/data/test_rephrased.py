"""Tier (c): exact nearest items, a judge that is read strictly, and suspects that stay suspects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.decontaminate import Hit, Item, contamination, item
from aloe.data.rephrased import Pair, candidates, judge, merged, parse, rephrased_hits, shown
from aloe.generate.embed import unit_rows
from aloe.generate.engine import Reply, Request
from aloe.generate.mock import MockEngine
from aloe.keyed import rng
from aloe.records import Dialogue, Question

Floats = npt.NDArray[np.float32]


def vectors(count: int, seed: int, dimension: int = 16) -> Floats:
    return unit_rows(rng(seed, "vectors").normal(size=(count, dimension)).astype(np.float32))


def nearest(rows: Floats, items: Floats, k: int, floor: float) -> list[tuple[int, int]]:
    """Every pair compared in double precision."""
    cosines = rows.astype(np.float64) @ items.astype(np.float64).T
    return [
        (i, j)
        for i, line in enumerate(cosines)
        for j in sorted(range(len(items)), key=lambda j: (-line[j], j))[:k]
        if line[j] >= floor
    ]


@pytest.mark.parametrize(("k", "floor"), [(1, 0.0), (3, 0.3), (5, -1.0), (200, 0.2)])
def test_candidates_are_the_exact_nearest(k: int, floor: float) -> None:
    rows, items = vectors(90, 1), vectors(150, 2)
    found = candidates(rows, items, k, floor, block=32)
    assert [(p.row, p.item) for p in found] == nearest(rows, items, k, floor)
    assert all(p.cosine == pytest.approx(float(rows[p.row] @ items[p.item]), abs=1e-6) for p in found)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.integers(0, 99))
def test_blocks_change_nothing(n: int, m: int, k: int, block: int, seed: int) -> None:
    rows, items = vectors(n, seed, 8), vectors(m, seed + 1, 8)
    items = np.concatenate([items, items[: m // 2]])  # ties: the lower item wins
    assert candidates(rows, items, k, 0.1, block=block) == candidates(rows, items, k, 0.1, block=1000)
    assert candidates(rows[::-1].copy(), items, k, 0.1)[::-1] != [] or not candidates(rows, items, k, 0.1)


def test_equal_items_go_by_place_and_nothing_passes_the_floor() -> None:
    rows = vectors(3, 5)
    items = np.concatenate([rows, rows])
    assert [(p.row, p.item) for p in candidates(rows, items, 1, 0.99)] == [(0, 0), (1, 1), (2, 2)]
    assert candidates(rows, items[:0], 3, 0.5) == candidates(rows[:0], items, 3, 0.5) == []
    assert candidates(rows, -rows, 3, 0.999) == []


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="shape"):
        candidates(vectors(2, 1, 8), vectors(2, 1, 9))
    with pytest.raises(ValueError, match="1 or more"):
        candidates(vectors(2, 1), vectors(2, 1), 0)


@pytest.mark.parametrize(("reply", "label"), [
    ("True", "rephrased"), ("true.", "rephrased"), ("**True**", "rephrased"), ("Yes, they ask the same.", "rephrased"),
    (" False\n", "different"), ("No.", "different"), ("'false'", "different"),
    ("", "unparsed"), ("It is true", "unparsed"), ("True or False?", "unparsed"), ("Truely", "unparsed"),
    ("Not true", "unparsed"), ("I think so", "unparsed"), ("True. Well, no.", "unparsed"), ("Nothing", "unparsed"),
])  # fmt: skip
def test_verdicts_are_read_strictly(reply: str, label: str) -> None:
    assert parse(reply) == label


def test_judge_asks_about_both_texts_and_keeps_errors_apart() -> None:
    def reply(request: Request) -> str:
        if request.key == "b":
            raise TimeoutError("no answer")
        return "True" if "liver" in request.messages[-1]["content"] else "hm"

    engine = MockEngine(reply)
    found = judge(engine, [("a", "the liver", "a liver"), ("b", "x", "y"), ("c", "x", "y")])
    assert [v.label for v in found] == ["rephrased", "errored", "unparsed"]
    assert "no answer" in found[1].error
    assert "Question 1:\nthe liver\n\nQuestion 2:\na liver" in engine.requests[0].messages[0]["content"]
    assert engine.requests[0].sampling.temperature == 0.0


def test_replies_out_of_order_are_an_error() -> None:
    class Swapping(MockEngine):
        def generate(self, requests: Sequence[Request], tick: Any = None) -> list[Reply]:
            return super().generate(requests, tick)[::-1]

    with pytest.raises(ValueError, match="order"):
        judge(Swapping(), [("a", "x", "y"), ("b", "x", "y")])


# ---------------------------------------------------------------------------------------------- whole tier


class Letters:
    """Embeds a text as its letter counts: equal letters, equal vectors."""

    def __init__(self) -> None:
        self.largest = 0

    def encode(self, texts: Sequence[str]) -> Floats:
        self.largest = max(self.largest, len(texts))
        counts = [[text.count(chr(97 + k)) for k in range(26)] for text in texts]
        return unit_rows(np.array(counts, dtype=np.float32).reshape(len(texts), 26))


def mcq(question: str, gold: str, name: str) -> Item:
    return item(Question(
        id=name, source="train", licence="mit", question=question, options={"A": gold, "B": "Something else"},
        answer="A",
    ))  # fmt: skip


def talk(text: str, name: str) -> Item:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "An answer"}]
    return item(Dialogue(id=name, source="talk", licence="mit", messages=turns))


BENCH = {"exam": [mcq("Drug of choice in gout attack", "Colchicine", "e1"), mcq("Where is bile made", "Liver", "e2")]}
ROWS = [
    mcq("In gout attack, choice of drug", "Colchicine", "r1"),  # the same letters: a rephrasing
    talk("Hello there, how are you", "r2"),
    mcq("Bile made is where", "Liver", "r3"),
]


def found(reply: str | None, **options: Any) -> Any:
    engine = None if reply is None else MockEngine(lambda request: reply)
    return rephrased_hits(ROWS, BENCH, Letters(), engine, k=1, floor=0.98, **options)


def test_without_a_judge_everything_is_only_suspected() -> None:
    result = found(None)
    assert [(h.row, h.benchmark, h.item, h.tier) for h in result.suspected] == [
        (0, "exam", 0, "rephrased"), (2, "exam", 1, "rephrased"),
    ]  # fmt: skip
    assert result.hits == []
    assert result.verdicts == {}
    assert result.table == {"train": {"exam": {"suspected": 2}}}


@pytest.mark.parametrize(("reply", "hits", "suspected"), [("True", 2, 0), ("False", 0, 0), ("Perhaps", 0, 2)])
def test_the_judge_decides_and_an_unreadable_one_does_not(reply: str, hits: int, suspected: int) -> None:
    result = found(reply)
    assert (len(result.hits), len(result.suspected), len(result.verdicts)) == (hits, suspected, 2)
    assert sum(result.table["train"]["exam"].values()) == 2


def test_a_failing_judge_makes_nothing_clean_or_dirty() -> None:
    def fails(request: Request) -> str:
        raise ConnectionError("gone")

    result = rephrased_hits(ROWS, BENCH, Letters(), MockEngine(fails), k=1, floor=0.98)
    assert (result.hits, len(result.suspected)) == ([], 2)
    assert result.table["train"]["exam"] == {"errored": 2}


def test_pairs_that_are_known_are_not_asked_about() -> None:
    engine = MockEngine(lambda request: "True")
    known = [Hit(0, "exam", 0, "ngram", 0.9)]
    result = rephrased_hits(ROWS, BENCH, Letters(), engine, k=1, floor=0.98, known=known)
    assert [r.key for r in engine.requests] == ["r3|exam|e2"]
    assert [h.row for h in result.hits] == [2]


@pytest.mark.parametrize("chunk", [1, 2, 50])
def test_chunks_change_nothing_and_bound_what_is_embedded(chunk: int) -> None:
    encoder = Letters()
    result = rephrased_hits(ROWS * 30, BENCH, encoder, k=1, floor=0.98, chunk=chunk)
    assert encoder.largest <= max(chunk, 2)
    assert result == rephrased_hits(ROWS * 30, BENCH, Letters(), k=1, floor=0.98)


def test_merged_report_counts_a_row_once() -> None:
    lexical = contamination(ROWS, BENCH)
    result = found("True")
    whole = merged(lexical, result, {hit.row: ROWS[hit.row].source for hit in result.hits})
    rows = {(h.row, h.benchmark) for h in whole.hits}
    assert whole.table["train"]["exam"]["contaminated"] == len(rows) == 2
    assert whole.table["train"]["exam"]["rephrased"] == 2
    assert lexical.table["train"]["exam"].keys() == {"rows", "candidates", "contaminated"}  # not changed in place


def test_the_judge_sees_options_and_answer() -> None:
    assert shown(BENCH["exam"][1]) == "where is bile made\nOptions: liver; something else\nAnswer: liver"
    assert "hello there" in shown(ROWS[1])


def test_no_items_no_pairs() -> None:
    assert rephrased_hits(ROWS, {"exam": []}, Letters()).suspected == []
    assert rephrased_hits([], BENCH, Letters()).suspected == []
    assert Pair(0, 1, 0.5).cosine == 0.5
