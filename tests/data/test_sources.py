"""Loading rows: every declared shape, every file format, and what happens to a row that doesn't fit."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.data.folders import split_of
from aloe.data.seen import Seen
from aloe.data.sources import (
    load_attacks,
    load_preferences,
    load_questions,
    load_rows,
    question_of,
    read_rows,
    source_name,
)
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


# ---------------------------------------------------------------------------------------------- lazily


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(MCQ) + "\n" + json.dumps({**MCQ, "id": "q2"}) + "\n{\n")
    rows = read_rows(path, source="a", strict=True)
    assert [next(rows).id, next(rows).id] == ["q1", "q2"]
    with pytest.raises(AloeError, match="not valid JSON"):
        next(rows)
    assert len(list(read_rows(path, source="a", strict=True, limit=2))) == 2  # the broken line is not looked at


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """3,000 rows of 8 kB: 24 MB of text, read through in little more than a batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": f"What of {i}?", "answer": "word " * 1600} for i in range(3_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=500)
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in rows))
    del rows
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        tracemalloc.start()
        assert sum(1 for _ in read_rows(tmp_path / name, source="a")) == 3_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20, name


def test_both_readers_agree(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [MCQ, {**MCQ, "id": "bad", "answer": "E"}, {**MCQ, "id": "q2"}])
    records, dropped = load_rows(tmp_path / "a.jsonl", source="a")
    assert list(read_rows(tmp_path / "a.jsonl", source="a")) == [records[0], dropped[0], records[1]]


@given(st.lists(st.text(max_size=6), max_size=60), st.integers(1, 4).map(lambda n: 1 << n))
def test_ids_seen(names: list[str], slots: int) -> None:
    seen, plain = Seen(slots), dict[str, tuple[int, int]]()
    for number, name in enumerate(names):
        assert (name in seen) == (name in plain)
        seen.add(name, number % 3, number)
        plain.setdefault(name, (number % 3, number))
    assert {n: seen.place(n) for n in plain} == plain
    assert len(seen) == len(plain)


def test_rows_that_repeat_without_ids_are_numbered(tmp_path: Path) -> None:
    bare = {"question": "Hi?", "answer": "Yes."}
    records, _ = load(tmp_path, *[bare] * 400)
    first = records[0].id
    assert [r.id for r in records] == [first, *(f"{first}-{n}" for n in range(2, 401))]


# ---------------------------------------------------------------------------------------------- declared columns


def test_a_declared_mapping_renames_columns(tmp_path: Path) -> None:
    row = {"nr": 7, "stem": "Which?", "key": "B", "choice1": "Iron", "choice2": "Zinc", "why": "So.", "answer": "note"}
    columns = {"id": "nr", "question": "stem", "answer": "key", "A": "choice1", "B": "choice2", "explanation": "why"}
    record = one(tmp_path, row, columns=columns)
    assert record == Question(
        id="7", source="set", licence="unknown", meta={"column_answer": "note"}, question="Which?",
        options={"A": "Iron", "B": "Zinc"}, answer="B", explanation="So.",
    )  # fmt: skip
    (tmp_path / "a.csv").write_text("stem,key,choice1,choice2,why\nWhich?,B,Iron,Zinc,\nWhich?,A,Iron,Zinc,So.\n")
    del columns["id"]
    found, dropped = load_rows(tmp_path / "a.csv", source="a", columns=columns)
    assert not dropped
    assert [(r.answer, r.explanation) for r in found if isinstance(r, Question)] == [("B", ""), ("A", "So.")]


def test_a_mapping_that_does_not_fit_the_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"stem": "Hi?", "reply": "Yes."}])
    with pytest.raises(AloeError, match="no column 'text' in this file, to be read as 'answer'") as error:
        load_rows(tmp_path / "a.jsonl", source="a", columns={"question": "stem", "answer": "text"})
    assert error.value.where == str(tmp_path / "a.jsonl")
    assert error.value.fix == "its columns are ['reply', 'stem']"
    with pytest.raises(AloeError, match="no column of ours is called 'queston'"):
        read_rows(tmp_path / "a.jsonl", source="a", columns={"queston": "stem"})
    rows = [{"stem": "Hi?", "reply": "Yes."}, {"stem": "Hi again?", "reply": "Yes.", "tag": "greeting"}]
    write_jsonl(tmp_path / "b.jsonl", rows)  # a column that only some rows have is there
    found, _ = load_rows(
        tmp_path / "b.jsonl", source="b", columns={"question": "stem", "answer": "reply", "topic": "tag"}
    )
    assert [r.meta.get("topic") for r in found] == [None, "greeting"]


def test_a_shape_of_scored_completions_and_of_notes(tmp_path: Path) -> None:
    turns = [{"response": "Iron.", "overall_score": 2}, {"response": "Zinc.", "overall_score": 7.5}]
    record = one(tmp_path, {"instruction": "Name one.", "completions": turns})
    assert isinstance(record, Preference)
    assert (record.chosen, record.rejected) == ("Zinc.", "Iron.")
    record = one(tmp_path, {"dialogue": "Doctor: Hello.", "note": "Greeted.", "section": "PLAN"})
    assert record.meta == {"form": "dialogue_to_note", "slots": {"section": "PLAN"}}
    assert one(tmp_path, {"dialogue": "d", "note": "n", "section": None}).meta == {"form": "dialogue_to_note"}


def test_pairs_that_repeat_their_prompt(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "Q?"}
    whole = {
        "prompt": "Q?",
        "chosen": [ask, {"role": "assistant", "content": "good"}],
        "rejected": [ask, {"role": "assistant", "content": "bad"}],
    }
    record = one(tmp_path, {**whole, "messages": whole["chosen"]})
    assert (record.prompt, record.chosen, record.rejected, record.meta) == ([ask], "good", "bad", {})
    _, dropped = load(tmp_path, whole, {**whole, "prompt": "Other?"})
    assert [d.reason for d in dropped] == ["prompts_differ"]


# ---------------------------------------------------------------------------------------------- folders

ROWS = [{"question": f"What of {i}?", "answer": f"That, {i}."} for i in range(5)]


def asked(path: Path, **options: Any) -> list[str]:
    records, dropped = load_rows(path, source="s", **options)
    assert not dropped
    return [r.messages[0]["content"] for r in records if isinstance(r, Dialogue)]


def refusal(path: Path, **options: Any) -> AloeError:
    with pytest.raises(AloeError) as error:
        load_rows(path, source="s", **options)
    return error.value


def test_a_data_set_that_was_saved_to_disk(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from datasets import List as ListOf

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one", num_shards=2)
    assert asked(tmp_path / "one") == [r["question"] for r in ROWS]
    DatasetDict({"train": Dataset.from_list(ROWS[:3]), "test": Dataset.from_list(ROWS[3:])}).save_to_disk(
        tmp_path / "dict"
    )
    assert asked(tmp_path / "dict", split="test") == ["What of 3?", "What of 4?"]
    error = refusal(tmp_path / "dict")
    assert error.what == "this folder has several splits and none is named: test, train"
    assert error.fix == "name one (split: train), or a file of the folder"
    error = refusal(tmp_path / "dict", split="dev")
    assert (error.what, error.fix) == ("no split 'dev' in this folder", "use one of test, train")
    features = Features(
        {"question": Value("string"), "choices": ListOf(Value("string")), "answer": ClassLabel(names=["A", "B"])}
    )
    labelled = Dataset.from_list([{"question": "Q?", "choices": ["x", "y"], "answer": 1}], features=features)
    labelled.save_to_disk(tmp_path / "labels")
    [question] = load_questions(tmp_path / "labels")
    assert (question.options, question.answer) == ({"A": "x", "B": "y"}, "B")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    assert refusal(tmp_path / "one").what == "a file of the saved data set is missing"


def test_a_saved_file_that_is_cut(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS * 2000).save_to_disk(tmp_path / "one")
    [file] = (tmp_path / "one").glob("*.arrow")
    assert len(asked(file)) == 10_000
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error = refusal(tmp_path / "one")
    assert error.what.startswith("not an Arrow file that can be read (")
    assert error.where == str(file)


def test_a_hub_repository_by_the_names_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00002.parquet", ROWS[:2])
    write_parquet(folder / "train-00001-of-00002.parquet", ROWS[2:3])
    assert asked(tmp_path) == ["What of 0?", "What of 1?", "What of 2?"]  # one split needs no name
    write_parquet(folder / "validation-00000-of-00001.parquet", ROWS[3:4])
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert refusal(tmp_path).what == "this folder has several splits and none is named: train, validation"
    assert len(asked(tmp_path, split="train")) == 3
    assert asked(tmp_path, split="dev") == ["What of 3?"]  # `datasets` calls it validation
    record, _ = load_rows(tmp_path, source="s", split="validation", limit=1)
    write_jsonl(tmp_path / "more.jsonl", [*ROWS, {"question": "?", "answer": " "}])
    assert refusal(tmp_path).what.endswith("train, validation, and files without a split in their name")
    assert len(record) == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/test-00000-of-00001-a1b2.parquet", "test"),
        ("my_dev.csv", "validation"),
        ("validation/part1.jsonl.gz", "validation"),
        ("latest.jsonl", ""),
        ("training_and_test.jsonl", ""),
        ("constraint.jsonl", ""),
        ("medquad.jsonl", ""),
    ],
)
def test_splits_by_name(name: str, split: str) -> None:
    assert split_of(Path(name)) == split


def test_a_plain_folder_is_read_whole_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "b" / "c.jsonl", [ROWS[2], {"question": "Q?", "answer": ""}])
    records, dropped = load_rows(tmp_path, source="s")
    assert len(records) == 3
    assert [d.where for d in dropped] == ["b/c.jsonl:2"]
    write_jsonl(tmp_path / "b" / "c.jsonl", [{"id": 1, **ROWS[2]}])
    write_jsonl(tmp_path / "d.jsonl", [{"id": 1, **ROWS[3]}])
    error = refusal(tmp_path)
    assert error.what == f"id '1' was used before, at {tmp_path / 'b' / 'c.jsonl'}:1"
    assert refusal(tmp_path / "a.jsonl", split="train").what == "a single file has no split 'train'"


def test_a_hub_repository_by_its_card(tmp_path: Path) -> None:
    for name, rows in (("CareQA_en.json", ROWS[:2]), ("CareQA_es.json", ROWS[2:4]), ("open/test.json", ROWS[4:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(rows))
    (tmp_path / "README.md").write_text(
        "---\nlicense: apache-2.0\nconfigs:\n"
        "- config_name: en\n  data_files:\n  - {split: test, path: CareQA_en.json}\n"
        "- config_name: es\n  data_files:\n  - {split: test, path: 'CareQA_es*'}\n  - {split: dev, path: none.json}\n"
        "- config_name: open\n  data_files: open/*.json\n"
        "---\n# A set\n"
    )
    assert refusal(tmp_path).what == (
        "this folder has several splits and none is named: en/test, es/dev, es/test, open/train"
    )
    assert asked(tmp_path, split="es/test") == ["What of 2?", "What of 3?"]
    assert asked(tmp_path, split="en") == ["What of 0?", "What of 1?"]
    assert asked(tmp_path, split="train") == ["What of 4?"]
    error = refusal(tmp_path, split="test")
    assert (error.what, error.fix) == ("split 'test' is in several configurations", "use one of en/test, es/test")
    assert refusal(tmp_path, split="es/dev").what == "the split's files are not here"
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files: {train: [CareQA_en.json]}\n---\n")
    assert len(asked(tmp_path)) == 2
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files: ../secret.json\n---\n")
    assert refusal(tmp_path).what == "the pattern '../secret.json' leaves the folder"
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    assert refusal(tmp_path).what.startswith("the head is not valid YAML")
    (tmp_path / "README.md").write_text("# Only words\n")
    assert refusal(tmp_path).what.endswith("test, and files without a split in their name")
