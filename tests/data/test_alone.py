"""One stage on a plain file: what it writes, and what it refuses before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe.data.alone import GROUPS, Surroundings, run_stage
from aloe.errors import AloeError
from aloe.rows import read_parquet, write_jsonl

STEMS = (
    "Which hormone lowers blood glucose by moving it into muscle and fat?",
    "Which valve lies between the left atrium and the left ventricle of the heart?",
    "Which organism causes most cases of community-acquired pneumonia in adults?",
)


def engine(ref: str) -> Any:
    raise AssertionError(f"no stage here needs the model {ref}")


AROUND = Surroundings(Path, engine)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"id": f"q{n}", "question": stem, "options": {"A": "Right", "B": "Wrong"}, "answer": "A", "licence": "mit"}
        for n, stem in enumerate(STEMS)
    ]
    rows.append({**rows[0], "id": "twin", "options": {"A": "Wrong", "B": "Right"}, "answer": "B"})
    rows.append({**rows[1], "id": "misfit", "answer": "Z"})
    write_jsonl(tmp_path / "in.jsonl", rows)
    return tmp_path / "in.jsonl"


def stage(name: str, source: Path, target: Path, **values: Any) -> dict[str, Any]:
    return run_stage(name, source, target, values, seed=7, around=AROUND)


def test_dedup_writes_rows_ledger_and_statistics(questions: Path, tmp_path: Path) -> None:
    told: list[str] = []
    stats = run_stage(
        "dedup", questions, tmp_path / "out.parquet", {"qa": 0.8}, seed=7, around=AROUND,
        told=lambda record, found: told.append(record.stage),
    )  # fmt: skip
    rows = read_parquet(tmp_path / "out.parquet")
    assert [r["id"] for r in rows] == ["q0", "q1", "q2"]
    assert rows[0]["options"] == {"A": "Right", "B": "Wrong"}
    dropped = {r["id"]: r for r in read_parquet(tmp_path / "out.dropped.parquet")}
    assert {n: (r["stage"], r["reason"]) for n, r in dropped.items()} == {
        "misfit": ("load", "answer_not_in_options"), "twin": ("exact_dedup", "exact_duplicate"),
    }  # fmt: skip
    assert dropped["misfit"]["where"] == "in.jsonl:5"
    assert dropped["twin"]["evidence"] == {"survivor": "q0"}
    assert json.loads((tmp_path / "out.stats.json").read_text()) == stats
    assert (stats["before"]["rows"], stats["after"]["rows"]) == (4, 3)
    assert stats["settings"]["qa"] == 0.8
    assert told == ["load", "exact_dedup", "near_dedup"]
    assert not [p for p in tmp_path.iterdir() if ".part-" in p.name]


def test_every_stage_runs_and_its_rows_add_up(questions: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "bench.jsonl", [{"id": "x", "question": STEMS[2], "options": ["Right", "No"], "answer": 0}])
    values: dict[str, dict[str, Any]] = {
        "decontaminate": {"against": [str(tmp_path / "bench.jsonl")]}, "mix": {"rows": 2},
        "phi": {"mode": "redact"}, "quality": {"drop_share": 0.25},
    }  # fmt: skip
    left = {}
    for name in set(GROUPS) - {"diversity"}:  # that one needs an embedding model
        stats = stage(name, questions, tmp_path / f"{name}.jsonl", **values.get(name, {}))
        left[name] = stats["after"]["rows"]
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        dropped = read_parquet(tmp_path / f"{name}.dropped.parquet")
        assert len(rows) + len(dropped) == 5
        assert len(rows) == left[name]
    assert left == {
        "clean": 4, "phi": 4, "dedup": 3, "decontaminate": 3, "quality": 3, "template": 4, "mix": 2,
    }  # fmt: skip
    made = json.loads((tmp_path / "template.jsonl").read_text().splitlines()[0])
    assert [m["role"] for m in made["messages"]] == ["user", "assistant"]


def test_a_stage_reads_what_a_stage_wrote(questions: Path, tmp_path: Path) -> None:
    stage("clean", questions, tmp_path / "a.parquet")
    stage("dedup", tmp_path / "a.parquet", tmp_path / "b.jsonl")
    stage("template", tmp_path / "b.jsonl", tmp_path / "c.parquet", explained_share=0)
    rows = read_parquet(tmp_path / "c.parquet")
    assert [r["id"] for r in rows] == ["q0", "q1", "q2"]
    assert {r["meta"]["task"] for r in rows} == {"multiple_choice"}


def test_redacted_text_is_nowhere(tmp_path: Path) -> None:
    secret = "Call me on 555-867-5309."
    write_jsonl(
        tmp_path / "in.jsonl",
        [{"id": "a", "question": f"I have a cough. {secret}", "answer": "Rest and drink.", "note": secret},
         {"id": "b", "question": f"Fever? {secret}", "answer": ""}],
    )  # fmt: skip
    stage("phi", tmp_path / "in.jsonl", tmp_path / "out.jsonl", mode="redact")
    for path in tmp_path.glob("out.*"):
        if path.suffix == ".parquet":
            assert "867" not in json.dumps(read_parquet(path))
        else:
            assert "867" not in path.read_text()
    assert json.loads((tmp_path / "out.jsonl").read_text())["meta"]["redacted"]
    stage("phi", tmp_path / "in.jsonl", tmp_path / "gone.jsonl", mode="drop")
    [first, second] = read_parquet(tmp_path / "gone.dropped.parquet")
    assert {first["reason"], second["reason"]} == {"personal_data", "empty_answer"}
    assert "867" not in json.dumps([first, second])


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("dedupe", {}, "did you mean dedup"),
        ("dedup", {"qq": 0.7}, "dedup has no setting 'qq'"),
        ("dedup", {"qa": 7}, "qa: Input should be less than or equal to 1"),
        ("decontaminate", {}, "no benchmark to compare with"),
        ("quality", {"scorer": "deita"}, "quality.model goes with scorer"),
        ("phi", {"kinds": ["shoe size"]}, "no kind of personal data is called 'shoe size'"),
        ("mix", {"weights": {"other": 1}}, "the rows' sources are"),
    ],
)
def test_refusals_name_the_setting(
    questions: Path, tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(AloeError, match=said):
        stage(name, questions, tmp_path / "out.parquet", **values)
    assert not list(tmp_path.glob("out*"))
    assert not [p for p in tmp_path.iterdir() if ".part-" in p.name]


def test_refuses_files_it_must_not_write(questions: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("precious")
    with pytest.raises(AloeError, match="this file is there already"):
        stage("clean", questions, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "precious"
    with pytest.raises(AloeError, match=r"name a \.parquet or \.jsonl file"):
        stage("clean", questions, tmp_path / "out.csv")
    with pytest.raises(AloeError, match="no such file"):
        stage("clean", tmp_path / "none.jsonl", tmp_path / "new.parquet")
