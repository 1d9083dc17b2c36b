"""Stages in a chain: counts add up, finished stages outlive a crash, personal data stays out of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aloe.data import flow as flow_module
from aloe.data.flow import Flow, Stage, StageOut, StageRecord, each
from aloe.data.sources import Dropped
from aloe.data.spool import Item, View
from aloe.records import Dialogue


def dialogue(n: int) -> Dialogue:
    turns = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
    return Dialogue(id=f"s:{n}", source="s", licence="mit", messages=turns)


def load(count: int, calls: list[str]) -> Stage:
    def run(_: None, out: StageOut) -> None:
        calls.append("load")
        for n in range(count):
            out.put(Item(dialogue(n), "s", 0))
        out.refuse(Dropped("s:x", "s", "load", "not_json", "s.jsonl:9", "broken", row={"text": "Jane Doe"}))

    return Stage("load", count, run)


def drop(name: str, where: Callable[[int], bool], calls: list[str], setting: int = 0) -> Stage:
    def run(view: View, out: StageOut) -> None:
        calls.append(name)
        for place, item in enumerate(view):
            if where(int(item.record.id[2:])):
                out.drop(place, item, "unwanted", "why", {"place": place})

    return Stage(name, setting, run)


def shout(calls: list[str]) -> Stage:
    def run(view: View, out: StageOut) -> None:
        calls.append("shout")
        for item in view:
            assert isinstance(item.record, Dialogue)
            turns = [{**m, "content": m["content"].upper()} for m in item.record.messages]
            changed = Dialogue(id=item.record.id, source="s", licence="mit", messages=turns)
            out.put(Item(changed, item.origin, item.rank))

    return Stage("shout", None, run)


def test_counts_ledger_and_examples(tmp_path: Path) -> None:
    calls: list[str] = []
    told: list[tuple[str, bool]] = []
    flow = Flow(tmp_path / "f", "key", told=lambda r, found: told.append((r.stage, found)))
    first = flow.step(load(20, calls))
    assert (first.rows_in, first.kept, first.dropped) == (21, 20, {"not_json": 1})
    second = flow.step(drop("odd", lambda n: n % 2 == 1, calls))
    assert (second.rows_in, second.kept, second.dropped) == (20, 10, {"unwanted": 10})
    assert len(second.examples["unwanted"]) == flow_module.EXAMPLES
    assert second.examples["unwanted"][0]["text"] == "user: question 1\nassistant: answer 1"
    flow.step(shout(calls))
    flow.step(drop("big", lambda n: n > 15, calls))
    assert flow.view is not None
    assert [i.record.id for i in flow.view] == [f"s:{n}" for n in range(0, 16, 2)]
    assert flow.view[0].record.messages[0]["content"] == "QUESTION 0"  # type: ignore[attr-defined]
    ledger = list(flow.dropped())
    assert [r["stage"] for r in ledger] == ["load"] + ["odd"] * 10 + ["big"] * 2
    assert ledger[1]["evidence"] == {"place": 1}
    assert ledger[1]["row"]["messages"][0]["content"] == "question 1"
    assert told == [("load", False), ("odd", False), ("shout", False), ("big", False)]


def test_a_run_that_dies_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[str] = []

    def dies(view: View, out: StageOut) -> None:
        calls.append("dies")
        out.drop(0, view[0], "unwanted")
        raise MemoryError

    flow = Flow(tmp_path / "f", "key")
    flow.step(load(5, calls))
    flow.step(shout(calls))
    with pytest.raises(MemoryError):
        flow.step(Stage("last", 1, dies))
    found: list[tuple[str, bool]] = []
    again = Flow(tmp_path / "f", "key", told=lambda r, f: found.append((r.stage, f)))
    again.step(load(5, calls))
    again.step(shout(calls))
    record = again.step(drop("last", lambda n: n == 0, calls, 1))
    assert calls == ["load", "shout", "dies", "last"]
    assert found == [("load", True), ("shout", True), ("last", False)]
    assert (record.kept, len(list(again.dropped()))) == (4, 2)
    assert not [p for p in (tmp_path / "f").iterdir() if ".part-" in p.name]
    again.forget()
    assert not (tmp_path / "f").exists()


def test_a_changed_setting_runs_that_stage_and_those_after_it(tmp_path: Path) -> None:
    calls: list[str] = []
    for setting in (1, 2, 1):
        flow = Flow(tmp_path / "f", "key")
        flow.step(load(5, calls))
        flow.step(drop("a", lambda n: n == 1, calls, setting))
        flow.step(drop("b", lambda n: n == 2, calls))
    assert calls == ["load", "a", "b", "a", "b"]
    Flow(tmp_path / "f", "other key").step(load(5, calls))
    assert calls[-1] == "load"


def test_what_is_hidden_is_hidden_in_ledger_and_examples(tmp_path: Path) -> None:
    def hide(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("Jane Doe", "[NAME]").replace("answer", "[HIDDEN]")
        return {k: hide(v) for k, v in value.items()} if isinstance(value, dict) else value

    flow = Flow(tmp_path / "f", "key", hide)
    record = flow.step(load(2, []))
    assert "Jane Doe" not in str(record)
    assert next(flow.dropped())["row"] == {"text": "[NAME]"}
    flow.step(drop("a", lambda n: n == 1, []))
    for path in (tmp_path / "f").rglob("stage.json"):
        assert "Jane Doe" not in path.read_text()
    assert "answer" not in str(flow.records[1].examples)


def test_a_row_that_vanishes_is_our_bug(tmp_path: Path) -> None:
    def forgets(view: View, out: StageOut) -> None:
        out.put(view[0])

    flow = Flow(tmp_path / "f", "key")
    flow.step(load(3, []))
    with pytest.raises(AssertionError, match="3 rows in"):
        flow.step(Stage("forgets", 0, forgets))


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "PARALLEL_ROWS", 10)
    flow = Flow(tmp_path / "f", "key")
    flow.step(load(5000, []))
    assert flow.view is not None
    alone = list(each(_length, flow.view, workers=1))
    assert list(each(_length, flow.view, workers=2)) == alone
    assert len(alone) == 5000


def _length(item: Item) -> int:
    return len(item.record.id)


def test_records_are_plain(tmp_path: Path) -> None:
    record = Flow(tmp_path / "f", "key").step(load(1, []))
    assert isinstance(record, StageRecord)
    assert record.by_source == {"s": 1}
