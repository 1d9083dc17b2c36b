"""Loading rows: every declared shape, every file format, and what happens to a row that doesn't fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aloe.data.sources import load_attacks, load_preferences, load_questions, load_rows, question_of, source_name
from aloe.errors import AloeError
from aloe.records import AttackPrompt, Dialogue, Preference, Question, Row
from aloe.rows import write_jsonl, write_parquet, write_records

MCQ = {
    "id": "q1",
    "question": "Which vitamin prevents scurvy?",
    "options": {"A": "Vitamin C", "B": "Iron"},
    "answer": "A",
}


def load(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> tuple[list[Row], list[Any]]:
    path = tmp_path / "set.jsonl"
    write_jsonl(path, rows)
    return load_rows(path, source="set", **options)


def one(tmp_path: Path, row: dict[str, Any], **options: Any) -> Any:
    records, dropped = load(tmp_path, row, **options)
    assert not dropped
    return records[0]


def test_multiple_choice_with_map_and_letter(tmp_path: Path) -> None:
    row = one(tmp_path, {**MCQ, "topic": "nutrition", "explanation": "It does.", "licence": "MIT"})
    assert row == Question(
        id="q1", source="set", licence="mit", meta={"topic": "nutrition"}, question=MCQ["question"],
        options={"A": "Vitamin C", "B": "Iron"}, answer="A", explanation="It does.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"choices": ["x", "y", "z"], "answer": 2}, "C"),
        ({"options": ["x", "y", "z"], "answer": 0}, "A"),
        ({"options": ["x", "y", "z"], "answer": "b"}, "B"),
        ({"options": ["x", "y", "z"], "answer": "z"}, "C"),
        ({"opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 3}, "D"),
        ({"A": "x", "B": "y", "answer": "B"}, "B"),
        ({"options": {"A": "x", "B": "y"}, "answer": "x", "answer_idx": "A"}, "A"),
        ({"options": {"A": "x", "B": "y", "C": None}, "answer": "B"}, "B"),
        ({"options": {"A": "B", "B": "A"}, "answer": "B"}, "B"),  # lettered options: the letter is meant
    ],
)
def test_answers_by_letter_index_and_text(tmp_path: Path, row: dict[str, Any], letter: str) -> None:
    assert one(tmp_path, {"question": "Which?", **row}).answer == letter


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "E"}, "answer_not_in_options"),
        ({"answer": "Vitamin D"}, "answer_not_in_options"),
        ({"answer": None}, "no_answer"),
        ({"answer": 2}, "answer_not_in_options"),
        ({"answer": -1}, "answer_not_in_options"),
        ({"answer": "A or B"}, "answer_not_in_options"),
        ({"question": "  "}, "empty_question"),
        ({"options": {"A": "Vitamin C"}}, "too_few_options"),
        ({"options": {"A": "Vitamin C", "B": " "}}, "empty_option"),
        ({"options": ["B", "A"], "answer": "A"}, "ambiguous_answer"),
        ({"options": {"first": "x", "second": "y"}}, "bad_option_letters"),
        ({"answer": "Iron", "answer_idx": "A"}, "ambiguous_answer"),
    ],
)
def test_misfits_go_to_the_ledger_or_stop_a_strict_load(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    bad = {**MCQ, "id": "bad", **change}
    records, dropped = load(tmp_path, MCQ, bad)
    assert [r.id for r in records] == ["q1"]
    assert [(d.id, d.reason, d.where, d.stage) for d in dropped] == [("bad", reason, "set.jsonl:2", "load")]
    assert dropped[0].row["id"] == "bad"
    with pytest.raises(AloeError) as error:
        load(tmp_path, MCQ, bad, strict=True)
    assert str(error.value.where).endswith("set.jsonl:2")
    assert error.value.fix


def test_mangled_answer_is_repaired_and_said_so_but_never_when_strict(tmp_path: Path) -> None:
    row = {**MCQ, "answer": "Ans-[A]"}
    assert one(tmp_path, row).meta["repaired_answer"] == {"from": "Ans-[A]", "pattern": "ans_dash"}
    with pytest.raises(AloeError):
        one(tmp_path, row, strict=True)


def test_dialogue_shapes(tmp_path: Path) -> None:
    expected = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    shapes = (
        {"question": "Hi?", "answer": "Yes."},
        {"instruction": "Hi?", "input": "", "output": "Yes."},
        {"instruction": "Hi?", "answer": "Yes.", "task": "chat"},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]},
        {"messages": expected},
    )
    for shape in shapes:
        row = one(tmp_path, shape)
        assert isinstance(row, Dialogue)
        assert row.messages == expected
    assert one(tmp_path, {"instruction": "Sum up:", "input": "text", "output": "x"}).messages[0]["content"] == (
        "Sum up:\n\ntext"
    )


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("gpt", "Hi")], "turns_do_not_alternate"),
        ([("human", "Hi"), ("human", "you")], "turns_do_not_alternate"),
        ([("human", "Hi"), ("gpt", "x"), ("human", "bye")], "wrong_last_turn"),
        ([("human", "Hi"), ("tool", "x")], "unknown_role"),
        ([("human", "Hi"), ("gpt", " ")], "empty_turn"),
        ([], "no_messages"),
    ],
)
def test_broken_conversations_are_dropped(tmp_path: Path, turns: list[tuple[str, str]], reason: str) -> None:
    good = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}
    _, dropped = load(tmp_path, good, {"conversations": [{"from": f, "value": v} for f, v in turns]})
    assert [d.reason for d in dropped] == [reason]


def test_preference_shapes(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Q?"}]
    turn = {"role": "user", "content": "Q?"}
    shapes = (
        {"prompt": "Q?", "chosen": "good", "rejected": "bad"},
        {"messages": [{"from": "human", "value": "Q?"}], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        {"chosen": [turn, {"role": "assistant", "content": "good"}],
         "rejected": [turn, {"role": "assistant", "content": "bad"}]},
        {"chosen": "\n\nHuman: Q?\n\nAssistant: good", "rejected": "\n\nHuman: Q?\n\nAssistant: bad"},
    )  # fmt: skip
    for shape in shapes:
        row = one(tmp_path, shape)
        assert isinstance(row, Preference)
        assert (row.prompt, row.chosen, row.rejected) == (prompt, "good", "bad")
    _, dropped = load(tmp_path, shapes[0], {"prompt": "Q?", "chosen": "same", "rejected": "same"})
    assert [d.reason for d in dropped] == ["chosen_is_rejected"]


def test_attack_and_benign_look_alike(tmp_path: Path) -> None:
    harmful = one(tmp_path, {"id": "h", "topic": "privacy", "request": "R", "safe_response": "No.", "split": "train"})
    assert isinstance(harmful, AttackPrompt)
    assert (harmful.base_id, harmful.style, harmful.benign, harmful.split) == ("h", "plain", False, "train")
    assert (harmful.answer, harmful.prompt) == ("No.", [{"role": "user", "content": "R"}])
    benign = one(tmp_path, {"id": "b", "kind": "medical", "topic": "t", "request": "R", "answer": "Sure."})
    assert (benign.benign, benign.answer, benign.style, benign.meta["kind"]) == (True, "Sure.", "plain", "medical")
    assert one(tmp_path, {"id": "x", "prompt": "R", "label": "safe"}).benign


def test_ids(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="used before") as error:
        load(tmp_path, MCQ, MCQ)
    assert str(error.value.where).endswith(":2")
    records, _ = load(tmp_path, MCQ, MCQ, ids="content")
    assert len({r.id for r in records}) == 2
    assert {r.meta["original_id"] for r in records} == {"q1"}
    bare = {"question": "Hi?", "answer": "Yes."}
    first, second = load(tmp_path, bare, bare)[0]
    assert second.id == f"{first.id}-2"


def test_row_states_its_source_and_licence_argument_wins(tmp_path: Path) -> None:
    row = one(tmp_path, {**MCQ, "source": "medqa", "licence": "MIT"}, licence="cc0-1.0")
    assert (row.source, row.licence) == ("medqa", "cc0-1.0")
    assert one(tmp_path, MCQ).licence == "unknown"


def test_limit_and_kind(tmp_path: Path) -> None:
    assert len(load(tmp_path, MCQ, {**MCQ, "id": "q2"}, limit=1)[0]) == 1
    with pytest.raises(AloeError, match="expected preference"):
        load(tmp_path, MCQ, kind="preference")
    with pytest.raises(AloeError, match="no known row shape"):
        load(tmp_path, {"text": "x"})


def test_formats_agree(tmp_path: Path) -> None:
    row = {**MCQ, "topic": "nutrition"}
    write_jsonl(tmp_path / "a.jsonl", [row])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write(json.dumps(row) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([row]))
    write_parquet(tmp_path / "a.parquet", [row])
    cells = {**row, "options": json.dumps(row["options"])}
    (tmp_path / "a.csv").write_text(
        ",".join(cells) + "\n" + ",".join('"' + str(v).replace('"', '""') + '"' for v in cells.values()) + "\n"
    )
    expected = load_rows(tmp_path / "a.jsonl", source="a")
    for suffix in ("jsonl.gz", "json", "parquet", "csv"):
        assert load_rows(tmp_path / f"a.{suffix}", source="a") == expected


def test_csv_index_answer_and_ragged_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,A,B,answer\nWhich?,x,y,1\n")
    assert load_questions(tmp_path / "a.csv")[0].answer == "B"
    (tmp_path / "b.csv").write_text("question,answer\nWhich?,x,y\n")
    with pytest.raises(AloeError, match="header"):
        load_rows(tmp_path / "b.csv", source="b")


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, cause in (
        ("empty.jsonl", "no rows"),
        ("none.jsonl", "no such file"),
        ("notes.txt", "not a kind of file"),
    ):
        with pytest.raises(AloeError, match=cause):
            load_rows(tmp_path / name, source="x")
    with pytest.raises(AloeError, match="no data files"):
        load_rows(tmp_path / "folder", source="x")


@pytest.mark.parametrize(
    "record",
    [
        Question(id="a", source="s", licence="mit", question="Q?", options={"A": "x", "B": "y"}, answer="B",
                 context="c", explanation="e", meta={"topic": "t", "n": [1, 2]}),
        Dialogue(id="a", source="s", licence="mit", meta={"task": "x"},
                 messages=[{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]),
        Preference(id="a", source="s", licence="mit", prompt=[{"role": "user", "content": "u"}], chosen="c",
                   rejected="r", meta={"kind": "k"}),
        AttackPrompt(id="a/dan", source="s", licence="mit", base_id="a", topic="t", style="dan", request="R",
                     prompt=[{"role": "user", "content": "Be DAN. R"}], answer="No.", split="train"),
    ],
)  # fmt: skip
def test_artifact_rows_come_back_as_written(tmp_path: Path, record: Row) -> None:
    write_records(tmp_path / "rows.parquet", [record])
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "dropped.parquet").write_bytes(b"not read")
    assert load_rows(tmp_path, source="other") == ([record], [])


def test_questions_of_a_dialogues_artifact(tmp_path: Path) -> None:
    question = Question(id="a", source="s", licence="mit", question="Q?", options={"A": "x", "B": "y"}, answer="B")
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
    made = Dialogue(id="set:a", source="s", licence="mit", messages=turns, meta={"question": question.to_dict()})
    other = Dialogue(id="set:b", source="s", licence="mit", messages=turns)
    write_records(tmp_path / "rows.parquet", [made, other])
    found = load_questions(tmp_path)
    assert [q.id for q in found] == ["set:a"]
    assert question_of(other) is None
    _, dropped = load_rows(tmp_path, source="s", kind="question")
    assert [d.reason for d in dropped] == ["not_a_question"]


def test_typed_loaders_and_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Q?", "chosen": "good", "rejected": "bad"}])
    write_jsonl(tmp_path / "asks.jsonl", [{"request": "R", "safe_response": "No."}])
    assert load_preferences(tmp_path / "pairs.jsonl")[0].source == "pairs"
    assert load_attacks(tmp_path / "asks.jsonl", source="red")[0].source == "red"
    with pytest.raises(AloeError, match="no multiple-choice"):
        load_questions(tmp_path / "pairs.jsonl")
    assert source_name("data/x/medquad.jsonl.gz") == "medquad"
    assert source_name("starter/exam") == "starter/exam"
    assert source_name("org/set@main::train") == "org/set@main::train"
