"""Rows on disk come back as they went in, in order and by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.parquet_out import ParquetRows
from aloe.data.spool import BATCH, Item, Mapped, Spool, SpoolWriter, View
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
