"""Bad input: every way a file or a row can be wrong, with what is said of it. Nothing is lost without a word."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.files import MAX_ROW_BYTES, SUFFIXES, Broken, read_file
from aloe.data.sources import Dropped, load_rows, read_rows
from aloe.errors import AloeError
from aloe.records import Dialogue, Question, Row
from aloe.rows import byte_lines, read_dicts, read_jsonl, read_parquet


def qa(i: int, answer: str = "Rest helps.") -> dict[str, Any]:
    return {"id": f"q{i}", "question": f"What helps {i}?", "answer": answer}


def lines(*rows: dict[str, Any] | bytes) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


def read(path: Path, **options: Any) -> tuple[list[Row], list[Dropped]]:
    found = list(read_rows(path, source="set", **options))
    return [r for r in found if isinstance(r, Row)], [d for d in found if isinstance(d, Dropped)]


def refused(path: Path, **options: Any) -> AloeError:
    with pytest.raises(AloeError) as error:
        read(path, **options)
    assert error.value.fix
    return error.value


# ---------------------------------------------------------------------------------------------- lines

BAD_LINES = [
    (b'{"id": "x", "question": "caf\xe9?", "answer": "y"}', "not_utf8", "byte 0xe9 at column 29 is not UTF-8"),
    (b'{"id": "x", "question": "a\x00b", "answer": "y"}', "nul_bytes", "a NUL byte at column 27"),
    (b'{"id": "x", "question": "a\\u0000b", "answer": "y"}', "nul_bytes", "a text holds a NUL character"),
    (b'{"id": "x", "question": "a\\ud800b", "answer": "y"}', "not_utf8", "the lone surrogate U+D800 is not UTF-8"),
    (b'{"id": "x", "question": ', "not_json", "not valid JSON (Expecting value at column 25)"),
    (b'["a", "b"]', "not_an_object", "expected an object, found list"),
    (b"null", "not_an_object", "expected an object, found NoneType"),
    (b"[" * 100_000, "not_json", "not valid JSON (nested too deeply)"),
    (b'{"id": ' + b"9" * 5000 + b"}", "not_json", "not valid JSON (Exceeds the limit (4300 digits)"),
    (b'{"id": "x", "question": "' + b"a" * MAX_ROW_BYTES + b'"}', "row_too_long",
     "the row has 4,194,332 bytes; at most 4,194,304 are read"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD_LINES, ids=lambda v: v[:20] if isinstance(v, str) else "")
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_bad_line_is_in_the_ledger_and_reading_goes_on(
    tmp_path: Path, bad: bytes, reason: str, detail: str, suffix: str
) -> None:
    path = tmp_path / f"set.{suffix}"
    data = lines(qa(1), bad, qa(3))
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    kept, dropped = read(path)
    assert [r.id for r in kept] == ["q1", "q3"]
    [d] = dropped
    assert (d.id, d.source, d.stage, d.reason, d.where) == (f"{path.name}:2", "set", "load", reason, f"{path.name}:2")
    assert d.detail.startswith(detail)
    assert len(json.dumps(d.row)) < 2000, "a ledger doesn't carry megabytes"
    error = refused(path, strict=True)
    assert error.where == f"{path}:2"
    assert error.what.startswith(detail)


def test_a_strict_list_of_rows_names_the_line(tmp_path: Path) -> None:
    """`load_rows` reads what training and evaluation rest on: an unreadable row is an error there, strict or not."""
    (tmp_path / "a.jsonl").write_bytes(lines(qa(1), b"{"))
    for strict in (True, False):
        with pytest.raises(AloeError, match="not valid JSON") as error:
            load_rows(tmp_path / "a.jsonl", source="s", strict=strict)
        assert str(error.value.where).endswith("a.jsonl:2")


def test_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    for name, data in (
        ("a.jsonl", lines(qa(1))),
        ("a.json", json.dumps([qa(1)]).encode()),
        ("a.csv", b"id,question,answer\nq1,What helps 1?,Rest helps.\n"),
        ("a.tsv", b"id\tquestion\tanswer\nq1\tWhat helps 1?\tRest helps.\n"),
    ):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
        kept, dropped = read(tmp_path / name)
        assert [r.id for r in kept] == ["q1"], name
        assert not dropped
    assert next(read_jsonl(tmp_path / "a.jsonl"))[1]["id"] == "q1"


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")],
)
def test_another_encoding_of_the_whole_file_is_named(tmp_path: Path, encoding: str, name: str) -> None:
    for suffix, text in (("jsonl", json.dumps(qa(1)) + "\n"), ("csv", "question,answer\nQ?,A.\n")):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(text.encode(encoding))
        error = refused(path)
        assert error.what == f"the file is in {name}, not UTF-8"
        assert error.fix == f"convert it: iconv -f {name} -t UTF-8 IN > OUT"


def test_old_line_ends_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"question,answer\rQ?,A.\r")
    assert refused(tmp_path / "a.csv").what == "lines end in a carriage return alone"
    (tmp_path / "b.jsonl").write_bytes(lines(qa(1), qa(2)).replace(b"\n", b"\r\n"))
    assert len(read(tmp_path / "b.jsonl")[0]) == 2


def test_a_file_of_which_little_can_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*[b"{"] * 20, *map(qa, range(100))))
    assert refused(path).what.startswith("20 of 20 rows can't be read, the first: a.jsonl:1: not valid JSON")
    path.write_bytes(lines(*[b"{"] * 19, *map(qa, range(100))))
    assert len(read(path)[1]) == 19
    path.write_bytes(lines(qa(1), qa(2), b"{", b"{", b"\xff"))
    assert refused(path).what.startswith("3 of 5 rows can't be read, the first: a.jsonl:3: not valid JSON")
    path.write_bytes(lines(qa(1), b"{"))
    assert len(read(path)[1]) == 1, "half is not more than half"


def test_latin_1_in_some_lines_costs_those_lines(tmp_path: Path) -> None:
    rows = [json.dumps(qa(i, "Café" if i % 3 else "x"), ensure_ascii=False) for i in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(r.encode("latin-1" if i % 3 == 1 else "utf-8") for i, r in enumerate(rows)) + b"\n")
    kept, dropped = read(path)
    assert [d.where for d in dropped] == ["a.jsonl:2", "a.jsonl:5", "a.jsonl:8"]
    assert len(kept) == 6


def test_a_huge_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as handle:
        handle.write(lines(qa(1)) + b'{"id": "huge", "question": "')
        for _ in range(64):
            handle.write(b"a" * (1 << 20))
        handle.write(b'"}\n' + lines(qa(2)))
    tracemalloc.start()
    kept, dropped = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.id for r in kept] == ["q1", "q2"]
    assert [d.reason for d in dropped] == ["row_too_long"]
    assert dropped[0].detail.startswith("the row has 67,108,895 bytes")
    assert peak < 24 << 20


# ---------------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    assert refused(path).what == "no rows: the file is empty (0 bytes)"
    assert refused(tmp_path / f"missing{suffix}").what == "no such file"


def test_a_file_without_rows(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "\n \n"), ("a.json", "[]"), ("b.json", " \n"), ("a.csv", "question,answer\n")):
        (tmp_path / name).write_text(text)
        assert refused(tmp_path / name).what == "no rows"
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").what == "no rows"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.json.gz"])
def test_compressed_data_that_ends_in_the_middle(tmp_path: Path, name: str) -> None:
    rows = [qa(i, f"Answer number {i * 7919 % 1000}.") for i in range(5000)]
    text = {
        ".jsonl": lines(*rows),
        ".csv": b"id,question,answer\n" + b"".join(f"{','.join(r.values())}\n".encode() for r in rows),
        ".json": json.dumps(rows).encode(),
    }[Path(name).suffixes[0]]
    path = tmp_path / name
    with pa.output_stream(str(path), compression="gzip" if name.endswith("gz") else "zstd") as out:
        out.write(text)
    assert len(read(path)[0]) == 5000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused(path)
    assert error.where == str(path)
    assert error.what.startswith("the compressed file ends in the middle: ")
    assert error.fix == "fetch or copy the file again; nothing of a cut file is used"
    if name == "a.jsonl.gz":
        read_before = int(error.what.split(": ")[1].split()[0])
        assert 1000 < read_before < 5000
        with pytest.raises(AloeError, match="ends in the middle"):
            list(read_dicts(path))


def test_compressed_data_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(lines(qa(1)))
    assert refused(path).what.startswith("the compressed file is damaged or not gz data (Not a gzipped file")
    whole = bytearray(gzip.compress(lines(*map(qa, range(2000)))))
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    assert "the compressed file is damaged" in refused(path).what


@pytest.mark.parametrize("damage", ["no parquet", "cut", "flipped"])
def test_a_damaged_parquet_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    rows = [qa(i, f"Answer {i * 7919 % 1000} of many.") for i in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500, compression="zstd")
    assert len(read(path)[0]) == 5000
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes({"no parquet": b"PAR2" * 10, "cut": data[: len(data) // 2], "flipped": data}[damage])
    error = refused(path)
    assert error.what.startswith("not a Parquet file that can be read (")
    assert error.what.endswith("rows could be read before")
    with pytest.raises(AloeError, match="not a Parquet file"):
        read_parquet(path)


def test_bad_texts_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    question = pa.array([b"Good?", b"caf\xe9?", b"a\0b", b"x" * (MAX_ROW_BYTES + 1), b"Fine?", b"And?"], pa.binary())
    table = pa.table({"question": question.view(pa.string()), "answer": pa.array(["y"] * 6)})
    pq.write_table(table, path)
    kept, dropped = read(path)
    assert len(kept) == 3
    assert [(d.reason, d.where) for d in dropped] == [
        ("not_utf8", "a.parquet:2"), ("nul_bytes", "a.parquet:3"), ("row_too_long", "a.parquet:4")
    ]  # fmt: skip
    assert dropped[0].detail == "byte 0xe9 is not UTF-8"
    assert dropped[2].detail == "the row has 4,194,320 bytes; at most 4,194,304 are read"


def test_json_that_is_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"question": "Q?",\n "answer": }]')
    error = refused(path)
    assert (error.what, error.where) == ("not valid JSON (Expecting value at column 12)", f"{path}:2")
    path.write_text('{\n "data": [{"question": "Q?", "answer": "A."}]\n}')
    assert refused(path).what == "one object, not rows"
    path.write_text('"text"')
    assert refused(path).what == "a value, not rows"
    path.write_text('[{"question": "Q?", "answer": "A."}, 7]')
    assert [(d.reason, d.where, d.detail) for d in read(path)[1]] == [
        ("not_an_object", "a.json:2", "expected an object, found int")
    ]
    path.write_bytes(b'[{"question": "Q?", "answer": "A."}, {"question": "caf\xe9?", "answer": "A."}]')
    assert [(d.reason, d.detail) for d in read(path)[1]] == [("not_utf8", "byte 0xe9 is not UTF-8")]
    path.write_text(json.dumps(qa(1)) + "\n{\n" + json.dumps(qa(3)))  # JSON Lines by another name
    assert [d.where for d in read(path)[1]] == ["a.json:2"]


# ---------------------------------------------------------------------------------------------- CSV


def test_bad_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'question,answer\nQ1?,"a,\nb"\nQ2?,x,y\nQ3?\n"Q4"?,x\nQ5?,caf\xe9\nQ6?,a\0b\n\nQ7?,fine\n' + b"Q?,y\n" * 3
    )
    kept, dropped = read(path)
    assert [r.messages[1]["content"] for r in kept if isinstance(r, Dialogue)] == ["a,\nb", "fine", "y", "y", "y"]
    assert [(d.where, d.reason, d.detail) for d in dropped] == [
        ("a.csv:4", "wrong_cell_count", "this row has 3 cells, not the 2 of the header"),
        ("a.csv:5", "wrong_cell_count", "this row has 1 cells, not the 2 of the header"),
        ("a.csv:6", "bad_csv", "not valid CSV (',' expected after '\"')"),
        ("a.csv:7", "not_utf8", "byte 0xe9 is not UTF-8"),
        ("a.csv:8", "nul_bytes", "a text holds a NUL character"),
    ]
    assert dropped[0].row == {"start": "Q2?,x,y"}


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\nQ1?,a\nQ2?,"b\nQ3?,c\n')
    error = refused(path)
    assert (error.what, error.where) == ("a quote that opens in this row is never closed", f"{path}:3")
    row = b"Q?,c\n"
    path.write_bytes(b'question,answer\nQ1?,a\nQ2?,"b\n' + row * (MAX_ROW_BYTES // len(row) + 10))
    kept, dropped = read(path)
    assert [(d.where, d.reason) for d in dropped] == [("a.csv:3", "row_too_long")]
    assert len(kept) > 2


def test_bad_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question;answer\nQ?;A.\n")
    assert refused(path).what == "the columns are separated by ';', not ','"
    path.write_text("question,answer,answer\nQ?,A.,B.\n")
    assert refused(path).what == "two columns are called 'answer'"
    path.write_bytes(b"question,r\xe9ponse\nQ?,A.\n")
    assert refused(path).what == "the header is not UTF-8"


# ---------------------------------------------------------------------------------------------- rows


def mcq(tmp_path: Path, **change: Any) -> Question | Dropped:
    row = {"id": "q", "question": "Which?", "options": {"A": "Iron", "B": "Zinc"}, "answer": "B", **change}
    (tmp_path / "m.jsonl").write_bytes(lines(row))
    [found] = read_rows(tmp_path / "m.jsonl", source="s")
    assert isinstance(found, Question | Dropped)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"A": "Iron", "B": "Zinc"},
        {"b": "Zinc", "a": "Iron"},
        ["Iron", "Zinc"],
        ["A. Iron", "B. Zinc"],
        ["(A) Iron", "(B) Zinc"],
        "A) Iron B) Zinc",
        "(A) Iron (B) Zinc",
        "a) Iron\nb) Zinc",
        "A. Iron\nB. Zinc",
        "A: Iron\nB: Zinc",
        '{"A": "Iron", "B": "Zinc"}',
        '["Iron", "Zinc"]',
        "{'A': 'Iron', 'B': 'Zinc'}",
        "['Iron', 'Zinc']",
        [{"key": "A", "value": "Iron"}, {"key": "B", "value": "Zinc"}],
        {"label": ["A", "B"], "text": ["Iron", "Zinc"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("answer", ["B", "b", "Zinc", "zinc", 1, "B) Zinc"])
def test_options_in_every_form(tmp_path: Path, options: Any, answer: Any) -> None:
    found = mcq(tmp_path, options=options, answer=answer)
    assert isinstance(found, Question), found
    assert (found.options, found.answer) == ({"A": "Iron", "B": "Zinc"}, "B")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("Iron; Zinc", "bad_options"),  # a semicolon may stand in an option
        ("Iron, Zinc", "bad_options"),
        ("A) Iron C) Zinc", "bad_options"),  # a letter is missing
        ("A) Iron B) vitamin B) or Zinc", "bad_options"),  # one too many
        ("Pick one: A) Iron B) Zinc", "bad_options"),
        ("A. Iron B. Zinc", "bad_options"),  # "hepatitis B. Zinc"
        ("A. Iron", "bad_options"),
        ("['Iron' 'Zinc']", "too_few_options"),  # how numpy prints
        ("{'A': 'Iron', 'B'", "bad_json"),
        ("[" * 3000, "bad_json"),
        ({"A": "Iron", "a": "Zinc"}, "bad_option_letters"),
        ({"1": "Iron", "2": "Zinc"}, "bad_option_letters"),
        (["Iron", None], "empty_option"),
        (["Iron", {"text": "Zinc"}], "bad_options"),
        ({"label": ["A"], "text": ["Iron", "Zinc"]}, "bad_options"),
        ({"label": "AB", "text": "xy"}, "bad_options"),
        (7, "bad_options"),
        ([], "too_few_options"),
        ([str(i) for i in range(30)], "bad_options"),
    ],
    ids=str,
)
def test_options_that_are_not_certain_are_not_guessed(tmp_path: Path, options: Any, reason: str) -> None:
    found = mcq(tmp_path, options=options)
    assert isinstance(found, Dropped)
    assert (found.reason, found.where) == (reason, "m.jsonl:1")


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        (["Zinc", "zinc "], "ZINC", "answer_not_in_options"),  # two options have that text
        (["B", "A"], "A", "ambiguous_answer"),
        ({"A": "Iron", "B": "Zinc"}, ["A"], "answer_not_in_options"),
        ({"A": "Iron", "B": "Zinc"}, "A, B", "answer_not_in_options"),
        ({"A": "Iron", "B": "Zinc"}, True, "no_answer"),
        ({"A": "Iron", "B": "Zinc"}, 1.5, "answer_not_in_options"),
    ],
)
def test_answers_that_are_not_certain_are_not_guessed(tmp_path: Path, options: Any, answer: Any, reason: str) -> None:
    found = mcq(tmp_path, options=options, answer=answer)
    assert isinstance(found, Dropped)
    assert found.reason == reason


def test_a_number_in_a_csv_cell_may_be_an_index_or_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,A,B,C,answer\nQ1?,x,y,z,2\nQ2?,2,4,8,2\nQ3?,0,1,2,2\nQ4?,10,20,30,20\nQ5?,x,y,z,9\n")
    kept, dropped = read(path)
    assert [(r.question, r.answer) for r in kept if isinstance(r, Question)] == [
        ("Q1?", "C"), ("Q3?", "C"), ("Q4?", "B")
    ]  # fmt: skip
    assert [(d.reason, d.where, d.detail) for d in dropped] == [
        ("ambiguous_answer", "a.csv:3", "2 is the index of one option and the text of A"),
        ("answer_not_in_options", "a.csv:6", "index 9 is outside 0..2 (0-based)"),
    ]
    path.write_text("question,answer\nWhat is its number?,007\n")
    [record], _ = read(path)
    assert isinstance(record, Dialogue)
    assert record.messages[1]["content"] == "007"


def test_repeated_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(qa(1), qa(2), qa(1, "Another.")))
    error = refused(path)
    assert (error.what, error.where) == (f"id 'q1' was used before, at {path}:1", f"{path}:3")
    assert "ids: content" in str(error.fix)
    assert len({r.id for r in read(path, ids="content")[0]}) == 3


def test_columns_that_later_stages_would_take_for_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines({**qa(1), "template": "x/1", "form": "summarization", "slots": ["s"], "topic": "t"})
    )
    [record], _ = read(tmp_path / "a.jsonl")
    assert record.meta == {
        "column_template": "x/1", "column_form": "summarization", "column_slots": ["s"], "topic": "t",
        "form": "question_answer",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- whatever comes


def attempt(read: Callable[[], list[Any]]) -> tuple[list[Any], AloeError | None]:
    """What reading gives, or the error for the user that it ends with; anything else that is raised is a bug."""
    try:
        return read(), None
    except AloeError as error:
        return [], error


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["id", "question", "answer", "options", "choices", "cop", "answer_idx", "opa", "opb", "messages", "conversations",
     "chosen", "rejected", "prompt", "instruction", "input", "output", "completions", "dialogue", "note", "section",
     "request", "label", "meta", "source", "licence", "base_id", "style", "context", "explanation"]
)  # fmt: skip
ROWS: Callable[..., Any] = st.dictionaries(NAMES, VALUES, max_size=6)


@settings(max_examples=300, deadline=None)
@given(first=st.sampled_from([
    {"question": "Q?", "options": ["a", "b"], "answer": 0}, {"question": "Q?", "answer": "A."},
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    {"prompt": "p", "chosen": "c", "rejected": "r"}, {"instruction": "i", "output": "o"},
    {"instruction": "i", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}]},
    {"dialogue": "d", "note": "n"}, {"request": "r", "safe_response": "s"},
]), row=ROWS)  # fmt: skip
def test_any_row_is_a_record_or_in_the_ledger(
    first: dict[str, Any], row: dict[str, Any], tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(lines({"id": "first", **first}, {**first, **row, "id": "second"}, {"id": "third", **first}))
    found, said = attempt(lambda: list(read_rows(path, source="s")))
    if said is not None:  # only what a row may say of its whole file
        assert "counts" in said.what or "can't be read" in said.what
        return
    assert len(found) == 3
    for item in found:
        json.dumps(item.row if isinstance(item, Dropped) else item.to_dict()).encode()


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), suffix=st.sampled_from([s for s in SUFFIXES if s != ".parquet"]))
def test_any_bytes_are_rows_or_broken_or_a_clear_error(data: bytes, suffix: str, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") and data[:1] < b"\x80" else data)
    found, said = attempt(lambda: list(read_file(path)))
    assert all(number >= 1 and isinstance(row, dict | Broken) for number, row in found)
    assert said is None or (said.where and said.fix)


@given(
    texts=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=8), limit=st.integers(1, 50)
)
@settings(max_examples=100, deadline=None)
def test_bounded_lines_are_the_lines(texts: list[bytes], limit: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\n".join(b"x" + t.replace(b"\0", b"").replace(b"\r", b"") for t in texts))
    whole = list(byte_lines(path))
    assert b"".join(line for _, line, _ in whole) == path.read_bytes()
    assert [(n, line[:limit], size) for n, line, size in whole] == [
        (n, line[:limit], size) for n, line, size in byte_lines(path, limit)
    ]


# ---------------------------------------------------------------------------------------------- from elsewhere


def test_a_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from aloe.run.inputs import fetch_rows

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'org/set' on the Hub (LocalEntryNotFoundError)\nmore lines")

    monkeypatch.setenv("ALOE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(AloeError) as error:
        fetch_rows("org/set:default:train")
    assert error.value.what == (
        "can't fetch the data set org/set:default:train: ConnectionError: Couldn't reach 'org/set' on the Hub "
        "(LocalEntryNotFoundError)"
    )
    assert "name a local JSON Lines or Parquet file instead" in str(error.value.fix)
    assert not list(tmp_path.rglob("*.parquet"))


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "train"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the data folder beside the project (../shared/data)")
def test_public_files_are_read_whole() -> None:
    counts = {"medical_mcq": (13_911, 0), "doctor_forum": (6_315, 0), "mts_dialog": (1_701, 800)}
    for name, expected in counts.items():
        kept, dropped = read(SHARED / f"{name}.jsonl.gz", ids="content")
        assert (len(kept), len(dropped)) == expected
        assert {d.reason for d in dropped} <= {"empty_dialogue"}  # test notes without their conversation
