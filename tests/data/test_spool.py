"""Rows on disk come back as they went in, in order and by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.parquet_out import ParquetRows
from aloe.data.spool import BATCH, Item, Mapped, Spool, SpoolWriter, View, encoded
from aloe.digests import digest_file
from aloe.records import Dialogue, Question, Row
from aloe.rows import read_parquet, write_parquet


def dialogue(n: int, text: str = "x") -> Dialogue:
    turns = [{"role": "user", "content": f"{text} {n}"}, {"role": "assistant", "content": "a"}]
    return Dialogue(id=f"s:{n}", source=f"s{n % 3}", licence="mit", messages=turns, meta={"n": n, "deep": {"a": [1]}})


def question(n: int) -> Question:
    return Question(id=f"q:{n}", source="q", licence="mit", question="Why?", options={"A": "x", "B": "y"}, answer="B")


def spooled(path: Path, rows: list[Row]) -> View:
    with SpoolWriter(path) as writer:
        for n, row in enumerate(rows):
            writer.put(Item(row, row.source, n % 2))
    return View(Spool(path))


def test_rows_come_back_over_batch_edges(tmp_path: Path) -> None:
    rows: list[Row] = [question(n) if n % 5 == 0 else dialogue(n) for n in range(2 * BATCH + 3)]
    view = spooled(tmp_path / "r.arrow", rows)
    assert len(view) == len(rows)
    assert [i.record for i in view] == rows
    assert view[BATCH].record == rows[BATCH]
    assert view.column("id") == [r.id for r in rows]
    assert [i.rank for i in view[BATCH - 1 : BATCH + 1]] == [(BATCH - 1) % 2, BATCH % 2]


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, BATCH + 1])
def test_any_number_of_rows(tmp_path: Path, count: int) -> None:
    view = spooled(tmp_path / "r.arrow", [dialogue(n) for n in range(count)])
    assert len(view) == count
    assert sum(1 for _ in view) == count


def test_a_chosen_order_is_kept(tmp_path: Path) -> None:
    rows: list[Row] = [dialogue(n) for n in range(3000)]
    order = np.random.Generator(np.random.Philox(key=1)).permutation(3000)
    view = spooled(tmp_path / "r.arrow", rows).only(order)
    assert [i.record.id for i in view] == [rows[k].id for k in order]
    assert [i.record.id for i in view.only([5, 2])] == [rows[order[5]].id, rows[order[2]].id]
    assert view.column("source")[:3] == [rows[k].source for k in order[:3]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    rows: list[Row] = [dialogue(n, t) for n, t in enumerate(t for t in texts if t.isprintable())]
    view = spooled(tmp_path_factory.mktemp("s") / "r.arrow", rows)
    assert [i.record for i in view] == rows


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2 * BATCH), st.booleans()), max_size=5), st.integers(0, 2**16))
def test_rows_encoded_elsewhere_lie_where_their_number_says(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, bool]], seed: int
) -> None:
    """Batches of any size, among rows put one by one; then any rows in any order."""
    rows = [dialogue(n) for n in range(sum(size for size, _ in parts))]
    with SpoolWriter(tmp_path_factory.mktemp("s") / "r.arrow") as writer:
        at = 0
        for size, one_by_one in parts:
            items = [Item(row, row.source, 0) for row in rows[at : at + size]]
            if one_by_one:
                for item in items:
                    writer.put(item)
            else:
                writer.put_encoded(encoded(items))
            at += size
        assert writer.count == len(rows)
    view = View(Spool(writer.path))
    assert [i.record for i in view] == rows
    if rows:
        places = np.random.Generator(np.random.Philox(key=seed)).integers(0, len(rows), 40)
        chosen = np.concatenate((places, np.arange(min(9, len(rows))), places[::-1]))
        assert [i.record for i in view.only(chosen)] == [rows[n] for n in chosen]
        assert [view.only(chosen).id_of(k) for k in range(len(chosen))] == [rows[n].id for n in chosen]


def test_mapped_views_compute_at_each_look(tmp_path: Path) -> None:
    seen = []
    view = spooled(tmp_path / "r.arrow", [dialogue(n) for n in range(4)])
    ids = Mapped(view, lambda i: seen.append(i.record.id) or i.record.id)
    assert (len(ids), ids[1], ids[1:3], list(ids)) == (4, "s:1", ["s:1", "s:2"], [f"s:{n}" for n in range(4)])
    assert len(seen) == 7


def test_streamed_parquet_has_the_bytes_of_a_table_written_at_once(tmp_path: Path) -> None:
    rows = [dialogue(n).to_dict() for n in range(50)]
    write_parquet(tmp_path / "whole.parquet", rows)
    with ParquetRows(tmp_path / "rows.parquet", tuple(rows[0]), ("meta", "messages")) as file:
        for row in rows:
            file.put(row)
    assert digest_file(tmp_path / "rows.parquet") == digest_file(tmp_path / "whole.parquet")
    assert read_parquet(tmp_path / "rows.parquet") == rows


def test_an_empty_parquet_file_has_its_columns(tmp_path: Path) -> None:
    with ParquetRows(tmp_path / "none.parquet", ("id", "meta"), ("meta",)):
        pass
    assert read_parquet(tmp_path / "none.parquet") == []
