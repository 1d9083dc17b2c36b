"""Stages in a chain: counts add up, finished stages outlive a crash, personal data stays out of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aloe.data import flow as flow_module
from aloe.data.flow import Flow, Outcome, Stage, StageOut, StageRecord, rewritten
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
    """Rows changed, dropped and counted by one process or by two: the same rows, ledger and counts."""
    monkeypatch.setattr(flow_module, "PARALLEL_ROWS", 10)
    seen = []
    for cores in (1, 2):
        monkeypatch.setattr(flow_module, "_cores", lambda cores=cores: cores)
        flow = Flow(tmp_path / str(cores), "key")
        flow.step(load(5000, []))
        flow.step(judge())
        assert flow.view is not None
        record = flow.records[1]
        assert (record.rows_in, record.kept, record.dropped) == (5000, 4500, {"tenth": 500})
        assert record.facts["noted"] == [["s", f"s:{n}"] for n in range(7, 5000, 100)]
        seen.append(([i.record for i in flow.view], list(flow.dropped()), record.facts, record.examples))
    assert seen[0] == seen[1]
    assert [r.id for r in seen[0][0][:10]] == [f"S:{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11)]


def judge() -> Stage:
    def run(view: View, out: StageOut) -> None:
        out.facts["noted"] = [list(found) for found in rewritten(_judged, view, out)]

    return Stage("judge", None, run)


def _judged(item: Item) -> Outcome:
    n = int(item.record.id[2:])
    if n % 10 == 0:
        return Outcome(None, "tenth", f"row {n}", {"n": n})
    return Outcome(replace(item.record, id=item.record.id.upper()), note=item.record.id if n % 100 == 7 else None)


def test_rows_that_a_stage_only_looks_at_are_not_written_again(tmp_path: Path) -> None:
    def run(view: View, out: StageOut) -> None:
        out.facts["noted"] = len(list(rewritten(_judged, view, out, changes=False, content=False)))

    flow = Flow(tmp_path / "f", "key")
    flow.step(load(300, []))
    record = flow.step(Stage("look", None, run))
    assert (record.kept, record.dropped, record.facts["noted"]) == (270, {"tenth": 30}, 3)
    assert not list(flow.folders[1].glob("rows.arrow"))
    assert flow.view is not None
    assert flow.view.id_of(0) == "s:1"
    assert all(row["row"] == {} for row in flow.dropped() if row["stage"] == "look")


def test_every_row_may_go(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "f", "key")
    flow.step(load(30, []))
    flow.step(Stage("none", None, lambda view, out: out.facts.update(n=len(list(rewritten(_none, view, out))))))
    assert flow.view is not None
    assert len(flow.view) == 0


def _none(item: Item) -> Outcome:
    return Outcome(None, "gone")


def test_rows_are_hidden_once_and_evidence_always(tmp_path: Path) -> None:
    """After the stage that takes personal data out of the rows, searching them for it again would find nothing."""
    asked = []

    def hide(value: Any) -> Any:
        asked.append(value)
        return "hidden" if isinstance(value, str) else {"hidden": True}

    flow = Flow(tmp_path / "f", "key", hide)
    flow.step(load(3, []))
    flow.step(Stage("phi", None, lambda view, out: [out.put(i) for i in view], hides=True))
    asked.clear()
    flow.step(drop("a", lambda n: n == 1, []))
    last = list(flow.dropped())[-1]
    assert (last["detail"], last["evidence"]) == ("hidden", {"hidden": True})
    assert last["row"] == dialogue(1).to_dict()
    assert last["row"] not in asked


def test_records_are_plain(tmp_path: Path) -> None:
    record = Flow(tmp_path / "f", "key").step(load(1, []))
    assert isinstance(record, StageRecord)
    assert record.by_source == {"s": 1}
