"""Deduplication: what meets, what must not, who survives, and how surely LSH finds a pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data import dedup, minhash, similar
from aloe.data.clusters import UnionFind
from aloe.data.dedup import cluster_sizes, clusters, document, exact_duplicates, near_duplicates
from aloe.data.documents import Document
from aloe.data.shingles import jaccard, shingles
from aloe.keyed import rng, shuffled
from aloe.records import Dialogue, Question

STEM = (
    "A 60-year-old man has crushing central chest pain for one hour with ST elevation in leads II, III and aVF. "
    "Which artery is most likely to be occluded in this patient?"
)
OPTIONS = {"A": "Right coronary artery", "B": "Left anterior descending artery", "C": "Circumflex artery"}


def mcq(name: str, question: str = STEM, options: dict[str, str] | None = None, answer: str = "A") -> Question:
    return Question(id=name, source="s", licence="mit", question=question, options=options or OPTIONS, answer=answer)


def qa(name: str, question: str, answer: str) -> Dialogue:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Dialogue(id=name, source="s", licence="mit", messages=turns)


def word(k: int) -> str:
    """A word for a number, letters only."""
    return "".join("abcdefghij"[int(d)] for d in f"{k:06}")


def qa_words(name: str, numbers: Iterable[int]) -> Dialogue:
    """A row whose comparison text is exactly these words: a question of signs alone has none."""
    return qa(name, "?", " ".join(word(k) for k in numbers))


def exact(*rows: Question | Dialogue) -> list[tuple[str, str]]:
    return [(rows[d.index].id, d.by) for d in exact_duplicates([document(r) for r in rows])]


def near(*rows: Question | Dialogue, **thresholds: float) -> list[str]:
    return [rows[d.index].id for d in near_duplicates([document(r) for r in rows], **thresholds).duplicates]


def test_shuffled_options_are_an_exact_copy() -> None:
    shuffled = {"A": OPTIONS["C"], "B": OPTIONS["A"], "C": OPTIONS["B"]}
    assert exact(mcq("a"), mcq("b", STEM.upper(), shuffled, "B")) == [("b", "exact")]
    assert exact(mcq("a"), mcq("b", options={**OPTIONS, "C": "Obtuse marginal artery"})) == []


def test_contradiction_refuses_both() -> None:
    assert exact(mcq("a"), mcq("b", answer="B"), mcq("c")) == [("a", "conflict"), ("b", "conflict"), ("c", "conflict")]


def test_near_copy_by_text_or_by_stem_with_equal_answer() -> None:
    assert near(mcq("a"), mcq("b", STEM.replace("A 60-year-old man", "A man"))) == ["b"]
    other = {"A": "Posterior tibial vessel", "B": "Right coronary artery", "C": "Ulnar vessel", "D": "Aorta"}
    assert near(mcq("a"), mcq("b", options=other, answer="B")) == ["b"]


def test_questions_that_only_look_alike_stay() -> None:
    assert near(mcq("a"), mcq("b", answer="B")) == []  # other gold answer
    refers = {"A": "All of the above", "B": "Thrombolysis now", "C": "Aspirin at once"}
    again = {"A": "All of the above", "B": "Warfarin for life", "C": "A surgical bypass"}
    assert near(mcq("a", options=refers), mcq("b", options=again)) == []
    short = "Which of the following is true?"
    assert near(mcq("a", short, {"A": "x", "B": "y"}), mcq("b", short, {"A": "p", "B": "q"})) == []


def test_same_stem_about_another_context_stays() -> None:
    one = Question(**{**mcq("a").to_dict(), "context": "First abstract."})
    two = Question(**{**mcq("b").to_dict(), "context": "Second abstract."})
    assert exact(one, two) == []
    assert near(one, two) == []


def test_threshold_is_the_true_jaccard() -> None:
    rows = (qa_words("a", range(104)), qa_words("b", range(15, 119)))
    value = jaccard(*(shingles(document(r).texts["full"]) for r in rows))
    assert value == pytest.approx(85 / 115)
    assert near(*rows, qa=value) == ["b"]
    assert near(*rows, qa=value + 1e-9) == []


def test_dialogues_have_their_own_threshold_and_speakers() -> None:
    def talk(name: str, roles: str) -> Dialogue:
        turns = ["what helps a common cold", "rest and fluids help most people", "how long does it last",
                 "about a week for most people"]  # fmt: skip
        names = {"u": "user", "a": "assistant"}
        messages = [{"role": names[r], "content": t} for r, t in zip(roles, turns, strict=True)]
        return Dialogue(id=name, source="s", licence="mit", messages=messages)

    assert exact(talk("a", "uaua"), talk("b", "uaua")) == [("b", "exact")]
    assert exact(talk("a", "uaua"), talk("b", "auau")) == []


def test_survivor_by_priority_then_length_then_id() -> None:
    texts = {
        "short": "one two three four five six seven eight",
        "long": "One, two; three - four (five) six seven eight!",
    }
    rows = [qa("c", "q", texts["short"]), qa("b", "q", texts["long"]), qa("a", "q", texts["long"])]
    docs = [document(r) for r in rows]
    assert {d.survivor for d in exact_duplicates(docs)} == {2}
    docs = [document(r, priority) for r, priority in zip(rows, (0, 1, 1), strict=True)]
    assert {d.survivor for d in exact_duplicates(docs)} == {0}


def test_chain_makes_one_cluster() -> None:
    rows = [qa_words(str(k), range(k * 12, k * 12 + 124)) for k in range(3)]
    found = near_duplicates([document(r) for r in rows])
    assert [(d.index, d.survivor) for d in found.duplicates] == [(1, 0), (2, 0)]
    assert found.duplicates[1].match == 1  # its evidence is the neighbour it resembles


def test_order_of_rows_changes_nothing() -> None:
    rows = [qa_words(f"r{i}", range(i % 7, 60 + i % 5)) for i in range(40)]
    expected = set(near(*rows))
    assert expected
    assert set(near(*reversed(rows))) == expected


def test_near_duplicates_equal_brute_force() -> None:
    draw = rng(3, "dedup-test")
    rows = []
    for k in range(60):
        numbers = list(range(k % 20 * 100, k % 20 * 100 + 80))
        for _ in range(int(draw.integers(0, 8))):
            numbers[int(draw.integers(0, 80))] = int(draw.integers(10_000, 900_000))
        rows.append(qa_words(f"r{k:02}", numbers))
    docs = [document(r) for r in rows]
    union = UnionFind(len(docs))
    for i, j in combinations(range(len(docs)), 2):
        if jaccard(shingles(docs[i].texts["full"]), shingles(docs[j].texts["full"])) >= 0.72:
            union.join(i, j)
    clusters = {i: union.find(i) for i in range(len(docs))}
    lost = {d.index for d in near_duplicates(docs).duplicates}
    assert 0 < len(lost) < 40
    assert len(docs) - len(lost) == len(set(clusters.values()))


def test_quality_decides_between_priority_and_length() -> None:
    rows = [qa("a", "q", "one two three four five six"), qa("b", "q", "One, two, three, four, five, six!")]
    docs = [document(rows[0], 1, 0.9), document(rows[1], 1, 0.2)]
    assert {d.survivor for d in exact_duplicates(docs)} == {0}  # better, though shorter
    docs = [document(rows[0], 1, 0.9), document(rows[1], 0, 0.2)]
    assert {d.survivor for d in exact_duplicates(docs)} == {1}


def test_contradiction_names_a_row_that_it_contradicts() -> None:
    rows = [mcq("a"), mcq("b", answer="B"), mcq("c"), mcq("d", answer="B")]
    found = exact_duplicates([document(r) for r in rows])
    assert [d.survivor for d in found] == [-1] * 4
    assert all(rows[d.match].answer != rows[d.index].answer for d in found)


class Lazy(Sequence[Document]):
    """Documents that are made when asked for; counts how many were made, and in which order."""

    def __init__(self, rows: Sequence[Dialogue]) -> None:
        self.rows, self.made = rows, list[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Document:  # type: ignore[override]
        if not 0 <= i < len(self.rows):
            raise IndexError(i)
        self.made.append(i)
        return document(self.rows[i])


def perturbed(n: int = 120) -> list[Dialogue]:
    """Rows of 80 words, six to a family, up to seven words of each changed."""
    draw = rng(3, "dedup-test")
    rows = []
    for k in range(n):
        numbers = list(range(k % (n // 6) * 100, k % (n // 6) * 100 + 80))
        for _ in range(int(draw.integers(0, 8))):
            numbers[int(draw.integers(0, 80))] = int(draw.integers(10_000, 900_000))
        rows.append(qa_words(f"r{k:03}", numbers))
    return rows


def named(rows: Sequence[Dialogue], found: dedup.Near) -> set[tuple[str, str, str, float]]:
    return {(rows[d.index].id, rows[d.survivor].id, rows[d.match].id, d.similarity) for d in found.duplicates}


def test_documents_are_read_once_and_in_order() -> None:
    rows = Lazy(perturbed())
    found = near_duplicates(rows)
    assert rows.made == list(range(120))
    assert found == near_duplicates([document(r) for r in rows.rows])
    rows = Lazy([*rows.rows[:20], replace(rows.rows[3], id="copy")])
    assert [(d.index, d.survivor) for d in exact_duplicates(rows)] == [(3, 20)]  # "copy" sorts before "r003"
    assert rows.made == [*range(21), 3, 20]


@pytest.mark.parametrize(("chunk", "workers", "block"), [(1, 1, 4_000_000), (700, 3, 500), (10**9, 2, 50_000)])
def test_chunks_and_workers_change_nothing(
    monkeypatch: pytest.MonkeyPatch, chunk: int, workers: int, block: int, tmp_path: Path
) -> None:
    docs = [document(r) for r in [*perturbed(), mcq("m1"), mcq("m2", STEM.replace("A 60-year-old man", "A man"))]]
    expected = near_duplicates(docs)
    assert len(expected.duplicates) > 20
    monkeypatch.setattr(dedup, "CHUNK", chunk)
    monkeypatch.setattr(similar, "BLOCK", block)
    assert near_duplicates(docs, workers=workers, scratch=tmp_path) == expected
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_order_gives_the_same_survivors_and_evidence(seed: int) -> None:
    rows = perturbed()
    expected = named(rows, near_duplicates([document(r) for r in rows]))
    again = shuffled(rows, seed, "order", [r.id for r in rows])
    assert named(again, near_duplicates([document(r) for r in again])) == expected


def test_every_duplicate_has_its_true_similarities() -> None:
    rows = [*perturbed(), *(qa_words(f"chain{k}", range(5000 + k * 12, 5124 + k * 12)) for k in range(3))]
    sets = [shingles(document(r).texts["full"]) for r in rows]
    found = near_duplicates([document(r) for r in rows]).duplicates
    for d in found:
        best = max(jaccard(sets[d.index], sets[k]) for k in range(len(rows)) if k != d.index)
        assert d.similarity == jaccard(sets[d.index], sets[d.match]) == best >= 0.72
        assert d.to_survivor == jaccard(sets[d.index], sets[d.survivor])
    assert min(d.to_survivor for d in found) < 0.72  # the end of the chain


def test_clusters_and_their_sizes() -> None:
    rows = [qa_words(n, range(k, k + 60)) for n, k in (("a", 0), ("b", 0), ("c", 0), ("d", 900), ("e", 900), ("f", 99))]
    found = clusters(near_duplicates([document(r) for r in rows]).duplicates)
    assert [(c.survivor, c.size, [d.index for d in c.members]) for c in found] == [(0, 3, [1, 2]), (3, 2, [4])]
    assert cluster_sizes(found) == {2: 1, 3: 1}
    assert clusters(exact_duplicates([document(mcq("a")), document(mcq("b", answer="B"))])) == []


@pytest.mark.parametrize("limit", [minhash.LIMIT, 500])
def test_two_thousand_copies_are_one_cluster(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Each copy has one word of its own, so that no two are equal. Pairs looked at stay linear where the limit says."""
    monkeypatch.setattr(minhash, "LIMIT", limit)
    rows = [qa_words(f"{k:04}", [*range(100), 1000 + k]) for k in range(2000)]
    found = near_duplicates([document(r) for r in [*rows, qa_words("other", range(5000, 5100))]])
    assert [d.index for d in found.duplicates] == list(range(1, 2000))
    assert {d.survivor for d in found.duplicates} == {0}
    assert bool(found.large_buckets) is (limit == 500)
    assert found.candidates < 2_200_000  # there are 2,001,000 pairs, in each of 32 bands


def test_equal_texts_cost_no_more_than_their_number() -> None:
    rows = [qa(f"{k:04}", "a b c d" if k % 2 else "a b", "e f g" if k % 2 else "c d e f g") for k in range(3000)]
    found = near_duplicates([document(r) for r in rows])
    assert found.candidates == len(found.duplicates) == 2999


def test_pieces_of_large_buckets_lose_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets cut down to pieces of eight rows, nearly all that all pairs find is found."""
    rows = [
        qa_words(f"{k:03}", [*range(40), *range(1000 + k // 4 * 50, 1020 + k // 4 * 50), 9000 + k]) for k in range(400)
    ]
    docs = [document(r) for r in rows]
    complete = near_duplicates(docs)
    assert (complete.large_buckets, len(complete.duplicates)) == (0, 300)
    monkeypatch.setattr(minhash, "LIMIT", 8)
    monkeypatch.setattr(minhash, "SMALL", 4)
    cut = near_duplicates(docs)
    assert cut.large_buckets > 0
    assert {d.index for d in cut.duplicates} <= {d.index for d in complete.duplicates}
    assert len(cut.duplicates) >= 297


def test_nothing_in_nothing_out() -> None:
    assert exact_duplicates([]) == near_duplicates([]).duplicates == []
    assert near_duplicates([document(qa("a", "q", "b"))]).duplicates == []


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_union_find_roots_are_the_smallest_connected(pairs: list[tuple[int, int]]) -> None:
    union = UnionFind(30)
    for k in range(0, len(pairs), 7):
        some = np.array(pairs[k : k + 7])
        union.join(some[:, 0], some[:, 1])
    reach = np.eye(30, dtype=int)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = 1
    for _ in range(5):
        reach = (reach @ reach > 0).astype(int)
    assert union.roots(np.arange(30)).tolist() == reach.argmax(axis=1).tolist()
