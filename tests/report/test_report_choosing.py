"""What a page takes of a large log: what its rows say, whole items, as many as fit, and counted to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_transcripts import FILLER, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aloe.report import choosing, items
from aloe.report.choosing import payload
from aloe.report.items import log_of, transcribed
from aloe.report.transcript_table import Table, block
from aloe.report.transcripts import red_team_log
from aloe.report.verdicts import is_finding, verdict_of
from aloe.rows import write_parquet

JUDGES = {"a": {"harm": "unsafe", "refusal": "refused"}, "b": {"harm": "safe", "refusal": "complied"}}
METAS = st.sampled_from(
    [{}, {"cluster": "c"}, {"judges": JUDGES}, {"judges": {"a": JUDGES["a"]}}, {"text": '"judges"'},
     {"members": [{"letter": "A", "text": "one"}, {"letter": None, "text": "two"}]}, {"continuations": ["x", "y"]}]
)  # fmt: skip
FOUND = st.lists(
    st.tuples(
        st.integers(0, 6), st.sampled_from(["m", "n"]), st.sampled_from(["exam", "other"]),
        st.sampled_from(["accuracy", "over_refusal", "attack_success", "clinical_pass", "expected_max_toxicity"]),
        st.sampled_from(["answered", "unparsed", "errored"]), st.sampled_from([None, 0.0, 1.0, 0.3, 0.7]),
        st.sampled_from(["A", ""]), st.sampled_from(["", " ", "Some words."]), METAS,
    ),
    min_size=1, max_size=30,
)  # fmt: skip
PROTOCOLS = {"p exam": {"strategy": "direct"}, "p other": {"strategy": "vote"}}


def stored(path: Path, found: list[Any]) -> Path:
    write_parquet(path, [
        {"id": str(at), "source": "made", "licence": "cc0-1.0", "meta": json.dumps(meta), "item": f"q{item}",
         "model": model, "benchmark": benchmark, "metric": metric, "protocol": f"p {benchmark}", "outcome": outcome,
         "value": value, "gold": gold, "prediction": "A", "output": output, "prompt_tokens": 1,
         "completion_tokens": len(output)}
        for at, (item, model, benchmark, metric, outcome, value, gold, output, meta) in enumerate(found)
    ])  # fmt: skip
    return path


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(FOUND, st.booleans(), st.integers(1, 7))
def test_a_survey_by_columns_says_what_the_rows_say(
    tmp_path_factory: pytest.TempPathFactory, found: list[Any], public: bool, size: int
) -> None:
    path = stored(tmp_path_factory.mktemp("log") / "items.parquet", found)
    rows = list(transcribed(path, PROTOCOLS, "step", None, public))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(items, "BATCH_ROWS", size)
        log = log_of(path, PROTOCOLS, "step", None, public)
        parts = list(log.survey())
        _, told = payload([log], 10**7, [])
    columns = [[v for part in parts for v in part[at]] for at in range(5)]
    assert columns[1:] == [
        [(row["set"], row["kind"]) for row in rows], [row["item"] for row in rows],
        [verdict_of(row) for row in rows], [is_finding(row) for row in rows],
    ]  # fmt: skip
    assert [row for _, row in log.rows(columns[0])] == rows
    some = columns[0][::2]
    assert [(number, row) for number, row in log.rows(some)] == list(zip(some, rows[::2], strict=True))
    said: dict[Any, set[str]] = {}
    found_at = set()
    for row in rows:
        key = (row["set"], row["kind"], row["item"])
        said.setdefault(key, set()).add(verdict_of(row))
        found_at |= {key} if is_finding(row) else set()
    findings = {key for key, words in said.items() if len(words) > 1} | found_at
    assert (told["transcripts"], told["of_items"], told["findings"]) == (len(rows), len(said), len(findings))
    assert (told["shown"], told["items_shown"], told["findings_shown"]) == (len(rows), len(said), len(findings))


def test_the_table_knows_its_size_to_the_byte_and_takes_back_what_has_no_room(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", list(rows(40)))
    read = [row for _, row in red_team_log(tmp_path / "t.parquet").rows(None)]
    table = Table(True, ["helpful"])
    for row in read:
        before = (table.size, json.dumps(table.data()))
        assert not table.add_item([row, row], table.size + 3)
        assert (table.size, json.dumps(table.data())) == before
        assert table.add_item([row], None)
    # Every list's last element has no comma after it.
    assert 0 <= table.size - len(block(table.data())) <= 16


def test_what_models_share_is_counted_once_so_the_page_is_full(tmp_path: Path) -> None:
    """All rows fit where they fit, and a page with too many leaves no room for another row."""
    write_parquet(tmp_path / "t.parquet", list(rows(60)))
    log = red_team_log(tmp_path / "t.parquet")
    data, told = payload([log], None, [])
    whole = len(block(data))
    _, told = payload([log], whole + 16, [])
    assert told["items_shown"] == told["of_items"] == 60
    data, told = payload([log], whole // 2, [])
    largest = max(len(block(payload([log], None, [])[0])) // 60 * 2, len(FILLER))
    assert whole // 2 - largest < len(block(data)) <= whole // 2
    assert 0 < told["items_shown"] < 60


def test_no_more_rows_than_a_browser_takes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "t.parquet", list(rows(60)))
    monkeypatch.setattr(choosing, "ROWS", 100)
    _, told = payload([red_team_log(tmp_path / "t.parquet")], 10**7, [])
    assert (told["shown"], told["items_shown"], told["of_items"]) == (99, 33, 60)
    _, told = payload([red_team_log(tmp_path / "t.parquet")], None, [])
    assert told["shown"] == 180


def test_the_choice_does_not_depend_on_how_much_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "t.parquet", list(rows(80)))
    log, chosen = red_team_log(tmp_path / "t.parquet"), []
    for slack, passed in ((1.2, 100), (0.01, 100), (50.0, 100)):
        monkeypatch.setattr(choosing, "SLACK", slack)
        monkeypatch.setattr(choosing, "PASSED", passed)
        chosen.append(payload([log], 30_000, []))
    assert chosen[0] == chosen[1] == chosen[2]
