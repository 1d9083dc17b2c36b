"""`aloe curate --only STAGE IN OUT` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aloe.cli import app
from aloe.errors import AloeError

runner = CliRunner()


def invoke(*arguments: str) -> str:
    result = runner.invoke(app, ["curate", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    rows = [{"id": str(n), "question": f"What is number {n}?", "answer": f"It is {n}, of course."} for n in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "in.jsonl"


def test_a_stage_on_a_file(answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert str(out) in invoke("--only", "mix", str(answers), str(out), "rows=4", "--seed", "3")
    first = out.read_text()
    assert len(first.splitlines()) == 4
    again = tmp_path / "again.jsonl"
    invoke("--only", "mix", str(answers), str(again), "rows=4", "--seed", "3", "--quiet")
    assert again.read_text() == first


def test_the_licence_beside_the_input_reaches_rows_that_state_none(answers: Path, tmp_path: Path) -> None:
    with answers.open("a") as file:
        file.write(json.dumps({"id": "own", "question": "Whose?", "answer": "Its own.", "licence": "mit"}) + "\n")
    Path(f"{answers}.license").write_text("SPDX-License-Identifier: CC-BY-4.0\n")
    out = tmp_path / "out.jsonl"
    invoke("--only", "clean", str(answers), str(out), "--quiet")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["id"]: r["licence"] for r in rows} == {**{str(n): "cc-by-4.0" for n in range(6)}, "own": "mit"}


def test_a_starter_set_is_a_benchmark_here_too(answers: Path, tmp_path: Path) -> None:
    invoke("--only", "decontaminate", str(answers), str(tmp_path / "o.parquet"), "against=[starter/exam]", "--quiet")
    stats = json.loads((tmp_path / "o.stats.json").read_text())
    assert stats["facts"]["decontaminate"]["benchmarks"]["starter/exam"]["items"] > 100


def test_files_come_first(answers: Path) -> None:
    with pytest.raises(AloeError, match="takes an input and an output file first"):
        invoke("--only", "dedup", str(answers), "qa=0.8")
