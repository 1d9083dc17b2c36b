"""Exemplar stores on disk, and the commands that build, show and merge them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_exemplars import STORE, Words, question
from typer.testing import CliRunner

from aloe.cli import app
from aloe.errors import AloeError
from aloe.generate.encoders import TfidfEncoder
from aloe.prompting.exemplars import Exemplar, ExemplarStore
from aloe.prompting.library import load_prompt
from aloe.prompting.store_files import is_store, merge_stores, open_store, read_record, write_store
from aloe.records import Question
from aloe.rows import read_parquet

OPTIONS = {"A": "aspirin", "B": "heparin", "C": "insulin", "D": "lithium"}
STEMS = [
    "Which drug thins the blood of a patient with a clot in the leg?",
    "Which drug lowers the sugar of a patient in a diabetic coma?",
    "Which drug steadies the mood of a patient with mania?",
    "Which drug stops platelets after a heart attack?",
    "A child swallows tablets and vomits; which drug was it?",
]


def row(
    i: int, stem: str, split: str = "train", explanation: str = "It is known to act so.", **more: Any
) -> dict[str, Any]:
    return {
        "id": f"q{i}", "source": "made", "licence": "cc0-1.0", "question": stem, "options": OPTIONS, "answer": "B",
        "explanation": explanation, "meta": {"split": split}, **more,
    }  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    made = [row(i, stem) for i, stem in enumerate(STEMS)]
    made.append(row(5, "A row of the other split about kidneys?", split="dev"))
    made.append(row(6, "A row without reasoning about lungs?", explanation=""))
    made.append(row(7, "A row against its label about bones?", explanation="The answer is C."))
    return write_rows(tmp_path / "rows.jsonl", made)


def invoke(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["exemplars", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.output)


def build(rows: Path, out: Path, *more: Any) -> str:
    return invoke("build", rows, out, "--embedder", "tfidf", *more)


def test_a_store_says_what_it_holds_and_what_was_left_out(rows: Path, tmp_path: Path) -> None:
    assert not is_store(tmp_path)
    build(rows, tmp_path / "s", "--where", "split=train")
    assert is_store(tmp_path / "s")
    record = read_record(tmp_path / "s")
    assert record.count == 5
    assert record.dropped == {"no reasoning": 1, "not split=train": 1, "reasoning contradicts the label": 1}
    assert record.licences == {"cc0-1.0": 5}
    assert record.prompt == {"name": "cot", "digest": load_prompt("cot").digest}
    dropped = {r["id"]: r["reason"] for r in read_parquet(tmp_path / "s" / "dropped.parquet")}
    assert dropped["q7"] == "reasoning contradicts the label"
    shown = invoke("show", tmp_path / "s")
    assert "5 exemplars" in shown
    assert record.encoder["digest"] in shown
    near = invoke("show", tmp_path / "s", "--near", "a clot in the leg of a patient", "--shots", "2")
    assert near.split()[1] == "q0"


def test_an_opened_store_is_the_store_that_was_written(rows: Path, tmp_path: Path) -> None:
    build(rows, tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert store.digest == read_record(tmp_path / "s").digest
    fresh = ExemplarStore(store.exemplars, TfidfEncoder.fit([e.question.question for e in store.exemplars]))
    assert fresh.digest == store.digest
    asked = [question("x", "Which drug for a clot in the leg?"), question("y", "mania and mood")]
    assert open_store(tmp_path / "s").nearest(asked, 3) == fresh.nearest(asked, 3)
    assert store.fixed(asked, 2, seed=3) == fresh.fixed(asked, 2, seed=3)


def test_the_order_of_the_rows_changes_nothing(rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines(keepends=True)
    (tmp_path / "turned").mkdir()
    turned = tmp_path / "turned" / "rows.jsonl"
    turned.write_text("".join(reversed(lines)))
    build(rows, tmp_path / "a")
    build(turned, tmp_path / "b")
    first, second = read_record(tmp_path / "a"), read_record(tmp_path / "b")
    assert first.digest == second.digest
    for name in ("rows.parquet", "vectors.safetensors", "tfidf.json"):
        assert first.files[name] == second.files[name]


def test_exemplars_that_are_benchmark_items_are_listed_and_left_out(rows: Path, tmp_path: Path) -> None:
    bench = [row(90, STEMS[1].upper().rstrip("?")), row(91, STEMS[3] + " Which?"), row(92, "Nothing like the others?")]
    exam = write_rows(tmp_path / "exam.jsonl", bench)
    told = build(rows, tmp_path / "s", "--exclude", exam)
    assert "overlap: q1" in told
    record = read_record(tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert "q1" not in store.ids
    assert record.dropped["overlaps a benchmark"] == len([i for i in ("q1", "q3") if i not in store.ids])
    [entry] = record.excluded
    assert (entry["questions"], entry["left_out"]) == (3, record.dropped["overlaps a benchmark"])
    refit = TfidfEncoder.fit([e.question.question for e in store.exemplars])
    assert record.encoder["digest"] == refit.digest  # nothing of what was left out is in the vocabulary


def test_leaks_are_all_found_in_blocks_of_any_height(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [question("same", "ALPHA beta, gamma delta"), question("turned", "w v u alpha"), question("far", "zzz")]
    whole = STORE.leaks(asked)
    assert {i: q for i, (q, _) in whole.items()} == {"e0": "same", "e3": "turned"}
    monkeypatch.setattr("aloe.prompting.exemplars.CELLS", 1)
    assert STORE.leaks(asked) == whole
    assert [STORE.nearest([q], 2)[0] for q in asked] == STORE.nearest(asked, 2)


def test_equal_cosines_at_the_edge_of_the_candidates_are_told_apart_by_id() -> None:
    far = [Exemplar(question(f"n{i:03}", "alpha beta"), "Because.") for i in range(200)]
    for order in (far, far[::-1]):  # 200 rows with one cosine; the lowest ids must win whatever their places
        (shots,) = ExemplarStore(order, Words()).nearest([question("q", "alpha gamma")], 3)
        assert [s.exemplar.question.id for s in shots] == ["n002", "n001", "n000"]


def test_a_reranker_orders_the_nearest_and_enters_the_protocol() -> None:
    class Shortest:
        digest = "shortest"

        def score(self, pairs: Any) -> Any:
            return np.array([-len(stem) for _, stem in pairs], dtype=np.float32)

    plain = ExemplarStore(STORE.exemplars, Words())
    ranked = ExemplarStore(STORE.exemplars, Words(), reranker=Shortest(), rerank_top=4)
    asked = [question("q", "alpha beta gamma q"), question("r", "k l x")]
    near = {s.exemplar.question.id for s in plain.nearest(asked[:1], 4)[0]}
    shots = ranked.nearest(asked, 2)[0]
    lengths = [len(s.exemplar.question.question) for s in shots]
    assert {s.exemplar.question.id for s in shots} <= near
    assert lengths == sorted(lengths, reverse=True)  # what it scores highest stands last
    assert lengths[-1] == min(len(e.question.question) for e in STORE.exemplars if e.question.id in near)
    assert ranked.protocol() == plain.protocol() | {"reranker_digest": "shortest", "rerank_top": 4}
    assert [ranked.nearest([q], 2)[0] for q in asked] == ranked.nearest(asked, 2)


def test_files_that_are_not_the_ones_written_are_refused(rows: Path, tmp_path: Path) -> None:
    build(rows, tmp_path / "s")
    with pytest.raises(AloeError, match="there is something already"):
        build(rows, tmp_path / "s")
    path = tmp_path / "s" / "vectors.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"abcd")
    with pytest.raises(AloeError, match=r"vectors\.safetensors is not the file"):
        open_store(tmp_path / "s")
    path.unlink()
    with pytest.raises(AloeError, match=r"vectors\.safetensors"):
        open_store(tmp_path / "s")
    with pytest.raises(AloeError, match="no exemplar store"):
        open_store(tmp_path)
    manifest = tmp_path / "s" / "store.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 9}))
    with pytest.raises(AloeError, match=r"(?s)exemplar store is 9.*upgrade aloe-llm"):
        open_store(tmp_path / "s")


def test_another_encoder_embeds_anew_and_says_so(rows: Path, tmp_path: Path) -> None:
    build(rows, tmp_path / "s")
    notes: list[str] = []
    store = open_store(tmp_path / "s", Words(), say=notes.append)
    assert "vectors" not in vars(store)  # only when they are needed
    [note] = notes
    assert "computed anew" in note
    np.testing.assert_array_equal(store.vectors, Words().encode([e.question.question for e in store.exemplars]))
    open_store(tmp_path / "s", say=notes.append)
    assert len(notes) == 1


def test_two_stores_merge_and_what_both_have_enters_once(rows: Path, tmp_path: Path) -> None:
    more = write_rows(tmp_path / "more.jsonl", [row(0, STEMS[0]), row(20, "Which drug for gout of the toe?")])
    build(rows, tmp_path / "a")
    build(more, tmp_path / "b")
    told = invoke("merge", tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert "fitted anew" in told
    merged = open_store(tmp_path / "c")
    assert sorted(merged.ids) == sorted({*open_store(tmp_path / "a").ids, "q20"})
    merge_stores(tmp_path / "b", tmp_path / "a", tmp_path / "d", say=lambda note: None)
    assert read_record(tmp_path / "d").digest == merged.digest
    assert (
        read_record(tmp_path / "d").files["vectors.safetensors"]
        == read_record(tmp_path / "c").files["vectors.safetensors"]
    )


def other_reasoning(folder: Path) -> Path:
    return write_rows(folder / "other.jsonl", [row(0, STEMS[0], explanation="Quite another reason.")])


def test_one_id_with_two_contents_is_refused(rows: Path, tmp_path: Path) -> None:
    build(rows, tmp_path / "a")
    build(other_reasoning(tmp_path), tmp_path / "b")
    with pytest.raises(AloeError, match=r"q0: .* different exemplars"):
        merge_stores(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_stores_of_different_encoders_are_refused_by_name(rows: Path, tmp_path: Path) -> None:
    build(rows, tmp_path / "a")
    write_store(tmp_path / "b", STORE, encoder_name="words")
    with pytest.raises(AloeError, match=r"tfidf \(.*\) and words \(words\)"):
        merge_stores(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    with pytest.raises(AloeError, match="--embedder"):
        open_store(tmp_path / "b")  # nothing of the name `words` can be opened
    assert open_store(tmp_path / "b", Words()).digest == STORE.digest


def test_merging_says_when_a_benchmark_was_checked_for_one_alone(rows: Path, tmp_path: Path) -> None:
    exam = write_rows(tmp_path / "exam.jsonl", [row(90, STEMS[1])])
    build(rows, tmp_path / "a", "--exclude", exam)
    build(write_rows(tmp_path / "more.jsonl", [row(20, "Which drug for gout?")]), tmp_path / "b")
    notes: list[str] = []
    record = merge_stores(tmp_path / "a", tmp_path / "b", tmp_path / "c", say=notes.append)
    assert record.excluded[0]["only"] == str(tmp_path / "a")
    assert any("only" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "split=test"], r"no row has split=test\n.*train \(7\)"),
        (["--where", "split"], "no condition"),
        (["--exclude", "nowhere.jsonl"], "no such rows"),
        (["--pooling", "cls"], "states its own"),
        (["--pooling", "max"], "no pooling"),
    ],
)
def test_mistakes_are_told_before_anything_is_embedded(
    rows: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(AloeError, match=message):
        build(rows, tmp_path / "s", *arguments)
    assert not (tmp_path / "s").exists()


def test_rows_that_give_no_exemplar_say_why(tmp_path: Path) -> None:
    bare = write_rows(tmp_path / "bare.jsonl", [row(i, stem, explanation="") for i, stem in enumerate(STEMS)])
    with pytest.raises(AloeError, match="5 no reasoning"):
        build(bare, tmp_path / "s")
    leaked: Callable[[], str] = lambda: build(  # noqa: E731
        write_rows(tmp_path / "one.jsonl", [row(0, STEMS[0])]), tmp_path / "t", "--exclude", bare
    )
    with pytest.raises(AloeError, match="no exemplar is left"):
        leaked()


def test_a_large_store_is_searched_exactly_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Given:
        """Vectors by the number in the text."""

        digest = "given"
        table = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)

        def encode(self, texts: Any) -> Any:
            rows = self.table[[int(text.split()[-1]) for text in texts]]
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    import aloe.prompting.exemplars as module

    exemplars = [Exemplar.checked(question(f"r{i:04}", f"row {i}"), "Because.") for i in range(2900)]
    store = ExemplarStore(exemplars, Given())
    heights: list[int] = []
    product = module.product
    monkeypatch.setattr(module, "CELLS", 2900 * 7)
    monkeypatch.setattr(module, "product", lambda a, b: (heights.append(a.shape[0]), product(a, b))[1])
    asked = [question(f"q{i}", f"asked {i}") for i in range(2900, 2950)]
    found = store.nearest(asked, 5)
    assert max(heights) == 7
    vectors = store.vectors.astype(np.float64)
    for q, shots in zip(asked, found, strict=True):
        cosines = vectors @ Given().encode([q.question])[0].astype(np.float64)
        assert [s.exemplar.question.id for s in reversed(shots)] == [f"r{i:04}" for i in np.argsort(-cosines)[:5]]


def test_questions_of_a_store_keep_their_fields(tmp_path: Path) -> None:
    asked = Question(
        id="x", source="s", licence="mit", question="What {is} this?", options={"A": "one", "B": "two"}, answer="B",
        context="A passage.", explanation="Because.\n\nAnswer: B", meta={"split": "train", "n": [1, {"k": None}]},
    )  # fmt: skip
    write_store(tmp_path / "s", ExemplarStore([Exemplar(asked, "Because.")], Words()), encoder_name="words")
    assert open_store(tmp_path / "s", Words()).exemplars == [Exemplar(asked, "Because.")]
