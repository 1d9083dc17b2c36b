"""Packing of examples, and the readers of training rows with their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe.errors import AloeError
from aloe.models.packed import Tree
from aloe.records import Dialogue, Preference
from aloe.rows import write_jsonl, write_records
from aloe.train.packing import Example, pack, read_dialogues, read_preferences


def dialogue(key: str, tokens: int) -> Example:
    return Example(key, Tree(list(range(1, tokens + 1))), [False] + [True] * (tokens - 1))


def test_every_scored_token_is_predicted_by_the_one_before_it() -> None:
    pair = Example("p", Tree([10, 11, 12], [[20, 21], [30]]), [False] * 3 + [True] * 3)
    (row,) = pack([dialogue("d", 4), pair], [0, 1], width=20, pad_id=0)
    assert row.members == [1, 0]  # longest first
    assert row.layout.ids.tolist() == [10, 11, 12, 20, 21, 30, 1, 2, 3, 4]
    assert row.targets.tolist() == [20, 21, 30, 2, 3, 4]
    assert row.sources.tolist() == [2, 3, 2, 6, 7, 8]  # both branches start from the prompt's last token
    assert row.sequence.tolist() == [0, 0, 1, 2, 2, 2]
    assert row.sequences == 3
    assert row.padding == 0


def test_rows_keep_to_the_width_and_lose_no_example() -> None:
    rows = [dialogue(str(i), 2 + i % 9) for i in range(40)]
    packed = pack(rows, range(40), width=16, pad_id=0, multiple=8)
    assert sorted(i for row in packed for i in row.members) == list(range(40))
    assert all(len(row.layout.ids) <= 16 and len(row.layout.ids) % 8 == 0 for row in packed)


def test_an_example_wider_than_the_width_has_a_row_of_its_own() -> None:
    packed = pack([dialogue("a", 3), dialogue("b", 30), dialogue("c", 3)], [0, 1, 2], width=8, pad_id=0)
    assert [row.members for row in packed] == [[1], [0, 2]]
    assert len(packed[0].layout.ids) == 30


def test_examples_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no token to train on"):
        Example("x", Tree([1, 2]), [False, False])
    with pytest.raises(ValueError, match="nothing comes before"):
        Example("x", Tree([1, 2]), [True, True])
    with pytest.raises(ValueError, match="flags"):
        Example("x", Tree([1, 2]), [True])


def test_reads_records_and_plain_rows_alike(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_records(tmp_path / "d.parquet", [Dialogue(id="1", source="s", licence="cc0-1.0", messages=turns)])
    write_jsonl(tmp_path / "d.jsonl", [{"messages": turns}])
    (stored,), (plain,) = read_dialogues(tmp_path / "d.parquet"), read_dialogues(tmp_path / "d.jsonl")
    assert (stored.key, stored.licence) == ("s/1", "cc0-1.0")
    assert stored.messages == plain.messages == turns
    assert plain.where.endswith("d.jsonl:1")
    preference = Preference(id="1", source="s", licence="mit", prompt=turns[:1], chosen="a", rejected="b")
    write_records(tmp_path / "p.parquet", [preference])
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "source": "s", "prompt": "q", "chosen": "a", "rejected": "b"}])
    (stored,), (plain,) = read_preferences(tmp_path / "p.parquet"), read_preferences(tmp_path / "p.jsonl")
    assert (stored.key, stored.messages, stored.chosen) == (plain.key, plain.messages, plain.chosen)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q", "answer": "a"}, "no field 'messages'"),
        ({"messages": "q"}, "list of messages"),
        ({"messages": [{"role": "human", "content": "q"}]}, r"messages\[0\] has the role 'human'"),
        ({"messages": [{"role": "user", "content": " "}]}, r"messages\[0\] has no content"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no assistant turn"),
    ],
)
def test_a_bad_dialogue_is_named_by_file_and_row(tmp_path: Path, row: dict[str, object], message: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(AloeError, match=message) as caught:
        list(read_dialogues(tmp_path / "rows.jsonl"))
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: ")
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ""}, "chosen must be a text"),
        ({"rejected": 3}, "rejected must be a text"),
        ({"rejected": "a"}, "same text"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "ends with an assistant turn"),
        ({"prompt": []}, "list of messages"),
    ],
)
def test_a_bad_pair_is_named_by_file_and_row(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", **change}])
    with pytest.raises(AloeError, match=message) as caught:
        list(read_preferences(tmp_path / "rows.jsonl"))
    assert f"{tmp_path / 'rows.jsonl'}:1" in str(caught.value)


def test_preferences_as_two_conversations_share_their_prompt(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Fever?"}]
    row = {
        "chosen": [*asked, {"role": "assistant", "content": "Rest."}],
        "rejected": [*asked, {"role": "assistant", "content": "Whatever."}],
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [read] = read_preferences(path)
    assert (read.messages, read.chosen, read.rejected) == (asked, "Rest.", "Whatever.")
    row["rejected"] = [{"role": "user", "content": "Cough?"}, {"role": "assistant", "content": "Whatever."}]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(AloeError, match="don't share the conversation"):
        list(read_preferences(path))


def test_transcripts_and_turns_as_others_write_them(tmp_path: Path) -> None:
    """hh-rlhf's texts with their speakers in them, and ShareGPT's `from` and `value`, say the same pair."""
    asked = [{"role": "user", "content": "Fever?"}, {"role": "assistant", "content": "How high?"},
             {"role": "user", "content": "39"}]  # fmt: skip
    before = "\n\nHuman: Fever?\n\nAssistant: How high?\n\nHuman: 39\n\nAssistant: "
    path = tmp_path / "pairs.jsonl"
    turns = [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in asked]
    answers = {"chosen": {"from": "gpt", "value": "Drink."}, "rejected": {"from": "gpt", "value": "No."}}
    for row in ({"chosen": before + "Drink.", "rejected": before + "No."}, {"messages": turns, **answers}):
        write_jsonl(path, [row])
        [read] = read_preferences(path)
        assert (read.messages, read.chosen, read.rejected) == (asked, "Drink.", "No.")


def test_rows_that_are_no_pairs_are_told_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "Fever?", "chosen": "Rest.", "rejected": "No."}
    blank = "\n\nHuman: Fever?\n\nAssistant:"
    rows = [good, {"id": "b", "chosen": blank, "rejected": blank + " No."}, {**good, "id": "c", "chosen": "No."}]
    write_jsonl(path, rows)
    told: list[tuple[str, int, str]] = []
    assert len(list(read_preferences(path, lambda *what: told.append(what)))) == 1
    assert [(key, number) for key, number, _ in told] == [("b", 2), ("c", 3)]
    write_jsonl(path, [{"prompt": "Fever?", "chosen": "Rest."}])
    with pytest.raises(AloeError, match="no field 'rejected'"):  # every row of the file would be passed over
        list(read_preferences(path, lambda *what: None))
