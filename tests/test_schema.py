"""The one rule by which numbers of shapes are read, and that everything which states one keeps to it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe import __version__
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.rows import read_parquet, write_parquet
from aloe.schema import (
    FIELD,
    LATEST,
    PARQUET,
    Newer,
    check,
    check_name,
    check_object,
    check_rows,
    mark,
    mark_rows,
)

KINDS = st.sampled_from(sorted(LATEST))
NEXT = 1 << 20


@given(kind=KINDS, above=st.integers(1, 1 << 40))
def test_above_what_is_known_is_refused_in_one_way(kind: str, above: int) -> None:
    with pytest.raises(Newer) as told:
        check(kind, LATEST[kind] + above, "place/file")
    text = str(told.value)
    assert "place/file" in text
    assert str(LATEST[kind] + above) in text
    assert f"knows {LATEST[kind]}" in text
    assert f"aloe {__version__}" in text
    assert "upgrade aloe-llm" in text


@given(kind=KINDS, data=st.data())
def test_every_older_number_is_read(kind: str, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, LATEST[kind]))
    assert check(kind, number, "x") == number
    assert check_name(kind, "aloe-x", f"aloe-x/{number}", "x") == number


@given(
    kind=KINDS, stated=st.one_of(st.text(), st.booleans(), st.floats(), st.integers(max_value=0), st.lists(st.none()))
)
def test_what_is_no_number_is_an_error_and_no_newer_version(kind: str, stated: Any) -> None:
    with pytest.raises(AloeError) as told:
        check(kind, stated, "x")
    assert not isinstance(told.value, Newer)


@given(stated=st.binary())
def test_any_bytes_in_a_parquet_file_are_a_number_or_an_error(stated: bytes) -> None:
    try:
        assert 1 <= check_rows({PARQUET: stated}, "x") <= LATEST["rows"]
    except AloeError:
        assert stated != str(LATEST["rows"]).encode()


@given(
    content=st.one_of(
        st.none(), st.integers(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.text())
    )
)
def test_what_states_nothing_is_of_shape_1(content: Any) -> None:
    if not isinstance(content, dict) or FIELD not in content:
        assert check_object("scores", content, "x") == 1
    assert check_rows(None, "x") == 1


def test_another_name_is_no_newer_version() -> None:
    for stated in ("aloe-other/1", "aloe-x", "aloe-x/0", "aloe-x/01", "aloe-x/-1", "aloe-x/1/1", None, 3, ["aloe-x/1"]):
        with pytest.raises(ValueError, match="its format is"):
            check_name("judge", "aloe-x", stated, "x")


def test_tables_state_their_number_from_the_second_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_parquet(tmp_path / "first.parquet", [{"id": "a"}])
    assert PARQUET not in pq.read_schema(tmp_path / "first.parquet").metadata
    assert mark("scores") == {}
    assert mark_rows() == {}
    monkeypatch.setitem(LATEST, "rows", 2)
    monkeypatch.setitem(LATEST, "scores", 2)
    write_parquet(tmp_path / "second.parquet", [{"id": "a"}])
    assert mark("scores") == {FIELD: 2}
    assert read_parquet(tmp_path / "first.parquet") == read_parquet(tmp_path / "second.parquet") == [{"id": "a"}]
    monkeypatch.setitem(LATEST, "rows", 1)
    with pytest.raises(Newer, match=r"second\.parquet"):
        read_parquet(tmp_path / "second.parquet")


# -- what states a number of its own -----------------------------------------------------------------------------------


def ledger(folder: Path) -> Callable[[], object]:
    from aloe.generate.reply_store import ReplyStore

    path = folder / "requests.sqlite"
    store = ReplyStore(path)
    store.put([("key", "{}")])
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (LATEST["request ledger"],)
        db.execute(f"PRAGMA user_version={NEXT}")
    db.close()
    return lambda: ReplyStore(path)


def tfidf(folder: Path) -> Callable[[], object]:
    from aloe.generate.encoders import TfidfEncoder

    path = folder / "tfidf.json"
    TfidfEncoder(["fever"], [1.0]).save(path)
    TfidfEncoder.load(path)
    change(path, format=f"aloe tf-idf/{NEXT}")
    return lambda: TfidfEncoder.load(path)


def calibration(folder: Path) -> Callable[[], object]:
    from aloe.safety.calibration import load, packaged, save

    path = folder / "calibration.json"
    found = packaged("rules")
    assert found is not None
    save(path, [found])
    assert load(path, "rules") == found
    change(path, format=NEXT)
    return lambda: load(path, "rules")


def judge(folder: Path) -> Callable[[], object]:
    from aloe.safety.classifier import CONFIG, load

    (folder / CONFIG).write_text(json.dumps({"format": f"aloe-judge/{NEXT}"}))
    return lambda: load(folder)


def toxicity(folder: Path) -> Callable[[], object]:
    from aloe.evaluate.toxicity_linear import CONFIG, load_linear

    (folder / CONFIG).write_text(json.dumps({"format": f"aloe-toxicity/{NEXT}"}))
    return lambda: load_linear(folder)


def adopted(folder: Path) -> Callable[[], object]:
    from aloe.evaluate.toxicity import ADOPTED, _adopted

    (folder / ADOPTED).write_text(json.dumps({FIELD: NEXT, "toxic": ["toxic"]}))
    return lambda: _adopted(folder)


def exemplars(folder: Path) -> Callable[[], object]:
    from aloe.prompting.store_files import KIND, MANIFEST, read_record

    (folder / MANIFEST).write_text(json.dumps({"kind": KIND, "format": NEXT, "new": "field"}))
    return lambda: read_record(folder)


def sizes(folder: Path) -> Callable[[], object]:
    from aloe.run.sizing import FILE, sized

    (folder / FILE).write_text(json.dumps({FIELD: NEXT, "budget_seconds": 60.0}))
    return lambda: sized(lambda given: None, {"a.b": (1, 2)}, 60.0, folder, where="recipe")


def checkpoint(folder: Path) -> Callable[[], object]:
    from aloe.digests import canonical_json
    from aloe.train.checkpoint_files import INDEX
    from aloe.train.checkpoints import NUMBER, Checkpoints

    def opened() -> Checkpoints:
        return Checkpoints(folder, {"seed": 1}, log=lambda text: None)

    opened().latest()
    found = opened()
    found.latest()
    assert found.write(1, [], {"done": 1})
    path = folder / "step-00000001" / INDEX
    index = json.loads(path.read_text())["index"]
    assert index["identity"][NUMBER] == LATEST["checkpoint"]
    index["identity"][NUMBER] = NEXT
    path.write_text(canonical_json({"index": index, "digest": digest_json(index)}))
    return lambda: opened().latest()


@pytest.mark.parametrize(
    "made",
    [ledger, tfidf, calibration, judge, toxicity, adopted, exemplars, sizes, checkpoint],
    ids=lambda f: f.__name__,
)
def test_whatever_states_a_number_refuses_a_newer_one(
    made: Callable[[Path], Callable[[], object]], tmp_path: Path
) -> None:
    opening = made(tmp_path)
    left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and not p.name.endswith(("-wal", "-shm"))}
    with pytest.raises(AloeError, match=rf"(?s){re.escape(str(tmp_path))}.* is {NEXT}.*upgrade aloe-llm"):
        opening()
    assert all(p.read_bytes() == data for p, data in left.items())  # and it is left as it was


def test_a_ledger_from_before_there_were_numbers_is_read_and_numbered(tmp_path: Path) -> None:
    from aloe.generate.reply_store import TABLES, ReplyStore

    path = tmp_path / "requests.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(TABLES)
        db.execute("INSERT INTO replies VALUES ('key', 'reply')")
    db.close()
    store = ReplyStore(path)
    assert store.get(["key"]) == {"key": "reply"}
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (LATEST["request ledger"],)
    db.close()


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
