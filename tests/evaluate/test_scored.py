"""Scores read by columns are what rows read one by one say, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aloe.errors import AloeError
from aloe.evaluate import scored
from aloe.evaluate.scored import read_runs
from aloe.evaluate.sides import read_scores, value_of
from aloe.records import ItemResult
from aloe.rows import read_records, write_records

TOLD = ("nll_byte", "text_accuracy", "share")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
ODD = st.none() | st.booleans() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
TEXTS = st.text(max_size=12) | st.sampled_from(['"cluster": null', "NaN", "Infinity", "a\nb", '\\"', "\u2028é😀"])
METAS = st.fixed_dictionaries(
    {},
    optional={
        "cluster": st.sampled_from(["c1", "c2", "é\n"]) | st.none() | st.integers(0, 3),
        "text_letter": st.sampled_from("AB") | st.none(),
        "nll_byte": NUMBERS | ODD,
        "share": NUMBERS,
        "text_accuracy": st.sampled_from([0.0, 1.0]),
        "members": st.lists(st.fixed_dictionaries({"cluster": TEXTS, "text": TEXTS}), max_size=2),
        "text": TEXTS,
    },
)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["m", "n"]), st.sampled_from(["exam", "other"]), st.sampled_from(["accuracy", "nll_byte"]),
        st.none() | st.sampled_from([0.0, 1.0, 0.1]), st.sampled_from(["A", "B", ""]), METAS,
    ),
    min_size=1, max_size=24,
)  # fmt: skip
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def results(found: Sequence[tuple[str, str, str, float | None, str, dict[str, Any]]]) -> list[ItemResult]:
    return [
        ItemResult(
            id=f"r{at}", source="made", licence="cc0-1.0", meta=meta, item=f"q{at}", model=model, benchmark=benchmark,
            metric=metric, protocol=f"p {metric}", outcome="errored" if value is None else "answered", value=value,
            gold=gold, prediction="A",
        )
        for at, (model, benchmark, metric, value, gold, meta) in enumerate(found)
    ]  # fmt: skip


def artifact(folder: Path, rows: Sequence[ItemResult]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "items.parquet", list(rows))
    (folder / "protocols.json").write_text(json.dumps({row.protocol: {"strategy": "direct"} for row in rows}))
    told = [{"benchmark": row.benchmark, "protocol": row.protocol, "metric": name} for row in rows for name in TOLD]
    (folder / "scores.json").write_text(json.dumps({"scores": told}))
    return folder


def one_by_one(rows: Sequence[ItemResult], metric: str, key: tuple[str, str, str]) -> dict[str, float]:
    """Values as they follow from single rows."""
    own = (row for row in rows if (row.model, row.benchmark, row.metric) == key)
    return {row.item: value for row in own if (value := value_of(row, metric)) is not None}


@SETTINGS
@given(ROWS, st.integers(1, 7))
def test_columns_say_what_rows_say(tmp_path_factory: pytest.TempPathFactory, found: list[Any], size: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scored, "BATCH_ROWS", size)  # groups and batches don't end together
        folder = artifact(tmp_path_factory.mktemp("scores"), results(found))
        sides = read_scores(folder)
    rows = read_records(folder / "items.parquet", ItemResult)
    assert list(sides) == list(dict.fromkeys(row.model for row in rows))
    seen = set()
    for model, side in sides.items():
        for series in side.series:
            own = next(iter(series.rows.values())).metric
            key = (model, series.benchmark, own)
            seen.add(key)
            expected = one_by_one(rows, series.metric, key)
            assert list(series.values.items()) == list(expected.items())
            assert all(math.copysign(1, v) == math.copysign(1, expected[i]) for i, v in series.values.items())
            mine = {row.item: row for row in rows if (row.model, row.benchmark, row.metric) == key}
            assert list(series.rows) == list(mine)
            for item, row in series.rows.items():
                assert row.cluster == str(mine[item].meta.get("cluster", item))
                assert row.letter == str(mine[item].meta.get("text_letter", ""))
                assert (row.gold, row.prediction) == (mine[item].gold, mine[item].prediction)
        expected_metrics = {
            (row.benchmark, row.metric, name)
            for row in rows if row.model == model
            for name in (row.metric, *TOLD)
            if name == row.metric or one_by_one(rows, name, (model, row.benchmark, row.metric))
        }  # fmt: skip
        shown = {(s.benchmark, next(iter(s.rows.values())).metric, s.metric) for s in side.series}
        assert shown == expected_metrics
    assert seen == {(row.model, row.benchmark, row.metric) for row in rows}


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [1, 2], "b": Infinity}', '{"cluster": 1, "cluster": NaN}'])
def test_a_number_that_is_none_is_refused_wherever_it_stands(text: str, tmp_path: Path) -> None:
    (row,) = results([("m", "exam", "accuracy", 1.0, "A", {"a": 1})])
    folder = artifact(tmp_path / "s", [row])
    table = pq.read_table(folder / "items.parquet")
    at = table.schema.get_field_index("meta")
    pq.write_table(table.set_column(at, "meta", pa.array([text])), folder / "items.parquet")
    with pytest.raises(AloeError, match="not a finite number"):
        read_scores(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.append_column("extra", pa.array([1])), "no field 'extra'"),
        (lambda t: t.drop_columns(["item"]), "no column 'item'"),
        (lambda t: t.set_column(3, "meta", pa.array(["[1]"])), "meta is no object"),
        (lambda t: t.set_column(3, "meta", pa.array(["{"])), "can't be read"),
        (lambda t: t.set_column(10, "value", pa.array(["x"])), "no number"),
    ],
)
def test_what_are_no_item_rows(change: Any, what: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "s", results([("m", "exam", "accuracy", 1.0, "A", {"a": 1})]))
    pq.write_table(change(pq.read_table(folder / "items.parquet")), folder / "items.parquet")
    with pytest.raises(AloeError, match=what):
        list(read_runs(folder / "items.parquet", []))
