"""The tutorial's files are the ones that it shows, and its first step gives what it says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from aloe.cli import app
from aloe.records import Question
from aloe.rows import read_parquet

ROOT = Path(__file__).parents[1]
FILES = ROOT / "recipes" / "tutorial"
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def test_every_step_shown_is_the_recipes() -> None:
    recipe = yaml.safe_load((FILES / "clinic.yaml").read_text(encoding="utf-8"))
    *parts, whole = [yaml.safe_load(text) for text in blocks("yaml")]
    assert whole == recipe
    shown = {}
    for part in parts:
        shown |= part.get("steps", part)
    assert shown == recipe["steps"]


def test_the_rows_shown_are_the_files() -> None:
    desk = (FILES / "hospital" / "desk.csv").read_text(encoding="utf-8").splitlines()
    head, *rows = blocks("csv")[0].splitlines()
    assert head == desk[0]
    for row in rows:
        start = row.removesuffix("...").strip().replace('"', "")
        assert any(line.replace('"', "").startswith(start) for line in desk), row
    (shown,) = blocks("json")
    exam = [json.loads(line) for line in (FILES / "hospital" / "exam.jsonl").read_text(encoding="utf-8").splitlines()]
    assert json.loads(shown) in exam
    assert len(desk) - 1 == 20
    assert len(exam) == 8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FILES, tmp_path / "tutorial")
    monkeypatch.chdir(tmp_path / "tutorial")
    return tmp_path / "tutorial"


def test_the_first_step_gives_what_the_page_says(folder: Path) -> None:
    ran = CliRunner().invoke(app, ["run", "clinic.yaml", "corpus"])
    assert ran.exit_code == 0, ran.output
    shown = CliRunner().invoke(app, ["show", "out/clinic-desk/corpus"]).output
    (told,) = (text for text in blocks("text") if "rows  load: 140 in" in text)
    for line in told.splitlines():
        assert line.strip() in shown
    dropped = read_parquet(folder / "out" / "clinic-desk" / "corpus" / "dropped.parquet")
    (near,) = (row for row in dropped if row["reason"] == "near_duplicate")
    assert near["evidence"]["jaccard"] == 0.7353
    assert "0.7353" in PAGE
    rows = (folder / "out" / "clinic-desk" / "corpus" / "rows.parquet").read_bytes()
    assert b"Keller" not in rows


def test_the_phi_example_redacts_what_the_page_says(folder: Path) -> None:
    columns = "columns={id: ticket, question: asked, answer: reply}"
    command = ["curate", "--only", "phi", "hospital/desk.csv", "looked.jsonl", "mode=redact", columns]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    said = (folder / "looked.jsonl").read_text(encoding="utf-8")
    assert "Dr. [NAME] told me on [DATE] to stop my warfarin. When do I start again?" in said
    for gone in ("030 1234 5678", "is 93"):
        assert gone not in said


def test_the_exam_holds_questions_with_four_options() -> None:
    from aloe.data.sources import read_rows

    rows = list(read_rows(FILES / "hospital" / "exam.jsonl", source="exam"))
    assert all(isinstance(row, Question) and len(row.options) == 4 for row in rows)
