"""Killed twenty times at random places and taken up again, training ends in the same bytes as undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aloe.rows import write_jsonl

ROOT = Path(__file__).parents[2]
KILLS = 20


def write_rows(path: Path, kind: str) -> Path:
    rows = []
    for i in range(16):
        question = f"Question {i}: what helps against a fever of {38 + i % 3} degrees?"
        if kind == "dpo":
            rows.append(
                {"id": str(i), "prompt": question, "chosen": "Rest. " * (1 + i % 4), "rejected": "No. " * (i + 1)}
            )
        else:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Water. " * (1 + i)}]
            rows.append({"id": str(i), "messages": turns})
    write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_twenty_kills_change_no_bit(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", kind)
    script = str(ROOT / "tests" / "train" / "kill_script.py")
    command = [sys.executable, script, kind, str(tiny_model_folder), str(rows), str(tmp_path), str(KILLS)]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["kills"] == KILLS
    assert told["resumed_from"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    names = {p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and "logs" not in p.parts}
    assert Path("model.safetensors") in names
    assert names == {p.relative_to(resumed) for p in resumed.rglob("*") if p.is_file() and "logs" not in p.parts}
    for name in names:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    partial = [p for p in (tmp_path / "cache" / "train").rglob("*") if ".partial" in p.name]
    assert not partial, "a killed run left half a checkpoint behind"
